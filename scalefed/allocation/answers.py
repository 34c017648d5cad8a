"""What goes into an answer? The parameters asked of a fit, intervals, pass@k through a link, and notes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalefed.allocation import optimum
from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.cost import cost_of
from scalefed.allocation.mixture import mixed
from scalefed.allocation.optimum import Optimum, Solution
from scalefed.downstream.curve import PLAIN, Curve
from scalefed.downstream.link import Link
from scalefed.downstream.link import inverse as link_inverse
from scalefed.errors import FitError
from scalefed.laws import Law

Array = NDArray[np.float64]

_TURNS = 60
_AGREED = 1e-10
_LEVEL = 0.95
WIDEST = 10.0  # high over low end of a size's interval that is still an answer
ALIKE = 0.1  # two counts of compute that differ by less are told as one


class FitLike(Protocol):
    """What planning needs of a fit; an attribute ``link`` (a Link or None) is used where there is one."""

    @property
    def law(self) -> Law:
        """The fitted law."""

    @property
    def params(self) -> Mapping[str, float]:
        """Its free parameters."""

    @property
    def replicates(self) -> pd.DataFrame:
        """One row a bootstrap replicate, one column a free parameter."""

    @property
    def runs(self) -> pd.DataFrame:
        """The runs behind the fit."""

    @property
    def undetermined(self) -> str:
        """Why these runs cannot determine the law, with the runs that would help; empty where they can."""


def must_be_determined(fit: FitLike, what: str) -> None:
    """Refuse to answer from runs that leave the law open.

    Raises:
        FitError: with the reason, and the runs that would help.
    """
    if fit.undetermined:
        raise FitError(f"these runs cannot determine {what}. {fit.undetermined}")


def must_be_narrow(fit: FitLike, sizes: Array, what: str) -> None:
    """Refuse a size that the runs leave open by more than a factor of ten.

    Args:
        fit: the fit.
        sizes: (1 + b,) best sizes: the estimate, then its replicates.
        what: the quantity, in words.

    Raises:
        FitError: with the interval, the reason, and the runs that would help.
    """
    low, high = optimum.ends(sizes[:, None], _LEVEL)
    if not high[0] > WIDEST * low[0]:
        return
    ends = f"{low[0]:.3g} to {high[0]:.3g} parameters"
    why = getattr(fit, "loose", "") or "It lies too far from the runs, or they are too few or too noisy."
    raise FitError(
        f"these runs cannot tell {what}: its {_LEVEL:.0%} interval, {ends}, is wider than a factor of {WIDEST:g}. "
        f"{why} Runs nearer to the question settle it: a few sizes at two or more times the largest compute, or those "
        "that next_runs (scalefed next) chooses"
    )


def report(fit: FitLike, found: Solution, setting: Setting, notes: tuple[str, ...], level: float) -> Optimum:
    """The best run with intervals, pass@k where there is a link, and what to keep in mind."""
    here = optimum.columns_at(fit.law, found, setting)
    losses = mixed(fit, lambda law, values: law.predict(values, here))
    best = optimum.summarise(fit.law, losses, found, level=level)
    must_be_narrow(fit, found.params, f"the best size at {best.compute:.3g} FLOPs")
    best = replace(best, target=str(getattr(fit, "target", "loss")))
    best = replace(best, notes=(*best.notes, *notes, *_exact(fit.runs, setting, best), *_distance(fit.runs, best)))
    if (predict := getattr(fit, "predict", None)) is not None:
        band = predict(level=level, **here).iloc[0]
        best = replace(best, loss_low=float(band["low"]), loss_high=float(band["high"]))
    link = getattr(fit, "link", None)
    return best if link is None else _with_link(link, losses, here, best)


def _with_link(link: Link, losses: Array, here: Mapping[str, float], best: Optimum) -> Optimum:
    """Pass@k at the best run: every link replicate at the loss of a law replicate."""
    ks = (1, 10, 100)
    paired = losses[1:] if len(losses) > 1 else losses
    paired = np.resize(paired, len(link.replicates))[:, None]
    draws = link.draw(paired, ks, covariates=here)[:, 0, :]
    point = link.predict(best.loss, ks, covariates=here)["estimate"].to_numpy(float)
    low, high = np.quantile(draws, [(1 - best.level) / 2, (1 + best.level) / 2], axis=0)
    table = {
        k: (float(p), min(float(a), float(p)), max(float(b), float(p)))
        for k, p, a, b in zip(ks, point, low, high, strict=True)
    }
    one = table[1]
    return replace(best, pass_at_k=table, pass_at_1=one[0], pass_at_1_low=one[1], pass_at_1_high=one[2])


def least_for_passes(
    link: Link, law: Law, values: Mapping[str, Array], share: float, k: int, budget: Budget, setting: Setting
) -> Solution:
    """The least compute for a loss that solves this share of the problems.

    Where the link looks at columns beside the loss, the loss wanted depends on the run that reaches it: both are found
    in turn, from the middle of the runs, until they agree.
    """
    rows = len(next(iter(values.values())))
    curves = stacked_curves(link, rows)
    plain = replace(curves, theta=curves.theta[:, :PLAIN], covariates=None)
    spent = np.ones(rows)
    for turn in range(_TURNS):
        try:
            goal = link_inverse(plain, share, k)
        except FitError:
            if turn == 0:
                raise
            break
        found = optimum.least_compute(law, values, loss=goal, budget=budget, setting=setting)
        reached = np.isfinite(found.compute)
        moved, spent = np.log(found.compute[reached] / spent[reached]), found.compute
        if curves.covariates is None or not reached[0] or np.abs(moved).max() < _AGREED:
            return found
        here = optimum.columns_of(law, setting, found.params, found.tokens, found.rounds, found.local_steps)
        offset = curves.offset({name: np.reshape(value, (-1, 1)) for name, value in here.items()})
        plain = replace(plain, theta=np.hstack([curves.theta[:, :1] + offset, plain.theta[:, 1:]]))
    raise FitError(
        f"no run agrees with the loss that pass@{k} = {share:g} needs: size and tokens count for more beside the loss "
        "than the loss itself; fit the link without them"
    )


def stacked_curves(link: Link, rows: int) -> Curve:
    """The link's estimate, then its replicates, as many as there are rows."""
    others = np.resize(link.replicates.theta, (rows - 1, link.replicates.theta.shape[1]))
    return replace(link.curve, theta=np.concatenate([link.curve.theta, others]))


