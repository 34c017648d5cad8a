"""How are the problems' success rates spread, and what does that say about the curve in k?

If rates follow Beta(a, b), the chance to fail k times is B(a, b + k) / B(a, b), which falls as k^-a: the exponent of
the curve in k is the weight of the hardest problems. Two estimates of it are offered, because they differ on real
data: the maximum likelihood of the beta-binomial on the counts, and the least-squares slope of log(-log pass@k).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefed.errors import DataError, FitError
from scalefed.passk.estimator import checked_counts, checked_k, pass_at_k

_PRODUCT = 10_000  # up to here the ratio of beta functions is an exact product, beyond it log-gamma is accurate


@dataclass(frozen=True, slots=True)
class BetaFit:
    """Success rates as Beta(alpha, beta), by maximum likelihood of the counts.

    Attributes:
        alpha: weight near rate 0; failures at k attempts fall as k^-alpha.
        beta: weight near rate 1.
        log_likelihood: nats, without the binomial constants.
        status: ``ok``, or which parameter stopped at which bound.
        problems: how many problems were used.
    """

    alpha: float
    beta: float
    log_likelihood: float
    status: str
    problems: int

    @property
    def mean(self) -> float:
        """Mean success rate alpha / (alpha + beta): the mu of :func:`beta_pass_at_k`."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def concentration(self) -> float:
        """The sum alpha + beta: nu of :func:`beta_pass_at_k`; at infinity all problems are equally hard."""
        return self.alpha + self.beta

    def pass_at_k(self, k: ArrayLike) -> NDArray[np.float64]:
        """Expected pass@k of a new problem, with k's shape."""
        return beta_pass_at_k(self.mean, self.concentration, k)


@dataclass(frozen=True, slots=True)
class ExponentFit:
    """-log(pass@k) = scale * k^-exponent, by least squares in logs.

    Attributes:
        exponent: slope; larger means that more attempts help faster.
        scale: -log(pass@1) of the fitted line.
        r_squared: share of the variance of log(-log pass@k) that the line explains.
        k: the attempts used.
    """

    exponent: float
    scale: float
    r_squared: float
    k: tuple[int, ...]


def beta_pass_at_k(mean: ArrayLike, concentration: ArrayLike, k: ArrayLike) -> NDArray[np.float64]:
    """pass@k where success rates follow a beta distribution: 1 - B(a, b + k) / B(a, b), a = mean * concentration.

    Args:
        mean: mean success rate, in (0, 1).
        concentration: a + b > 0; near 0 each problem is always or never solved, at infinity all are alike.
        k: attempts, at least 1; real values are allowed above 10,000.

    Source: T2 (arXiv 2604.01411), second approach; Schaeffer et al. 2025 (arXiv 2502.17578), section 3.

    >>> round(1 - float(beta_pass_at_k(0.3 / 12.3, 12.3, 100)), 5)
    0.50766
    """
    mu, nu, attempts = (np.asarray(v, dtype=np.float64) for v in (mean, concentration, k))
    if not (np.all((mu > 0) & (mu < 1)) and np.all(nu > 0) and np.all(attempts >= 1)):
        raise DataError("beta_pass_at_k needs 0 < mean < 1, concentration > 0 and k >= 1")
    mu, nu, attempts = np.broadcast_arrays(mu, nu, attempts)
    flat = [
        _log_beta_failure(float(m), float(v), float(t)) for m, v, t in zip(mu.flat, nu.flat, attempts.flat, strict=True)
    ]
    return np.asarray(-np.expm1(np.array(flat).reshape(mu.shape)))


def _log_beta_failure(mean: float, concentration: float, k: float) -> float:
    if np.isinf(concentration):
        return float(k * np.log1p(-mean))
    a = mean * concentration
    if k <= _PRODUCT and k == int(k):
        return float(np.log1p(-a / (concentration + np.arange(int(k)))).sum())
    from scipy.special import betaln

    return float(betaln(a, concentration - a + k) - betaln(a, concentration - a))


