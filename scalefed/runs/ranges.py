"""Can these numbers be? Ranges of columns, and what columns say of each other, with every fault named at once."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.errors import DataError
from scalefed.runs.schema import COLUMNS, Column

if TYPE_CHECKING:
    import pandas as pd

_WHOLE_CLIENTS = 1.0  # a share of the clients is rounded to whole ones, either way
# Fewer tokens than one step of training has, or a million and more a parameter: nobody trains so, but tables in
# billions look so. The fewest of public tables: 10,240 tokens and 9e-5 a parameter (LoRA on 109M parameters).
_FEWEST_TOKENS, _FEWEST_A_PARAMETER, _FEW_TOKENS = 1e3, 1e-5, 1e5
# params below which nobody trains on 1e5 tokens a parameter: then sizes were in millions
_SMALL_MODEL, _MOST_A_PARAMETER = 1e4, 1e5


def check_table(frame: "pd.DataFrame", what: str) -> None:
    """Refuse numbers that cannot be, with column, row, value and what is allowed.

    Args:
        frame: one row a run, numbers as numbers.
        what: the table's name in a message.

    Raises:
        DataError: all faults in one message.
    """
    refuse([*outside(frame, frame.columns), cohort(frame), counted_in(frame)], what)


def refuse(faults: Iterable[str | None], what: str) -> None:
    """Raise a DataError of all faults, if there are any."""
    if told := [fault for fault in faults if fault]:
        raise DataError(f"{what}: " + "; ".join(told))


def outside(frame: "pd.DataFrame", names: Iterable[str], columns: Mapping[str, Column] = COLUMNS) -> list[str]:
    """Which columns hold numbers outside their range, in words.

    Args:
        frame: one row a run (or a round).
        names: the columns to look at; those that the schema does not know are passed over.
        columns: the schema.
    """
    known = [columns[name] for name in dict.fromkeys(names) if name in columns and name in frame.columns]
    return [fault for column in known if (fault := _outside(frame, column))]


def cohort(frame: "pd.DataFrame") -> str | None:
    """Where clients, clients_per_round and participation contradict each other, in words; None if nowhere."""
    clients, sampled = _floats(frame, "clients"), _floats(frame, "clients_per_round")
    if clients is None or sampled is None:
        return None
    told = [_at(frame, sampled > clients, "clients_per_round {1:g} is more than clients {0:g}", clients, sampled)]
    share = _floats(frame, "participation")
    if share is not None:
        off = (np.abs(share * clients - sampled) >= _WHOLE_CLIENTS) & (share > 0) & (share <= 1) & (sampled <= clients)
        words = "participation {2:g} is not clients_per_round {1:g} of clients {0:g}"
        told.append(_at(frame, off, words, clients, sampled, share))
    return "; ".join(words for words in told if words) or None


def counted_in(frame: "pd.DataFrame") -> str | None:
    """Whether params or tokens look as if they were counted in millions or billions, in words; None if not."""
    params, tokens = _floats(frame, "params"), _floats(frame, "tokens")
    words = None if params is None or tokens is None else looks_counted_in(params, tokens)
    return words and (
        f"{words}: in millions or billions? Write counts (20e9) or texts with their unit (20B); where columns= or "
        '--column names a column such as "tokens (B)", its unit is read'
    )


def looks_counted_in(params: Any, tokens: Any) -> str | None:
    """What makes params or tokens look as if they were counted in millions or billions, in words; None if nothing.

    Args:
        params: (n,) of the runs.
        tokens: (n,) of the runs.

    >>> looks_counted_in([1e8, 1e9], [2.0, 20.0])
    'tokens is 2 to 20 for models of up to 1e+09 parameters'
    """
    size, length = np.asarray(params, dtype=float), np.asarray(tokens, dtype=float)
    known = np.isfinite(size) & np.isfinite(length) & (size > 0) & (length > 0)
    if not known.any():
        return None
    size, length = size[known], length[known]
    few = length.max() < _FEWEST_TOKENS and size.max() > _SMALL_MODEL
    if few or (length.max() < _FEW_TOKENS and (length / size).max() < _FEWEST_A_PARAMETER):
        return f"tokens is {length.min():g} to {length.max():g} for models of up to {size.max():g} parameters"
    if size.max() < _SMALL_MODEL and np.median(length / size) > _MOST_A_PARAMETER:
        return f"params is {size.min():g} to {size.max():g} for runs of up to {length.max():g} tokens"
    return None


# ---------------------------------------------------------------------- helpers
def _outside(frame: "pd.DataFrame", column: Column) -> str | None:
    values, end = _floats(frame, column.name) if column.is_number else None, column.range
    if values is None:
        return None
    bad = (values <= end.low if end.above else values < end.low) | (values > end.most)
    diverged = column.unit in ("nats/token", "bits/byte")  # has measured infinity; the fit leaves it out
    bad = np.where(np.isinf(values), (values < 0) | (not (end.infinite or diverged)), bad)
    percent = end.high == 1 and (values[bad] > 1).all()
    words = f"{column.name} must be {end}, got {{0:g}}"
    told = _at(frame, bad, words, values)
    return f"{told} (in percent? divide by 100)" if told and percent else told


def _floats(frame: "pd.DataFrame", name: str) -> np.ndarray | None:
    """A column as numbers, (n,); None if there is none."""
    if name not in frame.columns or frame[name].dtype.kind not in "iuf":
        return None
    return np.asarray(frame[name].to_numpy(dtype=float, na_value=np.nan))


def _at(frame: "pd.DataFrame", bad: np.ndarray, words: str, *values: np.ndarray) -> str | None:
    """The words with the values of the first bad row, and how many more there are."""
    rows = np.flatnonzero(bad)
    if not len(rows):
        return None
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return words.format(*(float(one[rows[0]]) for one in values)) + f" in row {frame.index[rows[0]]}{more}"
