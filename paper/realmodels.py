"""What do real code models write, by the rule that makes their prompts?

    python paper/realmodels.py       generated/realmodels.json

HumanEval, greedy: pass@1 of each model under each rule (``runs/humaneval``), with its interval over problems like
these, and the likelihood of the canonical solutions under that rule; several samples a problem where they were drawn.
Then federated adapters of both (``runs/lora``).
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from writing import write_facts

import scalefed as sf
from scalefed.charts.theme import si
from scalefed.passk import compare_models

ROOT = Path(__file__).parent.parent
MODELS = {
    "smollm2-135m-instruct": ("SmolLM2-135M-Instruct", "Q4_1"),
    "qwen2.5-coder-0.5b-instruct": ("Qwen2.5-Coder-0.5B-Instruct", "Q4_K_M"),
}
"""Names and the quantisation of the weights that were to be had."""
KINDS = {"iid": "alike", "natural": "whole packages each"}
RULES = ("as it is given", "without its final line break", "chat template")


def main() -> None:
    """Write, print."""
    rows = [row for name in MODELS for row in sorted(_rows(name))]
    runs = sf.load_runs(ROOT / "runs/lora")
    longer = runs[runs["samples"] > 1]
    told = {"rows": [row[1:] for row in rows], "sampled": sampled(longer), **federated(runs.drop(longer.index))}
    write_facts("realmodels", told | {"larger": changes(runs, list(MODELS)[1]), "longer": [
        {"tokens": si(float(run["tokens"])), "loss": f"{run['loss']:.3f}", "gold": f"{run['gold_loss']:.3f}"}
        for run in longer.to_dict("records")
    ]})  # fmt: skip


def sampled(adapters: pd.DataFrame) -> list[list[str]]:
    """Models and adapters with several samples a problem: pass@1 and pass@10, each over new problems and these ones."""
    rows = []
    for path in sorted(ROOT.glob("runs/humaneval/*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["samples"] == 1:
            continue
        samples = [summary["samples"]] * len(summary["correct"])
        words = [_short(summary["checkpoint"]), "", f"{summary['temperature']:g}", f"{samples[0]}"]
        rows.append(words + _both_intervals(samples, summary["correct"]))
    counts = sf.load_counts(ROOT / "runs/lora")
    for run in adapters.to_dict("records"):
        own = counts[counts["run_id"] == run["run_id"]]
        name = f"adapter, {si(float(run['tokens']))} tokens"
        words = [_short(run["checkpoint"]), name, f"{run['temperature']:g}", f"{run['samples']:g}"]
        rows.append(words + _both_intervals(own["samples"].tolist(), own["correct"].tolist()))
    return rows


def changes(runs: pd.DataFrame, checkpoint: str) -> dict[str, str]:
    """What training changed of greedy pass@1, in points with a 95% interval of paired problems, by kind of clients."""
    counts = sf.load_counts(ROOT / "runs/lora").set_index("run_id")
    own = runs[runs["checkpoint"] == checkpoint].sort_values("tokens")
    before, told = counts.loc[own["run_id"].iloc[0]], {}
    for run in own.iloc[1:].to_dict("records"):
        after = counts.loc[run["run_id"]]
        found = compare_models(before["samples"], before["correct"], after["samples"], after["correct"])
        low, high = (100 * end for end in (found.low, found.high))
        told[run["partition"]] = f"{100 * found.difference:+.1f} points ({low:+.1f} to {high:+.1f})"
    return told


def _both_intervals(samples: list[int], correct: list[int]) -> list[str]:
    """pass@1 and pass@10, each with its interval over problems like these and over these."""
    told, found = [], sf.estimate_pass_at_k(samples, correct, (1, 10)).to_dict()
    for one in (found[f"pass@{k}"] for k in (1, 10)):
        told += [f"{one['estimate']:.1%}", f"{one['low']:.1%} to {one['high']:.1%}",
                 f"{one['low_conditional']:.1%} to {one['high_conditional']:.1%}"]  # fmt: skip
    return told


def federated(runs: pd.DataFrame) -> dict[str, Any]:
    """What adapters gain in federated hands: each pretrained model, then alike and natural clients by cohort."""
    longest = runs["tokens"].max()
    rows = []
    for checkpoint in MODELS:
        own = runs[runs["checkpoint"] == checkpoint].sort_values(["tokens", "partition", "clients_per_round"])
        for run in own.to_dict("records"):
            trained = run["tokens"] == longest
            words = f"{run['clients_per_round']:g} a round, {KINDS[run['partition']]}" if trained else "before"
            wire = f"{run['bytes_per_client'] / 1e6:.0f} MB" if trained else "-"
            told = [f"{run['loss']:.3f}", f"{run['gold_loss']:.3f}", f"{run['pass_at_1']:.1%}", wire]
            rows.append([_short(checkpoint), words, *told])
    return {"federated": rows, "tokens": si(float(longest)), "clients": f"{runs['clients'].iloc[0]:g}",
            "rank": f"{runs['lora_rank'].iloc[0]:g}"}  # fmt: skip


def _rows(checkpoint: str) -> list[list[str]]:
    rows = []
    for path in sorted(ROOT.glob("runs/humaneval/*/settings.json")):
        settings = json.loads(path.read_text(encoding="utf-8"))
        summary = json.loads((path.parent / "summary.json").read_text(encoding="utf-8"))
        if settings["checkpoint"] == checkpoint and "gold_loss" in summary:
            rows.append(_row(settings, summary))
    return rows


def _row(settings: dict[str, Any], summary: dict[str, Any]) -> list[str]:
    name, weights = MODELS[settings["checkpoint"]]
    rule = _rule(settings)
    passes, verdicts = summary["pass_at_k"]["pass@1"], summary["verdicts"]
    tried = sum(verdicts.values())
    ends = f"{passes['low']:.1%} to {passes['high']:.1%}"
    return [str(RULES.index(rule)), f"{name}, {weights}", rule, f"{tried}", f"{passes['estimate']:.1%}", ends,
            f"{verdicts.get('syntax_error', 0) / tried:.0%}", f"{summary['gold_loss']:.3f}"]  # fmt: skip


def _short(checkpoint: str) -> str:
    return MODELS[checkpoint][0].split("-")[0]


def _rule(settings: dict[str, Any]) -> str:
    return next(rule for rule in RULES if rule in settings["prompt_rule"].replace("no chat template", ""))


if __name__ == "__main__":
    main()