def fit_beta(samples: ArrayLike, correct: ArrayLike, *, bounds: tuple[float, float] = (1e-3, 1e4)) -> BetaFit:
    """The beta distribution of success rates that makes the counts most likely.

    Args:
        samples: (problems,) or a scalar, samples per problem.
        correct: (problems,) or a scalar, correct ones among them.
        bounds: smallest and largest alpha and beta tried.

    Raises:
        DataError: bad counts. FitError: no success, no failure or one sample each, which leaves the spread unknown.

    Source: Schaeffer et al. 2025 (arXiv 2502.17578), section 5.

    >>> fit = fit_beta(100, [0, 0, 1, 3, 10, 40, 2, 0])
    >>> fit.status, 0.2 < fit.alpha < 0.5
    ('ok', True)
    """
    from scipy.optimize import minimize

    n, c = checked_counts(samples, correct)
    if c.sum() == 0 or np.all(c == n):
        raise FitError(
            f"all {len(n)} problems {'fail' if c.sum() == 0 else 'pass'} every time: the counts do not show how "
            "rates spread; draw more samples or use harder or easier problems"
        )
    if int(n.max()) < 2:
        raise FitError("one sample per problem does not show how rates spread; draw at least two")
    edge = np.log(np.asarray(bounds))
    rate = float(c.sum() / n.sum())
    starts = [np.clip(np.log([rate * nu, (1 - rate) * nu]), *edge) for nu in (0.3, 3.0, 30.0)]
    runs = [
        minimize(_beta_cost, s, args=(n, c), jac=True, method="L-BFGS-B", bounds=[tuple(edge)] * 2, tol=1e-12)
        for s in starts
    ]
    best = min(runs, key=lambda run: float(run.fun))
    alpha, beta = np.exp(best.x)
    at = [
        f"{name} stopped at its bound {value:g}"
        for name, value, x in zip(("alpha", "beta"), (alpha, beta), best.x, strict=True)
        if min(abs(x - edge)) < 1e-6
    ]
    return BetaFit(float(alpha), float(beta), -float(best.fun), "; ".join(at) or "ok", len(n))


def _beta_cost(x: NDArray[np.float64], n: NDArray[np.int64], c: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """Negative log likelihood of log(alpha), log(beta), and its gradient."""
    from scipy.special import betaln, digamma

    a, b = np.exp(x)
    value = np.sum(betaln(a + c, b + n - c)) - len(n) * betaln(a, b)
    shared = len(n) * digamma(a + b) - np.sum(digamma(a + b + n))
    by_a = np.sum(digamma(a + c)) - len(n) * digamma(a) + shared
    by_b = np.sum(digamma(b + n - c)) - len(n) * digamma(b) + shared
    return -float(value), -np.array([a * by_a, b * by_b])


def fit_k_exponent(samples: ArrayLike, correct: ArrayLike, *, k: Sequence[int] | None = None) -> ExponentFit:
    """The power law in k of the mean pass@k: log(-log pass@k) against log k, by least squares.

    Args:
        samples: (problems,) or a scalar, samples per problem.
        correct: (problems,) or a scalar, correct ones among them.
        k: attempts to use; 30 evenly spaced in logs from 1 to the fewest samples if not given.

    Raises:
        DataError: bad counts or k. FitError: fewer than two k with a mean pass@k strictly between 0 and 1.

    Source: Schaeffer et al. 2025 (arXiv 2502.17578), equation 1.

    >>> fit = fit_k_exponent(1000, [0, 1, 5, 20, 300])
    >>> 0.1 < fit.exponent < 0.5
    True
    """
    n, c = checked_counts(samples, correct)
    asked = k if k is not None else np.unique(np.round(np.geomspace(1, n.min(), 30)).astype(int)).tolist()
    attempts = [checked_k(one, n) for one in asked]
    means = np.array([pass_at_k(n, c, one).mean() for one in attempts])
    inside = (means > 0) & (means < 1)
    if inside.sum() < 2:
        raise FitError(f"a slope in k needs two k with pass@k strictly between 0 and 1, got {int(inside.sum())}")
    x, y = np.log(np.array(attempts)[inside]), np.log(-np.log(means[inside]))
    slope, level = np.polyfit(x, y, 1)
    left = float(np.sum((y - level - slope * x) ** 2) / max(np.sum((y - y.mean()) ** 2), 1e-300))
    used = tuple(int(a) for a, ok in zip(attempts, inside, strict=True) if ok)
    return ExponentFit(-float(slope), float(np.exp(level)), 1 - left, used)
