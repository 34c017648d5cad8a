"""Was every held-out run made after its prediction was frozen, from a clean tree that held the prediction?

    python paper/blind.py            one line a held-out run that breaks the rule; fails if there is one

The held-out cells stand in ``runs/holdout/sweep.toml``, ``runs/isoflop/sweep.toml`` and, each with a prediction of its
own, ``runs/python/sweep.toml``, ``runs/python-32M/sweep.toml`` and ``runs/crossed/sweep.toml``; a run is one of them at
any seed, on any kernel and device, wherever in ``runs/`` it lies. Predictions are the files ``fits/*.frozen.json``:
each is committed once and never changed. Everything is read from the run logs and from git's history.
"""

import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import scalefed as sf

HOLDOUTS = (
    "runs/holdout/sweep.toml", "runs/isoflop/sweep.toml", "runs/python/sweep.toml", "runs/python-32M/sweep.toml",
    "runs/crossed/sweep.toml",
)  # fmt: skip
PREDICTED_IN = {
    "runs/python/sweep.toml": "fits/python.frozen.json", "runs/python-32M/sweep.toml": "fits/python-32M.frozen.json",
    "runs/crossed/sweep.toml": "fits/crossed.frozen.json",
}  # fmt: skip
"""The prediction that a sweep's runs are held to; any, where none is named."""
# What may differ between runs of one cell: chance, the machine, and how the end is measured.
FREE = frozenset(
    "seed data_seed kernels device precision client_batching problems problem_count samples temperature top_p"
    " validation_tokens evaluate_every".split()
)
SAME_TEXT = 0.01  # a corpus ends with a whole document: 54 tokens more than asked for in 33 thousand


@dataclass(frozen=True)
class Frozen:
    """A frozen prediction: path below the repository, the commit that brought it and when that was made."""

    path: str
    commit: str
    made: datetime


def main(root: Path) -> int:
    """Print what breaks the rule; the number of breaches."""
    frozen, breaches = frozen_predictions(root)
    count = 0
    for sweep in HOLDOUTS:
        wanted = PREDICTED_IN.get(sweep)
        predictions = [one for one in frozen if wanted in (None, one.path)]
        held_out = list(held_out_runs(root, [sweep]))
        count += len(held_out)
        breaches += [breach for run in held_out if (breach := _breach(root, run, predictions))]
    for breach in breaches:
        print(breach)
    print(f"{len(frozen)} frozen predictions, {count} held-out runs, {len(breaches)} breaches")
    return len(breaches)


def frozen_predictions(root: Path) -> tuple[list[Frozen], list[str]]:
    """The predictions that git holds as they were first committed, and a line for each that it does not."""
    found, breaches = [], []
    for path in sorted(root.glob("fits/*.frozen.json")):
        name = path.relative_to(root).as_posix()
        history = _git(root, "log", "--follow", "--format=%H %cI", "--", name).split("\n")
        if not history[0]:
            breaches.append(f"{name}: not committed, so nothing is frozen")
        elif len(history) > 1 or _git(root, "status", "--porcelain", "--", name):
            breaches.append(f"{name}: changed after it was committed; freeze another file instead")
        else:
            commit, made = history[0].split()
            found.append(Frozen(name, commit, datetime.fromisoformat(made)))
    return found, breaches


def held_out_runs(root: Path, sweeps: Sequence[str] = HOLDOUTS) -> Iterator[Mapping[str, Any]]:
    """The rows of all stored runs that are a cell of the sweep files, at any seed."""
    cells: dict[tuple[str, ...], set[int]] = {}
    for config in (config for sweep in sweeps if (root / sweep).exists() for config in sf.load_sweep(root / sweep)):
        cells.setdefault(_cell(config.to_dict()), set()).add(config.corpus_tokens)
    for folder in sorted({path.parent for path in root.glob("runs/*/runs.parquet")} | _folders(root)):
        for row in sf.load_runs(folder).to_dict("records"):
            config = {name: row[f"{name}_asked"] if f"{name}_asked" in row else row.get(name) for name in _SETTINGS}
            text = row.get("unique_tokens", 0)
            if any(abs(text / wanted - 1) < SAME_TEXT for wanted in cells.get(_cell(config), ())):
                yield row


_SETTINGS = tuple(name for name in sf.RunConfig().to_dict() if name not in FREE | {"unique_tokens"})


def _cell(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_word(config[name]) for name in _SETTINGS)


def _word(value: Any) -> str:
    """One spelling of a setting, from a sweep file or from a table, where whole numbers may be floats."""
    if value is None or value == "" or value != value:
        return ""
    return f"{float(value):.12g}" if isinstance(value, int | float) else str(value)


def _folders(root: Path) -> set[Path]:
    """Sweeps whose runs are not packed."""
    return {path.parent.parent for path in root.glob("runs/*/*/run.json")}


def _breach(root: Path, run: Mapping[str, Any], frozen: Iterable[Frozen]) -> str:
    """Why a held-out run is not blind; nothing where it is."""
    name, commit = run["run_id"], run.get("commit")
    if not isinstance(commit, str):
        return f"{name}: no commit is recorded"
    if run.get("dirty") is not False:
        return f"{name}: made from a tree that was not clean"
    started = datetime.fromisoformat(str(run["started"]))
    if not any(one.made < started and _contains(root, commit, one.commit) for one in frozen):
        return f"{name}: started {started.isoformat()} at {commit[:7]}, which holds no prediction frozen before"
    return ""


def _contains(root: Path, commit: str, earlier: str) -> bool:
    command = ["git", "-C", str(root), "merge-base", "--is-ancestor", earlier, commit]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(1 if main(Path(__file__).resolve().parents[1]) else 0)
