"""Is what a law misses noise, or does the law itself not fit? Noise differs between neighbours, lack of fit does not.

Runs of similar columns have residuals of their own where residuals are noise. Where the law bends away from the runs,
neighbours are missed alike. Ranks of the residuals are compared between nearest neighbours, and with the same ranks
dealt out at random.

Source: von Neumann 1941 for the ratio; Daniel and Wood 1980, section 7, for near neighbours in place of repeats.
"""

from collections.abc import Mapping

import numpy as np

from scalefed.seeds import rng

_SHUFFLES = 499  # the least that can show p = 0.002
_MOST_ROWS = 5_000  # rows; above, every so manieth is looked at
_FARTHEST = 64  # neighbours among which one of another run is sought


def lack_of_fit(residuals: np.ndarray, columns: Mapping[str, np.ndarray], clusters: np.ndarray) -> float:
    """Probability that neighbours are missed as much alike as here, where residuals are noise.

    Args:
        residuals: (n,) log residuals, runs of equal weight.
        columns: the law's columns, each (n,).
        clusters: (n,) integers; rows of one run are no neighbours.

    >>> x = np.geomspace(1e6, 1e9, 40)
    >>> noise = np.random.default_rng(0).standard_normal(40)
    >>> both = (noise, noise + 3 * np.sin(np.log(x)))
    >>> [lack_of_fit(one, {"params": x}, np.arange(40)) < 0.01 for one in both]
    [False, True]
    """
    step = -(-len(residuals) // _MOST_ROWS)
    near = _neighbours({name: values[::step] for name, values in columns.items()}, clusters[::step])
    known = near >= 0
    if known.sum() < 2:
        return 1.0
    ranks = np.argsort(np.argsort(residuals[::step])).astype(float)
    draw = rng(0, "lack of fit")
    dealt = np.stack([ranks, *(draw.permutation(ranks) for _ in range(_SHUFFLES))])
    apart = np.square(dealt[:, known] - dealt[:, near[known]]).sum(axis=1)
    return float(np.mean(apart <= apart[0]))


def _neighbours(columns: Mapping[str, np.ndarray], clusters: np.ndarray) -> np.ndarray:
    """The nearest row of another run for each row, in columns of equal spread, (n,); -1 where there is none."""
    from scipy.spatial import cKDTree

    logs = [np.log(values) if values.min() > 0 else values for values in columns.values()]
    spread = [row / row.std() for row in logs if np.ptp(row) > 0]
    if not spread:
        return np.full(len(clusters), -1)
    points = np.stack(spread, axis=1)
    count = min(len(points), _FARTHEST, 1 + int(np.bincount(clusters).max()))
    found = cKDTree(points).query(points, k=max(count, 2))[1]
    other = clusters[np.minimum(found, len(points) - 1)] != clusters[:, None]
    first = np.argmax(other, axis=1)
    return np.where(other.any(axis=1), found[np.arange(len(points)), first], -1)
