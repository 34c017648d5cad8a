"""The process that waits inside the sandbox and forks one candidate per sample, or compiles samples.

It holds no tests and no samples, so a fork of it has none either. One control socket leads to the tester:

* ``S``, names and a descriptor: fork a candidate that imports the modules named and serves the descriptor;
* ``K``: kill the candidate; ``Q``: how much CPU time has it used? (answered ``C`` and a double);
* ``E``: let the candidate look whether it can still come back (``endless.py``);
* ``F``: which process is it? (answered ``F`` with a descriptor of it);
* when a candidate ends: ``D``, its wait status, CPU seconds, peak KB.

Answers are 32 bytes. In the compiling role the socket carries length-prefixed sources and code objects instead.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import marshal
import os
import resource
import select
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

from scalefed.sandbox import allowlist, candidate, kernel
from scalefed.sandbox.isolation import Room

REPLY = 32
"""Bytes of every answer on the control socket."""

NAMES = 4096
"""Most bytes of the names of modules that a candidate is told to import."""

_LINUX = sys.platform == "linux"
_PRELOADED = {
    "run": "math re collections itertools functools typing heapq string random copy operator bisect".split(),
    "compile": ["unicodedata"],  # for names that are not ASCII and characters by name
}


def main(arguments: list[str]) -> NoReturn:
    """Enter the room that the configuration asks for, say ``R`` and what is in force (or ``E`` and why not), serve."""
    control = socket.socket(fileno=int(arguments[0]))
    config = json.loads(arguments[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller; the socket's end ends this process
    try:
        room = _enter(config)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the tester may have given up already
            _say(control, b"E" + f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    if config["role"] == "compile":
        room.lock()
    _say(control, b"R" + json.dumps(room.facts).encode())
    _settle()
    if config["role"] == "compile":
        _compile_loop(control)
    _fork_loop(control, config, room)


def _settle() -> None:
    """All candidates start from here: the same random numbers, no module of the judge, little for fork to copy."""
    candidate.rehearse()
    for name in {"random", "numpy.random"} & set(sys.modules):
        sys.modules[name].seed(0)
    for name in [name for name in sys.modules if name.startswith("scalefed")]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()


def _say(control: socket.socket, text: bytes) -> None:
    control.sendall(struct.pack("I", len(text)) + text)


def _enter(config: dict[str, Any]) -> Room:
    """Preload, set limits, enter the room."""
    sys.path += config["package_paths"]
    for name in (*_PRELOADED[config["role"]], *config["packages"]):
        importlib.import_module(name)
    taken = _mapped() if config["packages"] else 0  # what packages take is not counted against a sample
    null = os.open("/dev/null", os.O_RDWR)
    room = Room(config["level"], uid=config["uid"], scratch_mb=config["scratch_mb"], packages=_places(config))
    for handle in (0, 1, 2):
        os.dup2(null, handle)
    os.close(null)
    _limit((config["memory_mb"] << 20) + taken, config["scratch_mb"] << 20)
    return room


def _places(config: dict[str, Any]) -> list[str]:
    """Folders and files of the packages that samples may use."""
    found = []
    for name in config["packages"]:
        module = sys.modules[name]
        found += list(getattr(module, "__path__", ())) or [module.__file__]
    return [os.path.realpath(path) for path in found if path is not None]


def _limit(memory: int, scratch: int) -> None:
    """Limits in bytes and counts of this process and of all candidates."""
    wanted = {"CORE": 0, "NOFILE": 32, "AS": memory, "DATA": memory, "FSIZE": scratch, "MEMLOCK": 0}
    wanted |= {"MSGQUEUE": 0, "SIGPENDING": 64}
    for name, value in wanted.items():
        which = getattr(resource, f"RLIMIT_{name}", None)
        if which is None or (name == "AS" and not _LINUX):  # other systems refuse or ignore it
            continue
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _compile_loop(control: socket.socket) -> NoReturn:
    """Never runs anything: a source in; ``T`` or ``W`` (tame or wild), imports and code, or ``X`` and why, out."""
    handle = control.fileno()
    frames = candidate.Frames(handle)
    while True:
        source = frames.next()
        try:
            code = compile(source.decode("utf-8", "surrogatepass"), "<sample>", "exec", dont_inherit=True)
            names = "\n".join(allowlist.imports(code)).encode()[:NAMES]
            answer = (b"T" if allowlist.is_tame(code) else b"W") + struct.pack("H", len(names)) + names
            answer += marshal.dumps(code)
        except BaseException as error:
            text = str(error)[:200].encode("utf-8", "replace").decode()
            answer = b"X" + json.dumps([type(error).__name__, text]).encode()
        candidate.send_frame(handle, answer)


def _fork_loop(control: socket.socket, config: dict[str, Any], room: Room) -> NoReturn:
    """Fork, wait, report, one candidate at a time."""
    handle, sandboxed, own = control.fileno(), config["level"] != "none", os.getpid()
    library = candidate.Library(config["packages"]) if sandboxed else None
    cpu = int(config["cpu_s"]) + 1
    if _LINUX:
        signal.signal(signal.SIGUSR1, candidate.look)
    # this process has one thread and one purpose: libc's fork, without CPython's hooks, touches 65 pages fewer
    fork = ctypes.PyDLL(None).fork
    while True:
        message, extra, _, _ = control.recvmsg(NAMES + 16, socket.CMSG_SPACE(4))
        if not message:
            os._exit(0)
        start = message.find(b"S")  # what stands before it was for a candidate that had just ended
        if start < 0 or not extra:
            continue
        served = struct.unpack("i", extra[0][2][:4])[0]
        child = fork()
        if child == 0:
            parent = own if sandboxed and own != 1 else 0  # process 1 of a namespace takes all others with it
            _become_candidate(handle, served, cpu, parent, room, message[start + 1 :], library)
        os.close(served)
        control.sendall(_watch(control, child).ljust(REPLY, b"\0"))
        room.renew()


def _become_candidate(
    control: int, served: int, cpu: int, parent: int, room: Room, names: bytes, library: candidate.Library | None
) -> NoReturn:
    """In the child: import what the sample will need, take the last limits, be locked in, serve."""
    try:
        os.dup2(served, control)
        if parent:
            kernel.die_with_parent()
            if os.getppid() != parent:
                os._exit(0)
        elif not _LINUX:
            os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
        if library is not None:
            if names:
                _import(names.decode().split(), room, library)
            library.handle = control
        room.lock()
        os.closerange(control + 1, 64)
        candidate.serve(control)
    except MemoryError:
        os._exit(101)
    finally:
        os._exit(100)


def _import(names: list[str], room: Room, library: candidate.Library) -> None:
    """Import these modules, or find that they cannot be had: all that the sample will learn of files."""
    library.asked = frozenset(names)
    missing = [name for name in names if name not in sys.modules]
    if missing:
        room.leave()
        with library.open():
            for name in missing:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        room.come_back()


def _watch(control: socket.socket, child: int) -> bytes:
    """Obey the tester until the candidate has ended; the report of its end."""
    ended = os.pidfd_open(child) if _LINUX else -1
    poll = select.poll()
    poll.register(control.fileno(), select.POLLIN)
    if ended >= 0:
        poll.register(ended, select.POLLIN)
    while True:
        events = poll.poll(None if ended >= 0 else 2)
        if ended < 0 or any(handle == ended for handle, _ in events):
            pid, status, usage = os.wait4(child, 0 if ended >= 0 else os.WNOHANG)
            if pid:
                break
        if any(handle == control.fileno() for handle, _ in events):
            command = control.recv(1)
            if not command:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)  # whoever would inherit it might not
                os._exit(0)
            if command == b"K":
                os.kill(child, signal.SIGKILL)
            elif command == b"E":
                os.kill(child, signal.SIGUSR1)
            elif command == b"F" and ended >= 0:
                handles = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", ended))]
                control.sendmsg([b"F".ljust(REPLY, b"\0")], handles)
            elif command == b"Q":
                used = kernel.cpu_seconds(child)
                control.sendall((b"C" + struct.pack("d", -1.0 if used is None else used)).ljust(REPLY, b"\0"))
    if ended >= 0:
        os.close(ended)
    peak = usage.ru_maxrss if _LINUX else usage.ru_maxrss // 1024
    return b"D" + struct.pack("=idq", status, usage.ru_utime + usage.ru_stime, peak)


def _mapped() -> int:
    """Bytes of address space that this process has taken; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as line:
            return int(line.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0
