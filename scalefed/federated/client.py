"""What does a client do in a round? It starts from the server's weights and takes local steps on its own data.

``local_updates`` is a pure function of what it is given. Clients of equal shape are trained as one batched model where
that is faster (few tokens a step, small models) and one after the other otherwise; both give the same arithmetic.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from scalefed.config import RunConfig
from scalefed.models import Model, Tensor

BATCHED_MAX_TOKENS = 256
BATCHED_MAX_PARAMS = 200_000

Correction = Callable[[Tensor, Tensor], Tensor]
"""Changes a gradient before the optimizer sees it: ``(gradient, weights) -> gradient``, both ``(P,)`` or ``(m, P)``."""


@dataclass(frozen=True)
class ClientTask:
    """What one client is asked to do in one round.

    Attributes:
        client: its index.
        batches: ``(steps, batch, length + 1)`` token ids.
        memory: the client's own vectors kept between rounds, such as a control variate, by name: ``(P,)`` each.
    """

    client: int
    batches: Tensor
    memory: dict[str, Tensor]


@dataclass(frozen=True)
class ClientUpdate:
    """What one client sends back.

    Attributes:
        client: its index.
        weights: ``(P,)`` after the local steps.
        steps: optimizer steps taken.
        tokens: tokens trained on.
        loss: mean training loss over the steps, nats per token.
        memory: what the client keeps for its next round.
    """

    client: int
    weights: Tensor
    steps: int
    tokens: int
    loss: float
    memory: dict[str, Tensor]

    @property
    def finite(self) -> bool:
        """False when training diverged on this client; the server then leaves it out."""
        return math.isfinite(self.loss) and bool(torch.isfinite(self.weights).all())


class InnerOptimizer:
    """AdamW or SGD on flat vectors, for one client ``(P,)`` or many ``(m, P)``; made anew in every round.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2.
    """

    def __init__(self, config: RunConfig, like: Tensor, decay_mask: Tensor) -> None:
        """Moments at zero, shaped like the weights."""
        self.config, self.steps = config, 0
        self.decay = config.weight_decay * decay_mask
        self.first = torch.zeros_like(like) if config.inner_optimizer == "adamw" else None
        self.second = torch.zeros_like(like)

    def step(self, weights: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """Change ``weights`` in place by one step."""
        c = self.config
        self.steps += 1
        if c.clip_norm < math.inf:
            norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
            gradient = gradient * (c.clip_norm / norm.clamp(min=c.clip_norm))
        weights.addcmul_(weights, self.decay, value=-learning_rate)
        if self.first is None:
            weights.add_(gradient, alpha=-learning_rate)
            return
        self.first.lerp_(gradient, 1 - c.beta1)
        self.second.mul_(c.beta2).addcmul_(gradient, gradient, value=1 - c.beta2)
        spread = (self.second / (1 - c.beta2**self.steps)).sqrt_().add_(c.adam_epsilon)
        weights.addcdiv_(self.first, spread, value=-learning_rate / (1 - c.beta1**self.steps))


def local_updates(
    model: Model,
    start: Tensor,
    tasks: Sequence[ClientTask],
    config: RunConfig,
    *,
    learning_rates: Sequence[float],
    correction: Callable[[ClientTask], Correction | None] | None = None,
) -> list[ClientUpdate]:
    """Train every task's client from the same start; updates come back in the order of the tasks.

    Args:
        model: stateless model.
        start: the server's weights ``(P,)``.
        tasks: one for each client.
        config: optimizer settings.
        learning_rates: one for each local step.
        correction: for each task, a change to its gradients, or None.
    """
    corrections = [correction(task) if correction else None for task in tasks]
    if _batched(model, tasks, config) and all(change is None for change in corrections):
        weights = start.expand(len(tasks), -1).clone()
        batches = torch.stack([task.batches for task in tasks], dim=1)
        losses = _train(model, weights, batches, config, learning_rates, None)
        trained = list(zip(weights.unbind(0), losses.tolist(), strict=True))
    else:
        trained = []
        for task, change in zip(tasks, corrections, strict=True):
            weights = start.clone()
            losses = _train(model, weights, task.batches, config, learning_rates, change)
            trained.append((weights, float(losses)))
    return [
        ClientUpdate(task.client, weights, len(task.batches), task.batches[..., 1:].numel(), loss, task.memory)
        for task, (weights, loss) in zip(tasks, trained, strict=True)
    ]


def _train(
    model: Model, weights: Tensor, batches: Tensor, config: RunConfig, rates: Sequence[float], change: Correction | None
) -> Tensor:
    """Local steps in place on ``weights``; the mean loss of each client."""
    optimizer = InnerOptimizer(config, weights, model.decay_mask.to(weights.device))
    total = torch.zeros(weights.shape[:-1], device=weights.device)
    for blocks, rate in zip(batches, rates, strict=False):
        leaf = weights.detach().requires_grad_()
        loss = model.loss(leaf, blocks)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        with torch.no_grad():
            total += loss.detach()
            optimizer.step(weights, gradient if change is None else change(gradient, weights), rate)
    return total / len(batches)


def _batched(model: Model, tasks: Sequence[ClientTask], config: RunConfig) -> bool:
    """Whether to train all clients at once: asked for, or small and few tokens, where it was measured to pay."""
    same = len({task.batches.shape for task in tasks}) == 1
    if config.client_batching != "auto" or len(tasks) == 1 or not model.batched or not same:
        return config.client_batching == "batched" and len(tasks) > 1 and model.batched and same
    step_tokens = tasks[0].batches[0, :, 1:].numel()
    return step_tokens <= BATCHED_MAX_TOKENS and model.params_trained <= BATCHED_MAX_PARAMS
