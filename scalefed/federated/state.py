"""What passes between server and clients, and what a round starts from? Small frozen records of flat vectors."""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch

from scalefed.federated.centralisation import Centring
from scalefed.models import Tensor


@dataclass(frozen=True)
class ServerState:
    """Everything a round starts from, and all that a checkpoint needs.

    Attributes:
        weights: ``(P,)`` global weights.
        round: rounds completed.
        slots: the server's own vectors, such as momentum, by name: ``(P,)`` each (the pool of shared synthetic text is
            a table of token ids).
        memory: each client's vectors kept between rounds, such as control variates: client -> name -> ``(P,)``.
        visits: how often each client has trained.
    """

    weights: Tensor
    round: int = 0
    slots: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    visits: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Correction:
    """How an algorithm changes a client's gradient ``g`` at weights ``w`` that started the round at ``w0``.

    The optimizer sees ``P(g + shift + pull (w - w0))``, with ``P`` the centring, if any.

    Attributes:
        shift: ``(P,)`` added to every gradient, such as a control variate; None for nothing.
        pull: strength of the spring back to where the round started.
        centring: which tensors are centred, and how; None for none.
        keep_gradient: whether the mean of the unchanged gradients is wanted in the update.
    """

    shift: Tensor | None = None
    pull: float = 0.0
    centring: Centring | None = None
    keep_gradient: bool = False

    @property
    def kind(self) -> tuple[object, ...]:
        """Clients of one kind can be trained at once."""
        return self.shift is None, self.pull, self.centring, self.keep_gradient


PLAIN = Correction()


@dataclass(frozen=True, eq=False)
class ClientTask:
    """What one client is asked to do in one round.

    Attributes:
        client: its index.
        batches: ``(steps, batch, length + 1)`` token ids.
        memory: the client's own vectors kept between rounds, such as a control variate, by name: ``(P,)`` each.
        start: ``(P,)`` weights to start from; None for the server's.
        correction: what the algorithm does to its gradients.
    """

    client: int
    batches: Tensor
    memory: dict[str, Tensor] = field(default_factory=dict)
    start: Tensor | None = None
    correction: Correction = PLAIN

    @property
    def steps(self) -> int:
        """Local steps."""
        return len(self.batches)

    @property
    def step_tokens(self) -> int:
        """Tokens in one step."""
        return int(self.batches[0, :, 1:].numel())


@dataclass(frozen=True, eq=False)
class ClientUpdate:
    """What one client sends back, and what it keeps.

    Attributes:
        client: its index.
        weights: ``(P,)`` after the local steps.
        steps: optimizer steps taken.
        tokens: tokens trained on.
        loss: mean training loss over the steps, nats per token.
        memory: what the client keeps for its next round.
        sent: vectors that travel to the server beside the weights, by name: ``(P,)`` each.
        gradient: ``(P,)`` mean of the unchanged gradients, where the correction asked for it.
    """

    client: int
    weights: Tensor
    steps: int
    tokens: int
    loss: float
    memory: dict[str, Tensor] = field(default_factory=dict)
    sent: dict[str, Tensor] = field(default_factory=dict)
    gradient: Tensor | None = None

    @cached_property
    def finite(self) -> bool:
        """False when training diverged on this client; the server then leaves it out."""
        return math.isfinite(self.loss) and all_finite(self.weights)


def all_finite(vector: Tensor) -> bool:
    """Whether no element is infinite or not a number; the sum tells, unless finite elements overflow it."""
    return math.isfinite(float(vector.sum())) or bool(torch.isfinite(vector).all())
