"""``variant="flower"`` against Flower's own strategy classes: 20 rounds on the same clients, equal to 1e-6."""

import importlib.util
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from federated_toys import Quadratic, Tokens

from scalefed.config import RunConfig
from scalefed.federated.algorithms import client_task
from scalefed.federated.client import local_updates
from scalefed.federated.participation import cohort, survivors
from scalefed.federated.rounds import initial_state, run_rounds
from scalefed.federated.schedule import learning_rates
from scalefed.federated.server import server_settings
from scalefed.federated.state import ServerState

pytestmark = [
    pytest.mark.flower,
    pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="needs the extra 'flower'"),
    pytest.mark.filterwarnings("ignore"),
]

MODEL, DATA, ROUNDS = Quadratic(), Tokens(), 20


def config(algorithm: str, **changes: object) -> RunConfig:
    base = {
        "algorithm": algorithm, "variant": "flower", "clients": 6, "clients_per_round": 3, "local_steps": 4,
        "batch_size": 2, "sequence_length": 3, "tokens": ROUNDS * 3 * 4 * 6, "learning_rate": 0.05, "stragglers": 0.5,
        "inner_state": "reset", "seed": 11, "clip_norm": math.inf,
    }  # fmt: skip
    return RunConfig(**{**base, **changes})


def strategy_of(chosen: RunConfig):
    from flwr.serverapp import strategy

    rate, momentum = server_settings(chosen)
    b1, b2, tau = chosen.server_beta1, chosen.server_beta2, chosen.server_epsilon
    return {
        "fedavg": lambda: strategy.FedAvg(),
        "fedprox": lambda: strategy.FedProx(proximal_mu=chosen.proximal),
        "fedavgm": lambda: strategy.FedAvgM(server_learning_rate=rate, server_momentum=momentum),
        "fedadam": lambda: strategy.FedAdam(eta=rate, beta_1=b1, beta_2=b2, tau=tau),
        "fedyogi": lambda: strategy.FedYogi(eta=rate, beta_1=b1, beta_2=b2, tau=tau),
        "fedadagrad": lambda: strategy.FedAdagrad(eta=rate, tau=tau),
    }[chosen.algorithm]()


def theirs(chosen: RunConfig) -> np.ndarray:
    """The clients are ours, everything at the server is Flower's."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

    strategy = strategy_of(chosen)
    weights, visits = initial_state(chosen, MODEL).weights, [0] * chosen.clients
    for number in range(ROUNDS):
        tasks = []
        for client, steps in survivors(chosen, number, cohort(chosen, number)).items():
            batches = torch.from_numpy(DATA.batches(client, visit=visits[client], steps=steps))
            tasks.append(client_task(chosen, MODEL.layout, ServerState(weights), client, batches))
            visits[client] += 1
        updates = local_updates(MODEL, weights, tasks, chosen, learning_rates=learning_rates(chosen, number))
        record = ArrayRecord({"w": Array(weights.numpy())})
        if hasattr(strategy, "current_arrays"):  # as Flower's configure_train does
            named = {"w": weights.numpy()}
            strategy.current_arrays = named if hasattr(strategy, "m_t") else strategy.current_arrays or record
        replies = [
            SimpleNamespace(  # a Message can only be made inside a running app
                has_error=lambda: False,
                content=RecordDict({
                    "arrays": ArrayRecord({"w": Array(update.weights.numpy())}),
                    "metrics": MetricRecord({"num-examples": update.tokens}),
                }),
            )
            for update in updates
        ]  # fmt: skip
        arrays, _ = strategy.aggregate_train(number + 1, replies)
        weights = torch.from_numpy(arrays["w"].numpy().copy())
    return weights.numpy()


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_twenty_rounds_agree_with_flowers_strategy(algorithm: str) -> None:
    chosen = config(algorithm)
    for done in run_rounds(chosen, MODEL, DATA, initial_state(chosen, MODEL)):
        ours = done.state.weights.numpy()
    assert done.state.round == ROUNDS
    np.testing.assert_allclose(ours, theirs(chosen), rtol=0, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["fedadam", "fedyogi", "fedadagrad"])
def test_the_paper_variant_is_another_formula(algorithm: str) -> None:
    chosen = config(algorithm, variant="paper")
    for done in run_rounds(chosen, MODEL, DATA, initial_state(chosen, MODEL)):
        ours = done.state.weights.numpy()
    assert np.abs(ours - theirs(chosen)).max() > 1e-4
