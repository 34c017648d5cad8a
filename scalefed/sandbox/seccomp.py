"""Which system calls may a sample make? Two seccomp filters, written as classic BPF by hand.

The first is installed once in the fork server: an allow-list of what a pure Python program needs, plus what the fork
server itself needs to fork candidates. The second, short, is added in every candidate: it takes those extras away again
and, where there is no private file system, every call that names a path. A call that no honest solution makes kills the
sample (verdict ``violation``); any other unknown call fails with EPERM.

x86-64 only; elsewhere :func:`supported` is False and the sandbox steps down.
"""

import platform
import struct
import sys
from collections.abc import Sequence

_NUMBERS = {
    name: int(number)
    for name, number in (
        pair.split("=")
        for pair in """
read=0 write=1 open=2 close=3 stat=4 fstat=5 lstat=6 poll=7 lseek=8 mmap=9 mprotect=10 munmap=11 brk=12
rt_sigaction=13 rt_sigprocmask=14 rt_sigreturn=15 ioctl=16 pread64=17 pwrite64=18 readv=19 writev=20 access=21 pipe=22
select=23 sched_yield=24 mremap=25 madvise=28 dup=32 dup2=33 pause=34 nanosleep=35 getitimer=36 alarm=37 setitimer=38
getpid=39 socket=41 connect=42 accept=43 sendto=44 recvfrom=45 sendmsg=46 recvmsg=47 shutdown=48 bind=49 listen=50
getsockname=51 getpeername=52 socketpair=53 setsockopt=54 getsockopt=55 clone=56 fork=57 vfork=58 execve=59 exit=60
wait4=61 kill=62 uname=63 fcntl=72 fsync=74 ftruncate=77 getcwd=79 chdir=80 fchdir=81 rename=82 mkdir=83 rmdir=84
unlink=87 readlink=89 umask=95 gettimeofday=96 getrlimit=97 getrusage=98 sysinfo=99 times=100 ptrace=101 getuid=102
getgid=104 geteuid=107 getegid=108 getppid=110 getpgrp=111 getgroups=115 getresuid=118 getresgid=120 capset=126
sigaltstack=131 statfs=137 fstatfs=138 getpriority=140 sched_getparam=143 sched_getscheduler=145 prctl=157
arch_prctl=158 setrlimit=160 chroot=161 mount=165 umount2=166 reboot=169 gettid=186 time=201 futex=202
sched_getaffinity=204 getdents64=217 set_tid_address=218 restart_syscall=219 timer_create=222 timer_settime=223
timer_gettime=224 timer_delete=226 clock_gettime=228 clock_getres=229 clock_nanosleep=230 exit_group=231
epoll_wait=232 epoll_ctl=233 tgkill=234 kexec_load=246 waitid=247 add_key=248 openat=257 mkdirat=258 newfstatat=262
unlinkat=263 renameat=264 readlinkat=267 faccessat=269 pselect6=270 ppoll=271 unshare=272 set_robust_list=273
epoll_pwait=281 timerfd_create=283 timerfd_settime=286 accept4=288 eventfd2=290 epoll_create1=291 dup3=292 pipe2=293
perf_event_open=298 prlimit64=302 setns=308 process_vm_readv=310 process_vm_writev=311 finit_module=313 getrandom=318
bpf=321 execveat=322 userfaultfd=323 statx=332 rseq=334 pidfd_send_signal=424 io_uring_setup=425 pidfd_open=434
clone3=435 close_range=436 pidfd_getfd=438 faccessat2=439 landlock_restrict_self=446
""".split()
    )
}

_ALLOWED = """read write close fstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
pread64 readv writev pipe select sched_yield mremap madvise dup dup2 pause nanosleep getitimer alarm setitimer getpid
shutdown getsockname exit uname fsync getcwd umask gettimeofday getrlimit getrusage sysinfo times getuid getgid
geteuid getegid getppid getpgrp getgroups getresuid getresgid sigaltstack fstatfs arch_prctl gettid time futex
getdents64 set_tid_address restart_syscall timer_create timer_settime timer_gettime timer_delete clock_gettime
clock_getres clock_nanosleep exit_group epoll_wait epoll_ctl pselect6 ppoll set_robust_list eventfd2 epoll_create1
dup3 pipe2 getrandom rseq close_range epoll_pwait timerfd_create timerfd_settime""".split()
_PATHS = """stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat statfs chdir""".split()
_SCRATCH = "pwrite64 ftruncate mkdir mkdirat rmdir unlink unlinkat rename renameat".split()
_SERVER = """fork clone wait4 waitid kill pidfd_open recvmsg sendmsg setrlimit prlimit64 fchdir chroot capset
landlock_restrict_self""".split()
_VIOLATIONS = """fork vfork execve execveat socket connect bind listen accept accept4 ptrace process_vm_readv
process_vm_writev mount umount2 unshare setns bpf perf_event_open io_uring_setup kexec_load reboot finit_module
userfaultfd add_key pidfd_open pidfd_getfd pidfd_send_signal kill""".split()

