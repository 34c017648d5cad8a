"""Completions that try to pass without solving, or to do harm; and honest ones that look odd.

Every attack answers rightly only if its harm worked, so a ``pass`` is a breach. ``{canary}`` is a folder that the test
makes on the host, with a secret to read, a victim to delete and a listening socket.
"""

from dataclasses import dataclass

from scalefed.data.problem import Problem

ADD = Problem(
    "t/add",
    'def add(x: int, y: int):\n    """Add two numbers."""\n',
    "    return x + y\n",
    "def check(candidate):\n    for x, y in [(0, 1), (1, 0), (2, 3), (5, 7), (7, 5), (-4, 11)]:\n"
    "        assert candidate(x, y) == x + y\n",
    "add",
)

NOT_A_PASS = frozenset({"fail", "exit", "violation", "crash", "syntax_error", "timeout", "memory"})


@dataclass(frozen=True)
class Case:
    """A completion of ADD and the verdicts that are right for it."""

    name: str
    completion: str
    allowed: frozenset[str]


def attack(name: str, body: str, allowed: str = "") -> Case:
    """A completion of ADD with this body; ``allowed`` verdicts, by default any that is not a pass."""
    lines = [f"    {line}\n" if line else "\n" for line in body.strip("\n").split("\n")]
    return Case(name, "".join(lines), frozenset(allowed.split()) or NOT_A_PASS)


_IF_WORKS = "\nreturn x + y"

TRICKS = [
    attack("int_subclass_equal", "class I(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\nreturn I(99)", "fail"),
    attack("str_subclass_equal", "class S(str):\n    __eq__ = lambda s, o: True\n    __hash__ = str.__hash__\nreturn S('x')", "fail"),
    attack("list_subclass_equal", "class L(list):\n    __eq__ = lambda s, o: True\nreturn L([1])", "fail"),
    attack("lying_class", "class C:\n    __class__ = property(lambda s: int)\n    __eq__ = lambda s, o: True\nreturn C()", "fail"),
    attack("mock_anything", "from unittest.mock import ANY\nreturn ANY", "fail"),
    attack("reflected_comparison", "class R(float):\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\nreturn R(1)", "fail"),
    attack("raise_keyboard_interrupt", "raise KeyboardInterrupt", "fail"),
    attack("raise_generator_exit", "raise GeneratorExit", "fail"),
    attack("raise_stop_iteration", "raise StopIteration", "fail"),
    attack("evil_str_of_error", "class E(Exception):\n    def __str__(self): raise E()\nraise E()", "fail"),
    attack("error_named_passed", "class passed(BaseException): pass\nraise passed('passed')", "fail"),
    attack("close_the_socket", "import os\nos.closerange(3, 64)" + _IF_WORKS),
    attack(
        "forge_a_reply",
        "import os, struct, marshal\nfor fd in range(3, 64):\n    for v in ('passed', True, {'tok': 1}):\n"
        "        b = b'=' + marshal.dumps(v, 2)\n        try: os.write(fd, struct.pack('I', len(b)) + b)\n"
        "        except OSError: pass\nreturn None",
    ),
    attack(
        "reply_with_code_object",
        "import os, struct, marshal\nb = b'=' + marshal.dumps(compile('1', '', 'eval'))\n"
        "for fd in range(3, 64):\n    try: os.write(fd, struct.pack('I', len(b)) + b)\n    except OSError: pass\nreturn None",
    ),
    attack(
        "reply_of_four_gigabytes",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'\\xff' * 8)\n    except OSError: pass\nreturn None",
    ),
    attack(
        "reply_nested_for_ever",
        "import os, struct\nb = b'=' + b'[\\1\\0\\0\\0' * 50000\nfor fd in range(3, 64):\n"
        "    try: os.write(fd, struct.pack('I', len(b)) + b)\n    except OSError: pass\nreturn None",
    ),
    attack(
        "search_memory_for_tests",
        "import gc\nfor o in gc.get_objects():\n    if isinstance(o, dict):\n        for k, v in list(o.items()):\n"
        "            if isinstance(v, str) and 'assert candidate' in v and 'assert candidate' not in 'x': return x + y\n"
        "return None",
        "fail",
    ),
    attack("find_the_judge", "import sys\nif any('scalefed' in name for name in sys.modules): return x + y\nreturn None", "fail"),
    attack("import_the_judge", "import scalefed\nreturn x + y", "missing_module"),
    attack("import_site_packages", "import numpy\nreturn int(numpy.add(x, y))", "missing_module"),
    attack("caller_frames", "import sys\nf = sys._getframe()\nwhile f.f_back: f = f.f_back\nfor v in list(f.f_globals):\n    if v == 'check': return x + y\nreturn None", "fail"),
    attack("patch_int_add", "import ctypes\nreturn None", "fail violation crash"),
    attack("exit_at_import", "return 0\nimport os\nos._exit(0)", "fail exit"),
    attack("exit_status_of_memory", "import os\nos._exit(101)", "memory exit"),
    attack("return_the_function", "return add", "fail"),
    attack("return_ellipsis_description", "return (Ellipsis, 'F', 1, 1)", "fail"),
    attack("not_even_itself", "return float('nan')", "fail"),
]  # fmt: skip

