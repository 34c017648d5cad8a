"""Attacks of further kinds: on the decoder of answers, in a process that samples share, by odd source, by the kernel.

As in ``hostile.py`` an attack answers rightly only if its harm worked. ``MORE`` holds them by kind.
"""

from hostile import Case, attack

_LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_IF_WORKS = "\nreturn x + y"
_ODD = "fail crash violation exit timeout memory"


def _described(name: str, *parts: str) -> Case:
    """A description of a value, on the judge's socket, that no candidate makes of an object."""
    data = " + ".join(
        [f"b'=(' + struct.pack('i', {len(parts) + 1}) + b'.'", *(f"marshal.dumps({p}, 2)" for p in parts)]
    )
    lines = [f"import os, struct, marshal\nb = {data}", "for fd in range(3, 32):"]
    lines += ["    try: os.write(fd, struct.pack('I', len(b)) + b)", "    except OSError: pass", "return None"]
    return attack(name, "\n".join(lines), "fail")


def _call(name: str, number: int, *arguments: str) -> Case:
    """A system call that must not succeed."""
    call = ", ".join([str(number), *arguments])
    return attack(name, f"{_LIBC}if libc.syscall({call}) < 0: return None" + _IF_WORKS)


def _raises(name: str, error: str) -> Case:
    return attack(name, f"raise {error}", "fail syntax_error memory exit")


# What the judge builds from an answer: nothing that is too large, raises outside of it, or equals what it is not.
VALUES = [
    _described("decimal_of_many_digits", "'D'", "'9' * 2000"),
    _described("decimal_that_signals", "'D'", "'sNaN'"),
    _described("decimal_of_words", "'D'", "'1 000'"),
    _described("decimal_of_a_great_power", "'D'", "'1e999999999999999999'"),
    _described("decimal_of_a_small_power", "'D'", "'1e-999999999'"),
    _described("fraction_over_nothing", "'F'", "1", "0"),
    _described("fraction_of_a_float", "'F'", "1.5", "2"),
    _described("fraction_of_millions", "'F'", "7 ** 200_000", "3 ** 200_000"),
    _described("range_without_a_step", "'R'", "0", "1", "0"),
    _described("range_beyond_all", "'R'", "0", "10 ** 40", "1"),
    _described("range_of_words", "'R'", "'a'", "'b'"),
    _described("range_of_too_much", "'R'", "0", "1", "2", "3"),
    _described("array_of_objects", "'N'", "'|O8'", "[1]", "bytes(8)"),
    _described("array_of_records", "'N'", "'i4,i4'", "[1]", "bytes(8)"),
    _described("array_of_odd_numbers", "'N'", "'<f99'", "[1]", "bytes(99)"),
    _described("array_below_nothing", "'N'", "'<f8'", "[-1]", "bytes(8)"),
    _described("array_of_a_great_shape", "'N'", "'<f8'", "[0, 10 ** 30]", "b''"),
    _described("array_of_many_dimensions", "'N'", "'<f8'", "[1] * 5000", "bytes(8)"),
    _described("keys_that_cannot_be", "'K'", "[[1], {}]"),
    _described("items_that_are_none", "'T'", "[1, 2, 3]"),
    _described("bytes_of_text", "'B'", "'text'"),
    _described("unknown_letter", "'Z'", "1"),
    _described("letter_of_another_type", "7", "1"),
    _described("letter_of_a_great_number", "10 ** 6000", "1"),
    attack("number_of_gigabits", "return 1 << 200_000_000", "fail memory timeout"),
    attack("number_of_megabits", "return 1 << 20_000_000", "fail memory timeout"),
    attack("number_without_end_of_digits", "return int('9' * 4000) ** 9", "fail"),
    attack("view_of_memory", "return memoryview(bytes(8))", "fail"),
    attack("array_of_the_library", "import array\nreturn array.array('q', [x + y])", "fail"),
    attack("number_of_c", "import ctypes\nreturn ctypes.c_long(x + y)", "fail"),
    attack("text_of_the_sum", "return str(x + y)", "fail"),
    attack("list_of_the_sum", "return [x + y]", "fail"),
    attack("set_of_what_is_no_number", "return {float('nan') for _ in range(1000)}", "fail"),
    attack("flood_of_answers", "return 'x' * (1 << 24)", "fail memory timeout"),
    attack("class_as_an_answer", "return int", "fail"),
    attack("keys_that_collide_as_fractions", "from fractions import Fraction\nP = (1 << 61) - 1\nreturn {Fraction(i * P + 1): 0 for i in range(1500)}", "fail timeout"),
    attack("name_of_an_error_of_megabytes", "raise type('x' * 5_000_000, (Exception,), {})()", "fail"),
    attack("forged_name_of_an_error", "import os, struct, marshal\nb = b'!' + marshal.dumps(('x' * 9_000_000 + str(x), 'y'), 2)\nfor fd in range(3, 32):\n    try: os.write(fd, struct.pack('I', len(b)) + b)\n    except OSError: pass\nreturn None", "fail timeout"),
    _raises("group_of_errors", "ExceptionGroup('g', [ValueError(1)])"),
    _raises("group_of_all_errors", "BaseExceptionGroup('g', [SystemExit(0)])"),
    _raises("error_of_letters", "UnicodeDecodeError('utf-8', b'', 0, 1, 'x')"),
    _raises("error_of_syntax", "SyntaxError('passed', ('f', 1, 1, 'x', 1, 1))"),
    _raises("error_of_recursion", "RecursionError()"),
    _raises("error_of_memory", "MemoryError()"),
    _raises("end_of_an_iteration", "StopAsyncIteration(1)"),
    _raises("half_a_letter_as_reason", "ValueError('\\ud800\\x1b[31m\\0\\r\\n')"),
    _raises("reason_without_text", "type('E', (Exception,), {'__str__': lambda s: 5})()"),
]  # fmt: skip

