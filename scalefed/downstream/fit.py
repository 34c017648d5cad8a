"""How is a link fitted to success counts? Which curve is the likeliest, and how far off is it beyond the runs?

The back-test fits the curve without the runs at one end of the covariate and asks it for them: what it misses, less the
scatter of single runs, grows with the distance beyond the runs it saw. As for laws (see
:mod:`scalefed.fitting.backtest`) the error is carried beyond all runs in proportion to the distance relative to the
span of the runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit

from scalefed.downstream.betabinomial import Cells, Maximum, check_counts, maximise, objective, prior
from scalefed.downstream.crossed import newton_offsets, replicate, two_way_shrinkage
from scalefed.downstream.curve import Covariates, Curve, position
from scalefed.downstream.link import NAMES, Link
from scalefed.errors import ConfigError, DataError, FitError, nearest, refuses_old_words
from scalefed.laws import Law
from scalefed.seeds import rng

Array = NDArray[np.float64]

MEANS = ("logistic", "power")
UNKNOWN = 1.0
"""The curve's own error a span beyond runs too few to hold any out: what Pythia's rates over log params have."""
_FLOORS = (0.0, 0.25, 0.5)  # shares of the lowest loss, tried as the loss at which all problems are solved
_MARGIN = 5.0  # nats of likelihood; very strong evidence by Kass and Raftery 1995
_FEWEST = 3  # values inside the range: fewer cannot show a bend
_SHARES = (1 / 6, 1 / 3)  # of the runs at an end of the range, by which the ends are compared


def discrepancy(
    counts: pd.DataFrame, z: pd.Series, mean: str, covariates: pd.DataFrame | None = None
) -> tuple[Array, int]:
    """Standard deviation of the curve's own error one whole span of the runs beyond them, and the runs behind it.

    At either end, the outermost sixth and third of the runs are held out in turn, at least one and two; squared misses
    less the scatter are set against squared distances, all together.

    Args:
        counts: run_id, task_id, samples, correct.
        z: standardised covariate by run.
        mean: the shape of the mean curve.
        covariates: features by run, or None.

    Returns:
        (2, 2) for the low and the high end, in logit mean and log spread, :data:`UNKNOWN` where nothing could be held
        out; and how many runs could be, at the end with fewer.
    """
    ends = [_at_one_end(counts, z, mean, covariates, high=high) for high in (False, True)]
    return np.stack([error for error, _ in ends]), min(count for _, count in ends)


def _at_one_end(
    counts: pd.DataFrame, z: pd.Series, mean: str, covariates: pd.DataFrame | None, *, high: bool
) -> tuple[Array, int]:
    order = z.sort_values(ascending=high).index
    sizes = {max(least, round(share * len(order))) for least, share in enumerate(_SHARES, start=1)}
    found, most = [], 0
    for size in sorted(sizes):
        inside, outside = order[:-size], order[-size:]
        if len(inside) < _FEWEST or z[inside].nunique() < _FEWEST:
            continue
        cells = Cells.build(counts[counts["run_id"].isin(inside)], z, covariates)
        if not cells.correct.any():
            continue
        held = Cells.build(counts[counts["run_id"].isin(outside)], z, covariates)
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
    counts: pd.DataFrame, x: pd.Series, mean: str, floor: float | str | None, covariates: pd.DataFrame | None = None
) -> Fitted:
    """The curve on the covariate itself or on the log of its excess over a floor.

    Args:
        counts: run_id, task_id, samples, correct.
        x: covariate by run.
        mean: shape of the mean curve, or "auto".
        floor: a number below all x, None for the covariate itself, or "auto": of some floors between 0 and half the
            least x (a nearer one is a guess that the next better run may refute) the likeliest, if it is likelier than
            none by more than :data:`_MARGIN`.
        covariates: features by run, or None.

    Raises:
        ConfigError: a floor that is no number below the covariates.
    """
    if floor != "auto":
        return _fitted(counts, x, mean, _checked(floor, x), covariates)
    none = _fitted(counts, x, mean, None, covariates)
    least = float(x.min())
    if least <= 0:
        return none
    tried = [_fitted(counts, x, mean, share * least, covariates) for share in _FLOORS]
    top = max(tried, key=lambda one: float(one.best.value[0]))
    return top if top.best.value[0] > none.best.value[0] + _MARGIN else none


def _checked(floor: float | str | None, x: pd.Series) -> float | None:
    number = np.nan if isinstance(floor, (str, bool)) else floor
    if number is None or number < x.min():
        return number
    raise ConfigError(f"floor must be 'auto', None or a number below the least covariate {x.min():g}, got {floor!r}")


def _fitted(
    counts: pd.DataFrame, x: pd.Series, mean: str, floor: float | None, covariates: pd.DataFrame | None
) -> Fitted:
    place = pd.Series(position(x.to_numpy(), floor), index=x.index)
    center, scale = float(place.mean()), float(place.std(ddof=0))
    z = (place - center) / scale
    cells = Cells.build(counts, z, covariates)
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
        promising = np.argsort(-objective(starts, cells, cells.tally(), shape, hessian=False)[0])[:3]
        batch = maximise(cells, starts[promising], cells.tally(), mean=shape)
        top = np.argsort(batch.value)[-1:]
        found[shape] = Maximum(batch.theta[top], batch.value[top], batch.hessian[top], batch.converged[top])
    shape = max(found, key=lambda name: float(found[name].value[0]))
    if not found[shape].converged[0]:
        raise FitError("the likelihood of these counts has no clear maximum; add runs of other sizes or more samples")
    return shape, found[shape]


def _starts(cells: Cells, mean: str) -> Array:
    """(8, p) starts: the mean by a line through smoothed logits, the spread and the ceiling from a small grid."""
    many = cells.multiplicity()[0]
    total, solved = (np.add.reduceat(many * of, cells.starts) for of in (cells.samples, cells.correct))
    rate = (solved + 0.5) / (total + 1.0)
    slope, level = np.polyfit(cells.z, logit(rate) if mean == "logistic" else -np.log(-np.log(rate)), 1)
    grid = [(t, g) for t in (0.0, 3.0) for g in (-1.0, 0.5, 2.0, 4.0)]
    nothing = [0.0] * cells.covariates.shape[1]
    return np.array([[level, slope, t, g, 0.0, *nothing] for t, g in grid])


@refuses_old_words
def fit_link(
    counts: pd.DataFrame,
    losses: Mapping[str, float] | pd.Series,
    *,
    covariate: str = "loss",
    mean: str = "auto",
    floor: float | str | None = "auto",
    covariates: pd.DataFrame | None = None,
    resamples: int = 400,
    seed: int = 0,
) -> Link:
    """Fit mean and spread of the success rates to counts, by maximum likelihood.

    Args:
        counts: columns run_id, task_id, samples, correct; one row a run and problem. Runs should share problems.
        losses: the covariate by run_id: measured losses, a law's predictions, or for instance log params.
        covariate: its name, for printing.
        mean: the shape of the mean curve, "logistic" or "power"; "auto" takes the likelier of the two.
        floor: x is the log of the covariate's excess over this number, or the covariate itself if None; "auto" takes
            the likelier for a loss, and None for any other covariate.
        covariates: what else of a run counts, by run_id: columns such as tokens, params or skew.
        resamples: bootstrap replicates, problems and runs both reweighted.
        seed: of the replicates.

    Raises:
        ConfigError: an unknown mean, or a floor that is no number below the covariates.
        DataError: impossible counts, runs without a covariate, or columns beside it that cannot be used.
        FitError: fewer than three different values of the covariate, or no success at all.
    """
    check_counts(counts)
    x = _covariate(counts, losses, covariate)
    if floor == "auto" and covariate != "loss":
        floor = None
    others, features = _covariates(covariates, x)
    found = likeliest(counts, x, mean, floor, features)
    cells, best, mean = found.cells, found.best, found.mean
    curve = Curve(found.center, found.scale, best.theta, mean, found.floor, others)
    own_error, held_out = discrepancy(counts, found.z, mean, features)
    stream = rng(seed, "link-bootstrap")
    of_run = stream.exponential(size=(resamples, len(cells.run_ids)))
    of_task = stream.exponential(size=(resamples, cells.tasks))
    refits = replicate(cells, best, of_run, of_task, mean=mean)
    moved = best.theta + (refits.theta - best.theta) @ two_way_shrinkage(cells, best, mean).T
    runs, (middle, sd) = len(cells.run_ids), prior(best.theta.shape[1])
    return Link(
        covariate=covariate,
        curve=curve,
        replicates=replace(curve, theta=moved),
        scatter=newton_offsets(cells, best.theta[0], mean=mean) * np.sqrt(runs / max(runs - 2.0, 1.0)),
        discrepancy=own_error,
        held_out=held_out,
        observed=(float(x.min()), float(x.max())),
        runs=runs,
        problems=cells.tasks,
        unconverged=int((~refits.converged).sum()),
        log_likelihood=float(best.value[0] + 0.5 * (((best.theta[0] - middle) / sd) ** 2).sum()),
        status=_status(best.hessian[0], held_out, (*NAMES, *(others.names if others else ()))),
        seed=seed,
    )


def link_runs(
    law: Law,
    runs: pd.DataFrame,
    target: str,
    counts: pd.DataFrame,
    *,
    covariates: Sequence[str] = (),
    resamples: int = 400,
    seed: int = 0,
) -> Link:
    """The link from the losses of these runs to their success counts; runs without counts are left out.

    Its floor is the law's E where that is held at a known value below all losses.

    Args:
        law: the law that is fitted to the runs.
        runs: with columns run_id and the target.
        target: the column with the losses.
        counts: as for :func:`fit_link`.
        covariates: columns of the law that count beside the loss.
        resamples: bootstrap replicates.
        seed: of the replicates.

    Raises:
        DataError: the runs have no run_id, or none of them has counts.
        ConfigError: a column beside the loss that the law does not have, so that no plan could say it.
    """
    for name in covariates:
        if name not in law.columns:
            raise ConfigError(f"{law.name!r} has no column {name!r} to look at; {nearest(name, law.columns)}")
    if "run_id" not in runs.columns:
        raise DataError("the runs need run_id, which says whose success counts these are")
    counts = counts[counts["run_id"].isin(runs["run_id"])]
    if not len(counts):
        raise DataError("none of the runs has success counts; load_counts reads those of a folder of runs")
    table = runs[runs["run_id"].isin(counts["run_id"])].set_index("run_id")
    losses, others = table[target], table[list(covariates)] if covariates else None
    floor = law.fixed.get("E", np.inf)
    known = floor if floor < losses.min() else "auto"
    return fit_link(counts, losses, floor=known, covariates=others, resamples=resamples, seed=seed)


def _covariates(table: pd.DataFrame | None, x: pd.Series) -> tuple[Covariates | None, pd.DataFrame | None]:
    """The columns beside the covariate, and their features by run."""
    if table is None or not table.shape[1]:
        return None, None
    missing = [run for run in x.index if run not in table.index]
    if missing:
        raise DataError(f"no {', '.join(map(str, table.columns))} for {len(missing)} runs, first {missing[0]!r}")
    own = table.loc[list(x.index)]
    covariates = Covariates.of(own)
    return covariates, pd.DataFrame(covariates.features(own), index=own.index)


def _covariate(counts: pd.DataFrame, losses: Mapping[str, float] | pd.Series, name: str) -> pd.Series:
    x = pd.Series(dict(losses), dtype=float)
    runs = counts["run_id"].unique()
    missing = [run for run in runs if run not in x.index or not np.isfinite(x[run])]
    if missing:
        raise DataError(f"no finite {name} for {len(missing)} runs with counts, first {missing[0]!r}; give one each")
    x = x.loc[list(runs)]
    if x.nunique() < 3:
        raise FitError(
            f"counts at {x.nunique()} different values of {name}, needed are 3 or more: "
            "mean and spread of the success rates cannot be told apart from a trend; evaluate more runs"
        )
    if counts["correct"].sum() == 0:
        raise FitError("no problem was ever solved: the counts bound pass@k but give no curve; train larger or longer")
    return x


def _status(hessian: Array, held_out: int, names: Sequence[str]) -> str:
    spread = np.sqrt(np.diag(np.linalg.pinv(-hessian)))
    loose = [name for name, sd, prior in zip(names, spread, prior(len(names))[1], strict=True) if sd > 0.8 * prior]
    words = [f"not determined by these counts: {', '.join(loose)} (held by a weak prior)"] if loose else []
    if not held_out:
        words.append("too few runs to hold any out: the curve's own error beyond them is a guess, not measured")
    return "; ".join(words) or "ok"
