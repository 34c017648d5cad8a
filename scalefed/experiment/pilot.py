"""Which sweep fits into a few minutes on this machine? Small enough to finish, varied enough to fit a law."""

import os
import time
from itertools import product

import torch

from scalefed.config import RunConfig
from scalefed.errors import ConfigError
from scalefed.experiment.pool import cost
from scalefed.federated.preparation import prepare
from scalefed.federated.rounds import initial_state, one_round
from scalefed.sweeps import sweep

SIZES = (3_500, 14_000, 24_000, 40_000, 55_000)
SKEWED = 0.1
FIRST_SECONDS = 8.0  # a worker's start: imports and the first corpus
EVALUATION_SECONDS = 3.0  # a run's evaluation: held-out loss, sampling, judging
SHARE = 0.8  # of the time is planned, the rest is left to the fit, the charts and other work on the machine


def pilot(minutes: float = 4.0, *, workers: int | None = None, base: RunConfig | None = None) -> list[RunConfig]:
    """The configs of a pilot sweep that takes about the given minutes on this machine's cores.

    Five sizes and three token budgets, spaced by two, for one client a round; the two larger budgets again for two and
    four clients a round, iid and skewed. The budgets follow from a short timing of one round.

    Args:
        minutes: wall-clock time for the whole sweep, at least 1.
        workers: processes; one a core when None.
        base: settings all runs share.

    Raises:
        ConfigError: less than a minute is asked for.
    """
    if not minutes >= 1:
        raise ConfigError(f"a pilot sweep needs at least 1 minute, got {minutes:g}; 4 is usual")
    base = base or RunConfig(local_steps=10, samples=10, validation_tokens=32_768)
    crew = workers or os.cpu_count() or 1
    unit = _grid(base, 1.0)
    spend = (60 * minutes * SHARE - FIRST_SECONDS) * crew - EVALUATION_SECONDS * len(unit)
    rate = _seconds_per_cost(base)
    weight = sum(params_cost(base, params) * tokens for params, tokens, *_ in _plan(1.0)) * rate
    tokens = max(spend, 10.0 * crew) / weight
    return _grid(base, tokens)


def params_cost(base: RunConfig, params: int) -> float:
    """Relative cost of one token for a model size."""
    one = base.replace(params=params)
    return cost(one) / (one.rounds * one.tokens_per_round)


def _plan(tokens: float) -> list[tuple[int, float, int, float]]:
    """Rows of (params, tokens, clients_per_round, concentration) for a smallest budget of ``tokens``."""
    iid = float("inf")
    rows = [(params, tokens * budget, 1, iid) for params, budget in product(SIZES, (1, 2, 4))]
    rows += [(params, tokens * budget, 4, iid) for params, budget in product(SIZES[:4], (2, 4))]
    rows += [(params, tokens * budget, 2, iid) for params, budget in product(SIZES[1:4], (2,))]
    rows += [
        (params, tokens * budget, clients, SKEWED) for params, budget, clients in product(SIZES[1:4], (2,), (2, 4))
    ]
    return rows


def _grid(base: RunConfig, tokens: float) -> list[RunConfig]:
    configs = []
    for params, budget, clients, concentration in _plan(tokens):
        configs += sweep(
            base, params=[params], tokens=[_two_digits(budget)], clients_per_round=[clients],
            concentration=[concentration],
        )  # fmt: skip
    return configs


def _two_digits(tokens: float) -> int:
    return max(1000, int(float(f"{tokens:.1e}")))


def _seconds_per_cost(base: RunConfig) -> float:
    """Time of a unit of cost on this machine, from a second or so of training."""
    config = base.replace(params=14_000, tokens=200_000, clients_per_round=1, clients=1)
    task = prepare(config)
    state = initial_state(config, task.model)
    before, threads = 0, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        state = one_round(config, task.model, task.data, state).state
        started = time.perf_counter()
        while time.perf_counter() - started < 1.0:
            state = one_round(config, task.model, task.data, state).state
            before += config.tokens_per_round
        seconds = time.perf_counter() - started
    finally:
        torch.set_num_threads(threads)
    return seconds / (before * params_cost(config, 14_000))
