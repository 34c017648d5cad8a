"""How are many runs made? One process a core, each training one bundle of runs after the other, or a Ray cluster's.

Workers are plain child processes that take configs as JSON lines and answer with events, so a sweep can be started from
a script, a notebook or the shell alike. A bundle is one run, or several that train faster together. A worker that dies
is replaced and its runs tried once more, each alone; a killed sweep goes on where it stopped, because runs in the log
are skipped and unfinished ones resume from their checkpoints.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalefed.config import RunConfig
from scalefed.errors import ConfigError, ScalefedError
from scalefed.experiment.bundles import bundles
from scalefed.experiment.cluster import ENVIRONMENT, connected, made_on_cluster
from scalefed.experiment.training import stored
from scalefed.federated.native import choose
from scalefed.models import build_model
from scalefed.runs.files import place_run
from scalefed.runs.log import Run

ENGINES = ("native", "ray")
ATTEMPTS = 2  # a process that was killed for memory is tried once more; twice is no accident
OVERHEAD_PARAMS = 25_000  # a step costs about as much beside its matrix products as these many parameters do


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands.

    Attributes:
        done: runs stored, those found stored included.
        total: runs asked for.
        running: run ids in work.
        seconds_left: estimate, or None before the first event.
        last_run_id: the run stored last, or an empty string.
        failed: run id and message of the runs given up.
    """

    done: int
    total: int
    running: tuple[str, ...]
    seconds_left: float | None
    last_run_id: str
    failed: tuple[tuple[str, str], ...] = ()


@dataclass
class _Worker:
    """A child process and the runs of its bundle that are not stored yet."""

    process: subprocess.Popen[str]
    bundle: tuple[RunConfig, ...] = ()
    share: float = 0.0


_Events = queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]]


@dataclass
class _Board:
    """What is waiting, done and failed, and how fast it goes."""

    configs: list[RunConfig]
    waiting: deque[tuple[RunConfig, ...]]
    found: int
    started: float = field(default_factory=time.monotonic)
    attempts: dict[str, int] = field(default_factory=dict)
    finished: list[RunConfig] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def progress(self, workers: Sequence[_Worker]) -> Progress:
        """The state of the sweep as a frozen summary."""
        busy = [(config, worker.share) for worker in workers for config in worker.bundle]
        spent = sum(map(cost, self.finished)) + sum(cost(config) * share for config, share in busy)
        left = sum(cost(config) for bundle in self.waiting for config in bundle)
        left += sum(cost(config) * (1 - share) for config, share in busy)
        elapsed = time.monotonic() - self.started
        return Progress(
            done=self.found + len(self.finished),
            total=len(self.configs),
            running=tuple(config.run_id for config, _ in busy),
            seconds_left=elapsed * left / spent if spent else None,
            last_run_id=self.finished[-1].run_id if self.finished else "",
            failed=tuple(self.failed.items()),
        )


def cost(config: RunConfig) -> float:
    """Relative time of a run: tokens times parameters, plus what a step costs beside its matrix products."""
    return config.rounds * config.tokens_per_round * (config.params + OVERHEAD_PARAMS)


def train_all(
    configs: Sequence[RunConfig],
    *,
    runs: str | os.PathLike[str] = "runs",
    workers: int | None = None,
    engine: str = "native",
    address: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Run]:
    """Train many runs on all cores; runs that are stored already are not made again.

    Args:
        configs: the runs wanted; the longest are started first.
        runs: folder of the run log.
        workers: processes; one a core when None.
        engine: native for the cores of this machine, ray for those of a Ray cluster: the same log with the same bits.
        address: of a node of the Ray cluster; None takes the one that runs on this machine, or starts one.
        on_progress: called whenever something happened.

    Returns:
        The stored runs in the order of ``configs``, without those that failed.

    Raises:
        ConfigError: no configs, fewer than one worker, an unknown engine, an address without Ray, or kernels
            are demanded that this machine does not have.
        MissingExtraError: Ray is not installed.
        ScalefedError: runs failed; the message names them. All others are stored.
    """
    if not configs or (workers is not None and workers < 1):
        raise ConfigError(f"train_all needs at least one config and one worker, got {len(configs)} and {workers}")
    if engine not in ENGINES or (engine != "ray" and address is not None) or (engine == "ray" and workers is not None):
        raise ConfigError(
            f"engine must be native (with workers) or ray (with address), got {engine!r} with workers {workers} and "
            f"address {address!r}"
        )
    unique = list({config.run_id: config for config in configs}.values())
    left = sorted((config for config in unique if not stored(runs, config)), key=cost, reverse=True)
    board = _Board(unique, deque(), found=len(unique) - len(left))
    tell = on_progress or (lambda _: None)
    if engine == "ray" and left:
        with connected(address) as cores:
            _work_on_cluster(board, bundles(left, workers=cores), runs, tell)
    else:
        _work_here(board, left, workers or os.cpu_count() or 1, runs, tell)
    if board.failed:
        listed = "; ".join(f"{name}: {message}" for name, message in board.failed.items())
        raise ScalefedError(f"{len(board.failed)} of {len(unique)} runs failed, the others are stored. {listed}")
    return [Run.load(Path(runs) / config.run_id) for config in unique]


