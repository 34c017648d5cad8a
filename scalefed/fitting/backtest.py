"""How far off are predictions beyond the runs? Refit without the largest runs and see what the law misses.

The largest runs of the training range are held out, half a decade and a whole decade of scale, the law is fitted to the
rest, and its misses are compared with the noise of the runs. What is left over is the law's own error. It is carried
beyond all runs in proportion to the distance relative to the span of the runs: predicting half a span ahead, expect
the error found half a span ahead.

Source: hold-out by scale as in BNSL (arXiv 2210.14891); carrying the miss into the band is this project's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scalefed.fitting.data import FitData
from scalefed.fitting.intervals import noise_scale
from scalefed.fitting.problem import Problem, subset
from scalefed.fitting.solver import Solver
from scalefed.fitting.starts import global_fit

_CUTS = (0.5, 1.0)
_FEWEST_SPARE = 2
_LARGE = 5_000
_SHORTEST_SPAN = 0.25


@dataclass(frozen=True, slots=True)
class BackTest:
    """What the law missed on its own largest runs.

    Attributes:
        folds: how many hold-outs could be made; 0 where the runs are too few or span too little.
        held_out: runs held out at the widest cut.
        error: median absolute relative error of the held-out runs, mean over the folds; NaN without folds.
        bias: mean relative error over the same runs, positive where runs are worse than predicted.
        discrepancy: standard deviation of the law's own error one whole span of the runs beyond them, in log units.
        scale: the columns whose product is the scale.
        low, high: decades (log10) of the smallest and the largest run.
    """

    folds: int
    held_out: int
    error: float
    bias: float
    discrepancy: float
    scale: tuple[str, ...]
    low: float
    high: float


def scale_columns(columns: Mapping[str, object] | pd.DataFrame, needed: tuple[str, ...]) -> tuple[str, ...]:
    """The columns whose product says how large a run is: params and tokens where the law has them.

    >>> scale_columns({"params": 1, "tokens": 1, "skew": 0}, ("params", "tokens", "skew"))
    ('params', 'tokens')
    """
    both = tuple(c for c in ("params", "tokens") if c in needed and c in columns)
    return both or tuple(c for c in needed if c != "skew")[:1]


def decades(columns: Mapping[str, np.ndarray] | pd.DataFrame, names: tuple[str, ...]) -> np.ndarray:
    """Log10 of the product of the scale columns."""
    return np.asarray(sum(np.log10(np.asarray(columns[name], dtype=float)) for name in names))


def distance(backtest: BackTest, columns: Mapping[str, np.ndarray] | pd.DataFrame) -> np.ndarray:
    """Decades of scale between a run and the nearest measured one; 0 inside the measured range."""
    if not backtest.scale:
        return np.zeros(1)
    x = decades(columns, backtest.scale)
    return np.asarray(np.maximum(np.maximum(x - backtest.high, backtest.low - x), 0.0))


def model_error(backtest: BackTest, beyond: np.ndarray) -> np.ndarray:
    """Standard deviation of the law's own error at a distance in decades, in log units."""
    size = backtest.discrepancy if np.isfinite(backtest.discrepancy) else 0.0
    return np.asarray(size * np.asarray(beyond) / max(backtest.high - backtest.low, _SHORTEST_SPAN))


def back_test(data: FitData, problem: Problem, *, delta: float, seed: int = 0, folds: bool = True) -> BackTest:
    """Hold out the largest runs, refit, and measure.

    Args:
        data: the runs.
        problem: law and runs as fitted.
        delta: width of the Huber loss.
        seed: of the starts.
        folds: whether to hold anything out; without, only the measured scale is noted.
    """
    names = scale_columns(data.columns, data.law.columns)
    if not names or problem.p == 0:
        return BackTest(0, 0, float("nan"), float("nan"), float("nan"), names, float("nan"), float("nan"))
    scale = decades(data.columns, names)
    done = []
    for cut in _CUTS if folds else ():
        keep = scale <= scale.max() - cut
        if keep.sum() >= problem.p + _FEWEST_SPARE and (~keep).sum() >= 1 and _still_varies(problem, keep):
            done.append(_fold(problem, keep, scale, delta, seed))
    ends = float(scale.min()), float(scale.max())
    if not done:
        return BackTest(0, 0, float("nan"), float("nan"), float("nan"), names, *ends)
    return BackTest(
        folds=len(done),
        held_out=max(f.size for f in done),
        error=float(np.mean([f.error for f in done])),
        bias=float(np.mean([f.bias for f in done])),
        discrepancy=float(np.sqrt(max(f.excess for f in done))),
        scale=names,
        low=ends[0],
        high=ends[1],
    )


@dataclass(frozen=True, slots=True)
class _Fold:
    size: int
    error: float
    bias: float
    excess: float


def _still_varies(problem: Problem, keep: np.ndarray) -> bool:
    """Whether every column keeps at least three levels, or all it had."""
    for values in problem.columns.values():
        if len(np.unique(values[keep])) < min(3, len(np.unique(values))):
            return False
    return True


def _fold(problem: Problem, keep: np.ndarray, scale: np.ndarray, delta: float, seed: int) -> _Fold:
    inside = np.flatnonzero(keep)
    if len(inside) > _LARGE:
        inside = inside[:: len(inside) // _LARGE]
    reduced = subset(problem, inside)
    best = global_fit(reduced, delta=delta, seed=seed)
    solver = Solver(reduced, delta=delta)
    residuals = solver.residuals(best.theta[None])[0][0]
    outside = np.flatnonzero(~keep)
    held = subset(problem, outside)
    values = reduced.to_values(best.theta[None])
    law = problem.law
    predicted = np.log(law.predict(dict(zip(reduced.names, values[0], strict=True)), held.columns))
    missed = held.z - predicted
    span = max(float(np.ptp(scale[inside])), _SHORTEST_SPAN)
    beyond = (scale[outside] - scale[inside].max()) / span
    noise = noise_scale(residuals, reduced.p, reduced.weights)
    excess = np.mean(missed**2 - noise**2) / np.mean(beyond**2)
    return _Fold(
        len(outside),
        float(np.median(np.abs(np.expm1(missed)))),
        float(np.mean(np.expm1(missed))),
        max(float(excess), 0.0),
    )
