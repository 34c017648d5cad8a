"""How does the same run happen in Flower, simulated on one machine or spread over many?

The server app plans a round, takes the server's step and writes the record with the very functions of the native loop
(:mod:`scalefed.federated.rounds`); the client app trains with the same ``local_updates``. A native run and a Flower run
of one config therefore end with the same bits. Clients keep nothing between messages: what an algorithm lets a client
remember travels with its task, so that any node can serve any client and a run can go on from a checkpoint.

The only file that imports flwr, and only inside functions.
"""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from queue import Queue
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from scalefed.config import RunConfig
from scalefed.errors import DataError
from scalefed.federated.algorithms import client_task
from scalefed.federated.client import local_updates
from scalefed.federated.flower.app import SWITCHES, require_flower, settings_of_app, to_flower_app
from scalefed.federated.preparation import Task, prepare
from scalefed.federated.rounds import ClientData, Plan, Round, finish_round, plan_round
from scalefed.federated.state import ClientTask, ClientUpdate, ServerState
from scalefed.federated.synthetic import mixed, shares_text
from scalefed.models import Model, Tensor

__all__ = ["client_app", "run_rounds", "server_app", "to_flower_app"]

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.05  # between two looks for replies: short beside a round, long beside a look
LOST = (3, 4, 5, 8)
"""Flower's error codes of a message, a reply, a node or a client process that is gone, through no fault of the task."""
ATTEMPTS = 4  # to have one task done
SEEN_BY_CLIENTS = ("control", "initial", "synthetic")
"""The server's vectors that a client's task may be made from."""


# ---------------------------------------------------------------------- the engine
def run_rounds(
    config: RunConfig, model: Model, data: ClientData, state: ServerState, *, workers: int | None = None
) -> Iterator[Round]:
    """Rounds from ``state.round`` to the end of the token budget, as :func:`scalefed.federated.rounds.run_rounds`.

    Inside a server app the clients are the nodes of its grid; elsewhere they are simulated on this machine by Ray.

    Args:
        config: the run; every client process makes model and data from it.
        model: stateless model.
        data: used where the server takes part in making data (synthetic sharing); the clients make their own.
        state: where to start.
        workers: processes of the simulation; as many as a round has clients or this machine has cores when None.

    Raises:
        MissingExtraError: Flower is not installed.
        DataError: no client of a round answered.
    """
    link = _link.get()
    if link is not None:
        yield from _rounds(link, config, model, data, state)
    else:
        yield from _simulated(config, model, data, state, workers)


@dataclass(frozen=True)
class _Link:
    """The way to the clients: Flower's grid, how many nodes to wait for, how long, and whether to give up."""

    grid: Any
    nodes: int
    timeout_s: float
    stopped: threading.Event = field(default_factory=threading.Event)


_link: ContextVar[_Link | None] = ContextVar("link", default=None)


def server_app(run: Callable[[RunConfig, str], object]) -> Any:
    """A Flower server app that calls ``run(config, output)``; :func:`run_rounds` then trains on the app's nodes.

    Args:
        run: trains the config and writes the run log to the folder ``output``.
    """
    flower = flower_names()
    app = flower.ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Any, context: Any) -> None:
        settings = settings_of_app(context.run_config)
        token = _link.set(_Link(grid, settings.nodes, settings.timeout_s))
        try:
            run(settings.config, settings.output)
        finally:
            _link.reset(token)

    return app


def client_app(config: RunConfig | None = None) -> Any:
    """A Flower client app that trains any client of a run.

    Args:
        config: the run; from the app's run configuration when None.
    """
    app = flower_names().ClientApp()

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Any, context: Any) -> Any:
        return _answer(message, config or settings_of_app(context.run_config).config)

    return app


# ---------------------------------------------------------------------- the server's side
class _Unseen:
    """Stands for the clients' text at the server, which plans a round without it."""

    def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
        """Empty blocks of the right number of steps."""
        del client, visit
        return np.zeros((steps, 1, 2), dtype=np.int64)


def _rounds(link: _Link, config: RunConfig, model: Model, data: ClientData, state: ServerState) -> Iterator[Round]:
    """The native loop, with clients that train elsewhere."""
    source, nodes = data if shares_text(config) else _Unseen(), link.nodes
    while state.round < config.rounds:
        plan = plan_round(config, model, source, state)
        updates, nodes = _ask(link, plan, nodes), 1  # those that leave later are done without
        answered = tuple(task for task in plan.tasks if task.client in updates)
        done = finish_round(config, model, replace(plan, tasks=answered), [updates[task.client] for task in answered])
        yield done
        if done.diverged:
            return
        state = done.state


