"""What can a sample see? One of four rooms, from a private machine down to nothing but limits.

``ns``: own user, mount, pid, net, ipc and uts namespaces with an empty read-only file system that holds only the
standard library, then Landlock, then seccomp. ``landlock``: Landlock and seccomp, where namespaces are not allowed
(inside a default container, for example). ``seccomp``: files outside can be read; not a sandbox. ``none``: resource
limits only; not a sandbox.
"""

import os
import sys

from scalefed.evaluation.sandbox import kernel

_DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")


def enter(level: str, *, uid: int, scratch_mb: int) -> dict[str, object]:
    """Enter the room ``level``, up to but not including seccomp; in ``ns`` this returns in a new process 1.

    Args:
        level: ``ns``, ``landlock``, ``seccomp`` or ``none``.
        uid: the otherwise unused user id to become, where that is possible.
        scratch_mb: MB of private writable /tmp (``ns`` only), 0 for none.

    Returns:
        What is in force, for the record.

    Raises:
        OSError: the kernel does not allow this level.
    """
    facts: dict[str, object] = {"level": level}
    if level == "none":
        return facts
    readable = standard_library()
    if level == "ns":
        _enter_namespaces(uid, readable, scratch_mb)
    elif _can_become(uid):
        facts["note"] = _become(uid, readable[0])
    if level in ("ns", "landlock"):
        scratch = ["/tmp"] if level == "ns" and scratch_mb else []
        facts["landlock"] = kernel.landlock_restrict([*readable, *_DEVICES], scratch)
        if level == "landlock" and not facts["landlock"]:
            raise OSError("this kernel has no Landlock")
    if level != "ns":
        os.chdir("/")
    kernel.drop_capabilities()
    kernel.forbid_tracing()
    facts["uid"] = os.getuid()
    return facts


def standard_library() -> list[str]:
    """Directories that a bare interpreter reads: its library first, then the shared libraries of the system."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    paths = [os.path.join(os.path.realpath(sys.base_prefix), "lib", version)]
    for path in ("/usr/lib", "/lib", "/lib64", "/usr/lib64"):
        if os.path.isdir(path) and not os.path.islink(path):
            paths.append(path)
    return paths


def _can_become(uid: int) -> bool:
    """True for root that holds CAP_SYS_ADMIN and CAP_SETUID and has ``uid`` mapped; a container's root may not."""
    if os.getuid() != 0:
        return False
    with open("/proc/self/status") as lines:
        effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff"))
    for table in ("uid_map", "gid_map"):
        with open(f"/proc/self/{table}") as lines:
            rows = [tuple(map(int, line.split())) for line in lines]
        if not any(first <= uid < first + count for first, _, count in rows):
            return False
    return bool(effective >> 21 & 1 and effective >> 7 & 1)


def _become(uid: int, library: str) -> str:
    """Take the unused uid if the interpreter's library stays readable; returns what to note."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(uid, uid, uid)
            os.listdir(library)
            os._exit(0)
        except OSError:
            os._exit(1)
    if os.waitpid(child, 0)[1] != 0:
        return "the interpreter is readable for root only: the sample stays uid 0, without capabilities"
    os.setresuid(uid, uid, uid)
    return ""


def _enter_namespaces(uid: int, readable: list[str], scratch_mb: int) -> None:
    """New namespaces, a private root, and process 1 of the new pid namespace; the outer process only waits."""
    own_uid, own_gid, root = os.getuid(), os.getgid(), _can_become(uid)
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
    _build_root(readable, scratch_mb)
    kernel.set_host_name(b"sandbox")
    child = os.fork()
    if child:
        kernel.die_with_parent()
        os.closerange(0, 256)
        os.waitpid(child, 0)
        os._exit(0)
    kernel.die_with_parent()
    if root:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _build_root(readable: list[str], scratch_mb: int) -> None:
    """An empty tmpfs with read-only binds of the library and three devices becomes the root."""
    kernel.mount("none", "/", None, kernel.RECURSIVE | kernel.PRIVATE)
    # sources must be opened before the tmpfs covers them
    sources = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (*readable, *_DEVICES)}
    new = "/tmp"
    kernel.mount("tmpfs", new, "tmpfs", kernel.NO_SUID, "size=64k,nr_inodes=512,mode=755")
    os.makedirs(new + "/dev")
    for path, handle in sources.items():
        if path in _DEVICES:
            os.close(os.open(new + path, os.O_CREAT | os.O_WRONLY, 0o644))
            kernel.mount(f"/proc/self/fd/{handle}", new + path, None, kernel.BIND)
        else:
            os.makedirs(new + path, exist_ok=True)
            kernel.mount(f"/proc/self/fd/{handle}", new + path, None, kernel.BIND | kernel.RECURSIVE)
            kernel.make_read_only(new + path)
        os.close(handle)
    for link in ("/lib", "/lib64", "/usr/lib64"):
        if os.path.islink(link) and not os.path.lexists(new + link):
            os.symlink(os.readlink(link), new + link)
    os.mkdir(new + "/tmp")
    os.chdir(new)
    kernel.enter_root()
    if scratch_mb:
        options = f"size={scratch_mb}m,nr_inodes=64,mode=1777"
        kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.NO_SUID | kernel.NO_DEV | kernel.NO_EXEC, options)
    kernel.mount(None, "/", None, kernel.REMOUNT | kernel.BIND | kernel.READ_ONLY | kernel.NO_SUID)
    os.chdir("/tmp")
