"""Attacks judged with honest samples before and after each: what passed, what was harmed, whose verdict was spoilt.

One row a kind: how many were tried, the attacks with a wrong verdict, harm done to the machine, neighbours judged
wrongly, and what was left behind. Everything but the first must be nothing.
"""

import contextlib
import ctypes
import dataclasses
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from hostile import ADD, Case

from scalefed.evaluation.judge import judge

_SECRET, _VICTIM = "open sesame", "alive"
_PLANTED = ("/dev/shm/planted", "/root/planted", "/tmp/d", "/tmp/held", "/tmp/full", "/tmp/exit")
_QUEUES = ("/proc/sysvipc/shm", "/proc/sysvipc/sem", "/proc/sysvipc/msg")
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans become children of this process, so that it sees them
_SANDBOX_UIDS = 1_500_000_000  # from here on they are the sandbox's

_LIBRARY = """    import collections, decimal, json, math, random, re, string, sys, typing
    assert re.fullmatch("a+b", "aab") and json.loads("[1, 2]") == [1, 2] and math.sqrt(4) == 2
    assert string.digits == "0123456789" and collections.Counter("aab")["a"] == 2
    assert decimal.Decimal(1) / 3 > decimal.Decimal("0.3333") and len(str(10 ** 900)) == 901
    assert random.Random({i}).random() == random.Random({i}).random() and isinstance([], list)
    return x + y
"""
_TAME = """    pass
import math, re, string
from collections import Counter, deque
def add(x, y):
    assert math.floor(2.5) == 2 and re.sub("a", "", "ab") == "b" and Counter("aa")["a"] == 2
    assert len(string.digits) == 10 and isinstance(x, int) and len([x]) == 1
    return sum(deque([x, y, {i}, -{i}]))
"""
_FILES = """    import os
    os.makedirs("{i}/b", exist_ok=True)
    assert os.listdir("..") and sorted(os.listdir("/tmp")) == ["{i}"]
    with open("{i}/b/c", "wb") as file: file.write(bytes(1 << 20))
    return x + y
"""
NEIGHBOURS = (
    ("right", "    return x + y + 0 * {i}\n", "pass"),
    ("wrong", "    return x * y + 0 * {i}\n", "fail"),
    ("library", _LIBRARY, "pass"),
    ("tame library", _TAME, "pass"),
    ("deep", "    def f(n): return n and 1 + f(n - 1)\n    return x + y + f(400) - 400 + 0 * {i}\n", "pass"),
    ("files", _FILES, "pass"),
    ("busy", "    for i in range(300_000): pass\n    return x + y + 0 * {i}\n", "pass"),
)  # fmt: skip
"""Name, completion of ADD and its verdict. One that keeps files passes only where there is a place for them."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of one kind of attacks.

    Attributes:
        kind: of attack.
        tried: how many.
        wrong: attacks with a verdict that is not allowed, as text.
        harm: what of the machine was changed or read.
        neighbours: honest samples with a wrong verdict, as text.
        left: processes and files left behind.
    """

    kind: str
    tried: int
    wrong: tuple[str, ...]
    harm: tuple[str, ...]
    neighbours: tuple[str, ...]
    left: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """True if nothing came of it."""
        return not (self.wrong or self.harm or self.neighbours or self.left)


@dataclasses.dataclass(frozen=True)
class Canary:
    """What must stay as it is: a folder with a secret, a victim and sockets, and the facts of this process."""

    folder: Path
    port: int
    listeners: tuple[socket.socket, ...]
    facts: tuple[object, ...]

    def filled(self, completion: str) -> str:
        """The completion with what it aims at."""
        return completion.replace("{canary}", str(self.folder)).replace("{port}", str(self.port))

    def harm(self) -> list[str]:
        """All that was read out, changed, planted or connected to."""
        found = [f"{p.name} is there" for p in self.folder.iterdir() if p.name not in _NAMES]
        found += [f"{name} is gone" for name in _NAMES if not os.path.lexists(self.folder / name)]
        for name, text in (("secret", _SECRET), ("victim", _VICTIM)):
            if (self.folder / name).read_text() != text:
                found.append(f"{name} was changed")
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):
                listener.recv(1) if listener.type == socket.SOCK_DGRAM else listener.accept()
                found.append(f"{listener.getsockname()} was reached")
        found += [f"{path} was planted" for path in _PLANTED if os.path.lexists(path)]
        return found + [f"{a} became {b}" for a, b in zip(self.facts, _facts(), strict=True) if a != b]


