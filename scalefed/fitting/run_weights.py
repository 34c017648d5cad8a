"""How much does a run count by what its user knows of it? Weights, or standard errors, as a column of the runs."""

from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from scalefed.errors import ConfigError, DataError, nearest

RUN_WEIGHT = "fit_weight"
"""The column of the weights that were given to the runs of a fit."""

PerRun: TypeAlias = "str | ArrayLike | None"


def with_weights(frame: pd.DataFrame, weights: PerRun, standard_errors: PerRun, target: str) -> pd.DataFrame:
    """The runs with the column of their weights, where weights or standard errors are given; else as they are.

    Args:
        frame: one row a run.
        weights: a column, or (n,) positive numbers; missing where a run is to be left out.
        standard_errors: the same, of the target and in its unit: a run weighs the inverse square of what it is of the
            target, which is the variance of its logarithm.
        target: the column that the law explains.

    Raises:
        ConfigError: both are given.
        DataError: no such column, another length, or a number that is not positive.
    """
    if weights is None and standard_errors is None:
        return frame
    if weights is not None and standard_errors is not None:
        raise ConfigError("give weights= or standard_errors=, not both: a standard error is a weight already")
    what, given = ("weights", weights) if standard_errors is None else ("standard_errors", standard_errors)
    numbers = _numbers(frame, what, given)
    if standard_errors is not None:
        if target not in frame.columns:
            return frame  # what is missing is told where the columns are
        numbers = (pd.to_numeric(frame[target], errors="coerce").to_numpy(dtype=float) / numbers) ** 2
    return frame.assign(**{RUN_WEIGHT: numbers})


def _numbers(frame: pd.DataFrame, what: str, given: Any) -> np.ndarray:
    if isinstance(given, str):
        if given not in frame.columns:
            raise DataError(f"the runs have no column {given!r} for {what}=; {nearest(given, map(str, frame.columns))}")
        given = frame[given]
    try:
        numbers = np.asarray(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} must be a column or numbers, got {str(given)[:60]!r}") from error
    if numbers.shape != (len(frame),):
        raise DataError(f"{what} must be one number for each of {len(frame)} runs, got shape {numbers.shape}")
    if (bad := np.flatnonzero(~((numbers > 0) & (numbers < np.inf)) & ~np.isnan(numbers))).size:
        raise DataError(f"{what} must be positive and finite, got {numbers[bad[0]]:g} in row {bad[0]}")
    return numbers
