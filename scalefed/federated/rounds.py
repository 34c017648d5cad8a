"""The loop: sample clients, let them train, take the server's step, say what happened.

A round is a pure function of the state and the config, so that a run stopped anywhere goes on from its last state as if
nothing had been: every draw is keyed by (seed, purpose, round, client).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from scalefed.config import RunConfig
from scalefed.federated.client import ClientTask, ClientUpdate, local_updates
from scalefed.federated.participation import cohort, survivors
from scalefed.federated.server import ServerState, server_step
from scalefed.models import Model
from scalefed.units import bytes_on_wire


class ClientData(Protocol):
    """Where clients' batches come from."""

    def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
        """Token ids ``(steps, batch, length + 1)`` for a client that has trained ``visit`` times before."""
        ...


@dataclass(frozen=True)
class Round:
    """A finished round: the state after it, and its line in the run log."""

    state: ServerState
    record: dict[str, Any]
    diverged: bool


def initial_state(config: RunConfig, model: Model) -> ServerState:
    """The state before round 0."""
    weights = model.initial(config.seed).to(config.device)
    return ServerState(weights=weights, visits=(0,) * config.clients)


def run_rounds(config: RunConfig, model: Model, data: ClientData, state: ServerState) -> Iterator[Round]:
    """Rounds from ``state.round`` to the end of the config's token budget; stops after a round that diverged."""
    while state.round < config.rounds:
        done = one_round(config, model, data, state)
        yield done
        if done.diverged:
            return
        state = done.state


def one_round(config: RunConfig, model: Model, data: ClientData, state: ServerState) -> Round:
    """One round from a state; the state given is not changed."""
    number = state.round
    sampled = cohort(config, number)
    steps = survivors(config, number, sampled)
    tasks = [_task(config, data, state, client, count) for client, count in steps.items()]
    rates = [learning_rate(config, number, step) for step in range(config.local_steps)]
    updates = local_updates(model, state.weights, tasks, config, learning_rates=rates)
    usable = [update for update in updates if update.finite]
    following = server_step(state, usable, config) if usable else state
    visits = tuple(count + (client in steps) for client, count in enumerate(state.visits))
    following = replace(following, round=number + 1, visits=visits)
    record = _record(config, model, state, following, sampled, updates)
    return Round(following, record, diverged=_diverged(following, usable))


def learning_rate(config: RunConfig, round_number: int, step: int) -> float:
    """The clients' learning rate: linear warm-up, then a cosine over all local steps to the final share.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, without restarts.
    """
    total = config.rounds * config.local_steps
    now = round_number * config.local_steps + step
    warm = config.warmup * total
    if now < warm:
        return config.client_learning_rate * (now + 1) / (math.floor(warm) + 1)
    progress = (now - warm) / max(total - warm, 1)
    end = config.final_learning_rate
    return config.client_learning_rate * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress)))


def _task(config: RunConfig, data: ClientData, state: ServerState, client: int, steps: int) -> ClientTask:
    batches = data.batches(client, visit=state.visits[client], steps=steps)
    tokens = torch.from_numpy(np.ascontiguousarray(batches, dtype=np.int64)).to(config.device)
    return ClientTask(client, tokens, state.memory.get(client, {}))


def _record(
    config: RunConfig,
    model: Model,
    before: ServerState,
    after: ServerState,
    sampled: tuple[int, ...],
    updates: list[ClientUpdate],
) -> dict[str, Any]:
    """One line of ``rounds.jsonl`` (:data:`scalefed.schema.ROUND_COLUMNS`); tokens and bytes are this round alone."""
    usable = [update for update in updates if update.finite]
    trained = sum(update.tokens for update in usable)
    return {
        "round": after.round,
        "tokens": sum(update.tokens for update in updates),
        "train_loss": sum(update.loss * update.tokens for update in usable) / max(trained, 1),
        "learning_rate": learning_rate(config, before.round, 0),
        **_geometry(before, after, usable),
        "clients": list(sampled),
        "participants": len(updates),
        "left_out": [update.client for update in updates if not update.finite],
        "repeats": sum(before.visits[update.client] > 0 for update in updates),
        "client_losses": [update.loss for update in updates],
        "client_tokens": [update.tokens for update in updates],
        "bytes_sent": bytes_on_wire(model.params_trained, clients_per_round=len(updates), rounds=1),
    }


def _geometry(before: ServerState, after: ServerState, updates: list[ClientUpdate]) -> dict[str, Any]:
    """Norms of the updates, and how far the clients disagree: distance from and cosine with their mean."""
    record: dict[str, Any] = {"update_norm": float(torch.linalg.vector_norm(after.weights - before.weights))}
    if not updates:
        return record
    changes = torch.stack([update.weights for update in updates]) - before.weights
    mean = changes.mean(0)
    norms, size = torch.linalg.vector_norm(changes, dim=1), torch.linalg.vector_norm(mean)
    if float(size) > 0:
        record["client_norm"] = float(norms.mean())
        record["client_drift"] = float(torch.linalg.vector_norm(changes - mean, dim=1).mean() / size)
        record["cosine"] = float(((changes @ mean) / (norms * size)).mean())
    return record


def _diverged(state: ServerState, usable: list[ClientUpdate]) -> bool:
    """True when no client returned finite weights, or the mean of them is not finite."""
    return not usable or not bool(torch.isfinite(state.weights).all())
