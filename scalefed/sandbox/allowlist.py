"""May this code share a process with other samples? Only if its bytecode cannot name anything shared and mutable.

Everything is refused that is not on a list: the modules it imports, the global names it reads, the attributes it
takes. So a sample that passes has no way to reach another sample's state, to patch a module, or to run later (no
classes, no ``finally`` inside generators). Refusal costs a fresh process and nothing else; the safety of the machine
never rests on this, since shared code sits in the same sandbox.
"""

import builtins
import opcode
import sys
from types import CodeType

MODULES = frozenset(
    "bisect collections collections.abc copy functools heapq itertools math operator re string sys typing".split()
)
"""What tame code may import (``sys`` for ``maxsize`` only, see ATTRIBUTES)."""

BUILTINS = frozenset(
    """abs all any ascii bin bool bytearray bytes callable chr complex dict divmod enumerate filter float frozenset hash
hex input int isinstance issubclass iter len list map max min next oct ord pow print range repr reversed round set slice
sorted str sum tuple zip NotImplemented Ellipsis ArithmeticError AssertionError AttributeError BaseException Exception
IndexError KeyError LookupError NameError NotImplementedError OverflowError RecursionError RuntimeError StopIteration
SyntaxError TypeError UnboundLocalError UnicodeDecodeError UnicodeEncodeError UnicodeError ValueError
ZeroDivisionError""".split()
)
"""Global names that need no definition. ``type`` is missing: called with three arguments it makes classes."""

ATTRIBUTES = frozenset(
    """append clear copy count extend index insert pop remove reverse sort
fromkeys get items keys popitem setdefault update values
add difference difference_update discard intersection intersection_update isdisjoint issubset issuperset
symmetric_difference symmetric_difference_update union
capitalize casefold center encode decode endswith expandtabs find isalnum isalpha isascii isdecimal isdigit isidentifier
islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip maketrans partition removeprefix
removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title
translate upper zfill hex fromhex
bit_length bit_count conjugate imag real numerator denominator is_integer as_integer_ratio to_bytes from_bytes
start stop step args send close group groups groupdict span pattern string flags
acos acosh asin asinh atan atan2 atanh cbrt ceil comb copysign cos cosh degrees dist e erf erfc exp exp2 expm1 fabs
factorial floor fmod frexp fsum gamma gcd hypot inf isclose isfinite isinf isnan isqrt lcm ldexp lgamma log log10 log1p
log2 modf nan nextafter perm pi pow prod radians remainder sin sinh sqrt tan tanh tau trunc ulp
compile match fullmatch search sub subn findall finditer escape error I IGNORECASE M MULTILINE S DOTALL X VERBOSE
A ASCII U UNICODE
Counter OrderedDict defaultdict deque namedtuple ChainMap elements most_common subtract total appendleft popleft
extendleft rotate maxlen move_to_end
accumulate chain combinations combinations_with_replacement compress count cycle dropwhile filterfalse from_iterable
groupby islice pairwise permutations product repeat starmap takewhile tee zip_longest
reduce lru_cache cache partial cmp_to_key cache_clear cache_info
heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest
bisect bisect_left bisect_right insort insort_left insort_right
ascii_letters ascii_lowercase ascii_uppercase capwords digits hexdigits octdigits printable punctuation whitespace
deepcopy maxsize
itemgetter and_ contains countOf eq floordiv ge gt indexOf inv invert is_ is_not le lshift lt mod mul ne neg not_ or_
pos rshift truediv truth xor
Any Callable Collection DefaultDict Deque Dict FrozenSet Generator Hashable Iterable Iterator List Literal Mapping
MutableMapping MutableSequence MutableSet NoReturn Optional Reversible Sequence Set Sized Text Tuple Type TypeVar Union
cast""".split()
)
"""Attributes that may be taken, from anything. None of them hands out or changes state that other code sees."""


def is_standard(module: str) -> bool:
    """True for a top-level module of the standard library; one holds facts of the build, under a name of its own."""
    return module in sys.stdlib_module_names or module.startswith("_sysconfigdata_")


