"""What does a training token cost in these runs, as a function of the model's size?

6 params FLOPs, unless the runs say otherwise: a table that counts its compute with the output layer, attention,
embeddings or experts has it in its column ``compute``, and a budget is then counted as the table counts. The relation
is a sum of powers of params with coefficients from 0 up, so that the best size stays a geometric program: an output
layer of a width is a power of 1/3, attention over a context one of 2/3, a fixed embedding one of 0.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scalefed.errors import ConfigError, DataError, FitError
from scalefed.laws import Law
from scalefed.runs.tables import likely_columns
from scalefed.units import grouped, train_flops

Array = NDArray[np.float64]

_EQUAL = 0.01  # compute this near to 6 params tokens is that: tables round to three digits
_NOTED = 0.03  # scatter of the relation that is told
_OTHER_UNIT = (1e-3, 1e4)  # times 6 params tokens: sparse experts are above, tables of embeddings below
_NO_RELATION = 0.35  # scatter from which compute says nothing of params and tokens: it mixes a factor of two
# powers of size that FLOPs a token may be sums of: 6N; layers of width N^(1/3); decoder with attention
_BASES = ((0.0, 1.0), (1 / 3, 1.0), (0.0, 1 / 3, 1 / 2, 2 / 3, 1.0))
_NO_WORSE = 1.1  # scatter of a simpler relation, over the least, at which it is taken
_TURNS = 10  # reweightings, each nearer to least absolute errors
_NORMAL = 1.645  # standard deviations that hold 90% of a normal distribution
_MOST = 0.9  # share of the runs that the scatter is told of: single rows may be wrong


@dataclass(frozen=True, slots=True)
class PowerSum:
    """``sum_i coefficient_i params ^ exponent_i``, such as the FLOPs of a token or the parameters with embeddings.

    Attributes:
        coefficients: positive.
        exponents: as many.
        scatter: of the runs about it, standard deviation of logarithms, one in ten runs left aside.
    """

    coefficients: tuple[float, ...]
    exponents: tuple[float, ...]
    scatter: float = 0.0

    def __call__(self, params: Any) -> Any:
        """Its value at params, a number or an array."""
        size = np.asarray(params, dtype=float)
        total = sum(k * size**e for k, e in zip(self.coefficients, self.exponents, strict=True))
        return float(total) if np.ndim(total) == 0 else total

    @property
    def is_power(self) -> bool:
        """Whether it is one power of params."""
        return len(self.coefficients) == 1


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of a training token by size, with a sentence on where that comes from; empty for 6 params."""

    per_token: PowerSum
    note: str = ""


SIX_PARAMS = Cost(PowerSum((float(train_flops(1, 1)),), (1.0,)))


def power_sum(params: ArrayLike, values: ArrayLike) -> PowerSum:
    """The sum of few powers of params nearest to the values, in relative terms; outliers pull no more than others.

    Args:
        params: (n,) positive.
        values: (n,) positive.

    >>> size = np.geomspace(1e6, 1e9, 7)
    >>> found = power_sum(size, 6 * (size + 3e7))
    >>> [round(k, 3) for k in found.coefficients], found.exponents
    ([180000000.0, 6.0], (0.0, 1.0))
    """
    size, wanted = np.asarray(params, dtype=float), np.asarray(values, dtype=float)
    several = len(np.unique(np.round(np.log(size), 3)))
    tried = [_nearest(size, wanted, (1.0,))]
    if several > 1:
        slope = float(np.polyfit(np.log(size), np.log(wanted), 1)[0])
        tried += [_nearest(size, wanted, base) for base in ((slope,), *_BASES) if len(base) <= several]
    least = max(min(one.scatter for one in tried), _EQUAL / _NO_WORSE)
    return next(one for one in tried if one.scatter <= least * _NO_WORSE)


def cost_of(runs: pd.DataFrame, axis: str = "compute") -> Cost:
    """What a token costs in these runs: 6 params, or as their own column of compute has it.

    Args:
        runs: with params and tokens; without the column, or where it is 6 params tokens, that is the answer.
        axis: the column, ``compute`` or ``compute_exact``.

    Raises:
        FitError: the column is counted in something else than FLOPs, or does not follow from params and tokens.
    """
    if not {"params", "tokens", axis} <= set(runs.columns):
        return _of_size(runs, axis)
    size, tokens, compute, known = _counts(runs, axis)
    ratio = (compute / train_flops(size, tokens))[known]
    if not known.any() or np.abs(ratio - 1).max() < _EQUAL:
        return _of_size(runs, axis)
    found = power_sum(size[known], (compute / tokens)[known])
    low, high = np.quantile(ratio, [(1 - _MOST) / 2, (1 + _MOST) / 2])
    between = f"{grouped(low, 2)} to {grouped(high, 2)}" if high > (1 + _EQUAL) * low else f"{grouped(low, 2)}"
    if not _OTHER_UNIT[0] < np.median(ratio) < _OTHER_UNIT[1]:
        raise FitError(
            f"the runs' {axis} is {between} times 6 params tokens, so it is not in FLOPs (PF-days, GPU hours?): write "
            "FLOPs, say how it is counted, flops='6*params*tokens', or leave the column out"
        )
    if found.scatter > _NO_RELATION:
        raise FitError(
            f"the runs' {axis} is {between} times 6 params tokens and does not follow from params and tokens (scatter "
            f"{found.scatter:.0%}); say how it is counted, flops='6*params*tokens', or leave the column out"
        )
    words = f"compute is counted as in the runs' {axis}, {between} times 6 params tokens there"
    if found.scatter > _NOTED:
        words += f", with a scatter of {found.scatter:.0%}"
    off = np.abs(np.log(np.asarray(found(size[known])) / (compute / tokens)[known])) > _NO_RELATION
    if off.any():
        words += f"; {int(off.sum())} of {len(off)} runs differ from that by more than 40%"
    return Cost(found, words)


