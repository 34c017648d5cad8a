"""Which runs lie below a folder, as folders or packed, and what table do they make?"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.errors import DataError, RunLogWarning
from scalefed.runs.bulk import PlainRuns
from scalefed.runs.derived import follow, follow_columns
from scalefed.runs.files import RUN, read_evaluation, read_rounds, read_run, status_of
from scalefed.runs.packed import PACK, Pack, counts_lost, is_packed_run, open_pack
from scalefed.runs.reading import is_folder
from scalefed.runs.schema import COLUMNS, ROUND_COLUMNS, Column
from scalefed.units import train_flops

if TYPE_CHECKING:
    import pandas as pd

_OF_THE_RUN = (
    "run_id", "sweep", "status", "params", "algorithm", "clients", "clients_per_round", "participation",
    "concentration", "skew", "local_steps", "seed",
)  # fmt: skip
"""Columns of a run that its rounds carry too."""


def run_folders(root: str | os.PathLike[str]) -> Iterator[Path]:
    """The folders of runs at or below ``root`` in a stable order; hidden ones, being half built, are left out.

    Packed runs are named by the folder that they had.
    """
    for place in places(root):
        yield from place.folders


@dataclass(frozen=True)
class Place:
    """Where runs lie: one folder, or a packed sweep.

    Attributes:
        folder: the run's folder, or the sweep's.
        names: of the packed runs, in order; None of one that is not.
    """

    folder: Path
    names: Sequence[str] | None = None

    @property
    def packed(self) -> bool:
        """Whether the runs are all those of the sweep's pack."""
        return self.names is not None

    @property
    def folders(self) -> list[Path]:
        """The runs' folders; of packed ones, those that they had."""
        return [self.folder] if self.names is None else [self.folder / name for name in self.names]

    def without(self, read: "np.ndarray[Any, Any]") -> list[Path]:
        """The folders of the packed runs that were not read; ``read`` (runs,) says which were."""
        return [self.folder / name for name, done in zip(self.names or (), read, strict=True) if not done]

    @property
    def sweep(self) -> str:
        """The name of the folder that holds the runs."""
        return (self.folder if self.packed else self.folder.parent).name


def places(root: str | os.PathLike[str]) -> Iterator[Place]:
    """Where runs lie at or below ``root``, in a stable order."""
    for path, folders, files in os.walk(root):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        if RUN in files or "rounds.jsonl" in files:
            folders.clear()
            yield Place(Path(path))
        elif PACK in files:
            with skip_damaged(Path(path) / PACK):
                packed = open_pack(path).run_ids
                yield Place(Path(path), packed)
                known = set(packed)
                folders[:] = [name for name in folders if name not in known]
    if is_packed_run(Path(root)):
        yield Place(Path(root))


def is_log(source: Any) -> bool:
    """Whether a source is a folder with runs, or stands for a packed one."""
    if not isinstance(source, (str, os.PathLike)) or os.path.isfile(source):  # a table may lie beside a pack
        return False
    return is_folder(source) or is_packed_run(Path(source))


def row_of(folder: Path) -> dict[str, Any]:
    """One run's row: defaults of settings that are newer than the run, its settings, what came out, provenance."""
    run = read_run(folder)
    config, result = run["config"], run["result"]
    status = status_of(folder, run["status"])
    row: dict[str, Any] = {"run_id": run["run_id"], "sweep": folder.absolute().parent.name, "status": status}
    if not run["provenance"].get("maker"):  # what another program did not say is not known
        row |= _defaults()
        row |= {"params_asked": config.get("params"), "tokens_asked": config.get("tokens")}
    row |= config
    if counts_lost(folder):
        _tell_lost(open_pack(folder.parent))
    else:
        row |= {key: value for key, value in (read_evaluation(folder) or {}).items() if key.startswith("pass_at_")}
    row |= result
    row |= {key: value for key, value in run["provenance"].items() if key in COLUMNS}
    clients, cohort = row.get("clients"), row.get("clients_per_round")
    if clients and cohort:
        if cohort > clients:
            raise DataError(f"{folder / RUN}: clients_per_round {cohort} is more than clients {clients}; train the run "
                            "again, or correct it")  # fmt: skip
        if row.get("participation") is None:
            row["participation"] = cohort / clients
    if row.get("compute") is None and row.get("params") and row.get("tokens"):
        row["compute"] = train_flops(row["params"], row["tokens"])
    return row | follow(row)


@lru_cache(maxsize=1)
def _defaults() -> Mapping[str, Any]:
    """The settings of a run that names none."""
    from scalefed.config import RunConfig

    return MappingProxyType(RunConfig().to_dict())


def table_of(found: "list[Place]", root: Path, *, rounds: bool) -> "pd.DataFrame":
    """The runs of these places, one row a run sorted by run_id, or one a round.

    Args:
        found: from :func:`places`.
        root: below which they were sought, for messages.
        rounds: one row a round.

    Raises:
        DataError: none of the runs can be read.
    """
    import pandas as pd

    frames: list[pd.DataFrame] = []
    seen = _Seen()
    for place in found:
        alone, table = by_columns(place, partial(_plain_runs, rounds=rounds))
        frames += [] if table is None else [table]
        if table is not None:
            seen.names.setdefault(place.folder, {}).update(dict.fromkeys(table["run_id"], "one in the pack"))
        made = [
            one for one in (seen.read(folder, _rounds_of if rounds else _row) for folder in alone) if one is not None
        ]
        if made:
            frames += made if rounds else [pd.DataFrame(made)]
    if not frames:
        count = sum(len(place.folders) for place in found)
        raise DataError(f"none of the {count} runs in {root} can be read; train them again, or give another folder")
    if rounds:
        return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    whole = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    return typed(whole, COLUMNS).sort_values("run_id", kind="stable", ignore_index=True)


