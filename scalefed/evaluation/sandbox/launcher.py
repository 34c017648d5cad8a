"""How is a sandboxed process started, at the best level that this machine allows, and how is it ended?

The trusted end of one zygote: a fresh interpreter that inherits nothing, its control socket, and the processes that it
forks on demand.
"""

import json
import os
import select
import socket
import struct
import subprocess
import sys
from typing import Any

from scalefed.errors import SandboxError
from scalefed.evaluation.sandbox.link import Usage
from scalefed.evaluation.sandbox.zygote import REPLY

CREDENTIALS = sys.platform == "linux"
"""True if the kernel says which process a message is from."""

_SHELL = """
import sys, types
for name, path in {packages!r}:
    sys.modules[name] = module = types.ModuleType(name)
    module.__path__ = [path]
import importlib
importlib.import_module({module!r}).main(sys.argv[1:])
"""


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

    def __init__(self, role: str, *, levels: tuple[str, ...], memory_mb: int, cpu_s: float, scratch_mb: int):
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
        if CREDENTIALS:
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

    def pid(self) -> int:
        """The running candidate's process id as this process sees it; 0 if it has just ended or cannot be told."""
        self.control.send(b"F")
        reply, handles, _, _ = socket.recv_fds(self.control, REPLY, 1)
        if reply[:1] == b"D":
            self._ending = reply
        found = 0
        for handle in handles:
            with open(f"/proc/self/fdinfo/{handle}") as lines:
                found = next((int(line.split()[1]) for line in lines if line.startswith("Pid:")), 0)
            os.close(handle)
        return max(0, found)

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
