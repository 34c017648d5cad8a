"""Which runs go into a fit? Read, rename, check and clean the run log; nothing is dropped without a word."""

import contextlib
import hashlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalefed.errors import ConfigError, DataError, FitWarning, nearest
from scalefed.fitting.run_weights import RUN_WEIGHT
from scalefed.laws.law import Law
from scalefed.laws.parser import MAY_BE_ZERO
from scalefed.runs import ranges
from scalefed.runs.derived import as_stored
from scalefed.runs.schema import COLUMNS as SCHEMA
from scalefed.runs.states import unfinished
from scalefed.runs.tables import derived, likely_columns, numbers, rename
from scalefed.units import grouped


@dataclass(frozen=True, slots=True)
class FitData:
    """Runs that can be fitted.

    Attributes:
        frame: the runs used, original order, with ``run_id``, the law's columns and the target.
        law: the law, with parameters fixed at 0 that these runs cannot inform (see ``notes``).
        columns: the law's columns, each (n,).
        target: (n,) positive.
        clusters: (n,) integers; rows of one cluster are resampled together.
        notes: sentences about what was dropped or fixed.
        source: the path the runs came from, or None.
        cluster: the column that says so, or None for ``run_id``.
    """

    frame: pd.DataFrame
    law: Law
    columns: Mapping[str, np.ndarray]
    target: np.ndarray
    clusters: np.ndarray
    notes: tuple[str, ...]
    source: str | None
    cluster: str | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.target)


def read_frame(runs: Any, columns: Mapping[str, str] | None = None) -> tuple[pd.DataFrame, str | None]:
    """A DataFrame with the run log's column names, and the path it came from.

    Args:
        runs: a DataFrame, a mapping of columns, a list of rows, a run folder, or a CSV, Parquet or JSONL file.
        columns: our name -> the name in ``runs``, for example ``{"params": "N"}``.

    Raises:
        DataError: not readable, or a renamed column is missing.
    """
    source = None
    renames = dict(columns or {})
    if isinstance(runs, (str, PathLike)):
        source, frame, renames = str(runs), *_from_path(runs, renames)
    elif isinstance(runs, pd.DataFrame):
        frame = runs
    elif isinstance(runs, Mapping):
        try:
            frame = pd.DataFrame(dict(runs))
        except ValueError as error:
            raise DataError(f"the columns of the runs must be lists or arrays of one length ({error})") from error
    elif isinstance(runs, list | tuple) and runs and all(isinstance(row, Mapping) for row in runs):
        frame = pd.DataFrame([dict(row) for row in runs])
    else:
        raise DataError(
            "runs must be a DataFrame, a mapping of columns, a list of rows or a path to run logs, got "
            f"{type(runs).__name__}"
        )
    return (rename(frame, renames, known=None) if renames else frame), source


