"""Does a sample compile, and is it tame? Asked of a sandboxed process that never runs any sample.

Source code is untrusted too: some of it crashes or stalls a compiler. That process is then replaced.
"""

import json
import socket
import struct
from collections.abc import Callable, Iterator

from scalefed.evaluation.sandbox.launcher import Zygote
from scalefed.evaluation.sandbox.link import Outcome, Usage

TOGETHER, _TOGETHER_BYTES = 16, 1 << 16
"""Most samples compiled at once."""

_NONE = Usage(0.0, None)


class Compiler:
    """The trusted end of a compiling process."""

    def __init__(self, make: Callable[[], Zygote], zygote: Zygote, patience: float):
        """Args: make: starts another one. zygote: the first, ready. patience: seconds on the clock to wait for it."""
        self._make, self.zygote, self._patience = make, zygote, patience

    def compile(self, sources: list[str]) -> Iterator[bytes | Outcome]:
        """For each source ``T`` or ``W`` and its code object, or the outcome if it has none.

        A sandboxed process compiles them and never runs any. Small ones are sent together, to wait only once.
        """
        todo = [source.encode("utf-8", "surrogatepass") for source in sources]
        while todo:
            count, size = 1, len(todo[0])
            while count < len(todo) and size + len(todo[count]) < _TOGETHER_BYTES:
                size, count = size + len(todo[count]), count + 1
            trouble = self._send_sources(todo[:count])
            for _ in range(count):
                reply = trouble or self._code()
                todo.pop(0)
                yield reply
                if isinstance(reply, Outcome) and reply.verdict in ("crash", "timeout"):
                    trouble = None
                    break  # the compiler was replaced: the others are sent again

    def _send_sources(self, sources: list[bytes]) -> Outcome | None:
        self.zygote.control.settimeout(self._patience)
        try:
            self.zygote.control.sendall(b"".join(struct.pack("I", len(data)) + data for data in sources))
        except OSError as error:
            return self._new_compiler(error)
        return None

    def _code(self) -> bytes | Outcome:
        """The next answer of the compiling process."""
        control = self.zygote.control
        try:
            reply = _exactly(control, struct.unpack("I", _exactly(control, 4))[0])
        except (OSError, EOFError) as error:
            return self._new_compiler(error)
        if reply[:1] == b"X":
            name, text = json.loads(reply[1:])
            return Outcome("memory" if name == "MemoryError" else "syntax_error", f"{name}: {text}", _NONE, "none")
        return reply

    def _new_compiler(self, error: Exception) -> Outcome:
        """Replace a compiling process that hangs or is gone; the outcome of the source that it was at."""
        self.zygote.process.kill()
        self.zygote.close()
        self.zygote = self._make()
        self.zygote.ready()
        if isinstance(error, TimeoutError):
            return Outcome("timeout", f"compiling it took more than {self._patience:g} s", _NONE, "none")
        return Outcome("crash", "compiling it crashed the compiler", _NONE, "none")


def _exactly(control: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = control.recv(min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
