"""Where do real federated clients come from? The Python packages installed here: each has its own authors and habits.

The interpreter's standard library and installed packages are on every machine that runs this, need no download, and
fall into natural groups. Another machine has other packages: give ``root`` for text that others can rebuild, such as
the standard library, which is what ``data="python"`` trains on.
"""

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scalefed.data.micro import Corpus
from scalefed.errors import ConfigError, DataError

SMALLEST_FILE, LARGEST_FILE = 200, 100_000  # bytes: below is boilerplate, above mostly generated tables


class Encoder(Protocol):
    """What encoding asks of a tokenizer."""

    vocab_size: int
    eos: int

    def encode_batch(self, texts: list[str], /) -> list[list[int]]:
        """The ids of many texts, without ends of documents."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Python files and the packages they belong to.

    Attributes:
        texts: (n,) the files' text.
        groups: (n,) index of each file's package.
        names: the packages, sorted.
    """

    texts: tuple[str, ...]
    groups: NDArray[np.int16]
    names: tuple[str, ...]


def python_source(root: str | Path | None = None, *, max_files: int | None = None, per_group: int = 200) -> Sources:
    """Python files below a folder, one group a top-level package, in sorted order.

    Taken round the packages in turn, so that ``max_files`` cuts all of them alike. Files of fewer than 200 or more
    than 100,000 bytes, and files that are not UTF-8, are left out; so are copies of a file already taken.

    Args:
        root: the folder whose entries are the packages; the interpreter's packages and standard library when None.
        max_files: at most so many files in all.
        per_group: at most so many files of one package.

    Raises:
        ConfigError: max_files or per_group below 1. DataError: no such folder, or no Python in it.

    >>> python_source(max_files=2).groups.tolist()
    [0, 1]
    """
    for name, value in (("max_files", max_files), ("per_group", per_group)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    roots = [Path(root)] if root is not None else sorted({Path(sysconfig.get_path(p)) for p in ("purelib", "stdlib")})
    for folder in roots:
        if not folder.is_dir():
            raise DataError(f"no folder {str(folder)!r} to read Python from; give the folder that holds the packages")
    packages: dict[str, list[Path]] = {}
    for folder in roots:
        for entry in sorted(folder.iterdir()):
            if is_package(entry):
                packages.setdefault(entry.stem, []).append(entry)
    waiting = {name: _texts(packages[name], per_group) for name in sorted(packages)}
    taken: list[tuple[str, str]] = []
    seen: set[str] = set()
    while waiting and (max_files is None or len(taken) < max_files):
        for name in list(waiting):
            text = next((text for text in waiting[name] if text not in seen), None)
            if text is None:
                del waiting[name]
            elif max_files is None or len(taken) < max_files:
                seen.add(text)
                taken.append((name, text))
    if not taken:
        raise DataError(f"no Python files of a usable size below {', '.join(str(folder) for folder in roots)}")
    names = tuple(sorted({name for name, _ in taken}))
    number = {name: i for i, name in enumerate(names)}
    groups = np.array([number[name] for name, _ in taken], dtype=np.int16)
    return Sources(tuple(text for _, text in taken), groups, names)


def encode(texts: tuple[str, ...] | list[str], tokenizer: Encoder, *, groups: NDArray[np.int16]) -> Corpus:
    """Texts as one row of tokens, each followed by the end of document; ``groups`` become the families.

    Args:
        texts: (n,) documents.
        tokenizer: ours (``train_tokenizer(texts, vocab_size=...)``) or a checkpoint's.
        groups: (n,) group of each document.

    Raises:
        ConfigError: another number of groups than of texts, or no texts.

    >>> from scalefed.data.tokenizer import train_tokenizer
    >>> tokenizer = train_tokenizer(["a b"], vocab_size=257)
    >>> encode(["a b", "c"], tokenizer, groups=np.array([0, 1])).offsets.tolist()
    [0, 4, 6]
    """
    if len(texts) != len(groups) or not len(texts):
        raise ConfigError(f"groups must hold one number a text, at least one, got {len(groups)} for {len(texts)} texts")
    rows = [np.array([*ids, tokenizer.eos]) for ids in tokenizer.encode_batch(list(texts))]
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    return Corpus(
        tokens=np.concatenate(rows).astype(kind),
        offsets=np.cumsum([0, *map(len, rows)]).astype(np.int64),
        families=np.asarray(groups, dtype=np.int16),
        text_bytes=np.array([len(text.encode()) for text in texts], dtype=np.int32),
    )


def is_package(entry: Path) -> bool:
    """Whether a folder's entry is a package or a module."""
    if entry.is_dir():
        return entry.name.isidentifier() and entry.name != "__pycache__"
    return entry.suffix == ".py"


def _texts(entries: list[Path], limit: int) -> Iterator[str]:
    """The usable files of a package, at most ``limit``."""
    found = 0
    for entry in entries:
        for path in python_files(entry):
            if found == limit:
                return
            text = file_text(path)
            if text is not None:
                found += 1
                yield text


def python_files(entry: Path) -> Iterator[Path]:
    """The Python files of a package, folder by folder, read from disk only as far as they are asked for."""
    if entry.is_file():
        yield entry
        return
    for folder, inside, files in os.walk(entry):
        inside.sort()
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def file_text(path: Path) -> str | None:
    """A file's text, or None if it is too small, too large or not UTF-8 text."""
    if not path.is_file() or not SMALLEST_FILE <= path.stat().st_size <= LARGEST_FILE:
        return None
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:  # an old encoding: left out, as the caller was told
        return None
    return None if "\x00" in text else text
