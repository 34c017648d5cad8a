"""How does anybody's table become a run log? CSV, Parquet, JSON lines or a DataFrame, renamed and checked."""

import math
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.errors import DataError, RunLogWarning, nearest
from scalefed.runs.amounts import COUNTED, header_factor, is_lost
from scalefed.runs.amounts import number as number_in
from scalefed.runs.derived import with_derived
from scalefed.runs.federation import filled
from scalefed.runs.jsontext import read_json, read_lines
from scalefed.runs.reading import opened, shown, understanding, unpacked
from scalefed.runs.schema import COLUMNS, Column

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".jsonl", ".jsonl.gz", ".json")

_COUNTS_FROM = 1e6  # a column "Params (M)" of such numbers was counted out all the same


def read_table(source: Any) -> "pd.DataFrame":
    """A table as a new DataFrame.

    Args:
        source: a file of one of the kinds in :data:`TABLES` (a .json file holds a list of objects, or an object of
            columns), a DataFrame (or what has ``to_pandas``), a list of mappings, or a mapping of columns.

    Raises:
        DataError: there is no such file, it is of another kind, damaged, or empty, or a column stands twice.
    """
    import pandas as pd

    if isinstance(source, (str, os.PathLike)):
        frame = _from_file(Path(source))
    elif isinstance(source, pd.DataFrame):
        frame = source.copy()
    elif hasattr(source, "to_pandas"):
        frame = source.to_pandas()
    else:
        frame = _from_objects(source, "runs")
    frame.columns = [str(name) for name in frame.columns]
    if twice := [name for name in dict.fromkeys(frame.columns) if list(frame.columns).count(name) > 1]:
        raise DataError(f"{source_name(source)} has the column {twice[0]!r} twice; keep one of them")
    if frame.empty:
        raise DataError(
            f"{source_name(source)} has no rows; it needs one row a run under a header such as params,tokens,loss"
        )
    return frame