def _work_here(
    board: _Board, left: list[RunConfig], hands: int, runs: str | os.PathLike[str], tell: Callable[[Progress], None]
) -> None:
    """Share the runs that are left among processes of this machine."""
    for config in left:
        if config.kernels == "native":
            choose(build_model(config), config)
    hands = min(hands, len(left))
    board.waiting.extend(bundles(left, workers=hands))
    crew: list[_Worker] = []
    try:
        crew = [_hire(runs) for _ in range(min(hands, len(board.waiting)))]
        _work(board, crew, runs, tell)
    finally:
        for worker in crew:
            worker.process.kill()
            worker.process.wait()
            _close(worker)


def _work_on_cluster(
    board: _Board,
    waiting: Sequence[tuple[RunConfig, ...]],
    runs: str | os.PathLike[str],
    tell: Callable[[Progress], None],
) -> None:
    """Store what comes home from the nodes of a cluster."""
    board.waiting.extend(waiting)
    tell(board.progress(()))
    for bundle, made in made_on_cluster(waiting):
        board.waiting.remove(bundle)
        for config in bundle:
            files = made[config.run_id]
            if isinstance(files, str):
                board.failed[config.run_id] = files
            else:
                place_run(Path(runs), config.run_id, files)
                board.finished.append(config)
        tell(board.progress(()))


def _work(board: _Board, crew: list[_Worker], runs: str | os.PathLike[str], tell: Callable[[Progress], None]) -> None:
    """Hand out configs and listen until nothing is waiting and nobody works."""
    events: _Events = queue.SimpleQueue()
    for worker in crew:
        _listen(events, worker)
        _assign(board, worker)
    tell(board.progress(crew))
    while any(worker.bundle for worker in crew):
        worker, event = events.get()
        if event is not None:
            _hear(board, worker, event)
        else:  # the worker is gone
            _bury(board, worker)
            crew.remove(worker)
            if board.waiting:
                crew.append(_hire(runs))
                _listen(events, crew[-1])
                _assign(board, crew[-1])
        tell(board.progress(crew))


def _hire(runs: str | os.PathLike[str]) -> _Worker:
    process = subprocess.Popen(
        [sys.executable, "-m", "scalefed.experiment.worker", os.fspath(runs)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT,
    )  # fmt: skip
    return _Worker(process)


def _listen(events: _Events, worker: _Worker) -> None:
    """Put every event of a worker into the queue, and None when its output ends."""

    def read() -> None:
        assert worker.process.stdout is not None
        with worker.process.stdout as lines:
            for line in lines:
                events.put((worker, json.loads(line)))
        events.put((worker, None))

    threading.Thread(target=read, daemon=True).start()


def _assign(board: _Board, worker: _Worker) -> None:
    worker.bundle, worker.share = (board.waiting.popleft() if board.waiting else ()), 0.0
    if not worker.bundle:
        return
    for config in worker.bundle:
        board.attempts[config.run_id] = board.attempts.get(config.run_id, 0) + 1
    assert worker.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # a dead worker's end is about to be heard; its runs are then requeued
        worker.process.stdin.write(json.dumps([config.changed() for config in worker.bundle]) + "\n")
        worker.process.stdin.flush()


def _hear(board: _Board, worker: _Worker, event: dict[str, Any]) -> None:
    if event["event"] == "round":
        worker.share = min(1.0, event["rounds"] / worker.bundle[0].rounds)
        return
    (config,) = (one for one in worker.bundle if one.run_id == event["run_id"])
    if event["event"] == "stored":
        board.finished.append(config)
    else:
        board.failed[config.run_id] = event["message"]
    worker.bundle = tuple(one for one in worker.bundle if one is not config)
    if not worker.bundle:
        _assign(board, worker)


def _bury(board: _Board, worker: _Worker) -> None:
    """A worker died: each of its runs goes back to the queue once, alone, then counts as failed."""
    code = worker.process.wait()
    _close(worker)
    for config in worker.bundle:
        if board.attempts[config.run_id] < ATTEMPTS:
            board.waiting.appendleft((config,))
        else:
            board.failed[config.run_id] = f"its process ended with exit code {code}, {ATTEMPTS} times"


def _close(worker: _Worker) -> None:
    with contextlib.suppress(BrokenPipeError):  # what was still buffered for a dead worker is of no use
        if worker.process.stdin is not None:
            worker.process.stdin.close()