# BPF_LD, BPF_JMP and BPF_ALU of linux/bpf_common.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_KILL, _ALLOW, _FAIL = 0x80000000, 0x7FFF0000, 0x00050000  # SECCOMP_RET_KILL_PROCESS, _ALLOW, _ERRNO
_EPERM, _ENOENT, _ECHILD, _EINVAL, _ENOTTY, _EROFS, _ENOSYS = 1, 2, 10, 22, 25, 30, 38  # errno(3)
_X86_64, _X32 = 0xC000003E, 0x40000000  # AUDIT_ARCH_X86_64; the bit of x32 system calls
_THREAD_FLAG = 0x00010000  # CLONE_THREAD: a thread, not a process
_THREAD_FLAGS = 0x003D0F00 | 0x00400000  # what glibc and musl set for a new thread, and nothing else
_WRITING = 0x3 | 0x40 | 0x200 | 0x400000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE
_ASYNC = 0o20000  # O_ASYNC: signals when data arrive
_ALL = 0xFFFFFFFF  # 32 bits of an argument
_SIGABRT = 6  # signal(7)
_UNIX, _STREAM, _STREAM_FLAGS = 1, 1, 0o2004000  # AF_UNIX, SOCK_STREAM, SOCK_CLOEXEC | SOCK_NONBLOCK
_SEND_FLAGS = 0x40 | 0x4000 | 0x8000  # MSG_DONTWAIT, MSG_NOSIGNAL, MSG_MORE
_RECEIVE_FLAGS = 0x2 | 0x40 | 0x100  # MSG_PEEK, MSG_DONTWAIT, MSG_WAITALL
_FCNTL = (0, 1, 2, 3, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)
"""Commands of fcntl that set neither an owner nor a signal nor a lease: dup, flags, locks, sizes; F_SETFL apart."""
_IOCTL = (0x5401, 0x541B, 0x5421, 0x5451)
"""TCGETS, FIONREAD, FIONBIO, FIOCLEX."""
_SOCKET_FACTS = (3, 4, 7, 8, 30, 38, 39)
"""What may be asked of a socket: SO_TYPE, ERROR, SNDBUF, RCVBUF, ACCEPTCONN, PROTOCOL, DOMAIN; not who its peer is."""

_Instruction = tuple[int, int, int, int]


