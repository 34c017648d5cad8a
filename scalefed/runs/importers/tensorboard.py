"""Which scalars are in TensorBoard's event files? Read without TensorBoard, whose format has not changed in ten years.

A file is a row of records, ``length (8 bytes), its checksum (4), data (length), its checksum (4)``; the data are a
protocol buffer ``Event``. Scalars stand in ``Summary.Value.simple_value``, or as a tensor of one float where a newer
writer made them. A record that was cut off while it was written ends the file; what stands before it is kept.

Source: tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto, framework/summary.proto, tensor.proto.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from scalefed.errors import DataError
from scalefed.runs.reading import opened

PATTERN = "*tfevents*"
_LARGEST = 2**28  # bytes of one record: a histogram or a picture is a few megabytes
_STEP, _SUMMARY = 2, 5  # fields of an Event
_VALUE = 1  # of a Summary
_TAG, _SIMPLE, _TENSOR = 1, 2, 8  # of a Summary.Value
_CONTENT, _FLOATS, _DOUBLES = 4, 5, 6  # of a TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def is_events(path: Path) -> bool:
    """Whether a file is one of TensorBoard's by its name."""
    return "tfevents" in path.name


def files_below(folder: "str | os.PathLike[str]") -> list[Path]:
    """The event files at or below a folder, in a stable order."""
    return sorted(path for path in Path(folder).rglob(PATTERN) if path.is_file())


def records_of(path: "str | os.PathLike[str]") -> list[dict[str, Any]]:
    """One record a scalar: its step as ``step``, and its tag with the value.

    Raises:
        DataError: the file is no event file.
    """
    records: list[dict[str, Any]] = []
    with opened(path) as stream:
        for number, data in enumerate(_framed(stream, path)):
            try:
                records += _scalars(data)
            except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
                raise DataError(f"{path}, record {number}: no TensorBoard event ({error}); write it again") from error
    return records


def _framed(stream: BinaryIO, path: Any) -> Iterator[bytes]:
    while len(head := stream.read(12)) == 12:
        (length,) = struct.unpack("<Q", head[:8])
        if length > _LARGEST:
            raise DataError(f"{path} is no TensorBoard event file: it has a record of {length:,} bytes")
        data = stream.read(length + 4)
        if len(data) < length + 4:
            return
        yield data[:length]


def _scalars(event: bytes) -> list[dict[str, Any]]:
    step, found = 0, []
    for field, wire, value in _fields(event):
        if field == _STEP and wire == _VARINT:
            step = value if value < 2**63 else value - 2**64
        elif field == _SUMMARY and wire == _BYTES:
            found += [scalar for one, kind, part in _fields(value) if one == _VALUE and kind == _BYTES
                      for scalar in _scalar(part)]  # fmt: skip
    return [{"step": step, tag: value} for tag, value in found]


def _scalar(value: bytes) -> Iterator[tuple[str, float]]:
    tag, number = "", None
    for field, wire, part in _fields(value):
        if field == _TAG and wire == _BYTES:
            tag = part.decode("utf-8")
        elif field == _SIMPLE and wire == _FIXED32:
            (number,) = struct.unpack("<f", part)
        elif field == _TENSOR and wire == _BYTES:
            number = _only_number(part)
    if tag and number is not None:
        yield tag, float(number)


def _only_number(tensor: bytes) -> float | None:
    """The number of a tensor that holds one float or double; None for any other."""
    for field, wire, part in _fields(tensor):
        if wire == _BYTES and field in (_CONTENT, _FLOATS) and len(part) == 4:
            return float(struct.unpack("<f", part)[0])
        if wire == _BYTES and field in (_CONTENT, _DOUBLES) and len(part) == 8:
            return float(struct.unpack("<d", part)[0])
        if field == _FLOATS and wire == _FIXED32:
            return float(struct.unpack("<f", part)[0])
    return None


def _fields(message: bytes) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and content of every field of a protocol buffer."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, wire, value
            continue
        if wire == _BYTES:
            length, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(message):
            raise ValueError("a field is longer than its message")
        yield key >> 3, wire, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        byte = message[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value, at + place + 1
    raise ValueError("a number of more than ten bytes")
