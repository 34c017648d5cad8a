"""One candidate as its tester sees it: give it a sample, call its function, keep its time, read its end.

Time limits are CPU seconds of the candidate, read from outside; wall time only bounds waiting (a sample that sleeps
is over time too). Time that the tests themselves take is not counted.
"""

import builtins
import marshal
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from typing import Any

from scalefed.sandbox import endless, kernel, wire
from scalefed.sandbox.launcher import CREDENTIALS, ForkServer
from scalefed.sandbox.messages import Usage

_LARGEST_REPLY = 32 << 20  # bytes: more than any test compares, less than memory limits allow
_SLOW_REPLY = 1 << 20  # bytes from which on the time to understand a reply counts as the sample's
_LONGEST_NAME, _LONGEST_TEXT = 100, 200  # letters of an exception that are kept
_BATCH, _BATCH_BYTES = 64, 1 << 15  # calls sent before their answers are read; answers to them fit in a socket
_WALL = 4  # times its limit that a sample of several threads may take on the clock to use its CPU time
_LOOKS = (0.1, 0.4, 1.6)  # seconds of waiting after which a sample is made to look whether it can still come back
_LONGEST = 30  # times its limit that any sample may take on the clock, however busy the machine
_PROVED = {proof.encode(): ("timeout", reason) for proof, reason in endless.PROOFS.items()}


class Ended(BaseException):
    """The candidate cannot answer any more; ``verdict`` and ``reason`` say why. Tests cannot catch it by mistake."""

    def __init__(self, verdict: str, reason: str):
        super().__init__(verdict, reason)
        self.verdict, self.reason = verdict, reason


