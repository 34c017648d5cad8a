"""The trusted end of one zygote: start it at the best level, run a candidate, keep its time, read its end.

Time limits are CPU seconds of the candidate, read from outside; wall time only bounds waiting (a sample that sleeps
is over time too). Time that the tests themselves take is not counted.
"""

import json
import marshal
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scalefed.errors import SandboxError
from scalefed.evaluation.sandbox import wire
from scalefed.evaluation.sandbox.zygote import REPLY

_LARGEST_REPLY = 32 << 20
_BATCH, _BATCH_BYTES = 64, 1 << 15  # calls sent before their answers are read; answers to them fit in a socket
_WALL = 4  # a sample that gets its CPU time slowly may take this many times its limit on the clock
_CREDENTIALS = sys.platform == "linux"  # the kernel says which process a message is from
_SHELL = """
import sys, types
for name, path in {packages!r}:
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = [path]
import importlib
importlib.import_module({module!r}).main(sys.argv[1:])
"""


class Ended(BaseException):
    """The candidate cannot answer any more; ``verdict`` and ``reason`` say why. Tests cannot catch it by mistake."""

    def __init__(self, verdict: str, reason: str):
        super().__init__(verdict, reason)
        self.verdict, self.reason = verdict, reason


@dataclass(frozen=True, slots=True)
class Usage:
    """What a candidate used: CPU seconds, peak MB (None if it is shared or unknown)."""

    cpu_s: float
    peak_mb: float | None


def command(module: str, *, slim: bool) -> list[str]:
    """The command that runs one module of this package in a fresh interpreter without importing the package."""
    top = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parts = ["", "evaluation", "evaluation.sandbox"]
    packages = [
        (".".join(filter(None, ("scalefed", part))), os.path.join(top, *filter(None, part.split("."))))
        for part in parts
    ]
    flags = ["-s", "-P", "-B", *(["-S", "-X", "no_debug_ranges"] if slim else [])]
    return [sys.executable, *flags, "-c", _SHELL.format(packages=packages, module=module)]


def environment() -> dict[str, str]:
    """All that a sandboxed process inherits: nothing of the caller's, and a fixed hash seed."""
    fixed = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    fixed |= {"HOME": "/tmp", "USER": "sandbox"}  # without them, readline and others ask the user database
    loader = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    return fixed | loader


