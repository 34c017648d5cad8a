"""What does the server do with the clients' updates? One pure step from state to state.

Every algorithm is a mean of the updates, perhaps changed, followed by a server optimizer; see the table in
:mod:`scalefed.federated.algorithms`. Updates are taken in the order of the client index, so that the order of arrival
does not matter.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from scalefed.config import RunConfig
from scalefed.errors import ConfigError
from scalefed.federated.centralisation import everywhere
from scalefed.federated.schedule import learning_rate
from scalefed.federated.state import ClientUpdate, ServerState
from scalefed.models import Layout, Tensor

__all__ = ["ServerSettings", "ServerState", "evaluated_weights", "mean_update", "server_settings", "server_step"]


class ServerSettings(NamedTuple):
    """The server optimizer's step and momentum."""

    rate: float
    momentum: float


# where a paper names no default, the value of Flower's strategy of that name
_DEFAULTS = {
    "fedavgm": ServerSettings(1.0, 0.9),  # Hsu et al. 2019 (arXiv 1909.06335)
    "fedadam": ServerSettings(0.1, 0.0),  # flwr 1.41 FedAdam
    "fedyogi": ServerSettings(0.01, 0.0),  # flwr 1.41 FedYogi
    "fedadagrad": ServerSettings(0.1, 0.0),  # flwr 1.41 FedAdagrad
    "diloco": ServerSettings(0.7, 0.9),  # Douillard et al. 2023 (arXiv 2311.08105)
}
_NO_RATE = ("feddyn", "local", "central")
_NO_MOMENTUM = (*_NO_RATE, "fedadam", "fedyogi", "fedadagrad")
_UNIFORM = (
    "scaffold",
    "feddyn",
    "fedvarp",
    "diloco",
    "gc-local",
    "gc-global",
    "gc-fed",
)  # as published: sizes are ignored


def server_settings(config: RunConfig) -> ServerSettings:
    """Server learning rate and momentum: as given, else the algorithm's published default, else averaging (1, 0).

    Raises:
        ConfigError: one is given that the algorithm has no use for.

    >>> server_settings(RunConfig(algorithm="diloco"))
    ServerSettings(rate=0.7, momentum=0.9)
    """
    for name, without in (("server_learning_rate", _NO_RATE), ("server_momentum", _NO_MOMENTUM)):
        if getattr(config, name) is not None and config.algorithm in without:
            raise ConfigError(
                f"{name}={getattr(config, name):g} has no meaning for algorithm={config.algorithm!r}; leave it unset"
            )
    rate, momentum = _DEFAULTS.get(config.algorithm, ServerSettings(1.0, 0.0))
    return ServerSettings(
        rate if config.server_learning_rate is None else config.server_learning_rate,
        momentum if config.server_momentum is None else config.server_momentum,
    )


def server_step(
    state: ServerState, updates: Sequence[ClientUpdate], config: RunConfig, *, layout: Layout | None = None
) -> ServerState:
    """The state after the clients' updates: weights moved, the server's own vectors brought up to date.

    Round number, visits and the clients' memories are the loop's business.

    Args:
        state: before the step; it is not changed.
        updates: of the clients that are counted, at least one, in any order.
        config: names the algorithm and its settings.
        layout: of the flat weights; gc-global and gc-fed need it.
    """
    ordered = sorted(updates, key=lambda update: update.client)
    step = _STEPS.get(config.algorithm)
    if step is not None:
        return step(state, ordered, config)
    change = mean_update(state, ordered, config)
    if config.algorithm in ("gc-global", "gc-fed"):
        if layout is None:
            raise ConfigError(f"algorithm={config.algorithm!r} centres tensors: give server_step the model's layout")
        change = everywhere(config, layout)(change)
    return _nesterov(state, change, config)


def mean_update(state: ServerState, updates: Sequence[ClientUpdate], config: RunConfig) -> Tensor:
    """The weighted mean of the clients' changes, ``(P,)``: by tokens trained on, or uniform.

    Summed in the order of the client index, so that the order of arrival does not matter.

    Source: McMahan et al. 2017 (arXiv 1602.05629), algorithm 1.
    """
    ordered = sorted(updates, key=lambda update: update.client)
    by_tokens = config.weighting == "tokens" and config.algorithm not in _UNIFORM
    return _mean(state, ordered, [float(update.tokens) if by_tokens else 1.0 for update in ordered])


