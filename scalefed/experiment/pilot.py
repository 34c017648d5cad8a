"""Which sweep fits into a few minutes on this machine? Small enough to finish, varied enough to fit a law."""

import os
import time

import torch

from scalefed.beginning import first_runs
from scalefed.config import RunConfig
from scalefed.errors import ConfigError
from scalefed.experiment.pool import cost
from scalefed.federated.preparation import prepare
from scalefed.federated.rounds import initial_state, one_round

COUNT = 17  # runs: two isoFLOP slices of four sizes at each of two cohorts, and one skewed run
COHORTS = (1, 4)  # clients per round: one, and the fewest that show averaging
TOKENS_PER_PARAM = 400.0  # about the best of so small models
BUDGET_RATIO = 6.0  # in much shorter runs losses follow no law yet
SMALLEST = 3_500  # params; a smaller model learns too little for the law to hold
FIRST_SECONDS = 8.0  # a worker's start: imports and the first corpus
EVALUATION_SECONDS = 3.0  # a run's evaluation: held-out loss, sampling, judging
_STEPS = 12  # to the compute that takes the time; each leaves less than half of the gap in logs
SHARE = 0.8  # of the time is planned, the rest is left to the fit, the charts and other work on the machine


def pilot(minutes: float = 4.0, *, workers: int | None = None, base: RunConfig | None = None) -> list[RunConfig]:
    """The configs of a pilot sweep that takes about the given minutes on this machine's cores.

    The design of :func:`scalefed.first_runs`: two isoFLOP slices at each of 1 and 4 clients a round and one skewed
    run. Its compute follows from a short timing of one round.

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
    spend = max((60 * minutes * SHARE - FIRST_SECONDS) * crew - EVALUATION_SECONDS * COUNT, 10.0 * crew)
    budget, compute = spend / _seconds_per_cost(base), 1e12
    for _ in range(_STEPS):
        compute *= budget / sum(map(cost, runs_of(base, compute)))
    return runs_of(base, compute)


def runs_of(base: RunConfig, compute: float) -> list[RunConfig]:
    """The design for a compute, its sizes no smaller than the ladder's second rung."""
    table = first_runs(
        compute=compute,
        count=COUNT,
        clients_per_round=COHORTS,
        tokens_per_param=TOKENS_PER_PARAM,
        budget_ratio=BUDGET_RATIO,
    )
    table = table.assign(
        large=table.compute > table.compute.mean(),
        tokens=lambda runs: (runs.tokens * (runs.params / SMALLEST).clip(upper=1)).astype(int),
        params=lambda runs: runs.params.clip(lower=SMALLEST),
    )
    table = table[~table.duplicated(["params", "clients_per_round", "concentration", "large"])]
    names = ("params", "tokens", "clients_per_round", "concentration")
    return [base.replace(**{name: row[name] for name in names}) for row in table.to_dict("records")]


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
    return seconds / before / (cost(config) / (config.rounds * config.tokens_per_round))
