"""The trusted worker: holds the tests, calls the candidate through its socket, decides.

Runs as a process of its own (started by ``pool.py``), so tests never run in the caller and the caller's memory is
never near a candidate. Frames on its socket are marshal of ``("problem", key, prompt, reference, test, entry)`` and
``("sample", ticket, key, completion)``; it answers ``("ready", facts)`` once and ``("verdicts", [(ticket, ...)])`` as
samples are done.
"""

import contextlib
import json
import os
import random
import re
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import CodeType
from typing import Any, NoReturn

from scalefed.errors import SandboxError
from scalefed.sandbox.allowlist import is_standard
from scalefed.sandbox.compiling import ATTEMPTS, TOGETHER, Compiler, Program
from scalefed.sandbox.launcher import ForkServer, Gone
from scalefed.sandbox.messages import Link, Outcome, Usage
from scalefed.sandbox.session import Candidate, Ended, RemoteError

_NONE = Usage(0.0, None)
_BY_EXCEPTION = {
    "SyntaxError": "syntax_error",
    "IndentationError": "syntax_error",
    "TabError": "syntax_error",
    "MemoryError": "memory",
    "SystemExit": "exit",
}
_BY_SIGNAL: dict[int, tuple[str, str]] = {
    signal.SIGSYS: ("violation", "a system call that no honest solution makes"),
    signal.SIGXCPU: ("timeout", "the CPU limit of the process"),
    signal.SIGXFSZ: ("violation", "a file larger than allowed"),
}
_NO_MODULE = re.compile(r"No module named '([A-Za-z_]\w*)", re.ASCII)
_IMPORTS = 32  # modules that a candidate is told to import, and as many again that it asked for
_LONGEST_NAME = 60  # characters of a module's name: 2 * _IMPORTS of them are below forkserver.NAMES, were they all long
_OUT_OF_MEMORY = 101
"""Exit status by which a candidate says that it ran out of memory between calls."""


@dataclass(frozen=True, slots=True)
class Tests:
    """The tests of one problem, compiled once and run afresh for each sample.

    Attributes:
        code: of the prompt's helpers and the tests.
        lines: their source.
        prompt: what stands before a completion.
        entry: name of the tested function.
        random: whether they draw numbers.
        fatal: whether whatever the tested function raises is a failure.
        kept: what they keep from one sample to the next.
    """

    code: CodeType
    lines: tuple[str, ...]
    prompt: str
    entry: str
    random: bool
    fatal: bool
    kept: dict[str, Any]