def evaluated_weights(config: RunConfig, state: ServerState) -> tuple[Tensor, ...]:
    """The models that a run is judged by: the global one; under ``local``, those of all clients that have trained.

    A score of ``local`` is the mean of these models' scores on the global mixture. Its ``state.weights`` is the average
    of all clients' weights (the initial ones for those that never trained): what averaging once at the end would give.
    """
    if config.algorithm != "local":
        return (state.weights,)
    own = tuple(memory["weights"] for _, memory in sorted(state.memory.items()))
    return own or (state.weights,)


# ---------------------------------------------------------------------- server optimizers
def _nesterov(state: ServerState, change: Tensor, config: RunConfig) -> ServerState:
    """``m <- beta m + d``, ``w <- w + eta (d + beta m)``; momentum 0 and rate 1 is plain averaging.

    Source: Douillard et al. 2023 (DiLoCo, arXiv 2311.08105), algorithm 1.
    """
    rate, beta = server_settings(config)
    slots = dict(state.slots)
    if beta:
        slots["momentum"] = beta * slots.get("momentum", torch.zeros_like(change)) + change
        change = change + beta * slots["momentum"]
    return replace(state, weights=state.weights + rate * change, slots=slots)


def _heavy_ball(state: ServerState, updates: Sequence[ClientUpdate], config: RunConfig) -> ServerState:
    """``m <- beta m + d``, ``w <- w + eta m``; the paper and Flower agree.

    Source: Hsu, Qi and Brown 2019 (FedAvgM, arXiv 1909.06335).
    """
    rate, beta = server_settings(config)
    change = mean_update(state, updates, config)
    momentum = beta * state.slots.get("momentum", torch.zeros_like(change)) + change
    return replace(state, weights=state.weights + rate * momentum, slots=state.slots | {"momentum": momentum})


def _adaptive(state: ServerState, updates: Sequence[ClientUpdate], config: RunConfig) -> ServerState:
    """``m <- b1 m + (1 - b1) d``, ``v`` by Adam, Yogi or Adagrad, ``w <- w + eta m / (sqrt(v) + tau)``.

    Paper: ``v`` starts at ``tau^2``, no bias correction. Flower: ``v`` starts at 0; FedAdam's step is scaled by
    ``sqrt(1 - b2^(t+1)) / (1 - b1^(t+1))`` with rounds ``t`` from 1; FedAdagrad has ``b1 = 0``.

    Source: Reddi et al. 2021 (arXiv 2003.00295), algorithm 2; flwr 1.41, ``flwr.serverapp.strategy``.
    """
    flower, tau, algorithm = config.variant == "flower", config.server_epsilon, config.algorithm
    beta1 = 0.0 if flower and algorithm == "fedadagrad" else config.server_beta1
    rate, change = server_settings(config).rate, mean_update(state, updates, config)
    square = change * change
    second = state.slots.get("second")
    if second is None:
        second = torch.full_like(change, 0.0 if flower else tau**2)
    first = beta1 * state.slots.get("first", torch.zeros_like(change)) + (1 - beta1) * change
    if algorithm == "fedadam":
        second = config.server_beta2 * second + (1 - config.server_beta2) * square
    elif algorithm == "fedyogi":
        second = second - (1 - config.server_beta2) * square * torch.sign(second - square)
    else:
        second = second + square
    if flower and algorithm == "fedadam":
        power = state.round + 2.0  # Flower's rounds start at 1, and it adds one more
        rate *= math.sqrt(1 - config.server_beta2**power) / (1 - config.server_beta1**power)
    weights = state.weights + rate * first / (second.sqrt() + tau)
    return replace(state, weights=weights, slots=state.slots | {"first": first, "second": second})


# ---------------------------------------------------------------------- steps of their own
def _scaffold(state: ServerState, updates: Sequence[ClientUpdate], config: RunConfig) -> ServerState:
    """The mean, and ``c <- c + (1/K) sum_S (c_k' - c_k)`` over all K clients of the run.

    Source: Karimireddy et al. 2020 (SCAFFOLD, arXiv 1910.06378), algorithm 1.
    """
    following = _nesterov(state, mean_update(state, updates, config), config)
    control = state.slots["control"].clone()
    for update in updates:
        control.add_(update.sent["control"], alpha=1 / config.clients)
    return replace(following, slots=following.slots | {"control": control})


