"""Which curve of mean and spread is the likeliest, and how far off is it beyond the runs it was fitted to?

The back-test fits the curve without the runs at one end of the covariate and asks it for them: what it misses, less the
scatter of single runs, grows with the distance beyond the runs it saw. As for laws (see
:mod:`scalefed.fitting.backtest`) the error is carried beyond all runs in proportion to the distance relative to the
span of the runs.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit

from scalefed.errors import ConfigError, FitError
from scalefed.fitting.betabinomial import Cells, Maximum, maximise, objective, position
from scalefed.fitting.crossed import newton_offsets

Array = NDArray[np.float64]

MEANS = ("logistic", "power")
UNKNOWN = 1.0
"""The curve's own error a span beyond runs too few to hold any out: what Pythia's rates over log params have."""
_FLOORS = (0.0, 0.25, 0.5)
_MARGIN = 5.0
_FEWEST = 3
_SHARES = (1 / 6, 1 / 3)


def discrepancy(counts: pd.DataFrame, z: pd.Series, mean: str, beside: pd.DataFrame | None = None) -> tuple[Array, int]:
    """Standard deviation of the curve's own error one whole span of the runs beyond them, and the runs behind it.

    At either end, the outermost sixth and third of the runs are held out in turn, at least one and two; squared misses
    less the scatter are set against squared distances, all together.

    Args:
        counts: run_id, task_id, samples, correct.
        z: standardised covariate by run.
        mean: the shape of the mean curve.
        beside: features by run, or None.

    Returns:
        (2, 2) for the low and the high end, in logit mean and log spread, :data:`UNKNOWN` where nothing could be held
        out; and how many runs could be, at the end with fewer.
    """
    ends = [_at_one_end(counts, z, mean, beside, high=high) for high in (False, True)]
    return np.stack([error for error, _ in ends]), min(count for _, count in ends)


def _at_one_end(
    counts: pd.DataFrame, z: pd.Series, mean: str, beside: pd.DataFrame | None, *, high: bool
) -> tuple[Array, int]:
    order = z.sort_values(ascending=high).index
    sizes = {max(least, round(share * len(order))) for least, share in enumerate(_SHARES, start=1)}
    found, most = [], 0
    for size in sorted(sizes):
        inside, outside = order[:-size], order[-size:]
        if len(inside) < _FEWEST or z[inside].nunique() < _FEWEST:
            continue
        cells = Cells.build(counts[counts["run_id"].isin(inside)], z, beside)
        if not cells.correct.any():
            continue
        held = Cells.build(counts[counts["run_id"].isin(outside)], z, beside)
        own = best_curve(cells, mean)[1].theta[0]
        missed = newton_offsets(held, own, mean=mean)
        noise = np.mean(newton_offsets(cells, own, mean=mean) ** 2, axis=0)
        edge = z[inside].max() if high else z[inside].min()
        beyond = np.abs(held.z - edge) / np.ptp(z[inside].to_numpy(float))
        found.append((np.sum(missed**2 - noise, axis=0), np.sum(beyond**2)))
        most = size
    if not found:
        return np.full(2, UNKNOWN), 0
    excess, squares = (np.sum(np.stack(x), axis=0) for x in zip(*found, strict=True))
    return np.sqrt(np.maximum(excess, 0.0) / squares), most


@dataclass(frozen=True)
class Fitted:
    """The likeliest curve to some counts: its axis, its shape and the cells it was fitted to."""

    floor: float | None
    center: float
    scale: float
    z: pd.Series
    mean: str
    cells: Cells
    best: Maximum


def likeliest(
    counts: pd.DataFrame, x: pd.Series, mean: str, floor: float | str | None, beside: pd.DataFrame | None = None
) -> Fitted:
    """The curve on the covariate itself or on the log of its excess over a floor.

    Args:
        counts: run_id, task_id, samples, correct.
        x: covariate by run.
        mean: shape of the mean curve, or "auto".
        floor: a number below all x, None for the covariate itself, or "auto": of some floors between 0 and half the
            least x (a nearer one is a guess that the next better run may refute) the likeliest, if it is likelier than
            none by more than :data:`_MARGIN`.
        beside: features by run, or None.

    Raises:
        ConfigError: a floor that is no number below the covariates.
    """
    if floor != "auto":
        return _fitted(counts, x, mean, _checked(floor, x), beside)
    none = _fitted(counts, x, mean, None, beside)
    least = float(x.min())
    if least <= 0:
        return none
    tried = [_fitted(counts, x, mean, share * least, beside) for share in _FLOORS]
    top = max(tried, key=lambda one: float(one.best.value[0]))
    return top if top.best.value[0] > none.best.value[0] + _MARGIN else none


def _checked(floor: float | str | None, x: pd.Series) -> float | None:
    number = np.nan if isinstance(floor, (str, bool)) else floor
    if number is None or number < x.min():
        return number
    raise ConfigError(f"floor must be 'auto', None or a number below the least covariate {x.min():g}, got {floor!r}")


def _fitted(counts: pd.DataFrame, x: pd.Series, mean: str, floor: float | None, beside: pd.DataFrame | None) -> Fitted:
    place = pd.Series(position(x.to_numpy(), floor), index=x.index)
    center, scale = float(place.mean()), float(place.std(ddof=0))
    z = (place - center) / scale
    cells = Cells.build(counts, z, beside)
    shape, best = best_curve(cells, mean)
    return Fitted(floor, center, scale, z, shape, cells, best)


def best_curve(cells: Cells, mean: str) -> tuple[str, Maximum]:
    """The likeliest curve, and the shape of its mean (the likelier of the two for "auto").

    Raises:
        ConfigError: an unknown shape.
        FitError: the likelihood has no clear maximum.
    """
    if mean not in ("auto", *MEANS):
        raise ConfigError(f"mean must be 'auto' or one of {MEANS}, got {mean!r}")
    found: dict[str, Maximum] = {}
    for shape in MEANS if mean == "auto" else (mean,):
        starts = _starts(cells, shape)
        promising = np.argsort(-objective(starts, cells, cells.multiplicity(), shape, hessian=False)[0])[:3]
        batch = maximise(cells, starts[promising], cells.multiplicity(), mean=shape)
        top = np.argsort(batch.value)[-1:]
        found[shape] = Maximum(batch.theta[top], batch.value[top], batch.hessian[top], batch.converged[top])
    shape = max(found, key=lambda name: float(found[name].value[0]))
    if not found[shape].converged[0]:
        raise FitError("the likelihood of these counts has no clear maximum; add runs of other sizes or more samples")
    return shape, found[shape]


def _starts(cells: Cells, mean: str) -> Array:
    """(8, p) starts: the mean by a line through smoothed logits, the spread and the ceiling from a small grid."""
    total = cells.by_run(cells.multiplicity()[0] * cells.samples)
    solved = cells.by_run(cells.multiplicity()[0] * cells.correct)
    rate = (solved + 0.5) / (total + 1.0)
    slope, level = np.polyfit(cells.z, logit(rate) if mean == "logistic" else -np.log(-np.log(rate)), 1)
    grid = [(t, g) for t in (0.0, 3.0) for g in (-1.0, 0.5, 2.0, 4.0)]
    nothing = [0.0] * cells.beside.shape[1]
    return np.array([[level, slope, t, g, 0.0, *nothing] for t, g in grid])
