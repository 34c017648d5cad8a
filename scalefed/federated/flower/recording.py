"""How does a Flower run become a run of the log? One line around any strategy.

The run's files are :mod:`scalefed.federated.flower.recorder`'s; ``load_runs`` and ``fit`` read them like any other's.
"""

import contextlib
import numbers
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from scalefed.errors import ConfigError, DataError
from scalefed.federated.flower.log import WRAPPED, StrategyLog
from scalefed.federated.flower.recorder import EMBEDDINGS, Recorder
from scalefed.runs.files import check_record
from scalefed.runs.schema import COLUMNS


def log_flower(
    strategy: Any,
    *,
    runs: str | os.PathLike[str] = "runs/flower",
    run_id: str | None = None,
    params: int | None = None,
    embeddings: Sequence[str] = EMBEDDINGS,
    tokens_per_example: float = 1.0,
    local_epochs: float = 1.0,
    clients: int | None = None,
    local_steps: int | None = None,
    concentration: float | None = None,
    skew: float | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Any:
    """Make any Flower strategy keep a run log that ``load_runs`` reads and ``fit`` fits: one line in an app.

    ``strategy = sf.log_flower(FedAvg(...), runs="runs/mine")``. Every start of the strategy is a run of its own. Known
    without being told: parameters and bytes (from the arrays), the nodes there are and those of a round, examples,
    metrics, clients that failed and why, wall time. The strategy's class and algorithm stay untouched.

    Seeding everything does not make two Flower runs equal: node ids come from the operating system, sampling from the
    global ``random``, and replies are averaged as they arrive. With ``seed``, nodes count in the order in which they
    registered (in a simulation that of the partitions), each round samples from its own stream, and replies are sorted.
    Set the strategy's ``min_available_nodes`` to the number of nodes too: Flower may start before all are there.

    Args:
        strategy: an object of :class:`flwr.serverapp.strategy.Strategy`.
        runs: folder of the run log, made if needed.
        run_id: name of the run; made from the strategy's name and the time when None.
        params: non-embedding parameters; counted in the initial arrays when None, which is wrong where these are a part
            of the model, such as adapters.
        embeddings: arrays with one of these in their names are not counted in ``params``.
        tokens_per_example: tokens of a training example; with 1 the run's tokens are its examples. Where clients report
            ``num-tokens`` that counts.
        local_epochs: passes over its examples that a client makes in a visit.
        clients: clients that hold data; the nodes that were there when None.
        local_steps: optimizer steps of a client in a round, where they are known.
        concentration: Dirichlet concentration of the clients' mixtures, where they were made so.
        skew: measured difference of the clients' mixtures, 0 to 1, such as ``sf.measured_skew`` tells.
        settings: what else is to be a column of the run, such as ``{"learning_rate": 1e-3}``.
        seed: of the sampling; None leaves sampling and order as they are.

    Returns:
        The same strategy.

    Raises:
        ConfigError: it is not a strategy of Flower's message API, a number is out of range, or the run is there
            already.
    """
    if missing := [name for name in WRAPPED if not callable(getattr(strategy, name, None))]:
        raise ConfigError(f"{type(strategy).__name__} has no {missing[0]}; give a strategy of flwr.serverapp.strategy")
    for name, value in (("tokens_per_example", tokens_per_example), ("local_epochs", local_epochs)):
        if not (isinstance(value, numbers.Real) and value > 0):
            raise ConfigError(f"{name} must be a positive number, got {value!r}")
    told = {"clients": clients, "local_steps": local_steps, "concentration": concentration, "seed": seed,
            "params": params, "skew": skew, **(settings or {})}  # fmt: skip
    told = {name: value for name, value in told.items() if value is not None}
    try:
        check_record(told, COLUMNS, "log_flower")
    except DataError as error:
        raise ConfigError(str(error).split("; train the run")[0]) from None
    kept = Recorder(strategy, Path(runs).resolve(), run_id, told, tuple(embeddings), tokens_per_example * local_epochs)
    log = StrategyLog(kept.take, seed, {name: getattr(strategy, name) for name in WRAPPED}, private_sampling)
    for name in WRAPPED:
        setattr(strategy, name, getattr(log, name))
    return strategy


@contextlib.contextmanager
def private_sampling(seed: int) -> Iterator[None]:
    """Let Flower's node sampling draw from a stream of its own instead of the global one."""
    utils: Any = import_module("flwr.serverapp.strategy.strategy_utils")
    shared = utils.random
    utils.random = random.Random(seed)  # it calls random.sample
    try:
        yield
    finally:
        utils.random = shared
