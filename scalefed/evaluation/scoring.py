"""How well does a model predict held-out text? Loss in nats per token with its standard error."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from scalefed.models import Model, Tensor
from scalefed.units import bits_per_byte


@dataclass(frozen=True)
class HeldOutLoss:
    """Held-out loss of one model.

    Attributes:
        loss: nats per token.
        std_error: of the mean over blocks, nats per token.
        bits_per_byte: the same loss per byte of text, comparable over tokenizers.
        tokens: tokens predicted.
    """

    loss: float
    std_error: float
    bits_per_byte: float
    tokens: int


def held_out_loss(
    model: Model, weights: Tensor, blocks: np.ndarray, *, bytes_per_token: float, batch_tokens: int = 8192
) -> HeldOutLoss:
    """Mean next-token loss over blocks of held-out text.

    Args:
        model: stateless model.
        weights: ``(P,)``.
        blocks: ``(n, length + 1)`` token ids.
        bytes_per_token: of the text the blocks come from.
        batch_tokens: tokens scored at once.
    """
    batch = max(1, batch_tokens // (blocks.shape[1] - 1))
    losses = []
    with torch.inference_mode():
        for start in range(0, len(blocks), batch):
            chunk = torch.from_numpy(blocks[start : start + batch].astype(np.int64)).to(weights.device)
            losses.append(_losses_per_block(model, weights, chunk))
    each = np.concatenate(losses)
    mean = float(each.mean())
    error = float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.inf
    tokens = int(blocks[:, 1:].size)
    per_byte = float(bits_per_byte(mean, tokens=tokens, text_bytes=max(1, round(tokens * bytes_per_token))))
    return HeldOutLoss(mean, error, per_byte, tokens)


def _losses_per_block(model: Model, weights: Tensor, blocks: Tensor) -> np.ndarray:
    logits = model.logits(weights, blocks[:, :-1]).float()
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].reshape(-1), reduction="none")
    return losses.view(len(blocks), -1).mean(1).double().cpu().numpy()
