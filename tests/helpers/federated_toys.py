"""Small stand-ins for models and data, so that federated arithmetic can be checked by hand."""

import numpy as np
import torch

from scalefed.models import Layout

VOCAB = 16


class Quadratic:
    """A model with a known gradient: ``loss = 0.5 sum_i h_i (w_i - target_i)^2``, the target being the mean of the
    tokens' rows of a fixed table. In double precision, so that references need no tolerance to speak of."""

    batched = True

    def __init__(self) -> None:
        self.layout = Layout({"embedding": (4, 2), "body": (3, 4), "scale": (5,), "head": (2, 2, 2)})
        draw = np.random.Generator(np.random.PCG64(5))
        self.table = draw.normal(size=(VOCAB, self.layout.size))
        self.curvature = draw.uniform(0.3, 1.5, size=self.layout.size)
        self.params = self.params_total = self.params_trained = self.layout.size
        self.decay_mask = torch.from_numpy(draw.integers(0, 2, size=self.layout.size).astype(float))
        self._table, self._curvature = torch.from_numpy(self.table), torch.from_numpy(self.curvature)

    def initial(self, seed: int) -> torch.Tensor:
        return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).normal(size=self.layout.size))

    def loss(self, weights: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        target = self._table[blocks[..., 1:]].mean((-3, -2))
        return (0.5 * self._curvature * (weights - target) ** 2).sum(-1)

    def gradient(self, weights: np.ndarray, blocks: np.ndarray) -> np.ndarray:
        """By hand, for one client."""
        return self.curvature * (weights - self.table[blocks[..., 1:]].mean((0, 1)))


class Tokens:
    """Every client's batches come from its own stretch of the vocabulary."""

    def __init__(self, *, batch: int = 2, length: int = 3, vocab: int = VOCAB) -> None:
        self.batch, self.length, self.vocab = batch, length, vocab

    def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
        draw = np.random.Generator(np.random.PCG64([client, visit]))
        low = client % (self.vocab // 2)
        return draw.integers(low, low + self.vocab // 2, size=(steps, self.batch, self.length + 1))
