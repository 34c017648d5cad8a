"""What does a packed sweep hold? The tables that :mod:`scalefed.runs.pack` wrote, asked run by run."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalefed.errors import DataError
from scalefed.runs.columnar import decode, with_repeats
from scalefed.runs.jsontext import dumps, loads
from scalefed.runs.reading import opened, understanding

if TYPE_CHECKING:
    import pyarrow as pa

RUN, ROUNDS, EVALUATION = "run.json", "rounds.jsonl", "eval.json"
PACK = "runs.parquet"
"""The file that says a folder is packed; it is written last and names every run of the pack."""
TABLES = {"rounds": "rounds.parquet", "counts": "counts.parquet", "runs": PACK}
"""Table -> file, in the order in which they are written."""
_KEPT_OPEN = 8  # packs whose tables stay in memory between questions


@dataclass(frozen=True)
class Pack:
    """The tables of a packed sweep.

    Attributes:
        folder: the sweep's folder.
        runs, rounds, counts: the tables; ``rounds`` and ``counts`` are sorted by run.
        faults: for ``rounds`` or ``counts``, why it is empty though the pack had some: its file is damaged.
    """

    folder: Path
    runs: "pa.Table"
    rounds: "pa.Table"
    counts: "pa.Table"
    faults: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def run_ids(self) -> list[str]:
        """The packed runs, in order."""
        with self._understanding():
            return [str(name) for name in self.runs.column("pack_id").to_pylist()]

    def holds(self, run_id: str) -> bool:
        """Whether the pack has this run."""
        return run_id in self._positions

    def files(self, run_id: str) -> dict[str, str]:
        """A run's files as text, by name.

        Raises:
            DataError: there is no such run in the pack, or its rounds or counts are damaged.
        """
        position = self._positions.get(run_id)
        if position is None:
            raise DataError(f"no run {run_id} in {self.folder / PACK}; `scalefed runs {self.folder}` lists those there")
        with self._understanding():
            row = self.runs.slice(position, 1)
            raw = row.column("raw")[0].as_py()
            if raw is not None:
                return {str(name): str(text) for name, text in json.loads(raw).items()}
            found = {RUN: dumps(next(_records(row)), indent=1) + "\n"}
            found[ROUNDS] = "".join(dumps(record) + "\n" for record in _records(self._part("rounds", run_id)))
            return found | {name: dumps(record) + "\n" for name, record in self._evaluations(run_id).items()}

    def read(self, run_id: str, name: str) -> Any:
        """What one file of a run holds: a dict, a list of dicts for ``rounds.jsonl``, None where it has no such file.

        Raises:
            DataError: there is no such run in the pack, or what is asked for is damaged.
        """
        with self._understanding():
            position = self._positions.get(run_id)
            if position is None or self.runs.column("raw")[position].as_py() is not None:
                text = self.files(run_id).get(name)
                if text is None:
                    return None
                return [loads(line) for line in text.splitlines()] if name == ROUNDS else loads(text)
            if name == ROUNDS:
                return list(_records(self._part("rounds", run_id)))
            return next(_records(self.runs.slice(position, 1))) if name == RUN else self._evaluations(run_id).get(name)

    def evaluations(self, run_id: str) -> list[str]:
        """The names of a run's evaluation files."""
        if self.is_text(run_id):
            return [name for name in self.files(run_id) if is_evaluation(name)]
        with self._understanding():
            return [str(name) for name in self._part("counts", run_id).column("pack_file").to_pylist()]

    def is_text(self, run_id: str) -> bool:
        """Whether the pack keeps this run's files as text, since the columns cannot hold them."""
        with self._understanding():
            return self.runs.column("raw")[self._positions[run_id]].as_py() is not None

    def _understanding(self) -> "contextlib.AbstractContextManager[None]":
        return understanding(self.folder / PACK, "restore the pack, from git for example")

    def _evaluations(self, run_id: str) -> dict[str, dict[str, Any]]:
        part = self._part("counts", run_id)
        return dict(zip(part.column("pack_file").to_pylist(), _records(part), strict=True))

    @cached_property
    def _positions(self) -> Mapping[str, int]:
        return {run_id: position for position, run_id in enumerate(self.run_ids)}

    @cached_property
    def _rows(self) -> Mapping[str, Mapping[str, tuple[int, int]]]:
        """For each table the first row and the number of rows of every run; a run's rows stand together."""
        return {name: _blocks(table) for name, table in (("rounds", self.rounds), ("counts", self.counts))}

    def _part(self, name: str, run_id: str) -> "pa.Table":
        if name in self.faults:
            raise DataError(self.faults[name])
        first, length = self._rows[name].get(run_id, (0, 0))
        return getattr(self, name).slice(first, length)


def open_pack(folder: str | os.PathLike[str]) -> Pack:
    """The tables of a packed sweep; kept in memory until the files change.

    Without its rounds or counts, which are then told by ``faults``, a pack still has its runs.

    Raises:
        DataError: the file of the runs is missing or damaged.
    """
    root = Path(folder)
    stamp = []
    for name in TABLES.values():
        try:
            stamp.append((root / name).stat().st_mtime_ns)
        except OSError as error:
            if name == PACK:
                raise DataError(
                    f"{root} is not a whole pack: {error.strerror} ({error.filename}); "
                    f"it needs {', '.join(TABLES.values())}"
                ) from error
            stamp.append(0)  # told when it is read
    return _open(root.absolute(), tuple(stamp))