def _from_file(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        exists = os.path.lexists(path)
    except ValueError:  # a zero byte in the name
        exists = False
    if not exists:
        raise DataError(f"nothing at {shown(path)}; give a folder of runs or a {', '.join(TABLES)} file")
    kind = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    if kind not in TABLES:
        raise DataError(f"cannot read {shown(path.name)}: allowed are run folders and {', '.join(TABLES)} files")
    if kind.startswith(".jsonl"):
        return pd.DataFrame(list(read_lines(path)))
    if kind == ".json":
        return _from_objects(read_json(path), str(path))
    with opened(path) as stream:
        try:
            if kind == ".parquet":
                return pd.read_parquet(stream)
            text = unpacked(stream, path) if kind.endswith(".gz") else stream
            return pd.read_csv(text, sep=_separator(path, kind), **_exact(pd.__version__))
        except DataError:
            raise
        except Exception as error:  # pandas, pyarrow and zlib each have errors of their own
            told = " ".join(str(error).split())[:160]
            raise DataError(f"{path} cannot be read as {kind[1:]} ({told}); write the file again") from error


def _from_objects(found: Any, what: str) -> "pd.DataFrame":
    """A frame from a list of mappings, one a row, or a mapping of columns."""
    import pandas as pd

    if isinstance(found, Mapping) and found and all(isinstance(values, (list, Mapping)) for values in found.values()):
        with understanding(what, "give one list a column, all of one length"):
            return pd.DataFrame(dict(found))
    if isinstance(found, (list, tuple)) and all(isinstance(row, Mapping) for row in found):
        return pd.DataFrame([dict(row) for row in found])
    raise DataError(f"{what} must be a path or a DataFrame, got {type(found).__name__}; for example 'runs/pilot'")


def _separator(path: Path, kind: str) -> str:
    """What stands between the columns of a text table: a tab, or a semicolon where the first line has no comma."""
    if kind.startswith(".tsv"):
        return "\t"
    with opened(path) as stream:
        head = (unpacked(stream, path) if kind.endswith(".gz") else stream).readline(65_536)
    return next((mark for mark in ",;\t" if mark.encode() in head), ",")


def rename(
    frame: "pd.DataFrame", columns: Mapping[str, str], known: Mapping[str, Column] | None = COLUMNS
) -> "pd.DataFrame":
    """The frame with our column names; a column of ours that is already there gives way.

    Counts of a column whose name has a unit, such as "tokens (B)", are multiplied by it, with a warning that says so.

    Args:
        frame: as it was read.
        columns: our name -> the name in the frame.
        known: the names that may be ours; None for any.

    Raises:
        DataError: a name of ours or of the frame's is unknown, or one of the frame's is given to two of ours.
    """
    for ours, theirs in columns.items():
        if known is not None and ours not in known:
            raise DataError(f"columns names {ours!r}, which is no column of the run log; {nearest(ours, known)}")
        if theirs not in frame.columns:
            raise DataError(f"no column {theirs!r} for {ours}; {nearest(str(theirs), map(str, frame.columns))}")
        if list(columns.values()).count(theirs) > 1:
            raise DataError(f"columns gives {theirs!r} to more than one name; give each column one name")
    clashes = [ours for ours, theirs in columns.items() if ours in frame.columns and ours != theirs]
    renamed = frame.drop(columns=clashes).rename(columns={theirs: ours for ours, theirs in columns.items()})
    for ours, theirs in columns.items():
        factor = header_factor(theirs) if ours in COLUMNS and COLUMNS[ours].unit in COUNTED else 1.0
        if factor != 1.0 and renamed[ours].dtype.kind in "iuf" and not renamed[ours].median() > _COUNTS_FROM:
            renamed[ours] = renamed[ours] * factor
            warnings.warn(f"{ours} is the column {theirs!r} times {factor:g}", RunLogWarning, stacklevel=3)
    return renamed


def numbers(frame: "pd.DataFrame", what: str, columns: Mapping[str, Column] = COLUMNS) -> "pd.DataFrame":
    """Columns that the schema calls numbers as numbers; texts such as "125M" are read.

    What a run did not live to give ("OOM") is left empty, with a warning that names row and column.

    Raises:
        DataError: a value is no number; row and value are named.
    """
    for name in frame.columns:
        if name in columns and columns[name].is_number and frame[name].dtype.kind not in "iuf":
            frame[name] = _as_numbers(frame[name], columns[name], what)
    return frame


def _as_numbers(series: "pd.Series", column: Column, what: str) -> "pd.Series":
    import pandas as pd

    values = [_as_number(value, column) for value in series]
    unread = [place for place, value in enumerate(values) if value is None]
    wrong = [place for place in unread if not is_lost(series.iloc[place])]
    if wrong or len(unread) == len(values):
        place = (wrong or unread)[0]
        raise DataError(
            f"{what}: {column.name} must be a number ({column.unit}), got {series.iloc[place]!r:.60} in row "
            f"{series.index[place]}{_more(wrong or unread)}; correct them or leave them empty"
        )
    if unread:
        place = unread[0]
        warnings.warn(
            f"{what}: {column.name} is {series.iloc[place]!r} in row {series.index[place]}{_more(unread)}: left empty",
            RunLogWarning,
            stacklevel=4,
        )
    return pd.Series([math.nan if value is None else value for value in values], series.index, dtype=float)


def _more(places: Sized) -> str:
    return f" and {len(places) - 1} more" if len(places) > 1 else ""


def _as_number(value: Any, column: Column) -> float | None:
    """The value as a number, NaN where it is blank, None where it is none."""
    if isinstance(value, str):
        if column.name == "concentration" and value.strip().lower() == "iid":
            return math.inf
        return number_in(value, column.unit)
    if value is None or str(value) in ("<NA>", "NaT"):
        return math.nan
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def derived(frame: "pd.DataFrame", what: str = "the runs") -> "pd.DataFrame":
    """The frame with what follows from other columns filled in: see :mod:`scalefed.runs.federation` and ``derived``."""
    return with_derived(filled(frame, what))


def source_name(source: Any) -> str:
    """What to call the source in a message."""
    return shown(source) if isinstance(source, (str, os.PathLike)) else "the table"


def some_names(names: Iterable[Any]) -> str:
    """The first dozen names in words.

    >>> some_names("ab")
    'a, b'
    """
    names = [str(name) for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


_OTHER_NAMES = {
    "params": "n num_params n_params nparams parameters num_parameters n_parameters parameter_count model_size size",
    "tokens": "d num_tokens n_tokens ntokens train_tokens training_tokens tokens_seen total_tokens consumed_tokens",
    "loss": "l eval_loss val_loss valid_loss validation_loss test_loss final_loss heldout_loss",
    "clients_per_round": "m cohort cohort_size clients_sampled sampled_clients active_clients",
    "clients": "k num_clients n_clients total_clients population",
    "compute": "c flops train_flops training_flops total_flops flop",
    "local_steps": "h inner_steps num_local_steps",
}
"""What others call our columns, small letters, words joined by underscores."""


def likely_columns(names: Iterable[Any], wanted: Sequence[str] = ("params", "tokens", "loss")) -> dict[str, str]:
    """Which of the names may be ours under another name, by what others call them: a proposal, never acted on.

    Args:
        names: the columns of a table.
        wanted: columns of the run log to look for; those that are there are left out.

    >>> likely_columns(["run", "N", "train/tokens", "eval-loss"])
    {'params': 'N', 'tokens': 'train/tokens', 'loss': 'eval-loss'}
    """
    told = [str(name) for name in names]
    plain = {re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"): name for name in reversed(told)}
    found = {ours: [plain[other] for other in _OTHER_NAMES.get(ours, "").split() if other in plain] for ours in wanted}
    return {ours: theirs[0] for ours, theirs in found.items() if theirs and ours not in told}


def _exact(version: str) -> dict[str, Any]:
    """Options under which this pandas reads floats to the last bit; its default since 3.1."""
    return {} if tuple(map(int, version.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