def main(arguments: list[str]) -> None:
    """Serve one caller until its socket closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    link = Link(socket.socket(fileno=int(arguments[0])))
    config = json.loads(arguments[1])
    try:
        tester = Tester(**config)
    except SandboxError as error:
        link.send(("refused", json.loads(str(error))))
        return
    try:
        with contextlib.suppress(BrokenPipeError):  # the caller has stopped and wants no more verdicts
            link.send(("ready", tester.facts))
            _serve(link, tester)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending already
        tester.close()


def _serve(link: Link, tester: "Tester") -> None:
    """Judge what arrives, several at once; verdicts are sent together, but none waits for a slow sample."""
    done: list[tuple[Any, ...]] = []
    sent = time.monotonic()
    while not link.closed:
        jobs = []
        for message in link.arrived():
            if message[0] == "problem":
                tester.add(*message[1:])
            else:
                jobs.append(message[1:])
        for ticket, outcome in tester.judge(jobs):
            used = outcome.usage
            done.append((ticket, outcome.verdict, outcome.reason, used.cpu_s, used.peak_mb, outcome.tier))
            if len(done) >= TOGETHER or time.monotonic() - sent > 0.02 or ticket == jobs[-1][0]:
                link.send(("verdicts", done))
                done, sent = [], time.monotonic()


class Tester:
    """Judges one sample at a time in one sandbox."""

    def __init__(
        self, levels: list[str], timeout: float, memory_mb: int, scratch_mb: int, shared: int, packages: list[str]
    ):
        """Start the sandbox's processes.

        Args:
            levels: isolation levels to try, strongest first.
            timeout: CPU seconds of a sample.
            memory_mb: most address space of a sample, in MB.
            scratch_mb: private writable space of a sample, in MB.
            shared: how many tame samples may use one process, 0 for a fresh process for every sample.
            packages: libraries that samples may import, beside the standard one.
        """
        _limit_self()
        self._timeout, self._share = timeout, shared
        self._packages = frozenset(packages)
        start = partial(
            ForkServer, levels=tuple(levels), memory_mb=memory_mb, scratch_mb=scratch_mb, packages=tuple(packages)
        )
        self._start_run = partial(start, "run", cpu_s=timeout)
        self._start_shared = partial(start, "shared", cpu_s=timeout * 50)
        compiling = partial(start, "compile", cpu_s=1e6)
        servers = [self._start_run(), compiling()] + ([self._start_shared()] if shared else [])
        for server in servers:  # all were started at once
            server.ready()
        self._run, self._shared = servers[0], servers[2] if shared else None
        self._compiler = Compiler(compiling, servers[1], max(10.0, 4 * timeout))
        weakest = max((server.level for server in servers), key=levels.index)
        self.facts = self._run.facts | {"level": weakest, "refused": self._run.refused}
        self._group: Candidate | None = None
        self._tests: dict[str, Tests] = {}

    def add(self, key: str, prompt: str, reference: str, test: str, entry: str) -> None:
        """Compile the tests of one problem. The prompt's own helpers are part of them, for tests that use these."""
        for body in (prompt + "\n    pass\n", prompt + reference + "\n", ""):
            source = body + "\n" + test
            try:
                code = compile(source, f"<tests of {key}>", "exec", dont_inherit=True)
            except (SyntaxError, ValueError):
                continue
            lines = tuple(source.split("\n"))
            self._tests[key] = Tests(code, lines, prompt, entry, "random" in test, not _may_catch(code, test), {})
            return
        self._tests.pop(key, None)

    def judge(self, jobs: list[tuple[int, str, str]]) -> Iterator[tuple[int, Outcome]]:
        """The outcomes of (ticket, key, completion), one by one; the problems must have been added before."""
        for start in range(0, len(jobs), TOGETHER):
            part = jobs[start : start + TOGETHER]
            known = [self._tests.get(key) for _, key, _ in part]
            sources = [t.prompt + text + "\n" for t, (_, _, text) in zip(known, part, strict=True) if t is not None]
            compiled = self._compiler.compile(sources)
            for tests, (ticket, _, _) in zip(known, part, strict=True):
                if tests is None:
                    yield (
                        ticket,
                        Outcome("unsupported", "the tests of this problem are not valid Python", _NONE, "none"),
                    )
                else:
                    found = next(compiled)
                    yield ticket, found if isinstance(found, Outcome) else self._one(tests, found)

    def _one(self, tests: Tests, program: Program) -> Outcome:
        """The outcome of one sample that could be compiled."""
        if self._shared is not None and program.tame:
            outcome = self._in_group(tests, program)
            if outcome is not None:
                return outcome
        for _ in range(ATTEMPTS):
            try:
                return self._alone(tests, program)
            except Gone:
                self._run.close()
                self._run = self._start_run()
                self._run.ready()
        return Outcome("crash", f"the sandbox ended with it, {ATTEMPTS} times out of {ATTEMPTS}", _NONE, "fresh")

    def _alone(self, tests: Tests, program: Program) -> Outcome:
        """Judge in a process of its own, which imports beforehand what the sample was found to need."""
        names = [name for name in program.imports if self._importable(name)][:_IMPORTS]
        while True:
            candidate = Candidate(self._run, self._timeout, names)
            try:
                verdict, reason = self._check(tests, candidate, program)
                status, usage = candidate.close(kill=verdict not in ("pass", "fail", "died"))
            except Gone:
                candidate.drop()
                raise
            if verdict == "import":
                if reason not in names and len(names) < 2 * _IMPORTS and self._importable(reason):
                    names.append(reason)
                    continue
                verdict, reason = "fail", f"it asked for the module {reason[:100]!r} out of turn"
            if verdict == "died":
                verdict, reason = _cause(status)
            return Outcome(verdict, reason, usage, "fresh")

    def _importable(self, name: str) -> bool:
        """True for a module that a candidate may be told to import: the name is the sample's word."""
        parts = name.split(".")
        plain = len(name) <= _LONGEST_NAME and all(
            part.isascii() and part.replace("-", "_").isidentifier() for part in parts
        )
        return plain and (parts[0] in self._packages or is_standard(parts[0])) and "__main__" not in parts

    def _in_group(self, tests: Tests, program: Program) -> Outcome | None:
        """Judge in the shared process; None if only a fresh one can tell."""
        assert self._shared is not None
        try:
            if self._group is None:
                self._group = Candidate(self._shared, self._timeout)
            group = self._group
            verdict, reason = self._check(tests, group, program)
            if verdict in ("pass", "fail") and group.reusable() and group.used < self._share:
                return Outcome(verdict, reason, Usage(group.cpu_seconds(), None), "shared")
            self._group = None
            _, usage = group.close(kill=verdict not in ("pass", "fail"))
        except Gone:
            self._end_group()
            self._shared.close()
            self._shared = self._start_shared()
            self._shared.ready()
            return None
        if verdict not in ("pass", "fail", "timeout"):
            return None
        return Outcome(verdict, reason, Usage(max(0.0, usage.cpu_s - group.cpu_before), None), "shared")

    def _end_group(self) -> None:
        if self._group is not None:
            self._group.drop()
            self._group = None

    def _check(self, tests: Tests, candidate: Candidate, program: Program) -> tuple[str, str]:
        """Run the tests against the candidate: verdict and reason.

        ``died`` where only the wait status can tell; ``import`` and a name where that module is needed first.
        """
        candidate.load(program.code, tests.entry, tame=program.tame, look=tests.fatal)

        def proxy(*args: Any, **keywords: Any) -> Any:
            return candidate.call(args, keywords)

        proxy.__name__ = tests.entry
        proxy.__dict__["many"] = candidate.many
        names: dict[str, Any] = {"__name__": "tests", "__kept__": tests.kept}
        if tests.random:
            random.seed(0)
        try:
            exec(tests.code, names)
            check = names["check"]
            names[tests.entry] = proxy  # the tested function may itself be called check
            check(proxy)
        except Ended as ended:
            return ended.verdict, ended.reason
        except RemoteError as error:
            found = candidate.ended or Ended(*_raised(error))
            return found.verdict, found.reason
        except MemoryError:
            candidate.ended = candidate.ended or Ended("memory", "what it returned is too large to be compared")
        except Exception as error:
            if _raised_by_judge(error):
                raise  # a fault of the judge must never count as one of the sample
            if candidate.ended is None:
                return "fail", _explain(error, tests)
        if candidate.ended is not None:  # the tests caught it
            return candidate.ended.verdict, candidate.ended.reason
        return "pass", ""

    def close(self) -> None:
        """End all processes."""
        self._end_group()
        for server in (self._run, self._compiler.server, self._shared):
            if server is not None:
                server.close()


