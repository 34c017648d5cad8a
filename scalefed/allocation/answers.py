"""What goes into an answer? The parameters asked of a fit, intervals, pass@k through a link, and notes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scalefed.allocation import optimum
from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.column_tests import beyond as beyond_tests
from scalefed.allocation.column_tests import size_errors, tests_of
from scalefed.allocation.column_tests import widened as widened_by_tests
from scalefed.allocation.cost import cost_of
from scalefed.allocation.defaults import columns_and_texts
from scalefed.allocation.extrapolation import SLACK, look, ranges_behind
from scalefed.allocation.mixture import Fitted, mixed, with_law_error
from scalefed.allocation.optimum import Optimum, Solution
from scalefed.allocation.passes import with_loss_error, with_passes
from scalefed.allocation.repeats import PRICED, repeats_of, widened
from scalefed.errors import FitError
from scalefed.units import grouped

Array = NDArray[np.float64]

_LEVEL = 0.95  # that an answer is refused at, whatever level it is asked to show: the usual one
WIDEST = 10.0  # high over low end of a size's interval that is still an answer
ALIKE = 0.1  # two counts of compute that differ by less are told as one


class FitLike(Fitted, Protocol):
    """What planning needs of a fit; an attribute ``link`` (a Link or None) is used where there is one."""

    @property
    def runs(self) -> pd.DataFrame:
        """The runs behind the fit."""

    @property
    def undetermined(self) -> str:
        """Why these runs cannot determine the law, with the runs that would help; empty where they can."""


def given_of(fit: FitLike) -> str:
    """The laws that the intervals of a fit's answers are conditional on, in words."""
    return str(getattr(fit, "given", fit.law.name))


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
    ends = f"{grouped(low[0])} to {grouped(high[0])} parameters"
    why = getattr(fit, "loose", "") or "It lies too far from the runs, or they are too few or too noisy."
    raise FitError(
        f"these runs cannot tell {what}: its {_LEVEL:.0%} interval, {ends}, is wider than a factor of {WIDEST:g}. "
        f"{why} Runs nearer to the question settle it: a few sizes at two or more times the largest compute, or those "
        "that next_runs (scalefed next) chooses"
    )


def report(fit: FitLike, found: Solution, setting: Setting, notes: tuple[str, ...], level: float) -> Optimum:
    """The best run with intervals, pass@k where there is a link, and what to keep in mind."""
    here, own = optimum.columns_at(fit.law, found, setting), found.params
    found = with_law_error(fit, found)
    losses = mixed(fit, lambda law, values: law.predict(values, here))
    best = optimum.summarise(fit.law, losses, found, level=level, given=given_of(fit))
    must_be_narrow(fit, found.params, f"the best size at {grouped(best.compute)} FLOPs")
    regret = best.regret * _farther(own, found.params, level) ** 2  # near its least a loss is a parabola in log size
    best = replace(best, target=str(getattr(fit, "target", "loss")), regret=regret)
    far = distance(fit.runs, {"params": best.params, "tokens": best.tokens})
    best = replace(best, notes=(*best.notes, *notes, *_exact(fit.runs, setting, best), *far))
    low, high = _band(fit, here, level)
    if np.isfinite(low):
        best = replace(best, loss_low=low, loss_high=high)
    link = getattr(fit, "link", None)
    return best if link is None else with_passes(link, with_loss_error(fit, losses, here), here, best)


def _farther(own: Array, spread: Array, level: float) -> float:
    """How many times farther from the estimate (row 0) the replicates lie in log size after the law's own error."""
    if len(own) < 2:
        return 1.0
    before, after = (float(np.quantile(np.abs(np.log(sizes[1:] / sizes[0])), level)) for sizes in (own, spread))
    return after / before if np.isfinite(after) and after > before > 0 else 1.0


def against_runs(fit: FitLike, best: Optimum, setting: Setting, words: Mapping[str, Any]) -> Optimum:
    """The answer with what it assumes wherever its question lies outside the runs, and how far outside.

    Args:
        fit: the fit that answered.
        best: its answer.
        setting: what was held fixed.
        words: the question as it was put.

    Raises:
        FitError: the law needs a column of which the runs had one other value only.
    """
    asked = asked_of(fit, setting, words, params=best.params, tokens=best.tokens, local_steps=best.local_steps)
    notes, beyond = look(fit.law, ranges_behind(fit), asked, said_in(words), [test.column for test in tests_of(fit)])
    return replace(best, notes=(*best.notes, *notes), extrapolation={**best.extrapolation, **beyond})


