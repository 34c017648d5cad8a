"""At which runs is a law asked to predict? Columns from a table or from keywords, checked before any logarithm."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scalefed.allocation.extrapolation import TEXTS
from scalefed.errors import DataError, nearest
from scalefed.fitting.data import positive_columns, read_frame
from scalefed.laws import Law
from scalefed.laws.parser import COLUMNS
from scalefed.runs.schema import COLUMNS as SCHEMA
from scalefed.units import grouped


def columns_for(
    law: Law, runs: Any, keywords: Mapping[str, Any], renames: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], pd.Index]:
    """The law's columns as arrays of one length, and the index of the answer.

    Args:
        law: the law.
        runs: a table with the law's columns, under their own names or those of the fitted runs; or None.
        keywords: columns by keyword, numbers or arrays that broadcast.
        renames: our name -> the name in the runs that were fitted.

    Raises:
        DataError: a column is missing, holds no numbers, or is not positive where the law takes its logarithm.
    """
    given: Any = keywords
    if runs is not None:
        given, _ = read_frame(runs)
        given = given.rename(columns={theirs: ours for ours, theirs in renames.items() if ours not in given.columns})
    known = COLUMNS | set(law.columns) | set(TEXTS)
    for name in keywords:
        if name not in known:
            raise DataError(f"predict got {name!r}, which is no column; {nearest(name, law.columns)}")
    missing = [c for c in law.columns if c not in given]
    if missing:
        names = ", ".join(map(str, given)) or "nothing"
        raise DataError(f"predict needs the column {', '.join(missing)} for {law.name!r}; given: {names}")
    arrays = {c: _numbers(c, given[c]) for c in law.columns}
    for column in positive_columns(law) & set(arrays):
        if np.any(arrays[column] <= 0):
            raise DataError(f"{column} must be positive for {law.name!r}, got {grouped(arrays[column].min(), 6)}")
    _check_shares(given, arrays)
    if runs is not None:
        return arrays, given.index
    try:
        shape = np.broadcast_shapes(*(a.shape for a in arrays.values()), (1,))
    except ValueError as error:
        sizes = ", ".join(f"{name} {len(a)}" for name, a in arrays.items())
        raise DataError(f"columns must be numbers or have one length, got {sizes}") from error
    return {c: np.broadcast_to(a, shape) for c, a in arrays.items()}, pd.RangeIndex(shape[0])


def _check_shares(given: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse shares outside their range, and more clients a round than there are."""
    for column, values in arrays.items():
        end = SCHEMA[column].range if column in SCHEMA else None
        if end is not None and end.high == 1 and len(bad := values[~((values >= end.low) & (values <= end.most))]):
            raise DataError(f"{column} must be {end}, got {grouped(bad[0], 6)}")
    if "clients" in given and "clients_per_round" in given:
        clients, sampled = (
            _numbers("clients", given["clients"]),
            _numbers("clients_per_round", given["clients_per_round"]),
        )
        if (len(clients) in (1, len(sampled)) or len(sampled) == 1) and (sampled > clients).any():
            raise DataError(
                f"clients_per_round {grouped(sampled.max(), 6)} is more than clients {grouped(clients.min(), 6)}"
            )


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        return np.atleast_1d(np.asarray(values, dtype=float))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must hold numbers, got {values!r}") from error
