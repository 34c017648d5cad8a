"""Where does randomness come from? One stream per purpose, derived from one seed.

A stream is keyed by ``(seed, purpose, *indices)``, for example ``rng(seed, "participation", round)``, so that adding
clients, rounds or evaluations changes no other draw, and a restart needs no saved generator state.
"""

import hashlib

import numpy as np

from scalefed.errors import ConfigError


def stream_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 64-bit integer that is a pure function of the key; feed it to any generator.

    >>> stream_seed(0, "participation", 3) == stream_seed(0, "participation", 3)
    True
    """
    if isinstance(seed, str) or int(seed) != seed:
        raise ConfigError(f"seed must be a whole number, got {seed!r}")
    key = "\x1f".join([str(int(seed)), purpose, *(str(int(i)) for i in indices)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def rng(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A numpy generator for one purpose (and round, client, ...).

    >>> bool(rng(0, "a").random() == rng(0, "b").random())
    False
    """
    return np.random.Generator(np.random.PCG64(stream_seed(seed, purpose, *indices)))


def quasi_random(count: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """An additive recurrence with the generalised golden ratio: (count, dimensions) points in the unit cube.

    >>> quasi_random(2, 1).round(3).tolist()
    [[0.118], [0.736]]
    """
    if dimensions == 0:
        return np.zeros((1, 0))
    root = 1.5
    for _ in range(40):
        root = (1.0 + root) ** (1.0 / (dimensions + 1))
    steps = root ** -np.arange(1, dimensions + 1)
    return (0.5 + 0.37 * seed + np.arange(1, count + 1)[:, None] * steps) % 1.0