# Plain code, which shares its process with other samples: it must leave nothing in it, nor end it for them.
TAME = [
    attack("fills_the_cache_of_patterns", "import re\nfor i in range(700): re.compile('a' * i)\nreturn None"),
    attack("keeps_a_great_list", "global kept\nkept = [0] * 30_000_000\nreturn None"),
    attack("keeps_by_a_cache", "from functools import lru_cache\nf = lru_cache(None)(lambda n: [n] * 1000)\nfor i in range(20_000): f(i)\nreturn None"),
    attack("keeps_a_generator", "global kept\ndef g():\n    while True: yield x\nkept = g()\nreturn next(kept) and None"),
    attack("ring_of_lists", "a = []\nfor _ in range(10): a.append([a, a])\nreturn a == a[0] or None", _ODD),
    attack("compares_what_is_nested", "a, b = [], []\nfor _ in range(100_000): a, b = [a], [b]\nreturn None if a == b else None", _ODD),
    attack("prints_what_is_nested", "a = []\nfor _ in range(100_000): a = [a]\nreturn repr(a)", _ODD),
    attack("copies_what_is_nested", "from copy import deepcopy\na = []\nfor _ in range(100_000): a = [a]\nreturn deepcopy(a)", _ODD),
    attack("calls_itself_by_a_key", "return sorted([x, y], key=lambda v: add(x, y))", _ODD),
    attack("calls_itself_by_reduce", "from functools import reduce\nreturn reduce(lambda a, b: add(a, b), [x, y, x])", _ODD),
    attack("pattern_without_end", "import re\nreturn re.match('(a+)+$', 'a' * 40 + 'b')", "timeout"),
    attack("text_of_gigabytes", "return ('x' * 10 ** 9).replace('x', 'yy' * 99)", _ODD),
    attack("bytes_of_gigabytes", "return bytearray(1 << 40)", "memory fail"),
    attack("number_as_text", "return int('9' * 5000)", "fail"),
    attack("prints_without_end", "while True: print('x' * 100_000)", "timeout"),
    attack("reads_without_end", "while True:\n    try: input()\n    except EOFError: pass", "timeout"),
    attack("product_without_end", "from itertools import product\nreturn len(list(product(range(99), repeat=5)))", "timeout memory fail"),
    attack("counts_without_end", "from itertools import count\nreturn sum(count())", "timeout"),
    attack("deque_without_end", "from collections import deque\nfrom itertools import repeat\ndeque(repeat(1), 0)", "timeout"),
    attack("names_of_a_tuple", "from collections import namedtuple\nT = namedtuple('int', 'real imag')\nreturn T(x + y, 0)", "fail"),
    attack("takes_names_of_its_own", "global int, len, sum, print, map\nint = len = sum = print = map = None\nreturn None", "fail"),
    attack("raises_itself", "e = ValueError()\nwhile True:\n    try: raise e from e\n    except ValueError as f: raise f", "fail"),
    attack("default_of_a_missing_key", "from collections import defaultdict\nd = defaultdict(lambda: add(x, y))\nreturn d[0]", _ODD),
    attack("variable_of_a_type", "from typing import TypeVar, List\nreturn List[TypeVar('T', bound='add(1, 2)')]", "fail"),
]  # fmt: skip

