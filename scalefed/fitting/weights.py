"""How much does a run weigh, and how much a law; what is minimised over the runs of a fit?"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import pandas as pd

from scalefed.fitting.backtest import decades, scale_columns
from scalefed.fitting.problem import Problem
from scalefed.fitting.run_weights import RUN_WEIGHT
from scalefed.laws import Law

_SUM_TO_ONE = 1e3  # weight of the row that makes weights sum to 1, so large that it holds to 1e-6
_TOWARDS_EQUAL = 0.5  # pull towards equal weights, as against the errors: half (tests/fitting/test_weights.py)

Columns: TypeAlias = Mapping[str, np.ndarray] | pd.DataFrame


def weights_for(columns: Columns, law: Law, scale_weight: float) -> np.ndarray | None:
    """Weights of the runs, (n,) with mean 1: scale to the power ``scale_weight``, times their own; None for all alike.

    Their own are in the column ``RUN_WEIGHT``, where there is one.
    """
    names = scale_columns(columns, law.columns)
    by_scale = scale_weight != 0.0 and bool(names)
    if not by_scale and RUN_WEIGHT not in columns:
        return None
    logs = scale_weight * np.log(10.0) * decades(columns, names) if by_scale else np.zeros(1)
    if RUN_WEIGHT in columns:
        logs = logs + np.log(np.asarray(columns[RUN_WEIGHT], dtype=float))
    weights = np.exp(logs - logs.max())
    return np.asarray(weights / weights.mean())


def effective_runs(columns: Columns, law: Law, scale_weight: float) -> float:
    """How many runs of equal weight tell as much as these: the square of the sum of weights over the sum of squares.

    Source: Kish 1965, the effective sample size.
    """
    weights = weights_for(columns, law, scale_weight)
    if weights is None:
        return float(len(columns[law.columns[0]])) if law.columns else 0.0
    return float(weights.sum() ** 2 / np.square(weights).sum())


def problem_of(runs: Columns, law: Law, target: np.ndarray, scale_weight: float, above: float = 1.0) -> Problem:
    """What a fit of this law to these runs minimises.

    Args:
        runs: with the law's columns, each (n,).
        law: the law.
        target: (n,) positive, what the law explains.
        scale_weight: the power of scale by which a run weighs.
        above: width of the Huber loss above the law, as a share of that below.
    """
    columns = {c: np.asarray(runs[c], dtype=float) for c in law.columns}
    return Problem(law, columns, np.log(np.asarray(target, dtype=float)), weights_for(runs, law, scale_weight), above)


def stacking_weights(errors: np.ndarray) -> np.ndarray:
    """Weights on the simplex that make the blended error smallest, drawn a little towards equal weights.

    Args:
        errors: (points, laws) out-of-sample errors; a law with an error that is not finite gets no weight.

    Source: Breiman 1996, stacked regressions.

    >>> stacking_weights(np.array([[1.0, -1.0], [1.0, -1.0]])).round(3).tolist()
    [0.5, 0.5]
    """
    from scipy.optimize import nnls

    laws = errors.shape[1]
    has_values = np.isfinite(errors).all(axis=0)
    if has_values.any() and not has_values.all():  # a law that has no value at a run that was held out
        weights = np.zeros(laws)
        weights[has_values] = stacking_weights(errors[:, has_values])
        return weights
    if not has_values.any():
        return np.full(laws, 1 / laws)
    size = np.sqrt(np.sum(errors**2, axis=0).min()) + 1e-300
    ridge = _TOWARDS_EQUAL * size * np.eye(laws)
    matrix = np.concatenate([errors, ridge, _SUM_TO_ONE * size * np.ones((1, laws))])
    target = np.concatenate([np.zeros(len(errors)), ridge.sum(axis=1) / laws, [_SUM_TO_ONE * size]])
    weights, _ = nnls(matrix / size, target / size)
    return np.asarray(weights / weights.sum())
