"""What do the caller and its workers say to each other, and how?

They trust each other: frames are marshal, and what they tell is the outcome of a sample.
"""

import marshal
import socket
import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Usage:
    """What a candidate used: CPU seconds, peak MB (None if it is shared or unknown)."""

    cpu_s: float
    peak_mb: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One judged sample: the verdict and its reason, what it used, and in which tier it ran."""

    verdict: str
    reason: str
    usage: Usage
    tier: str


class Link:
    """Length-prefixed marshal frames between the caller and its worker, which trust each other."""

    def __init__(self, connection: socket.socket):
        """Args: connection: one end of a stream socket pair."""
        self.connection, self.closed = connection, False
        self._buffer = bytearray()

    def fileno(self) -> int:
        """For poll and select."""
        return self.connection.fileno()

    def send(self, message: tuple[Any, ...]) -> None:
        """Send one message; raises OSError if the other end is gone."""
        data = marshal.dumps(message)
        self.connection.sendall(struct.pack("Q", len(data)) + data)

    def receive(self) -> Any:
        """The next message, waiting for it; None at the end."""
        while not (found := self._next()):
            self._fill()
            if self.closed:
                return None
        return found[0]

    def arrived(self) -> list[Any]:
        """All messages that are here after one read; sets ``closed`` at the end."""
        self._fill()
        messages = []
        while found := self._next():
            messages += found
        return messages

    def _fill(self) -> None:
        try:
            part = self.connection.recv(1 << 18)
        except ConnectionResetError:
            part = b""
        self.closed = not part
        self._buffer += part

    def _next(self) -> list[Any]:
        if len(self._buffer) < 8:
            return []
        size = struct.unpack_from("Q", self._buffer)[0]
        if len(self._buffer) < 8 + size:
            return []
        message = marshal.loads(bytes(self._buffer[8 : 8 + size]))
        del self._buffer[: 8 + size]
        return [message]
