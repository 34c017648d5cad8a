"""What do several laws fitted to the same runs say together? Replicates of each, as many as its weight asks for.

The estimate is that of the fit's own law. An interval runs over a weighted mixture: parameter error within each law and
the disagreement between laws are both in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalefed.allocation import optimum
from scalefed.allocation.optimum import Solution
from scalefed.laws import Law
from scalefed.laws.law import InsideExponentError

Array = NDArray[np.float64]
Answer = TypeVar("Answer", Array, Solution)
_ALIKE = 1e-5  # log sizes that differ by less are held by a limit


class Fitted(Protocol):
    """A law with its parameters and their replicates."""

    @property
    def law(self) -> Law:
        """The fitted law."""

    @property
    def params(self) -> Mapping[str, float]:
        """Its parameters."""

    @property
    def replicates(self) -> pd.DataFrame:
        """One row a bootstrap replicate, one column a free parameter."""


def values_of(fit: Fitted) -> dict[str, Array]:
    """Parameter -> (1 + b,): the estimate first, then the bootstrap replicates."""
    table = fit.replicates.to_numpy(dtype=float)
    return optimum.stack(fit.law, fit.params, {str(name): table[:, i] for i, name in enumerate(fit.replicates.columns)})


def shares(fit: Fitted) -> list[tuple[Fitted, NDArray[np.intp]]]:
    """Each law with the rows of its values that the mixture takes: the first law's estimate, then replicates.

    There are as many rows as the fit has replicates; another law with fewer than its share lends them again.
    """
    if not fit.law.free:
        return [(fit, np.arange(1))]
    count = len(fit.replicates)
    others = [(one, round(one.weight * count)) for one in getattr(fit, "alternatives", ()) if len(one.replicates)]
    taken = sum(number for _, number in others)
    if not taken:
        return [(fit, np.arange(1 + count))]
    rows = [(one, 1 + np.arange(number) % len(one.replicates)) for one, number in others if number]
    return [(fit, np.arange(1 + count - taken)), *rows]


def mixed(fit: Fitted, ask: Callable[[Law, dict[str, Array]], Answer]) -> Answer:
    """What the laws answer, rows on the first axis: the estimate of the fit's own law, then the mixture's replicates.

    Args:
        fit: a fit, with its ``alternatives`` where it has some.
        ask: from a law and its values, as :func:`values_of` gives them, to an answer with a row for each.
    """
    laws: list[tuple[Fitted, NDArray[np.intp]]] = shares(fit)
    first: Answer = ask(fit.law, values_of(fit))
    if len(laws) == 1:
        return first
    found = [_taken(first, laws[0][1])]
    for one, rows in laws[1:]:
        try:
            found.append(_taken(ask(one.law, values_of(one)), rows))
        except InsideExponentError:  # a rival that knows no budgets: the law's own replicates in its place
            found.append(_taken(first, 1 + np.arange(len(rows)) % len(fit.replicates)))
    whole: Answer = _joined(found)
    return whole


def _taken(answer: Any, rows: NDArray[np.intp]) -> Any:
    if isinstance(answer, Mapping):
        return {name: values[rows] for name, values in answer.items()}
    if isinstance(answer, Solution):
        return Solution(**{item.name: _taken(getattr(answer, item.name), rows) for item in fields(answer)})
    return answer[rows]


def _joined(answers: list[Any]) -> Any:
    if isinstance(answers[0], Mapping):
        return {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}
    if isinstance(answers[0], Solution):
        names = [item.name for item in fields(answers[0])]
        return Solution(**{name: _joined([getattr(one, name) for one in answers]) for name in names})
    return np.concatenate(answers)


def with_law_error(fit: Fitted, found: Solution) -> Solution:
    """The replicates spread further by the law's own error of the best size; what size gains at a budget, tokens lose.

    Args:
        fit: a fit, with a ``size_error`` where it has one.
        found: (1 + b, ...) the estimate, then replicates.
    """
    factor = law_error(fit, found.params, found.tokens)
    trades = np.ptp(np.log(found.tokens), axis=0) > _ALIKE
    length = np.where(trades, factor, 1.0)
    return replace(found, params=found.params * factor, tokens=found.tokens / length, rounds=found.rounds / length)


def law_error(fit: Fitted, params: Array, tokens: Array) -> Array:
    """What spreads the replicates of best sizes further, so that their ends hold the law's own error too: (1 + b, ...).

    A replicate's distance from the estimate grows in log size so that an end lies where both errors together put it: at
    the square root of a sum of squares. A size that a limit holds, the same in all replicates, stays.

    Args:
        fit: a fit, with a ``size_error`` where it has one.
        params: (1 + b, ...) the estimate, then replicates.
        tokens: of the same shape.
    """
    error = getattr(fit, "size_error", None)
    if error is None or len(params) < 2:
        return np.ones_like(params)
    with np.errstate(all="ignore"):
        spread = np.broadcast_to(error(params[0].ravel(), tokens[0].ravel()), (2, params[0].size))
        down, up = spread.reshape(2, *params.shape[1:])
        return spread_further(np.log(params), down, up, least=_ALIKE)


def spread_further(logs: Array, down: Array, up: Array, *, least: float) -> Array:
    """Factors by which replicates move so that their ends hold a further error too, (1 + b, ...): 1 for the estimate.

    Args:
        logs: (1 + b, ...) logarithms of the estimate, then of the replicates.
        down: (...) standard deviation of the further error below the middle, in logarithms.
        up: the same above it.
        least: replicates that span no more than this stay.
    """
    from scipy.special import ndtri

    with np.errstate(all="ignore"):
        moved = logs[1:] - logs[:1]
        ranks = np.argsort(np.argsort(moved, axis=0, kind="stable"), axis=0, kind="stable")
        normal = ndtri((ranks + 0.5) / len(moved))
        further = np.hypot(moved, normal * np.where(normal < 0, down, up)) - np.abs(moved)
        further = np.where((np.ptp(moved, axis=0) > least) & np.isfinite(further), np.sign(normal) * further, 0.0)
    return np.concatenate([np.ones_like(logs[:1]), np.exp(further)])
