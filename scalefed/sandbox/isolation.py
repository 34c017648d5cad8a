"""What can a sample see? Nothing but what its own process holds, at one of four levels.

``ns``: own user, mount, pid, net, ipc and uts namespaces; the root is an empty read-only file system with three devices
and a private ``/tmp``, of which each sample gets a fresh one. Then Landlock, then seccomp. ``landlock``: Landlock and
seccomp, where namespaces are not allowed (inside a default container, for example); nothing that names a path works.
``seccomp``: the same without Landlock; not a sandbox, because one wall is not enough. ``none``: resource limits only.

In ``ns`` the fork server is in that root as well; a candidate that has modules to import goes out to the machine for
that, read-only. Each is locked in by :meth:`Room.lock` before any of its code runs, and from then on has no file of the
machine in sight.
"""

import os
import socket
from typing import NoReturn

from scalefed.sandbox import kernel, seccomp

_DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")
_ROOT = "/proc"
"""Where a candidate's root is mounted: a folder that every Linux has and that no library lies in."""
_SCRATCH = _ROOT + "/tmp"
_UNTOUCHED = 0
"""Time of last change of a scratch folder in which nothing was ever made, in nanoseconds."""


class Room:
    """The level that this process, a fork server, has entered."""

    def __init__(self, level: str, *, uid: int, scratch_mb: int, packages: list[str]):
        """Enter ``level``; in ``ns`` this returns in a new process 1.

        Args:
            level: ``ns``, ``landlock``, ``seccomp`` or ``none``.
            uid: the otherwise unused user id to become, where that is possible.
            scratch_mb: MB of private writable /tmp (``ns`` only), 0 for none.
            packages: folders and files of libraries that samples may read (``ns`` and ``landlock``).

        Raises:
            OSError: the kernel does not allow this level.
        """
        self.facts: dict[str, object] = {"level": level}
        self._root = self._machine = -1
        self._keeper: socket.socket | None = None
        self._locks: list[kernel.Call] = []
        if level == "none":
            return
        if not seccomp.supported():
            raise OSError(f"no seccomp filter for {os.uname().sysname} {os.uname().machine}")
        writes = level == "ns" and scratch_mb > 0
        if level == "ns":
            self._keeper = _enter_namespaces(uid, packages, scratch_mb)
            self._root, self._machine = (os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (_ROOT, "/"))
        else:
            _become(uid if _can_become(uid) else None, {kernel.DAC_READ_SEARCH, kernel.DAC_OVERRIDE})
            os.chdir("/")
        self._locks.append(kernel.without_capabilities())
        if level != "seccomp":
            rules = kernel.landlock_rules(*(((), [_ROOT]) if level == "ns" else (packages, ())))
            if level == "landlock" and rules < 0:
                raise OSError("this kernel has no Landlock")
            if rules >= 0:
                self._locks.append(kernel.landlock(rules))
            self.facts["landlock"] = kernel.landlock_version()
        self.facts["uid"] = os.getuid()
        self._renews = writes
        kernel.die_with_parent()
        kernel.forbid_tracing()
        kernel.allow_no_new_privileges()
        reads = level == "ns" or (level == "landlock" and bool(packages))
        self._locks.append(kernel.seccomp(seccomp.candidate_filter(paths=reads)))
        self._change_root(self._root)
        kernel.seccomp(seccomp.server_filter(writes=writes))()

    def _change_root(self, handle: int) -> None:
        """Between the two roots of ``ns``; elsewhere there is only one."""
        if handle >= 0:
            os.fchdir(handle)
            os.chroot(".")

    def leave(self) -> None:
        """Called in a candidate that has modules to import: it sees the machine until :meth:`come_back`."""
        self._change_root(self._machine)

    def come_back(self) -> None:
        """Called in a candidate after :meth:`leave`."""
        self._change_root(self._root)

    def lock(self) -> None:
        """Called in a candidate, last before its code runs: no file, process or socket of the machine is in reach."""
        if self._root >= 0:
            os.chdir("/tmp")
        for lock in self._locks:
            lock()

    def renew(self) -> None:
        """Called in the fork server when a candidate has ended: what it left in its file system goes with all of it."""
        if self._keeper is None or not self._renews or os.stat("/tmp").st_mtime_ns == _UNTOUCHED:
            return
        self._keeper.sendall(b"N")
        if not self._keeper.recv(1):
            raise OSError("no fresh file system for the next sample")