def is_packed(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a packed sweep."""
    return (Path(folder) / PACK).is_file()


def packed_file(path: Path) -> Any:
    """What a file of a run holds that lies packed: ``<sweep>/<run_id>/<file>``; None where it does not.

    Raises:
        DataError: the pack is damaged.
    """
    folder, run_id = path.parent.parent, path.parent.name
    return open_pack(folder).read(run_id, path.name) if is_packed_run(path.parent) else None


def is_packed_run(folder: Path) -> bool:
    """Whether a run's folder stands for a run in the pack beside it.

    Raises:
        DataError: that pack is damaged.
    """
    return is_packed(folder.parent) and open_pack(folder.parent).holds(folder.name)


def counts_lost(folder: Path) -> bool:
    """Whether a run's counts stood in the pack beside it and are damaged.

    Raises:
        DataError: that pack is damaged as a whole.
    """
    return (
        not os.path.lexists(folder / EVALUATION)
        and is_packed_run(folder)
        and "counts" in open_pack(folder.parent).faults
    )


def evaluations_of(folder: Path) -> list[str]:
    """The evaluation files of a packed run; none where it is not packed."""
    return open_pack(folder.parent).evaluations(folder.name) if is_packed_run(folder) else []


def stored_files(root: Path) -> dict[str, dict[str, str]]:
    """Every run of a pack as files, each checked against its hash.

    Raises:
        DataError: the pack is damaged, or names what would lie outside a run's folder.
    """
    packed = open_pack(root)
    with understanding(root / PACK, "restore the pack"):
        hashes = packed.runs.column("pack_hash").to_pylist()
    found = {}
    for run_id, told in zip(packed.run_ids, hashes, strict=True):
        files = packed.files(run_id)
        for name in (run_id, *files):
            if (
                not isinstance(name, str) or not name or name != Path(name).name or name.startswith(".")
            ):  # it would be written elsewhere, or hidden
                raise DataError(f"{root / PACK} names {name!r:.60}, which is no name of a run or its file")
        if files_hash(files) != told:
            raise DataError(f"run {run_id} in {root / PACK} is not what its hash says; restore the pack")
        found[run_id] = files
    return found


def is_evaluation(name: str) -> bool:
    """Whether a file of a run holds counts per problem."""
    return name == EVALUATION or (name.startswith("eval-") and name.endswith(".json"))


def files_hash(files: Mapping[str, str]) -> str:
    """A hash of a run's files: their names and bytes, in the order of the names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(files):
        text = files[name].encode()
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


# ---------------------------------------------------------------------- helpers
@lru_cache(maxsize=_KEPT_OPEN)
def _open(root: Path, stamp: tuple[int, ...]) -> Pack:
    runs, tables, faults = _read_table(root / PACK), {}, {}
    for name in ("rounds", "counts"):
        path, needed = root / TABLES[name], _columns_of(name)
        try:
            tables[name] = _of_runs(path, needed)
        except DataError as error:
            tables[name], faults[name] = _no_rows(needed), str(error)
    return Pack(root, runs, tables["rounds"], tables["counts"], faults)


def _columns_of(name: str) -> "dict[str, pa.DataType]":
    """The columns that a table of rounds or counts must have, beside the names of its runs, each with its type."""
    import pyarrow as pa

    if name == "rounds":
        return {}
    counts = {"task_ids": pa.list_(pa.string()), "samples": pa.int64(), "correct": pa.list_(pa.int64())}
    return counts | {"pack_file": pa.string()}


def _of_runs(path: Path, needed: "Mapping[str, pa.DataType]") -> "pa.Table":
    """The rounds or counts of a pack; raises DataError where they are not a table of these columns."""
    import pyarrow as pa

    with understanding(path, "restore it, from git for example"):
        table = _read_table(path)
        types = {column.name: column.type for column in table.schema}
        kept = [name for name in needed if table.num_rows or name.startswith("pack_")]
        if wrong := [name for name in kept if types.get(name) != needed[name]]:
            raise TypeError(f"no column {wrong[0]} of {needed[wrong[0]]}")
        if not pa.types.is_dictionary(types.get("pack_id", pa.null())) or table["pack_id"].null_count:
            raise TypeError("no names of runs in pack_id")
    return table


def _no_rows(columns: "Mapping[str, pa.DataType]") -> "pa.Table":
    import pyarrow as pa

    names = pa.array([], type=pa.string()).dictionary_encode()
    return pa.table({name: pa.array([], type=kind) for name, kind in columns.items()} | {"pack_id": names})


def _read_table(path: Path) -> "pa.Table":
    import pyarrow.parquet as pq

    try:
        with opened(path) as stream:
            table = pq.ParquetFile(stream, page_checksum_verification=True).read()
    except (ValueError, OSError, KeyError) as error:  # pyarrow's errors are these
        raise DataError(f"{path} cannot be read ({error}); restore it, from git for example") from error
    with understanding(path, "restore it, from git for example"):
        return with_repeats(table)


def _blocks(table: "pa.Table") -> dict[str, tuple[int, int]]:
    import numpy as np
    import pyarrow as pa

    names = pa.chunked_array(table.column("pack_id")).unify_dictionaries().combine_chunks()
    codes = names.indices.to_numpy(zero_copy_only=False)
    firsts = np.flatnonzero(np.diff(codes, prepend=-1))
    lengths = np.diff(np.append(firsts, len(codes)))
    known = names.dictionary.to_pylist()
    return {known[codes[first]]: (int(first), int(length)) for first, length in zip(firsts, lengths, strict=True)}


def _records(table: "pa.Table") -> Iterator[dict[str, Any]]:
    """The records of the columns that are not the pack's own."""
    return decode(table.select([name for name in table.column_names if not name.startswith("pack_") and name != "raw"]))
