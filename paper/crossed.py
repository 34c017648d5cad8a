"""Population times skew, the one place where the frozen law failed: laws refitted to everything, and frozen again.

    python paper/crossed.py freeze   fits/crossed.frozen.json, once, before any run of runs/crossed
    python paper/crossed.py          generated/crossed.json: what was predicted beside what was measured

The forms are those of :mod:`posthoc`, written when the first held-out runs had been seen, fitted to the study's runs
and to all of these. The first, in which a large population makes size worth less to skewed clients, fits them best and
is the one that is scored.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

import scalefed as sf
from scalefed.charts.theme import si
from scalefed.laws import Law

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "paper"))  # the scripts of the paper are no package
import freeze  # noqa: E402
import posthoc  # noqa: E402
import score  # noqa: E402
from writing import write_facts  # noqa: E402

SWEEP, FROZEN = ROOT / "runs/crossed/sweep.toml", ROOT / "fits/crossed.frozen.json"
FOLDERS = (*freeze.FOLDERS, "holdout", "isoflop")
ORDER = ("size: population to u skew^2", "steps: population to k + u skew^2", "as named")
GOAL = 0.02


def main(words: list[str]) -> None:
    """Freeze, or score."""
    if words == ["freeze"]:
        _freeze()
        return
    write_facts("crossed", facts())


# ---------------------------------------------------------------------- before
def _freeze() -> None:
    assert not FROZEN.exists(), f"{FROZEN} is there: a prediction is frozen once"
    runs = known_runs()
    counts = pd.concat([sf.load_counts(ROOT / "runs" / folder) for folder in FOLDERS], ignore_index=True)
    cells = freeze.held_out(sf.load_sweep(SWEEP)).assign(axis="clients")
    told, predicted = {}, {}
    for name in ORDER:
        fit = sf.fit(runs, Law.parse(posthoc.FORMS[name], bounds=posthoc.NAMED.bounds), fixed={"E": freeze.FLOOR},
                     huber_delta="auto", scale_weight=0.5, resamples=freeze.RESAMPLES)  # fmt: skip
        fit = fit.with_link(counts[counts["run_id"].isin(fit.run_ids)], covariates=freeze.COVARIATES)
        predicted[name] = freeze.predicted(fit, cells, freeze.COVARIATES)
        told[name] = {"formula": fit.law.formula, "huber_delta": fit.huber_delta, "params": fit.params,
                      "status": fit.status.name, "message": fit.message}  # fmt: skip
        print(name, fit.status.name, {k: v for k, v in fit.params.items() if k in "uk"}, flush=True)
    frozen = {
        "commit": freeze.commit(),
        "version": sf.__version__,
        "runs": {folder: int(number) for folder, number in runs["folder"].value_counts().sort_index().items()},
        "laws": told,
        "cells": [
            {**cell, "laws": {name: rows[i] for name, rows in predicted.items()},
             "nearest": freeze.nearest(runs, cells.iloc[i]), "line": freeze.line(runs, cells.iloc[i])}
            for i, cell in enumerate(cells.to_dict("records"))
        ],
    }  # fmt: skip
    FROZEN.write_text(json.dumps(frozen, indent=1, default=float) + "\n", encoding="utf-8")
    print(f"{FROZEN.relative_to(ROOT)}: {len(cells)} runs predicted from {len(runs)} runs")


def known_runs() -> pd.DataFrame:
    """Every run of the study's recipe, those that were held out first among them."""
    parts = [sf.load_runs(ROOT / "runs" / folder).assign(folder=folder) for folder in FOLDERS]
    runs = pd.concat(parts, ignore_index=True).drop_duplicates("run_id")
    for column, value in freeze.RECIPE.items():
        runs = runs[runs[column] == value]
    return runs.assign(own=runs["unique_tokens"] / runs["clients"]).reset_index(drop=True)


# ---------------------------------------------------------------------- after
def facts() -> dict[str, Any]:
    """What was predicted beside what was measured, as strings."""
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    runs = sf.load_runs(ROOT / "runs/crossed").set_index("run_id")
    table = score.cells(frozen, runs)
    inside = (table["loss"] >= table["low"]) & (table["loss"] <= table["high"])
    names = (*ORDER, "nearest", "line")
    errors = {name: table[name] / table["loss"] - 1 for name in names}
    rows = []
    for i, cell in table.iterrows():
        federation = f"{cell['clients_per_round']:.0f} of {cell['clients']:,.0f}"
        band = f"{cell[ORDER[0]]:.3f} ({cell['low']:.3f} to {cell['high']:.3f})"
        missed = [f"{errors[name][i]:+.1%}" for name in names]
        rows.append([si(cell["params"]), federation, f"{cell['concentration']:g}", f"{cell['seeds']:.0f}",
                     f"{cell['loss']:.3f}", band, *missed])  # fmt: skip
    return {
        "cells": rows,
        "median": [f"{errors[name].abs().median():.1%}" for name in names],
        "worst": f"{errors[ORDER[0]].abs().max():.1%}",
        "inside": f"{inside.mean():.0%}",
        "within_goal": str(int((errors[ORDER[0]].abs() <= GOAL).sum())),
        "runs": str(int(table["seeds"].sum())),
        "known": f"{sum(frozen['runs'].values())}",
    }


if __name__ == "__main__":
    main(sys.argv[1:])
