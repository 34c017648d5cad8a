"""What is real text for a small model? Functions of installed Python packages, read as bytes, copies left out.

Every function and method is a document. Packages are what clients differ in: a tenth of them is kept for scoring alone,
and of the others some functions. Nothing of the text is stored: a run records its hash and the packages' licences.
"""

import ast
import hashlib
import heapq
import importlib.metadata
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalefed.data.corpus import gather
from scalefed.data.micro import Corpus
from scalefed.data.sources import file_text, is_package, python_files
from scalefed.errors import ConfigError, DataError, nearest
from scalefed.seeds import rng

SHORTEST, LONGEST = 64, 20_000  # bytes of a function: below are stubs, above mostly tables
UNSEEN_SHARE = 10  # one package in so many is scored and trained on by nobody
STANDARD_LIBRARY = "python"
LEFT_OUT = frozenset({"scalefed", "site-packages", "dist-packages", "test", "tests", "__pycache__"})
"""Ourselves, whose text changes with every commit, what is no standard library, and its tests, which are half of it."""
LICENCE_WORDS = 60  # characters; some packages state the whole text of theirs


@dataclass(frozen=True)
class Package:
    """One package: its name, version and licence as its own metadata state them, and its Python files."""

    name: str
    version: str
    licence: str
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return ", ".join(filter(None, (f"{self.name} {self.version}".strip(), self.licence)))


@dataclass(frozen=True)
class Functions:
    """Functions of packages as bytes (byte b is id b + 1, the end of a document 0).

    Attributes:
        text: what clients train on; its families are places in ``packages``.
        held_out: other functions of the same packages in the same shares.
        unseen: functions of packages that nobody trains on; families are places in ``unseen_packages``.
        packages: of text and held_out. unseen_packages: of unseen.
        files: how many were read.
        hash: of everything above that is text, 16 hexadecimal digits.
    """

    text: Corpus
    held_out: Corpus
    unseen: Corpus
    packages: tuple[Package, ...]
    unseen_packages: tuple[Package, ...]
    files: int
    hash: str


def find_packages(root: str = "") -> tuple[Package, ...]:
    """The packages that a ``data_root`` names, sorted by name.

    Args:
        root: a folder (with a slash in it) whose entries are the packages, or names of installed ones with spaces
            between them, ``python`` being the standard library; empty for all that is installed.

    Raises:
        DataError: no such folder or package, or no Python in it.

    >>> [package.name for package in find_packages("numpy python")]
    ['numpy', 'python']
    """
    if "/" in root or os.sep in root:
        return _in_folder(Path(root))
    installed = _distributions()
    names = [_plain(name) for name in re.split(r"[,\s]+", root.strip()) if name] or list(installed)
    for name in names:
        if name not in installed:
            raise DataError(
                f"data_root names {name!r:.60}, which is not installed here; {nearest(name, installed)}; a folder has "
                "a slash in it, such as ./texts"
            )
    found = tuple(_installed(installed[name]) for name in sorted(set(names)))
    some = tuple(package for package in found if package.files)
    if not some:
        raise DataError(f"data_root={root!r:.80} holds no Python files of a usable size")
    return some


def unseen_count(packages: int) -> int:
    """How many of so many packages are kept for scoring: a tenth, and none of fewer than ten."""
    return packages // UNSEEN_SHARE


def check_source(root: str, *, partition: str, clients: int) -> None:
    """Raise what training on these packages would, without reading them.

    Args:
        root: as for :func:`find_packages`.
        partition: of the clients; ``natural`` ones hold at least a package each.
        clients: how many.

    Raises:
        DataError: as for :func:`find_packages`. ConfigError: fewer packages than natural clients.
    """
    found = len(find_packages(root))
    held = found - unseen_count(found)
    if partition == "natural" and held < clients:
        raise ConfigError(
            f"{held} of {found} packages are trained on and cannot fill {clients} clients; use at most {held} clients, "
            "or name more packages in data_root"
        )