TIME = [
    attack("ignore_cpu_signal", "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass", "timeout violation"),
    attack("slow_sum_of_calls", "import time\ntime.sleep(0.35)\nreturn x + y", "timeout"),
    attack("hang_in_str_of_error", "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E()", "timeout"),
    attack("one_long_c_call", "sum(range(10 ** 12))\nreturn x + y", "timeout"),
    attack("power_tower", "return 9 ** 9 ** 9", "timeout memory"),
    attack("wait_on_a_lock", "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()\nreturn x + y", "timeout"),
    attack("stop_itself", "import signal\nsignal.raise_signal(signal.SIGSTOP)\nreturn x + y", "timeout violation"),
    attack("endless_iterator_result", "import itertools\nreturn itertools.count()", "fail timeout"),
    attack("trickle_a_reply", "import os, time\nfor fd in range(3, 64):\n    try: os.write(fd, b'\\x40')\n    except OSError: pass\nwhile True: time.sleep(0.1)", "timeout exit"),
    attack("read_the_socket_itself", "import os\nfor fd in range(3, 64):\n    try: os.read(fd, 100)\n    except OSError: pass\nreturn x + y", "timeout fail"),
]  # fmt: skip

MEMORY = [
    attack("map_memory", "import mmap\nkept = [mmap.mmap(-1, 1 << 28) for _ in range(40)]\nfor m in kept: m.write(b'x' * (1 << 28))" + _IF_WORKS),
    attack("double_a_string", "s = 'x'\nwhile len(s) < 1 << 40: s += s" + _IF_WORKS),
    attack("many_threads", "import threading, time\nfor _ in range(2000): threading.Thread(target=time.sleep, args=(5,), daemon=True).start()" + _IF_WORKS),
    attack("many_descriptors", "import os\nkept = [os.pipe() for _ in range(5000)]" + _IF_WORKS),
    attack("huge_result", "return 'x' * 200_000_000", "fail memory timeout"),
    attack("huge_number", "return 1 << 10 ** 9", "fail memory timeout"),
    attack("deep_result", "a = []\nfor _ in range(100_000): a = [a]\nreturn a", "fail crash memory timeout"),
    attack("endless_result", "a = []\na.append(a)\nreturn a", "fail"),
    attack("colliding_keys", "return {i * ((1 << 61) - 1): 0 for i in range(20_000)}", "fail timeout"),
    attack("raise_limits", "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))" + _IF_WORKS),
    attack("null_pointer", "import ctypes\nctypes.string_at(0)" + _IF_WORKS, "crash fail violation"),
    attack("abort", "import os\nos.abort()", "crash"),
]  # fmt: skip

