"""How well does a model predict a text? Loss in nats per token: of all, of each source, of mixtures, of solutions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from scalefed.models import Model, Tensor
from scalefed.units import bits_per_byte

IGNORED = -100  # torch's own ignore_index: a position without a target
LOGITS = 2**23  # turned into losses at once: 32 MiB in float32, of which a loss takes several copies

TokenLosses = Callable[[Model, Tensor, Sequence[np.ndarray]], Tensor]
"""Loss of every predicted token of some rows of a text, ``(n, longest - 1)``, zero past a row's end."""


@dataclass(frozen=True)
class HeldOutLoss:
    """Held-out loss of one model.

    Attributes:
        loss: nats per token.
        std_error: of it over rows of text, nats per token.
        bits_per_byte: the same loss per byte of text, comparable over tokenizers.
        tokens: tokens predicted.
        by_source: loss of each source of text, nats per token, NaN where nothing is held out of it; empty when no
            sources were given.
    """

    loss: float
    std_error: float
    bits_per_byte: float
    tokens: int
    by_source: tuple[float, ...] = ()


def held_out_loss(
    model: Model,
    weights: Tensor,
    rows: Sequence[np.ndarray],
    *,
    bytes_per_token: float,
    batch_tokens: int = 8192,
    sources: Sequence[np.ndarray] = (),
    token_losses: TokenLosses | None = None,
) -> HeldOutLoss:
    """Mean next-token loss over rows of text.

    The standard error is that of a ratio of sums over rows, which may differ in length.

    Args:
        model: stateless model.
        weights: ``(P,)``.
        rows: token ids, each row ``(length + 1,)`` with a length of its own.
        bytes_per_token: of the text the rows come from.
        batch_tokens: tokens scored at once.
        sources: for each row, the number of the source of each predicted token, ``(length,)``; none if not wanted.
        token_losses: what computes the losses; torch when None.

    Source: Cochran 1977, section 2.11, for the standard error of a ratio.
    """
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    sums: list[np.ndarray] = []
    known = 1 + max((int(row.max()) for row in sources), default=-1)
    of_sources = np.zeros((2, known))
    with torch.inference_mode():
        while order:
            count = max(1, batch_tokens // (len(rows[order[-1]]) - 1))
            batch, order = order[-count:], order[:-count]
            losses = (token_losses or torch_losses)(model, weights, [rows[place] for place in batch])
            lengths = [len(rows[place]) - 1 for place in batch]
            sums.append(np.stack([losses.double().sum(1).cpu().numpy(), lengths], axis=1))
            if known:
                each = losses.double().cpu().numpy()
                for place, own, length in zip(batch, each, lengths, strict=True):
                    of_sources[0] += np.bincount(sources[place], own[:length], minlength=known)
                    of_sources[1] += np.bincount(sources[place], minlength=known)
    total, sizes = np.concatenate(sums).T
    tokens = int(sizes.sum())
    mean = float(total.sum() / tokens)
    n = len(total)
    error = math.sqrt(n / max(n - 1, 1) * float(((total - mean * sizes) ** 2).sum())) / tokens if n > 1 else math.inf
    per_byte = float(bits_per_byte(mean, tokens=tokens, text_bytes=max(1, round(tokens * bytes_per_token))))
    with np.errstate(invalid="ignore"):
        by_source = tuple((of_sources[0] / of_sources[1]).tolist())
    return HeldOutLoss(mean, error, per_byte, tokens, by_source)


def mixture_losses(by_source: Sequence[float], mixtures: np.ndarray) -> np.ndarray:
    """The loss of one model on each client's own mixture of sources, nats per token: ``(clients,)``.

    Sources of which nothing was held out are left out of a mixture; NaN for a client that has no other.

    Args:
        by_source: ``(sources,)`` loss of each.
        mixtures: ``(clients, sources)`` weight of each source at each client.

    >>> mixture_losses([1.0, 2.0, float("nan")], np.array([[1.0, 1.0, 2.0], [0.0, 0.0, 1.0]])).tolist()
    [1.5, nan]
    """
    losses = np.asarray(by_source, dtype=np.float64)
    known = np.isfinite(losses)
    weights = np.asarray(mixtures, dtype=np.float64)[:, known]
    with np.errstate(invalid="ignore"):
        return np.asarray((weights @ losses[known]) / weights.sum(axis=1))


def solution_losses(
    model: Model,
    weights: Tensor,
    prompts: Sequence[Sequence[int]],
    solutions: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 8192,
    token_losses: TokenLosses | None = None,
) -> list[float]:
    """Loss of each solution given its prompt, nats per token of the solution, in one forward pass a batch.

    Args:
        model: stateless model.
        weights: ``(P,)``.
        prompts: token ids, at least one each.
        solutions: token ids; only these are counted, and an empty one has the loss NaN.
        batch_tokens: tokens read at once.
        token_losses: what computes the losses; torch when None.
    """
    rows = [np.array([*prompt, *solution]) for prompt, solution in zip(prompts, solutions, strict=True)]
    order = sorted((place for place, own in enumerate(solutions) if len(own)), key=lambda place: len(rows[place]))
    found = [math.nan] * len(rows)
    with torch.inference_mode():
        while order:
            count = max(1, batch_tokens // (len(rows[order[-1]]) - 1))
            batch, order = order[-count:], order[:-count]
            losses = (token_losses or torch_losses)(model, weights, [rows[place] for place in batch])
            for place, own in zip(batch, losses.double().cpu().numpy(), strict=True):
                first, size = len(prompts[place]) - 1, len(solutions[place])
                found[place] = float(own[first : first + size].sum() / size)
    return found


def torch_losses(model: Model, weights: Tensor, rows: Sequence[np.ndarray]) -> Tensor:
    """Loss of every predicted token of each row, ``(n, longest - 1)``, zero past a row's end."""
    blocks = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    targets = np.full((len(rows), blocks.shape[1] - 1), IGNORED)
    for number, row in enumerate(rows):
        blocks[number, : len(row)] = row
        targets[number, : len(row) - 1] = row[1:]
    inputs = torch.from_numpy(blocks[:, :-1]).to(weights.device)
    logits = model.logits(weights, inputs).flatten(0, 1)
    wanted = torch.from_numpy(targets).to(weights.device).flatten()
    few = max(1, LOGITS // logits.shape[-1])
    losses = [
        torch.nn.functional.cross_entropy(some.float(), own, reduction="none", ignore_index=IGNORED)
        for some, own in ((logits[at : at + few], wanted[at : at + few]) for at in range(0, len(logits), few))
    ]
    return torch.cat(losses).view(len(rows), -1)