# Source that is read otherwise than it looks, and functions that are none.
SOURCE = [
    Case("coding_of_another_text", "    # -*- coding: utf-7 -*-\n    return +AHgAKwB5-\n", frozenset({"fail", "syntax_error"})),
    Case("line_breaks_of_old", "    return x * y\r    return x + y\r", frozenset({"fail"})),
    Case("form_feed", "\x0c    return x * y\n\x0c    return x + y\n", frozenset({"fail", "syntax_error"})),
    Case("line_separator", "    return x * y  # \u2028    return x + y\n", frozenset({"fail"})),
    Case("written_from_the_right", "    return x * y  # \u202e y + x nruter \u202c\n", frozenset({"fail"})),
    Case("mark_in_the_middle", "    \ufeffreturn x + y\n", frozenset({"syntax_error"})),
    Case("letters_that_look_alike", "    return \u0445 + \u0443\n", frozenset({"fail"})),
    Case("text_that_does_not_end", '    """\n    return x + y\n', frozenset({"syntax_error"})),
    Case("line_that_does_not_end", "    return x + \\", frozenset({"syntax_error"})),
    Case("control_letters", "    return x + y \x1b\n", frozenset({"syntax_error"})),
    Case("ends_of_a_file", "    return x * y\n\x1a    return x + y\n", frozenset({"syntax_error"})),
    Case("tests_of_its_own", "    return 0\ndef check(candidate): return True\n", frozenset({"fail"})),
    Case("name_taken_away", "    return x + y\ndel add\n", frozenset({"fail"})),
    Case("name_of_nothing", "    return x + y\nadd = None\n", frozenset({"fail"})),
    Case("name_of_a_property", "    return x + y\nadd = property(add)\n", frozenset({"fail"})),
    Case("name_given_later", "    return x * y\ndef __getattr__(name): return lambda x, y: x + y\ndel add\n", frozenset({"fail"})),
    Case("function_that_waits", "    pass\nasync def add(x, y): return x + y\n", frozenset({"fail"})),
    Case("function_that_yields", "    yield x + y\n", frozenset({"fail"})),
    Case("function_of_another_number", "    pass\ndef add(x): return x\n", frozenset({"fail"})),
    Case("names_of_another_world", "    return x * y\n__builtins__ = {'x': 1}\n__name__ = 'tests'\n", frozenset({"fail"})),
    Case("class_with_a_hook", "    pass\nclass add:\n    def __new__(cls, x, y): return object.__new__(cls)\n    def __eq__(self, other): return True\n", frozenset({"fail"})),
    Case("ends_at_once", "    return x * y\nraise SystemExit(0)\n", frozenset({"exit", "fail"})),
    Case("interrupts_at_once", "    return x * y\nraise KeyboardInterrupt\n", frozenset({"fail", "exit"})),
    Case("imports_itself", "    import candidate\n    return candidate.add(x, y)\n", frozenset({"fail", "missing_module", "crash", "exit"})),
]  # fmt: skip

