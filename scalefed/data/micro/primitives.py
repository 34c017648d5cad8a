"""Which skills does the benchmark know? Reads the table ``primitives.txt`` into typed primitives and their variants.

A variant is a primitive with its constant filled in; it is what a document is made of.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from scalefed.data.micro.constants import Constant, tail, units
from scalefed.errors import DataError

TYPES = ("n", "xs", "s", "ws", "d", "ps", "rows", "b", "pair")
_PLACEHOLDER = re.compile(r"<([a-z]+)>")
_HEAD = re.compile(r"^(\* )?([^:,]+): (\w+) -> (\w+)$")


@dataclass(frozen=True, slots=True)
class Primitive:
    """One skill: a phrase, the Python that does it, and the types before and after.

    Attributes:
        name: the phrase with its placeholder, unique.
        family: index into the families.
        rank: place within its family, 0 is the most frequent.
        glue: whether documents of other families use it too.
        source, target: types before and after, indices into ``TYPES``.
        code: lines of Python with the placeholder.
        constants: (word in the phrase, text in the code), most frequent first; one empty pair if there is none.
    """

    name: str
    family: int
    rank: int
    glue: bool
    source: int
    target: int
    code: str
    constants: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """A primitive with its constant: ``phrase`` for the docstring, ``code`` (after a line break) for the body."""

    primitive: int
    constant: int
    phrase: str
    code: str


@dataclass(frozen=True, slots=True)
class Table:
    """All families, primitives and variants, in the order of the file."""

    families: tuple[str, ...]
    primitives: tuple[Primitive, ...]
    variants: tuple[Variant, ...]


@lru_cache(maxsize=1)
def table() -> Table:
    """The table shipped with the package."""
    text = resources.files(__package__).joinpath("primitives.txt").read_text(encoding="utf-8")
    return parse(text)


def parse(text: str) -> Table:
    r"""Read a table in the format that the head of ``primitives.txt`` explains.

    Raises:
        DataError: a line that is neither constants, family, skill nor code, or an undefined placeholder or type.

    >>> parse("[maps]\ndouble: n -> n\n    n = n * 2\n").variants[0].phrase
    'double'
    """
    constants: dict[str, tuple[Constant, ...]] = {}
    families: list[str] = []
    heads: list[tuple[re.Match[str], int]] = []
    bodies: list[list[str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("    ") and bodies:
            bodies[-1].append(line)
        elif line.startswith("<"):
            name, _, values = line.partition(" = ")
            constants[name.strip("<>")] = tuple(pair for value in values.split() for pair in _constants(value))
        elif line.startswith("["):
            families.append(line.strip("[]"))
        elif (match := _HEAD.match(line)) and families and {match[3], match[4]} <= set(TYPES):
            heads.append((match, len(families) - 1))
            bodies.append([])
        else:
            raise DataError(f"line {number} of the table of primitives is not understood: {line!r}")
    return _assemble(tuple(families), heads, bodies, constants)


def _constants(value: str) -> list[Constant]:
    if value == "...":
        return tail()
    return units() if value == "units" else [(value, value)]


def _assemble(
    families: tuple[str, ...],
    heads: list[tuple[re.Match[str], int]],
    bodies: list[list[str]],
    constants: dict[str, tuple[Constant, ...]],
) -> Table:
    primitives: list[Primitive] = []
    seen: dict[int, int] = {}
    for (match, family), body in zip(heads, bodies, strict=True):
        code = "".join("\n" + line for line in body)
        names = set(_PLACEHOLDER.findall(match[2] + code))
        if len(names) > 1 or not names <= set(constants) or names != set(_PLACEHOLDER.findall(match[2])):
            raise DataError(f"primitive {match[2]!r} must use at most one defined constant, named in its phrase")
        values = constants[names.pop()] if names else (("", ""),)
        rank = seen.get(family, 0)
        seen[family] = rank + 1
        types = TYPES.index(match[3]), TYPES.index(match[4])
        primitives.append(Primitive(match[2], family, rank, bool(match[1]), *types, code, values))
    variants = [
        Variant(index, place, _PLACEHOLDER.sub(word, primitive.name), _PLACEHOLDER.sub(code, primitive.code))
        for index, primitive in enumerate(primitives)
        for place, (word, code) in enumerate(primitive.constants)
    ]
    return Table(families, tuple(primitives), tuple(variants))
