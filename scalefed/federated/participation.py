"""Who trains this round? A pure function of the seed and the round number."""

import math

import numpy as np

from scalefed.config import RunConfig
from scalefed.seeds import rng


def cohort(config: RunConfig, round_number: int) -> tuple[int, ...]:
    """The clients sampled in a round, in ascending order.

    Args:
        config: gives ``clients``, ``clients_per_round`` and the scheme ``sampling``.
        round_number: counted from 0.
    """
    draw = rng(config.seed, "participation", round_number)
    clients, wanted = config.clients, config.clients_per_round
    if config.sampling in ("fixed", "uniform"):
        chosen = draw.choice(clients, size=wanted, replace=False)
    elif config.sampling == "bernoulli":
        chosen = np.flatnonzero(draw.random(clients) < config.participation)
        if not len(chosen):
            chosen = draw.integers(clients, size=1)
    elif config.sampling == "weighted":
        weights = rng(config.seed, "availability").dirichlet(np.ones(clients))
        chosen = draw.choice(clients, size=wanted, replace=False, p=weights)
    else:  # cyclic: a window of the clients is awake, and moves on every round
        awake = min(clients, max(wanted, math.ceil(clients / 2)))
        start = (round_number * wanted) % clients
        chosen = (start + draw.choice(awake, size=wanted, replace=False)) % clients
    return tuple(sorted(int(client) for client in chosen))


def survivors(config: RunConfig, round_number: int, sampled: tuple[int, ...]) -> dict[int, int]:
    """Local steps each sampled client completes; a client that drops out is absent, a straggler does fewer.

    Returns:
        client -> steps. At least one client always completes, so that a round is never empty.
    """
    steps = {}
    for client in sampled:
        luck = rng(config.seed, "dropout", round_number, client).random(2)
        if luck[0] >= config.dropout:
            slow = luck[1] < config.stragglers
            steps[client] = max(1, round(config.local_steps * config.straggler_share)) if slow else config.local_steps
    return steps or {sampled[0]: config.local_steps}
