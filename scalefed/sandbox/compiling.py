"""Does a sample compile, and is it tame? Asked of a sandboxed process that never runs any sample.

Source code is untrusted too: some of it crashes or stalls a compiler. That process is then replaced, and a sample is
tried again before it is held to be the cause.
"""

import json
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scalefed.sandbox.launcher import ForkServer, Gone
from scalefed.sandbox.messages import Outcome, Usage

TOGETHER, _TOGETHER_BYTES = 16, 1 << 16
"""Most samples compiled at once."""

ATTEMPTS = 3
"""How often a sample is tried whose process ends or stops without a word, before that is its verdict."""

_LARGEST = 1 << 28  # bytes of one answer
_NONE = Usage(0.0, None)


@dataclass(frozen=True, slots=True)
class Program:
    """A sample that compiles.

    Attributes:
        code: marshalled.
        tame: whether all of it is on the allowlist.
        imports: modules that it names in import statements.
    """

    code: bytes
    tame: bool
    imports: tuple[str, ...]


class Compiler:
    """The trusted end of a compiling process."""

    def __init__(self, make: Callable[[], ForkServer], server: ForkServer, patience: float):
        """Args: make: starts another one. server: the first, ready. patience: seconds on the clock to wait for it."""
        self._make, self.server, self._patience = make, server, patience

    def compile(self, sources: list[str]) -> Iterator[Program | Outcome]:
        """For each source its program, or the outcome if it has none.

        A sandboxed process compiles them and never runs any. Small ones are sent together, to wait only once.
        """
        todo = deque(source.encode("utf-8", "surrogatepass") for source in sources)
        sent = failures = 0
        while todo:
            try:
                sent = sent or self._send(todo)
                reply = self._reply()
                sent -= 1
            except (Gone, OSError) as error:
                self._replace()
                sent, failures = 0, failures + 1
                if isinstance(error, TimeoutError):
                    reply = Outcome("timeout", f"compiling it took more than {self._patience:g} s", _NONE, "none")
                elif failures < ATTEMPTS:
                    continue
                else:
                    reply = Outcome("crash", "compiling it crashed the compiler", _NONE, "none")
            failures = 0
            todo.popleft()
            yield reply

    def _send(self, todo: deque[bytes]) -> int:
        """Send the first sources, as many as are small together; how many."""
        data, count = b"", 0
        for source in todo:
            if count and len(data) + len(source) > _TOGETHER_BYTES:
                break
            data += struct.pack("I", len(source)) + source
            count += 1
        self.server.control.settimeout(self._patience)
        self.server.control.sendall(data)
        return count

    def _reply(self) -> Program | Outcome:
        """The next answer of the compiling process."""
        size = struct.unpack("I", self.server.receive(4, self._patience))[0]
        if not 3 <= size <= _LARGEST:
            raise Gone(f"an answer of {size} bytes")
        reply = self.server.receive(size, self._patience)
        if reply[:1] == b"X":
            name, text = json.loads(reply[1:])
            return Outcome("memory" if name == "MemoryError" else "syntax_error", f"{name}: {text}", _NONE, "none")
        end = 3 + struct.unpack_from("H", reply, 1)[0]
        names = reply[3:end].decode("utf-8", "replace").split("\n")
        return Program(reply[end:], reply[:1] == b"T", tuple(names))

    def _replace(self) -> None:
        """Another process in the place of one that hangs or is gone."""
        self.server.process.kill()
        self.server.close()
        self.server = self._make()
        self.server.ready()
