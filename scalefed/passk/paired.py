"""Is one model better than another on the same problems?

Both models met the same problems, so their difference is taken problem by problem: hard problems are hard for both,
and most of the spread cancels. With one sample each the exact McNemar test applies; in general the difference is
bootstrapped over problems and its sign is flipped at random for the p-value.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefed.errors import ConfigError, DataError, refuses_old_words
from scalefed.passk.estimator import checked_counts, pass_at_k
from scalefed.seeds import rng


@dataclass(frozen=True, slots=True)
class Comparison:
    """pass@k of the second model minus that of the first, on the same problems.

    Attributes:
        k: attempts.
        difference: second minus first, in [-1, 1].
        low: lower end of the interval for new problems.
        high: upper end.
        p_value: two-sided, of "there is no difference".
        first_only: problems that only the first model solves (one sample each), else where it is better.
        second_only: the same for the second model.
        problems: how many problems both met.
        method: ``mcnemar`` or ``paired bootstrap``.
    """

    k: int
    difference: float
    low: float
    high: float
    p_value: float
    first_only: int
    second_only: int
    problems: int
    method: str


@refuses_old_words
def compare_models(
    samples_first: ArrayLike,
    correct_first: ArrayLike,
    samples_second: ArrayLike,
    correct_second: ArrayLike,
    *,
    k: int = 1,
    level: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Comparison:
    """The paired difference in pass@k of two models, second minus first, with its interval and p-value.

    Args:
        samples_first: (problems,) or a scalar, samples of the first model per problem.
        correct_first: (problems,) correct ones among them.
        samples_second: the same for the second model, problems in the same order.
        correct_second: the same.
        k: attempts.
        level: nominal coverage of the interval.
        resamples: draws for the interval and for the p-value.
        seed: of the draws.

    Raises:
        DataError: bad counts, different numbers of problems, or fewer than two problems. ConfigError: bad level.

    Source: McNemar 1947; Miller 2024 (Adding error bars to evals), section 4, for pairing.

    >>> result = compare_models(1, [0, 0, 0, 0, 1, 1, 0, 0], 1, [1, 1, 1, 1, 1, 1, 1, 0])
    >>> result.method, result.second_only, result.p_value
    ('mcnemar', 5, 0.0625)
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must be in (0, 1), got {level}; the usual value is 0.95")
    n_first, c_first = checked_counts(samples_first, correct_first)
    n_second, c_second = checked_counts(samples_second, correct_second)
    if len(n_first) != len(n_second):
        raise DataError(
            f"a paired comparison needs the same problems in the same order, got {len(n_first)} and {len(n_second)}"
        )
    if len(n_first) < 2:
        raise DataError("a comparison needs at least two problems, got 1")
    gaps = pass_at_k(n_second, c_second, k) - pass_at_k(n_first, c_first, k)
    first_only, second_only = int(np.sum(gaps < 0)), int(np.sum(gaps > 0))
    single = int(max(n_first.max(), n_second.max())) == 1
    low, high = _gap_interval(gaps, level, resamples, seed)
    p_value = _mcnemar(first_only, second_only) if single else _sign_flip(gaps, resamples, seed)
    method = "mcnemar" if single else "paired bootstrap"
    return Comparison(k, float(gaps.mean()), low, high, p_value, first_only, second_only, len(gaps), method)


def _mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided binomial test on the problems that tell the models apart."""
    from scipy.special import bdtr

    told = first_only + second_only
    return 1.0 if told == 0 else float(min(1.0, 2 * bdtr(min(first_only, second_only), told, 0.5)))


def _sign_flip(gaps: NDArray[np.float64], resamples: int, seed: int) -> float:
    """Share of random sign patterns whose mean is at least as far from zero; the observed one is counted."""
    told = gaps[gaps != 0]
    if told.size == 0:
        return 1.0
    signs = rng(seed, "passk-sign-flip").integers(0, 2, size=(resamples, told.size)) * 2 - 1
    reached = np.abs(signs @ told) >= abs(told.sum()) * (1 - 1e-12)
    return float((reached.sum() + 1) / (resamples + 1))


def _gap_interval(gaps: NDArray[np.float64], level: float, resamples: int, seed: int) -> tuple[float, float]:
    """Studentised bootstrap over problems; where nearly all gaps are alike, the t interval with a pseudo-count."""
    size, mean = len(gaps), float(gaps.mean())
    if np.count_nonzero(gaps - np.median(gaps)) < 5:
        from scipy.special import stdtrit

        padded = np.concatenate([gaps, [-1.0, 1.0]])  # one problem either way keeps the width above zero
        centre = float(padded.mean())
        reach = float(stdtrit(size + 1, (1 + level) / 2)) * float(padded.std(ddof=1)) / (size + 2) ** 0.5
        return max(-1.0, min(mean, centre - reach)), min(1.0, max(mean, centre + reach))
    weights = rng(seed, "passk-paired").multinomial(size, np.full(size, 1 / size), size=resamples)
    means = weights @ gaps / size
    variances = np.maximum(weights @ gaps**2 / size - means**2, 0) * size / (size - 1)
    usable = variances > 1e-12 * gaps.var()
    t = (means[usable] - mean) / np.sqrt(variances[usable] / size)
    upper, lower = np.quantile(t, [(1 + level) / 2, (1 - level) / 2])
    error = float(gaps.std(ddof=1)) / size**0.5
    return max(-1.0, mean - float(upper) * error), min(1.0, mean - float(lower) * error)
