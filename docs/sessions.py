"""Run what the guide shows, so that nothing printed in it is typed: ``python docs/sessions.py [PAGE ...]``.

A page's blocks run in their order, in one empty folder with the committed runs and fits:

- ``python`` runs; what it prints is the ``text`` block behind it;
- ``console`` runs line by line (``$ command``), and holds what each prints;
- a block with ``title="name"`` is a file of that name;
- ``sh`` is shown only: installing, and commands for several machines. Where it says ``flwr run``, ``app.py`` runs with
  each ``--run-config``, on Flower nodes in this process: a simulation and its Ray take minutes on a busy machine.
"""

import contextlib
import io
import itertools
import logging
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
GIVEN = {"runs/grid": "runs/grid", "fits/grid.json": "fits/grid.json", "fits/grid.toml": "fits/grid.toml",
         "records": "tests/runs/fixtures"}  # fmt: skip
"""What a page finds in its folder -> where it lies here."""
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d[\d,_]*\.?\d*(?:e[+-]?\d+)?", re.IGNORECASE)
SANDBOX = re.compile(r"(?<=level )\w+|(?<=isolation )\w+")
"""The level that this machine's kernel allows."""
PROGRESS = re.compile(r"^runs: \d+ of .*\n", re.MULTILINE)
TOLERANCE = 0.03
"""How far a printed number may be from the one in the page: other machines round and vectorise differently."""


def pages() -> list[Path]:
    """Every page with sessions."""
    return sorted((HERE / "guide").glob("*.md"))


@contextlib.contextmanager
def place(folder: Path) -> Iterator[None]:
    """Work in a folder that has the committed runs and fits."""
    for name, where in GIVEN.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(ROOT / where)
    words = {"COLUMNS": "100", "NO_COLOR": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
             "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}  # fmt: skip
    before, there = os.environ.copy(), os.getcwd()
    os.environ.update(words)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(there)
        os.environ.clear()
        os.environ.update(before)


def run_page(text: str) -> str:
    """The same page with everything that its sessions print now; call it within :func:`place`."""
    names: dict[str, Any] = {"__name__": "__main__"}

    def again(found: re.Match[str]) -> str:
        language, words, code, _ = found.groups()
        head = f"```{language}{words}\n{code}```\n"
        if title := re.search(r'title="([^"]+)"', words):
            Path(title[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(title[1]).write_text(code, encoding="utf-8")
            return found[0]
        if language == "python":
            printed = _python(code, names)
            return head + (f"\n```text\n{printed}```\n" if printed else "")
        if language == "console":
            commands = re.findall(r"^\$ ((?:.*\\\n)*.*)", code, flags=re.MULTILINE)
            return "```console\n" + "".join(f"$ {command}\n{_shell(command)}" for command in commands) + "```\n"
        if language == "sh" and "flwr run" in code:
            _flower(code)
        return found[0]

    return BLOCK.sub(again, text)


def agree(shown: str, printed: str) -> bool:
    """Whether two texts have the same words, and numbers that differ by rounding alone.

    >>> agree("loss 0.3081 at 56k", "loss 0.3079 at 56k"), agree("loss 0.3", "loss 0.4"), agree("a 1", "b 1")
    (True, False, False)
    """
    if _words(shown) != _words(printed):
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) for a, b in ((_value(x), _value(y)) for x, y in pairs))


def _words(text: str) -> list[str]:
    return NUMBER.sub("#", SANDBOX.sub("", text)).split()


def _value(text: str) -> float:
    return float(re.sub("[,_]", "", text))


def _python(code: str, names: dict[str, Any]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "<guide>", "exec"), names)  # noqa: S102
    return out.getvalue()


def _shell(command: str) -> str:
    """What a command prints on both streams; ``scalefed`` runs in this process, which spares its start."""
    if command.startswith("scalefed ") and not set("|<>&") & set(command.split("'")[0]):
        from scalefed.cli import main

        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main(shlex.split(command.replace("\\\n", " "))[1:])
        return PROGRESS.sub("", out.getvalue())
    done = subprocess.run(command, shell=True, text=True, stdout=-1, stderr=subprocess.STDOUT, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{command}\n{done.stdout}")
    return done.stdout


def _flower(code: str) -> None:
    """Run ``app.py`` for all combinations of a block's ``for`` loops."""
    import pytest

    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from flower_grid import Grid, flower_here

    loops = dict(re.findall(r"for (\w+) in ([\d ]+);", code))
    with pytest.MonkeyPatch.context() as patch:
        flower_here(patch)
        patch.setattr(logging.getLogger("flwr"), "disabled", True)
        from flwr.app import Context, RecordDict

        app = runpy.run_path("app.py")
        for values in itertools.product(*(map(int, text.split()) for text in loops.values())):
            words = dict(zip(loops, values, strict=True))
            grid = Grid(app["client_app"], 4, seed=0, run_config=words)
            app["server_app"](grid, Context(1, 0, {}, RecordDict(), words))


def main(words: list[str]) -> None:
    """Write anew what the pages show; ``python docs/notebooks.py`` then makes the notebooks of them."""
    for page in [Path(word).resolve() for word in words] or pages():
        with tempfile.TemporaryDirectory() as folder, place(Path(folder)):
            page.write_text(run_page(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
