"""How sure is a pass@k: for new problems, and conditional on these problems?

The problems are the sampling unit. Two questions have two answers, and both are given:

* *new problems*: what would the mean be over the population these problems came from? The spread between problems
  counts; the number of samples per problem hardly matters.
* *conditional on these problems*: what would the mean over these very problems be with endless samples? Only the
  spread within each problem counts.

Treating all samples as independent, or giving each problem a uniform prior, covers neither for weak models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefed.errors import ConfigError, DataError, nearest, refuses_old_words
from scalefed.passk.difficulty import BetaFit, fit_beta
from scalefed.passk.estimator import checked_counts, checked_k, failures_at_k, pass_at_k
from scalefed.seeds import rng

_TABLE = 5000  # samples per problem up to which all outcomes of drawing again are listed
METHODS = ("studentized", "logit-t", "t", "bca", "percentile")
"""How the interval for new problems is made; see :func:`estimate`."""


@dataclass(frozen=True, slots=True)
class PassRate:
    """pass@k for one k: the estimate, its interval for new problems, and conditional on these problems."""

    k: int
    estimate: float
    low: float
    high: float
    conditional_low: float
    conditional_high: float


@dataclass(frozen=True, slots=True)
class PassAtK:
    """pass@k at several k, with intervals; ``result[10].low`` or, all at once, ``result.low``.

    Attributes:
        k: attempts, one entry per row of what follows.
        estimate: mean unbiased pass@k over problems, in [0, 1].
        low: lower end for new problems.
        high: upper end for new problems.
        conditional_low: lower end of the interval conditional on these problems.
        conditional_high: upper end of the interval conditional on these problems.
        problems: how many problems were counted.
        samples: fewest samples of any problem.
        level: nominal coverage of both intervals.
        method: how the interval for new problems was made.
    """

    k: tuple[int, ...]
    estimate: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    conditional_low: tuple[float, ...]
    conditional_high: tuple[float, ...]
    problems: int
    samples: int
    level: float
    method: str

    def __getitem__(self, k: int) -> PassRate:
        """The row of one k (not a position)."""
        if k not in self.k:
            raise DataError(f"pass@{k} was not estimated; there is k = {', '.join(map(str, self.k))}")
        i = self.k.index(k)
        return PassRate(
            k, self.estimate[i], self.low[i], self.high[i], self.conditional_low[i], self.conditional_high[i]
        )

    def __iter__(self) -> Iterator[PassRate]:
        """The rows, one per k."""
        return (self[k] for k in self.k)

    def __str__(self) -> str:
        head = f"{self.problems} problems, {self.samples} samples each, {self.level:.0%} intervals ({self.method})"
        rows = [
            f"pass@{r.k}: {r.estimate:.4f}  new problems {r.low:.4f} to {r.high:.4f}"
            f"  conditional on this benchmark's problems {r.conditional_low:.4f} to {r.conditional_high:.4f}"
            for r in self
        ]
        return "\n".join([head, *rows])


@refuses_old_words
def estimate(
    samples: ArrayLike,
    correct: ArrayLike,
    k: int | Sequence[int] = (1, 10),
    *,
    level: float = 0.95,
    method: str = "studentized",
    resamples: int = 2000,
    seed: int = 0,
) -> PassAtK:
    """The mean pass@k over problems, with both intervals.

    Args:
        samples: (problems,) or a scalar, samples drawn per problem.
        correct: (problems,) or a scalar, correct ones among them.
        k: one or several numbers of attempts, each at most the fewest samples of any problem.
        level: nominal coverage, in (0, 1).
        method: for new problems: ``studentized`` (bootstrap of the t statistic over problems; holds its coverage at
            40 problems), ``logit-t`` (closed form), ``t``, ``bca`` or ``percentile`` (these three are short below
            about 100 problems).
        resamples: bootstrap draws, where the method draws any.
        seed: of the draws.

    Raises:
        DataError: bad counts or k. ConfigError: unknown method, bad level or resamples.

    Source: Miller 2024 (Adding error bars to evals) for problems as clusters; Efron and Tibshirani 1993, chapters 12
    and 14, for the bootstraps.

    >>> result = estimate(20, [0, 0, 3, 20, 7, 0, 1, 0], k=1)
    >>> one = result[1]
    >>> round(one.estimate, 5), one.low < one.conditional_low < one.conditional_high < one.high
    (0.19375, True)
    """
    if method not in METHODS:
        raise ConfigError(f"unknown interval method {method!r}; {nearest(method, METHODS)}")
    if not 0 < level < 1:
        raise ConfigError(f"level must be in (0, 1), got {level}; the usual value is 0.95")
    if resamples < 100:
        raise ConfigError(f"resamples must be at least 100, got {resamples}; 2000 is usual")
    n, c = checked_counts(samples, correct)
    ks = tuple(checked_k(one, n) for one in (k if isinstance(k, Sequence) else (k,)))
    rows = [_row(n, c, one, level, method, resamples, seed) for one in ks]
    return PassAtK(
        k=ks,
        estimate=tuple(r.estimate for r in rows),
        low=tuple(r.low for r in rows),
        high=tuple(r.high for r in rows),
        conditional_low=tuple(r.conditional_low for r in rows),
        conditional_high=tuple(r.conditional_high for r in rows),
        problems=len(n),
        samples=int(n.min()),
        level=level,
        method=method,
    )


def _row(
    n: NDArray[np.int64], c: NDArray[np.int64], k: int, level: float, method: str, resamples: int, seed: int
) -> PassRate:
    values = pass_at_k(n, c, k)
    low, high = mean_interval(values, level, method, resamples, seed)
    conditional_low, conditional_high = _conditional(n, c, k, level)
    return PassRate(k, float(values.mean()), low, high, conditional_low, conditional_high)


def mean_interval(
    values: NDArray[np.float64], level: float, method: str, resamples: int, seed: int
) -> tuple[float, float]:
    """Ends of the interval for the mean of a population in [0, 1], of which (problems,) values were drawn."""
    size, mean = len(values), float(values.mean())
    if size < 2 or np.ptp(values) == 0:
        return _exact_ends(mean, size, (1 - level) / 2)
    error = float(values.std(ddof=1)) / size**0.5
    if method == "logit-t":
        return _logit_ends(mean, error, _t_quantile(level, size - 1))
    if method == "t":
        reach = error * _t_quantile(level, size - 1)
        return max(0.0, mean - reach), min(1.0, mean + reach)
    ends = (_studentized if method == "studentized" else _quantiles)(values, level, method, resamples, seed)
    return max(0.0, min(mean, ends[0])), min(1.0, max(mean, ends[1]))


def _bootstrap(values: NDArray[np.float64], resamples: int, seed: int) -> tuple[NDArray[np.float64], ...]:
    """Means and variances (n - 1) of bootstrap draws over problems, (resamples,) each."""
    size = len(values)
    weights = rng(seed, "passk-bootstrap").multinomial(size, np.full(size, 1 / size), size=resamples)
    means = weights @ values / size
    variances = np.maximum(weights @ (values**2) / size - means**2, 0) * size / (size - 1)
    return means, variances


def _studentized(
    values: NDArray[np.float64], level: float, _method: str, resamples: int, seed: int
) -> tuple[float, float]:
    size, mean, spread = len(values), float(values.mean()), float(values.std(ddof=1))
    means, variances = _bootstrap(values, resamples, seed)
    usable = variances > 1e-12 * spread**2
    t = (means[usable] - mean) / np.sqrt(variances[usable] / size)
    tail = (1 - level) / 2
    upper, lower = np.quantile(t, [1 - tail, tail])
    return mean - float(upper) * spread / size**0.5, mean - float(lower) * spread / size**0.5


def _quantiles(
    values: NDArray[np.float64], level: float, method: str, resamples: int, seed: int
) -> tuple[float, float]:
    from scipy.special import ndtr, ndtri

    means, _ = _bootstrap(values, resamples, seed)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        mean, off = values.mean(), values - values.mean()
        below = (np.mean(means < mean) + np.mean(means <= mean)) / 2
        bias = ndtri(np.clip(below, 1e-3, 1 - 1e-3))
        bend = np.sum(off**3) / (6 * np.sum(off**2) ** 1.5)
        z = bias + ndtri(tails)
        tails = ndtr(bias + z / (1 - bend * z))
    low, high = np.quantile(means, tails)
    return float(low), float(high)


def _conditional(n: NDArray[np.int64], c: NDArray[np.int64], k: int, level: float) -> tuple[float, float]:
    """Ends of the interval for the mean over these problems, from the spread within each."""
    total, tail = int(n.sum()), (1 - level) / 2
    if c.sum() == 0:  # the rate can be at most this; spread evenly it gives the largest pass@k
        return 0.0, float(-np.expm1(k * np.log(tail) / total))
    mean = float(pass_at_k(n, c, k).mean())
    if mean >= 1:
        return tail ** (1 / total), 1.0
    from scipy.special import ndtri

    error = float(np.sqrt(_within_variance(n, c, k).sum())) / len(n)
    if error == 0:
        return mean, mean
    return _logit_ends(mean, error, float(ndtri(1 - tail)))


def _within_variance(n: NDArray[np.int64], c: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Variance of each problem's pass@k over repeated sampling, (problems,); only the sum is meaningful.

    With f_j the unbiased estimate of (1 - p)^j, f_k^2 - f_2k is unbiased for Var f_k. It needs 2k samples; below that
    the variance expected under the fitted beta distribution of rates, given the counts, takes its place.
    """
    if 2 * k <= int(n.min()):
        return np.asarray(failures_at_k(n, c, k) ** 2 - failures_at_k(n, c, 2 * k))
    if int(n.max()) == 1:  # one sample each does not tell luck from difficulty: all of the spread is counted as luck
        rate = float(c.mean())
        return np.full(len(n), rate * (1 - rate))
    prior = fit_beta(n, c)
    pairs, place = np.unique(np.stack([n, c]), axis=1, return_inverse=True)
    return np.array([_expected_variance(int(m), int(x), k, prior) for m, x in pairs.T])[place.reshape(-1)]


