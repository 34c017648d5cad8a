"""What do the runs of a pack say, read by columns? The same tables as run by run, many times as fast.

A run that is not plain is left to be read alone, so that it is told in the same words: one that is kept as text, is of
an older schema, has a value that its column cannot have, or has files beside the pack.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.runs.columnar import present
from scalefed.runs.packed import EVALUATION, Pack
from scalefed.runs.schema import (
    COLUMNS,
    FIRST_PLAIN_SCHEMA,
    ROUND_COLUMNS,
    SCHEMA,
    STATUSES,
    TOO_MANY,
    Column,
    settings_of,
)

if TYPE_CHECKING:
    import pyarrow as pa

Array = np.ndarray[Any, Any]
_BLOCKS = ("config", "result", "provenance")
_MOST_BINS = 10**8  # of a table problems x runs that is counted in one array of whole numbers, 800 MB


@dataclass(frozen=True)
class PlainRuns:
    """The plain runs of a pack.

    Attributes:
        pack: where they lie.
        plain: (runs of the pack,) whether a run is one.
    """

    pack: Pack
    plain: Array

    @classmethod
    def of(cls, pack: Pack) -> "PlainRuns":
        """Those among the runs of this pack."""
        runs = pack.runs
        beside = {entry.name for entry in os.scandir(pack.folder) if os.path.isdir(entry)}  # False of a link to itself
        statuses = np.asarray(runs["status"].to_pylist(), dtype=object)
        plain = np.array([name not in beside for name in pack.run_ids])
        plain &= _values(runs["raw"].is_null()) & _all(runs["run_id"].is_valid())
        schemas = _values(runs["schema"])
        plain &= (schemas >= FIRST_PLAIN_SCHEMA) & (schemas <= SCHEMA) & np.isin(statuses, STATUSES)
        shape = present(runs)
        for block in _BLOCKS:
            plain &= shape.has_block(block)
        diverged = statuses == "diverged"
        for name in runs.column_names:
            block, _, key = name.partition(".")
            if block in _BLOCKS:
                plain &= ~_faulty(runs[name], COLUMNS.get(key), infinite=diverged)
        plain &= ~np.isin(pack.run_ids, _wrong_counts(pack))
        if "provenance.maker" in runs.column_names:  # their settings have no defaults
            plain &= _values(runs["provenance.maker"].is_null())
        sizes = [f"config.{name}" for name in ("clients_per_round", "clients")]
        if not set(sizes) <= set(runs.column_names):
            return cls(pack, np.zeros(len(plain), dtype=bool))
        cohort, clients = (_values(runs[name]).astype(float) for name in sizes)
        _, row, count = np.unique(
            np.asarray(runs["run_id"].to_pylist(), dtype=str), return_inverse=True, return_counts=True
        )
        return cls(pack, plain & (cohort <= clients) & (count[row] == 1))

    def rows(self, defaults: Mapping[str, Any]) -> dict[str, Array]:
        """Column -> (plain runs,) as a run's row holds it, but for what follows from its other columns.

        Args:
            defaults: settings of a run that does not name them.
        """
        runs, shape, count = self.pack.runs.filter(self.plain), present(self.pack.runs), int(self.plain.sum())
        rows = {
            "run_id": _values(runs["run_id"]),
            "sweep": _full(count, self.pack.folder.absolute().name),
            "status": _values(runs["status"]),
            **{name: _full(count, value) for name, value in defaults.items()},
        }
        schemas = _values(runs["schema"])
        for schema in np.unique(schemas):
            for key, value in settings_of(int(schema)).items():
                _put(rows, key, _full(count, value), schemas == schema)
        passes, said = self._passes()
        for block in _BLOCKS:
            for name in runs.column_names:
                outer, _, key = name.partition(".")
                if outer == block and (block != "provenance" or key in COLUMNS):
                    _put(rows, key, _values(runs[name]), shape.has(name)[self.plain])
            if block == "config":
                for key in ("params", "tokens"):
                    given = shape.has(f"config.{key}")[self.plain]
                    rows[f"{key}_asked"] = np.where(given, rows[key], np.nan) if not given.all() else rows[key]
                for key, values in passes.items():
                    _put(rows, key, values, said[key])
        return rows

    def _passes(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """The pass rates that stand in the runs' evaluations, and whether a run has them."""
        counts = self.pack.counts
        names = [name for name in counts.column_names if name.startswith("pass_at_")]
        if not names:
            return {}, {}
        first = _values(counts["pack_file"]) == EVALUATION
        counts = counts.filter(first)
        place = {run_id: row for row, run_id in enumerate(_values(counts["pack_id"].cast("string")))}
        at = np.array([place.get(run_id, -1) for run_id in np.asarray(self.pack.run_ids)[self.plain]])
        shape = present(counts)
        return (
            {name: _values(counts[name])[at] for name in names},
            {name: (at >= 0) & shape.has(name)[at] for name in names},
        )

    def rounds(self) -> tuple[dict[str, Array], Array]:
        """Column -> (rounds,) of the plain runs, and for each round the position of its run among all of the pack.

        Runs with a round that is not plain, or stands twice, are left out: ``plain`` of :meth:`with_plain_rounds`.
        """
        run = self._run_of(self.pack.rounds)
        kept = self.plain[run]
        rounds = self.pack.rounds.filter(kept)
        shape = present(self.pack.rounds)
        columns: dict[str, Array] = {}
        for name in rounds.column_names:
            if not name.startswith("pack_") and name not in ("layout", "raw"):
                _put(columns, name, _values(rounds[name]), shape.has(name)[kept])
        return columns, run[kept]

    def with_plain_rounds(self) -> "PlainRuns":
        """Those of the runs whose rounds are plain as well."""
        rounds, run = self.pack.rounds, self._run_of(self.pack.rounds)
        wrong = np.zeros(rounds.num_rows, dtype=bool)
        for name in rounds.column_names:
            wrong |= _faulty(rounds[name], ROUND_COLUMNS.get(name), infinite=np.True_)
        if rounds.num_rows:
            numbers = _values(rounds["round"]).astype(float)
            wrong |= np.isnan(numbers)
            order = np.lexsort((numbers, run))
            twice = (np.diff(numbers[order]) == 0) & (np.diff(run[order]) == 0)
            wrong[order[1:][twice]] = True
        plain = self.plain.copy()
        plain[run[wrong]] = False
        return PlainRuns(self.pack, plain)

    def with_plain_counts(self, file: str) -> "PlainRuns":
        """Those of the runs whose counts in a file of this name, if there are any, are plain as well."""
        counts, plain = self.pack.counts, self.plain.copy()
        plain[self._run_of(counts)[_wrong_rows(counts) & (_values(counts["pack_file"]) == file)]] = False
        return PlainRuns(self.pack, plain)

    def counts(self, file: str) -> dict[str, Array]:
        """Column -> (problems of all plain runs,): run_id, task_id, samples, correct and, if measured, gold_loss.

        Args:
            file: name of the evaluation's file.
        """
        counts = self.pack.counts
        if "task_ids" not in counts.column_names:  # no run was evaluated
            return {"run_id": np.zeros(0, dtype=object)}
        run = self._run_of(counts)
        kept = self.plain[run] & (_values(counts["pack_file"]) == file)
        counts, run = counts.filter(kept), run[kept]
        lengths = _lengths(counts["task_ids"])
        columns = {
            "run_id": np.repeat(_values(self.pack.runs["run_id"])[run], lengths),
            "task_id": _values(_flat(counts["task_ids"])),
            "samples": np.repeat(_values(counts["samples"]), lengths),
            "correct": _values(_flat(counts["correct"])),
        }
        if "gold_losses" in counts.column_names and (has := present(counts).has("gold_losses")).any():
            gold = np.full(len(columns["run_id"]), np.nan)
            gold[np.repeat(has, lengths)] = _values(_flat(counts["gold_losses"]))
            columns["gold_loss"] = gold
        return columns

    def _run_of(self, table: "pa.Table") -> Array:
        """For each row of a table the position of its run in the pack."""
        names = table["pack_id"].unify_dictionaries().combine_chunks()
        place = {run_id: row for row, run_id in enumerate(self.pack.run_ids)}
        known = np.array([place[name] for name in names.dictionary.to_pylist()], dtype=int)
        return known[names.indices.to_numpy(zero_copy_only=False)] if len(names) else np.zeros(0, dtype=int)


