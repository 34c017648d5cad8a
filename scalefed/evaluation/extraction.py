"""Where is the code in a chatty answer? Inside Markdown fences, if it has any."""

import ast
import re

from scalefed.data.problem import Problem

EXTRACT = ("code",)
"""What can be taken out of a text."""

_FENCE = re.compile(r"^([ \t]*)(?:```+|~~~+)[ \t]*(\w*)[^\n]*$", re.MULTILINE)
_THOUGHT = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL)


def is_fenced(text: str) -> bool:
    """Whether a text holds a Markdown fence."""
    return _FENCE.search(text) is not None


def defines(text: str, name: str) -> bool:
    """Whether a text defines a function or binds a name at its left edge: a program, and not the rest of one."""
    return re.search(rf"^(?:(?:async\s+)?def\s+{name}\b|{name}\s*=)", text, re.MULTILINE) is not None


def code_of(text: str, problem: Problem, *, program: bool = False) -> str:
    r"""The code of an answer, as a completion of the problem's prompt or as a program; the text itself without fences.

    Of several fenced blocks it is the first that defines the function, else the first; what a model thinks aloud
    (``<think>``) is passed over. A fence that is only closed ends code that the prompt has opened. Code that
    begins under an indented fence loses that indentation.

    >>> problem = Problem("t/0", "def f(x):\n", "", "", "f")
    >>> code_of("Sure:\n```python\ndef f(x):\n    return 1\n```\nDone.", problem, program=True)
    'def f(x):\n    return 1\n'
    """
    blocks = _blocks(_THOUGHT.sub("", text)) or _blocks(text)
    if not blocks:
        return text
    code = next((block for block in blocks if defines(block, problem.entry_point)), blocks[0])
    return code if program else behind_prompt(code, problem)


def behind_prompt(code: str, problem: Problem) -> str:
    """What to put behind the prompt: the code, made to define the function once more if it is a program.

    The program's own definition then counts, and the prompt's imports hold for it.
    """
    return _joint(problem.prompt) + code if defines(code, problem.entry_point) else code


def _blocks(text: str) -> list[str]:
    fences = list(_FENCE.finditer(text))
    if len(fences) == 1 and not fences[0].group(2) and text[: fences[0].start()].strip():
        return [text[: fences[0].start()]]
    ends = [*(fence.start() for fence in fences[1::2]), len(text)]
    pairs = zip(fences[::2], ends, strict=False)
    return [_outdented(text[start.end() + 1 : end], start.group(1)) for start, end in pairs]


def _outdented(code: str, indent: str) -> str:
    """Code in an indented fence, as in an item of a list: where it begins under the fence, indented less by as much."""
    lines = code.splitlines(keepends=True)
    first = next((line for line in lines if line.strip()), "")
    if not indent or first[: len(first) - len(first.lstrip())] != indent:
        return code
    return "".join(line.removeprefix(indent) for line in lines)


def _joint(prompt: str) -> str:
    """What makes a prompt a program of its own, so that another can follow."""
    try:
        ast.parse(prompt)
    except (SyntaxError, ValueError):
        return "\n    pass\n\n"
    return "\n"
