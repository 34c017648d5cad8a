"""How does a finished sweep become three Parquet files, and its run folders again, byte for byte?

``runs.parquet`` has a row a run, ``rounds.parquet`` a row a round, ``counts.parquet`` a row an evaluation; each is a
plain table that pandas reads, but that a number which stands in another column of its row too is left out, as the
file's metadata say. A run's own files are made again from them exactly: every run is decoded and compared
with its files before a folder goes, and one that the columns cannot hold is kept as text in ``raw``. Each run carries a
hash of its files, each Parquet page a checksum. Packed runs and folders may lie side by side; a run in both is one run.
"""

import inspect
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalefed.errors import DataError
from scalefed.runs.columnar import column_encodings, encode, misfits, without_repeats
from scalefed.runs.jsontext import loads
from scalefed.runs.packed import ROUNDS, RUN, TABLES, Pack, files_hash, is_evaluation, is_packed, stored_files

if TYPE_CHECKING:
    import pyarrow as pa

_PAGE = 2**28
"""Bytes, and rows, of a Parquet page: a column is one page, so that zstd finds what runs have in common."""


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
    old = stored_files(root) if is_packed(root) else {}
    runs, kept = _folders(root, old)
    before = _size(root / name for name in TABLES.values()) + _size(
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
    return Packed(root, len(everything), kept, before, _size(root / name for name in TABLES.values()))


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
    for run_id, files in stored_files(Path(folder)).items():
        final, building = target / run_id, target / f".{run_id}.{os.getpid()}.tmp"
        if not final.exists():
            building.mkdir()
            for name, text in files.items():
                (building / name).write_text(text, encoding="utf-8")
            building.rename(final)
        written.append(final)
    return written


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
        others = [name for name in names if name not in (RUN, ROUNDS) and not is_evaluation(name)]
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


@dataclass(frozen=True)
class _Parsed:
    run: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    evaluations: Mapping[str, Mapping[str, Any]]


def _parse(files: Mapping[str, str]) -> _Parsed:
    return _Parsed(
        loads(files[RUN]),
        [loads(line) for line in files[ROUNDS].splitlines()],
        {name: loads(text) for name, text in files.items() if is_evaluation(name)},
    )


def _write(root: Path, runs: Mapping[str, Mapping[str, str]]) -> None:
    """The three files, complete on disk before the first takes its place; the one that names the runs goes last."""
    raw = _odd(runs)
    while True:
        tables = _tables(runs, raw)
        made = Pack(root, **tables)
        wrong = {run_id for run_id, files in runs.items() if run_id not in raw and made.files(run_id) != files}
        if not wrong:
            break
        raw |= wrong
    for part, name in TABLES.items():
        temporary = root / f".{name}.tmp"
        _write_table(without_repeats(tables[part]), temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
    for name in TABLES.values():
        os.replace(root / f".{name}.tmp", root / name)
    written_back = stored_files(root)
    if written_back != runs:
        raise DataError(f"the pack in {root} does not read back as written; the run folders stay, check the disk")


def _write_table(table: "pa.Table", path: Path) -> None:
    import pyarrow.parquet as pq

    by_rows = "max_rows_per_page" in inspect.signature(pq.write_table).parameters  # older ones have no such limit
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        write_page_checksum=True,
        write_statistics=False,  # columns are read whole
        data_page_size=_PAGE,
        **({"max_rows_per_page": _PAGE} if by_rows else {}),
        **column_encodings(table),
    )


def _tables(runs: Mapping[str, Mapping[str, str]], raw: set[str]) -> dict[str, "pa.Table"]:
    import pyarrow as pa

    parsed = {run_id: _parse(files) for run_id, files in runs.items() if run_id not in raw}
    empty: Mapping[str, Any] = {}
    heads = [parsed[run_id].run if run_id in parsed else empty for run_id in runs]
    table = encode(heads)
    texts = [json.dumps(runs[run_id], ensure_ascii=False) if run_id in raw else None for run_id in runs]
    table = table.append_column("raw", pa.array(texts, type=pa.string()))
    table = table.append_column("pack_hash", pa.array([files_hash(files) for files in runs.values()]))
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


def _size(paths: Iterator[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())