# Calls of the kernel that no sample needs.
KERNEL = [
    *(_call(name, number, *arguments) for name, number, arguments in (
        ("secret_memory", 447, ["0"]), ("lock_all_memory", 151, ["3"]), ("lock_memory", 325, ["libc.malloc(4096)", "4096", "1"]),
        ("memory_keys", 330, ["0", "0"]), ("barrier_of_all_cores", 324, ["1", "0", "0"]), ("table_of_segments", 154, ["0", "bytes(16)", "16"]),
        ("another_personality", 135, ["0x0040000"]), ("accounts", 163, ["None"]), ("swap", 167, ["b'/tmp'", "0"]),
        ("time_of_day", 164, ["bytes(16)", "None"]), ("tune_the_clock", 159, ["bytes(208)"]), ("tune_a_clock", 305, ["0", "bytes(208)"]),
        ("host_name", 170, ["b'x'", "1"]), ("domain_name", 171, ["b'x'", "1"]), ("ports", 172, ["3"]), ("port", 173, ["0x80", "1", "1"]),
        ("kernel_log", 103, ["3", "ctypes.create_string_buffer(99)", "99"]), ("quotas", 179, ["0", "None", "0", "None"]),
        ("own_filter", 317, ["0", "0", "None"]), ("advise_a_process", 440, ["3", "None", "1", "4", "0"]), ("watch_marks", 301, ["3", "1", "1", "-100", "b'/'"]),
        ("open_a_tree", 428, ["-100", "b'/'", "1"]), ("move_a_mount", 429, ["-100", "b'/'", "-100", "b'/tmp'", "0"]), ("open_a_file_system", 430, ["b'tmpfs'", "0"]),
        ("set_a_mount", 442, ["-100", "b'/'", "0", "bytes(32)", "32"]), ("own_rules", 444, ["(ctypes.c_ulong * 2)(1, 0)", "8", "0"]),
        ("memory_policy", 238, ["3", "None", "0"]), ("migrate_pages", 256, ["os.getppid()", "0", "None", "None"]), ("splice_memory", 278, ["1", "None", "0", "0"]),
        ("tee", 276, ["3", "4", "1", "0"]), ("sync_all", 162, []), ("watches", 253, []), ("signals_as_files", 289, ["-1", "bytes(8)", "8", "0"]),
        ("request_a_key", 249, ["b'user'", "b'x'", "None", "0"]), ("priority_of_disks", 251, ["1", "os.getppid()", "0"]),
        ("scheduler", 144, ["os.getppid()", "3", "bytes(4)"]), ("scheduler_by_attributes", 314, ["0", "bytes(48)", "0"]), ("nice", 141, ["0", "0", "5"]),
        ("other_users", 117, ["0", "0", "0"]), ("groups", 116, ["0", "None"]), ("new_root", 155, ["b'/tmp'", "b'/tmp'"]), ("take_a_module_away", 176, ["b'x'", "0"]),
        ("load_a_module", 175, ["bytes(8)", "8", "b''"]), ("load_a_kernel", 320, ["0", "0", "0", "b''", "0"]), ("copy_a_handle", 438, ["3", "0", "0"]),
        ("free_a_process", 448, ["3", "0"]), ("state_of_mounts", 457, ["bytes(24)", "bytes(512)", "512", "0"]), ("list_of_mounts", 458, ["bytes(24)", "bytes(512)", "64", "0"]),
        ("security_of_itself", 460, ["100", "bytes(64)", "64", "0"]), ("old_library", 134, ["b'/lib'"]), ("pages_in_memory", 27, ["id(x) & ~4095", "4096", "ctypes.create_string_buffer(1)"]),
        ("cache_of_a_file", 451, ["3", "bytes(16)", "bytes(40)", "0"]), ("fault_by_hand", 323, ["1"]), ("hang_up", 153, []), ("allocate_a_file", 285, ["0", "0", "0", "1"]),
        ("copy_of_a_range", 326, ["3", "None", "4", "None", "1", "0"]), ("exchange_of_names", 316, ["-100", "b'/tmp'", "-100", "b'/dev'", "2"]),
        ("wait_on_many_words", 449, ["bytes(24)", "1", "0", "None", "1"]), ("child_by_structure", 435, ["bytes(88)", "88"]),
    )),
    attack("list_of_locks_of_nothing", f"{_LIBC}libc.syscall(273, 1, 24)\nreturn None"),
    attack("word_cleared_at_the_end", f"{_LIBC}libc.syscall(218, 1)\nreturn None"),
    attack("all_memory_away", f"{_LIBC}for a in range(0x400000, 0x2000000, 0x100000): libc.syscall(11, a, 0x100000)\nlibc.syscall(11, id(x) & ~0xffff, 1 << 20)\nreturn None", _ODD),
    attack("stack_of_signals_too_small", f"{_LIBC}libc.sigaltstack(bytes(24), None)\nimport sys\nsys.setrecursionlimit(10 ** 9)\ndef f(n): return f(n + 1)\nreturn f(0)", _ODD),
    attack("signal_at_every_moment", "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)\nsignal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)\nreturn None"),
    attack("timers_without_number", f"{_LIBC}t = ctypes.c_int()\nfor _ in range(5000): libc.syscall(222, 1, None, ctypes.byref(t))\nreturn None"),
    attack("ring_of_polls", "import select\na = [select.epoll() for _ in range(20)]\nfor b, c in zip(a, a[1:] + a[:1]):\n    try: b.register(c, 1)\n    except OSError: pass\nreturn None"),
    attack("full_pipes", "import os\nfor _ in range(10):\n    r, w = os.pipe()\n    os.set_blocking(w, False)\n    try: os.write(w, bytes(1 << 20))\n    except OSError: pass\nreturn None"),
    attack("threads_that_spin", "import threading\ndef spin():\n    while True: pass\nfor _ in range(20): threading.Thread(target=spin, daemon=True).start()\nreturn None", "fail timeout"),
    attack("threads_that_answer", "import threading, os, struct, marshal\nb = b'=' + marshal.dumps(None, 2)\ndef put():\n    while True:\n        for fd in range(3, 9):\n            try: os.write(fd, struct.pack('I', len(b)) + b)\n            except OSError: pass\nfor _ in range(4): threading.Thread(target=put, daemon=True).start()\nreturn None", "fail timeout"),
    attack("zeros_without_end", "import mmap\nf = open('/dev/zero', 'r+b')\nm = mmap.mmap(f.fileno(), 1 << 33)" + _IF_WORKS),
    attack("chance_without_end", "f = open('/dev/urandom', 'rb')\nwhile f.read(1 << 20): pass" + _IF_WORKS, "fail timeout"),
    attack("device_away", "import os\nos.unlink('/dev/null')" + _IF_WORKS),
    attack("device_replaced", "import os\nopen('/tmp/n', 'w').close()\nos.rename('/tmp/n', '/dev/null')" + _IF_WORKS),
    attack("device_linked", "import os\nos.link('/dev/zero', '/tmp/z')" + _IF_WORKS),
    attack("mode_of_another_user", "import os\nopen('/tmp/s', 'w').close()\nos.chmod('/tmp/s', 0o6777)\nos.chown('/tmp/s', 0, 0)" + _IF_WORKS),
    attack("above_the_root_by_handle", "import os\nd = os.open('/', os.O_RDONLY)\nfor _ in range(40): d = os.open('..', os.O_RDONLY, dir_fd=d)\nos.open('{canary}/secret'[1:], 0, dir_fd=d)" + _IF_WORKS),
    attack("above_the_root_by_names", "return x + y if open('/tmp/../../../..{canary}/secret').read() else None"),
    attack("code_from_a_file", "import mmap, os\nf = open('/tmp/c', 'w+b')\nf.write(b'\\xc3' * 4096)\nf.flush()\nmmap.mmap(f.fileno(), 4096, prot=5, flags=2)" + _IF_WORKS),
    attack("library_from_a_file", "import ctypes\nopen('/tmp/l.so', 'wb').write(b'\\x7fELF' + bytes(5000))\nctypes.CDLL('/tmp/l.so')" + _IF_WORKS),
]  # fmt: skip

MORE: dict[str, list[Case]] = {
    "values that are none": VALUES,
    "in company": TAME,
    "source that misleads": SOURCE,
    "calls of the kernel": KERNEL,
}
