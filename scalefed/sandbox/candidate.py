"""The untrusted side: run one sample's code and answer calls of its function with plain data.

Nothing here is secret and nothing here decides. The process holds the sample's own code and the arguments of the
calls so far, never tests or expected values. What comes back over the socket is checked by the tester.
"""

import contextlib
import marshal
import os
import struct
import sys
import types
from builtins import bool, bytes, dict, float, int, isinstance, len, list, slice, str, tuple, type  # noqa: UP029
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from scalefed.sandbox import endless
from scalefed.sandbox.allowlist import is_standard

# The builtins above are bound here so that a sample that overwrites them hurts its own code only.

_ITEMS = 100_000  # most items taken from an iterator that is a result
_DEPTH = 100  # deepest result
_CHUNK = 1 << 13  # bytes asked for at a time


def serve(handle: int) -> NoReturn:
    """Answer frames from ``handle``, a stream socket, until it closes; see ``session.py`` for what they hold."""
    function: Any = None
    trouble: BaseException | None = None
    frames = Frames(handle)
    _state.handle = handle
    while True:
        frame = frames.next()
        if frame[:1] == b"P":
            function = None
            function, trouble = _load(frame[1:])
            continue
        watched, call = frame[:1] == b"M", frame[1:]
        send_frame(handle, _failure(trouble) if trouble is not None else _answer(function, watched, call))


def rehearse() -> None:
    """Do what every candidate does, in the process that it is forked from: a child then changes fewer pages of it.

    50 times: from about 8 on the interpreter has adapted its instructions, and the rest fills what it sets aside.
    """
    source, sink = os.pipe()
    frames = Frames(source)
    code = marshal.dumps(compile("def f(x):\n    return x\n", "<rehearsal>", "exec"))
    program, call = marshal.dumps((code, "f", False)), marshal.dumps(((1,), {}), 2)
    for _ in range(50):
        send_frame(sink, program)
        function, _trouble = _load(frames.next())
        send_frame(sink, call)
        send_frame(sink, _answer(function, True, frames.next()))
        frames.next()
    os.close(source)
    os.close(sink)
    del sys.modules["candidate"]


class Library:
    """Finds no module, for files are out of sight; asks for one to be imported beforehand in another process.

    It is in its place before the candidate is forked, so that this costs a candidate nothing.
    """

    def __init__(self, packages: Iterable[str]):
        """Args: packages: libraries that may be asked for beside the standard one."""
        self._packages, self._path = frozenset(packages), list(sys.path)
        self.handle = -1  # of the candidate's socket, once there is one
        self.asked = frozenset[str]()  # modules that are here, or cannot be had
        sys.meta_path.insert(-1, self)  # before the one that looks for files
        sys.path[:] = ["/tmp"]

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Within it modules are found in files."""
        sys.path[:] = self._path
        yield
        sys.path[:] = ["/tmp"]

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """See importlib.abc.MetaPathFinder. The tester judges the sample again, with this module at hand."""
        top = name.partition(".")[0]
        if self.handle >= 0 and name not in self.asked and (top in self._packages or is_standard(top)):
            send_frame(self.handle, b"?" + name.encode())
            os._exit(0)


class _State:
    """What a look at the running code needs to know."""

    __slots__ = ("handle", "tame")

    def __init__(self) -> None:
        self.handle, self.tame = -1, False


_state = _State()


def look(number: int, frame: types.FrameType | None) -> None:
    """Handler of the signal that asks whether the sample can still come back: if it cannot, say so and end."""
    try:
        while frame is not None and frame.f_back is not None and frame.f_back.f_code not in _CALLERS:
            frame = frame.f_back
        if frame is None or frame.f_back is None:
            return
        called = frame.f_back.f_locals.get("function")
        if frame.f_back.f_code is _answer.__code__ and getattr(called, "__code__", None) is not frame.f_code:
            return  # something stands between, which may catch what it raises
        endless.examine(frame, tame=_state.tame, proved=_give_up)
    except Exception:  # no proof; the sample must not notice
        return


def _give_up(proof: str) -> NoReturn:
    send_frame(_state.handle, b"." + proof.encode())
    os._exit(0)


def _load(program: bytes) -> tuple[Any, BaseException | None]:
    """Run the sample's module and find its function; what it raises is kept for the first call."""
    code, entry, _state.tame = marshal.loads(program)
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        exec(marshal.loads(code), module.__dict__)
        return module.__dict__[entry], None
    except BaseException as error:
        return None, error