FILES = [
    attack("read_secret", "return x + y if 'open sesame' in open('{canary}/secret').read() else None"),
    attack("delete_victim", "import os\nos.unlink('{canary}/victim')" + _IF_WORKS),
    attack("truncate_victim", "import os\nos.truncate('{canary}/victim', 0)" + _IF_WORKS),
    attack("rename_victim", "import os\nos.rename('{canary}/victim', '{canary}/gone')" + _IF_WORKS),
    attack("change_mode", "import os\nos.chmod('{canary}/victim', 0o777)" + _IF_WORKS),
    attack("plant_a_link", "import os\nos.symlink('/etc/passwd', '{canary}/link')" + _IF_WORKS),
    attack("plant_a_file", "open('{canary}/planted', 'w').write('x')" + _IF_WORKS),
    attack("climb_out", "import os\nfor _ in range(40): os.chdir('..')\nopen('{canary}/secret'[1:])" + _IF_WORKS),
    attack("climb_through_proc", "open('/proc/1/root{canary}/secret')" + _IF_WORKS),
    attack("climb_through_own_descriptors", "import os\nfor fd in range(64):\n    try: return x + y if os.listdir(fd) else None\n    except OSError: pass"),
    attack("new_root", "import os\nos.chroot('{canary}')" + _IF_WORKS),
    attack("patch_the_library", "import os\nopen(os.__file__, 'a').write('#')" + _IF_WORKS),
    attack("read_users", "return x + y if open('/etc/passwd').read() else None"),
    attack("list_homes", "import os\nreturn x + y if os.listdir('/root') or os.listdir('/home') else None"),
    attack("own_memory_file", "return x + y if open('/proc/self/mem', 'rb') else None"),
    attack("environment", "import os\nreturn x + y if os.environ.get('CANARY') else None", "fail"),
    attack("environment_of_init", "return x + y if b'CANARY' in open('/proc/1/environ', 'rb').read() else None"),
    attack("shared_memory", "open('/dev/shm/planted', 'w').write('x')" + _IF_WORKS),
    attack("make_a_device", "import os\nos.mknod('/tmp/d', 0o60666, os.makedev(8, 0))" + _IF_WORKS),
    attack("write_home", "import os\nos.mkdir('/root/planted')" + _IF_WORKS),
]  # fmt: skip

_LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def _syscall(name: str, number: int, *arguments: str) -> Case:
    call = ", ".join([str(number), *arguments])
    return attack(name, f"{_LIBC}if libc.syscall({call}) < 0: return None" + _IF_WORKS)


