"""How is a file of JSON lines read, packed or not, so that a damaged one is named and not a traceback?"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from scalefed.errors import DataError
from scalefed.runs.reading import bounded_lines, unpacked

_MAGIC = b"\x1f\x8b"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how a file of it begins


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers (from 1) and lines of a file that may be packed with gzip; blank ones are skipped.

    Raises:
        DataError: no such file, one that cannot be unpacked, or a line without end; it names file and line.
    """
    number = 0
    try:
        with opened(path) as lines:
            for number, line in enumerate(bounded_lines(lines, path.name), 1):
                if number == 1 and line.startswith(_UTF_16):
                    raise DataError(f"{path.name} is UTF-16 text; save it as UTF-8")
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} cannot be read after line {number}: {error}; fetch the file again") from error


def whole_file(path: Path) -> bytes:
    """All bytes of a file that may be packed with gzip, for one that is a single value.

    Raises:
        DataError: no such file, or one that cannot be unpacked, or to far more than its size.
    """
    try:
        with open(path, "rb") as stream:
            return (unpacked(stream, path.name) if path.suffix == ".gz" else stream).read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name} cannot be read: {error}; fetch the file again") from error


def opened(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked where its name ends in .gz.

    Raises:
        DataError: the name ends in .gz and the file is not packed. OSError: it cannot be opened.
    """
    if path.suffix != ".gz":
        return open(path, "rb")
    with open(path, "rb") as packed:
        start = packed.read(2)
    if start and start != _MAGIC:
        raise DataError(f"{path.name} is not packed with gzip, though its name ends in .gz; take .gz off its name")
    return cast("IO[bytes]", gzip.open(path, "rb"))


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a file of JSON lines; or places and objects, of one JSON array.

    Raises:
        DataError: a line that is not one JSON object, or not UTF-8, or a damaged archive.
    """
    for number, line in raw_lines(path):
        if number == 1 and line.lstrip()[:1] == b"[":
            yield from enumerate(_array(path), 1)
            return
        yield number, json_object(line, f"{path.name} line {number}")


def _array(path: Path) -> list[dict[str, Any]]:
    value = json_value(whole_file(path), path.name)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"{path.name} must hold one JSON object a line, or an array of objects")
    return value


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """The object in a line; raises DataError, which names ``where``, for anything else."""
    value = json_value(line, where)
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a JSON object, got {type(value).__name__}")
    return value


def json_value(text: bytes, where: str) -> Any:
    """The JSON value in a text; raises DataError, which names ``where``."""
    try:
        return json.loads(text.decode("utf-8-sig", "surrogatepass"))  # left alone, json guesses other encodings
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: byte {error.start} is {text[error.start]:#04x}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON: {error}") from error
