"""How well does a model predict held-out text? Loss in nats per token with its standard error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from scalefed.models import Model, Tensor
from scalefed.units import bits_per_byte

IGNORED = -100


@dataclass(frozen=True)
class HeldOutLoss:
    """Held-out loss of one model.

    Attributes:
        loss: nats per token.
        std_error: of it over rows of text, nats per token.
        bits_per_byte: the same loss per byte of text, comparable over tokenizers.
        tokens: tokens predicted.
    """

    loss: float
    std_error: float
    bits_per_byte: float
    tokens: int


def held_out_loss(
    model: Model,
    weights: Tensor,
    rows: Sequence[np.ndarray],
    *,
    bytes_per_token: float,
    batch_tokens: int = 8192,
) -> HeldOutLoss:
    """Mean next-token loss over rows of held-out text.

    The standard error is that of a ratio of sums over rows, which may differ in length.

    Args:
        model: stateless model.
        weights: ``(P,)``.
        rows: token ids, each row ``(length + 1,)`` with a length of its own.
        bytes_per_token: of the text the rows come from.
        batch_tokens: tokens scored at once.

    Source: Cochran 1977, section 2.11, for the standard error of a ratio.
    """
    ordered = sorted(rows, key=len)
    sums: list[np.ndarray] = []
    with torch.inference_mode():
        while ordered:
            count = max(1, batch_tokens // (len(ordered[-1]) - 1))
            batch, ordered = ordered[-count:], ordered[:-count]
            sums.append(_row_losses(model, weights, batch))
    total, sizes = np.concatenate(sums).T
    tokens = int(sizes.sum())
    mean = float(total.sum() / tokens)
    n = len(total)
    error = math.sqrt(n / max(n - 1, 1) * float(((total - mean * sizes) ** 2).sum())) / tokens if n > 1 else math.inf
    per_byte = float(bits_per_byte(mean, tokens=tokens, text_bytes=max(1, round(tokens * bytes_per_token))))
    return HeldOutLoss(mean, error, per_byte, tokens)


def _row_losses(model: Model, weights: Tensor, rows: Sequence[np.ndarray]) -> np.ndarray:
    """Summed loss and number of predicted tokens of each row: ``(n, 2)``."""
    blocks = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    targets = np.full((len(rows), blocks.shape[1] - 1), IGNORED)
    for number, row in enumerate(rows):
        blocks[number, : len(row)] = row
        targets[number, : len(row) - 1] = row[1:]
    inputs = torch.from_numpy(blocks[:, :-1]).to(weights.device)
    logits = model.logits(weights, inputs).float().flatten(0, 1)
    wanted = torch.from_numpy(targets).to(weights.device).flatten()
    losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none", ignore_index=IGNORED)
    sums = losses.view(len(rows), -1).double().sum(1).cpu().numpy()
    return np.stack([sums, (targets != IGNORED).sum(1)], axis=1)