def _answer(function: Any, watched: bool, call: bytes) -> bytes:
    """One call: the result, with the arguments as they are afterwards if they were ``watched`` and changed."""
    args, keywords = marshal.loads(call)
    try:
        result = function(*args, **keywords)
        if watched and _changed(args, keywords, call):
            return b"~" + _dumps((result, args, keywords))
        return b"=" + _dumps(result)
    except BaseException as error:
        return _failure(error)


def _changed(args: Any, keywords: Any, call: bytes) -> bool:
    try:
        return marshal.dumps((args, keywords), 2) != call
    except ValueError:
        return True


def _dumps(value: Any) -> bytes:
    if "numpy" in sys.modules or "array" in sys.modules:  # their objects would pass for the bytes that they hold
        return marshal.dumps(plain(value), 2)
    try:
        return marshal.dumps(value, 2)
    except ValueError:
        return marshal.dumps(plain(value), 2)


def _failure(error: BaseException) -> bytes:
    try:
        text = str(error)[:200]
    except BaseException:
        text = "?"
    return b"!" + marshal.dumps((str(type(error).__name__)[:100], text), 2)


_CALLERS = (_answer.__code__, _load.__code__)
"""From where the sample's code is called."""


def plain(value: Any, depth: int = 0) -> Any:
    """The value as plain data: subclasses lose their overrides, a few types are described, all else is Ellipsis."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str, bytes, complex):
        return value
    if depth > _DEPTH:
        return Ellipsis
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return bytes.__getitem__(value, slice(None))
    if isinstance(value, tuple):
        return tuple([plain(item, depth + 1) for item in tuple.__iter__(value)])
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in list.__iter__(value)]
    if isinstance(value, set):
        return {plain(item, depth + 1) for item in set.__iter__(value)}
    if isinstance(value, frozenset):
        return frozenset([plain(item, depth + 1) for item in frozenset.__iter__(value)])
    if isinstance(value, dict):
        return {plain(key, depth + 1): plain(item, depth + 1) for key, item in dict.items(value)}
    return _described(value, kind.__module__, kind.__name__, depth)


def _described(value: Any, module: str, name: str, depth: int) -> Any:
    """Types outside marshal that honest solutions return: (Ellipsis, letter, plain parts...)."""
    if isinstance(value, range):
        return (Ellipsis, "R", value.start, value.stop, value.step)
    if isinstance(value, bytearray):
        return (Ellipsis, "B", bytes(value))
    if module == "fractions" and name == "Fraction":
        return (Ellipsis, "F", int(value.numerator), int(value.denominator))
    if module == "decimal" and name == "Decimal":
        return (Ellipsis, "D", str(value))
    if module == "numpy" and hasattr(value, "dtype") and value.dtype.kind in "biufc":
        return (Ellipsis, "N", str(value.dtype.str), list(value.shape), value.tobytes())
    views = {"dict_keys": "K", "dict_values": "V", "dict_items": "T", "deque": "Q"}
    if name in views and module in ("builtins", "collections"):
        return (Ellipsis, views[name], [plain(item, depth + 1) for item in value])
    if hasattr(type(value), "__next__"):
        items = []
        for item in value:
            items.append(plain(item, depth + 1))
            if len(items) > _ITEMS:
                return Ellipsis
        return (Ellipsis, "I", items)
    return Ellipsis


class Frames:
    """Length-prefixed frames from a descriptor, read with as few calls as can be."""

    def __init__(self, handle: int):
        """Args: handle: a stream socket; its end ends this process."""
        self._handle, self._data = handle, b""

    def next(self) -> bytes:
        """The next frame."""
        while len(self._data) < 4:
            self._data += self._more(_CHUNK)
        end = 4 + struct.unpack_from("I", self._data)[0]
        parts, missing = [self._data], end - len(self._data)
        while missing > 0:
            parts.append(self._more(min(max(missing, _CHUNK), 1 << 20)))
            missing -= len(parts[-1])
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        frame, self._data = data[4:end], data[end:]
        return frame

    def _more(self, size: int) -> bytes:
        part = os.read(self._handle, size)
        if not part:
            os._exit(0)
        return part


def send_frame(handle: int, data: bytes) -> None:
    """Write one frame."""
    rest = memoryview(struct.pack("I", len(data)) + data)
    while rest:
        rest = rest[os.write(handle, rest) :]