class Zygote:
    """A started zygote; :meth:`ready` waits until it is inside its room."""

    def __init__(self, role: str, levels: tuple[str, ...], *, memory_mb: int, cpu_s: float, scratch_mb: int):
        self._config = {"role": role, "memory_mb": memory_mb, "cpu_s": cpu_s, "scratch_mb": scratch_mb}
        self._config["uid"] = 1_500_000_000 + 4 * os.getpid() + {"run": 0, "shared": 1, "compile": 2}[role]
        self._config["role"] = "compile" if role == "compile" else "run"
        self._left, self.refused = list(levels), dict[str, str]()
        self.facts: dict[str, Any] = {}
        self._start()

    def _start(self) -> None:
        self.level = self._left.pop(0)
        self.control, inner = socket.socketpair()
        self._poll = select.poll()
        self._poll.register(self.control.fileno(), select.POLLIN)
        arguments = [str(inner.fileno()), json.dumps(self._config | {"level": self.level})]
        self.process = subprocess.Popen(
            command("scalefed.evaluation.sandbox.zygote", slim=True) + arguments,
            pass_fds=(inner.fileno(),),
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
        inner.close()

    def ready(self) -> None:
        """Wait for the room; a level that cannot be had is recorded and the next one tried."""
        while True:
            head = self._exactly(4)
            text = self._exactly(struct.unpack("I", head)[0]) if head else b""
            if text[:1] == b"R":
                self.facts = json.loads(text[1:])
                return
            self.close()
            self.refused[self.level] = text[1:].decode("utf-8", "replace") or f"ended with {self.process.returncode}"
            if not self._left:
                raise SandboxError(json.dumps(self.refused))
            self._start()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                part = self.control.recv(count - len(data))
            except ConnectionResetError:
                part = b""
            if not part:
                return b""
            data += part
        return data

    def launch(self) -> socket.socket:
        """Fork a candidate; the socket to talk to it."""
        ours, theirs = socket.socketpair()
        if _CREDENTIALS:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        socket.send_fds(self.control, [b"S"], [theirs.fileno()])
        theirs.close()
        return ours

    def cpu_seconds(self) -> float | None:
        """CPU time of the running candidate; None if it has just ended or the system cannot tell."""
        self.control.send(b"Q")
        reply = self._exactly(REPLY)
        if reply[:1] == b"C":
            seconds = float(struct.unpack("d", reply[1:9])[0])
            return seconds if seconds >= 0 else None
        self._ending = reply
        return None

    _ending = b""

    def reap(self, *, kill: bool) -> tuple[int, Usage]:
        """The wait status and usage of the candidate; one that stays 10 ms after its socket closed is killed."""
        reply, self._ending = self._ending, b""
        if not reply and kill:
            self.control.send(b"K")
        while reply[:1] != b"D":
            if not self._poll.poll(10):
                self.control.send(b"K")
                continue
            reply = self._exactly(REPLY)
            if not reply:
                raise SandboxError("the sandbox process is gone")
        status, cpu, peak = struct.unpack("=idq", reply[1:21])
        return status, Usage(cpu, peak / 1024)

    def close(self) -> None:
        """End the zygote and whatever it runs."""
        self.control.close()
        self.process.wait()


class Candidate:
    """One process of a zygote that runs samples: one, or many tame ones after another."""

    def __init__(self, zygote: Zygote, timeout: float):
        self._zygote, self.timeout = zygote, timeout
        self._socket = zygote.launch()
        self._poll = select.poll()
        self._poll.register(self._socket.fileno(), select.POLLIN)
        self.used = 0
        self.cpu_before = 0.0
        self._pid = 0  # learned from the kernel with the first answer

    def load(self, code: bytes, entry: str) -> None:
        """Give the next sample; it is run together with its first call."""
        if self.used:
            self.cpu_before = self._clock() or self.cpu_before
        self.used += 1
        program = b"P" + marshal.dumps((code, entry))
        self._pending = struct.pack("I", len(program)) + program
        self._buffer = b""
        self._waited = 0.0
        self.outstanding = 0
        self.ended: Ended | None = None

    def call(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """One call of the sample's function: its plain result, or a RemoteError, or Ended."""
        self._send(self._frame(args, keywords))
        return self._result(self._receive(), args, keywords)

    def many(self, calls: list[Any]) -> Iterator[Any]:
        """Results of many calls (each a list of arguments), sent in batches that no socket buffer is too small for."""
        batch: list[tuple[Any, ...]] = []
        frames = b""
        for position, arguments in enumerate(calls, 1):
            batch.append(tuple(arguments))
            frames += self._frame(batch[-1], {})
            if len(batch) == _BATCH or len(frames) > _BATCH_BYTES or position == len(calls):
                self._send(frames, len(batch))
                for sent in batch:
                    yield self._result(self._receive(), sent, {})
                batch, frames = [], b""

    def _frame(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> bytes:
        """One call as bytes, with the program in front of the first."""
        if self.ended is not None:
            raise self.ended
        try:
            frame = wire.encode_call(args, keywords)
        except ValueError as error:
            self._end("unsupported", f"the tests pass something that is not plain data: {error}")
        program, self._pending = self._pending, b""
        return program + struct.pack("I", len(frame)) + frame

    def _result(self, reply: bytes, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        try:
            value = wire.decode(reply[1:])
            if reply[:1] == b"!":
                name, text = value
                raise remote_error(str(name), str(text))
            if reply[:1] == b"~":
                value, after, keywords_after = value
                wire.mirror(args, after)
                wire.mirror(keywords, keywords_after)
            return value
        except (ValueError, TypeError, RecursionError) as error:
            if isinstance(error, RemoteError):
                raise
            self._end("fail", f"the result is not plain data: {error}")

    def _end(self, verdict: str, reason: str) -> Any:
        self.ended = Ended(verdict, reason)
        raise self.ended

    def _send(self, data: bytes, calls: int = 1) -> None:
        start = time.monotonic()
        try:
            while data:
                self._socket.settimeout(max(0.001, self.timeout - self._waited - (time.monotonic() - start)))
                data = data[self._socket.send(data) :]
        except TimeoutError:
            self._end("timeout", "it did not read its input in time")
        except OSError:
            self._end("died", "")
        self._waited += time.monotonic() - start
        self.outstanding += calls

    def _receive(self) -> bytes:
        """The next whole reply; waiting counts, on a busy machine only as far as CPU time was used."""
        start = time.monotonic()
        granted, asked, asked_at = self.timeout - self._waited, 0.0, start
        while True:
            if len(self._buffer) >= 4:
                size = struct.unpack("I", self._buffer[:4])[0]
                if size > _LARGEST_REPLY:
                    self._end("fail", f"a result of {size} bytes; allowed are {_LARGEST_REPLY}")
                if len(self._buffer) >= 4 + size:
                    self.outstanding -= 1
                    reply, self._buffer = self._buffer[4 : 4 + size], self._buffer[4 + size :]
                    self._waited += time.monotonic() - start
                    return reply
            left = start + granted - time.monotonic()
            if not self._poll.poll(max(0.0, left) * 1000):
                now = time.monotonic()
                own = self.cpu_seconds()
                moving = own - asked > 0.05 * (now - asked_at)
                if own >= 0.99 * self.timeout or not moving or self._waited + now - start > _WALL * self.timeout:
                    self._end("timeout", f"more than {self.timeout:g} s")
                granted, asked, asked_at = now - start + self.timeout - own, own, now
                continue
            try:
                part = self._socket.recv(1 << 16) if self._pid or not _CREDENTIALS else self._first()
            except ConnectionResetError:
                part = b""
            if not part:
                self._end("died", "")
            self._buffer += part

    def reusable(self) -> bool:
        """True if another sample can follow: it still answers, and no answer is on its way."""
        return self.ended is None and self.outstanding == 0

    def cpu_seconds(self) -> float:
        """CPU time of the present sample so far."""
        return (self._clock() or self.cpu_before) - self.cpu_before

    def _clock(self) -> float | None:
        """CPU time of the whole process: read at once if its pid is known, else asked for."""
        if self._pid:
            try:
                return time.clock_gettime((~self._pid << 3) | 2)
            except OSError:
                return None
        return self._zygote.cpu_seconds()

    def _first(self) -> bytes:
        """The first bytes that it sends, with its pid as the kernel gives it."""
        data, extra, _, _ = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(12))
        for level, kind, value in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                self._pid = struct.unpack("3i", value[:12])[0]
        return data

    def close(self, *, kill: bool) -> tuple[int, Usage]:
        """End the process: its wait status and what it used."""
        self._socket.close()
        return self._zygote.reap(kill=kill)


class RemoteError(Exception):
    """An exception that the sample raised, as far as plain data can tell it."""


_REMOTE: dict[str, type[RemoteError]] = {}


def remote_error(name: str, text: str) -> RemoteError:
    """A RemoteError that is also an instance of the builtin exception ``name``, so that tests can expect it."""
    import builtins

    kind = _REMOTE.get(name)
    if kind is None:
        base = getattr(builtins, name, None)
        simple = isinstance(base, type) and issubclass(base, Exception) and not issubclass(base, UnicodeError)
        bases: tuple[Any, ...] = (RemoteError, base) if simple and base is not Exception else (RemoteError,)
        kind = _REMOTE[name] = type("RemoteError", bases, {}) if len(_REMOTE) < 1000 else RemoteError
    error = kind(f"{name}: {text}" if text else name)
    error.__dict__["name"] = name
    return error
