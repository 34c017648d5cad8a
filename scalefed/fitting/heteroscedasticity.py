"""Is the noise alike across the design, or do runs of some corner scatter more than their losses explain?

Exchanging residuals between runs of similar loss assumes that they could have been dealt the other way round. That is
tested as it stands: residual sizes are shuffled among runs of similar loss, and how much of them the design explains is
compared with how much it explains of the shuffled ones. The test is exact whatever the distribution of the noise.

Source: White 1980 for regressing residual sizes on the design; Fisher 1935 for permutation tests.
"""

import numpy as np

from scalefed.seeds import rng

_SHUFFLES = 199  # the least that can show p = 0.005; 199 and the data make 200


def unevenness(
    residuals: np.ndarray, fitted: np.ndarray, jacobian: np.ndarray, clusters: np.ndarray, *, block: int, seed: int = 0
) -> float:
    """Probability that noise which is alike among runs of similar loss looks as uneven as this.

    Args:
        residuals: (n,) log residuals.
        fitted: (n,) predicted log losses.
        jacobian: (n, p) slopes of the log law in the parameters: what the design means to them.
        clusters: (n,) integers from 0; rows of one run are shuffled together.
        block: runs of similar loss that are shuffled among each other.
        seed: of the shuffles.

    >>> generator = np.random.default_rng(0)
    >>> x = generator.uniform(-1, 1, (200, 1))
    >>> noise = np.where(x[:, 0] > 0.8, 1.0, 0.1) * generator.standard_normal(200)
    >>> unevenness(noise, np.zeros(200), x, np.arange(200), block=200)
    0.005
    """
    counts = np.bincount(clusters)
    size = np.bincount(clusters, np.abs(residuals)) / counts
    loss = np.bincount(clusters, fitted) / counts
    slopes = np.stack([np.bincount(clusters, column) / counts for column in jacobian.T], axis=1)
    order = np.argsort(loss, kind="stable")
    blocks = np.arange(len(order)) // block
    blocks = np.minimum(blocks, max(len(order) // block - 1, 0))
    space = _space(slopes[order], blocks)
    if space.shape[1] == 0:
        return 1.0
    size = size[order]
    draw = rng(seed, "evenness")
    keys = draw.random((_SHUFFLES, len(size))) + blocks
    shuffled = np.concatenate([size[None], size[np.argsort(keys, axis=1)]])
    explained = ((shuffled @ space) ** 2).sum(axis=1)
    return float(np.mean(explained >= explained[0] * (1 - 1e-9)))


def _space(slopes: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span the slopes and their squares, less what the blocks themselves explain."""
    _, _, right = np.linalg.svd(slopes, full_matrices=False)
    rotated = slopes @ right.T
    features = np.concatenate([rotated, rotated**2], axis=1)
    counts = np.bincount(blocks)
    means = np.stack([np.bincount(blocks, column) / counts for column in features.T], axis=1)
    features = features - means[blocks]
    features = features / np.maximum(np.sqrt((features**2).sum(axis=0)), 1e-300)
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    return np.asarray(left[:, singular > 1e-6 * singular.max(initial=0.0)])