# ---------------------------------------------------------------------- values
def _put(rows: dict[str, Array], name: str, values: Array, given: Array) -> None:
    """Take over the values of those runs that have them."""
    if not given.any():
        return
    if given.all():
        rows[name] = values
        return
    before = rows.get(name, np.full(len(values), np.nan))
    if {values.dtype.kind, before.dtype.kind} - set("iuf"):
        values, before = values.astype(object), before.astype(object)
    rows[name] = np.where(given, values, before)


def _full(count: int, value: Any) -> Array:
    return np.full(count, value, dtype=None if isinstance(value, (bool, int, float)) else object)


def _values(column: Any) -> Array:
    """An arrow column as numpy: numbers with NaN for what is missing, all else with None."""
    import pyarrow as pa

    if column.null_count == len(column):
        return np.full(len(column), None, dtype=object)
    if pa.types.is_list(column.type):
        return _lists(column)
    if pa.types.is_boolean(column.type) and column.null_count:
        return np.array(column.to_pylist(), dtype=object)
    if isinstance(column, pa.ChunkedArray):
        return np.asarray(column.to_numpy())
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _all(column: Any) -> Array:
    return np.asarray(_values(column).astype(bool))


def _lists(column: Any) -> Array:
    """Lists of plain numbers and words, cut from one."""
    flat = _flat(column).to_pylist()
    ends = np.cumsum(_lengths(column))
    there = _values(column.is_valid())
    found = np.empty(len(column), dtype=object)
    start = 0
    for row, end in enumerate(ends.tolist()):
        if there[row]:
            found[row] = flat[start:end]
        start = end
    return found


