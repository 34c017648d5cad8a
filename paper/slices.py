"""Where do skewed clients have their best size, without a law, and does the law of the study agree?

    python paper/slices.py           generated/slices.json

A parabola in the log of size goes through the log of the loss above the floor at four sizes of one compute
(``runs/slices``), for each seed, whose clients were drawn anew, and for the mean of the seeds. The law was fitted to
these runs among others, so that this is no prediction.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from writing import write_facts

import scalefed as sf
from scalefed.charts.theme import power, si

ROOT = Path(__file__).parent.parent
SETTING = ["concentration", "clients_per_round"]


def main() -> None:
    """Write, print."""
    write_facts("slices", facts(sf.load_runs(ROOT / "runs/slices"), sf.load_fit(ROOT / "fits/study.json")))


def facts(runs: pd.DataFrame, fit: sf.Fit) -> dict[str, Any]:
    """One row a skew and cohort: the minimum of each seed and of their mean, the law's best size, and their ratio."""
    floor, compute = fit.params["E"], float(runs["compute"].median())
    rows, off, moved, held = [], [], [], []
    minima: dict[tuple[float, float], float] = {}
    for (concentration, cohort), own in runs.groupby(SETTING):
        means = own.groupby("params", as_index=False)["loss"].mean()
        alone = [minimum(of_seed, floor) for _, of_seed in own.groupby("seed")]
        found = minimum(means, floor)
        answer = fit.optimal_size(
            compute=compute, clients=float(own["clients"].iloc[0]), clients_per_round=float(cohort),
            skew=float(own["skew"].mean()), local_steps=float(own["local_steps"].iloc[0]),
            unique_tokens=float(own["unique_tokens"].max()),
        )  # fmt: skip
        minima[concentration, cohort] = found
        off.append(max(answer.params / found, found / answer.params))
        moved.append(max(alone) / min(alone))
        held.append(answer.params_low <= found <= answer.params_high)
        best = own.loc[own["params"] == means.loc[means["loss"].idxmin(), "params"], "loss"]
        ends = f"{si(answer.params)} ({si(answer.params_low)} to {si(answer.params_high)})"
        rows.append([f"Dirichlet {concentration:g}", f"{cohort:g}", f"{own['skew'].mean():.2f}", *map(si, alone),
                     si(found), ends, f"{best.mean():.3f}"])  # fmt: skip
    most, least = runs["clients_per_round"].max(), runs["clients_per_round"].min()
    falls = [1 - minima[c, most] / minima[c, least] for c in runs["concentration"].unique()]
    return {
        "rows": rows,
        "runs": str(len(runs)),
        "compute": power(compute),
        "sizes": str(runs["params"].nunique()),
        "clients": f"{runs['clients'].iloc[0]:g}",
        "falls": f"{min(falls):.0%} to {max(falls):.0%}",
        "moved": f"{max(moved):.2f}",
        "held": f"{sum(held)} of the {len(held)}",
        "worst": f"{max(off):.2f}",
    }


def minimum(runs: pd.DataFrame, floor: float) -> float:
    """The size at which the parabola is least; NaN where it opens downwards or that is outside the sizes."""
    x, y = np.log(runs["params"].to_numpy(float)), np.log(runs["loss"].to_numpy(float) - floor)
    bend, slope, _ = np.polyfit(x, y, 2)
    inside = bend > 0 and x.min() < -slope / (2 * bend) < x.max()
    return float(np.exp(-slope / (2 * bend))) if inside else float("nan")


if __name__ == "__main__":
    main()
