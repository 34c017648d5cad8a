"""How does a client take one step? AdamW or SGD on flat vectors, for one client or many at once."""

import math
from collections.abc import Sequence

import torch

from scalefed.config import RunConfig
from scalefed.models import Tensor

MEMORY = ("inner_first", "inner_second", "inner_steps")


class InnerOptimizer:
    """AdamW or SGD with momentum for one client ``(P,)`` or many ``(m, P)``.

    Its state starts at zero in every round, or goes on from what each client kept.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2; SGD in PyTorch's form, ``b <- rho b + g``.
    """

    def __init__(
        self, config: RunConfig, like: Tensor, decay_mask: Tensor, *, kept: Sequence[dict[str, Tensor]] = ()
    ) -> None:
        """State shaped like the weights.

        Args:
            config: optimizer settings.
            like: the weights, ``(P,)`` or ``(m, P)``.
            decay_mask: ``(P,)`` one where weight decay applies.
            kept: for each client, what :meth:`memory` gave at the end of its last round; empty dicts start at zero.
        """
        self.config = config
        self.decay = config.weight_decay * decay_mask if config.weight_decay else None
        self.adam = config.inner_optimizer == "adamw"
        self.before = tuple(int(one["inner_steps"]) if one else 0 for one in kept) or (0,)
        self.taken = 0
        self.first = _restore("inner_first", like, kept) if self.adam or config.inner_momentum else None
        self.second = _restore("inner_second", like, kept) if self.adam else None

    def step(self, weights: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Change ``weights`` in place by one step; of many clients, only the first ``len(weights)`` take it."""
        c = self.config
        self.taken += 1
        if c.clip_norm < math.inf:
            norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
            gradient = gradient * (c.clip_norm / norm.clamp(min=c.clip_norm))
        if self.decay is not None:
            weights.addcmul_(weights, self.decay, value=-learning_rate)
        if self.second is not None:
            self._adam(weights, gradient, learning_rate)
        elif self.first is not None:
            buffer = self._active(self.first, weights).mul_(c.inner_momentum).add_(gradient)
            weights.add_(buffer, alpha=-learning_rate)
        else:
            weights.add_(gradient, alpha=-learning_rate)

    def memory(self, index: int, steps: int, *, home: torch.device) -> dict[str, Tensor]:
        """What client ``index`` keeps for its next round, after ``steps`` steps of this one, on the device ``home``."""
        kept = {"inner_steps": torch.tensor(self.before[min(index, len(self.before) - 1)] + steps)}
        for name, moment in (("inner_first", self.first), ("inner_second", self.second)):
            if moment is not None:
                kept[name] = (moment[index] if moment.dim() == 2 else moment).to(home, copy=True)
        return kept

    def _adam(self, weights: Tensor, gradient: Tensor, learning_rate: float) -> None:
        c = self.config
        assert self.first is not None and self.second is not None
        first, second = self._active(self.first, weights), self._active(self.second, weights)
        first.lerp_(gradient, 1 - c.beta1)
        second.mul_(c.beta2).addcmul_(gradient, gradient, value=1 - c.beta2)
        if len(set(self.before)) == 1:
            taken = self.before[0] + self.taken
            spread = (second / (1 - c.beta2**taken)).sqrt_().add_(c.adam_epsilon)
            weights.addcdiv_(first, spread, value=-learning_rate / (1 - c.beta1**taken))
            return
        steps = [before + self.taken for before in self.before[: len(weights)]]  # to the same bits as alone
        rates, scales = (
            torch.tensor(own, dtype=weights.dtype, device=weights.device)[:, None]
            for own in ([learning_rate / (1 - c.beta1**s) for s in steps], [1 - c.beta2**s for s in steps])
        )
        spread = (second / scales).sqrt_().add_(c.adam_epsilon)
        weights.addcdiv_(first * rates, spread, value=-1.0)

    @staticmethod
    def _active(moment: Tensor, weights: Tensor) -> Tensor:
        return moment[: len(weights)] if moment.dim() == 2 else moment


def inner_memory(memory: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of a client's memory that belongs to its optimizer; empty before its first round."""
    return {name: memory[name] for name in MEMORY if name in memory}


def _restore(name: str, like: Tensor, kept: Sequence[dict[str, Tensor]]) -> Tensor:
    moment = torch.zeros_like(like)
    for index, one in enumerate(kept):
        if name in one:
            (moment[index] if moment.dim() == 2 else moment).copy_(one[name])
    return moment
