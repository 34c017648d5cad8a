"""How is a file opened that anybody may have written, or broken? One door, and every fault of it is a DataError.

A pipe would be waited for without end, a device never ends, and a folder is no file: only regular files are read. What
goes wrong while a file is understood (a key missing, a list ragged, a number where text should be) is told in one line
that names the file.
"""

import contextlib
import gzip
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO, cast

from scalefed.errors import DataError, ScalefedError

LONGEST_LINE = 2**28
"""Bytes or letters of a line; an archive of a megabyte may unpack to a line of a gigabyte."""
SMALL = 2**26
"""Bytes to which any archive may unpack that is read as a whole, of whatever size it is."""
_MOST_TIMES = 100
"""How many times its size a larger one may unpack to: tables of numbers do 3 to 20 times, zeros 1,000 times."""
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


@contextlib.contextmanager
def opened(path: "str | os.PathLike[str]") -> Iterator[BinaryIO]:
    """A regular file, open for reading bytes.

    Raises:
        DataError: there is none at the path, it cannot be read, or it is a folder, a pipe or a device.
    """
    try:
        # a pipe that nobody writes to would make open() wait
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise DataError(f"no file at {path}; check the path") from None
    except (OSError, ValueError) as error:  # too long a name; a zero byte or a lone surrogate in it
        raise DataError(f"{shown(path)} cannot be opened ({_reason(error)}); check the path") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        what = next((words for is_kind, words in _KINDS if is_kind(mode)), "a device")
        raise DataError(f"{path} is {what}, not a file; give a file")
    with os.fdopen(handle, "rb") as stream:
        yield stream


def unpacked(stream: BinaryIO, path: "str | os.PathLike[str]") -> BinaryIO:
    """The bytes of an open gzip file that is going to be read as a whole.

    Raises:
        DataError: while it is read, once it has unpacked to far more than its size, before that fills the memory.
    """
    return cast("BinaryIO", io.BufferedReader(_Unpacked(stream, path)))


class _Unpacked(io.RawIOBase):
    """Unpacks a gzip stream and counts."""

    def __init__(self, packed: BinaryIO, path: "str | os.PathLike[str]") -> None:
        self._packed, self._path, self._count = packed, path, 0
        self._stream = gzip.GzipFile(fileobj=packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)
        self._count += count
        if self._count > max(SMALL, _MOST_TIMES * self._packed.tell()):
            raise DataError(
                f"{self._path} unpacks to more than {_MOST_TIMES} times its size; unpack it first if it is meant so"
            )
        return count


def read_text(path: "str | os.PathLike[str]") -> str:
    """The text of a regular file in UTF-8, without a byte order mark.

    Raises:
        DataError: as :func:`opened`, or it is no text in UTF-8.
    """
    with opened(path) as stream:
        try:
            return stream.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}); save it so") from error
        except OSError as error:
            raise DataError(f"{path} cannot be read ({_reason(error)}); write the file again") from error


def bounded_lines(stream: IO[AnyStr], path: "str | os.PathLike[str]") -> Iterator[AnyStr]:
    """The lines of an open file, with their ends.

    Raises:
        DataError: a line is longer than :data:`LONGEST_LINE`, of which no more than that is read.
    """
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(f"{path}, line {number} is longer than {LONGEST_LINE:_} bytes; write a record a line")
        yield line


@contextlib.contextmanager
def understanding(path: "str | os.PathLike[str]", cure: str) -> Iterator[None]:
    """Turn whatever goes wrong while a file's content is used into one line that names the file.

    Args:
        path: of the file.
        cure: what to try, the end of the message.

    Raises:
        DataError: in place of any other exception.

    >>> with understanding("fit.json", "fit again"):
    ...     {}["law"]
    Traceback (most recent call last):
    scalefed.errors.DataError: fit.json is damaged: it has no 'law'; fit again
    """
    try:
        yield
    except ScalefedError:
        raise
    except KeyError as error:
        raise DataError(f"{path} is damaged: it has no {str(error)[:80]}; {cure}") from error
    except Exception as error:  # the file is at fault, whatever it broke
        raise DataError(f"{path} is damaged: {type(error).__name__}, {_reason(error)}; {cure}") from error


def is_folder(source: object) -> bool:
    """Whether the source is the path of a folder; False for what is no path, or no possible one."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    try:
        return Path(source).is_dir()
    except (OSError, ValueError):
        return False


def shown(path: object) -> str:
    """A path, or the beginning of what was given for one, for a message.

    >>> shown("many words, " * 100)
    "'many words, many wor...'"
    """
    text = str(path)
    fine = len(text) <= 200 and text.isprintable()
    return text if fine else f"{text[:20] + ('...' if len(text) > 20 else '')!r}"


def _reason(error: BaseException) -> str:
    told = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(told.split())[:160]