def supported() -> bool:
    """True where these filters apply: Linux on x86-64 with a 64-bit interpreter."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and sys.maxsize > 2**32


def server_filter(*, writes: bool) -> bytes:
    """For a fork server and everything below it; ``writes`` allows writing (where the mounts allow it)."""
    allowed = _ALLOWED + _PATHS + _SERVER + (_SCRATCH if writes else [])
    program = _header()
    for name in allowed:
        program += _case(name, [_give(_ALLOW)])
    for name in _VIOLATIONS:
        if name not in _SERVER:
            program += _case(name, [_give(_KILL)])
    # a fork server may add filters (PR_SET_SECCOMP) and arrange a child's death (PR_SET_PDEATHSIG), nothing else
    program += _case("prctl", [*_one_of(0, (22, 1)), _give(_FAIL | _EPERM)])
    for name, flags in (("openat", 2), ("open", 1)):
        program += _case(name, [_give(_ALLOW)] if writes else _unless(flags, _WRITING, _FAIL | _EROFS))
    return _pack(program + _arguments() + [_give(_FAIL | _EPERM)])


def candidate_filter(*, paths: bool) -> bytes:
    """What each candidate adds: no process, no signal to anyone, no limit raised, and no path unless ``paths``.

    Without paths a file that is there and one that is not cannot be told apart: neither is found.
    """
    program: list[_Instruction] = [(_LOAD, 0, 0, 0)]
    for name in ("fork", "vfork", "kill", "pidfd_open", "pidfd_send_signal", "recvmsg", "sendmsg"):
        program += _case(name, [_give(_KILL)])
    # abort(), by which a broken process ends, sends itself this signal first: refused, it ends all the same, as a crash
    program += _case("tgkill", [_argument(2), (_EQUAL, 0, 1, _SIGABRT), _give(_FAIL | _EPERM), _give(_KILL)])
    for name in "prctl setrlimit fchdir chroot capset landlock_restrict_self".split():
        program += _case(name, [_give(_FAIL | _EPERM)])
    for name in ("wait4", "waitid"):
        program += _case(name, [_give(_FAIL | _ECHILD)])
    threads = [(_ANY_BIT, 0, 1, _ALL & ~_THREAD_FLAGS), _give(_KILL), (_ANY_BIT, 0, 1, _THREAD_FLAG), _give(_ALLOW)]
    program += _case("clone", [_argument(0), *threads, _give(_KILL)])
    reading = [*_is_zero(0, _FAIL | _EPERM), *_is_zero(2, _FAIL | _EPERM)]
    program += _case("prlimit64", [*reading, _give(_ALLOW)])  # its own limits only
    for name in ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create"):
        program += _case(name, _unless(0, 1 << 31, _FAIL | _EINVAL))  # a clock of a process
    if not paths:
        for name in _PATHS:
            program += _case(name, [_give(_FAIL | _ENOENT)])
        for name, flags in (("openat", 2), ("open", 1)):
            read_only = [_argument(flags), (_ANY_BIT, 0, 1, _WRITING), _give(_FAIL | _EROFS), _give(_FAIL | _ENOENT)]
            program += _case(name, read_only)
    return _pack([*program, _give(_ALLOW)])


def _header() -> list[_Instruction]:
    """Kill calls of another architecture, then load the number of the call."""
    return [
        *((_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _X86_64), _give(_KILL)),
        *((_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _X32), _give(_KILL)),
    ]


def _arguments() -> list[_Instruction]:
    """Calls that depend on their arguments: what sets an owner, a signal or an address is refused."""
    program = _case("clone3", [_give(_FAIL | _ENOSYS)])  # glibc then falls back to clone, which can be checked
    plain = [_argument(2), (_ANY_BIT, 0, 1, _ASYNC), _give(_FAIL | _EPERM), _give(_ALLOW)]
    flags = [_argument(1), (_EQUAL, 0, len(plain), 4), *plain]
    program += _case("fcntl", [*flags, *_one_of(1, _FCNTL), _give(_FAIL | _EPERM)])
    program += _case("ioctl", [*_one_of(1, _IOCTL), _give(_FAIL | _ENOTTY)])
    local = [_argument(0), (_EQUAL, 1, 0, _UNIX), _give(_KILL)]
    stream = [_argument(1), (_AND, 0, 0, _ALL & ~_STREAM_FLAGS), (_EQUAL, 1, 0, _STREAM), _give(_KILL), _give(_ALLOW)]
    program += _case("socketpair", [*local, *stream])  # asyncio wants one
    program += _case("sendto", [*_is_zero(4, _KILL), *_unless(3, _ALL & ~_SEND_FLAGS, _FAIL | _EPERM)])
    program += _case("recvfrom", _unless(3, _ALL & ~_RECEIVE_FLAGS, _FAIL | _EPERM))
    facts = [_argument(1), (_EQUAL, 1, 0, 1), _give(_FAIL | _EPERM), *_one_of(2, _SOCKET_FACTS), _give(_FAIL | _EPERM)]
    program += _case("getsockopt", facts)
    program += _case("sched_getaffinity", [*_is_zero(0, _FAIL | _EPERM), _give(_ALLOW)])
    return program


def _case(name: str, body: list[_Instruction]) -> list[_Instruction]:
    """``body`` for one call; it must end by returning."""
    return [(_EQUAL, 0, len(body), _NUMBERS[name]), *body]


def _one_of(index: int, values: Sequence[int]) -> list[_Instruction]:
    """Allow if the argument is one of these, else go on; a call reads only the low half of these arguments."""
    compare = [step for value in values for step in ((_EQUAL, 0, 1, value), _give(_ALLOW))]
    return [_argument(index), *compare]


def _unless(index: int, bits: int, answer: int) -> list[_Instruction]:
    """``answer`` if the argument has any of these bits, else allow."""
    return [_argument(index), (_ANY_BIT, 0, 1, bits), _give(answer), _give(_ALLOW)]


def _is_zero(index: int, answer: int) -> list[_Instruction]:
    """``answer`` if the argument, all of it, is not zero; else go on."""
    return [
        *(_argument(index), (_EQUAL, 1, 0, 0), _give(answer)),
        *(_argument(index, high=True), (_EQUAL, 1, 0, 0), _give(answer)),
    ]


def _argument(index: int, *, high: bool = False) -> _Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _give(value: int) -> _Instruction:
    return (_RETURN, 0, 0, value)


def _pack(program: list[_Instruction]) -> bytes:
    return b"".join(struct.pack("HBBI", *step) for step in program)
