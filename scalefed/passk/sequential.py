"""What is a success rate too low for a fixed number of samples?

Draw until the problem has passed r times and stop. With n attempts needed, (r - 1) / (n - 1) is unbiased for the rate;
the tempting r / n is too high. A limit keeps hopeless problems from running for ever; those that reach it are
reported as censored, with the plain share and its exact interval.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scalefed.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class RateEstimate:
    """A success rate found by sampling until it passed.

    Attributes:
        rate: per attempt, in [0, 1].
        low: lower end of the exact interval.
        high: upper end.
        attempts: drawn in all, up to and including the last pass that counts.
        passes: seen.
        censored: True if the limit came before the wanted number of passes.
    """

    rate: float
    low: float
    high: float
    attempts: int
    passes: int
    censored: bool


def rate_from_attempts(attempts: int, passes: int, *, censored: bool = False, level: float = 0.95) -> RateEstimate:
    """The rate, given that the ``passes``-th pass came at attempt number ``attempts``.

    Args:
        attempts: n, attempts up to and including the last pass; at the limit, if censored.
        passes: r, at least 2 unless censored: with r = 1 no unbiased estimate but 0 or 1 exists.
        censored: True if sampling stopped at a limit instead; the estimate is then passes / attempts.
        level: of the exact (Clopper-Pearson type) interval.

    Raises:
        DataError: impossible counts. ConfigError: bad level.

    Source: Haldane 1945 (inverse sampling); used as PassUntil by Hu et al. 2024 (arXiv 2310.03262).

    >>> rate_from_attempts(101, 3).rate
    0.02
    """
    from scipy.special import betaincinv

    if not 0 < level < 1:
        raise ConfigError(f"level must be in (0, 1), got {level}; the usual value is 0.95")
    least = 0 if censored else 2
    if not least <= passes <= attempts or attempts < 1:
        raise DataError(
            f"got {passes} passes in {attempts} attempts; allowed is {least} <= passes <= attempts"
            + ("" if censored else ": sample until at least 2 passes, the estimator is (r - 1) / (n - 1)")
        )
    tail = (1 - level) / 2
    low = 0.0 if passes == 0 else float(betaincinv(passes, attempts - passes + 1, tail))
    if passes == attempts:
        high = 1.0
    else:
        high = float(betaincinv(passes + (1 if censored else 0), attempts - passes, 1 - tail))
    rate = passes / attempts if censored else (passes - 1) / (attempts - 1)
    return RateEstimate(rate, low, high, attempts, passes, censored)


def pass_until(
    attempt: Callable[[int], Sequence[bool]], *, passes: int = 2, limit: int = 10_000, level: float = 0.95
) -> RateEstimate:
    """Draw in growing batches until a problem has passed ``passes`` times, and estimate its rate.

    Args:
        attempt: called with how many samples to draw now; returns one True or False each, in order.
        passes: r, at least 2.
        limit: most attempts, at least ``passes``.
        level: of the interval.

    Raises:
        ConfigError: bad passes or limit. DataError: ``attempt`` returned another number of results than asked for.

    >>> pass_until(lambda count: [True] * count, passes=3).rate
    1.0
    """
    if passes < 2 or limit < passes:
        raise ConfigError(f"need passes >= 2 and limit >= passes, got passes={passes}, limit={limit}")
    seen = drawn = 0
    while drawn < limit:
        count = min(limit - drawn, max(8, drawn))
        results = attempt(count)
        if len(results) != count:
            raise DataError(f"attempt({count}) must return {count} results, got {len(results)}")
        for passed in results:
            drawn += 1
            seen += bool(passed)
            if seen == passes:
                return rate_from_attempts(drawn, seen, level=level)
    return rate_from_attempts(drawn, seen, censored=True, level=level)