@lru_cache(maxsize=2)
def functions(root: str, *, size: int, held_out: int, exact: bool, seed: int) -> Functions:
    """Functions for training and scoring, the same for the same packages.

    Files are read in a random order, next always one of the package that has given least: so every package gives
    alike until it is used up, and no large one is most of the text.

    Args:
        root: as for :func:`find_packages`.
        size: bytes of training text.
        held_out: bytes of each of the two held-out texts; of unseen packages as many as there are.
        exact: whether less training text than ``size`` is an error; otherwise all there is serves.
        seed: of the packages that are kept apart, of the order of files and of the functions held out.

    Raises:
        DataError: as for :func:`find_packages`, or too little text.
    """
    order = rng(seed, "packages")
    found = find_packages(root)
    places = order.permutation(len(found))
    apart = [found[i] for i in sorted(places[: unseen_count(len(found))])]
    clients = [found[i] for i in sorted(places[unseen_count(len(found)) :])]
    seen: set[bytes] = set()
    texts, files = _taken(clients, size + held_out, seen, seed)
    known = encode_bytes(texts, order)
    total = len(known.tokens)
    if total < 2 * held_out or (exact and total < size + held_out):
        raise DataError(
            f"data_root={root!r:.80} has {total:,} bytes of distinct functions, {size + held_out:,} are asked for; "
            "lower unique_tokens and validation_tokens, or name more packages"
        )
    unseen_texts, more = _taken(apart, held_out, seen, seed)
    ends = known.offsets[1:]
    first = 1 + int(np.searchsorted(ends, held_out))
    last = 1 + int(np.searchsorted(ends, held_out + size))
    spared, text = part(known, np.arange(first)), part(known, np.arange(first, min(last, len(ends))))
    unseen = encode_bytes(unseen_texts, order)
    digest = hashlib.blake2b(digest_size=8)
    for one in (text, spared, unseen):
        digest.update(one.tokens.tobytes() + one.offsets.tobytes() + one.families.tobytes())
    return Functions(text, spared, unseen, tuple(clients), tuple(apart), files + more, digest.hexdigest())


