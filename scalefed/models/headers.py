"""Does the header of a weights file tell the truth about its size? Asked before anything takes the memory it claims.

A damaged or hostile header names lengths and shapes of its own choice; here every one of them must fit into the file.
Formats: safetensors (a length, JSON, data) and gguf (versions 2 and 3: counts, keys and values, tensors, data).
"""

import json
import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from scalefed.errors import DataError

_LONGEST_HEADER = 100_000_000  # bytes of safetensors' JSON, the limit of its own library
_MOST = 1_000_000  # keys or tensors of a gguf file; the largest known models have some thousands
_DEPTH = 4  # arrays of arrays
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
         "U16": 16, "U32": 32, "U64": 64, "F8_E4M3": 8, "F8_E5M2": 8}  # fmt: skip
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of gguf's plain values by their type; 8 is a text, 9 an array."""
_TEXT, _ARRAY = 8, 9  # types of values in gguf
_LEAST_TENSOR = 24  # bytes of the shortest entry of a tensor


def check_weights(path: Path) -> None:
    """Refuse a .safetensors or .gguf file whose header does not fit its size; another file is not looked at.

    Raises:
        DataError: with the file, and what of it cannot be.
    """
    check = {".safetensors": _safetensors, ".gguf": _gguf}.get(path.suffix.lower())
    if check is None:
        return
    try:
        with path.open("rb") as file:
            check(file, os.fstat(file.fileno()).st_size)
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}; fetch the file again") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError) as error:
        raise DataError(f"{path} is damaged: {type(error).__name__}, {error!s:.100}; fetch the file again") from error


def _safetensors(file: BinaryIO, size: int) -> None:
    length = struct.unpack("<Q", file.read(8))[0]
    if length > min(size - 8, _LONGEST_HEADER):
        raise DataError(f"its header is said to be {length:,} bytes, the file has {size:,}")
    header = json.loads(file.read(length))
    room = size - 8 - length
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        count = math.prod(_whole(one) for one in tensor["shape"])
        if not 0 <= _whole(begin) <= _whole(end) <= room:
            raise DataError(f"tensor {name!r:.60} lies outside the file")
        if tensor["dtype"] in _BITS and count * _BITS[tensor["dtype"]] != 8 * (end - begin):
            raise DataError(f"tensor {name!r:.60} of {count:,} values does not fill its {end - begin:,} bytes")


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise DataError(f"{value!r:.40} stands where a size should")
    return int(value)


class _Reader:
    """Reads on in a file and never past its end."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self.left = file, size

    def number(self, form: str = "<Q") -> int:
        width = struct.calcsize(form)
        self.left -= width
        return int(struct.unpack(form, self._file.read(width))[0])

    def skip(self, count: int) -> None:
        if count > self.left:
            raise DataError(f"{count:,} bytes are said to follow, {max(0, self.left):,} do")
        self.left -= count
        self._file.seek(count, os.SEEK_CUR)

    def value(self, kind: int, depth: int = 0) -> None:
        if kind in _WIDTHS:
            self.skip(_WIDTHS[kind])
        elif kind == _TEXT:
            self.skip(self.number())
        elif kind == _ARRAY and depth < _DEPTH:
            inner, count = self.number("<I"), self.number()
            if inner in _WIDTHS:
                self.skip(count * _WIDTHS[inner])
                return
            if count > self.left // 8:  # a text has a length of eight bytes at least
                raise DataError(f"an array of {count:,} is longer than the file")
            for _ in range(count):
                self.value(inner, depth + 1)
        else:
            raise DataError(f"a value of the unknown type {kind}")


def _gguf(file: BinaryIO, size: int) -> None:
    reader = _Reader(file, size - 4)
    if file.read(4) != b"GGUF":
        raise DataError("it does not begin with GGUF")
    version = reader.number("<I")
    if version not in (2, 3):
        raise DataError(f"its version is {version}; 2 and 3 are read")
    tensors, keys = reader.number(), reader.number()
    if keys > _MOST or tensors > min(_MOST, size // _LEAST_TENSOR):
        raise DataError(f"it says it has {tensors:,} tensors and {keys:,} keys in {size:,} bytes")
    for _ in range(keys):
        reader.skip(reader.number())
        reader.value(reader.number("<I"))
    for _ in range(tensors):
        reader.skip(reader.number())
        dimensions = reader.number("<I")
        if dimensions > 8:
            raise DataError(f"a tensor has {dimensions} dimensions")
        count = math.prod(reader.number() for _ in range(dimensions))
        reader.skip(4)
        if reader.number() > size or count > 16 * size:  # no format has less than half a bit a value
            raise DataError(f"a tensor of {count:,} values lies outside the file")
