"""How far off are predictions beyond the runs? Refit without the largest runs and see what the law misses.

The largest runs of the training range are held out, half a decade and a whole decade of scale, the law is fitted to the
rest, and its misses are compared with the noise of the runs. What is left over is the law's own error; where the law is
known to bend away from the runs, so that those above it pull less, all it misses is its own. It is carried
beyond all runs in proportion to the distance relative to the span of the runs: predicting half a span ahead, expect
the error found half a span ahead. A run may also lie beyond in params or in tokens alone, at a scale that was measured:
then the error is the one found by holding out the runs with the most params, or the most tokens.

Source: hold-out by scale as in BNSL (arXiv 2210.14891); carrying the miss into the band is this project's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalefed.fitting.bootstrap import noise_scale
from scalefed.fitting.initialisation import GlobalFit, local_fit
from scalefed.fitting.problem import Problem, subset
from scalefed.fitting.solver import Solver

_CUTS = (0.5, 1.0)  # decades below the largest run, where a cut holds out what is above
DRIFTS, NEAR = 0.5, 0.4  # of the drift in a decade, and decades; calibrated by bench_optima_coverage.py minima
SPARE = 2  # runs more than parameters that a hold-out leaves
_LARGE = 5_000  # runs; above, every so manieth is fitted
_SHORTEST_SPAN = 0.25  # decades; a shorter range says nothing about how errors grow with distance
_NAN = float("nan")
_UNKNOWN = (_NAN, _NAN)


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
        drift: how far, in log size a decade, the best size at the largest compute fell, and how far it rose, as the
            largest runs by scale came in; NaN where nothing was held out, or the law has no best size.
        drift_aside: how far it moved, either way, as the runs with the most params, or the most tokens, came in.
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
    drift: tuple[float, float] = _UNKNOWN
    drift_aside: float = _NAN

    @property
    def errors(self) -> tuple[float, ...]:
        """The law's own error a decade beyond the runs, in scale and in each of its columns; empty where unknown."""
        if not self.scale or not np.isfinite(self.discrepancy):
            return ()
        ends = [(self.low, self.high), *self.ranges]
        return tuple(e / _span(*pair) for e, pair in zip((self.discrepancy, *self.aside), ends, strict=True))


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


@dataclass(frozen=True, slots=True)
class Fold:
    """One hold-out.

    Attributes:
        size: runs held out.
        missed: (size,) log errors of the held-out runs, positive where they are worse than predicted.
        excess: squared error beyond the noise, of a run one span of the others beyond them.
        params: what the law's free parameters are without the held-out runs.
        below: decades between the ends of the runs that are kept and of all, in the direction of the hold-out.
    """

    size: int
    missed: np.ndarray
    excess: float
    params: dict[str, float]
    below: float


Folds = tuple[tuple[Fold, ...], ...]
"""The hold-outs of the largest runs by scale, then by each of its columns."""


def aside_of(backtest: BackTest) -> float:
    """The drift with params and tokens; where no runs could be held out for it, the whole of that with scale."""
    return backtest.drift_aside if np.isfinite(backtest.drift_aside) else float(np.hypot(*backtest.drift))


def size_error(backtest: BackTest, columns: Mapping[str, np.ndarray] | pd.DataFrame) -> np.ndarray:
    """Standard deviations of the log of best sizes that no fit can show, of the law itself: (2, n), below and above.

    They grow with the distance beyond the runs, in the direction where the best run is farthest; they are there near
    the ends of the runs already, and gone a decade inside all of them. Beyond the measured scale the best size goes on
    as it went with scale; inside it, it may move either way, as far as it did with params and tokens.
    """
    if not backtest.scale or not np.isfinite(backtest.drift).all():
        return np.zeros((2, 1))
    high = np.array([backtest.high, *(end for _, end in backtest.ranges)])[:, None]
    away = axes(columns, backtest.scale)[: len(high)] - high
    beyond, inside = away.max(axis=0), np.clip(-away[0] / NEAR, 0.0, 1.0)
    drift = (1.0 - inside) * np.array(backtest.drift)[:, None] + inside * aside_of(backtest)
    return np.asarray(DRIFTS * drift * np.maximum(beyond, NEAR * np.clip(1.0 + beyond, 0.0, 1.0)))


def cuts(columns: Mapping[str, np.ndarray], needed: tuple[str, ...], least: int) -> tuple[tuple[np.ndarray, ...], ...]:
    """Which runs are kept in each hold-out, (n,) masks: of the largest by scale, then by each of its columns.

    Args:
        columns: each (n,).
        needed: the columns of the laws; in a hold-out each keeps three levels, or all it had.
        least: fewest runs to keep.
    """
    names = scale_columns(columns, needed)
    if not names:
        return ()

    def kept(row: np.ndarray, sizes: tuple[float, ...]) -> tuple[np.ndarray, ...]:
        masks = [row <= row.max() - cut for cut in sizes]
        return tuple(keep for keep in masks if keep.sum() >= least and _still_varies(columns, needed, keep))

    return tuple(kept(row, _CUTS if i == 0 else _CUTS[:1]) for i, row in enumerate(axes(columns, names)))


