"""How sure is the mean over these very problems, had each been sampled without end?

Only the spread within each problem counts. The upper end is a quantile of 1 - (1 - T)(1 - E): T is a beta variable with
the mean and the variance of the estimate, E the rate that samples without a single pass leave open, Beta(1, n) for
n samples. Where all problems are alike T (1 - E) is again a beta variable and the end is Clopper-Pearson's over all
samples; where every problem passes always or never, T is a constant and E alone keeps the width above zero.

With one sample a problem nothing tells luck from difficulty, and the interval is that for new problems.
"""

import numpy as np
from numpy.typing import NDArray

from scalefed.passk.difficulty import BetaFit, fit_beta
from scalefed.passk.estimator import failures_at_k, pass_at_k

_TABLE = 5000  # samples per problem up to which all outcomes of drawing again are listed
_STEPS = (np.arange(200) + 0.5) / 200  # levels at which E is taken: the ends are within 1e-4 of their width


def conditional_interval(
    samples: NDArray[np.int64], correct: NDArray[np.int64], k: int, level: float
) -> tuple[float, float]:
    """Ends of the interval for the mean pass@k of these problems.

    Args:
        samples: (problems,) drawn, two or more for some problem.
        correct: (problems,) correct ones among them.
        k: attempts, at most the fewest samples.
        level: nominal coverage.
    """
    tail = (1 - level) / 2
    mean = float(pass_at_k(samples, correct, k).mean())
    variance = float(within_variance(samples, correct, k).sum()) / len(samples) ** 2
    draws = float(samples.sum()) / k  # a pass in k samples or none: so many of these were seen
    low = 1 - _upper_end(1 - mean, variance, draws * mean, tail)
    high = _upper_end(mean, variance, draws * (1 - mean), tail)
    if k > 1:  # nobody passes less often in k attempts than in one
        low = max(low, conditional_interval(samples, correct, 1, level)[0])
    return low, high


def _upper_end(mean: float, variance: float, draws: float, tail: float) -> float:
    """The 1 - ``tail`` quantile of 1 - (1 - T)(1 - E), E of ``draws`` samples."""
    from scipy.optimize import brentq
    from scipy.special import betainc

    if mean >= 1:
        return 1.0
    if variance <= 0:
        return float(1 - (1 - mean) * tail ** (1 / draws))
    rest = np.maximum(_STEPS ** (1 / draws), 1e-300)  # 1 - E at evenly spaced levels
    size = max(mean * (1 - mean) / variance - 1, 1e-6)

    def excess(end: float) -> float:
        below = betainc(mean * size, (1 - mean) * size, np.clip(1 - (1 - end) / rest, 0, 1))
        return float(below.mean()) - (1 - tail)

    return float(brentq(excess, 0.0, 1.0, xtol=1e-12))


def within_variance(n: NDArray[np.int64], c: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Variance of each problem's pass@k over repeated sampling, (problems,); only the sum is meaningful.

    With f_j the unbiased estimate of (1 - p)^j, f_k^2 - f_2k is unbiased for Var f_k. It needs 2k samples; below that
    the variance expected under the fitted beta distribution of rates, given the counts, takes its place.
    """
    if c.sum() == 0 or np.all(c == n):
        return np.zeros(len(n))
    if 2 * k <= int(n.min()):
        return np.asarray(failures_at_k(n, c, k) ** 2 - failures_at_k(n, c, 2 * k))
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
