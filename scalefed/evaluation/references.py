"""Does each problem's own solution pass its tests, and how long does it take?

A test that its reference fails is broken: it says nothing of a model. And a right solution may take as long as the
reference, so that a limit in seconds that is short beside it measures the machine. Both are found out once for a set of
problems and kept in the cache directory.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scalefed.config import cache_directory
from scalefed.data.problem import Problem
from scalefed.evaluation.judge import judge, versions

_LONGEST = 4.0  # times a sample's limit that a reference may take; EvalPlus 0.3.1 allows samples as many times its own
_AT_LEAST = 10.0  # CPU seconds for a reference
_RULES = 1  # goes up with every change that can turn a verdict on a reference


@dataclass(frozen=True, slots=True)
class References:
    """What the problems' own solutions came to.

    Attributes:
        broken: task_id -> why its own solution fails, of the problems where it does.
        cpu_s: task_id -> CPU seconds of its own solution.
    """

    broken: dict[str, str]
    cpu_s: dict[str, float]

    def limit(self, task_id: str, timeout: float) -> float:
        """CPU seconds for a sample of a problem: ``timeout``, doubled until it is four times what its own one takes."""
        factor = _LONGEST * self.cpu_s.get(task_id, 0.0) / timeout
        return timeout * 2 ** max(0, math.ceil(math.log2(factor))) if factor > 1 else timeout


def check_references(
    problems: Sequence[Problem],
    *,
    timeout: float = 3.0,
    memory_mb: int = 1024,
    isolation: str = "auto",
    workers: int | None = None,
    allow_packages: Sequence[str] = (),
) -> References:
    """Judge each problem's own solution, or read what was found before; problems without one are taken as they are.

    Args:
        problems: any.
        timeout: CPU seconds of a sample; a reference gets four times as many, and ten at least.
        memory_mb: address space of a process, in MB.
        isolation: as for :func:`scalefed.evaluation.judge.judge`.
        workers: likewise.
        allow_packages: likewise.

    Raises:
        SandboxError, ConfigError: as for ``judge``.
    """
    own = [problem for problem in problems if problem.canonical_solution.strip()]
    limit = max(_AT_LEAST, _LONGEST * timeout)
    kept = cache_directory() / "references" / f"{_digest(own, limit, memory_mb, allow_packages)}.json"
    if (found := _read(kept)) is not None:
        return found
    samples = [(problem.task_id, problem.canonical_solution) for problem in own]
    verdicts = judge(
        own, samples, timeout=limit, memory_mb=memory_mb, isolation=isolation, workers=workers,
        allow_packages=allow_packages,
    )  # fmt: skip
    found = References(
        {v.task_id: f"{v.verdict}: {v.reason}" for v in verdicts if not v.passed},
        {v.task_id: v.cpu_s for v in verdicts},
    )
    _write(kept, found)
    return found


def _digest(problems: Sequence[Problem], limit: float, memory_mb: int, packages: Sequence[str]) -> str:
    parts = [_RULES, limit, memory_mb, versions(), list(packages)]
    parts += [[p.task_id, p.prompt, p.canonical_solution, p.test, p.entry_point] for p in problems]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _read(path: Path) -> References | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return References(dict(kept["broken"]), dict(kept["cpu_s"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(path: Path, found: References) -> None:
    """Keep what was found, whole or not at all; a cache that cannot be written costs time only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"broken": found.broken, "cpu_s": found.cpu_s}), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
