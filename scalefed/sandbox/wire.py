"""How does plain data come back from untrusted code? Through a decoder that cannot build anything else.

The bytes are marshal version 2, read here in Python and for data types only: whatever the sample sends, the result is
made of None, numbers, strings, bytes, lists, tuples, sets and dicts (and a few harmless standard types), or it is
ValueError. An object that is none of these arrives as :data:`OPAQUE`, which equals nothing.
"""

import collections
import marshal
import re
import struct
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

_DEPTH = 120  # containers in one another, well below Python's own limit of recursion
_MOST_DIGITS = 1 << 20  # of an integer, 15 bits each
_MANY = 16  # lists from this length on may be read in one go
_INT, _DOUBLE, _COMPLEX, _DIGIT = (struct.Struct(form).unpack_from for form in ("<i", "<d", "<dd", "<H"))


class Opaque:
    """Stands for a value that is not plain data: it equals nothing, not even itself."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "<an object that is not plain data>"


OPAQUE = Opaque()
_CONSTANTS: dict[int, Any] = {ord("N"): None, ord("T"): True, ord("F"): False, ord("."): OPAQUE, ord("S"): OPAQUE}


def decode(data: bytes) -> Any:
    """The plain value in ``data``; raises ValueError for anything else."""
    reader = _Reader(data)
    try:
        value = reader.value(0)
    except (IndexError, struct.error, TypeError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"not plain data: {error}") from error
    if reader.at != len(data):
        raise ValueError("bytes after the value")
    return value


def encode_call(args: tuple[Any, ...], keywords: dict[str, Any]) -> bytes:
    """One call of the tested function as a frame: ``M`` if an argument can be changed in place, else ``C``."""
    fixed = all(type(value) in _FIXED for value in args) and all(type(v) in _FIXED for v in keywords.values())
    return (b"C" if fixed else b"M") + marshal.dumps((args, keywords), 2)


_FIXED = frozenset({type(None), bool, int, float, complex, str, bytes})


def mirror(before: Any, after: Any) -> None:
    """Make the list, dict or set ``before`` hold what ``after`` holds, keeping the identity of what can be kept."""
    if isinstance(before, list) and isinstance(after, list):
        if len(before) == len(after):
            for index, (old, new) in enumerate(zip(before, after, strict=True)):
                before[index] = _merged(old, new)
        else:
            before[:] = after
    elif isinstance(before, dict) and isinstance(after, dict):
        merged = {key: _merged(before[key], new) if key in before else new for key, new in after.items()}
        before.clear()
        before.update(merged)
    elif isinstance(before, set) and isinstance(after, set):
        before.clear()
        before.update(after)
    elif isinstance(before, tuple) and isinstance(after, tuple):
        for old, new in zip(before, after, strict=False):
            mirror(old, new)


def _merged(old: Any, new: Any) -> Any:
    if type(old) is type(new) and isinstance(old, (list, dict, set)):
        mirror(old, new)
        return old
    return new


class _Reader:
    """Reads marshal version 2 from bytes that may be anything."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def value(self, depth: int) -> Any:
        data, at = self.data, self.at
        kind = data[at]
        at += 1
        if kind in _CONSTANTS:
            self.at = at
            return _CONSTANTS[kind]
        if kind == 105:  # i
            self.at = at + 4
            return _INT(data, at)[0]
        if kind == 103:  # g
            self.at = at + 8
            return _DOUBLE(data, at)[0]
        if kind == 121:  # y
            self.at = at + 16
            return complex(*_COMPLEX(data, at))
        if depth > _DEPTH:
            raise ValueError("nested too deeply")
        if kind == 123:  # {
            self.at = at
            return self._dict(depth)
        size = _INT(data, at)[0]
        self.at = at + 4
        if kind == 117:  # u
            return self._bytes(size).decode("utf-8", "surrogatepass")
        if kind == 115:  # s
            return self._bytes(size)
        if kind == 108:  # l
            return self._long(size)
        if kind == 91 and size >= _MANY and (numbers := self._numbers(size)) is not None:
            return numbers
        make = _CONTAINERS.get(kind)
        if make is None or size < 0 or size > len(data):
            raise ValueError(f"type {kind} of size {size}")
        return make([self.value(depth + 1) for _ in range(size)])

    def _numbers(self, size: int) -> list[Any] | None:
        """A list of only short integers or only floats, read at once; None if it is another list."""
        start, code = self.at, self.data[self.at]
        width = {105: 4, 103: 8}.get(code)
        if width is None or len(self.data) < start + size * (width + 1):
            return None
        end = start + size * (width + 1)
        if self.data[start : end : width + 1] != bytes([code]) * size:
            return None
        raw = bytearray(size * width)
        for offset in range(width):
            raw[offset::width] = self.data[start + 1 + offset : end : width + 1]
        self.at = end
        return list(struct.unpack(f"<{size}{'i' if width == 4 else 'd'}", raw))

    def _bytes(self, size: int) -> bytes:
        start = self.at
        if size < 0 or start + size > len(self.data):
            raise ValueError("cut short")
        self.at = start + size
        return self.data[start : start + size]

    def _dict(self, depth: int) -> dict[Any, Any]:
        found = {}
        while self.data[self.at] != 48:  # 0 ends it
            key = self.value(depth + 1)
            found[key] = self.value(depth + 1)
        self.at += 1
        return found

    def _long(self, size: int) -> int:
        """15 bits per digit, least first; linear time also for a million digits."""
        if abs(size) > _MOST_DIGITS:
            raise ValueError(f"a number of {15 * abs(size)} bits")
        raw = self._bytes(2 * abs(size))
        digits = [_DIGIT(raw, 2 * index)[0] for index in range(abs(size))]
        if any(digit > 0x7FFF for digit in digits):
            raise ValueError("digit")
        value = int("".join(f"{digit:015b}" for digit in reversed(digits)) or "0", 2)
        return -value if size < 0 else value


