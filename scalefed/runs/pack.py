"""How does a finished sweep become three Parquet files, and its run folders again, byte for byte?

``runs.parquet`` has a row a run, ``rounds.parquet`` a row a round, ``counts.parquet`` a row an evaluation; each is a
plain table that pandas reads. A run's own files are made again from them exactly: every run is decoded and compared
with its files before a folder goes, and one that the columns cannot hold is kept as text in ``raw``. Each run carries a
hash of its files, each Parquet page a checksum. Packed runs and folders may lie side by side; a run in both is one run.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalefed.errors import DataError
from scalefed.runs.columnar import decode, encode, misfits
from scalefed.runs.jsontext import dumps, loads

if TYPE_CHECKING:
    import pyarrow as pa

RUN, ROUNDS, EVALUATION = "run.json", "rounds.jsonl", "eval.json"
PACK = "runs.parquet"
"""The file that says a folder is packed; it is written last and names every run of the pack."""
_TABLES = {"rounds": "rounds.parquet", "counts": "counts.parquet", "runs": PACK}  # in the order they are written
_KEPT_OPEN = 8  # packs whose tables stay in memory between questions


@dataclass(frozen=True)
class Packed:
    """What packing a sweep did.

    Attributes:
        folder: the sweep's folder.
        runs: runs in the pack now.
        kept: run folders that were left as they are, each with the reason.
        bytes_before: size of the run folders that went into the pack and of an older pack, in bytes.
        bytes_after: size of the three files, in bytes.
    """

    folder: Path
    runs: int
    kept: Mapping[str, str]
    bytes_before: int
    bytes_after: int


def pack(folder: str | os.PathLike[str], *, keep_folders: bool = False) -> Packed:
    """Pack the finished runs of one sweep; runs that lie packed beside them stay in.

    Every run is read back from the new files and compared with its own before any folder is removed; killed at any
    moment, the folder holds all runs, and packing again finishes the work.

    Args:
        folder: a sweep's folder, with run folders directly in it.
        keep_folders: leave the run folders in place too.

    Raises:
        DataError: the folder holds no run, or a run that is packed has other content than its folder.
    """
    root = Path(folder)
    old = _stored(root) if is_packed(root) else {}
    runs, kept = _folders(root, old)
    before = _size(root / name for name in _TABLES.values()) + _size(
        root / run_id / name for run_id, files in runs.items() for name in files
    )
    for run_id in old.keys() & runs.keys():
        if any(runs[run_id].get(name) != text for name, text in old[run_id].items()):
            raise DataError(
                f"{root / run_id} and the packed run of that name differ; move one of them away, then pack again"
            )
    everything = old | runs
    if not everything:
        raise DataError(f"no run in {root}; give the folder of a sweep, such as runs/pilot")
    if everything != old:
        _write(root, dict(sorted(everything.items())))
    if not keep_folders:
        for run_id in runs:
            shutil.rmtree(root / run_id)
    return Packed(root, len(everything), kept, before, _size(root / name for name in _TABLES.values()))


def unpack(folder: str | os.PathLike[str], *, into: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write the run folders of a packed sweep again, each file as it was; a folder that is there stays untouched.

    Args:
        folder: the packed sweep's folder.
        into: where the run folders go; beside the pack when None. The pack itself stays.

    Returns:
        The run folders.

    Raises:
        DataError: the folder is not packed, or a run's content is not what its hash says.
    """
    target = Path(into) if into is not None else Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for run_id, files in _stored(Path(folder)).items():
        final, building = target / run_id, target / f".{run_id}.{os.getpid()}.tmp"
        if not final.exists():
            building.mkdir()
            for name, text in files.items():
                (building / name).write_text(text, encoding="utf-8")
            building.rename(final)
        written.append(final)
    return written