def hold_outs(problem: Problem, best: GlobalFit, masks: tuple[tuple[np.ndarray, ...], ...], *, delta: float) -> Folds:
    """Refit without the largest runs, and see what is missed.

    Args:
        problem: law and runs as fitted.
        best: the fit to all runs, from which the refits start too.
        masks: the runs that are kept, from :func:`cuts`.
        delta: width of the Huber loss.
    """
    if not problem.p or not masks:
        return ()
    x = axes(problem.columns, scale_columns(problem.columns, problem.law.columns))
    return tuple(
        tuple(_fold(problem, keep, row, best, delta) for keep in way) for way, row in zip(masks, x, strict=True)
    )


def back_test(problem: Problem, folds: Folds) -> BackTest:
    """What the hold-outs say of the law; without any, only the measured scale is noted.

    Args:
        problem: law and runs as fitted.
        folds: from :func:`hold_outs`.
    """
    names = scale_columns(problem.columns, problem.law.columns)
    if not names:
        return BackTest(0, 0, _NAN, _NAN, _NAN, names, _NAN, _NAN)
    x = axes(problem.columns, names)
    ends = [(float(row.min()), float(row.max())) for row in x]
    if not folds or not folds[0]:
        return BackTest(0, 0, _NAN, _NAN, _NAN, names, ends[0][0], ends[0][1], tuple(ends[1:]))
    largest, others = folds[0], folds[1:]
    ahead = _discrepancy(largest)
    return BackTest(
        folds=len(largest),
        held_out=max(f.size for f in largest),
        error=float(np.mean([np.median(np.abs(np.expm1(f.missed))) for f in largest])),
        bias=float(np.mean([np.mean(np.expm1(f.missed)) for f in largest])),
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


def of_several(tests: Sequence[BackTest]) -> BackTest:
    """The first law's back-test with the error beyond the runs of all that are mixed with it, as a root mean square.

    The first was chosen for what it missed least, so what it missed is less than it will miss.

    Args:
        tests: of the law and of those mixed with it, over the same runs and hold-outs.
    """
    first = tests[0]
    alike = [one for one in tests if one.scale == first.scale and len(one.aside) == len(first.aside)]
    errors = np.sqrt(np.mean(np.square([(one.discrepancy, *one.aside) for one in alike]), axis=0))
    return replace(first, discrepancy=float(errors[0]), aside=tuple(map(float, errors[1:])))


def _discrepancy(folds: tuple[Fold, ...]) -> float:
    return float(np.sqrt(np.mean([f.excess for f in folds])))


def _still_varies(columns: Mapping[str, np.ndarray], needed: tuple[str, ...], keep: np.ndarray) -> bool:
    """Whether every column keeps at least three levels, or all it had."""
    for name in needed:
        values = columns[name]
        if len(np.unique(values[keep])) < min(3, len(np.unique(values))):
            return False
    return True


def _fold(problem: Problem, keep: np.ndarray, scale: np.ndarray, best: GlobalFit, delta: float) -> Fold:
    inside = np.flatnonzero(keep)
    if len(inside) > _LARGE:
        inside = inside[:: len(inside) // _LARGE]
    reduced = subset(problem, inside)
    starts = np.concatenate([best.theta[None], best.others])
    starts = reduced.to_coordinates(problem.to_values(starts))
    found = local_fit(reduced, replace(best, theta=starts[0], others=starts[1:]), delta=delta)
    residuals = Solver(reduced, delta=delta).residuals(found.theta[None])[0][0]
    outside = np.flatnonzero(~keep)
    held = subset(problem, outside)
    values = dict(zip(reduced.names, reduced.to_values(found.theta[None])[0], strict=True))
    missed = held.z - np.log(problem.law.predict(values, held.columns))
    span = max(float(np.ptp(scale[inside])), _SHORTEST_SPAN)
    beyond = (scale[outside] - scale[inside].max()) / span
    bent = reduced.above != 1.0  # then what the law misses is its own, not noise
    noise = 0.0 if bent else noise_scale(residuals, reduced.p, reduced.weights)
    excess = np.mean(missed**2 - noise**2) / np.mean(beyond**2)
    below = float(scale.max() - scale[inside].max())
    return Fold(len(outside), missed, max(float(excess), 0.0), {n: float(v) for n, v in values.items()}, below)
