"""How are many samples spread over workers, so that no verdict is lost and memory stays flat?

Samples are taken from an iterator only as workers need them, a few in flight per worker. What waits behind a slow
sample when there are no others left is given to idle workers too, and the first verdict counts: so time-outs side by
side in the input are waited for by all cores. A worker that dies is replaced and its samples are given out again; one
that dies or hangs on the same sample repeatedly costs that sample only.
"""

import json
import os
import select
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from scalefed.errors import SandboxError
from scalefed.sandbox import kernel
from scalefed.sandbox.launcher import command
from scalefed.sandbox.messages import Link, Outcome, Usage

_IN_FLIGHT = 32  # jobs sent ahead to a worker, so that it never waits for the next
_SLOW = 0.1  # seconds without a verdict, after which others help a worker
_ATTEMPTS = 3  # times that a sample, alone with a tester, ends it, before that is its verdict
_TESTS_CPU, _TESTS_WALL = 8, 32  # times its limit that a sample may keep its tester computing, and busy at all
_GRACE = 30.0  # seconds more, for tests that have much to do themselves
_NONE = Usage(0.0, None)
_LEVELS = {"auto": ("ns", "landlock")}

Problem = tuple[str, str, str, str]
"""prompt, reference solution, tests, entry point."""


@dataclass(slots=True)
class _Job:
    ticket: int
    key: str
    completion: str
    alone: bool = False  # its tester died once: it is given out with no other
    twice: bool = False  # two workers have it
    deaths: int = 0


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    link: Link
    facts: dict[str, Any] | None = None
    known: set[str] = field(default_factory=set)
    jobs: dict[int, _Job] = field(default_factory=dict)
    moved: float = 0.0
    cpu_before: float = 0.0
    overdue: bool = False

    def move(self) -> None:
        """It was heard of, or has just got something to do."""
        self.moved, self.cpu_before = time.monotonic(), kernel.cpu_seconds(self.process.pid) or 0.0


