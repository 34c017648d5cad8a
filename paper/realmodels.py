"""What do real code models write, by the rule that makes their prompts?

    python paper/realmodels.py       generated/realmodels.json

HumanEval, greedy: pass@1 of each model under each rule (``runs/humaneval``), with its interval over problems like
these, and the likelihood of the canonical solutions under that rule. Then federated adapters of the smaller one
(``runs/lora``).
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from writing import write_facts

import scalefed as sf
from scalefed.charts.theme import si

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
    told = {"rows": [row[1:] for row in rows], **federated(sf.load_runs(ROOT / "runs/lora"))}
    write_facts("realmodels", told)


def federated(runs: pd.DataFrame) -> dict[str, Any]:
    """What adapters gain in federated hands: the pretrained model, then alike and natural clients by cohort."""
    longest = runs["tokens"].max()
    rows = []
    for run in runs.sort_values(["tokens", "partition", "clients_per_round"]).to_dict("records"):
        trained = run["tokens"] == longest
        words = f"{run['clients_per_round']:g} a round, {KINDS[run['partition']]}" if trained else "before"
        wire = f"{run['bytes_per_client'] / 1e6:.0f} MB" if trained else "-"
        rows.append([words, f"{run['loss']:.3f}", f"{run['gold_loss']:.3f}", f"{run['pass_at_1']:.1%}", wire])
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
    rule = next(rule for rule in RULES if rule in settings["prompt_rule"].replace("no chat template", ""))
    passes, verdicts = summary["pass_at_k"]["pass@1"], summary["verdicts"]
    tried = sum(verdicts.values())
    ends = f"{passes['low']:.1%} to {passes['high']:.1%}"
    return [str(RULES.index(rule)), f"{name}, {weights}", rule, f"{tried}", f"{passes['estimate']:.1%}", ends,
            f"{verdicts.get('syntax_error', 0) / tried:.0%}", f"{summary['gold_loss']:.3f}"]  # fmt: skip


if __name__ == "__main__":
    main()
