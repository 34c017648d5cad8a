"""How far off may an answer be beyond the runs in one column? As far as the law fitted without its farthest runs says.

The runs that lie farthest along a column, such as those of the most clients per round, are held out and the law is
fitted to the others. Where a question lies beyond all runs in that column, what the two fits differ by there is a
standard deviation of the answer, besides those that it has anyway.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefed.allocation.extrapolation import Ranges, column_of
from scalefed.allocation.optimum import Optimum, Solution
from scalefed.errors import FitError
from scalefed.laws import Law
from scalefed.units import grouped

Array = NDArray[np.float64]

RAMP = 0.1  # decades, or share of the range, beyond the runs over which it comes in: no step at their edge
_USUAL = 0.95  # coverage of the interval that decides whether there is an answer


@dataclass(frozen=True, slots=True)
class ColumnTest:
    """A law fitted without the runs that lie farthest along a column.

    Attributes:
        column: the column.
        params: every free parameter without those runs.
    """

    column: str
    params: Mapping[str, float]

    def values(self) -> dict[str, Array]:
        """Parameter -> (1,)."""
        return {name: np.array([value]) for name, value in self.params.items()}


def tests_of(fit: Any) -> tuple[ColumnTest, ...]:
    """The tests that a fit keeps; none where it keeps none."""
    return tuple(getattr(fit, "column_tests", ()))


def beyond(
    law: Law, ranges: Ranges, tests: tuple[ColumnTest, ...], given: Mapping[str, Any]
) -> list[tuple[ColumnTest, Array]]:
    """The tests of the columns in which a question lies outside the runs, each with its weight from 0 to 1.

    Args:
        law: the law.
        ranges: what its runs had.
        tests: of its columns.
        given: column -> a number or numbers of the question.
    """
    found = []
    for test in tests:
        if test.column in given:
            column = column_of(test.column, ranges, law)
            away = np.vectorize(column.beyond, otypes=[float])(np.asarray(given[test.column], dtype=float))
            if np.any(away > 0):
                found.append((test, np.minimum(away / RAMP, 1.0)))
    return found


def loss_error(
    law: Law, params: Mapping[str, float], ranges: Ranges, tests: tuple[ColumnTest, ...], columns: Mapping[str, Array]
) -> Array:
    """Standard deviation of log loss at runs, by what the tests of their columns differ there; 0 inside the runs."""
    here = law.predict(params, columns)
    variance = np.zeros(np.shape(here))
    for test, weight in beyond(law, ranges, tests, columns):
        variance = variance + (weight * np.log(law.predict(test.params, columns) / here)) ** 2
    return np.asarray(np.sqrt(variance))


def size_errors(
    tests: list[tuple[ColumnTest, Array]], found: Solution, solve: Callable[[Mapping[str, Array]], Solution]
) -> dict[str, Array]:
    """Standard deviations of log params, tokens and rounds.

    Args:
        tests: as :func:`beyond` gives them.
        found: the answer, the estimate in its first row.
        solve: the question for other parameters of the same law.
    """
    errors = {name: np.zeros_like(getattr(found, name)[0]) for name in ("params", "tokens", "rounds")}
    for test, weight in tests:
        other = solve(test.values())
        for name in errors:
            there = np.where(other.bounded[0], getattr(other, name)[0], np.inf)
            errors[name] = np.hypot(errors[name], weight * np.log(there / getattr(found, name)[0]))
    return errors


def stretched(value: Any, low: Any, high: Any, error: Any, deviations: float) -> tuple[Any, Any]:
    """An interval that holds so many standard deviations of log value besides what it held."""
    down, up = (np.hypot(np.log(value / low), deviations * error), np.hypot(np.log(high / value), deviations * error))
    return value * np.exp(-down), value * np.exp(up)


def widened(
    best: Optimum, errors: Mapping[str, Array], tests: list[tuple[ColumnTest, Array]], widest: float
) -> Optimum:
    """The answer with wider intervals.

    Args:
        best: the answer.
        errors: as :func:`size_errors` gives them.
        tests: of the columns in which it lies outside the runs.
        widest: high over low end of a size's interval that is still an answer.

    Raises:
        FitError: the size is left open.
    """
    from scipy.special import ndtri

    if not np.isfinite(best.params_low):
        return best
    deviations, usual = float(ndtri((1 + best.level) / 2)), float(ndtri((1 + _USUAL) / 2))
    changes: dict[str, Any] = {}
    for name, error in errors.items():
        value, low, high = (getattr(best, f"{name}{end}") for end in ("", "_low", "_high"))
        low, high = stretched(value, low, high, error, deviations)
        changes |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    if not usual / deviations * np.log(changes["params_high"] / changes["params_low"]) <= np.log(widest):
        raise too_far([test for test, _ in tests], changes["params_low"], changes["params_high"], widest)
    return replace(best, **changes)


def too_far(tests: list[ColumnTest], low: float, high: float, widest: float) -> FitError:
    """Why there is no best size between these two."""
    columns = " and ".join(test.column for test in tests)
    return FitError(
        f"these runs cannot tell the best size so far beyond their {columns}: fitted without the farthest of them, the "
        f"law says another one, and the interval, {grouped(low)} to {grouped(high)} parameters, is wider than a factor "
        f"of {widest:g}. Add runs nearer to the question in {columns}"
    )
