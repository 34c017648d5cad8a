"""More kinds of files: packed sweeps, problems, samples, verdicts, the state of a run that was killed."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import damage_kinds
import pandas as pd
from damage import Kind

import scalefed as sf
from scalefed.config import RunConfig
from scalefed.data.problem import Problem
from scalefed.data.problems import load_problems
from scalefed.evaluation.result_file import judge_file
from scalefed.evaluation.sample_files import open_samples
from scalefed.runs.packed import stored_files

_TEST = "def check(candidate):\n    assert candidate(1) == 2\n"
_PROBLEMS = [Problem(f"t/{i}", f"def f{i}(x):\n", "    return x + 1\n", _TEST, f"f{i}") for i in range(3)]
_SAMPLES = [{"task_id": f"t/{i % 3}", "completion": f"    return x + {i}\n"} for i in range(6)]
_LIMITS: dict[str, Any] = {"timeout": 1.0, "references": False}
_VERDICTS: list[str] = []


def _only(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("kept")]


# ---------------------------------------------------------------------- packed sweeps
_PACK: list[Path] = []


def _pack(folder: Path) -> None:
    if not _PACK:
        made = folder.parent / "a packed sweep"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        damage_kinds.write_log(made)
        sf.pack(made / "sweep")
        _PACK.append(made)
    shutil.copytree(_PACK[0] / "sweep", folder / "sweep")


def _read_pack(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    return sf.load_runs(folder), sf.load_runs(folder, rounds=True), sf.load_counts(folder)


def _wrong_pack(before: Any, after: Any, target: Path) -> str | None:
    """A pack is one file: what it holds may be refused as a whole, but no number may come out of it that cannot be."""
    return next((fault for row in after[0].to_dict("records") if (fault := damage_kinds.impossible(row))), None)


def _rows_of_pack(folder: Path) -> pd.DataFrame:
    """The rows of a pack whose rounds or counts are broken, which have no part in them; none where it is refused."""
    try:
        frame = sf.load_runs(folder)
    except sf.ScalefedError:
        frame = pd.DataFrame({"run_id": []})
    return frame.drop(columns="pass_at_1", errors="ignore")


def _lost_rows(before: pd.DataFrame, after: pd.DataFrame, target: Path) -> str | None:
    return damage_kinds.lost(before, after, set())


def _of_pack(name: str) -> Callable[[Path], list[Path]]:
    return lambda folder: [folder / "sweep" / name]


def _packed_table(folder: Path) -> None:
    rows = "".join(f"{1000 * n},{100_000 * n},{4 - n / 10}\n" for n in range(1, 9))
    (folder / "runs.csv.gz").write_bytes(gzip.compress(f"params,tokens,loss\n{rows}".encode(), mtime=0))


def _wrong_table(before: pd.DataFrame, after: pd.DataFrame, target: Path) -> str | None:
    return next((fault for row in after.to_dict("records") if (fault := damage_kinds.impossible(row))), None)


def _unpack(folder: Path) -> dict[str, dict[str, str]]:
    sf.unpack(folder / "sweep", into=folder / "out")
    return stored_files(folder / "sweep")


def _wrong_unpack(before: dict[str, Any], after: dict[str, Any], target: Path) -> str | None:
    if outside := [path for path in target.parent.parent.iterdir() if path.name not in ("sweep", "out")]:
        return f"nonsense: {outside[0]} was written"
    changed = [name for name, files in after.items() if name in before and files != before[name]]
    return f"nonsense: {changed[0]} has other content than its hash says" if changed else None


# ---------------------------------------------------------------------- problems, samples, verdicts
def _lines(name: str, records: list[dict[str, Any]]) -> Any:
    def build(folder: Path) -> None:
        text = "".join(json.dumps(record) + "\n" for record in records).encode()
        (folder / name).write_bytes(gzip.compress(text, mtime=0) if name.endswith(".gz") else text)

    return build


def _read_problems(name: str) -> Any:
    return lambda folder: load_problems(folder / name)


def _wrong_problems(before: list[Problem], after: list[Problem], target: Path) -> str | None:
    odd = [p for p in after if not p.task_id or not p.entry_point.isidentifier() or "check" not in p.test]
    return f"nonsense: a problem {odd[0]}" if odd else None


def _read_samples(name: str) -> Any:
    return lambda folder: list(open_samples(folder / name, _PROBLEMS))


def _wrong_samples(before: Any, after: Any, target: Path) -> str | None:
    for place, sample in after:
        if not sample.trouble and (sample.task_id not in {p.task_id for p in _PROBLEMS} or not place):
            return f"nonsense: line {place} of {sample.task_id}"
    return None


def _results(folder: Path) -> None:
    _lines("kept.jsonl", _SAMPLES)(folder)
    if not _VERDICTS:
        judge_file(folder / "kept.jsonl", _PROBLEMS, out=folder / "results.jsonl", isolation="none", **_LIMITS)
        _VERDICTS.append((folder / "results.jsonl").read_text())
    (folder / "results.jsonl").write_text(_VERDICTS[0])


def _read_results(folder: Path) -> Any:
    return judge_file(folder / "kept.jsonl", _PROBLEMS, out=folder / "results.jsonl", isolation="none", **_LIMITS)


def _wrong_results(before: Any, after: Any, target: Path) -> str | None:
    counts = after.counts
    if sum(counts.samples) > len(_SAMPLES) or any(c > n for c, n in zip(counts.correct, counts.samples, strict=True)):
        return f"nonsense: {counts}"
    return None


# ---------------------------------------------------------------------- states
_CONFIG = RunConfig(params=3500, unique_tokens=20_000)


def _state(folder: Path) -> None:
    import torch

    content = {"config": _CONFIG.changed(), "weights": torch.zeros(20), "round": 1, "slots": {}, "memory": {}}
    content |= {"visits": [1], "records": [{"round": 1, "participants": 1}], "participants": 1, "wall_s": 1.0}
    torch.save(content | {"cpu_s": 1.0}, folder / "state.pt")


def _read_state(folder: Path) -> Any:
    from unittest import mock

    from scalefed.experiment import checkpoints

    with mock.patch.object(checkpoints, "checkpoint_path", return_value=folder / "state.pt"):
        return checkpoints.load_checkpoint(_CONFIG)


def more_kinds() -> list[Kind]:
    """Kinds of files beside those of ``damage_kinds.kinds``."""
    problems = [vars_of(problem) for problem in _PROBLEMS]

    def nothing(before: Any, after: Any, target: Path) -> str | None:
        return None

    return [
        Kind("packed sweep", _pack, _read_pack, _only, _wrong_pack, "table"),
        Kind("packed, bytes", _pack, _read_pack, _only, _wrong_pack, "bytes"),
        Kind("packed, counts", _pack, _rows_of_pack, _of_pack("counts.parquet"), _lost_rows, "bytes"),
        Kind("packed, rounds", _pack, _rows_of_pack, _of_pack("rounds.parquet"), _lost_rows, "bytes"),
        Kind("runs.csv.gz", _packed_table, lambda f: sf.load_runs(f / "runs.csv.gz"), _only, _wrong_table, "bytes"),
        Kind("packed, unpacked", _pack, _unpack, _only, _wrong_unpack, "table"),
        Kind("problems", _lines("p.jsonl", problems), _read_problems("p.jsonl"), _only, _wrong_problems, "lines"),
        Kind("problems.gz", _lines("p.jsonl.gz", problems), _read_problems("p.jsonl.gz"), _only, _wrong_problems,
             "bytes"),
        Kind("samples", _lines("s.jsonl", _SAMPLES), _read_samples("s.jsonl"), _only, _wrong_samples, "lines"),
        Kind("samples.gz", _lines("s.jsonl.gz", _SAMPLES), _read_samples("s.jsonl.gz"), _only, _wrong_samples, "bytes"),
        Kind("verdicts", _results, _read_results, _only, _wrong_results, "lines"),
        Kind("state of a run", _state, _read_state, _only, nothing, "bytes"),
    ]  # fmt: skip


def vars_of(problem: Problem) -> dict[str, str]:
    """A problem's fields."""
    return {name: getattr(problem, name) for name in ("task_id", "prompt", "canonical_solution", "test", "entry_point")}
