"""Pass@k in an answer: how often does the best run solve the problems, and what compute solves a share of them?"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefed.allocation import optimum
from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.mixture import spread_further
from scalefed.allocation.optimum import Optimum, Solution, out_of_reach
from scalefed.allocation.solvers import FARTHEST
from scalefed.downstream.curve import PLAIN, Curve
from scalefed.downstream.link import Link, pass_at_k
from scalefed.downstream.link import inverse as link_inverse
from scalefed.errors import FitError
from scalefed.laws import Law
from scalefed.units import grouped

Array = NDArray[np.float64]

KS = (1, 10, 100)  # samples a problem, as papers of code models report them
_TURNS = 60  # of a search; each halves its bracket at least, and most reach the end in ten
_AGREED = 1e-9  # log compute; where a turn moves less, the goal is met to more digits than are shown


def attached_link(fit: Any) -> Link:
    """The fit's link from loss to pass@k.

    Raises:
        FitError: there is none.
    """
    link = getattr(fit, "link", None)
    if not isinstance(link, Link):
        raise FitError(
            "this fit knows no pass@k: fit a link, fit.with_link(load_counts(runs)), or scalefed fit --passk"
        )
    return link


def stacked_curves(link: Link, rows: int) -> Curve:
    """The link's estimate, then its replicates, as many as there are rows."""
    others = np.resize(link.replicates.theta, (rows - 1, link.replicates.theta.shape[1]))
    return replace(link.curve, theta=np.concatenate([link.curve.theta, others]))


def with_loss_error(fit: Any, losses: Array, here: Mapping[str, float]) -> Array:
    """The losses of one run, (1 + b,), its replicates spread further by the law's own error there.

    Args:
        fit: a fit; without predictions the losses stay.
        losses: the estimate, then replicates.
        here: the run's columns.
    """
    predicted = getattr(fit, "predicted", None)
    if predicted is None or len(losses) < 2:
        return losses
    error = predicted(parts=True, **here)["model"].to_numpy()
    return losses * spread_further(np.log(losses), error, error, least=0.0)


def with_passes(link: Link, losses: Array, here: Mapping[str, float], best: Optimum) -> Optimum:
    """Pass@k at the best run: every link replicate at the loss of a law replicate."""
    paired = losses[1:] if len(losses) > 1 else losses
    paired = np.resize(paired, len(link.replicates))[:, None]
    draws = link.draw(paired, KS, covariates=here)[:, 0, :]
    point = link.predict(best.loss, KS, covariates=here)["estimate"].to_numpy(float)
    low, high = np.quantile(draws, [(1 - best.level) / 2, (1 + best.level) / 2], axis=0)
    table = {
        k: (float(p), min(float(a), float(p)), max(float(b), float(p)))
        for k, p, a, b in zip(KS, point, low, high, strict=True)
    }
    one = table[1]
    return replace(best, pass_at_k=table, pass_at_1=one[0], pass_at_1_low=one[1], pass_at_1_high=one[2])


def least_for_passes(
    link: Link, law: Law, values: Mapping[str, Array], share: float, k: int, budget: Budget, setting: Setting
) -> Solution:
    """The least compute of a run that solves this share of the problems.

    Where the link looks at columns beside the loss, the loss that is needed depends on the run that reaches it: then
    log compute is searched for the best run whose own pass@k is the share. A share that no loss within the limits
    reaches is not reached by size or tokens alone either.

    Raises:
        FitError: the share is out of reach of the link, or no run within the search reaches it.
    """
    rows = len(next(iter(values.values())))
    curves = stacked_curves(link, rows)
    goal = link_inverse(replace(curves, theta=curves.theta[:, :PLAIN], covariates=None), share, k)
    if curves.covariates is None:
        return optimum.least_compute(law, values, loss=goal, budget=budget, setting=setting)
    first = {name: series[:1] for name, series in values.items()}
    least = optimum.least_compute(law, first, loss=goal[:1], budget=budget, setting=setting)
    if not np.isfinite(least.compute[0]):
        return optimum.least_compute(law, values, loss=goal, budget=budget, setting=setting)

    def best(log_compute: Array) -> Solution:
        some = {name: series[: len(log_compute)] for name, series in values.items()}
        return optimum.minimise(law, some, budget=replace(budget, compute=np.exp(log_compute)), setting=setting)

    def missing(log_compute: Array) -> Array:
        found = best(log_compute)
        here = optimum.columns_of(law, setting, found.params, found.tokens, found.rounds, found.local_steps)
        some = replace(curves, theta=curves.theta[: len(log_compute)])
        offset = some.offset({name: np.reshape(value, (-1, 1)) for name, value in here.items()})
        reached = pass_at_k(some, found.loss[:, None], np.array(float(k)), offset=offset)[:, 0]
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(share / (1 - share)) - np.log(reached) + np.log1p(-reached))

    nearby = np.log(least.compute)
    start = _root(missing, nearby)
    log_compute = _root(missing, np.repeat(start, rows)) if np.isfinite(start[0]) else np.full(rows, np.inf)
    lost = ~np.isfinite(log_compute)
    found = best(np.where(lost, nearby[0], log_compute))
    if not (lost[0] or found.bounded[0]):
        raise FitError(
            f"no run agrees with the loss that pass@{k} = {grouped(share, 6)} needs: size and tokens count for more "
            "beside the loss than the loss itself; fit the link without them"
        )
    return out_of_reach(found, lost)


def _root(f: Callable[[Array], Array], start: Array) -> Array:
    """Where falling functions cross 0, one a row, from a bracket about a start; infinity where they never do.

    Source: the Illinois form of the false position, Dowell and Jarratt 1971.
    """
    low, high = start - 1.0, start + 1.0
    at_low, at_high = f(low), f(high)
    step = 2.0
    while (short := (at_high > 0) & np.isfinite(at_high) & (high < 2 * FARTHEST)).any():
        low, at_low = np.where(short, high, low), np.where(short, at_high, at_low)
        high, step = np.where(short, high + step, high), 2 * step
        at_high = np.where(short, f(high), at_high)
    step = 2.0
    while (past := (at_low < 0) & (low > -FARTHEST)).any():
        high, at_high = np.where(past, low, high), np.where(past, at_low, at_high)
        low, step = np.where(past, low - step, low), 2 * step
        at_low = np.where(past, f(low), at_low)
    lost, side, x = ~(at_high <= 0), np.zeros(len(start)), high
    with np.errstate(invalid="ignore"):
        for _ in range(_TURNS):
            line = (low * at_high - high * at_low) / (at_high - at_low)
            moved = np.where(np.isfinite(line), line, (low + high) / 2)
            value, change, x = f(moved), np.abs(moved - x), moved
            over = value > 0
            at_high = np.where(over, np.where(side > 0, at_high / 2, at_high), value)
            at_low = np.where(over, value, np.where(side < 0, at_low / 2, at_low))
            low, high, side = np.where(over, moved, low), np.where(over, high, moved), np.where(over, 1.0, -1.0)
            if ((change < _AGREED) | (value == 0) | lost).all():
                break
    return np.asarray(np.where(lost, np.inf, x))