def attached_link(fit: FitLike) -> Link:
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


def _exact(runs: pd.DataFrame, setting: Setting, best: Optimum) -> tuple[str, ...]:
    """What the answer costs with output layer and attention counted, where the runs tell that and it differs."""
    if "compute_exact" not in runs or not best.params > 0:
        return ()
    try:
        ratio = cost_of(runs, "compute_exact").per_token(best.params) / setting.per_token(best.params)
    except FitError:
        return ()
    if abs(ratio - 1) < ALIKE:
        return ()
    return (f"with output layer and attention counted (compute_exact) this run takes {ratio:.2g} times its compute",)


def _distance(runs: pd.DataFrame, best: Optimum) -> tuple[str, ...]:
    """How far beyond the runs the answer lies."""
    notes = []
    for name in ("params", "tokens"):
        if name in runs and len(runs):
            seen = runs[name].to_numpy(dtype=np.float64)
            value, low, high = getattr(best, name), float(np.nanmin(seen)), float(np.nanmax(seen))
            if value > 1.001 * high:
                notes.append(f"{name} {value:.3g} is {value / high:.2g} times the largest of the runs ({high:.3g})")
            elif value < 0.999 * low:
                notes.append(f"{name} {value:.3g} is below the smallest of the runs ({low:.3g})")
    return tuple(notes)
