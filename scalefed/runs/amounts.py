"""Which number does a text in a table stand for? "125M", "1.2B", "220,000,000", "54.8%", "3.1 ZFLOPs"; or "OOM", none.

Magnitudes are read for counts only (parameters, tokens, FLOPs, clients ...), a percent sign for shares only: nobody
means a million by the m of a duration.
"""

import math
import re
from typing import Any

COUNTED = frozenset("parameters tokens FLOPs bytes clients rounds steps sequences".split())
"""Units of which there may be millions."""

NOTHING = frozenset(
    ["", "-", "--", "—", "–", "?", "n/a", "na", "n.a.", "nan", "none", "null", "nil", "missing", "tbd", "tba", "<na>"]
)
"""What people write where nothing was measured."""

LOST = frozenset(
    "oom oom-killed ooms out_of_memory cuda_oom diverged diverge div div. crashed crash failed fail failure error err "
    "killed timeout timed_out dnf did_not_finish did_not_converge dnc unstable exploded spiked preempted aborted "
    "cancelled running pending".split()
)
"""What people write in place of a number that a run did not live to give."""

_MAGNITUDES = {
    "k": 1e3, "thousand": 1e3, "m": 1e6, "mn": 1e6, "mio": 1e6, "million": 1e6, "millions": 1e6, "b": 1e9, "bn": 1e9,
    "g": 1e9, "billion": 1e9, "billions": 1e9, "t": 1e12, "tn": 1e12, "trillion": 1e12, "trillions": 1e12,
}  # fmt: skip
_FLOPS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21, "y": 1e24}
_PLAIN = r"[+-]?(?:\d{1,3}(?:[ ,_'\u00a0\u202f]\d{3})+|\d+)(?:\.\d*)?|[+-]?\.\d+"
_NUMBER = re.compile(rf"\s*(?P<number>{_PLAIN})(?P<power>[eE][+-]?\d{{1,3}})?\s*(?P<rest>[^\d\s].*)?$")
_POWER_OF_TEN = re.compile(
    r"\s*(?:(?P<factor>[\d.]+)\s*[x*·×]\s*)?10\s*(?:\^|\*\*)\s*\{?(?P<power>[+-]?\d{1,3})\}?\s*$"
)
_NOUN = re.compile(r"[\s_]*(?:params?|parameters?|tokens?|toks?|flops?|steps?|rounds?|clients?|bytes?|nats?)\.?$", re.I)
_LONGEST = 60  # characters; no amount is longer, and a regular expression is not run on a book


def number(text: str, unit: str = "-") -> float | None:
    """The number that a text stands for; None if it stands for none.

    Args:
        text: as it stands in the table.
        unit: of the column, as in the schema.

    >>> [number(text, "parameters") for text in ("125M", "1.2B", "220,000,000", "70m params", "3 x 10^8", "OOM")]
    [125000000.0, 1200000000.0, 220000000.0, 70000000.0, 300000000.0, None]
    >>> number("54.8%"), number("3.1 ZFLOPs", "FLOPs"), number("5m", "s"), number("nan")
    (0.548, 3.1e+21, None, nan)
    """
    if len(text) > _LONGEST:
        return None
    word = text.strip()
    if word.lower() in NOTHING:
        return math.nan
    if found := _POWER_OF_TEN.match(word):
        return _finite(f"{found['factor'] or 1}e{found['power']}")
    found = _NUMBER.match(word)
    if found is None:
        return _finite(word) if word.lower().lstrip("+-") in ("inf", "infinity") else None
    value = _finite(re.sub(r"[ ,_'\u00a0\u202f]", "", found["number"]) + (found["power"] or ""))
    factor = _factor((found["rest"] or "").strip(), unit)
    return None if value is None or factor is None else _round(value * factor)


def _factor(rest: str, unit: str) -> float | None:
    """What stands behind the digits, as a factor; None if it means nothing here."""
    if rest == "%":
        return 0.01 if unit == "-" else None
    if unit == "FLOPs" and (found := re.fullmatch(r"([kmgtpezy])\s*flops?", rest, re.I)):
        return _FLOPS[found[1].lower()]
    word = _NOUN.sub("", rest).strip().lower()
    if not word:
        return 1.0
    return _MAGNITUDES.get(word) if unit in COUNTED else None


def header_factor(name: str) -> float:
    """What a column's name says its numbers are counted in: 1e6 for "params (M)" or "tokens_millions"; else 1.

    >>> header_factor("Params (M)"), header_factor("tokens_billions"), header_factor("tokens"), header_factor("lr (m)")
    (1000000.0, 1000000000.0, 1.0, 1000000.0)
    """
    found = re.search(r"[\[(]\s*(?:in\s+)?([A-Za-z]+)\s*[\])]\s*$", name) or re.search(
        r"[\s_](?:in[\s_])?(thousand|million|billion|trillion)s?\s*$", name, re.I
    )
    return _MAGNITUDES.get(found[1].lower(), 1.0) if found else 1.0


def is_lost(value: Any) -> bool:
    """Whether a text says that the run did not live to give this number.

    >>> is_lost("OOM"), is_lost("low")
    (True, False)
    """
    return isinstance(value, str) and re.sub(r"\s+", "_", value.strip().lower()) in LOST


def _finite(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _round(value: float) -> float:
    """Without the rounding error of a factor: 54.8 percent is 0.548."""
    return float(f"{value:.15g}")
