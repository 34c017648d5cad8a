"""What does the server do with the clients' updates? One pure step from state to state."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from scalefed.config import RunConfig
from scalefed.federated.client import ClientUpdate
from scalefed.models import Tensor


@dataclass(frozen=True)
class ServerState:
    """Everything a round starts from, and all that a checkpoint needs.

    Attributes:
        weights: ``(P,)`` global weights.
        round: rounds completed.
        slots: the server's own vectors, such as momentum, by name: ``(P,)`` each.
        memory: each client's vectors kept between rounds, such as control variates: client -> name -> ``(P,)``.
        visits: how often each client has trained.
    """

    weights: Tensor
    round: int = 0
    slots: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    visits: tuple[int, ...] = ()


def mean_update(state: ServerState, updates: Sequence[ClientUpdate], config: RunConfig) -> Tensor:
    """The weighted mean of the clients' changes, ``(P,)``: by tokens trained on, or uniform.

    Summed in the order of the client index, so that the order of arrival does not matter.

    Source: McMahan et al. 2017 (arXiv 1602.05629), algorithm 1.
    """
    ordered = sorted(updates, key=lambda update: update.client)
    shares = torch.tensor(
        [float(update.tokens) if config.weighting == "tokens" else 1.0 for update in ordered], dtype=torch.float64
    )
    total = torch.zeros_like(state.weights)
    for update, share in zip(ordered, (shares / shares.sum()).tolist(), strict=True):
        total.add_(update.weights - state.weights, alpha=share)
    return total


def server_step(state: ServerState, updates: Sequence[ClientUpdate], config: RunConfig) -> ServerState:
    """The next state: weights moved along the mean update by the server's optimizer.

    With momentum, Nesterov's form as in DiLoCo: ``m <- beta m + d``, ``w <- w + eta (d + beta m)``.

    Source: Douillard et al. 2023 (DiLoCo, arXiv 2311.08105), algorithm 1; momentum 0 and rate 1 is FedAvg.
    """
    change = mean_update(state, updates, config)
    rate, beta = server_settings(config)
    slots = dict(state.slots)
    if beta:
        slots["momentum"] = beta * slots.get("momentum", torch.zeros_like(change)) + change
        change = change + beta * slots["momentum"]
    return replace(state, weights=state.weights + rate * change, slots=slots)


def server_settings(config: RunConfig) -> tuple[float, float]:
    """Server learning rate and momentum: as given, else plain averaging (1, 0)."""
    rate = 1.0 if config.server_learning_rate is None else config.server_learning_rate
    return rate, config.server_momentum or 0.0