_NAMES = ("secret", "victim", "socket", "datagrams")


def _facts() -> tuple[object, ...]:
    """What an attack may change of this process and machine."""
    limits = tuple(
        resource.getrlimit(getattr(resource, name)) for name in sorted(dir(resource)) if name[:7] == "RLIMIT_"
    )
    queues = tuple(path.read_text() for path in map(Path, _QUEUES) if path.exists())
    clock = abs(time.time() - time.monotonic() - _CLOCK) < 60
    return (os.uname().nodename, os.getpriority(os.PRIO_PROCESS, 0), os.sched_getaffinity(0), limits, queues, clock)


_CLOCK = time.time() - time.monotonic()


@contextlib.contextmanager
def canary(folder: Path) -> Iterator[Canary]:
    """A canary in a folder that anybody may write: only the sandbox may be in the way."""
    folder.mkdir()
    folder.chmod(0o777)
    for name, text in (("secret", _SECRET), ("victim", _VICTIM)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o666)
    tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
    stream, datagrams = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    stream.bind(str(folder / "socket"))
    datagrams.bind(str(folder / "datagrams"))
    stream.listen()
    udp.bind(("127.0.0.1", tcp.getsockname()[1]))
    listeners = (tcp, udp, stream, datagrams)
    for listener in listeners:
        listener.setblocking(False)
    for name in ("socket", "datagrams"):
        (folder / name).chmod(0o777)
    try:
        yield Canary(folder, tcp.getsockname()[1], listeners, _facts())
    finally:
        for listener in listeners:
            listener.close()


def try_kind(kind: str, attacks: list[Case], aim: Canary, *, level: str, tier: str) -> Row:
    """Judge attacks of one kind, each between two honest samples, one after the other by one worker."""
    numbers = iter(range(10**9))
    samples: list[str] = []
    expected: list[tuple[str, set[str], bool]] = []
    for attack in [*attacks, None]:
        for name, text, verdict in (
            NEIGHBOURS[:] if attack is None else [NEIGHBOURS[len(expected) // 2 % len(NEIGHBOURS)]]
        ):
            allowed = {"pass" if level == "ns" else "fail"} if name == "files" else {verdict}
            samples.append(text.replace("{i}", str(next(numbers))))
            expected.append((name, allowed, False))
        if attack is not None:
            samples.append(aim.filled(attack.completion) + f"# {next(numbers)}\n")
            expected.append((attack.name, attack.allowed, True))
    libc = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    before = children()
    try:
        pairs = [("t/add", text) for text in samples]
        verdicts = judge([ADD], pairs, timeout=0.7, memory_mb=400, isolation=level, tier=tier, workers=1)
        left = left_behind(before)
    finally:
        libc.prctl(_SUBREAPER, 0, 0, 0, 0)
    wrong: dict[bool, list[str]] = {True: [], False: []}
    for (name, allowed, hostile), found in zip(expected, verdicts, strict=True):
        if found.verdict not in allowed or found.level != level:
            wrong[hostile].append(f"{name}: {found.verdict} at {found.level}, {found.reason}")
    return Row(kind, len(attacks), tuple(wrong[True]), tuple(aim.harm()), tuple(wrong[False]), tuple(left))


def children() -> dict[int, str]:
    """Children of this process and their state."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                found[int(folder.name)] = fields[0]
    return found


def left_behind(before: dict[int, str], *, patience: float = 10.0) -> list[str]:
    """Processes and files that the sandbox left; the processes are ended.

    Args:
        before: the children that there were.
        patience: seconds that those have to end which the kernel is ending, which takes a while on a busy machine.
    """
    deadline = time.monotonic() + patience
    while left := {pid: state for pid, state in children().items() if pid not in before}:
        late = time.monotonic() > deadline
        for pid in left:
            with contextlib.suppress(OSError):
                if late:
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0 if late else os.WNOHANG)
        if late:
            break
        time.sleep(0.05)
    found = [f"process {pid} in state {state}" for pid, state in left.items()]
    for entry in os.scandir("/tmp"):
        with contextlib.suppress(OSError):
            if entry.stat(follow_symlinks=False).st_uid >= _SANDBOX_UIDS:
                found.append(entry.path)
    return found
