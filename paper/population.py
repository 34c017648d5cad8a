"""What does a larger population behind the same cohort cost, and is it the price of moments that have grown old?

    python paper/population.py       generated/population.json

Runs of one size and length whose text no client repeats, so that only the number of clients differs. Clients keep
Adam's moments from visit to visit, or start them anew: where many clients are seldom drawn, kept moments are old ones.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from writing import write_facts

import scalefed as sf
from scalefed.charts.theme import si

ROOT = Path(__file__).parent.parent
STATES = {"keep": "kept", "reset": "anew"}


def main() -> None:
    """Write, print."""
    write_facts("population", facts(sf.load_runs(ROOT / "runs/population"), sf.load_fit(ROOT / "fits/study.json")))


def facts(runs: pd.DataFrame, fit: sf.Fit) -> dict[str, Any]:
    """One row a cohort, skew and state of the moments: the mean loss by population, its rise, and the law's."""
    kept = runs["inner_state"] == "keep"  # the law is of such runs
    table = runs.assign(law=pd.Series(fit.predict(runs[kept])["estimate"].to_numpy(), index=runs.index[kept]))
    counts = sorted(runs["clients"].unique())
    rows = []
    for (state, cohort, skew), alike in table.groupby(["inner_state", "clients_per_round", 1 / table["concentration"]]):
        means = alike.groupby("clients")[["loss", "law"]].mean()
        told = [f"{means['loss'][k]:.3f}" if k in means.index else "-" for k in counts]
        text = f"Dirichlet {1 / skew:g}" if skew else "iid"
        rows.append([f"{cohort:g} a round, {text}", STATES[state], f"{alike.groupby('clients')['loss'].count().min()}",
                     *told, *(_rise(means[column]) for column in ("loss", "law")), _spread(alike)])  # fmt: skip
    return {"heads": ["", "moments", "seeds", *(f"{k:,} clients" for k in counts), "rise", "law", "seeds differ"],
            "rows": rows, "runs": str(len(runs)), "params": si(float(runs["params"].iloc[0])),
            "tokens": si(float(runs["tokens"].max()))}  # fmt: skip


def _rise(means: "pd.Series[float]") -> str:
    """From the smallest population to the largest; a dash where the law has nothing to say."""
    return "-" if means.isna().any() else f"{means.iloc[-1] / means.iloc[0] - 1:+.1%}"


def _spread(alike: pd.DataFrame) -> str:
    """One seed and the next: standard deviation within settings, relative."""
    errors = alike["loss"] / alike.groupby("clients")["loss"].transform("mean") - 1
    free = len(alike) - alike["clients"].nunique()
    return f"{(errors.pow(2).sum() / free) ** 0.5:.1%}"


if __name__ == "__main__":
    main()
