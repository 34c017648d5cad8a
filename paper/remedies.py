"""What are remedies worth at equal total compute?

    python paper/remedies.py        generated/remedies.json

A remedy's worth is the mean of log ratios of its loss to that of FedAvg with the same seed, size, cohort and client
optimizer (``runs/remedies``); whether it bends the law is a regression of these on the logs of size and cohort.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from writing import write_facts

import scalefed as sf
from scalefed.charts.theme import si

ROOT = Path(__file__).parent.parent
SIZES = (14_000, 55_000, 152_000)
COHORTS = (4, 16)
CENTRE = (55_000, 8)
"""Size and cohort at which a remedy's worth is told."""
PAIR = ["params_asked", "clients_per_round", "inner_optimizer", "seed"]
ENOUGH = 6
"""Runs of a remedy, for three coefficients."""
GENERATOR = 24_000
"""The size of generators whose cost is not taken out of the run's tokens."""
NAMES = {
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "feddyn": "FedDyn",
    "fedvarp": "FedVARP",
    "gc-fed": "GC-Fed, vectors left alone",
}


def main() -> None:
    """Write, print."""
    runs = sf.load_runs(ROOT / "runs/remedies")
    changes = with_changes(runs)
    mixed = int((changes["kernels_used"] != changes["kernels_used_plain"]).sum())
    first = runs.iloc[0]
    told = {
        "rows": remedies(changes),
        "bends": bends(changes),
        "cells": [f"{si(size)}, {cohort}" for size in SIZES for cohort in COHORTS],
        "runs": str(len(runs)),
        "seeds": str(runs["seed"].nunique()),
        "mixed": str(mixed) if mixed else "",
        "clients": f"{first['clients']:g}",
        "concentration": f"{first['concentration']:g}",
        "tokens": si(runs["tokens_asked"].max()),
    }
    write_facts("remedies", told)


def with_changes(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with a remedy, with ``arm``, FedAvg's kernels, the log ratio of the losses, and the ratio of compute."""
    plain = runs[runs["algorithm"] == "fedavg"].set_index(PAIR)
    base = plain[["loss", "compute_exact", "kernels_used"]].add_suffix("_plain")
    treated = runs[runs["algorithm"] != "fedavg"].join(base, on=PAIR).dropna(subset=["loss_plain"])
    return treated.assign(
        arm=treated.apply(_arm, axis=1),
        change=np.log(treated["loss"] / treated["loss_plain"]),
        cost=treated["compute_exact"] / treated["compute_exact_plain"],
    )


def remedies(changes: pd.DataFrame) -> list[list[str]]:
    """One row a remedy: its compute over FedAvg's, and the change of the loss in each cell."""
    rows = []
    for arm, own in _sorted(changes):
        cells = own.groupby(["params_asked", "clients_per_round"])["change"].mean()
        told = [f"{np.expm1(cells[cell]):+.1%}" if (cell := (size, cohort)) in cells.index else "-"
                for size in SIZES for cohort in COHORTS]  # fmt: skip
        rows.append([arm, f"{own['cost'].mean():.2f}", *told])
    return rows


def bends(changes: pd.DataFrame) -> list[list[str]]:
    """One row a remedy of six runs or more: change in the middle, and what size and cohort add, with intervals."""
    rows = []
    for arm, own in _sorted(changes):
        if len(own) < ENOUGH or own["params_asked"].nunique() < 2:
            continue
        size = np.log10(own["params_asked"] / CENTRE[0])
        cohort = np.log(own["clients_per_round"] / CENTRE[1]) / np.log(4)
        fit = sm.OLS(own["change"].to_numpy(), np.column_stack([np.ones(len(own)), size, cohort])).fit()
        ends = [(value, low, high) for value, (low, high) in zip(fit.params, fit.conf_int(), strict=True)]
        rows.append([arm, f"{len(own)}", *(_with_ends(*np.expm1(one)) for one in ends)])
    return rows


def _with_ends(value: float, low: float, high: float) -> str:
    return f"{value:+.1%} ({100 * low:+.1f} to {100 * high:+.1f})"


def _sorted(changes: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    groups = [(str(arm), own) for arm, own in changes.groupby("arm")]
    return sorted(groups, key=lambda pair: pair[1]["change"].mean())


def _arm(run: "pd.Series[Any]") -> str:
    if run["algorithm"] != "synthetic-sharing":
        return NAMES[run["algorithm"]] + (", SGD" if run["inner_optimizer"] == "sgd" else "")
    kept = "all" if run["synthetic_kept"] == 1 else f"likeliest {run['synthetic_kept']:.0%}"
    good = ", good generators" if run["generator_params"] >= GENERATOR else ""
    return f"SDA-FL, {kept}{good}"


if __name__ == "__main__":
    main()