class Pool:
    """Workers that judge samples; use it as a context so that none is left behind."""

    def __init__(
        self,
        problems: dict[str, Problem],
        *,
        isolation: str,
        timeout: float,
        memory_mb: int,
        scratch_mb: int,
        shared: int,
        packages: tuple[str, ...],
        workers: int,
    ):
        """Start the workers and wait until the first is ready; raises SandboxError if it cannot be."""
        self._problems, self._timeout, self._isolation = problems, timeout, isolation
        self._config: dict[str, Any] = {
            "levels": _LEVELS.get(isolation, (isolation,)),
            "timeout": timeout,
            "memory_mb": memory_mb,
        }
        self._config |= {"scratch_mb": scratch_mb, "shared": shared, "packages": packages}
        self._again: deque[_Job] = deque()
        self._facts: dict[str, Any] = {}
        self._workers = [self._start() for _ in range(workers)]
        try:
            while self._workers[0].facts is None:
                self._hear(self._workers[0])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def facts(self) -> dict[str, Any]:
        """What is in force: ``level``, ``landlock`` version, ``refused`` levels and why."""
        return self._facts

    def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        arguments = [str(theirs.fileno()), json.dumps(self._config)]
        process = subprocess.Popen(
            command("scalefed.sandbox.tester", slim=False) + arguments,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the caller, who then ends its workers
        )
        theirs.close()
        return _Worker(process, Link(ours), moved=time.monotonic())

    def run(self, samples: Iterable[tuple[str, str]]) -> Iterator[tuple[int, Outcome]]:
        """Judge (key, completion) pairs: their positions and outcomes, in the order in which they are done."""
        source = (_Job(ticket, key, completion) for ticket, (key, completion) in enumerate(samples))
        while True:
            while any([self._feed(worker, source) for worker in self._workers]):
                pass
            busy = [worker for worker in self._workers if worker.jobs]
            if not busy:
                return
            for worker in self._ready(busy):
                yield from self._hear(worker)
                if worker.link.closed:
                    yield from self._bury(worker)
            self._end_overdue()

    def _feed(self, worker: _Worker, source: Iterator[_Job]) -> bool:
        """Give one more sample to a worker that has room for it; False if there was none to give.

        Samples that may have ended another worker go out singly, when no other is in flight.
        """
        if len(worker.jobs) >= _IN_FLIGHT or worker.link.closed or any(job.alone for job in worker.jobs.values()):
            return False
        if self._again:
            if worker.jobs:
                return False
            job: _Job | None = self._again.popleft()
        else:
            job = next(source, None) or (None if worker.jobs else self._waiting())
        if job is None:
            return False
        self._give(worker, job)
        return True

    def _waiting(self) -> _Job | None:
        """The last sample that waits behind a slow one, if there is any."""
        since = time.monotonic() - _SLOW
        for worker in self._workers:
            for job in list(worker.jobs.values())[:0:-1] if worker.moved < since else ():
                if not job.twice:
                    job.twice = True
                    return job
        return None

    def _give(self, worker: _Worker, job: _Job) -> None:
        """Send one sample, and its problem first if the worker has not met it."""
        if not worker.jobs:
            worker.move()
        worker.jobs[job.ticket] = job
        try:
            if job.key not in worker.known:
                worker.link.send(("problem", job.key, *self._problems[job.key]))
                worker.known.add(job.key)
            worker.link.send(("sample", job.ticket, job.key, job.completion))
        except OSError:  # it is gone: its end of the socket will say so
            worker.move()

    def _ready(self, busy: list[_Worker]) -> list[_Worker]:
        pause = 0.5 if len(busy) == len(self._workers) else _SLOW
        readable = select.select(busy_links := [worker.link for worker in busy], [], [], pause)[0]
        return [worker for worker, link in zip(busy, busy_links, strict=True) if link in readable]

    def _hear(self, worker: _Worker) -> list[tuple[int, Outcome]]:
        """What a worker has to say."""
        done = []
        for message in worker.link.arrived():
            worker.move()
            if message[0] == "ready":
                self._facts = worker.facts = message[1]
            elif message[0] == "refused":
                raise SandboxError(_refusal(self._isolation, message[1]))
            else:
                for ticket, verdict, reason, cpu_s, peak_mb, tier in message[1]:
                    if ticket in worker.jobs:  # else another was faster
                        self._forget(ticket)
                        done.append((ticket, Outcome(verdict, reason, Usage(cpu_s, peak_mb), tier)))
        if worker.link.closed and worker.facts is None:
            raise SandboxError(f"a tester ended with status {worker.process.wait()} before it was ready")
        return done

    def _forget(self, ticket: int) -> None:
        """A sample is judged: nobody is waited for on its account."""
        for worker in self._workers:
            worker.jobs.pop(ticket, None)

    def _bury(self, worker: _Worker) -> list[tuple[int, Outcome]]:
        """Replace a dead worker. Its samples are given out again one by one; one that ends each of them is the cause.

        One that ended a worker alone is tried next in the new one, which has judged nothing yet.
        """
        _end(worker)
        fresh = self._workers[self._workers.index(worker)] = self._start()
        jobs = [job for job in worker.jobs.values() if not any(job.ticket in other.jobs for other in self._workers)]
        for job in jobs:
            job.deaths += job.alone
            job.alone = True
        if len(jobs) == 1 and worker.overdue:
            return [(jobs[0].ticket, Outcome("timeout", "the tests did not finish on what it returned", _NONE, "none"))]
        if len(jobs) == 1 and jobs[0].deaths >= _ATTEMPTS:
            return [(jobs[0].ticket, Outcome("crash", "the tests broke down on what it returned", _NONE, "none"))]
        if len(jobs) == 1 and jobs[0].deaths:
            self._give(fresh, jobs[0])
        else:
            self._again.extend(jobs)
        return []

    def _end_overdue(self) -> None:
        """Kill workers that the tests of one sample keep busy far too long; their end is then heard as any other."""
        now = time.monotonic()
        for worker in self._workers:
            if not worker.jobs or now - worker.moved < _GRACE:
                continue
            used = (kernel.cpu_seconds(worker.process.pid) or 0.0) - worker.cpu_before
            computing = used > _TESTS_CPU * self._timeout + _GRACE
            if computing or now - worker.moved > _TESTS_WALL * self._timeout + 2 * _GRACE:
                worker.overdue = True
                worker.process.kill()

    def close(self) -> None:
        """End all workers and their sandboxes."""
        for worker in self._workers:
            worker.link.connection.close()
        for worker in self._workers:
            _end(worker)


def _end(worker: _Worker) -> None:
    """An idle worker ends by itself when its socket closes; a busy one is told to, and at last killed."""
    worker.link.connection.close()
    for wait_s, stop in ((0.2, worker.process.terminate), (2.0, worker.process.kill)):
        try:
            worker.process.wait(wait_s)
            return
        except subprocess.TimeoutExpired:
            stop()
    worker.process.wait()


def _refusal(isolation: str, refused: dict[str, str]) -> str:
    reasons = "; ".join(f"{level}: {reason}" for level, reason in refused.items())
    return (
        f"isolation {isolation!r} cannot be had here ({reasons}). Nothing was run. Allow user namespaces or use a "
        "kernel with Landlock; or, at your own risk and by name, choose isolation 'seccomp' (generated code can read "
        "your files) or 'none' (it can do whatever you can)"
    )