def _ask(link: _Link, plan: Plan, nodes: int) -> dict[int, ClientUpdate]:
    """Send every task of a round to a node, once ``nodes`` are there; the updates that came back, by client.

    A task that is lost with its node or the process there is sent again, to the next node: any node serves any client,
    so nothing of the round is lost.
    """
    post = _Post(link, plan)
    post.send(plan.tasks, _await_nodes(link, nodes))
    updates, complaints = {}, []
    deadline = time.monotonic() + link.timeout_s
    while post.waiting and time.monotonic() < deadline:
        if link.stopped.is_set():
            raise DataError("the Flower simulation ended before the round did; see its log")
        for reply in link.grid.pull_messages(set(post.waiting)):
            task = post.waiting.pop(reply.metadata.reply_to_message_id)
            if not reply.has_error():
                update = _read_update(reply.content)
                updates[update.client] = update
                continue
            again = reply.error.code in LOST and post.sent[task.client] < ATTEMPTS
            said = "was lost and is sent again" if again else "failed"
            logger.warning("round %d: client %d %s: %s", plan.state.round + 1, task.client, said, reply.error.reason)
            if again:
                post.send([task], _await_nodes(link, 1))
            else:
                complaints.append(str(reply.error.reason))
        time.sleep(POLL_SECONDS if post.waiting else 0)
    if not updates:
        reason = complaints[0] if complaints else f"nothing within {link.timeout_s:g} s; raise timeout_s"
        raise DataError(f"no client of round {plan.state.round + 1} answered: {reason}")
    return updates


class _Post:
    """The tasks of a round on their way: ``waiting`` by message, and how often each client's was ``sent``."""

    def __init__(self, link: _Link, plan: Plan) -> None:
        self.waiting: dict[str, ClientTask] = {}
        self.sent: Counter[int] = Counter()
        self._link, self._plan, self._turn = link, plan, 0

    def send(self, tasks: Sequence[ClientTask], nodes: Sequence[int]) -> None:
        """Send tasks to the nodes in turn, beginning after the last one that was sent to."""
        flower, messages = flower_names(), []
        for task in tasks:
            node, self._turn = nodes[self._turn % len(nodes)], self._turn + 1
            messages.append(flower.Message(_task_record(self._plan, task), dst_node_id=node, message_type="train"))
            self.sent[task.client] += 1
        self.waiting |= dict(zip(self._link.grid.push_messages(messages), tasks, strict=True))


def _await_nodes(link: _Link, wanted: int) -> list[int]:
    """Ids of the nodes in the order in which they registered, once there are as many as wanted."""
    deadline = time.monotonic() + link.timeout_s
    while len(nodes := list(link.grid.get_nodes())) < wanted:
        if link.stopped.is_set() or time.monotonic() > deadline:
            raise DataError(f"{len(nodes)} of {wanted} Flower nodes are there after {link.timeout_s:g} s")
        time.sleep(POLL_SECONDS)
    return [node.node_id for node in sorted(nodes, key=lambda node: (node.registered_at, node.node_id))]


# ---------------------------------------------------------------------- the client's side
def _answer(message: Any, config: RunConfig) -> Any:
    """One client's round: the same steps from the task to the update as in the native loop."""
    flower = flower_names()
    work, arrays = message.content["work"], tensors_in(message.content["arrays"])
    torch.set_num_threads(int(work["threads"]))
    task, client = task_of(config), int(work["client"])
    state = ServerState(
        weights=arrays["weights"], round=int(work["round"]), slots=_named(arrays, "slot."),
        memory={client: _named(arrays, "memory.")},
    )  # fmt: skip
    batches = task.data.batches(client, visit=int(work["visit"]), steps=int(work["steps"]))
    if shares_text(config):
        batches = mixed(config, task.model, state, client, batches)
    tokens = torch.from_numpy(np.ascontiguousarray(batches, dtype=np.int64))
    order = client_task(config, task.model.layout, state, client, tokens)
    (update,) = local_updates(task.model, state.weights, [order], config, learning_rates=list(work["rates"]))
    return flower.Message(_update_record(update), reply_to=message)


@lru_cache(maxsize=1)
def task_of(config: RunConfig) -> Task:
    """Model and data of a config, made once in a client process."""
    return prepare(config)


# ---------------------------------------------------------------------- what travels
def _task_record(plan: Plan, task: ClientTask) -> Any:
    """A client's task as Flower sends it: vectors, and who, which round, how many steps at which rates."""
    flower, state = flower_names(), plan.state
    slots = {f"slot.{name}": state.slots[name] for name in SEEN_BY_CLIENTS if name in state.slots}
    memory = {f"memory.{name}": vector for name, vector in task.memory.items()}
    work = {
        "client": task.client, "visit": state.visits[task.client], "round": state.round, "steps": task.steps,
        "rates": list(plan.rates), "threads": torch.get_num_threads(),
    }  # fmt: skip
    arrays = record_of({"weights": state.weights} | slots | memory)
    return flower.RecordDict({"arrays": arrays, "work": flower.ConfigRecord(work)})