def _fednova(state: ServerState, updates: Sequence[ClientUpdate], config: RunConfig) -> ServerState:
    """``d = (sum_k p_k a_k) sum_k p_k d_k / a_k``, with ``a_k`` how far the client's steps could carry it.

    ``a_k`` sums the learning rates of the client's steps, step ``s`` times ``1 + rho + ... + rho^s`` under SGD with
    momentum ``rho``: the 1-norm of the weights with which gradients enter its update. An AdamW step counts as one.
    ``p_k`` are shares of the data, not of the work done: tokens a step (``weighting="tokens"``), or uniform.

    Source: Wang et al. 2020 (FedNova, arXiv 2007.07481), sections 4.1 and 5.
    """
    progress = [_progress(config, state.round, update.steps) for update in updates]
    data = [update.tokens / update.steps if config.weighting == "tokens" else 1.0 for update in updates]
    shares = [share / sum(data) for share in data]
    effective = sum(share * one for share, one in zip(shares, progress, strict=True))
    change = torch.zeros_like(state.weights)
    for update, share, one in zip(updates, shares, progress, strict=True):
        change.add_(update.weights - state.weights, alpha=effective * share / one)
    return _nesterov(state, change, config)


def _progress(config: RunConfig, round_number: int, steps: int) -> float:
    rho = config.inner_momentum if config.inner_optimizer == "sgd" else 0.0
    return sum(
        learning_rate(config, round_number, step) * sum(rho**age for age in range(step + 1)) for step in range(steps)
    )


def _feddyn(state: ServerState, updates: Sequence[ClientUpdate], config: RunConfig) -> ServerState:
    """``h <- h - alpha (1/K) sum_S (w_k - w)``, ``w <- mean_S w_k - h / alpha``, over all K clients of the run.

    Source: Acar et al. 2021 (FedDyn, arXiv 2111.04263), algorithm 1. With ``alpha = 0`` it is FedAvg.
    """
    alpha, change = config.dynamic_regularization, mean_update(state, updates, config)
    drift = state.slots.get("drift", torch.zeros_like(change)) - change * (alpha * len(updates) / config.clients)
    pushed = change - drift / alpha if alpha else change
    return replace(state, weights=state.weights + pushed, slots=state.slots | {"drift": drift})


def _fedvarp(state: ServerState, updates: Sequence[ClientUpdate], config: RunConfig) -> ServerState:
    """``mean_S (d_k - y_k) + y``, with ``y_k`` what client k sent last (0 at first) and ``y`` their mean over all K.

    The noise of who is drawn falls away as far as clients send much the same again; with everybody drawn it is FedAvg.

    Source: Jhunjhunwala et al. 2022 (FedVARP, arXiv 2207.14130), algorithm 1.
    """
    fresh = torch.zeros_like(state.weights)  # sum over the cohort of d_k - y_k
    for update in updates:
        fresh.add_(update.weights - state.weights)
        if (last := state.memory.get(update.client, {}).get("update")) is not None:
            fresh.sub_(last)
    mean = state.slots.get("update_mean", torch.zeros_like(fresh))
    following = _nesterov(state, mean + fresh / len(updates), config)
    return replace(following, slots=following.slots | {"update_mean": mean + fresh / config.clients})


def _local(state: ServerState, updates: Sequence[ClientUpdate], config: RunConfig) -> ServerState:
    """Nothing is averaged; ``weights`` follows the mean of all clients' weights, which no client ever sees."""
    weights = state.weights.clone()
    for update in updates:
        before = state.memory.get(update.client, {}).get("weights", state.slots["initial"])
        weights.add_(update.weights - before, alpha=1 / config.clients)
    return replace(state, weights=weights)


def _central(state: ServerState, updates: Sequence[ClientUpdate], config: RunConfig) -> ServerState:
    """Plain training: the one client's weights, to the bit."""
    return replace(state, weights=updates[0].weights.clone())


_STEPS: dict[str, Callable[[ServerState, Sequence[ClientUpdate], RunConfig], ServerState]] = {
    "fedavgm": _heavy_ball, "fedadam": _adaptive, "fedyogi": _adaptive, "fedadagrad": _adaptive,
    "scaffold": _scaffold, "fednova": _fednova, "feddyn": _feddyn, "fedvarp": _fedvarp,
    "local": _local, "central": _central,
}  # fmt: skip


def _mean(state: ServerState, updates: Sequence[ClientUpdate], shares: Sequence[float]) -> Tensor:
    weights = torch.tensor(shares, dtype=torch.float64)
    total, change = torch.zeros_like(state.weights), torch.empty_like(state.weights)
    for update, share in zip(updates, (weights / weights.sum()).tolist(), strict=True):
        total.add_(torch.sub(update.weights, state.weights, out=change), alpha=share)
    return total