class Candidate:
    """One process of a server that runs samples: one, or many tame ones after another."""

    def __init__(self, server: ForkServer, timeout: float, names: Iterable[str] = ()):
        """Args: names: modules that it imports before it is locked in."""
        self._server, self.timeout = server, timeout
        self._socket = server.launch(names)
        self._poll = select.poll()
        self._poll.register(self._socket.fileno(), select.POLLIN)
        self.used = 0
        self.cpu_before = 0.0
        self._pid = 0  # learned from the kernel with the first answer
        self._record: int | None = None

    def load(self, code: bytes, entry: str, *, tame: bool, look: bool) -> None:
        """Give the next sample; it is run together with its first call.

        Args:
            code: compiled.
            entry: its function's name.
            tame: whether all of it is on the allowlist.
            look: whether what raises has failed, so that one that can only raise need not be waited for.
        """
        if self.used:
            self.cpu_before = self._clock() or self.cpu_before
        self.used += 1
        program = b"P" + marshal.dumps((code, entry, tame))
        self._pending = struct.pack("I", len(program)) + program
        self._buffer = bytearray()
        self._waited = self._credit = self._looked = self._looked_cpu = 0.0
        self._queued_before = self._queued_so_far() if self.used > 1 else 0.0
        self._looks = list(_LOOKS) if look else []
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
            if reply[:1] == b"?":
                self._end("import", reply[1:].decode("utf-8", "replace"))
            if reply[:1] == b".":
                self._end(*_PROVED.get(reply[1:], ("fail", "an answer that is none")))
            value = self._understood(reply)
            if reply[:1] == b"!":
                name, text = value
                raise remote_error(str(name)[:_LONGEST_NAME], str(text)[:_LONGEST_TEXT])
            if reply[:1] == b"~":
                value, after, keywords_after = value
                wire.mirror(args, after)
                wire.mirror(keywords, keywords_after)
            return value
        except (ValueError, TypeError, RecursionError) as error:
            if isinstance(error, RemoteError):
                raise
            self._end("fail", f"the result is not plain data: {error}")

    def _understood(self, reply: bytes) -> Any:
        """The value in a reply; how long a large one takes is up to the sample, so it counts as its time."""
        if len(reply) < _SLOW_REPLY:
            return wire.decode(reply[1:])
        start = time.process_time()
        value = wire.decode(reply[1:])
        self._waited += time.process_time() - start
        return value

    def _end(self, verdict: str, reason: str) -> Any:
        self.ended = Ended(verdict, reason)
        raise self.ended

    def _send(self, data: bytes, calls: int = 1) -> None:
        self.outstanding += calls
        try:
            data = data[self._socket.send(data, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            pass
        except OSError:
            self._end("died", "")
        if data:
            self._send_slowly(data)

    def _send_slowly(self, data: bytes) -> None:
        """The rest of a send that the candidate has to make room for; that counts as its time."""
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
        self._socket.settimeout(None)

    def _receive(self) -> bytes:
        """The next whole reply; waiting counts, but not its waiting for a core of a busy machine."""
        start = time.monotonic()
        limit = start + self.timeout + self._credit - self._waited
        while (reply := self._whole()) is None:
            look = start - self._waited + self._looks[0] if self._looks else limit
            if self._poll.poll(max(0.0, min(look, limit) - time.monotonic()) * 1000):
                self._buffer += self._arrived()
            elif self._looks and time.monotonic() < limit:
                self._looks.pop(0)
                self._server.look()
            else:
                more = self._more(self._waited + time.monotonic() - start)
                if more <= 0:
                    self._end("timeout", f"more than {self.timeout:g} s")
                limit = time.monotonic() + more
        self._waited += time.monotonic() - start
        self.outstanding -= 1
        return reply

    def _more(self, waited: float) -> float:
        """Seconds until the next look at a sample that was waited for so long, 0 if its time is up."""
        if not self._pid and CREDENTIALS:
            self._pid = self._server.pid()
        limit, cpu = self.timeout, self.cpu_seconds()
        self._credit = max(self._credit, self._queued() - self._queued_before)
        charged = waited - self._credit
        moving = cpu - self._looked_cpu > 0.05 * (waited - self._looked)
        self._looked, self._looked_cpu = waited, cpu
        if cpu >= 0.99 * limit or waited > _LONGEST * limit:
            return 0.0
        if charged < 0.99 * limit:
            return limit - charged
        # several threads, or a system that does not say: it gets its CPU time, within reason
        return limit - cpu if moving and charged < _WALL * limit else 0.0

    def _whole(self) -> bytes | None:
        """The first reply in the buffer, if all of it is there."""
        if len(self._buffer) < 4:
            return None
        size = struct.unpack_from("I", self._buffer)[0]
        if size > _LARGEST_REPLY:
            self._end("fail", f"a result of {size} bytes; allowed are {_LARGEST_REPLY}")
        if len(self._buffer) < 4 + size:
            return None
        reply = bytes(self._buffer[4 : 4 + size])
        del self._buffer[: 4 + size]
        return reply

    def _arrived(self) -> bytes:
        try:
            part = self._socket.recv(1 << 16) if self._pid or not CREDENTIALS else self._first()
        except ConnectionResetError:
            part = b""
        if not part:
            self._end("died", "")
        return part

    def reusable(self) -> bool:
        """True if another sample can follow: it still answers, and no answer is on its way."""
        return self.ended is None and self.outstanding == 0

    def cpu_seconds(self) -> float:
        """CPU time of the present sample so far."""
        return (self._clock() or self.cpu_before) - self.cpu_before

    def _queued_so_far(self) -> float:
        """The same for a process of one thread, read often: its record is kept open."""
        try:
            if self._record is None:
                self._record = os.open(f"/proc/{self._pid}/schedstat", os.O_RDONLY)
            return int(os.pread(self._record, 100, 0).split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0

    def _queued(self) -> float:
        """Seconds that one of its threads was ready but had no core, the longest; 0 where the system does not say."""
        longest = 0
        try:
            for thread in os.listdir(f"/proc/{self._pid}/task"):
                with open(f"/proc/{self._pid}/task/{thread}/schedstat", "rb") as line:
                    longest = max(longest, int(line.read().split()[1]))
        except (OSError, IndexError):  # it has just ended, or this system keeps no such record
            pass
        return longest / 1e9

    def _clock(self) -> float | None:
        """CPU time of the whole process: read at once if its pid is known, else asked for."""
        if self._pid:
            return kernel.cpu_seconds(self._pid)
        return self._server.cpu_seconds()

    def _first(self) -> bytes:
        """The first bytes that it sends, with its pid as the kernel gives it."""
        data, extra, _, _ = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(12))
        for level, kind, value in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                self._pid = struct.unpack("3i", value[:12])[0]
        return data

    def drop(self) -> None:
        """Let go of a process that can be neither asked nor ended, its fork server being gone."""
        if self._record is not None:
            os.close(self._record)
            self._record = None
        self._socket.close()

    def close(self, *, kill: bool) -> tuple[int, Usage]:
        """End the process: its wait status and what it used."""
        self.drop()
        return self._server.reap(kill=kill)


class RemoteError(Exception):
    """An exception that the sample raised, as far as plain data can tell it."""


_REMOTE: dict[str, type[RemoteError]] = {}


def remote_error(name: str, text: str) -> RemoteError:
    """A RemoteError that is also an instance of the builtin exception ``name``, so that tests can expect it."""
    kind = _REMOTE.get(name)
    if kind is None:
        base: Any = getattr(builtins, name, None)
        simple = isinstance(base, type) and issubclass(base, Exception) and not issubclass(base, UnicodeError)
        kind = RemoteError
        if simple and base is not Exception:  # as many as there are builtin exceptions are kept
            kind = _REMOTE[name] = type("RemoteError", (RemoteError, base), {})
    error = kind(f"{name}: {text}" if text else name)
    error.__dict__["name"] = name
    return error