# ---------------------------------------------------------------------- reading a pack
@dataclass(frozen=True)
class Pack:
    """The tables of a packed sweep.

    Attributes:
        folder: the sweep's folder.
        runs, rounds, counts: the tables; ``rounds`` and ``counts`` are sorted by run.
    """

    folder: Path
    runs: "pa.Table"
    rounds: "pa.Table"
    counts: "pa.Table"

    @property
    def run_ids(self) -> list[str]:
        """The packed runs, in order."""
        return [str(name) for name in self.runs.column("pack_id").to_pylist()]

    def holds(self, run_id: str) -> bool:
        """Whether the pack has this run."""
        return run_id in self._positions

    def files(self, run_id: str) -> dict[str, str]:
        """A run's files as text, by name.

        Raises:
            DataError: there is no such run in the pack.
        """
        position = self._positions.get(run_id)
        if position is None:
            raise DataError(f"no run {run_id} in {self.folder / PACK}; `scalefed runs {self.folder}` lists those there")
        row = self.runs.slice(position, 1)
        raw = row.column("raw")[0].as_py()
        if raw is not None:
            return dict(json.loads(raw))
        found = {RUN: dumps(next(_records(row)), indent=1) + "\n"}
        found[ROUNDS] = "".join(dumps(record) + "\n" for record in _records(self._part("rounds", run_id)))
        return found | {name: dumps(record) + "\n" for name, record in self._evaluations(run_id).items()}

    def read(self, run_id: str, name: str) -> Any:
        """What one file of a run holds: a dict, a list of dicts for ``rounds.jsonl``, None where it has no such file.

        Raises:
            DataError: there is no such run in the pack.
        """
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
        return [name for name in self.files(run_id) if _is_evaluation(name)]

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
        first, length = self._rows[name].get(run_id, (0, 0))
        return getattr(self, name).slice(first, length)


def open_pack(folder: str | os.PathLike[str]) -> Pack:
    """The tables of a packed sweep; kept in memory until the files change.

    Raises:
        DataError: a file is missing or damaged.
    """
    root = Path(folder)
    try:
        stamp = tuple((root / name).stat().st_mtime_ns for name in _TABLES.values())
    except OSError as error:
        raise DataError(
            f"{root} is not a whole pack: {error.strerror} ({error.filename}); it needs {', '.join(_TABLES.values())}"
        ) from error
    return _open(root.absolute(), stamp)


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


def evaluations_of(folder: Path) -> list[str]:
    """The evaluation files of a packed run; none where it is not packed."""
    return open_pack(folder.parent).evaluations(folder.name) if is_packed_run(folder) else []


def packed_folders(sweep: Path) -> list[Path]:
    """The folders that the packed runs of a sweep had."""
    return [sweep / run_id for run_id in open_pack(sweep).run_ids] if is_packed(sweep) else []


@lru_cache(maxsize=_KEPT_OPEN)
def _open(root: Path, stamp: tuple[int, ...]) -> Pack:
    return Pack(root, **{part: _read_table(root / name) for part, name in _TABLES.items()})


def _read_table(path: Path) -> "pa.Table":
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, page_checksum_verification=True).read()
    except (ValueError, OSError) as error:  # pyarrow's errors are both
        raise DataError(f"{path} cannot be read ({error}); restore it, from git for example") from error


def _stored(root: Path) -> dict[str, dict[str, str]]:
    """Every run of a pack as files, each checked against its hash."""
    packed = open_pack(root)
    hashes = packed.runs.column("pack_hash").to_pylist()
    found = {}
    for run_id, told in zip(packed.run_ids, hashes, strict=True):
        files = packed.files(run_id)
        if _hash(files) != told:
            raise DataError(f"run {run_id} in {root / PACK} is not what its hash says; restore the pack")
        found[run_id] = files
    return found


