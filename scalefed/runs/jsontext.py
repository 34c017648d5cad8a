"""How is anything stored as text? Strict JSON that keeps every float, one value a file or one a line."""

import io
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from scalefed.errors import DataError
from scalefed.runs.reading import bounded_lines, opened, read_text, unpacked

_WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON: floats to the last bit, infinities and NaN as the words inf, -inf and nan.

    >>> dumps({"concentration": math.inf, "loss": 0.1})
    '{"concentration": "inf", "loss": 0.1}'
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def loads(text: str) -> Any:
    """The inverse of :func:`dumps`.

    Raises:
        ValueError: it is not JSON, names a key twice, holds half of a surrogate pair or a number of thousands of
            digits, or is nested too deeply.

    >>> loads('{"concentration": "inf"}')
    {'concentration': inf}
    """
    try:
        value = _revived(json.loads(text, object_pairs_hook=_object))
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def read_json(path: Path) -> Any:
    """One JSON file, with the words inf, -inf and nan as the numbers they stand for.

    Raises:
        DataError: it cannot be read or is not JSON.
    """
    text = read_text(path)
    try:
        return loads(text)
    except ValueError as error:
        raise DataError(
            f"{path} cannot be read as JSON ({error}); restore it, or delete it and make it again"
        ) from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """One dict for each line of a JSON-lines file, gzipped or not.

    Raises:
        DataError: the file is missing or a line is no JSON object; the message has its number.
    """
    number = 0
    try:
        with opened(path) as stream, _unpacked(path, stream) as lines:
            for number, line in enumerate(bounded_lines(lines, path), start=1):
                if line.strip():
                    yield _record(path, number, line)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {number} ({error}); write the file again") from error


# ---------------------------------------------------------------------- helpers
def _unpacked(path: Path, stream: BinaryIO) -> TextIO:
    raw = unpacked(stream, path) if path.suffix == ".gz" else stream
    return io.TextIOWrapper(raw, encoding="utf-8-sig")


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = loads(line)
    except ValueError as error:
        told = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(
            f"{path}, line {number}: not JSON ({told}), perhaps cut off while it was written; "
            "write the file again or remove that line"
        ) from error
    if not isinstance(record, dict):
        raise DataError(f"{path}, line {number}: expected a JSON object, got {line.strip()[:40]!r}")
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        value = float(value)
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise DataError(f"a run log holds numbers, text, lists and mappings, got {type(value).__name__}: {value!r:.80}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {key: _revived(value) for key, value in pairs}
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.60} stands twice")
    return found


def _revived(value: Any) -> Any:
    """Words for infinities and NaN as numbers, in a text or a list; dicts within have been through this."""
    if isinstance(value, str):
        return _WORDS.get(value, value)
    return [_revived(item) for item in value] if isinstance(value, list) else value
