"""What is in this file or folder of samples? Recognised by its structure, with one sentence that says what it was.

JSON lines are read line by line, each time anew, so that memory stays flat; a file that is one JSON value is read at
once, as it can only be.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from scalefed.data.jsonlines import json_value, raw_lines, whole_file
from scalefed.data.problem import Problem
from scalefed.errors import DataError
from scalefed.evaluation.extraction import code_of
from scalefed.evaluation.formats import Names, Sample, forms, samples_of, shape_of, unlike


@dataclass(frozen=True, slots=True)
class SampleFile:
    """Samples in a file or folder, in its order; iterating reads it anew each time, so memory stays flat.

    Attributes:
        recognised: what it was taken for, as one sentence.
        programs: the texts are whole programs.
    """

    recognised: str
    programs: bool
    rows: Callable[[], Iterator[tuple[int, Sample]]]

    def __iter__(self) -> Iterator[tuple[int, Sample]]:
        """Places in the file (lines, from 1) and samples."""
        return self.rows()


def open_samples(source: Path, problems: Sequence[Problem], *, extract: str = "") -> SampleFile:
    """Recognise the samples in a file or a folder.

    Args:
        source: a file (JSON lines, JSON, packed or not), or a folder with one folder of .py files a problem.
        problems: what the samples may refer to.
        extract: ``"code"`` to take the code out of Markdown fences; texts stay as they are if empty.

    Raises:
        DataError: nothing there, a form that is not known, or no sample in it that can be judged.
    """
    names = Names(problems)
    if source.is_dir():
        found = _folder(source, names)
    elif source.is_file():
        found = _file(source, names)
    else:
        raise DataError(f"no file of samples {str(source)!r}, nor a folder; {forms()}")
    if extract:
        found = _extracted(found, names.known)
    first = next((sample for _, sample in found if not sample.trouble), None)
    if first is None:
        why = next((f"; line {number}: {sample.trouble}" for number, sample in found), "")
        raise DataError(f"no sample in {source.name} can be judged (it was read as {found.recognised}){why}")
    note = "; each text is a whole program, judged without the prompt" if found.programs else ""
    aliases = "".join(f"; task {mine} is taken as {known}" for mine, known in names.first_alias.items())
    return replace(found, recognised=f"{source.name} was read as {found.recognised}{note}{aliases}")


# ---------------------------------------------------------------------- files
def _file(source: Path, names: Names) -> SampleFile:
    start = [line.lstrip() for _, line in islice(raw_lines(source), 2)]
    if not start:
        raise DataError(f"{source.name} holds no samples; {forms()}")
    if start[0][:1] == b"[" or (start[0][:1] == b"{" and _is_one_value(start)):
        return _whole(source, names)
    shape = shape_of((row for _, row in _objects(source) if isinstance(row, dict)), source.name)

    def rows() -> Iterator[tuple[int, Sample]]:
        return samples_of(_objects(source), shape, names)

    return SampleFile(shape.name, shape.programs, rows)


def _is_one_value(start: list[bytes]) -> bool:
    """Whether the first lines of a file begin one JSON object that is all of it, and no line of JSON lines."""
    if b'"task_id"' in start[0] or b'"doc"' in start[0]:
        return len(start) == 1 and b'"eval"' in start[0]
    try:
        return isinstance(json_value(start[0], ""), dict) and len(start) == 1
    except DataError:
        return True


def _objects(source: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line numbers and rows, or what is wrong with the line."""
    for number, line in raw_lines(source):
        try:
            row = json_value(line, "it")
        except DataError as error:
            yield number, str(error).removeprefix("it is ")
            continue
        yield number, row if isinstance(row, dict) else f"must be a JSON object, got {type(row).__name__}"


# ---------------------------------------------------------------------- one JSON value, and folders
def _whole(source: Path, names: Names) -> SampleFile:
    """A file that is one JSON value: read at once, as it can only be."""
    value = json_value(whole_file(source), source.name)
    if isinstance(value, dict) and isinstance(value.get("eval"), dict):
        return _solutions(value["eval"], source, names)
    if isinstance(value, dict):
        if not any(names.knows(task) for task in value):
            raise DataError(f"{source.name} is no file of samples: {unlike(value)}")
        pairs = [(task, text) for task, one in value.items() for text in (one if isinstance(one, list) else [one])]
        return _listed("texts by task_id", pairs, names)
    if all(isinstance(one, list) for one in value):
        if len(value) > len(names.known):
            raise DataError(
                f"{source.name} has texts for {len(value)} problems, the set has {len(names.known)}; "
                "name the set by --problems"
            )
        ids = list(names.known)
        pairs = [(ids[place], text) for place, texts in enumerate(value) for text in texts]
        return _listed("bigcode-evaluation-harness's generations (a list of texts a problem)", pairs, names)
    rows = [one if isinstance(one, dict) else f"must be a JSON object, got {type(one).__name__}" for one in value]
    shape = shape_of((row for row in rows if isinstance(row, dict)), source.name)
    return SampleFile(shape.name, shape.programs, lambda: samples_of(enumerate(rows, 1), shape, names))


def _solutions(tasks: Mapping[str, Any], source: Path, names: Names) -> SampleFile:
    """EvalPlus's and BigCodeBench's results: the solutions are judged anew."""
    rows = [row for one in tasks.values() if isinstance(one, list) for row in one if isinstance(row, dict)]
    pairs = [(row.get("task_id"), row["solution"]) for row in rows if "solution" in row]
    if not pairs:
        raise DataError(f"{source.name} holds EvalPlus's verdicts without the solutions; give the file of samples")
    return _listed("EvalPlus's or BigCodeBench's results; their solutions are judged anew", pairs, names)


def _listed(name: str, pairs: list[tuple[Any, Any]], names: Names) -> SampleFile:
    def rows() -> Iterator[tuple[int, Sample]]:
        return ((n, names.sample(task, text, {}, programs=True)) for n, (task, text) in enumerate(pairs, 1))

    return SampleFile(name, True, rows)


def _folder(source: Path, names: Names) -> SampleFile:
    """EvalPlus's and BigCodeBench's folders: HumanEval_0/0.py, HumanEval_0/1.py, ..."""
    places = {re.sub(r"[^A-Za-z0-9]", "_", name): name for name in names.known}
    paths = sorted(source.glob("*/*.py")) + sorted(source.glob("*.py"))
    if not paths:
        raise DataError(
            f"{source} holds neither a run (run.json), a model (config.json) nor samples (a folder of .py files a "
            "problem, such as HumanEval_0/0.py)"
        )

    def row(path: Path) -> Sample:
        own = path.stem if path.parent == source else path.parent.name
        kept = {"file": str(path.relative_to(source))}
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return Sample(places.get(own, own), "", kept, f"{path.name} cannot be read: {error}")
        return names.sample(places.get(own, own), text, kept, programs=True)

    what = "a folder of EvalPlus's or BigCodeBench's solutions (one folder of .py files a problem)"
    return SampleFile(what, True, lambda: ((n, row(path)) for n, path in enumerate(paths, 1)))


def _extracted(samples: SampleFile, known: Mapping[str, Problem]) -> SampleFile:
    def rows() -> Iterator[tuple[int, Sample]]:
        for number, sample in samples:
            if not sample.trouble:
                code = code_of(sample.text, known[sample.task_id], program=samples.programs)
                sample = replace(sample, text=code)
            yield number, sample

    return replace(samples, rows=rows, recognised=f"{samples.recognised}; code is taken out of Markdown fences")
