"""Which system calls may a sample make? Two seccomp filters, written as classic BPF by hand.

The first is installed once in the zygote: an allow-list of what a pure Python program needs, plus what the zygote
itself needs to fork candidates. The second, short, is added in every candidate and takes those extras away again. A
call that no honest solution makes kills the sample (verdict ``violation``); any other unknown call fails with EPERM.

x86-64 only; elsewhere :func:`supported` is False and the sandbox steps down.
"""

import platform
import struct
import sys

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
wait4=61 kill=62 uname=63 fcntl=72 fsync=74 ftruncate=77 getcwd=79 chdir=80 rename=82 mkdir=83 rmdir=84 unlink=87
readlink=89 umask=95 gettimeofday=96 getrlimit=97 getrusage=98 sysinfo=99 times=100 ptrace=101 getuid=102 getgid=104
geteuid=107 getegid=108 getppid=110 getpgrp=111 getgroups=115 getresuid=118 getresgid=120 sigaltstack=131 statfs=137
fstatfs=138 getpriority=140 sched_getparam=143 sched_getscheduler=145 prctl=157 arch_prctl=158 setrlimit=160 mount=165
umount2=166 reboot=169 gettid=186 time=201 futex=202 sched_getaffinity=204 getdents64=217 set_tid_address=218
restart_syscall=219 timer_create=222 timer_settime=223 timer_gettime=224 timer_delete=226 clock_gettime=228
clock_getres=229 clock_nanosleep=230 exit_group=231 epoll_wait=232 epoll_ctl=233 tgkill=234 kexec_load=246 waitid=247
add_key=248 openat=257 mkdirat=258 newfstatat=262 unlinkat=263 renameat=264 readlinkat=267 faccessat=269 pselect6=270
ppoll=271 unshare=272 set_robust_list=273 epoll_pwait=281 timerfd_create=283 timerfd_settime=286 eventfd2=290
epoll_create1=291 dup3=292 pipe2=293 perf_event_open=298 prlimit64=302 setns=308 process_vm_readv=310
process_vm_writev=311 finit_module=313 getrandom=318 bpf=321 execveat=322 userfaultfd=323 statx=332 rseq=334
pidfd_send_signal=424 io_uring_setup=425 pidfd_open=434 clone3=435 close_range=436 pidfd_getfd=438 faccessat2=439
""".split()
    )
}

_ALLOWED = """read write close stat fstat lstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask
rt_sigreturn pread64 readv writev access pipe select sched_yield mremap madvise dup dup2 pause nanosleep getitimer
alarm setitimer getpid sendto recvfrom shutdown getsockname getsockopt setsockopt exit uname fcntl fsync getcwd chdir
readlink umask gettimeofday getrlimit getrusage sysinfo times getuid getgid geteuid getegid getppid getpgrp getgroups
getresuid getresgid sigaltstack statfs fstatfs getpriority sched_getparam sched_getscheduler arch_prctl gettid time
futex sched_getaffinity getdents64 set_tid_address restart_syscall timer_create timer_settime timer_gettime
timer_delete clock_gettime clock_getres clock_nanosleep exit_group epoll_wait epoll_ctl newfstatat readlinkat faccessat
pselect6 ppoll set_robust_list eventfd2 epoll_create1 dup3 pipe2 getrandom statx rseq close_range faccessat2
epoll_pwait timerfd_create timerfd_settime""".split()
_SCRATCH = "pwrite64 ftruncate mkdir mkdirat rmdir unlink unlinkat rename renameat".split()
_ZYGOTE = "fork clone wait4 waitid kill pidfd_open recvmsg sendmsg setrlimit prlimit64".split()
_VIOLATIONS = """fork vfork execve execveat socket connect bind listen accept ptrace process_vm_readv process_vm_writev
mount umount2 unshare setns bpf perf_event_open io_uring_setup kexec_load reboot finit_module userfaultfd add_key
pidfd_open pidfd_getfd pidfd_send_signal kill""".split()

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ALLOW, _FAIL = 0x80000000, 0x7FFF0000, 0x00050000
_EPERM, _ENOTTY, _EROFS, _ENOSYS = 1, 25, 30, 38
_X86_64, _X32 = 0xC000003E, 0x40000000
_THREAD_FLAG = 0x00010000  # CLONE_THREAD: a thread, not a process
_WRITING = 0x3 | 0x40 | 0x200 | 0x400000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE

_Instruction = tuple[int, int, int, int]


def supported() -> bool:
    """True where these filters apply: Linux on x86-64 with a 64-bit interpreter."""
    return sys.platform == "linux" and platform.machine() == "x86_64" and sys.maxsize > 2**32


def compiler_filter() -> bytes:
    """For the process that only compiles: the allow-list without writing, forking or signalling."""
    return _pack(_header() + _allow(_ALLOWED) + _arguments(writing=False) + [_give(_FAIL | _EPERM)])


def zygote_filter(*, scratch: bool) -> bytes:
    """For the zygote and everything below it; ``scratch`` allows writing (where the mounts allow it)."""
    allowed = _ALLOWED + _ZYGOTE + (_SCRATCH if scratch else [])
    program = _header() + _allow(allowed)
    for name in _VIOLATIONS:
        if name not in _ZYGOTE:
            program += [(_EQUAL, 0, 1, _NUMBERS[name]), _give(_KILL)]
    # the zygote may add filters (PR_SET_SECCOMP) and arrange a child's death (PR_SET_PDEATHSIG), nothing else
    program += _case(
        "prctl", [_argument(0), (_EQUAL, 1, 0, 22), (_EQUAL, 0, 1, 1), _give(_ALLOW), _give(_FAIL | _EPERM)]
    )
    return _pack(program + _arguments(writing=scratch) + [_give(_FAIL | _EPERM)])


def candidate_filter() -> bytes:
    """What each candidate adds: no process, no signal to anyone, no limit raised; threads stay possible."""
    program: list[_Instruction] = [(_LOAD, 0, 0, 0)]
    for name in ("fork", "vfork", "kill", "pidfd_open", "pidfd_send_signal", "tgkill", "recvmsg", "sendmsg"):
        program += [(_EQUAL, 0, 1, _NUMBERS[name]), _give(_KILL)]
    program += [(_EQUAL, 0, 1, _NUMBERS["prctl"]), _give(_FAIL | _EPERM)]
    program += [(_EQUAL, 0, 1, _NUMBERS["setrlimit"]), _give(_FAIL | _EPERM)]
    program += _case("clone", [_argument(0), (_ANY_BIT, 0, 1, _THREAD_FLAG), _give(_ALLOW), _give(_KILL)])
    reading = [_argument(2), (_EQUAL, 0, 3, 0), _argument(2, high=True), (_EQUAL, 0, 1, 0)]
    program += _case("prlimit64", [*reading, _give(_ALLOW), _give(_FAIL | _EPERM)])
    return _pack([*program, _give(_ALLOW)])


def _header() -> list[_Instruction]:
    """Kill calls of another architecture, then load the number of the call."""
    return [
        *((_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _X86_64), _give(_KILL)),
        *((_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _X32), _give(_KILL)),
    ]


def _allow(names: list[str]) -> list[_Instruction]:
    return [step for name in names for step in ((_EQUAL, 0, 1, _NUMBERS[name]), _give(_ALLOW))]


def _arguments(*, writing: bool) -> list[_Instruction]:
    """Calls that depend on their arguments."""
    program = _case("clone3", [_give(_FAIL | _ENOSYS)])  # glibc then falls back to clone, which can be checked
    local_only = [_argument(0), (_EQUAL, 0, 1, 1), _give(_ALLOW), _give(_KILL)]
    program += _case("socketpair", local_only)  # asyncio wants one
    terminal = [(_EQUAL, 3, 0, 0x5401), (_EQUAL, 2, 0, 0x541B), (_EQUAL, 1, 0, 0x5421), (_EQUAL, 0, 1, 0x5451)]
    program += _case("ioctl", [_argument(1), *terminal, _give(_ALLOW), _give(_FAIL | _ENOTTY)])
    for name, flags in (("openat", 2), ("open", 1)):
        read_only = [_argument(flags), (_ANY_BIT, 0, 1, _WRITING), _give(_FAIL | _EROFS), _give(_ALLOW)]
        program += _case(name, [_give(_ALLOW)] if writing else read_only)
    return program


def _case(name: str, body: list[_Instruction]) -> list[_Instruction]:
    """``body`` for one call; it must end by returning."""
    return [(_EQUAL, 0, len(body), _NUMBERS[name]), *body]


def _argument(index: int, *, high: bool = False) -> _Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _give(value: int) -> _Instruction:
    return (_RETURN, 0, 0, value)


def _pack(program: list[_Instruction]) -> bytes:
    return b"".join(struct.pack("HBBI", *step) for step in program)
