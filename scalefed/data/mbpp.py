"""How is MBPP read, whose problems are a sentence, a program and some assertions?

All its published forms are: the original (``text``, ``code``, ``test_list``, ``test_setup_code``), the sanitized one
(``prompt``, ``test_imports``) and MBPP+ in MBPP's own format, whose ``test`` is a script. The function's name is the
one that the assertions call; the prompt is a docstring of the sentence and the assertions.

Source: Austin et al. 2021 (arXiv 2108.07732); the prompt is that of bigcode-evaluation-harness.
"""

import ast
from collections.abc import Mapping
from textwrap import indent
from typing import Any

from scalefed.errors import DataError

FIELDS = ("task_id", "code", "test_list")
"""What all forms of MBPP have."""


def humaneval_fields(record: Mapping[str, Any], where: str) -> dict[str, str]:
    """A problem of MBPP as HumanEval's five fields.

    Args:
        record: the problem as read, with :data:`FIELDS`.
        where: file and line, for messages.

    Raises:
        DataError: a field of another type, or assertions that call no function of the program.
    """
    code, tests = record["code"], record["test_list"]
    sentence = record.get("prompt", record.get("text", ""))
    if not (isinstance(code, str) and isinstance(sentence, str) and isinstance(tests, list)):
        raise DataError(f"{where}: MBPP's code and text must be text and test_list a list of assertions")
    asserted = "\n".join(map(str, tests))
    setup = "\n".join([*map(str, record.get("test_imports") or []), str(record.get("test_setup_code") or "")])
    body = record.get("test") if isinstance(record.get("test"), str) else asserted
    words = f"{sentence.strip()}\n{asserted}".replace("\\", "\\\\").replace('"""', r"\"\"\"")
    return {
        "task_id": f"Mbpp/{record['task_id']}",
        "prompt": f'"""\n{words}\n"""\n',
        "canonical_solution": code if code.endswith("\n") else code + "\n",
        "test": f"{setup.strip()}\n\n\ndef check(candidate):\n{indent(str(body).strip(), '    ')}\n",
        "entry_point": _called(code, asserted, where),
    }


def _called(code: str, asserted: str, where: str) -> str:
    """The function of the program that the assertions call; of several the last defined, which calls the others."""
    try:
        defined = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
        calls = (node.func for node in ast.walk(ast.parse(asserted)) if isinstance(node, ast.Call))
        called = {function.id for function in calls if isinstance(function, ast.Name)}
    except (SyntaxError, ValueError) as error:
        raise DataError(f"{where}: MBPP's code or assertions are not valid Python: {error}") from error
    found = [name for name in defined if name in called]
    if not found:
        has = ", ".join(defined) or "it has none"
        raise DataError(f"{where}: the assertions call no function of the program ({has})")
    return found[-1]
