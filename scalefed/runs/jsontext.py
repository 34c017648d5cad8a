"""How is anything stored as text? Strict JSON that keeps every float, one value a file or one a line."""

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scalefed.errors import DataError

_WORDS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON: floats to the last bit, infinities and NaN as the words inf, -inf and nan.

    >>> dumps({"concentration": math.inf, "loss": 0.1})
    '{"concentration": "inf", "loss": 0.1}'
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def loads(text: str) -> Any:
    """The inverse of :func:`dumps`.

    >>> loads('{"concentration": "inf"}')
    {'concentration': inf}
    """
    return _revive(json.loads(text))


def read_json(path: Path) -> Any:
    """One JSON file, with the words inf, -inf and nan as the numbers they stand for.

    Raises:
        DataError: it cannot be read or is not JSON.
    """
    try:
        return loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
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
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    record = loads(line)
                    if not isinstance(record, dict):
                        raise DataError(f"{path}, line {number}: expected a JSON object, got {line.strip()[:40]!r}")
                    yield record
    except FileNotFoundError:
        raise DataError(f"no file at {path}; check the path") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not JSON ({error.msg}), perhaps cut off while it was written; "
            "write the file again or remove that line"
        ) from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {number} ({error}); write the file again") from error


# ---------------------------------------------------------------------- helpers
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


def _revive(value: Any) -> Any:
    if isinstance(value, str):
        return _WORDS.get(value, value)
    if isinstance(value, dict):
        return {key: _revive(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_revive(item) for item in value]
    return value