def _expected_variance(n: int, c: int, k: int, prior: BetaFit) -> float:
    """Mean over rates, given c of n, of the variance of pass@k in n new samples."""
    from scipy.special import betaln, gammaln

    a, b = prior.alpha + c, prior.beta + n - c
    once, twice = np.exp(betaln(a, b + np.array([k, 2 * k])) - betaln(a, b))
    if n > _TABLE:
        return float(max(twice - once**2, 0.0))  # the spread of rates itself, which is close when 2k > n
    new = np.arange(n + 1)
    log_ways = gammaln(n + 1) - gammaln(new + 1) - gammaln(n - new + 1)
    chance = np.exp(log_ways + betaln(a + new, b + n - new) - betaln(a, b))
    squares = float(np.sum(chance * pass_at_k(np.full(n + 1, n), new, k) ** 2))
    return max(squares - float(1 - 2 * once + twice), 0.0)


def _logit_ends(mean: float, error: float, quantile: float) -> tuple[float, float]:
    """The mean +- quantile * error, taken on the logit scale so that both ends stay within [0, 1]."""
    centre, reach = np.log(mean) - np.log1p(-mean), quantile * error / (mean * (1 - mean))
    low, high = 1 / (1 + np.exp(-np.clip([centre - reach, centre + reach], -700, 700)))
    return float(low), float(high)


def _exact_ends(mean: float, size: int, tail: float) -> tuple[float, float]:
    """All problems alike (or one problem): Clopper-Pearson as if each problem were one pass or fail."""
    from scipy.special import betaincinv

    passed = mean * size
    low = 0.0 if passed == 0 else float(betaincinv(passed, size - passed + 1, tail))
    high = 1.0 if passed == size else float(betaincinv(passed + 1, size - passed, 1 - tail))
    return low, high


def _t_quantile(level: float, freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))