def _update_record(update: ClientUpdate) -> Any:
    flower = flower_names()
    arrays = {"weights": update.weights} | {f"memory.{name}": vector for name, vector in update.memory.items()}
    if update.gradient is not None:
        arrays["gradient"] = update.gradient
    metrics = {"client": update.client, "steps": update.steps, "tokens": update.tokens, "loss": update.loss}
    return flower.RecordDict({"arrays": record_of(arrays), "metrics": flower.MetricRecord(metrics)})


def _read_update(content: Any) -> ClientUpdate:
    arrays, metrics = tensors_in(content["arrays"]), content["metrics"]
    return ClientUpdate(
        client=int(metrics["client"]), weights=arrays["weights"], steps=int(metrics["steps"]),
        tokens=int(metrics["tokens"]), loss=float(metrics["loss"]), memory=_named(arrays, "memory."),
        gradient=arrays.get("gradient"),
    )  # fmt: skip


def record_of(tensors: Mapping[str, Tensor]) -> Any:
    """Tensors as a Flower record, bit for bit; bfloat16, which Flower refuses, goes as int16 under another name."""
    flower, arrays = flower_names(), {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.dtype == torch.bfloat16:
            name, plain = f"{name}:bfloat16", plain.view(torch.int16)
        arrays[name] = flower.Array(plain.numpy())
    return flower.ArrayRecord(arrays)


def tensors_in(record: Any) -> dict[str, Tensor]:
    """The tensors of such a record."""
    tensors = {}
    for name, array in record.items():
        tensor = torch.from_numpy(array.numpy().copy())
        if name.endswith(":bfloat16"):
            name, tensor = name.removesuffix(":bfloat16"), tensor.view(torch.bfloat16)
        tensors[name] = tensor
    return tensors


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


# ---------------------------------------------------------------------- the simulation
def _simulated(
    config: RunConfig, model: Model, data: ClientData, state: ServerState, workers: int | None
) -> Iterator[Round]:
    """Rounds of a Ray simulation that runs in a thread and waits between rounds until the next one is wanted."""
    flower = flower_names()
    count = workers or max(1, min(config.clients_per_round, len(os.sched_getaffinity(0))))
    wanted: Queue[bool] = Queue()
    finished: Queue[Round | BaseException | None] = Queue()
    stopped, threads = threading.Event(), torch.get_num_threads()
    app = flower.ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def serve(grid: Any, context: Any) -> None:
        del context
        torch.set_num_threads(threads)
        rounds = _rounds(_Link(grid, config.clients_per_round, 3600.0, stopped), config, model, data, state)
        while wanted.get() and (done := next(rounds, None)) is not None:
            finished.put(done)

    def simulate() -> None:
        try:
            _run_simulation(app, client_app(config), config, count)
            finished.put(None)
        except BaseException as error:  # whatever happens in there belongs to who asked for the rounds
            finished.put(error)
        finally:
            stopped.set()

    thread = threading.Thread(target=simulate, name="flower-simulation")
    thread.start()
    try:
        while True:
            wanted.put(True)
            done = finished.get()
            if isinstance(done, BaseException):
                raise done
            if done is None:
                return
            yield done
    finally:
        stopped.set()
        wanted.put(False)
        thread.join()


def _run_simulation(server: Any, client: Any, config: RunConfig, workers: int) -> None:
    """Flower's own simulation, told to keep quiet about its deprecation and its progress."""
    from flwr.simulation import run_simulation

    on_gpu = config.device.startswith("cuda")
    chatter = logging.getLogger("flwr")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        run_simulation(
            server_app=server,
            client_app=client,
            num_supernodes=config.clients_per_round,  # any of them serves any client
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 1.0 / workers if on_gpu else 0.0},
                "init_args": {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False},
            },
        )
    finally:
        chatter.setLevel(level)


# ---------------------------------------------------------------------- Flower itself
@lru_cache(maxsize=1)
def flower_names() -> Any:
    """The names of Flower that are used here, imported with its switches set."""
    require_flower()
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    from flwr import app, clientapp, serverapp

    return SimpleNamespace(
        Array=app.Array, ArrayRecord=app.ArrayRecord, ConfigRecord=app.ConfigRecord, Message=app.Message,
        MetricRecord=app.MetricRecord, RecordDict=app.RecordDict, ClientApp=clientapp.ClientApp,
        ServerApp=serverapp.ServerApp,
    )  # fmt: skip
