"""What is the unbiased pass@k of one problem, given n samples of which c are correct?

pass@k = 1 - C(n-c, k) / C(n, k), the chance that k samples drawn without replacement hold a correct one. The ratio is
a product of min(c, k) factors below one. Differences of log-gamma lose up to ten digits for large n; here the logs of
the factors are summed with ``log1p`` and the result is taken with ``expm1``, which loses none.
"""

import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefed.errors import DataError

_CERTAIN = 40.0  # exp(-40) is below half a unit in the last place of 1: a failure this rare is none
NARROW = 16  # up to this k, problems of different n are one small matrix
CLOSE = 4096  # n that differ by no more than this, failures counted in, share one running sum
_EXTENDED = float(np.finfo(np.longdouble).eps) < 1e-18  # not on every platform
_CHUNK = 1 << 22  # factors held in memory at once


def pass_at_k(samples: ArrayLike, correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """The unbiased pass@k of each problem.

    Args:
        samples: (problems,) or a scalar, samples drawn per problem.
        correct: (problems,) or a scalar, correct ones among them.
        k: attempts allowed, at least 1 and at most the smallest of ``samples``.

    Returns:
        (problems,) values in [0, 1]; relative error below 1e-12 for n up to a million.

    Raises:
        DataError: counts that are not whole numbers with 0 <= correct <= samples, or k outside 1..samples.

    Source: Chen et al. 2021 (Evaluating large language models trained on code), section 2.1.

    >>> pass_at_k([4, 4, 4], [0, 1, 4], 2).tolist()
    [0.0, 0.5, 1.0]
    """
    n, c = checked_counts(samples, correct)
    return np.asarray(0.0 - np.expm1(_log_failure(n, c, checked_k(k, n))))  # 0 - x: no negative zero


def failures_at_k(samples: ArrayLike, correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """The unbiased estimate of (1 - p)^k per problem: C(n-c, k) / C(n, k), the complement of :func:`pass_at_k`.

    Args and Raises as there.

    >>> failures_at_k([4], [1], 3).tolist()
    [0.25]
    """
    n, c = checked_counts(samples, correct)
    return np.asarray(np.exp(_log_failure(n, c, checked_k(k, n))))


def checked_counts(samples: ArrayLike, correct: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both counts as whole numbers of one shape (problems,); raises DataError otherwise."""
    given: tuple[Any, Any] = (samples, correct)
    labels = [counts.index for counts in given if hasattr(counts, "reindex")]
    if len(labels) == 2 and not labels[0].equals(labels[1]):
        raise DataError("samples and correct have different indexes; bring one into the other's order by .reindex(...)")
    n, c = np.asarray(samples), np.asarray(correct)
    if not (n.dtype == c.dtype == np.int64 and n.shape == c.shape and n.ndim == 1 and n.size):
        n, c = _shaped(samples, correct)
    if c.min() < 0 or n.min() < 1 or (c > n).any():
        i = int(np.flatnonzero((c < 0) | (c > n) | (n < 1))[0])
        raise DataError(
            f"problem {i} has {c[i]} correct of {n[i]} samples; allowed is 0 <= correct <= samples, samples >= 1"
        )
    return n, c


def _shaped(samples: ArrayLike, correct: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Scalars, lists and other types of number as two arrays of one shape."""
    if np.ndim(samples) == np.ndim(correct) == 1 and np.size(samples) != np.size(correct):
        raise DataError(f"samples and correct must have the same length, got {np.size(samples)} and {np.size(correct)}")
    if np.ndim(samples) > 1 or np.ndim(correct) > 1:
        shapes = f"{np.shape(samples)} and {np.shape(correct)}"
        raise DataError(f"counts must be one number per problem and at least one problem, got shapes {shapes}")
    n_raw, c_raw = np.broadcast_arrays(np.atleast_1d(np.asarray(samples)), np.atleast_1d(np.asarray(correct)))
    if n_raw.size == 0:
        raise DataError("counts must be one number per problem and at least one problem, got none")
    return _whole(n_raw, "samples"), _whole(c_raw, "correct")


def checked_k(k: int, n: NDArray[np.int64]) -> int:
    """The k as an int within 1..min(n); raises DataError otherwise."""
    try:
        value = operator.index(k)
    except TypeError as error:
        raise DataError(f"k must be a whole number, got {k!r}; call once per k") from error
    fewest = int(n.min())
    if not 1 <= value <= fewest:
        raise DataError(
            f"k must be in 1..{fewest} (problem {int(n.argmin())} has {fewest} samples), got {value}: "
            "draw more samples or ask for a smaller k"
        )
    return value


def _whole(values: NDArray[np.generic], name: str) -> NDArray[np.int64]:
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    if values.dtype.kind == "f" and np.all(np.isfinite(values)) and np.all(values == np.floor(values)):
        return values.astype(np.int64)
    raise DataError(f"{name} must be whole numbers, got {values.dtype} such as {values.reshape(-1)[0].item()!r}")


def _log_failure(n: NDArray[np.int64], c: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Log of C(n-c, k) / C(n, k), (problems,); -inf where no k failures are left."""
    highest = int(n.max())
    if int(n.min()) == highest:
        return _table(highest, int(c.max()), k)[c]
    left = n - c
    start = max(int(left.min()), k)
    if _EXTENDED and highest - start <= CLOSE:
        return _between(n, left, k, start, highest)
    return narrow(n, c, k) if k <= NARROW else ragged(n, c, k)


def _table(n: int, most: int, k: int) -> NDArray[np.float64]:
    """Log failure for c = 0..most at one n: the sum of log(1 - k / (n - j)) over j < c."""
    kept = max(0, min(most, n - k, int(_CERTAIN * n / k) + 2))
    out = np.empty(most + 1)
    out[0] = 0.0
    np.log1p(-k / np.arange(n, n - kept, -1.0), out=out[1 : kept + 1])
    out[kept + 1 :] = -np.inf
    return np.add.accumulate(out, out=out)


def _between(n: NDArray[np.int64], left: NDArray[np.int64], k: int, start: int, stop: int) -> NDArray[np.float64]:
    """The same for problems of nearby n: the sum of log(1 - k / i) over n-c < i <= n, from one running sum.

    What two running sums have in common cancels; in extended precision that costs none of a float's digits.
    """
    sums = np.zeros(stop - start + 1, dtype=np.longdouble)
    np.add.accumulate(np.log1p(-k / np.arange(start + 1.0, stop + 1.0)), out=sums[1:], dtype=np.longdouble)
    out = (sums[n - start] - sums[np.maximum(left - start, 0)]).astype(np.float64)
    out[left < k] = -np.inf
    return np.asarray(out)


def narrow(n: NDArray[np.int64], c: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """The same for problems of different n and a small k: a product of k factors 1 - c / (n - i)."""
    shares = c[:, None] / (n[:, None] - np.arange(k, dtype=np.float64))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log1p(-np.minimum(shares, 1.0)).sum(axis=1))


def ragged(n: NDArray[np.int64], c: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """The same for problems of different n: min(c, k) factors each, summed pairwise."""
    out = np.where(n - c < k, -np.inf, 0.0)
    few, many = np.minimum(c, k), np.maximum(c, k)
    count = np.where(np.isinf(out) | (few * many > _CERTAIN * n), 0, few)
    out[(count == 0) & (few > 0)] = -np.inf
    order = np.flatnonzero(count)
    for part in np.split(order, np.flatnonzero(np.diff(np.cumsum(count[order]) // _CHUNK)) + 1):
        if part.size:
            lengths = count[part]
            starts = np.cumsum(lengths) - lengths
            j = np.arange(lengths.sum()) - np.repeat(starts, lengths)
            logs = np.log1p(-np.repeat(many[part], lengths) / (np.repeat(n[part], lengths) - j))
            out[part] = np.add.reduceat(logs, starts)
    return out
