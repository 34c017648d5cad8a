"""Is the loss of the canonical solutions a better guide to pass@k than the loss of all text?

Run ``python tests/benchmarks/bench_gold_link.py`` with the package on the path and ``OMP_NUM_THREADS=1``. Runs that
recorded both are predicted in two ways: those of ``runs/holdout``, which were blind to the law, from all others, and
each other sweep from the rest. By either covariate, for pass@1 and pass@10 and for every form: median error in points
(percent of problems), worst, and how many lie inside the 90% intervals where a form has them.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import scalefed as sf
from scalefed.downstream.alternatives import compare_forms

RUNS = Path(__file__).parents[2] / "runs"
SWEEPS = ("steps", "population", "repeats", "slices", "controls", "holdout")
BLIND = "holdout"


def load() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs with both losses, and their counts."""
    tables = [sf.load_runs(RUNS / name).assign(sweep=name) for name in SWEEPS if (RUNS / name).exists()]
    runs = pd.concat(tables, ignore_index=True).dropna(subset=["loss", "gold_loss", "pass_at_1"]).set_index("run_id")
    counts = pd.concat([sf.load_counts(RUNS / name) for name in SWEEPS if (RUNS / name).exists()], ignore_index=True)
    return runs, counts[counts["run_id"].isin(runs.index)]


def predicted(runs: pd.DataFrame, counts: pd.DataFrame, held: pd.Index, seen: pd.Index) -> pd.DataFrame:
    """Every form by either covariate, for the held runs from those seen."""
    chosen = counts[counts["run_id"].isin(seen.union(held))]
    parts = [
        compare_forms(chosen, runs[name], holdout=list(held), k=(1, 10), covariate=name).assign(covariate=name)
        for name in ("loss", "gold_loss")
    ]
    return pd.concat(parts, ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Error in points and coverage by form, k and covariate."""
    points = 100 * (table["estimate"] - table["observed"]).abs()
    inside = (table["low"] <= table["observed"]) & (table["observed"] <= table["high"])
    with_interval = inside.astype(float).where(table["low"].notna())
    grouped = table.assign(points=points, inside=with_interval).groupby(["form", "k", "covariate"], sort=False)
    return grouped.agg(
        median_points=("points", "median"), worst_points=("points", "max"), covered=("inside", "mean")
    ).round(3)


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blind-only", action="store_true", help="leave out the sweeps in turn")
    options = parser.parse_args()
    runs, counts = load()
    print(f"{len(runs)} runs with both losses:", runs["sweep"].value_counts().to_dict())
    both = np.corrcoef(np.log(runs["loss"]), np.log(runs["gold_loss"]))[0, 1]
    print(f"log loss and log gold loss correlate {both:.3f}")
    blind = runs.index[runs["sweep"] == BLIND]
    others = runs.index.difference(blind)
    print(f"\n{len(blind)} runs of runs/{BLIND} from {len(others)} others")
    print(summary(predicted(runs, counts, blind, others)).unstack("covariate").to_string())
    if options.blind_only:
        return
    parts = []
    for sweep in sorted(set(runs["sweep"]) - {BLIND, "controls"}):
        held = runs.index[runs["sweep"] == sweep]
        parts.append(predicted(runs, counts, held, others.difference(held)))
    print(f"\neach sweep from the others ({sum(len(part) for part in parts) // 24} runs)")
    print(summary(pd.concat(parts, ignore_index=True)).unstack("covariate").to_string())


if __name__ == "__main__":
    main()
