"""Who trains this round? A pure function of the seed and the round number."""

import math

import numpy as np

from scalefed.config import RunConfig
from scalefed.seeds import rng


def cohort(config: RunConfig, round_number: int) -> tuple[int, ...]:
    """The clients sampled in a round, in ascending order.

    ``fixed`` and ``uniform`` draw ``clients_per_round`` of them, all equally likely; ``bernoulli`` lets every client
    come with probability ``participation`` (one at random when none comes); ``weighted`` draws them by an availability
    that differs between clients (Dirichlet with concentration 1, fixed for the run); ``cyclic`` draws from a window of
    half the clients that moves on every round.

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
        client -> steps. When all of them drop out, the one that came nearest to staying completes, so that a round is
        never empty.
    """
    uniforms = {client: rng(config.seed, "dropout", round_number, client).random(2) for client in sampled}
    staying = [client for client in sampled if uniforms[client][0] >= config.dropout]
    few = max(1, round(config.local_steps * config.straggler_share))
    return {
        client: few if uniforms[client][1] < config.stragglers else config.local_steps
        for client in staying or [max(sampled, key=lambda client: uniforms[client][0])]
    }
