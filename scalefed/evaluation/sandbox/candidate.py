"""The untrusted side: run one sample's code and answer calls of its function with plain data.

Nothing here is secret and nothing here decides. The process holds the sample's own code and the arguments of the
calls so far, never tests or expected values. What comes back over the socket is checked by the tester.
"""

import marshal
import os
import struct
import sys
import types
from builtins import bool, bytes, dict, float, int, isinstance, len, list, slice, str, tuple, type  # noqa: UP029
from typing import Any, NoReturn

# The builtins above are bound here so that a sample that overwrites them hurts its own code only.

_ITEMS = 100_000  # most items taken from an iterator that is a result
_DEPTH = 100  # deepest result
_CHUNK = 1 << 13


def serve(handle: int) -> NoReturn:
    """Answer frames from ``handle`` until it closes; see ``session.py`` for what they hold."""
    function: Any = None
    trouble: BaseException | None = None
    frames = Frames(handle)
    while True:
        frame = frames.next()
        if frame[:1] == b"P":
            function = None
            function, trouble = _load(frame[1:])
            continue
        watched, call = frame[:1] == b"M", frame[1:]
        send_frame(handle, _failure(trouble) if trouble is not None else _answer(function, watched, call))


def _load(program: bytes) -> tuple[Any, BaseException | None]:
    """Run the sample's module and find its function; what it raises is kept for the first call."""
    code, entry = marshal.loads(program)
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