def _counts(runs: pd.DataFrame, axis: str) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """Params, tokens, a column of compute, and where all of them are known."""
    size, tokens, compute = (runs[name].to_numpy(dtype=float, na_value=np.nan) for name in ("params", "tokens", axis))
    return size, tokens, compute, np.isfinite(size * tokens * compute) & (size > 0) & (tokens > 0) & (compute > 0)


def _of_size(runs: pd.DataFrame, axis: str) -> Cost:
    """6 params, and what is to be said of a column that looks like one of compute and is not named so."""
    other = likely_columns([name for name in runs.columns if name != axis], [axis]).get(axis)
    if other is None or not {"params", "tokens"} <= set(runs.columns) or not pd.api.types.is_numeric_dtype(runs[other]):
        return SIX_PARAMS
    size, tokens, compute, known = _counts(runs, other)
    if not known.any() or np.abs(compute / train_flops(size, tokens) - 1)[known].max() < _EQUAL:
        return SIX_PARAMS
    times = grouped(float(np.median((compute / train_flops(size, tokens))[known])), 2)
    words = f"compute is 6 params tokens; the runs' {other!r}, {times} times that, is not used: if it is their compute"
    return Cost(SIX_PARAMS.per_token, words + f", fit with columns={{{axis!r}: {other!r}}}")


def cost_from(formula: str) -> Cost:
    """What a token costs by a formula in params and tokens.

    Args:
        formula: FLOPs of a run, each term with tokens to the power 1: ``6*params*tokens + 2e8*tokens``.

    Raises:
        ConfigError: it cannot be read, or is no such sum.

    >>> cost_from("6*params*tokens + 12*params^0.5*tokens").per_token(100.0)
    720.0
    """
    law = Law.parse(formula, name="flops")
    if law.free:
        raise ConfigError(f"flops={formula!r} has the unknown {law.free[0]!r}; write numbers, params and tokens only")
    try:
        terms = law.monomials({})
    except (ConfigError, DataError) as error:
        raise ConfigError(f"flops={formula!r} is no sum of powers of params and tokens") from error
    for term in terms:
        known = not term.groups and not term.repeated and set(term.exponents) <= {"params", "tokens"}
        if not known or abs(float(term.exponents.get("tokens", np.zeros(()))) - 1) > 1e-12:
            raise ConfigError(
                f"flops={formula!r} must be a sum of terms such as 6*params*tokens, each with tokens once"
            )
    coefficients = tuple(float(np.exp(term.log_coefficient)) for term in terms)
    exponents = tuple(float(term.exponents.get("params", np.zeros(()))) for term in terms)
    return Cost(PowerSum(coefficients, exponents), f"compute is counted as {formula}")


def spent(runs: pd.DataFrame, planned: pd.DataFrame | None = None) -> Array:
    """Training FLOPs of runs that are planned, counted as the runs that were made count theirs.

    Args:
        runs: those that were made.
        planned: params and tokens of the others; None for the runs themselves, by size and tokens.

    Raises:
        FitError: as :func:`cost_of`.
    """
    table = runs if planned is None else planned
    params, tokens = (table[name].to_numpy(dtype=np.float64) for name in ("params", "tokens"))
    return np.asarray(cost_of(runs).per_token(params) * tokens, dtype=np.float64)


# ---------------------------------------------------------------------- helpers
def _nearest(size: Array, wanted: Array, base: tuple[float, ...]) -> PowerSum:
    """Least squares of relative errors with coefficients from 0 up, reweighted towards least absolute errors."""
    from scipy.optimize import nnls

    powers = np.stack([(size / size.max()) ** e for e in base], axis=1) / wanted[:, None]
    scale = np.linalg.norm(powers, axis=0)
    weights = np.ones(len(size))
    found = np.zeros(len(base))
    for _ in range(_TURNS):
        found = nnls(powers / scale * weights[:, None], weights)[0] / scale
        misses = np.abs(powers @ found - 1)
        weights = 1 / np.sqrt(np.maximum(misses, np.median(misses) + 1e-9))
    kept = [place for place, value in enumerate(found) if value > 0]
    coefficients = tuple(float(found[place] / size.max() ** base[place]) for place in kept)
    result = PowerSum(coefficients, tuple(base[place] for place in kept))
    logs = np.log(np.asarray(result(size)) / wanted)
    spread = float(np.quantile(np.abs(logs), _MOST)) / _NORMAL
    return PowerSum(result.coefficients, result.exponents, spread)