_ALL_BUILTINS = frozenset(dir(builtins))
_SHIFTS = {"LOAD_GLOBAL": 1, "LOAD_ATTR": 1}  # low bits of the argument that are flags, since the versions below
_SINCE = {"LOAD_GLOBAL": (3, 11), "LOAD_ATTR": (3, 12)}
_READS = ("LOAD_NAME", "LOAD_GLOBAL")
_STORES = ("STORE_NAME", "STORE_GLOBAL", "DELETE_NAME", "DELETE_GLOBAL")
_TAKES = ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
_REFUSED = {
    opcode.opmap[name]
    for name in (
        "MATCH_CLASS",
        "LOAD_BUILD_CLASS",
        "GET_AWAITABLE",
        "BEFORE_ASYNC_WITH",
        "GET_AITER",
        "LOAD_LOCALS",
        "IMPORT_STAR",
    )
    if name in opcode.opmap
}
_NAMED = set(opcode.hasname)
_EXTENDED, _CATCHES = opcode.opmap["EXTENDED_ARG"], opcode.opmap.get("PUSH_EXC_INFO", -1)
_INTRINSIC, _IMPORT_STAR = opcode.opmap.get("CALL_INTRINSIC_1", -1), 2  # how newer versions import everything
_IMPORT = opcode.opmap["IMPORT_NAME"]
# CO_GENERATOR; CO_COROUTINE, CO_ITERABLE_COROUTINE, CO_ASYNC_GENERATOR of inspect
_GENERATOR, _COROUTINES = 0x20, 0x80 | 0x100 | 0x200


def _shift(name: str) -> int:
    return _SHIFTS.get(name, 0) if sys.version_info >= _SINCE.get(name, (3, 0)) else 0


_ROLES = {
    opcode.opmap[name]: (role, _shift(name))
    for role, names in (("read", _READS), ("store", _STORES), ("take", _TAKES), ("import", ("IMPORT_NAME",)))
    for name in names
    if name in opcode.opmap
}


def is_tame(code: CodeType) -> bool:
    r"""True if this module's code may run in a process that other samples' code uses too.

    >>> is_tame(compile("import math\ndef f(x): return math.sqrt(x)", "", "exec"))
    True
    >>> is_tame(compile("def f(x): return f.__globals__", "", "exec"))
    False
    """
    read: set[str] = set()
    todo = [code]
    while todo:
        part = todo.pop()
        if part.co_flags & _COROUTINES or not _scan(part, read):
            return False
        todo += [constant for constant in part.co_consts if isinstance(constant, CodeType)]
    # any other name is the code's own, or undefined: either way it leads nowhere else
    return all(name in BUILTINS or (name not in _ALL_BUILTINS and name[:2] != "__") for name in read)


def imports(code: CodeType) -> list[str]:
    r"""The modules that this code names in import statements, each once.

    >>> imports(compile("import os.path\nfrom math import pi\ndef f(): import math", "", "exec"))
    ['os.path', 'math']
    """
    found: dict[str, None] = {}
    todo = [code]
    while todo:
        part = todo.pop()
        raw, extended = part.co_code, 0
        for op, low in zip(raw[::2], raw[1::2], strict=True) if _IMPORT in raw else ():
            argument = extended | low
            extended = argument << 8 if op == _EXTENDED else 0
            if op == _IMPORT and argument < len(part.co_names):
                found[part.co_names[argument]] = None
        todo += [constant for constant in part.co_consts if isinstance(constant, CodeType)]
    return list(found)


def _scan(code: CodeType, read: set[str]) -> bool:
    """Collect the global names of one code object; False for an instruction that is not tame."""
    raw, names, extended = code.co_code, code.co_names, 0
    resumable = bool(code.co_flags & _GENERATOR)
    for op, low in zip(raw[::2], raw[1::2], strict=True):
        if op == _EXTENDED:
            extended = (extended | low) << 8
            continue
        argument, extended = extended | low, 0
        if op in _NAMED:
            role, shift = _ROLES.get(op, ("", 0))
            index = argument >> shift
            name = names[index] if index < len(names) else ""
            if role == "read":
                read.add(name)
            elif not (
                (role == "store" and name[:2] != "__")
                or (role == "take" and name in ATTRIBUTES)
                or (role == "import" and name in MODULES)
            ):
                return False
        elif op in _REFUSED or (resumable and op == _CATCHES) or (op == _INTRINSIC and argument == _IMPORT_STAR):
            return False
    return True
