"""How do the library's messages read in the shell? Python's way of saying a thing becomes the command's.

The library tells what to try in Python; whoever typed a command is told in its words.
"""

import re
from collections.abc import Callable

_PAIR = re.compile(r"['\"]?(\w+)['\"]?\s*:\s*['\"]([^'\"]*)['\"]")


def _columns(found: re.Match[str]) -> str:
    pairs = _PAIR.findall(found[1])
    return " ".join(f"--column {ours}={theirs if ' ' not in theirs else repr(theirs)}" for ours, theirs in pairs) or (
        "--column OURS=THEIRS"
    )


def _fixed(found: re.Match[str]) -> str:
    return " ".join(f"--fix {pair.strip()}" for pair in re.sub(r"['\"{}]", "", found[1]).replace(": ", "=").split(","))


_GUESS = {"clients": "16", "clients_per_round": "4", "participation": "0.25", "skew": "0", "concentration": "0.3",
          "local_steps": "25"}  # fmt: skip
_SAID: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"columns=(\{[^}]*\})", _columns),
    (r"columns=\.\.\.", "--column OURS=THEIRS"),
    (r"\bfixed=(\{[^}]*\})", _fixed),
    (r"\bfixed=\.\.\.", "--fix NAME=VALUE"),
    (r"\bhuber_delta=(\S+?)(?=[,;. )]|$)", r"--huber-delta \1"),
    (r"\bresamples=(\w+)", r"--resamples \1"),
    (r"\bintervals='([\w-]+)'", r"--intervals \1"),
    (r"\blaw=\"([^\"]*)\"", r"--law '\1'"),
    (r"\bcompute=\.\.\.", "--compute FLOPS"),
    (r"\b(\w+)=\.\.\.", lambda found: f"{found[1]}={_GUESS.get(found[1], 'VALUE')}"),
    (r"fit\.with_link\(load_counts\(runs\)\), or (scalefed fit --passk)", r"\1"),
    (r"\bfit\.optimal_sizes\(compute=\[[^\]]*\]\)", "--compute 1e13,1e14"),
    (r"\b(?:sf|scalefed)\.fit\(\w*\)", "scalefed fit RUNS"),
    (r"\bfit\.plan\([^)]*\)", "scalefed optimum FIT KEY=VALUE"),
    (r"\bfit\.save\('([^']*)'\)", r"scalefed fit RUNS --out \1"),
    (r"\bfit\.save\(\.\.\.\)", "scalefed fit RUNS --out FILE.json"),
    (r"\b(?:sf|scalefed)\.(next_runs|first_runs|compare|train|sweep|evaluate)\b(?:\([^)]*\))?",
     lambda found: f"scalefed {found[1].removesuffix('_runs')}"),
    (r"\bload_runs\(rounds=True\)", "scalefed runs --rounds"),
)  # fmt: skip


def in_shell(message: str) -> str:
    """A message of the library, in the words of the command line.

    >>> in_shell('name yours by columns={"params": "N", "tokens": "D"}')
    'name yours by --column params=N --column tokens=D'
    >>> in_shell("give clients_per_round=..., or clients=... and participation=...")
    'give clients_per_round=4, or clients=16 and participation=0.25'
    """
    for said, words in _SAID:
        message = re.sub(said, words, message)
    return message