def with_tests(
    fit: FitLike, best: Optimum, found: Solution, setting: Setting, solve: Callable[[Mapping[str, Array]], Solution]
) -> Optimum:
    """The answer with intervals as wide as the tests of the columns ask in which the question lies outside the runs.

    Args:
        fit: the fit that answered.
        best: its answer.
        found: its solution.
        setting: what was held fixed.
        solve: the question for other parameters of the fit's law.

    Raises:
        FitError: the size is left open by more than a factor of ten.
    """
    tests = beyond_tests(fit.law, ranges_behind(fit), tests_of(fit), setting.given())
    return widened_by_tests(best, size_errors(tests, found, solve), tests, WIDEST) if tests else best


def with_repeats(
    fit: FitLike,
    best: Optimum,
    solve: Callable[[Budget], Solution],
    *,
    budget: Budget,
    setting: Setting,
    said: bool,
) -> tuple[Optimum, Solution | None]:
    """The answer with what it says where it reads text more often than the runs did, which the law takes for fresh.

    Args:
        fit: the fit that answered.
        best: its answer.
        solve: the question at other limits.
        budget: its limits.
        setting: what was held fixed.
        said: whether the question names the different tokens.

    Returns:
        The answer, and the solution where text read again teaches nothing; None where that makes no difference.

    Raises:
        FitError: what repeats are worth decides the answer.
    """
    found = repeats_of(fit.law, ranges_behind(fit), budget, setting, np.asarray(best.tokens))
    if found is None:
        return best, None
    once = None
    if found.beyond:
        once = solve(found.once(budget))
        if not np.isfinite(once.compute[0]):
            raise found.refusal(best.params, np.inf)
        least = np.minimum(best.tokens, found.unique * found.seen)
        run = replace(once, params=np.array([best.params]), tokens=np.array([least]))
        here = optimum.columns_at(fit.law, run, setting)
        best = widened(best, report(fit, once, setting, (), best.level), _band(fit, here, best.level)[1], found)
        if (link := getattr(fit, "link", None)) is not None:
            losses = with_loss_error(fit, mixed(fit, lambda law, values: law.predict(values, here)), here)
            best = _lower_passes(best, with_passes(link, losses, here, replace(best, loss=float(losses[0]))))
        best = replace(best, extrapolation={"epochs": found.beyond})
    note = found.note(said=said)
    return replace(best, notes=(*best.notes, *([note] if note else []))), once


def _lower_passes(best: Optimum, other: Optimum) -> Optimum:
    """The answer with pass@k down to the lower ends of another."""
    table = {k: (p, min(low, other.pass_at_k[k][1]), high) for k, (p, low, high) in best.pass_at_k.items()}
    return replace(best, pass_at_k=table, pass_at_1_low=table[1][1])


def asked_of(
    fit: FitLike, setting: Setting, words: Mapping[str, Any], *, params: Any, tokens: Any, local_steps: Any
) -> dict[str, Any]:
    """Column -> its value, or values, in a question and its answer: what is held against the runs."""
    given: dict[str, Any] = {"params": params, "tokens": tokens, **setting.given()}
    given.setdefault("local_steps", local_steps)
    if "unique_tokens" in given and PRICED & set(fit.law.columns):
        given["epochs"] = tokens / given["unique_tokens"]
    elif "unique_tokens" not in fit.law.columns:
        given.pop("unique_tokens", None)
    if words.get("trained_share") not in (None, 1):
        given["trained_share"] = words["trained_share"]
    return given | columns_and_texts(fit.law, fit.runs, words)[1]


def said_in(words: Mapping[str, Any]) -> set[str]:
    """The columns that a question names."""
    named = {*(name for name, value in words.items() if value is not None), *(words.get("columns") or {})}
    return named | ({"skew"} if "concentration" in named else set())


def _band(fit: FitLike, here: Mapping[str, float], level: float) -> tuple[float, float]:
    """The band of a run that is made; NaN where the fit has no predictions."""
    predicted = getattr(fit, "predicted", None)
    if predicted is None:
        return np.nan, np.nan
    band = predicted(level=level, **here).iloc[0]
    return float(band["low"]), float(band["high"])


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
    return (
        f"with output layer and attention counted (compute_exact) this run takes {grouped(ratio, 2)} times its compute",
    )


def distance(runs: pd.DataFrame, sizes: Mapping[str, ArrayLike]) -> tuple[str, ...]:
    """How far beyond the runs answers lie in params and tokens, in words; of several answers the farthest."""
    notes = []
    for name, values in sizes.items():
        if name in runs and len(runs):
            seen = runs[name].to_numpy(dtype=np.float64)
            low, high = float(np.nanmin(seen)), float(np.nanmax(seen))
            least, most = float(np.nanmin(values)), float(np.nanmax(values))
            if most > SLACK * high:
                times = f"{grouped(most / high, 2)} times the largest of the runs ({grouped(high)})"
                notes.append(f"{name} {grouped(most)} is {times}")
            if least < low / SLACK:
                notes.append(f"{name} {grouped(least)} is below the smallest of the runs ({grouped(low)})")
    return tuple(notes)