def _flat(column: Any) -> Any:
    import pyarrow.compute as pc

    return pc.list_flatten(column)


def _lengths(column: Any) -> Array:
    """(rows,) how many elements each list has; 0 where there is none."""
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy())


# ---------------------------------------------------------------------- what a column cannot have
def _faulty(column: Any, known: Column | None, *, infinite: Any) -> Array:
    """(rows,) which values :meth:`Column.fault` refuses; all of a column of another type."""
    import pyarrow as pa

    is_type = pa.types
    if known is None:
        return np.zeros(len(column), dtype=bool)
    number = is_type.is_integer(column.type) or is_type.is_floating(column.type)
    fits = {"str": is_type.is_string(column.type), "bool": is_type.is_boolean(column.type),
            "list": is_type.is_list(column.type)}.get(known.dtype, number)  # fmt: skip
    if not fits:
        return _all(column.is_valid())
    if not number:
        return np.zeros(len(column), dtype=bool)
    values, end = _values(column).astype(float), known.range
    wrong = (values <= end.low if end.above else values < end.low) | (values > end.most)
    allowed = infinite | ((values > 0) & end.infinite)
    wrong = np.where(np.isinf(values), ~allowed, wrong)
    if known.dtype == "int":
        wrong |= ~np.isnan(values) & ((values % 1 != 0) | (abs(values) >= TOO_MANY))  # and no infinity
    return np.asarray(wrong, dtype=bool)


def _wrong_counts(pack: Pack) -> list[str]:
    """The runs whose first evaluation is not plain."""
    counts = pack.counts
    wrong = _wrong_rows(counts) & (_values(counts["pack_file"]) == EVALUATION) if counts.num_rows else np.zeros(0, bool)
    for name in counts.column_names if wrong.size else ():
        if name.startswith("pass_at_"):
            wrong |= _faulty(counts[name], COLUMNS.get(name), infinite=np.False_)
    return [str(name) for name in np.asarray(counts["pack_id"].to_pylist(), dtype=object)[wrong]] if wrong.any() else []


def _wrong_rows(counts: "pa.Table") -> Array:
    """(evaluations,) which have counts that cannot be."""
    rows = counts.num_rows
    if not rows:
        return np.zeros(0, dtype=bool)
    tasks, correct = counts["task_ids"], counts["correct"]
    samples = np.nan_to_num(_values(counts["samples"]).astype(float), nan=0.0)
    lengths, solved = _lengths(tasks), _values(_flat(correct))
    wrong = (samples < 1) | (_lengths(correct) != lengths) | ~_all(tasks.is_valid()) | ~_all(correct.is_valid())
    if len(solved):
        some = _lengths(correct) > 0
        starts = (np.cumsum(_lengths(correct)) - _lengths(correct))[some]
        least, most = np.minimum.reduceat(solved, starts), np.maximum.reduceat(solved, starts)
        wrong[some] |= ~((least >= 0) & (most <= samples[some]))
    names = _flat(tasks).dictionary_encode().unify_dictionaries().combine_chunks()
    if names.null_count:
        return np.ones(rows, dtype=bool)
    codes = names.indices.to_numpy(zero_copy_only=False)
    first = _unlike_the_row_before(codes, lengths)
    if int(first.sum()) * len(names.dictionary) > _MOST_BINS:
        return np.ones(rows, dtype=bool)
    wrong |= _repeat_a_name(codes[np.repeat(first, lengths)], lengths[first])[np.cumsum(first) - 1]
    if "gold_losses" in counts.column_names:
        measured = present(counts).has("gold_losses")
        wrong |= measured & (_lengths(counts["gold_losses"]) != lengths)
        wrong |= measured & ~_all(counts["gold_losses"].is_valid())
    return np.asarray(wrong)


def _unlike_the_row_before(codes: Array, lengths: Array) -> Array:
    """(rows,) whether a row names other problems, or in another order; every row where the numbers of them differ."""
    found = np.ones(len(lengths), dtype=bool)
    if lengths.min() == lengths.max():
        table = codes.reshape(len(lengths), -1)
        found[1:] = (table[1:] != table[:-1]).any(axis=1)
    return found


def _repeat_a_name(codes: Array, lengths: Array) -> Array:
    """(rows,) whether a row names a problem twice."""
    rows, kinds = len(lengths), int(codes.max(initial=0)) + 1
    seen = np.bincount(np.repeat(np.arange(rows), lengths) * kinds + codes, minlength=rows * kinds)
    return np.asarray((seen.reshape(rows, kinds) > 1).any(axis=1))
