"""How sure is the mean of a population in [0, 1], of which some problems were drawn?

Each of M observed values gets a random weight, all weights together Dirichlet(1, ..., 1), and so does one value that
was not observed: 1 for the upper end, 0 for the lower. The upper end is the quantile of that weighted mean. It rises
with every value, mirrors when all values x become 1 - x, and where every value is 0 or 1 (one sample a problem) it is
the Clopper-Pearson end. Nothing is assumed of the population: the unseen value stands for problems too rare to be met.

Two things bring the coverage near its level instead of far above it:

* With probability :data:`UNSEEN_ALIKE` the unseen value is that of the other end, as in a mid-P interval; where less
  than one value's worth was seen, in proportion.
* A tail that cannot be missed is not paid for. M failing problems leave every rate below 1 - tail^(1/M) possible: no
  upper end is below it, so there the lower end has both tails to itself; likewise near 1.

Source: Gaffke 2005 (Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
variable); Learned-Miller and Thomas 2019 (arXiv 1905.06208); Rubin 1981 for the weights. The probability is that of a
weighted sum of gamma variables, by Gil-Pelaez's inversion (1951) of its characteristic function.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

UNSEEN_ALIKE = 0.25
"""Mid-P has 0.5, Clopper-Pearson 0. A quarter keeps the exact coverage of a 95% interval above 0.93 at every rate, for
1 to 40 problems and for 164 (0.28 is the most that does): ``tests/benchmarks/bench_passk_intervals.py exact``."""

_START = -10.0  # log frequency below which the integrand is its tangent: the error is the third power, e^-30
_COARSE = np.exp(np.arange(_START, 27.0, 0.25))  # M >= 1 values and the unseen one fall as frequency^-2: e^-54
_DEEP = 20.0  # e^-20: nothing of the integrand is left
_STEP, _TURN = 0.06, 2.0  # of log frequency and of phase (radians): error below 1e-7 for M to 10,000


def population_interval(values: Array, level: float) -> tuple[float, float]:
    """Ends of the interval for the mean of the population, from ``values`` (problems,) in [0, 1].

    >>> low, high = population_interval(np.array([0.0] * 39 + [1.0]), 0.95)
    >>> 0 < low < 1 / 40 < high < 0.14
    True
    """
    tail = (1 - level) / 2
    return 1 - _upper_end(1 - values, tail), _upper_end(values, tail)


def holds(values: Array, mean: float, level: float) -> bool:
    """Whether :func:`population_interval` holds a mean in (0, 1), in a twentieth of the time: its ends are not sought.

    >>> values = np.array([0.0] * 39 + [1.0])
    >>> low, high = population_interval(values, 0.95)
    >>> [holds(values, mean, 0.95) for mean in (low - 1e-6, low + 1e-6, high - 1e-6, high + 1e-6)]
    [False, True, True, False]
    """
    tail = (1 - level) / 2
    sides = ((values, mean), (1 - values, 1 - mean))
    return all(own.min() >= 1 or _excess(own, tail)(one) >= 0 for own, one in sides)


def _upper_end(values: Array, tail: float) -> float:
    """The mean that the weighted mean, the unseen value counted in, exceeds with the probability that may be spent."""
    from scipy.optimize import brentq

    if values.min() >= 1:
        return 1.0
    excess, edge = _excess(values, tail), 1e-12
    return float(brentq(excess, edge, 1 - edge, xtol=1e-12)) if excess(edge) > 0 else 0.0


def _excess(values: Array, tail: float) -> Callable[[float], float]:
    """The probability that the weighted mean exceeds a mean, less what may be spent there: it falls with the mean."""
    distinct, counts = np.unique(values, return_counts=True)
    weights = np.append(counts, 1.0)
    with_one, with_zero = np.append(distinct, 1.0), np.append(distinct, 0.0)
    alike = UNSEEN_ALIKE * min(1.0, float(values.sum()))

    def excess(mean: float) -> float:
        exceeded = (1 - alike) * exceeds(with_one, weights, mean) + alike * exceeds(with_zero, weights, mean)
        return exceeded - tail * (1 + _spare(mean, len(values), tail))

    return excess


def _spare(mean: float, size: int, tail: float) -> float:
    """How much of the other tail is free, in [0, 1]: all of it where all-passing problems are likely enough.

    It comes in steeply, and not at once, so that the end goes on rising with every success.
    """
    likely = mean**size / max(tail, (1 - mean) ** size)
    return min(max(likely**2 - 1, 0.0), 1.0)


def exceeds(values: Array, weights: Array, mean: float) -> float:
    """The probability that a mean of ``values`` under Dirichlet(``weights``) weights exceeds ``mean``.

    It is that of sum_j G_j (values_j - mean) > 0 with independent gamma G_j of shape weights_j, whose characteristic
    function is the product of (1 - i s d_j)^-weights_j: 1/2 + 1/pi times the integral of its sine part over log s.

    Args:
        values: (n,) any numbers.
        weights: (n,) positive.
        mean: the number to exceed.

    >>> round(exceeds(np.array([0.0, 1.0]), np.array([2.0, 2.0]), 0.25), 6)  # Beta(2, 2)
    0.84375
    """
    gaps = values - mean
    spread = float(np.sqrt(weights @ gaps**2))
    if spread == 0:
        return 0.0
    gaps = gaps / spread
    squares = (_COARSE[:, None] * gaps) ** 2
    last = int(np.searchsorted(0.5 * np.log1p(squares) @ weights, _DEEP))
    turning = np.abs((_COARSE[: last + 1, None] * gaps / (1 + squares[: last + 1])) @ weights).max()
    step = min(_STEP, _TURN / max(float(turning), 1.0))
    frequency = np.exp(np.arange(_START, _START + 0.25 * (last + 1), step))
    steps = np.multiply.outer(frequency, gaps)
    heights = np.sin(np.arctan(steps) @ weights) * np.exp(-0.5 * (np.log1p(steps**2) @ weights))
    area = step * (heights.sum() - 0.5 * heights[0]) + frequency[0] * float(weights @ gaps)
    return float(np.clip(0.5 + area / np.pi, 0.0, 1.0))
