"""How do HumanEval+ and MBPP+ say what is right? Inputs as JSON, a reference to compare with, and rules for some tasks.

JSON has no tuples, sets or complex numbers, so MBPP+ says by task number which arguments are restored; eight of its
tasks compare sets, three only whether something was found, four have an oracle of their own.

Source: EvalPlus 0.3.1 (Liu et al. 2023), MBPP+ 0.2.0.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from scalefed.errors import DataError

FIELDS = ("base_input", "plus_input", "atol")
"""What a problem in EvalPlus's format has beside HumanEval's fields; ``test`` is not needed."""

RULE_OF = {
    "HumanEval/32": "root",
    **dict.fromkeys((f"Mbpp/{n}" for n in (2, 7, 111, 140, 232, 249, 579, 769)), "set"),
    **dict.fromkeys((f"Mbpp/{n}" for n in (737, 787, 794)), "found"),
    "Mbpp/164": "anything",
    "Mbpp/295": "equal or zero",
    "Mbpp/558": "digits",
    "Mbpp/581": "surface",
}

_TEST = """

inf, nan = float("inf"), float("nan")
__kept__ = globals().get("__kept__", {{}})
__reference__ = {{}}


def _reference(*arguments):
    if not __reference__:
        exec({reference}, __reference__)
    return __reference__[{entry}](*arguments)


def check(candidate):
    answers = getattr(candidate, "many", lambda calls: (candidate(*arguments) for arguments in calls))
    check_all(answers, _reference, {inputs}, kept=__kept__, rule={rule}, tolerance={tolerance})
"""


def evalplus_test(record: Mapping[str, Any], fields: Mapping[str, str], where: str, plus: bool) -> str:
    """The test of one problem as Python source that defines ``check``.

    Args:
        record: the problem as read.
        fields: its text fields.
        where: file and line, for messages.
        plus: use the added inputs beside the base ones.

    Raises:
        DataError: no inputs, inputs that are no argument lists, or a set whose rules are not known.
    """
    task = fields["task_id"]
    if not task.startswith(("HumanEval/", "Mbpp/")):
        raise DataError(
            f"{where}: {task!r} is in EvalPlus's format, whose comparing rules are known here for HumanEval+ and MBPP+ "
            "only; give its problems with a test that defines check(candidate)"
        )
    inputs = list(record["base_input"]) + (list(record["plus_input"]) if plus else [])
    if not inputs or not all(isinstance(arguments, list) for arguments in inputs):
        raise DataError(f"{where}: base_input and plus_input must be lists of argument lists, at least one of them")
    restore = _RESTORED.get(task, list)
    try:
        restored = [list(restore(arguments)) for arguments in inputs]
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{where}: the inputs of {task!r} are not as in MBPP+ 0.2.0: {error}") from error
    return _oracles() + _TEST.format(
        inputs=repr(restored),
        rule=repr(RULE_OF.get(task, "equal")),
        tolerance=float(record["atol"] or 0),
        reference=repr(fields["prompt"] + fields["canonical_solution"] + "\n"),
        entry=repr(fields["entry_point"]),
    )


@cache
def _oracles() -> str:
    return Path(__file__).with_name("oracles.py").read_text(encoding="utf-8")


# ---------------------------------------------------------------------- types that JSON lost, by task
Restore = Callable[[list[Any]], Any]


def _tuples(inputs: list[Any]) -> Any:
    return [tuple(one) for one in inputs]


def _lists_of_tuples(inputs: list[Any]) -> Any:
    return [_tuples(one) for one in inputs]


def _tuples_of_tuples(inputs: list[Any]) -> Any:
    return [tuple(_tuples(one)) for one in inputs]


def _deep(inputs: Any) -> Any:
    return tuple(_deep(one) for one in inputs) if isinstance(inputs, list) else inputs


_BY_TASK: tuple[tuple[Restore, tuple[int, ...]], ...] = (
    (
        _tuples,
        (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809),
    ),
    (_lists_of_tuples, (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780)),
    (_tuples_of_tuples, (259, 401, 445)),
    (_deep, (580, 615, 791)),
    (lambda given: [_tuples(given[0]), *given[1:]], (75, 413, 444, 753)),
    (lambda given: [given[0], tuple(given[1])], (106, 750)),
    (lambda given: [tuple(given[0]), *given[1:]], (250, 307, 405, 446, 617, 720, 763, 808)),
    (lambda given: [[set(one) if isinstance(one, list) and one else {} for one in given[0]]], (115,)),
    (lambda given: [float(given[0]), complex(given[1])], (124,)),
    (lambda given: [complex(given[0])], (252,)),
    (lambda given: [tuple(tuple(one) if isinstance(one, list) else one for one in given[0])], (278,)),
    (lambda given: [{key: tuple(value) for key, value in given[0].items()}, *given[1:]], (722,)),
)
_RESTORED = {f"Mbpp/{number}": restore for restore, numbers in _BY_TASK for number in numbers}