PROCESSES = [
    attack("fork", "import os\nif os.fork() == 0:\n    while True: pass" + _IF_WORKS, "violation fail"),
    attack("fork_by_libc", _LIBC + "if libc.fork() == 0:\n    while True: pass" + _IF_WORKS, "violation fail"),
    attack("exec", "import os\nos.execv('/bin/true', ['true'])", "violation fail"),
    attack("shell", "import os\nos.system('touch {canary}/planted')" + _IF_WORKS, "violation fail"),
    attack("subprocess", "import subprocess\nsubprocess.run(['touch', '{canary}/planted'])" + _IF_WORKS, "violation fail"),
    attack("multiprocessing", "import multiprocessing\nmultiprocessing.Process(target=print).start()" + _IF_WORKS, "violation fail"),
    attack("kill_all", "import os\nos.kill(-1, 9)" + _IF_WORKS, "violation"),
    attack("kill_parent", "import os\nos.kill(os.getppid(), 9)" + _IF_WORKS, "violation"),
    attack("kill_init", "import os\nos.kill(1, 9)" + _IF_WORKS, "violation"),
    attack("kill_group", "import os\nos.killpg(0, 9)" + _IF_WORKS, "violation"),
    attack("signal_by_thread", f"{_LIBC}import os\nlibc.syscall(234, os.getppid(), os.getppid(), 9)" + _IF_WORKS, "violation"),
    attack("signal_by_queue", f"{_LIBC}import os\nif libc.syscall(129, os.getppid(), 9, 0) < 0: return None" + _IF_WORKS),
    attack("become_root", "import os\nos.setuid(0)" + _IF_WORKS),
    attack("lower_priority", "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)" + _IF_WORKS),
    attack("pin_parent", "import os\nos.sched_setaffinity(os.getppid(), [0])" + _IF_WORKS),
    attack("set_clock", "import time\ntime.clock_settime(time.CLOCK_REALTIME, 0)" + _IF_WORKS),
    _syscall("trace_parent", 101, "16", "__import__('os').getppid()", "0", "0"),
    _syscall("new_namespace", 272, "0x10000000"),
    _syscall("mount_something", 165, "b'none'", "b'/tmp'", "b'tmpfs'", "0", "0"),
    _syscall("ring", 425, "8", "ctypes.create_string_buffer(120)"),
    _syscall("load_bpf", 321, "0", "0", "0"),
    _syscall("performance_counters", 298, "0", "0", "-1", "-1", "0"),
    _syscall("kernel_keys", 250, "0", "-3", "0"),
    _syscall("memory_file", 319, "b'x'", "0"),
    _syscall("open_by_handle", 304, "-100", "0", "0"),
    _syscall("x32_call", 0x40000000 + 39),
    _syscall("tracing_back_on", 157, "4", "1", "0", "0", "0"),
    attack(
        "thirty_two_bit_call",  # mov eax, 20 (getpid); int 0x80; ret
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(m))\nctypes.CFUNCTYPE(ctypes.c_int)(at)()" + _IF_WORKS,
    ),
    attack("handle_violation", f"import signal\nsignal.signal(signal.SIGSYS, lambda *a: None)\n{_LIBC}libc.fork()" + _IF_WORKS, "violation"),
    attack("orphan_by_thread", "import threading, os\nthreading.Thread(target=os.fork).start()" + _IF_WORKS, "violation fail"),
]  # fmt: skip

NETWORK = [
    attack("tcp", "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1).send(b'hi')" + _IF_WORKS, "violation fail"),
    attack("udp", "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'hi', ('127.0.0.1', {port}))" + _IF_WORKS, "violation fail"),
    attack("unix", "import socket\nsocket.socket(socket.AF_UNIX).connect('{canary}/socket')" + _IF_WORKS, "violation fail"),
    attack("netlink", "import socket\nsocket.socket(16, 3, 0)" + _IF_WORKS, "violation fail"),
    attack("packet", "import socket\nsocket.socket(17, 3, 0)" + _IF_WORKS, "violation fail"),
    attack("listen", "import socket\nsocket.create_server(('127.0.0.1', 0))" + _IF_WORKS, "violation fail"),
    attack("inet_pair", "import socket\nsocket.socketpair(socket.AF_INET)" + _IF_WORKS, "violation fail"),
    attack(
        "pass_descriptors_to_the_judge",
        "import socket, os\nfor fd in range(3, 64):\n    try: s = socket.socket(fileno=os.dup(fd))\n    except OSError: continue\n"
        "    socket.send_fds(s, [b'x'], [0, 1, 2])\n    return x + y\nreturn None",
    ),
]  # fmt: skip

ATTACKS = [*TRICKS, *TIME, *MEMORY, *FILES, *PROCESSES, *NETWORK]

_PASS = "pass"