def _may_catch(code: CodeType, text: str) -> bool:
    """True if tests may catch what the tested function raises."""
    todo = [code]
    while todo:
        part = todo.pop()
        if part.co_exceptiontable:
            return True
        todo += [constant for constant in part.co_consts if isinstance(constant, CodeType)]
    return "aises" in text or "suppress" in text  # assertRaises and its kind take the function as an argument


def _raised(error: RemoteError) -> tuple[str, str]:
    """Verdict and reason of a sample that raised an exception."""
    name = error.__dict__["name"]
    missing = _NO_MODULE.search(str(error)) if name == "ModuleNotFoundError" else None
    if missing is not None and not is_standard(missing[1]):
        return "missing_module", f"No module named {missing[1]!r}"
    return _BY_EXCEPTION.get(name, "fail"), f"it raised {error}"


def _stop(*_: object) -> NoReturn:
    raise SystemExit(1)


def _limit_self() -> None:
    """The tests meet values that a sample chose: they may not take the machine's memory either."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = 8 << 30
    if sys.platform == "linux" and (soft == resource.RLIM_INFINITY or soft > wanted):
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def _raised_by_judge(error: Exception) -> bool:
    """True if the innermost frame is the judge's own, and not the tests' or a library's that they called."""
    innermost = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return os.path.dirname(innermost) == os.path.dirname(__file__)


def _explain(error: Exception, tests: Tests) -> str:
    """Which line of the tests failed, and how."""
    line = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == tests.code.co_filename:
            line = tests.lines[number - 1].strip()[:200]
    if isinstance(error, AssertionError):
        return line or "an assertion failed"
    return f"the tests raised {type(error).__name__} at: {line}"


def _cause(status: int) -> tuple[str, str]:
    """Verdict and reason of a candidate that ended by itself."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return _BY_SIGNAL.get(number, ("crash", f"signal {number}"))
    code = os.WEXITSTATUS(status)
    return ("memory", "out of memory") if code == _OUT_OF_MEMORY else ("exit", f"it ended itself with status {code}")