def _tuple(items: list[Any]) -> Any:
    if len(items) > 2 and items[0] is OPAQUE:
        described = _DESCRIBED.get(items[1]) if type(items[1]) is str else None
        if described is None:
            raise ValueError("unknown description")
        return described(*items[2:])
    return tuple(items)


def _fraction(top: Any, bottom: Any) -> Fraction:
    if type(top) is not int or type(bottom) is not int or bottom == 0:
        raise ValueError("fraction")
    return Fraction(top, bottom)


def _decimal(text: Any) -> Decimal:
    if type(text) is not str or len(text) > 1000:
        raise ValueError("decimal")
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise ValueError("decimal") from error


def _array(dtype: Any, shape: Any, data: Any) -> Any:
    """A numpy array or number; only where the tester's own environment has numpy."""
    if type(dtype) is not str or not _NUMBERS.fullmatch(dtype) or type(data) is not bytes or type(shape) is not list:
        raise ValueError("array")
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("array")
    try:
        from numpy import frombuffer

        return frombuffer(data, dtype).reshape(shape).copy()[()]
    except (ImportError, TypeError) as error:
        raise ValueError("array") from error


def _of(kind: type, make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def build(value: Any) -> Any:
        if type(value) is not kind:
            raise ValueError("description")
        return make(value)

    return build


_CONTAINERS: dict[int, Callable[[list[Any]], Any]] = {91: list, 40: _tuple, 60: set, 62: frozenset}
_NUMBERS = re.compile(r"[<>|][biufc]\d{1,2}")
_DESCRIBED: dict[str, Callable[..., Any]] = {
    "N": _array,
    "F": _fraction,
    "D": _decimal,
    "R": range,
    "B": _of(bytes, bytearray),
    "Q": _of(list, collections.deque),
    "I": _of(list, iter),
    "K": _of(list, lambda items: dict.fromkeys(items).keys()),
    "V": _of(list, lambda items: dict(enumerate(items)).values()),
    "T": _of(list, lambda items: dict(items).items()),
}
