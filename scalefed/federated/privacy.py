"""How is a generator trained so that no block of text shows in it? DP-SGD: clipped gradients a block, and noise.

The gradients of single blocks come from the batched model, one "client" a block; the noise needed for a budget comes
from Opacus' accountant.

Source: Abadi et al. 2016 (arXiv 1607.00133), algorithm 1; Mironov 2017 (arXiv 1702.07476) for the accounting.
"""

from dataclasses import replace

import numpy as np
import torch

from scalefed.config import RunConfig
from scalefed.errors import MissingExtraError
from scalefed.federated.client_optimizer import InnerOptimizer
from scalefed.federated.schedule import learning_rates
from scalefed.models import Model, Tensor
from scalefed.seeds import rng, stream_seed
from scalefed.units import PRIVATE_BATCHES

CLIP = 1.0  # L2 norm of one document's gradient; the noise scales with it (Abadi et al. 2016, arXiv 1607.00133)


def private_training(model: Model, start: Tensor, batches: np.ndarray, config: RunConfig, *, client: int) -> Tensor:
    """Weights ``(P,)`` trained on a client's blocks under a privacy budget for each single block.

    Every step draws each distinct block with the same probability, clips its gradient to norm 1, adds Gaussian noise to
    the sum, and takes an AdamW step on it. ``(synthetic_epsilon, synthetic_delta)`` hold for adding or removing one
    block of ``sequence_length + 1`` tokens; a document that spans several blocks is protected less.

    Args:
        model: batched, so that blocks can have gradients of their own.
        start: ``(P,)`` weights that have seen no private text.
        batches: ``(steps, batch, length + 1)`` token ids.
        config: budget, steps, learning rate.
        client: keys the draws.

    Raises:
        MissingExtraError: Opacus is not installed.
    """
    blocks = torch.from_numpy(np.unique(batches.reshape(-1, batches.shape[-1]), axis=0).astype(np.int64))
    expected = min(PRIVATE_BATCHES * config.batch_size, len(blocks))
    rate = expected / len(blocks)
    noise = noise_multiplier(config, sample_rate=rate, steps=config.local_steps)
    generator = torch.Generator().manual_seed(stream_seed(config.seed, "privacy-noise", client) >> 1)
    optimizer = InnerOptimizer(replace(config, clip_norm=float("inf")), start, model.decay_mask.to(start.device))
    weights = start.clone()
    for step, learning_rate in enumerate(learning_rates(config, 0)):
        drawn = rng(config.seed, "privacy-batch", client, step).random(len(blocks)) < rate
        total = clipped_gradients(model, weights, blocks[torch.from_numpy(drawn)].to(start.device)).sum(0)
        total = total + CLIP * noise * torch.randn(start.shape, generator=generator).to(total)
        optimizer.step(weights, total / expected, learning_rate)
    return weights


def clipped_gradients(model: Model, weights: Tensor, blocks: Tensor) -> Tensor:
    """The gradient of every single block, clipped to norm 1: ``(P,), (n, length + 1) -> (n, P)``."""
    if not len(blocks):
        return weights.new_zeros(0, len(weights))
    leaf = weights.expand(len(blocks), -1).clone().requires_grad_()
    (gradients,) = torch.autograd.grad(model.loss(leaf, blocks[:, None]).sum(), leaf)
    norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    clipped: Tensor = gradients * (CLIP / norms.clamp(min=CLIP))
    return clipped


def noise_multiplier(config: RunConfig, *, sample_rate: float, steps: int) -> float:
    """Noise deviation over clipping norm that meets the config's budget after ``steps`` steps.

    Raises:
        MissingExtraError: Opacus is not installed.
    """
    try:
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError as error:
        raise MissingExtraError(
            "a privacy budget (synthetic_epsilon) needs Opacus; install it with: pip install 'scalefed[privacy]'"
        ) from error
    noise = get_noise_multiplier(
        target_epsilon=config.synthetic_epsilon, target_delta=config.synthetic_delta, sample_rate=sample_rate,
        steps=steps, accountant="rdp",
    )  # fmt: skip
    return float(noise)
