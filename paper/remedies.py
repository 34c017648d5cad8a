"""What are remedies worth at equal total compute, what do unequal clients cost, and is a cohort only a larger batch?

    python paper/remedies.py        the three tables

Facts for the paper, as strings, from ``runs/remedies``, ``runs/unequal`` and ``runs/controls``. A remedy's worth is the
mean of log ratios of its loss to that of FedAvg with the same seed, size, cohort and client optimizer; whether it bends
the law is a regression of these on the logs of size and cohort.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm

import scalefed as sf
from scalefed.charts.theme import si

ROOT = Path(__file__).parent.parent
SIZES = (14_000, 55_000, 152_000)
COHORTS = (4, 16)
CENTRE = (55_000, 8)
"""Size and cohort at which a remedy's worth is told."""
PAIR = ["params_asked", "clients_per_round", "inner_optimizer", "seed"]
FULL_TEXT = 4_000_000
GENERATOR = 24_000
"""The size of generators whose cost is not taken out of the run's tokens."""
NAMES = {
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "feddyn": "FedDyn",
    "fedvarp": "FedVARP",
    "gc-fed": "GC-Fed, vectors left alone",
}


def facts() -> dict[str, Any]:
    """Everything the paper says of remedies, unequal clients and batches, as strings."""
    return {"remedies": remedies(_runs("remedies")), "unequal": unequal(_runs("unequal")), "batches": batches()}


def remedies(runs: pd.DataFrame) -> list[list[str]]:
    """One row a remedy: its compute over FedAvg's, the change of the loss in each cell, its mean, and what bends it."""
    base = runs[runs["algorithm"] == "fedavg"].set_index(PAIR)[["loss", "compute_exact"]]
    treated = runs[runs["algorithm"] != "fedavg"].assign(arm=lambda table: table.apply(_arm, axis=1))
    treated = treated.join(base, on=PAIR, rsuffix="_plain").dropna(subset=["loss_plain"])
    treated["change"] = np.log(treated["loss"] / treated["loss_plain"])
    treated["cost"] = treated["compute_exact"] / treated["compute_exact_plain"]
    rows = []
    for arm, own in sorted(treated.groupby("arm"), key=lambda pair: pair[1]["change"].mean()):
        cells = own.groupby(["params_asked", "clients_per_round"])["change"].mean()
        told = [f"{np.expm1(cells[cell]):+.1%}" if (cell := (size, cohort)) in cells.index else "-"
                for size in SIZES for cohort in COHORTS]  # fmt: skip
        rows.append([str(arm), f"{own['cost'].mean():.2f}", *told, *_bend(own)])
    return rows


def _arm(run: "pd.Series[Any]") -> str:
    if run["algorithm"] != "synthetic-sharing":
        return NAMES[run["algorithm"]] + (", SGD" if run["inner_optimizer"] == "sgd" else "")
    kept = "all" if run["synthetic_kept"] == 1 else f"likeliest {run['synthetic_kept']:.0%}"
    good = ", good generators" if run["generator_params"] >= GENERATOR else ""
    return f"SDA-FL, {kept}{good}"


def _bend(own: pd.DataFrame) -> list[str]:
    """Change at the centre, and by how much ten times the size and four times the cohort shift it, with intervals."""
    if len(own) < 6:
        return ["-"] * 3
    size = np.log10(own["params_asked"] / CENTRE[0])
    cohort = np.log(own["clients_per_round"] / CENTRE[1]) / np.log(4)
    fit = sm.OLS(own["change"].to_numpy(), np.column_stack([np.ones(len(own)), size, cohort])).fit()
    return [f"{np.expm1(value):+.1%} ({100 * np.expm1(low):+.1f} to {100 * np.expm1(high):+.1f})"
            for value, (low, high) in zip(fit.params, fit.conf_int(), strict=True)]  # fmt: skip


def unequal(runs: pd.DataFrame) -> list[list[str]]:
    """One row a kind of client, size and cohort: tokens trained and loss, beside equal clients."""
    keys = ["params_asked", "clients_per_round"]
    runs = runs.assign(kind=runs.apply(_kind, axis=1))
    equal = runs[runs["kind"] == "equal"].groupby([*keys, "seed"])["loss"].mean()
    rows = []
    for (kind, size, cohort), own in runs.groupby(["kind", *keys], sort=False):
        if kind == "equal":
            continue
        pairs = own.join(equal, on=[*keys, "seed"], rsuffix="_equal")
        change = np.log(pairs["loss"] / pairs["loss_equal"]).mean()
        rows.append([str(kind), si(size), f"{cohort:.0f}", f"{own['participants_mean'].mean():.1f}", f"{len(own)}",
                     f"{(own['tokens'] / own['tokens_asked']).mean():.2f}", f"{own['loss'].mean():.3f}",
                     f"{np.expm1(change):+.1%}"])  # fmt: skip
    return rows


def _kind(run: "pd.Series[Any]") -> str:
    if run["partition"] == "quantity":
        return "unequal amounts of text"
    if run["stragglers"] > 0:
        return "stragglers"
    if run["dropout"] > 0:
        return "dropout"
    return "Bernoulli participation" if run["sampling"] == "bernoulli" else "equal"


def batches() -> list[list[str]]:
    """One row a size and cohort: its loss beside one client whose batch is as many times larger, at its best rate."""
    controls, steps = _runs("controls"), _runs("steps")
    rows = []
    for (size, batch), own in controls.groupby(["params_asked", "batch_size"]):
        best = own.loc[own["loss"].idxmin()]
        cohort = batch / 4
        same = (steps["params_asked"] == size) & (steps["clients_per_round"] == cohort)
        for local_steps, found in steps[same].groupby("local_steps"):
            rows.append([si(size), f"{cohort:.0f}", f"{local_steps:.0f}", f"{found['loss'].mean():.3f}",
                         f"{best['loss']:.3f}", f"{best['learning_rate_scale']:g}",
                         f"{found['loss'].mean() / best['loss'] - 1:+.0%}"])  # fmt: skip
    return rows


def _runs(part: str) -> pd.DataFrame:
    return sf.load_runs(ROOT / "runs" / part)


if __name__ == "__main__":
    for name, value in facts().items():
        print(name, *value, sep="\n  ")