def functions_of(source: str) -> list[str]:
    r"""The functions and methods of a file, each with its decorators and without the indentation of its class.

    A function inside a function is part of it. A file that does not parse has none.

    >>> functions_of("x = 1\nclass A:\n    def f(self):\n        return 1\n")
    ['def f(self):\n    return 1\n']
    """
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in other people's strings
            tree = ast.parse("\n".join(lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [_outdented(lines[first:last]) for first, last in _spans(tree.body)]


def encode_bytes(texts: Sequence[tuple[int, bytes]], order: np.random.Generator) -> Corpus:
    """Pairs of package and text as one row of bytes, in a random order.

    >>> encode_bytes([(3, b"ab")], np.random.default_rng(0)).tokens.tolist()
    [98, 99, 0]
    """
    shuffled = [texts[i] for i in order.permutation(len(texts))]
    raw = np.frombuffer(b"".join(text + b"\0" for _, text in shuffled), dtype=np.uint8)
    sizes = np.array([len(text) for _, text in shuffled], dtype=np.int64)
    return Corpus(
        tokens=np.where(raw == 0, 0, raw.astype(np.uint16) + 1).astype(np.uint16),
        offsets=np.concatenate([[0], np.cumsum(sizes + 1)]).astype(np.int64),
        families=np.array([package for package, _ in shuffled], dtype=np.int16),
        text_bytes=sizes.astype(np.int32),
    )


def part(text: Corpus, documents: NDArray[np.int64]) -> Corpus:
    """The chosen documents of a text."""
    sizes = np.diff(text.offsets)[documents]
    return Corpus(
        tokens=gather(text.tokens, text.offsets, documents),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        families=text.families[documents],
        text_bytes=text.text_bytes[documents],
    )


# ---------------------------------------------------------------------- reading
def _taken(
    packages: Sequence[Package], wanted: int, seen: set[bytes], seed: int
) -> tuple[list[tuple[int, bytes]], int]:
    """Functions that are not ``seen`` as pairs of package and text, about so many bytes; and the files read.

    A text counts once however it is indented or its lines end.
    """
    given = [(0, i) for i in range(len(packages))]
    waiting = [_shuffled(package, seed, i) for i, package in enumerate(packages)]
    taken: list[tuple[int, bytes]] = []
    total = files = 0
    while given and total < wanted:
        size, i = heapq.heappop(given)
        source = next(waiting[i], None)
        if source is None:
            continue
        files += 1
        for text in map(str.encode, functions_of(source)):
            key = hashlib.blake2b(b"\n".join(text.split()), digest_size=12).digest()
            if SHORTEST <= len(text) <= LONGEST and key not in seen:
                seen.add(key)
                taken.append((i, text))
                size, total = size + len(text) + 1, total + len(text) + 1
        heapq.heappush(given, (size, i))
    return taken, files


def _shuffled(package: Package, seed: int, number: int) -> Iterator[str]:
    for i in rng(seed, "files", number).permutation(len(package.files)):
        text = file_text(package.files[i])
        if text is not None:
            yield text


def _spans(body: Iterable[ast.stmt]) -> Iterator[tuple[int, int]]:
    """First line, from 0, and the line after the last, of all functions below."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield min([node.lineno, *(one.lineno for one in node.decorator_list)]) - 1, int(node.end_lineno or 0)
        elif isinstance(node, ast.ClassDef):
            yield from _spans(node.body)


def _outdented(lines: Sequence[str]) -> str:
    """Lines without the indentation of the first; text that stands further left, such as a string's, stays."""
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return "\n".join(line.removeprefix(indent) for line in lines) + "\n"


# ---------------------------------------------------------------------- what is installed
def _in_folder(root: Path) -> tuple[Package, ...]:
    if not root.is_dir():
        raise DataError(f"no folder {str(root)!r} to read Python from; give the folder that holds the packages")
    entries = [(entry, tuple(python_files(entry))) for entry in sorted(root.iterdir()) if is_package(entry)]
    found = tuple(Package(entry.stem, "", "", files) for entry, files in entries if files)
    if not found:
        raise DataError(f"no Python files below {str(root)!r}")
    return found


def _distributions() -> dict[str, importlib.metadata.Distribution | None]:
    """What is installed, by plain name in order; the standard library is no distribution."""
    found: dict[str, importlib.metadata.Distribution | None] = {STANDARD_LIBRARY: None}
    for one in importlib.metadata.distributions():
        if (name := str(one.metadata["Name"] or "")) and name not in LEFT_OUT:
            found.setdefault(_plain(name), one)
    return dict(sorted(found.items()))


def _installed(found: importlib.metadata.Distribution | None) -> Package:
    if found is None:
        return Package(STANDARD_LIBRARY, platform.python_version(), "PSF-2.0", tuple(_standard_library()))
    inside = [one for one in found.files or () if one.suffix == ".py" and ".." not in one.parts]
    files = tuple(sorted(Path(str(found.locate_file(one))) for one in inside))
    return Package(str(found.metadata["Name"]), found.version, _licence(found.metadata), files)


def _standard_library() -> Iterator[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    for entry in sorted(root.iterdir()):
        if entry.name not in LEFT_OUT and is_package(entry):
            yield from (path for path in python_files(entry) if not LEFT_OUT & set(path.relative_to(root).parts))


def _licence(metadata: importlib.metadata.PackageMetadata) -> str:
    """As the package states it: an expression, a classifier, or the beginning of its text."""
    stated = metadata.get_all("License-Expression") or []
    classed = [
        one.rsplit(" :: ", 1)[-1] for one in metadata.get_all("Classifier") or [] if one.startswith("License ::")
    ]
    told = [line.strip() for text in metadata.get_all("License") or [] for line in text.splitlines() if line.strip()]
    return "; ".join(stated or classed or told[:1] or ["not stated"])[:LICENCE_WORDS]


def _plain(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
