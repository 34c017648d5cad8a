"""The process that waits inside the sandbox and forks one candidate per sample, or compiles samples.

It holds no tests and no samples, so a fork of it has none either. One control socket leads to the tester:

* ``S`` with a descriptor: fork a candidate that serves that descriptor;
* ``K``: kill the candidate; ``Q``: how much CPU time has it used? (answered ``C`` and a double);
* ``F``: which process is it? (answered ``F`` with a descriptor of it);
* when a candidate ends: ``D``, its wait status, CPU seconds, peak KB.

Answers are 32 bytes. In the compiling role the socket carries length-prefixed sources and code objects instead.
"""

import ctypes
import gc
import json
import marshal
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import NoReturn

from scalefed.evaluation.sandbox import candidate, filters, kernel, rooms, tameness

REPLY = 32
"""Bytes of every answer on the control socket."""

_LINUX = sys.platform == "linux"
_PRELOADED = "math re collections itertools functools typing heapq string random copy operator bisect".split()


def main(arguments: list[str]) -> NoReturn:
    """Enter the room that the configuration asks for, say ``R`` and what is in force (or ``E`` and why not), serve."""
    control = socket.socket(fileno=int(arguments[0]))
    config = json.loads(arguments[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller; the socket's end ends this process
    try:
        facts = _enter(config)
    except BaseException as error:
        _say(control, b"E" + f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    _say(control, b"R" + json.dumps(facts).encode())
    _settle()
    if config["role"] == "compile":
        _compile_loop(control)
    _fork_loop(control, config)


def _settle() -> None:
    """All candidates start from here: the same random numbers, no module of the judge, little for fork to copy."""
    if "random" in sys.modules:
        sys.modules["random"].seed(0)
    for name in [name for name in sys.modules if name.startswith("scalefed")]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()


def _say(control: socket.socket, text: bytes) -> None:
    control.sendall(struct.pack("I", len(text)) + text)


def _enter(config: dict[str, object]) -> dict[str, object]:
    """Preload, enter the room, set limits, install the first filter."""
    for name in _PRELOADED if config["role"] == "run" else ():
        __import__(name)
    level, scratch = str(config["level"]), int(str(config["scratch_mb"]))
    if level not in ("none", "seccomp", "landlock", "ns"):
        raise ValueError(f"unknown level {level}")
    if level != "none" and not filters.supported():
        raise OSError(f"no seccomp filter for {sys.platform} {os.uname().machine}")
    null = os.open("/dev/null", os.O_RDWR)
    facts = rooms.enter(level, uid=int(str(config["uid"])), scratch_mb=scratch)
    for handle in (0, 1, 2):
        os.dup2(null, handle)
    os.close(null)
    _limit(config, scratch)
    if level != "none":
        kernel.allow_no_new_privileges()
        writing = level == "ns" and scratch > 0
        program = filters.compiler_filter() if config["role"] == "compile" else filters.zygote_filter(scratch=writing)
        kernel.Filter(program).install()
    return facts


def _limit(config: dict[str, object], scratch_mb: int) -> None:
    memory = int(str(config["memory_mb"])) << 20
    wanted = {"CORE": 0, "NOFILE": 32, "AS": memory, "DATA": memory, "FSIZE": scratch_mb << 20, "MEMLOCK": 0}
    wanted |= {"MSGQUEUE": 0, "SIGPENDING": 64}
    for name, value in wanted.items():
        which = getattr(resource, f"RLIMIT_{name}", None)
        if which is None or (name == "AS" and not _LINUX):  # other systems refuse or ignore it
            continue
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def _compile_loop(control: socket.socket) -> NoReturn:
    """Never runs anything: a source in; ``T`` or ``W`` (tame or wild) and its code object, or ``X`` and why, out."""
    handle = control.fileno()
    frames = candidate.Frames(handle)
    while True:
        source = frames.next()
        try:
            code = compile(source.decode("utf-8", "surrogatepass"), "<sample>", "exec", dont_inherit=True)
            answer = (b"T" if tameness.is_tame(code) else b"W") + marshal.dumps(code)
        except BaseException as error:
            text = str(error)[:200].encode("utf-8", "replace").decode()
            answer = b"X" + json.dumps([type(error).__name__, text]).encode()
        candidate.send_frame(handle, answer)


def _fork_loop(control: socket.socket, config: dict[str, object]) -> NoReturn:
    """Fork, wait, report, one candidate at a time."""
    handle, sandboxed, scratch = control.fileno(), config["level"] != "none", config["level"] == "ns"
    second = kernel.Filter(filters.candidate_filter()) if sandboxed else None
    orphans = sandboxed and not scratch  # where the end of this process does not end its children anyway
    cpu = int(float(str(config["cpu_s"]))) + 1
    # this process has one thread and one purpose: libc's fork, without CPython's hooks, touches 65 pages fewer
    fork = ctypes.PyDLL(None).fork
    while True:
        message, handles, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            os._exit(0)
        if message != b"S" or len(handles) != 1:
            for extra in handles:
                os.close(extra)
            continue
        child = fork()
        if child == 0:
            _become_candidate(handle, handles[0], cpu, orphans, second)
        os.close(handles[0])
        control.sendall(_watch(control, child).ljust(REPLY, b"\0"))
        if scratch:
            _empty("/tmp")


def _become_candidate(control: int, served: int, cpu: int, orphans: bool, second: kernel.Filter | None) -> NoReturn:
    """In the child: lose the control socket, take the last limits and the second filter, serve."""
    try:
        os.dup2(served, control)
        os.closerange(control + 1, 64)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
        if orphans:
            kernel.die_with_parent()
        if second is not None:
            second.install()
        elif not _LINUX:
            os.setsid()
        candidate.serve(control)
    except MemoryError:
        os._exit(101)
    finally:
        os._exit(100)


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
                os._exit(0)
            if command == b"K":
                os.kill(child, signal.SIGKILL)
            elif command == b"F" and ended >= 0:
                socket.send_fds(control, [b"F".ljust(REPLY, b"\0")], [ended])
            elif command == b"Q":
                control.sendall((b"C" + struct.pack("d", _cpu_seconds(child))).ljust(REPLY, b"\0"))
    if ended >= 0:
        os.close(ended)
    peak = usage.ru_maxrss if _LINUX else usage.ru_maxrss // 1024
    return b"D" + struct.pack("=idq", status, usage.ru_utime + usage.ru_stime, peak)


def _cpu_seconds(pid: int) -> float:
    """CPU time of a living process so far, -1 where the system has no such clock."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return -1.0


def _empty(folder: str) -> None:
    """Leave nothing of one sample to the next."""
    with os.scandir(folder) as found:
        if next(found, None) is None:
            return
    for place, folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.unlink(os.path.join(place, name))
        for name in folders:
            path = os.path.join(place, name)
            os.unlink(path) if os.path.islink(path) else os.rmdir(path)
