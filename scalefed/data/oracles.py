"""When is an answer right by EvalPlus's rules? This module is pasted in front of the tests that need it.

It imports nothing of this package, because the tests run in a process of their own.

Source: EvalPlus 0.3.1 (Liu et al. 2023), its evaluation and its special oracles; HumanEval/32's arguments are put in
their right order, without which no solution can pass.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

_RELATIVE = 1e-7  # EvalPlus's, beside the absolute tolerance
_FLOATS = 1e-6  # its absolute tolerance for floats where a problem names none


def check_all(
    answers: Callable[[Any], Any],
    reference: Callable[..., Any],
    inputs: list[Any],
    *,
    kept: dict[str, Any],
    rule: str = "equal",
    tolerance: float = 0.0,
) -> None:
    """Call the candidate with every input and raise AssertionError at the first wrong answer.

    Args:
        answers: gives the candidate's answers to a list of argument lists, one by one.
        reference: the right function; its answers are worked out once and kept.
        inputs: argument lists.
        kept: what stays from one candidate to the next.
        rule: a name of :data:`RULES`.
        tolerance: absolute, on numbers.
    """
    if "expected" not in kept:
        kept["expected"] = [_answer(rule, reference(*copy.deepcopy(arguments))) for arguments in inputs]
    before = copy.deepcopy(inputs) if rule in ("root", "surface", "digits") else inputs  # candidates may change them
    for arguments, got, expected in zip(before, answers(inputs), kept["expected"], strict=True):
        assert RULES[rule](arguments, got, expected, tolerance), f"candidate(*{arguments!r}) gave {got!r}"


def _answer(rule: str, answer: Any) -> Any:
    return answer is not None if rule == "found" and not isinstance(answer, bool) else answer


def _equal(_: Sequence[Any], got: Any, expected: Any, tolerance: float) -> bool:
    """Equal, or of the same type with all numbers near."""
    if got == expected:
        return True
    allowed = _FLOATS if tolerance == 0 and _floats(expected) else tolerance
    return allowed != 0 and type(got) is type(expected) and _near(got, expected, allowed)


def _floats(value: Any) -> bool:
    return isinstance(value, float) or isinstance(value, (list, tuple)) and all(isinstance(v, float) for v in value)


def _near(got: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, (list, tuple)):
        same = type(got) is type(expected) and len(got) == len(expected)
        return same and all(_near(a, b, tolerance) for a, b in zip(got, expected, strict=True))
    if isinstance(expected, (int, float, complex)) and isinstance(got, (int, float, complex)):
        return got == expected or abs(got - expected) <= tolerance + _RELATIVE * abs(expected)
    return bool(got == expected)


def _same_set(_: Sequence[Any], got: Any, expected: Any, __: float) -> bool:
    return set(got) == set(expected)


def _found(_: Sequence[Any], got: Any, expected: Any, __: float) -> bool:
    """Whether something was found, as True and False or as anything and None (a match object is no plain data)."""
    return bool((got if isinstance(got, bool) else got is not None) == expected)


def _root(arguments: Sequence[Any], got: Any, _: Any, tolerance: float) -> bool:
    """Any root of the polynomial will do."""
    return type(got) in (int, float) and abs(sum(c * got**i for i, c in enumerate(arguments[0]))) <= tolerance


def _anything(*_: Any) -> bool:
    """The task has no agreed answer: EvalPlus takes whatever is returned."""
    return True


def _equal_or_zero(arguments: Sequence[Any], got: Any, expected: Any, tolerance: float) -> bool:
    return got == 0 or _equal(arguments, got, expected, tolerance)


def _surface(arguments: Sequence[Any], got: Any, expected: Any, tolerance: float) -> bool:
    """The height may also be that of the apex above the base."""
    edge, height = arguments
    upright = round(edge**2 + 2 * edge * math.sqrt((edge / 2) ** 2 + height**2))
    return _equal(arguments, got, expected, tolerance) or abs(got - upright) <= tolerance


def _digits(arguments: Sequence[Any], got: Any, expected: Any, tolerance: float) -> bool:
    """Numbers of different length may also be filled up with zeros."""
    words = [str(number) for number in arguments]
    first, second = (word.zfill(max(map(len, words))) for word in words)
    if _equal(arguments, got, expected, tolerance):
        return True
    return bool(got == sum(abs(int(a) - int(b)) for a, b in zip(first, second, strict=True)))


RULES: dict[str, Callable[[Sequence[Any], Any, Any, float], bool]] = {
    "equal": _equal,
    "set": _same_set,
    "found": _found,
    "root": _root,
    "anything": _anything,
    "equal or zero": _equal_or_zero,
    "surface": _surface,
    "digits": _digits,
}
"""Name -> whether (arguments, answer, expected answer, tolerance) is right."""
