"""The loop: sample clients, let them train, take the server's step, say what happened.

A round is a pure function of the state and the config, so that a run stopped anywhere goes on from its last state as if
nothing had been: every draw is keyed by (seed, purpose, round, client).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from scalefed.config import RunConfig
from scalefed.federated.algorithms import client_task, conclude, first_slots
from scalefed.federated.client import local_updates
from scalefed.federated.client_memory import at_rest
from scalefed.federated.participation import cohort, survivors
from scalefed.federated.records import round_record
from scalefed.federated.schedule import learning_rate, learning_rates
from scalefed.federated.server import server_settings, server_step
from scalefed.federated.state import ClientTask, ClientUpdate, ServerState, all_finite
from scalefed.federated.synthetic import mixed, pool_bytes, shares_text, with_pool
from scalefed.models import Model

__all__ = [
    "ClientData",
    "Plan",
    "Round",
    "finish_round",
    "initial_state",
    "learning_rate",
    "one_round",
    "plan_round",
    "run_rounds",
]


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


@dataclass(frozen=True)
class Plan:
    """A round before the clients train.

    Attributes:
        state: what the round starts from.
        sampled: clients drawn, in ascending order.
        tasks: of those that will answer.
        rates: learning rate of each local step.
        extra_bytes: sent to prepare the round, such as synthetic text.
    """

    state: ServerState
    sampled: tuple[int, ...]
    tasks: tuple[ClientTask, ...]
    rates: tuple[float, ...]
    extra_bytes: int = 0


def initial_state(config: RunConfig, model: Model) -> ServerState:
    """The state before round 0.

    Raises:
        ConfigError: a server setting is given that the algorithm has no use for.
    """
    server_settings(config)
    weights = model.initial(config.seed).cpu()
    return ServerState(weights=weights, slots=first_slots(config, weights), visits=(0,) * config.clients)


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
    plan = plan_round(config, model, data, state)
    updates = local_updates(model, plan.state.weights, plan.tasks, config, learning_rates=plan.rates)
    return finish_round(config, model, plan, updates)


def plan_round(config: RunConfig, model: Model, data: ClientData, state: ServerState) -> Plan:
    """Who trains in the next round, on what, from where."""
    extra_bytes = 0
    if shares_text(config) and "synthetic" not in state.slots:
        state = with_pool(config, data, state)
        extra_bytes = pool_bytes(config, state)
    sampled = cohort(config, state.round)
    tasks = []
    for client, steps in survivors(config, state.round, sampled).items():
        batches = data.batches(client, visit=state.visits[client], steps=steps)
        if shares_text(config):
            batches = mixed(config, model, state, client, batches)
        tokens = torch.from_numpy(np.ascontiguousarray(batches, dtype=np.int64))
        tasks.append(client_task(config, model.layout, state, client, tokens))
    return Plan(state, sampled, tuple(tasks), tuple(learning_rates(config, state.round)), extra_bytes)


def finish_round(config: RunConfig, model: Model, plan: Plan, updates: Sequence[ClientUpdate]) -> Round:
    """The server's side of a round, from what the clients sent; updates that are not finite are left out.

    A client that was left out keeps the memory it had: its next round starts as if it had not been drawn. When no
    update is finite, or the new weights are not, the round counts as diverged.
    """
    before = plan.state
    done = [conclude(config, before, task, update) for task, update in zip(plan.tasks, updates, strict=True)]
    usable = [update for update in done if update.finite]
    following = server_step(before, usable, config, layout=model.layout) if usable else before
    trained = {task.client for task in plan.tasks}
    remembered = {update.client: update.memory for update in usable if update.memory}
    following = replace(
        following,
        round=before.round + 1,
        visits=tuple(count + (client in trained) for client, count in enumerate(before.visits)),
        memory=before.memory | at_rest(remembered, config.clients),
    )
    record = round_record(config, model, before, following, plan.sampled, done, extra_bytes=plan.extra_bytes)
    return Round(following, record, diverged=not usable or not all_finite(following.weights))
