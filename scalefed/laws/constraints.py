"""Can these parameters be fixed, bounded and shared like this? Every contradiction is refused with what to write."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from scalefed.errors import ConfigError, nearest
from scalefed.units import grouped

Bounds = dict[str, tuple[float | None, float | None]]


def constraints(
    name: str, parameters: Iterable[str], positive: frozenset[str], *, fixed: Any, bounds: Any, ties: Any
) -> tuple[dict[str, float], Bounds, dict[str, str]]:
    """What a law's parameters are held to, checked.

    Args:
        name: of the law, for messages.
        parameters: the law's parameters.
        positive: those that stand as bases.
        fixed: parameter -> number, or None.
        bounds: parameter -> (low, high), None for an open side; or None.
        ties: parameter -> the parameter whose value it takes; or None.

    Raises:
        ConfigError: no mapping, an unknown parameter, a value of the wrong kind or out of range, an empty interval, or
            two things said of one parameter that cannot both be.

    >>> constraints("x", ("A", "a"), frozenset("A"), fixed={"a": 1}, bounds=None, ties=None)
    ({'a': 1.0}, {}, {})
    """
    given = {"fixed": _mapping("fixed", fixed, "E", 1.8), "bounds": _mapping("bounds", bounds, "a", (0.1, 0.6)),
             "ties": _mapping("ties", ties, "b", "a")}  # fmt: skip
    known = tuple(parameters)
    for parameter in (*given["fixed"], *given["bounds"], *given["ties"], *given["ties"].values()):
        if parameter not in known:
            raise ConfigError(f"the law {name!r} has no parameter {parameter!r}; {nearest(str(parameter), known)}")
    numbers = {p: _fixed(p, value, p in positive) for p, value in given["fixed"].items()}
    intervals = {p: _interval(p, value) for p, value in given["bounds"].items()}
    for parameter, value in numbers.items():
        low, high = intervals.get(parameter, (None, None))
        if (low is not None and value < low) or (high is not None and value > high):
            raise ConfigError(
                f"{parameter} is fixed at {grouped(value, 6)}, outside its bounds ({low}, {high}); change one"
            )
    _check_ties(given["ties"], positive, {**numbers, **intervals})
    return numbers, intervals, given["ties"]


def _mapping(what: str, value: Any, parameter: str, example: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{what} is a mapping such as {{{parameter!r}: {example!r}}}, got {value!r}")
    return dict(value)


def _number(value: Any) -> float:
    """The number, or NaN for anything else."""
    try:
        return float("nan") if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        return float("nan")


def _fixed(parameter: str, value: Any, positive: bool) -> float:
    number = _number(value)
    if not np.isfinite(number) or (positive and number <= 0):
        kind = "a positive number" if positive else "a number"
        raise ConfigError(f"{parameter} can be fixed at {kind}, got {value!r}")
    return number


def _interval(parameter: str, value: Any) -> tuple[float | None, float | None]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else ()
    ends = tuple(None if end is None else _number(end) for end in pair)
    if len(ends) != 2 or any(end is not None and np.isnan(end) for end in ends):
        raise ConfigError(f"bounds of {parameter} must be (low, high), None for an open side, got {value!r}")
    low, high = ends
    if low is not None and high is not None and low >= high:
        raise ConfigError(
            f"bounds of {parameter} must be (low, high) with low < high, got ({grouped(low, 6)}, {grouped(high, 6)})"
        )
    return low, high


def _check_ties(ties: Mapping[str, str], positive: frozenset[str], held: Mapping[str, Any]) -> None:
    for parameter, other in ties.items():
        if (parameter in positive) != (other in positive):
            raise ConfigError(f"{parameter} and {other} cannot be shared: one is a factor, the other an exponent")
        if other in ties:
            raise ConfigError(f"{parameter} takes the value of {other}, which is shared itself; share both with one")
        if parameter in held:
            raise ConfigError(f"{parameter} takes the value of {other}; fix or bound {other} in its place")