HONEST = [
    attack("threads", "import threading\nout = []\nt = threading.Thread(target=lambda: out.append(x + y))\nt.start()\nt.join()\nreturn out[0]", _PASS),
    attack("thread_pool", "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as pool:\n    return sum(pool.map(int, [x, y]))", _PASS),
    attack("asyncio", "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return x + y\nreturn asyncio.run(f())", _PASS),
    attack("deep_recursion", "import sys\nsys.setrecursionlimit(20000)\ndef f(n): return 0 if n == 0 else f(n - 1)\nf(9000)\nreturn x + y", _PASS),
    attack("dataclass", "from dataclasses import dataclass\n@dataclass(frozen=True, order=True)\nclass P:\n    a: int\n    b: int = 0\nreturn P(x, y).a + P(x, y).b", _PASS),
    attack("printing", "import sys\nprint(x, y)\nprint('warning', file=sys.stderr)\nsys.stdout.flush()\nreturn x + y", _PASS),
    attack("large_output", "for _ in range(300): print('x' * 10000)\nreturn x + y", _PASS),
    attack("bool_for_int", "return x + y + False", _PASS),
    attack("float_for_int", "return float(x + y)", _PASS),
    attack("fraction", "from fractions import Fraction\nreturn Fraction(x) + y", _PASS),
    attack("decimal", "from decimal import Decimal\nreturn Decimal(x) + y", _PASS),
    attack("int_enum", "from enum import IntEnum\nreturn IntEnum('E', {'A': x + y}).A", _PASS),
    Case("helper_after", "    return _helper(x, y)\n\ndef _helper(a, b):\n    return a + b\n", frozenset({_PASS})),
    Case("main_block", "    return x + y\n\nif __name__ == '__main__':\n    print(add(int(input()), 2))\n    raise SystemExit(1)\n", frozenset({_PASS})),
    Case("redefined", "    pass\n\ndef add(x, y):\n    return x + y\n", frozenset({_PASS})),
    Case("state_between_calls", "    global n\n    n += 1\n    assert n <= 6\n    return x + y\nn = 0\n", frozenset({_PASS})),
    Case("doctest_after", "    return x + y\n\nimport doctest\ndoctest.testmod()\n", frozenset({_PASS})),
    attack("generator_inside", "def g():\n    yield x\n    yield y\nreturn sum(g())", _PASS),
    attack("contextmanager", "from contextlib import contextmanager\n@contextmanager\ndef c():\n    yield x\nwith c() as a: return a + y", _PASS),
    attack("caught_errors", "try: raise ValueError(x)\nexcept ValueError as e: return e.args[0] + y\nfinally: pass", _PASS),
    attack("seeded_random", "import random\nrandom.seed(1)\nreturn x + y + 0 * random.randint(1, 9)", _PASS),
    attack("clock", "import time, datetime\ntime.time(); datetime.datetime.now()\ntime.sleep(0.001)\nreturn x + y", _PASS),
    attack("big_integers", "return (x + y + 10 ** 3000) - 10 ** 3000", _PASS),
    attack("classes", "class A:\n    def __init__(s, v): s.v = v\n    def __add__(s, o): return s.v + o.v\nreturn A(x) + A(y)", _PASS),
    attack("match_statement", "match (x, y):\n    case (a, b): return a + b", _PASS),
    attack("infinite_recursion_is_a_failure", "return add(x, y)", "fail"),
    attack("input_is_a_failure", "return int(input())", "fail"),
    attack("wrong", "return x - y", "fail"),
    attack("nothing", "pass", "fail"),
    Case("empty", "", frozenset({"fail"})),
    Case("nul_byte", "    return x + y\n    #\x00\n", frozenset({"syntax_error"})),
    Case("lone_surrogate", "    return x + y  # \ud800\n", frozenset({"syntax_error"})),
    Case("not_python", "    return x + y)\n", frozenset({"syntax_error"})),
    Case("bad_indent", "  return x + y\n    return 0\n", frozenset({"syntax_error"})),
    Case("late_future", "    return x + y\nfrom __future__ import annotations\n", frozenset({"syntax_error"})),
]  # fmt: skip
