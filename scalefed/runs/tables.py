"""How does anybody's table become a run log? CSV, Parquet, JSON lines or a DataFrame, renamed and checked."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalefed.errors import DataError, nearest
from scalefed.runs.jsontext import read_lines
from scalefed.runs.schema import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".csv.gz", ".parquet", ".jsonl", ".jsonl.gz")


def read_table(source: "str | os.PathLike[str] | pd.DataFrame") -> "pd.DataFrame":
    """A table as a new DataFrame.

    Raises:
        DataError: there is no such file, it is of another kind, damaged, or empty.
    """
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return source.copy()
    if not isinstance(source, (str, os.PathLike)):
        raise DataError(f"runs must be a path or a DataFrame, got {type(source).__name__}; for example 'runs/pilot'")
    path = Path(source)
    if not path.exists():
        raise DataError(f"nothing at {path}; give a folder of runs or a {', '.join(TABLES)} file")
    if not path.name.endswith(TABLES):
        raise DataError(f"cannot read {path.name}: allowed are run folders and {', '.join(TABLES)} files")
    if ".jsonl" in path.suffixes:
        frame = pd.DataFrame(list(read_lines(path)))
    else:
        try:
            frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, **_exact(pd.__version__))
        except (ValueError, OSError) as error:  # pandas' and pyarrow's parse errors are both ValueErrors
            raise DataError(f"{path} cannot be read as {path.suffix[1:]} ({error}); write the file again") from error
    if frame.empty:
        raise DataError(f"{path} has no rows; it needs one row a run under a header such as params,tokens,loss")
    return frame


def rename(frame: "pd.DataFrame", columns: Mapping[str, str]) -> "pd.DataFrame":
    """The frame with our column names; a column of ours that is already there gives way.

    Raises:
        DataError: a name of ours or of the frame's is unknown.
    """
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise DataError(f"columns names {ours!r}, which is no column of the run log; {nearest(ours, COLUMNS)}")
        if theirs not in frame.columns:
            raise DataError(f"no column {theirs!r} for {ours}; {nearest(theirs, map(str, frame.columns))}")
    clashes = [ours for ours, theirs in columns.items() if ours in frame.columns and ours != theirs]
    return frame.drop(columns=clashes).rename(columns={theirs: ours for ours, theirs in columns.items()})


def numbers(frame: "pd.DataFrame", what: str) -> "pd.DataFrame":
    """Columns that the schema calls numbers as numbers.

    Raises:
        DataError: a value is no number; row and value are named.
    """
    import pandas as pd

    for name in frame.columns:
        if name in COLUMNS and COLUMNS[name].dtype in ("int", "float") and frame[name].dtype.kind not in "iuf":
            values = pd.to_numeric(frame[name], errors="coerce")
            wrong = frame[name][values.isna() & frame[name].notna() & (frame[name].astype(str).str.lower() != "nan")]
            if len(wrong):
                raise DataError(
                    f"{what}: {name} must be a number ({COLUMNS[name].unit}), got {wrong.iloc[0]!r} in row "
                    f"{wrong.index[0]} and {len(wrong) - 1} more; correct them or leave them empty"
                )
            frame[name] = values.astype(float)
    return frame


def derived(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The frame with ``compute`` and ``participation`` filled in where they follow from other columns."""
    if "compute" not in frame and {"params", "tokens"} <= set(frame.columns):
        frame["compute"] = 6.0 * frame["params"] * frame["tokens"]
    if "participation" not in frame and {"clients", "clients_per_round"} <= set(frame.columns):
        frame["participation"] = frame["clients_per_round"] / frame["clients"]
    return frame


def source_name(source: Any) -> str:
    """What to call the source in a message."""
    return str(source) if isinstance(source, (str, os.PathLike)) else "the table"


def some_names(names: Iterable[Any]) -> str:
    """The first dozen names in words.

    >>> some_names("ab")
    'a, b'
    """
    names = [str(name) for name in names]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _exact(version: str) -> dict[str, Any]:
    """Options under which this pandas reads floats to the last bit; its default since 3.1."""
    return {} if tuple(map(int, version.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
