"""What is a coding problem? HumanEval's five fields."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    r"""One problem in HumanEval's format; the program to judge is ``prompt + completion``.

    Attributes:
        task_id: unique name, for example ``"micro/17"``.
        prompt: the program up to the point where the model goes on.
        canonical_solution: a completion that passes ``test``.
        test: Python source that defines ``check(candidate)``, which raises when the candidate is wrong.
        entry_point: name of the function that the program defines and ``check`` is called with.

    >>> Problem("p/0", "def f(x):", " return x", "def check(c):\n    assert c(1) == 1", "f").entry_point
    'f'
    """

    task_id: str
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str