def _can_become(uid: int) -> bool:
    """True for root that may become ``uid`` and still read what it reads; a container's root may not."""
    permitted = kernel.permitted_capabilities()
    if os.getuid() != 0 or not {kernel.SETUID, kernel.SETGID} <= permitted:
        return False
    if not permitted & {kernel.DAC_READ_SEARCH, kernel.DAC_OVERRIDE}:
        return False
    for table in ("uid_map", "gid_map"):
        with open(f"/proc/self/{table}") as lines:
            rows = [tuple(map(int, line.split())) for line in lines]
        if not any(first <= uid < first + count for first, _, count in rows):
            return False
    return True


def _become(uid: int | None, kept: set[int]) -> None:
    """Be another user, if one is given, who keeps the capabilities ``kept`` of those that there are."""
    permitted = kernel.permitted_capabilities()
    if {kernel.DAC_READ_SEARCH, kernel.DAC_OVERRIDE} <= kept & permitted:
        kept = kept - {kernel.DAC_OVERRIDE}
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        kernel.keep_over_change_of_user()
        os.setresuid(uid, uid, uid)
    kernel.keep_capabilities(kept & permitted)


def _enter_namespaces(uid: int, packages: list[str], scratch_mb: int) -> socket.socket:
    """New namespaces with a candidate's root, and process 1 of the new pid namespace; its parent keeps the scratch.

    Returns the socket by which the parent is asked for a fresh scratch folder.
    """
    own_uid, own_gid = os.getuid(), os.getgid()
    root = _can_become(uid) and {kernel.SYS_ADMIN, kernel.SYS_CHROOT} <= kernel.permitted_capabilities()
    flags = kernel.NEW_MOUNT | kernel.NEW_PID | kernel.NEW_NET | kernel.NEW_IPC | kernel.NEW_UTS
    kernel.unshare(flags | (0 if root else kernel.NEW_USER))
    if not root:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{own_uid} {own_uid} 1"),
            ("gid_map", f"{own_gid} {own_gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as table:
                table.write(text)
    _build_root(packages, scratch_mb)
    kernel.set_host_name(b"sandbox")
    requests, inner = socket.socketpair()
    child = os.fork()
    if child:
        _keep(requests, child, scratch_mb)
    requests.close()
    _become(uid if root else None, {kernel.SYS_CHROOT, kernel.DAC_READ_SEARCH, kernel.DAC_OVERRIDE})
    return inner


def _build_root(packages: list[str], scratch_mb: int) -> None:
    """The machine becomes read-only here; an empty file system with three devices is to be a candidate's root."""
    kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)
    kernel.make_read_only("/")
    kernel.mount("tmpfs", _ROOT, "tmpfs", kernel.NO_SUID, "size=64k,nr_inodes=512,mode=755")
    os.makedirs(_ROOT + "/dev")
    os.mkdir(_SCRATCH)
    for path in (*_DEVICES, *packages):
        target = _ROOT + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        kernel.mount(path, target, None, kernel.BIND)
    kernel.mount(None, _ROOT, None, kernel.REMOUNT | kernel.BIND | kernel.READ_ONLY | kernel.NO_SUID)
    if scratch_mb:
        _mount_scratch(scratch_mb)


def _mount_scratch(scratch_mb: int) -> None:
    """An empty /tmp that shows whether anything was ever made in it: its time of last change then moves."""
    options = f"size={scratch_mb}m,nr_inodes=64,mode=1777"
    kernel.mount("tmpfs", _SCRATCH, "tmpfs", kernel.NO_SUID | kernel.NO_DEV | kernel.NO_EXEC, options)
    os.utime(_SCRATCH, ns=(_UNTOUCHED, _UNTOUCHED))


def _keep(requests: socket.socket, child: int, scratch_mb: int) -> NoReturn:
    """In the process that holds the namespaces: replace the scratch folder when asked, end with the fork server."""
    try:
        kernel.die_with_parent()
        os.dup2(requests.fileno(), 0)
        os.closerange(1, 256)
        kernel.keep_capabilities({kernel.SYS_ADMIN})
        while os.read(0, 1):
            kernel.unmount(_SCRATCH)
            _mount_scratch(scratch_mb)
            os.write(0, b"Y")
        os.waitpid(child, 0)
    finally:
        os._exit(0)
