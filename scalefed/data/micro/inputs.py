"""What values do tests feed to programs? Small values of each type, the empty one first."""

from collections.abc import Callable

import numpy as np

WORDS = (
    "cat", "dog", "red", "fox", "sun", "tree", "level", "noon", "stone", "apple", "river", "ant", "rotor", "tea",
    "Mars", "lemon", "ROSE", "toast", "ear", "stars", "on", "a", "salt", "nest",
)  # fmt: skip


def inputs(kind: str, count: int, random: np.random.Generator) -> list[str]:
    """``count`` different values of a type as Python source (fewer where a type has fewer).

    Args:
        kind: name of the type, one of ``primitives.TYPES``.
        count: how many.
        random: where the values come from.

    >>> inputs("b", 5, np.random.default_rng(0))
    ['False', 'True']
    """
    found = dict.fromkeys([repr(_EMPTY[kind])])
    for _ in range(20 * count):
        if len(found) == count:
            break
        found[repr(_MAKERS[kind](random))] = None
    return list(found)


def _number(random: np.random.Generator) -> int:
    low, high = ((-12, 25), (0, 10), (10, 100), (-99, 1000))[random.integers(4)]
    return int(random.integers(low, high))


def _numbers(random: np.random.Generator) -> list[int]:
    low, high = ((-9, 25), (-4, 5), (0, 60), (1, 12))[random.integers(4)]
    return [int(a) for a in random.integers(low, high, size=random.integers(1, 8))]


def _word(random: np.random.Generator) -> str:
    return WORDS[random.integers(len(WORDS))]


def _words(random: np.random.Generator) -> list[str]:
    vocabulary = [_word(random) for _ in range(5)]
    return [vocabulary[random.integers(5)] for _ in range(random.integers(1, 7))]


def _text(random: np.random.Generator) -> str:
    return " ".join(_words(random)[:4])


def _pair(random: np.random.Generator) -> tuple[int, int]:
    return _number(random), _number(random)


def _pairs(random: np.random.Generator) -> list[tuple[int, int]]:
    return list(zip(_numbers(random), _numbers(random), strict=False))


def _dict(random: np.random.Generator) -> dict[str, int]:
    return {word: int(random.integers(-6, 16)) for word in _words(random)}


def _rows(random: np.random.Generator) -> list[list[int]]:
    return [_numbers(random)[:4] for _ in range(random.integers(1, 5))]


def _truth(random: np.random.Generator) -> bool:
    return bool(random.integers(2))


_EMPTY: dict[str, object] = {
    "n": 0, "xs": [], "s": "", "ws": [], "d": {}, "ps": [], "rows": [], "b": False, "pair": (0, 0),
}  # fmt: skip
_MAKERS: dict[str, Callable[[np.random.Generator], object]] = {
    "n": _number, "xs": _numbers, "s": _text, "ws": _words, "d": _dict, "ps": _pairs, "rows": _rows, "b": _truth,
    "pair": _pair,
}  # fmt: skip