def _from_path(runs: "str | PathLike[str]", renames: dict[str, str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """A run log with the schema's columns renamed, and the renames that are left: columns of the user's own laws."""
    from scalefed.runs.importers.tools import read_runs
    from scalefed.runs.log import load_runs

    known = {ours: theirs for ours, theirs in renames.items() if ours in SCHEMA}
    own = {ours: theirs for ours, theirs in renames.items() if ours not in known}
    if own and Path(runs).is_file():
        table = read_runs(runs)
        if not known and not any(name in SCHEMA for name in table.columns):
            return table, own
    return load_runs(runs, columns=known or None), own


def prepare(
    runs: Any,
    law: Law,
    *,
    target: str = "loss",
    columns: Mapping[str, str] | None = None,
    cluster: str | None = None,
    warn: bool = True,
) -> FitData:
    """Runs ready for a fit.

    Args:
        runs: see :func:`read_frame`.
        law: the law to be fitted; decides which columns are needed.
        target: the column to be explained, positive (nats per token for ``loss``).
        columns: our name -> the name in ``runs``.
        cluster: column whose equal values are resampled together; by default ``run_id`` where rows share one.
        warn: whether dropped rows and fixed parameters are warned about (they are always in ``notes``).

    Raises:
        DataError: a needed column is missing or not numeric, or no two usable runs are left.
        ConfigError: a parameter has the name of a column.
    """
    frame, source = read_frame(runs, columns)
    frame = _possible(_numbers_in_texts(frame, (*law.columns, target)), law, target)
    if any(name not in frame.columns for name in law.columns):
        frame = with_derived(frame)
    law, notes = adapt(law, frame)
    _require(frame, law, target, cluster)
    frame, dropped = _clean(frame, law, target)
    frame, copies = _without_copies(frame)
    law, more = adapt(law, frame)
    more += _of_training(frame, target, columns)
    cluster, together = run_column(frame, cluster)
    notes = (*notes, *dropped, *copies, *more, *together)
    if len(frame) > 2 and frame[target].nunique() == 1:
        raise DataError(
            f"{target} is {frame[target].iloc[0]:g} in each of {len(frame)} unlike runs: there is nothing to fit; is "
            f"{target} the right column?"
        )
    if len(frame) < 2:
        left = "only one run is" if len(frame) == 1 else "no run is"
        raise DataError(
            f"{left} left to fit {law.name!r}; give at least {len(law.free)} runs, one for every free parameter"
            + (f" ({'; '.join(notes)})" if notes else "")
        )
    if warn:
        for note in notes:
            warnings.warn(note, FitWarning, stacklevel=4)
    arrays = {c: frame[c].to_numpy(dtype=float) for c in law.columns}
    values, clusters = frame[target].to_numpy(dtype=float), clusters_of(frame, cluster)
    return FitData(frame, law, arrays, values, clusters, notes, source, cluster)


def with_derived(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs with every column of the run log that follows from those they have."""
    return derived(_numbers_in_texts(frame, SCHEMA).copy())


def _numbers_in_texts(frame: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """The frame with texts such as "125M" read, where all of a column that is needed can be."""
    for name in dict.fromkeys(names):
        if name in SCHEMA and name in frame.columns and not pd.api.types.is_numeric_dtype(frame[name]):
            with contextlib.suppress(DataError):  # one that cannot is refused by _require
                frame = frame.assign(**numbers(frame[[name]].copy(), "the runs"))
    return frame


def _possible(frame: pd.DataFrame, law: Law, target: str) -> pd.DataFrame:
    """The frame itself, if its numbers can be: as in a run log, whether the law has the column or not.

    Rows of a loss or a count that no fit can use are left out later, with a note.

    Raises:
        DataError: naming column, row, value and what is allowed.
    """
    counted = [name for name in (*law.columns, target) if name in SCHEMA and SCHEMA[name].range.high != 1]
    faults = [*ranges.outside(frame, [name for name in frame.columns if name not in counted]), ranges.cohort(frame)]
    if {"params", "tokens"} <= set(law.columns):
        faults.append(ranges.counted_in(frame))
    ranges.refuse(faults, "the runs")
    return frame


def _of_training(frame: pd.DataFrame, target: str, columns: Mapping[str, str] | None) -> tuple[str, ...]:
    """What is to be said where the runs have another loss that looks held out."""
    other = likely_columns([name for name in frame.columns if name != "loss"], ["loss"]).get("loss")
    if target != "loss" or other is None or "loss" in (columns or {}):
        return ()
    return (f"loss is fitted, not {other}: fit with columns={{'loss': {other!r}}} if loss is that of training",)


SAME = {"skew": 0.02}
"""Differences that are chance: iid clients measure a skew near zero, each deal another."""


def adapt(law: Law, frame: pd.DataFrame) -> tuple[Law, tuple[str, ...]]:
    """Fix at 0 the parameters that only multiply a column such as skew which is absent or the same in every run."""
    idle = {}
    for column in MAY_BE_ZERO:
        if column not in law.columns:
            continue
        values = frame[column].dropna().unique() if column in frame.columns else np.array([])
        if len(values) == 0:
            idle[column] = f"the runs have no {column}"
        elif values.max() - values.min() <= SAME.get(column, 0.0):
            idle[column] = f"{column} is {grouped(values.mean())} in every run"
    fixed, notes = {}, []
    for column, why in idle.items():
        names = [p for p in law.free if _only_with(law, p, column)]
        fixed.update(dict.fromkeys(names, 0.0))
        if names:
            notes.append(f"{why}, so {' and '.join(names)} cannot be fitted: fixed at 0")
    return (law.with_(fixed=fixed), tuple(notes)) if fixed else (law, ())


def _only_with(law: Law, parameter: str, column: str) -> bool:
    parts = [p for t in law.bound_terms for p in t.all_parts() if parameter in p.parameters]
    return bool(parts) and all(any(a.kind == "raw" and column in a.columns for a in p.atoms) for p in parts)


def _require(frame: pd.DataFrame, law: Law, target: str, cluster: str | None) -> None:
    names = [str(c) for c in frame.columns]
    for column in (*law.columns, target, *([cluster] if cluster else [])):
        if column not in names:
            what = "to be explained" if column == target else f"needed by the law {law.name!r}"
            guess = likely_columns(names, [column]).get(column, "its name")
            hint = nearest(column, names) if names else "the runs have no columns at all"
            other = "" if column == target or not {"params", "tokens"} <= set(names) else "; or fit law='chinchilla'"
            raise DataError(
                f"the runs have no column {column!r}, which is {what}; {hint}{'' if hint.endswith('?') else '.'} "
                f"If it has another name, say columns={{{column!r}: {guess!r}}}{other}"
            )
    for name in law.free:
        if name in names and len(name) > 1:
            raise ConfigError(
                f"the law takes {name!r} for a parameter, but the runs have a column of that name: say "
                f"columns={{{name!r}: {name!r}}} to use the column, or call the parameter something else"
            )
    for column in (*law.columns, target):
        if not pd.api.types.is_numeric_dtype(frame[column]):
            raise DataError(f"the column {column!r} must hold numbers, got {frame[column].dtype} values")


def _clean(frame: pd.DataFrame, law: Law, target: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Drop rows that cannot be fitted, and count why."""
    values = frame[target].to_numpy(dtype=float, na_value=np.nan)
    usable = np.isfinite(values) & (values > 0)
    reasons = {f"{target} missing, infinite or not positive": ~usable}
    reasons |= unfinished(frame)
    positive = positive_columns(law)
    if RUN_WEIGHT in frame.columns:
        reasons["weight missing"] = ~np.isfinite(frame[RUN_WEIGHT].to_numpy(dtype=float, na_value=np.nan))
    for column in law.columns:
        x = frame[column].to_numpy(dtype=float, na_value=np.nan)
        bad = ~np.isfinite(x) | ((x <= 0) if column in positive else np.zeros(len(x), dtype=bool))
        reasons[f"{column} missing{' or not positive' if column in positive else ''}"] = bad
    drop, notes = np.zeros(len(frame), dtype=bool), []
    for reason, bad in reasons.items():
        new = bad & ~drop
        if new.any():
            notes.append(f"{int(new.sum())} of {len(frame)} rows left out: {reason}")
        drop |= bad
    return (frame[~drop] if drop.any() else frame), tuple(notes)


def positive_columns(law: Law) -> set[str]:
    """The columns of which the law takes a logarithm or a power."""
    return {c for t in law.bound_terms for p in t.all_parts() for a in p.atoms if a.kind != "raw" for c in a.columns}


def _without_copies(frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The rows without exact copies of other rows, alike in every column but a run's name, which tell nothing new."""
    told = [c for c in frame.columns if c not in RUN_LIKE]
    plain = [c for c in told if frame[c].dtype.kind in "iufb" or pd.api.types.is_string_dtype(frame[c])]
    copies = frame[plain].duplicated() if plain else pd.Series(False, index=frame.index)
    if not copies.any():
        return frame, ()
    return frame[~copies.to_numpy()], (
        f"{int(copies.sum())} of {len(frame)} rows are exact copies of others: counted once",
    )


RUN_LIKE = ("run_id", "run", "run_name", "wandb_id", "trial_id", "trial", "job_id", "experiment_id", "name", "id")
"""Columns that may say which rows are checkpoints of one run."""


def run_column(frame: pd.DataFrame, cluster: str | None) -> tuple[str | None, tuple[str, ...]]:
    """The column whose equal values are one run's checkpoints, and a note where it was found and not asked for.

    It is the first of ``RUN_LIKE`` of which a value stands in several rows, the tokens of which differ at one size.
    """
    if cluster is not None or not {"params", "tokens"} <= set(frame.columns):
        return cluster, ()
    for name in RUN_LIKE:
        if name not in frame.columns or frame[name].isna().any() or not 1 < frame[name].nunique() < len(frame):
            continue
        groups = frame.groupby(name, sort=False)
        if name == "run_id":
            break  # as everywhere in the run log
        if (groups["params"].nunique() == 1).all() and (groups["tokens"].nunique() == groups.size()).all():
            what = f"{frame[name].nunique()} runs of {len(frame)} rows: rows of one {name} are resampled together"
            return name, (what,)
    return None, ()


def clusters_of(frame: pd.DataFrame, cluster: str | None = None) -> np.ndarray:
    """Integers, (n,), the same for rows that are resampled together: one run, or one value of ``cluster``."""
    name = cluster or ("run_id" if "run_id" in frame.columns else None)
    if name is None or frame[name].isna().any():
        return np.arange(len(frame))
    return np.asarray(pd.factorize(frame[name])[0])


def run_ids(frame: pd.DataFrame) -> tuple[str, ...]:
    """The ids of the runs, or row numbers where the log has none."""
    ids = frame["run_id"] if "run_id" in frame.columns else frame.index
    return tuple(map(str, ids))


def hash_runs(frame: pd.DataFrame, columns: tuple[str, ...], target: str) -> str:
    """A hash of the numbers behind a fit, skew as it was stored; the order of the rows does not matter.

    >>> a = pd.DataFrame({"params": [1.0, 2.0], "loss": [3.0, 2.5]})
    >>> hash_runs(a, ("params",), "loss") == hash_runs(a[::-1], ("params",), "loss")
    True
    """
    values = np.ascontiguousarray(as_stored(frame)[[*columns, target]].to_numpy(dtype=float))
    order = np.lexsort(values.T[::-1])
    return hashlib.sha256(np.ascontiguousarray(values[order]).tobytes()).hexdigest()[:16]
