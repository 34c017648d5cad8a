"""How does a process ask the Linux kernel to be locked in? Thin calls through ctypes, nothing else.

Namespaces, mounts, Landlock, capabilities and seccomp have no Python interface; the few calls that the sandbox needs
are here, each raising OSError with what was asked for. Only the standard library is used: this runs in the slim
process that becomes the sandbox.
"""

import ctypes
import os
import struct
import time
from collections.abc import Callable, Iterable

# linux/sched.h, CLONE_NEW...
NEW_MOUNT, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 1 << 30
# MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18

SETGID, SETUID, DAC_OVERRIDE, DAC_READ_SEARCH, SYS_CHROOT, SYS_ADMIN = 6, 7, 1, 2, 18, 21
"""Capabilities, capabilities(7)."""

# numbers of system calls on x86-64; those of Landlock are the same everywhere
_SYS_CAPGET, _SYS_CAPSET, _SYS_MOUNT_SETATTR = 125, 126, 442
_CAPABILITY_HEADER = struct.pack("Ii", 0x20080522, 0)  # version 3, this process
# linux/landlock.h: system calls
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 444, 445, 446
# LANDLOCK_ACCESS_FS_...
_LANDLOCK_WRITE_FILE, _LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR = 1 << 1, 1 << 2, 1 << 3
# LANDLOCK_ACCESS_FS_...
_LANDLOCK_REMOVE_DIR, _LANDLOCK_REMOVE_FILE, _LANDLOCK_MAKE_DIR = 1 << 4, 1 << 5, 1 << 7
_LANDLOCK_MAKE_FILE, _LANDLOCK_TRUNCATE = 1 << 8, 1 << 14  # LANDLOCK_ACCESS_FS_...

libc = ctypes.CDLL(None, use_errno=True)


def cpu_seconds(pid: int) -> float | None:
    """CPU time of another process so far, None where the system has no such clock.

    Linux numbers that clock as ``~pid`` shifted past three bits, the lower two of which ask for time on a CPU
    (CPUCLOCK_SCHED); it is what ``clock_getcpuclockid`` computes, which Python does not offer for a process.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave the shared namespaces named by ``flags``."""
    _checked(libc.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """Make a file system or folder appear at another place."""
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    _checked(libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def unmount(path: str) -> None:
    """Take a mount away; the file system itself is gone when its last user is."""
    _checked(libc.umount2(os.fsencode(path), 2), f"umount {path}")


def make_read_only(path: str) -> None:
    """A mount and all below it becomes read-only, mount_setattr(2)."""
    attributes = struct.pack("QQQQ", 0x1, 0, 0, 0)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = libc.syscall(_SYS_MOUNT_SETATTR, -100, os.fsencode(path), 0x8000, buffer, len(attributes))
    _checked(result, f"mount_setattr {path}")


def set_host_name(name: bytes) -> None:
    """Name this UTS namespace."""
    _checked(libc.sethostname(name, len(name)), "sethostname")


def die_with_parent() -> None:
    """Be killed when the thread that made this process ends."""
    _checked(libc.prctl(1, 9, 0, 0, 0), "PR_SET_PDEATHSIG")


def forbid_tracing() -> None:
    """No ptrace and no reading of this process's memory by others of the same user."""
    _checked(libc.prctl(4, 0, 0, 0, 0), "PR_SET_DUMPABLE")


def keep_over_change_of_user() -> None:
    """Capabilities stay permitted when root becomes another user."""
    _checked(libc.prctl(8, 1, 0, 0, 0), "PR_SET_KEEPCAPS")


def permitted_capabilities() -> frozenset[int]:
    """The capabilities that this process may use."""
    data = ctypes.create_string_buffer(24)
    _checked(libc.syscall(_SYS_CAPGET, _CAPABILITY_HEADER, data), "capget")
    words = struct.unpack("6I", data.raw)
    return frozenset(n for n in range(64) if words[1 + 3 * (n // 32)] >> n % 32 & 1)


def keep_capabilities(kept: Iterable[int]) -> None:
    """Only these capabilities stay, permitted and in force; without new privileges no other can come back."""
    low = sum(1 << n for n in kept)
    _checked(libc.syscall(_SYS_CAPSET, _CAPABILITY_HEADER, struct.pack("6I", low, low, 0, 0, 0, 0)), "capset")


def landlock_version() -> int:
    """The Landlock version of this kernel, 0 if it has none."""
    version = int(libc.syscall(_SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1)))
    return max(0, version)


def landlock_rules(readable: Iterable[str], writable: Iterable[str]) -> int:
    """A descriptor of rules for :func:`landlock`: only these paths can be read, only those written.

    No TCP from version 4 on, no signals and abstract sockets outward from version 6 on. -1 where the kernel has no
    Landlock.
    """
    version = landlock_version()
    if version == 0:
        return -1
    files = (1 << 13) - 1
    for since, right in ((2, 1 << 13), (3, _LANDLOCK_TRUNCATE), (5, 1 << 15)):
        files |= right if version >= since else 0
    attributes = struct.pack("QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    attributes = attributes[: 8 if version < 4 else 16 if version < 6 else 24]
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    made = libc.syscall(_SYS_LANDLOCK_CREATE, buffer, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    rules = _checked(made, "landlock_create_ruleset")
    read = _LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR
    write = _LANDLOCK_WRITE_FILE | _LANDLOCK_REMOVE_DIR | _LANDLOCK_REMOVE_FILE | _LANDLOCK_MAKE_DIR
    write |= _LANDLOCK_MAKE_FILE | (_LANDLOCK_TRUNCATE if version >= 3 else 0)
    for paths, rights in ((readable, read), (writable, read | write)):
        for path in paths:
            _landlock_allow(rules, path, rights)
    return rules


def _landlock_allow(rules: int, path: str, rights: int) -> None:
    if not os.path.isdir(path):
        rights &= _LANDLOCK_READ_FILE | _LANDLOCK_WRITE_FILE | _LANDLOCK_TRUNCATE
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, handle), 12)
    _checked(libc.syscall(_SYS_LANDLOCK_ADD, rules, 1, rule, ctypes.c_uint(0)), f"landlock_add_rule {path}")
    os.close(handle)


def allow_no_new_privileges() -> None:
    """Set-uid programs gain nothing from here on; needed before Landlock and seccomp."""
    _checked(libc.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


class Call:
    """A system call whose arguments are made once, and which then costs a child as little as can be."""

    def __init__(self, what: str, function: Callable[..., int], *arguments: object):
        """Args: what: it is for. function: of libc. arguments: of it, as ctypes has them."""
        self._what, self._function, self._arguments = what, function, arguments

    def __call__(self) -> None:
        """Raises OSError where the kernel refuses."""
        if self._function(*self._arguments) < 0:
            _checked(-1, self._what)


def without_capabilities() -> Call:
    """No capability is left, for ever."""
    none = ctypes.create_string_buffer(24)
    return Call("capset", libc.capset, ctypes.create_string_buffer(_CAPABILITY_HEADER), none)


def landlock(rules: int) -> Call:
    """The rules hold from now on; needs no new privileges first."""
    return Call("landlock_restrict_self", libc.syscall, ctypes.c_long(_SYS_LANDLOCK_RESTRICT), ctypes.c_int(rules), 0)


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def seccomp(program: bytes) -> Call:
    """From now on every system call passes this filter, instructions of 8 bytes each; no new privileges first."""
    code = ctypes.create_string_buffer(program, len(program))
    whole = _FilterProgram(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
    return Call("seccomp", libc.prctl, ctypes.c_int(22), ctypes.c_long(2), ctypes.byref(whole), 0, 0)
