"""How sure is a pass@k: for new problems, and for this very benchmark?

The problems are the sampling unit. Two questions have two answers, and both are given:

* *new problems*: what would the mean be over the population these problems came from? The spread between problems
  counts; the number of samples per problem hardly matters. See :mod:`scalefed.passk.population`.
* *these problems* (the conditional interval): what would the mean over these very problems be with endless samples?
  Only the spread within each problem counts. See :mod:`scalefed.passk.conditional`.

Treating all samples as independent, or giving each problem a uniform prior, covers neither for weak models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefed.errors import ConfigError, DataError, nearest
from scalefed.passk.conditional import conditional_interval
from scalefed.passk.estimator import checked_counts, checked_k, pass_at_k
from scalefed.passk.population import population_interval
from scalefed.typeset import Sheet, Typeset

METHODS = ("gaffke", "logit-t", "t")
"""How the interval for new problems is made; see :func:`estimate_pass_at_k`."""


@dataclass(frozen=True, slots=True)
class PassRate:
    """pass@k for one k: the estimate, its interval for new problems, and the conditional one for these problems."""

    k: int
    estimate: float
    low: float
    high: float
    low_conditional: float
    high_conditional: float


@dataclass(frozen=True, slots=True)
class PassAtK(Typeset):
    """pass@k at several k, with intervals; ``result[10].low`` or, all at once, ``result.low``.

    Attributes:
        k: attempts, one entry per row of what follows.
        estimate: mean unbiased pass@k over problems, in [0, 1].
        low: lower end for new problems.
        high: upper end for new problems.
        low_conditional: lower end for these problems.
        high_conditional: upper end for these problems.
        problems: how many problems were counted.
        samples_min: fewest samples of any problem.
        samples_max: most samples of any problem.
        level: nominal coverage of both intervals.
        method: how the interval for new problems was made.
    """

    k: tuple[int, ...]
    estimate: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    low_conditional: tuple[float, ...]
    high_conditional: tuple[float, ...]
    problems: int
    samples_min: int
    samples_max: int
    level: float
    method: str

    def __getitem__(self, k: int) -> PassRate:
        """The row of one k (not a position)."""
        if k not in self.k:
            raise DataError(f"pass@{k} was not estimated; there is k = {', '.join(map(str, self.k))}")
        i = self.k.index(k)
        ends = (self.low[i], self.high[i], self.low_conditional[i], self.high_conditional[i])
        return PassRate(k, self.estimate[i], *ends)

    def __iter__(self) -> Iterator[PassRate]:
        """The rows, one per k."""
        return (self[k] for k in self.k)

    def sheet(self) -> Sheet:
        """One row a k: the estimate with both intervals."""
        least, most = self.samples_min, self.samples_max
        each = f"{least}" if least == most else f"{least} to {most}"
        unit = "sample" if most == 1 else "samples"
        whole = "1 problem" if self.problems == 1 else f"{self.problems} problems"
        title = f"{whole}, {each} {unit} each, {self.level:.0%} intervals ({self.method})"
        rows = tuple(
            (f"pass@{r.k}", f"{r.estimate:.4f}", f"{r.low:.4f} to {r.high:.4f}",
             f"{r.low_conditional:.4f} to {r.high_conditional:.4f}")
            for r in self
        )  # fmt: skip
        return Sheet(title, ("", "estimate", "new problems", "these problems"), rows)

    def __str__(self) -> str:
        sheet = self.sheet()
        rows = [
            f"{name}: {value}  new problems {new}  these problems {these}" for name, value, new, these in sheet.rows
        ]
        return "\n".join([sheet.title, *rows])

    def to_dict(self) -> dict[str, object]:
        """The same as plain JSON types: ``pass@1`` and so on, then what they were counted from."""
        rows = {
            f"pass@{r.k}": {
                "estimate": r.estimate, "low": r.low, "high": r.high,
                "low_conditional": r.low_conditional, "high_conditional": r.high_conditional,
            }
            for r in self
        }  # fmt: skip
        counted = ("problems", "samples_min", "samples_max", "level", "method")
        return rows | {name: getattr(self, name) for name in counted}


def estimate_pass_at_k(
    samples: ArrayLike,
    correct: ArrayLike,
    k: int | Sequence[int] = (1, 10),
    *,
    level: float = 0.95,
    method: str = "gaffke",
) -> PassAtK:
    """The mean pass@k over problems, with both intervals.

    The default holds for rare and frequent passes, few and many problems: exact coverage of a 95% interval is at least
    0.93 for every rate with 1 to 40 problems of one sample, its upper end rises with every success, its width is never
    zero, and the conditional interval lies within it. The other methods have none of these properties.

    Args:
        samples: (problems,) or a scalar, samples drawn per problem.
        correct: (problems,) or a scalar, correct ones among them.
        k: one or several numbers of attempts, each at most the fewest samples of any problem.
        level: nominal coverage, in (0, 1).
        method: for new problems: ``gaffke`` (see :mod:`scalefed.passk.population`), or what other tools print: the
            interval of the mean over problems by Student's ``t``, or the same on the logit scale, ``logit-t``.

    Raises:
        DataError: bad counts or k. ConfigError: unknown method or bad level.

    Source: Miller 2024 (Adding error bars to evals) for problems as clusters.

    >>> result = estimate_pass_at_k(20, [0, 0, 3, 20, 7, 0, 1, 0], k=1)
    >>> row = result[1]
    >>> round(row.estimate, 5), row.low < row.low_conditional < row.high_conditional < row.high
    (0.19375, True)
    """
    if method not in METHODS:
        raise ConfigError(f"unknown interval method {method!r}; {nearest(method, METHODS)}")
    if not 0 < level < 1:
        raise ConfigError(f"level must be in (0, 1), got {level}; the usual value is 0.95")
    n, c = checked_counts(samples, correct)
    ks = tuple(checked_k(one, n) for one in (k if isinstance(k, Sequence) else (k,)))
    rows = [_row(n, c, one, level, method) for one in ks]
    return PassAtK(
        k=ks,
        estimate=tuple(r.estimate for r in rows),
        low=tuple(r.low for r in rows),
        high=tuple(r.high for r in rows),
        low_conditional=tuple(r.low_conditional for r in rows),
        high_conditional=tuple(r.high_conditional for r in rows),
        problems=len(n),
        samples_min=int(n.min()),
        samples_max=int(n.max()),
        level=level,
        method=method,
    )


def _row(n: NDArray[np.int64], c: NDArray[np.int64], k: int, level: float, method: str) -> PassRate:
    values = pass_at_k(n, c, k)
    new = mean_interval(values, level, method)
    if int(n.max()) == 1:  # one sample each does not tell luck from difficulty: all of the spread is counted as luck
        these = new if method == "gaffke" else population_interval(values, level)
    else:
        these = conditional_interval(n, c, k, level)
    if method == "gaffke":
        new, these = _nested(new, these, k)
    return PassRate(k, float(values.mean()), *new, *these)


def _nested(
    new: tuple[float, float], these: tuple[float, float], k: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both intervals, the conditional one within the other.

    At k = 1 both rise with every success, and the outer one gives way. Beyond, the spread within problems is only
    known roughly and may fall with a success, so the inner one does.
    """
    (low, high), (low_these, high_these) = new, these
    if k == 1:
        return (min(low, low_these), max(high, high_these)), these
    return new, (max(low, low_these), min(high, high_these))


def mean_interval(values: NDArray[np.float64], level: float, method: str) -> tuple[float, float]:
    """Ends of the interval for the mean of a population in [0, 1], of which (problems,) values were drawn."""
    if method == "gaffke" or len(values) < 2 or np.ptp(values) == 0:  # the others need a spread
        return population_interval(values, level)
    from scipy.special import stdtrit

    mean, error = float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5
    reach = float(stdtrit(len(values) - 1, (1 + level) / 2)) * error
    if method == "t":
        return max(0.0, mean - reach), min(1.0, mean + reach)
    centre, reach = np.log(mean) - np.log1p(-mean), reach / (mean * (1 - mean))
    low, high = 1 / (1 + np.exp(-np.clip([centre - reach, centre + reach], -700, 700)))
    return float(low), float(high)