class _Seen:
    """The runs that were read: folder of the sweep -> run_id -> name of the run's folder."""

    def __init__(self) -> None:
        self.names: dict[Path, dict[str, str]] = {}

    def read(self, folder: Path, reader: Callable[[Path, Mapping[str, Any]], Any]) -> Any:
        """What the reader makes of a run; None where it is damaged, or another of the sweep has its name."""
        with skip_damaged(folder):
            row = row_of(folder)
            first = self.names.setdefault(folder.parent, {}).setdefault(row["run_id"], folder.name)
            if first != folder.name:
                raise DataError(f"its run_id {row['run_id']!r:.60} is that of {first} too; keep one of them")
            return reader(folder, row)
        return None


def _row(folder: Path, row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row


def _rounds_of(folder: Path, row: Mapping[str, Any]) -> "pd.DataFrame":
    import pandas as pd

    history = typed_table(read_rounds(folder), ROUND_COLUMNS)
    history = history.drop(columns=[k for k in _OF_THE_RUN if k in history and k not in ROUND_COLUMNS])
    of_run = pd.DataFrame([{k: row.get(k) for k in _OF_THE_RUN if k not in history}] * len(history))
    return pd.concat([of_run, history], axis=1)


def _plain_runs(place: Place, plain: PlainRuns, *, rounds: bool) -> "tuple[list[Path], pd.DataFrame | None]":
    """The runs of a place that must be read alone, and the table of those that were read by columns."""
    import pandas as pd

    if rounds:
        plain = plain.with_plain_rounds()
    alone = place.without(plain.plain)
    if not plain.plain.any() or (rounds and "rounds" in plain.pack.faults):
        return alone, None
    rows = plain.rows(_defaults())
    count = len(rows["run_id"])
    share = rows["clients_per_round"] / rows["clients"]
    for name, follows in (("participation", share), ("compute", train_flops(rows["params"], rows["tokens"]))):
        known = pd.to_numeric(pd.Series(rows[name])).to_numpy(dtype=float) if name in rows else np.full(count, np.nan)
        rows[name] = np.where(np.isnan(known), follows, known)
    for name, values in follow_columns(rows, count).items():
        rows[name] = np.where(np.isfinite(values), values, rows[name]) if name in rows else values
    frame = pd.DataFrame(rows)
    if not rounds:
        return alone, frame
    history, run = plain.rounds()
    table = typed(pd.DataFrame(history), ROUND_COLUMNS)
    table = table.drop(columns=[k for k in _OF_THE_RUN if k in table and k not in ROUND_COLUMNS])
    of_run = frame[[name for name in _OF_THE_RUN if name not in table]]
    at = np.cumsum(plain.plain)[run] - 1
    return alone, pd.concat([of_run.iloc[at].reset_index(drop=True), table], axis=1)


def by_columns(
    place: Place, read: "Callable[[Place, PlainRuns], tuple[list[Path], pd.DataFrame | None]]"
) -> "tuple[list[Path], pd.DataFrame | None]":
    """The runs of a place that must be read alone, and the table of those that were read by columns.

    Of a place that is not packed these are all runs; of damaged tables too, so that each run tells what is wrong.
    """
    if not place.packed:
        return place.folders, None
    with skip_damaged(place.folder):
        packed = open_pack(place.folder)
        _tell_lost(packed)
        with contextlib.suppress(ValueError, LookupError, TypeError, ArithmeticError, AttributeError):  # pyarrow's too
            return read(place, PlainRuns.of(packed))
    return place.folders, None


def plain_counts(place: Place, plain: PlainRuns, *, file: str) -> "tuple[list[Path], pd.DataFrame | None]":
    """The runs of a place whose counts must be read alone, and the counts of those that were read by columns."""
    import pandas as pd

    plain = plain.with_plain_counts(file)
    alone = place.without(plain.plain)
    columns = plain.counts(file)
    return alone, pd.DataFrame(columns) if len(columns["run_id"]) else None


def _tell_lost(packed: Pack) -> None:
    for name, fault in packed.faults.items():
        told = f"left out the {name} of the runs in {packed.folder}: {fault}"
        warnings.warn(told, RunLogWarning, stacklevel=4)


@contextlib.contextmanager
def skip_damaged(folder: Path) -> Iterator[None]:
    """Turn the DataError of one damaged run into a warning that names it."""
    try:
        yield
    except DataError as error:
        warnings.warn(f"skipped the run in {folder}: {error}", RunLogWarning, stacklevel=5)


def typed_table(rows: list[dict[str, Any]], columns: Mapping[str, Column]) -> "pd.DataFrame":
    """Rows as a frame in the schema's column order and types; unmeasured columns are left out."""
    import pandas as pd

    return typed(pd.DataFrame(rows), columns)


def typed(frame: "pd.DataFrame", columns: Mapping[str, Column]) -> "pd.DataFrame":
    """The frame in the schema's column order and types."""
    frame = frame[[*(name for name in columns if name in frame), *(name for name in frame if name not in columns)]]
    for name in frame.columns:
        dtype = columns[name].dtype if name in columns else ""
        if dtype == "float" or (dtype == "int" and frame[name].isna().any()):
            frame[name] = frame[name].astype(float)
        elif dtype == "int":
            frame[name] = frame[name].astype("int64")
    return frame
