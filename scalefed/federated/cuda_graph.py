"""How do clients train on a GPU? Their local step is recorded once, as a CUDA graph, and replayed with other numbers.

A step of a small model is some two hundred kernels of a few microseconds, so that asking for them one by one costs far
more than running them. A recording asks once. What changes between steps (text, learning rate, Adam's corrections) is
laid out on the GPU before the first of them, and a counter there says which comes next.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from scalefed.config import RunConfig
from scalefed.federated.state import ClientTask
from scalefed.models import Tensor

WARM_UP = 3  # steps before the recording, in which libraries set themselves up

Loss = Callable[[Tensor, Tensor], Tensor]


def can_record(config: RunConfig, tasks: Sequence[ClientTask]) -> bool:
    """Whether a recording serves these clients: AdamW on a GPU, equal steps, gradients changed by centring at most."""
    kind = tasks[0].correction
    plain = kind.shift is None and not kind.pull and not kind.keep_gradient
    return (
        config.device.startswith("cuda")
        and config.inner_optimizer == "adamw"
        and plain
        and all(task.steps == tasks[0].steps for task in tasks)
    )


class Trained(NamedTuple):
    """Clients after a round, in main memory: ``(m, P)`` weights and Adam's moments, ``(m,)`` losses summed over it."""

    weights: Tensor
    first: Tensor
    second: Tensor
    total: Tensor


class Recording:
    """A local step of ``m`` clients at once: AdamW, as the clients' ``InnerOptimizer`` takes it."""

    def __init__(
        self, config: RunConfig, loss: Loss, decay_mask: Tensor, start: Tensor, tasks: Sequence[ClientTask]
    ) -> None:
        """Record the step; nothing of what is given here but shapes, settings and functions is kept.

        Args:
            config: optimizer settings.
            loss: ``(m, P), (m, b, t + 1) -> (m,)``.
            decay_mask: ``(P,)`` one where weight decay applies.
            start: ``(m, P)`` weights to warm up with.
            tasks: clients like those to come.
        """
        self.config, self.loss, self.centring = config, loss, tasks[0].correction.centring
        start = start.to(config.device)
        self.decay = config.weight_decay * decay_mask.to(start.device)
        self.weights, self.first, self.second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        batches = torch.stack([task.batches for task in tasks], dim=1)
        self.blocks = batches.to(start.device)
        self.numbers = torch.full((len(batches), 3, len(tasks), 1), 0.5, dtype=start.dtype, device=start.device)
        self.total = torch.zeros(len(tasks), dtype=start.dtype, device=start.device)
        self.place = torch.zeros(1, dtype=torch.int64, device=start.device)
        self.replay = self._record() if start.is_cuda else self._step

    def run(
        self,
        starts: Tensor,
        moments: Sequence[Tensor],
        taken: Sequence[int],
        tasks: Sequence[ClientTask],
        rates: Sequence[float],
    ) -> Trained:
        """Train a round.

        Args:
            starts: ``(m, P)`` weights.
            moments: Adam's, ``(m, P)`` each.
            taken: steps each client has taken in earlier rounds.
            tasks: the clients; their text.
            rates: learning rate of each step.
        """
        c, steps = self.config, tasks[0].steps
        self.weights.copy_(starts)
        self.first.copy_(moments[0])
        self.second.copy_(moments[1])
        self.total.zero_()
        self.place.zero_()
        self.blocks[:steps].copy_(torch.stack([task.batches for task in tasks], dim=1))
        numbers = [
            [
                [rate] * len(tasks),
                [rate / (1 - c.beta1 ** (before + step + 1)) for before in taken],
                [1 - c.beta2 ** (before + step + 1) for before in taken],
            ]
            for step, rate in zip(range(steps), rates, strict=False)
        ]
        self.numbers[:steps].copy_(torch.tensor(numbers, dtype=self.numbers.dtype)[..., None])
        for _ in range(steps):
            self.replay()
        return Trained(self.weights.cpu(), self.first.cpu(), self.second.cpu(), self.total.cpu())

    def _record(self) -> Callable[[], None]:
        """The step as a graph. Source: PyTorch's notes on CUDA semantics, whole-network capture."""
        aside = torch.cuda.Stream(self.weights.device)  # type: ignore[no-untyped-call]
        now = torch.cuda.current_stream(self.weights.device)
        aside.wait_stream(now)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.place.zero_()
                self._step()
        now.wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._step()
        replay: Callable[[], None] = self.graph.replay
        return replay

    def _step(self) -> None:
        c, weights = self.config, self.weights
        rate, first_rate, second_share = self.numbers.index_select(0, self.place)[0].unbind(0)
        leaf = weights.detach().requires_grad_()
        loss = self.loss(leaf, self.blocks.index_select(0, self.place)[0])
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        with torch.no_grad():
            self.total.add_(loss.detach())
            if self.centring is not None:
                gradient = self.centring(gradient)
            if c.clip_norm < float("inf"):
                norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
                gradient = gradient * (c.clip_norm / norm.clamp(min=c.clip_norm))
            if c.weight_decay:
                weights.addcmul_(weights, self.decay * rate, value=-1.0)
            self.first.lerp_(gradient, 1 - c.beta1)
            self.second.mul_(c.beta2).addcmul_(gradient, gradient, value=1 - c.beta2)
            spread = (self.second / second_share).sqrt_().add_(c.adam_epsilon)
            weights.addcdiv_(self.first * first_rate, spread, value=-1.0)
            self.place.add_(1)
