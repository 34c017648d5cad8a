"""Is what a law misses noise, or does the law itself not fit? Noise differs between neighbours, lack of fit does not.

Runs of similar columns have residuals of their own where residuals are noise. Where the law bends away from the runs,
neighbours are missed alike. Ranks of the residuals are compared between near neighbours, a few a run, as on a grid they
lie in several directions; and so are the same ranks dealt out at random.

Source: von Neumann 1941 for the ratio; Daniel and Wood 1980, section 7, for near neighbours in place of repeats.
"""

from collections.abc import Mapping

import numpy as np

from scalefed.seeds import rng

_SHUFFLES = 499  # the least that can show p = 0.002
_MOST_ROWS = 5_000  # rows; above, every so manieth is looked at
_FARTHEST = 64  # neighbours among which those of other runs are sought
_NEAR = 4  # of them that are compared: on a grid of two columns those to all sides


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
    row, near = _neighbours({name: values[::step] for name, values in columns.items()}, clusters[::step])
    if not len(row):
        return 1.0
    ranks = np.argsort(np.argsort(residuals[::step])).astype(float)
    draw = rng(0, "lack of fit")
    dealt = np.stack([ranks, *(draw.permutation(ranks) for _ in range(_SHUFFLES))])
    apart = np.square(dealt[:, row] - dealt[:, near]).sum(axis=1)
    return float(np.mean(apart <= apart[0]))


def _neighbours(columns: Mapping[str, np.ndarray], clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows, each with one of its nearest of other runs, in columns of equal spread: two arrays of integers."""
    from scipy.spatial import cKDTree

    logs = [np.log(values) if values.min() > 0 else values for values in columns.values()]
    spread = [row / row.std() for row in logs if np.ptp(row) > 0]
    if not spread:
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    points = np.stack(spread, axis=1)
    count = min(len(points), _FARTHEST, _NEAR + int(np.bincount(clusters).max()))
    found = cKDTree(points).query(points, k=np.arange(1, count + 1))[1]
    other = clusters[found] != clusters[:, None]
    row, place = np.nonzero(other & (np.cumsum(other, axis=1) <= _NEAR))
    return row, found[row, place]