# ---------------------------------------------------------------------- writing a pack
def _folders(root: Path, added: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The files of every run folder that can be packed, and why the other folders cannot.

    A folder that holds evaluations alone adds them to the packed run of its name in ``added``.
    """
    runs: dict[str, dict[str, str]] = {}
    kept: dict[str, str] = {}
    if not root.is_dir():
        raise DataError(f"no folder at {root}; give the folder of a sweep, such as runs/pilot")
    for path in sorted(root.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        names = sorted(file.name for file in path.iterdir())
        others = [name for name in names if name not in (RUN, ROUNDS) and not _is_evaluation(name)]
        if added and not others and path.name in added and RUN not in names:  # evaluated after it was packed
            files = {name: (path / name).read_text(encoding="utf-8") for name in names}
            runs[path.name] = dict(added[path.name]) | files
        elif RUN not in names or ROUNDS not in names:
            kept[path.name] = f"it has no {RUN if RUN not in names else ROUNDS}"
        elif others:
            kept[path.name] = f"it also holds {others[0]}"
        else:
            try:
                files = {name: (path / name).read_text(encoding="utf-8") for name in names}
                _parse(files)
            except (OSError, ValueError, DataError) as error:
                kept[path.name] = f"it is damaged ({error})"
                continue
            runs[path.name] = files
    return runs, kept


def _is_evaluation(name: str) -> bool:
    return name == EVALUATION or (name.startswith("eval-") and name.endswith(".json"))


@dataclass(frozen=True)
class _Parsed:
    run: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    evaluations: Mapping[str, Mapping[str, Any]]


def _parse(files: Mapping[str, str]) -> _Parsed:
    return _Parsed(
        loads(files[RUN]),
        [loads(line) for line in files[ROUNDS].splitlines()],
        {name: loads(text) for name, text in files.items() if _is_evaluation(name)},
    )


def _write(root: Path, runs: Mapping[str, Mapping[str, str]]) -> None:
    """The three files, complete on disk before the first takes its place; the one that names the runs goes last."""
    import pyarrow.parquet as pq

    raw = _odd(runs)
    while True:
        tables = _tables(runs, raw)
        made = Pack(root, **tables)
        wrong = {run_id for run_id, files in runs.items() if run_id not in raw and made.files(run_id) != files}
        if not wrong:
            break
        raw |= wrong
    for part, name in _TABLES.items():
        temporary = root / f".{name}.tmp"
        pq.write_table(tables[part], temporary, compression="zstd", compression_level=19, write_page_checksum=True)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
    for name in _TABLES.values():
        os.replace(root / f".{name}.tmp", root / name)
    written_back = _stored(root)
    if written_back != runs:
        raise DataError(f"the pack in {root} does not read back as written; the run folders stay, check the disk")


def _tables(runs: Mapping[str, Mapping[str, str]], raw: set[str]) -> dict[str, "pa.Table"]:
    import pyarrow as pa

    parsed = {run_id: _parse(files) for run_id, files in runs.items() if run_id not in raw}
    empty: Mapping[str, Any] = {}
    heads = [parsed[run_id].run if run_id in parsed else empty for run_id in runs]
    table = encode(heads)
    texts = [json.dumps(runs[run_id], ensure_ascii=False) if run_id in raw else None for run_id in runs]
    table = table.append_column("raw", pa.array(texts, type=pa.string()))
    table = table.append_column("pack_hash", pa.array([_hash(files) for files in runs.values()]))
    rounds = [(run_id, record) for run_id, one in parsed.items() for record in one.rounds]
    counts = [(run_id, name, one) for run_id, run in parsed.items() for name, one in run.evaluations.items()]
    counted = encode([record for _, _, record in counts])
    counted = counted.append_column("pack_file", pa.array([name for _, name, _ in counts], type=pa.string()))
    return {
        "runs": _named(table, list(runs)),
        "rounds": _named(encode([record for _, record in rounds]), [run_id for run_id, _ in rounds]),
        "counts": _named(counted, [run_id for run_id, _, _ in counts]),
    }


def _named(table: "pa.Table", run_ids: Sequence[str]) -> "pa.Table":
    """The table with the name of each row's run."""
    import pyarrow as pa

    return table.append_column("pack_id", pa.array(run_ids, type=pa.string()).dictionary_encode())


def _odd(runs: Mapping[str, Mapping[str, str]]) -> set[str]:
    """The runs with a record that the columns cannot hold."""
    parsed = {run_id: _parse(files) for run_id, files in runs.items()}
    names = list(parsed)
    found = {names[position] for position in misfits([one.run for one in parsed.values()])}
    for pairs in (
        [(run_id, record) for run_id, one in parsed.items() for record in one.rounds],
        [(run_id, record) for run_id, one in parsed.items() for record in one.evaluations.values()],
    ):
        found |= {pairs[position][0] for position in misfits([record for _, record in pairs])}
    return found


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


def _hash(files: Mapping[str, str]) -> str:
    """A hash of a run's files: their names and bytes, in the order of the names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(files):
        text = files[name].encode()
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def _size(paths: Iterator[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())
