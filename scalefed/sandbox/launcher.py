"""How is a sandboxed process started, at the best level that this machine allows, and how is it ended?

The trusted end of one fork server: a fresh interpreter that inherits nothing, its control socket, and the processes
that it forks on demand.
"""

import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

from scalefed.errors import SandboxError
from scalefed.sandbox.forkserver import REPLY
from scalefed.sandbox.messages import Usage

_LOOK_S = 0.1  # how often one that does not answer is looked at
_START_S, _ANSWER_S = 120.0, 30.0  # longest wait for a start and for an answer, on a machine however busy
_END_S = 0.3  # what it has to end by itself

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
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parts = ["", "sandbox"]
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
    fixed |= {"OPENBLAS_NUM_THREADS": "1", "TZ": "UTC0"}
    loader = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    return fixed | loader


class Gone(BaseException):
    """A fork server has ended, is stopped, or does not answer; another one must be started. Tests cannot catch it."""


class ForkServer:
    """A started fork server; :meth:`ready` waits until it is in its room. No wait for it is without a limit."""

    def __init__(
        self,
        role: str,
        *,
        levels: tuple[str, ...],
        memory_mb: int,
        cpu_s: float,
        scratch_mb: int,
        packages: tuple[str, ...] = (),
    ):
        """Args: role: run, shared or compile. packages: libraries that samples may import, for run only."""
        used = list(packages) if role == "run" else []
        self._config: dict[str, Any] = {
            "role": "compile" if role == "compile" else "run",
            "memory_mb": memory_mb,
            "cpu_s": cpu_s,
        }
        self._config |= {"scratch_mb": scratch_mb, "packages": used, "package_paths": sys.path if used else []}
        self._config["uid"] = 1_500_000_000 + 4 * os.getpid() + {"run": 0, "shared": 1, "compile": 2}[role]
        self._left, self.refused = list(levels), dict[str, str]()
        self.facts: dict[str, Any] = {}
        self._start()

    def _start(self) -> None:
        self.level, self._pid = self._left.pop(0), 0
        self.control, inner = socket.socketpair()
        if CREDENTIALS:
            self.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._poll = select.poll()
        self._poll.register(self.control.fileno(), select.POLLIN)
        arguments = [str(inner.fileno()), json.dumps(self._config | {"level": self.level})]
        self.process = subprocess.Popen(
            command("scalefed.sandbox.forkserver", slim=True) + arguments,
            pass_fds=(inner.fileno(),),
            stdin=subprocess.DEVNULL,
            env=environment(),
        )
        inner.close()

    def ready(self) -> None:
        """Wait for the room; a level that cannot be had is recorded and the next one tried."""
        while True:
            try:
                size = struct.unpack("I", self.receive(4, _START_S))[0]
                text = self.receive(size, _START_S)
            except (Gone, TimeoutError) as error:
                text = f"E{error}".encode()
            if text[:1] == b"R":
                self.facts = json.loads(text[1:])
                return
            self.close()
            self.refused[self.level] = text[1:].decode("utf-8", "replace")
            if not self._left:
                raise SandboxError(json.dumps(self.refused))
            self._start()

    def receive(self, count: int, patience: float) -> bytes:
        """So many bytes of what it says; raises Gone, or TimeoutError after ``patience`` seconds without a byte."""
        parts: list[bytes] = []
        while count:
            self._wait(patience)
            try:
                part, extra, _, _ = self.control.recvmsg(min(count, 1 << 20), 0 if self._pid else socket.CMSG_SPACE(12))
            except ConnectionResetError:
                part, extra = b"", []
            if not part:
                raise Gone("it has ended")
            for level, kind, value in extra:
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    self._pid = struct.unpack("3i", value[:12])[0]
                    self.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _wait(self, patience: float) -> None:
        """Until there is something to read."""
        limit = time.monotonic() + patience
        while not self._poll.poll(_LOOK_S * 1000):
            if self._stopped():
                raise Gone("it is stopped")
            if time.monotonic() > limit:
                raise TimeoutError(f"no answer within {patience:g} s")

    def _stopped(self) -> bool:
        """True if it is not going to run: stopped from outside, traced, or a zombie."""
        for pid in filter(None, (self._pid, self.process.pid)):
            try:
                with open(f"/proc/{pid}/stat") as line:
                    if line.read().rpartition(")")[2].split()[0] in "TtZX":
                        return True
            except OSError:  # gone, which its socket will say, or this system has no such record
                continue
        return False

    def _answer(self) -> bytes:
        """The next answer on the control socket."""
        try:
            return self.receive(REPLY, _ANSWER_S)
        except TimeoutError as error:
            raise Gone(str(error)) from error

    def _say(self, what: bytes) -> None:
        try:
            self.control.send(what)
        except OSError as error:
            raise Gone("it has ended") from error

    def launch(self, names: Iterable[str] = ()) -> socket.socket:
        """Fork a candidate that first imports the modules ``names``; the socket to talk to it."""
        ours, theirs = socket.socketpair()
        if CREDENTIALS:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            socket.send_fds(self.control, [b"S" + " ".join(names).encode()], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise Gone("it has ended") from error
        finally:
            theirs.close()
        return ours

    def cpu_seconds(self) -> float | None:
        """CPU time of the running candidate; None if it has just ended or the system cannot tell."""
        self._say(b"Q")
        reply = self._answer()
        if reply[:1] == b"C":
            seconds = float(struct.unpack("d", reply[1:9])[0])
            return seconds if seconds >= 0 else None
        self._ending = reply
        return None

    def look(self) -> None:
        """Let the running candidate look whether it can still come back."""
        self._say(b"E")

    def pid(self) -> int:
        """The running candidate's process id as this process sees it; 0 if it has just ended or cannot be told."""
        self._say(b"F")
        self._wait(_ANSWER_S)
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
        if not reply and (kill or not self._poll.poll(10)):
            self._say(b"K")
        while reply[:1] != b"D":
            reply = self._answer()
        status, cpu, peak = struct.unpack("=idq", reply[1:21])
        return status, Usage(cpu, peak / 1024)

    def close(self) -> None:
        """End the fork server and whatever it runs."""
        self.control.close()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()  # what it runs is killed by the kernel with it
            self.process.wait()
