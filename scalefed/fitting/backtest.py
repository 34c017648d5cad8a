"""How far off are predictions beyond the runs? Refit without the largest runs and see what the law misses.

The largest runs of the training range are held out, half a decade and a whole decade of scale, the law is fitted to the
rest, and its misses are compared with the noise of the runs. What is left over is the law's own error. It is carried
beyond all runs in proportion to the distance relative to the span of the runs: predicting half a span ahead, expect
the error found half a span ahead. A run may also lie beyond in params or in tokens alone, at a scale that was measured:
then the error is the one found by holding out the runs with the most params, or the most tokens.

Source: hold-out by scale as in BNSL (arXiv 2210.14891); carrying the miss into the band is this project's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalefed.fitting.bootstrap import noise_scale
from scalefed.fitting.data import FitData
from scalefed.fitting.initialisation import global_fit
from scalefed.fitting.problem import Problem, subset
from scalefed.fitting.solver import Solver

_CUTS = (0.5, 1.0)
_FEWEST_SPARE = 2
_LARGE = 5_000
_SHORTEST_SPAN = 0.25
_NAN = float("nan")


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
        ranges: the same of each of the scale's columns; empty where there is only one.
        aside: the law's own error one span beyond each column's range, at a scale that was measured; where no runs can
            be held out for it, as large a decade as that of the scale.
    """

    folds: int
    held_out: int
    error: float
    bias: float
    discrepancy: float
    scale: tuple[str, ...]
    low: float
    high: float
    ranges: tuple[tuple[float, float], ...] = ()
    aside: tuple[float, ...] = ()


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


def axes(columns: Mapping[str, np.ndarray] | pd.DataFrame, names: tuple[str, ...]) -> np.ndarray:
    """Log10 of the scale and, where it is a product, of each of its columns: (directions, n)."""
    each = names if len(names) > 1 else ()
    return np.stack([np.atleast_1d(decades(columns, part)) for part in (names, *((name,) for name in each))])


def _span(low: float, high: float) -> float:
    return max(high - low, _SHORTEST_SPAN)


def _beyond(
    backtest: BackTest, columns: Mapping[str, np.ndarray] | pd.DataFrame
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Decades beyond the measured ends in every direction, (directions, n), 0 between them; and their spans."""
    ends = [(backtest.low, backtest.high), *backtest.ranges]
    low, high = np.array(ends).T[:, :, None]
    x = axes(columns, backtest.scale)[: len(ends)]  # a fit without ranges knows the scale alone
    return np.maximum(np.maximum(x - high, low - x), 0.0), np.array([_span(*pair) for pair in ends])


def distance(backtest: BackTest, columns: Mapping[str, np.ndarray] | pd.DataFrame) -> np.ndarray:
    """Decades between a run and the measured ones, in the direction where it is farthest; 0 inside all ranges."""
    if not backtest.scale:
        return np.zeros(1)
    return np.asarray(_beyond(backtest, columns)[0].max(axis=0))


def model_error(backtest: BackTest, columns: Mapping[str, np.ndarray] | pd.DataFrame) -> np.ndarray:
    """Standard deviation of the law's own error at these runs, in log units; 0 inside all ranges."""
    if not backtest.scale or not np.isfinite(backtest.discrepancy):
        return np.zeros(1)
    beyond, spans = _beyond(backtest, columns)
    error = np.array([backtest.discrepancy, *backtest.aside])[:, None] * beyond / spans[:, None]
    return np.asarray(np.where(beyond[0] > 0, error[0], error.max(axis=0)))


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
    if not names:
        return BackTest(0, 0, _NAN, _NAN, _NAN, names, _NAN, _NAN)
    x = axes(data.columns, names)
    ends = [(float(row.min()), float(row.max())) for row in x]
    largest = _folds(problem, x, 0, _CUTS, delta, seed) if folds and problem.p else []
    if not largest:
        return BackTest(0, 0, _NAN, _NAN, _NAN, names, ends[0][0], ends[0][1], tuple(ends[1:]))
    ahead = _discrepancy(largest)
    others = [_folds(problem, x, i, _CUTS[:1], delta, seed) for i in range(1, len(x))]
    return BackTest(
        folds=len(largest),
        held_out=max(f.size for f in largest),
        error=float(np.mean([f.error for f in largest])),
        bias=float(np.mean([f.bias for f in largest])),
        discrepancy=ahead,
        scale=names,
        low=ends[0][0],
        high=ends[0][1],
        ranges=tuple(ends[1:]),
        aside=tuple(
            _discrepancy(found) if found else ahead * _span(*own) / _span(*ends[0])
            for found, own in zip(others, ends[1:], strict=True)
        ),
    )


@dataclass(frozen=True, slots=True)
class _Fold:
    size: int
    error: float
    bias: float
    excess: float


def _discrepancy(folds: list[_Fold]) -> float:
    return float(np.sqrt(max(f.excess for f in folds)))


def _folds(
    problem: Problem, x: np.ndarray, direction: int, cuts: tuple[float, ...], delta: float, seed: int
) -> list[_Fold]:
    """Hold-outs of the largest runs in one direction, where enough are left that still vary."""
    done = []
    for cut in cuts:
        keep = x[direction] <= x[direction].max() - cut
        if keep.sum() >= problem.p + _FEWEST_SPARE and _still_varies(problem, keep):
            done.append(_fold(problem, keep, x[direction], delta, seed))
    return done


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
