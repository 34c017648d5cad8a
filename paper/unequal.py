"""What do clients of unequal size, stragglers and absence cost, and does their average tell it?

    python paper/unequal.py          generated/unequal.json

The law knows a cohort by its mean: the clients that took part in a round and the steps that one of them did, on average
over the run, with the tokens that were trained in all. Where that average says what unequal clients reach, their
inequality itself costs nothing.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from writing import write_facts

import scalefed as sf
from scalefed.charts.theme import si

ROOT = Path(__file__).parent.parent
SETTING = ["params", "clients_per_round", "kind"]
ORDER = ("equal", "sizes by Dirichlet", "stragglers", "dropout", "Bernoulli")


def main() -> None:
    """Write, print."""
    told = facts(sf.load_runs(ROOT / "runs/unequal"), sf.load_fit(ROOT / "fits/study.json"))
    write_facts("unequal", told)


def facts(runs: pd.DataFrame, fit: sf.Fit) -> dict[str, Any]:
    """One row a kind, size and cohort: what was trained, what was reached, beside equal clients and beside the law."""
    steps = runs["tokens"] / (runs["rounds"] * runs["participants_mean"] * runs["batch_size"] * runs["sequence_length"])
    asked = runs.assign(kind=runs.apply(_kind, axis=1), clients_per_round=runs["participants_mean"], local_steps=steps)
    law = fit.predict(asked)["estimate"].to_numpy()
    table = asked.assign(
        law=law, clients_per_round=runs["clients_per_round"], share=runs["tokens"] / runs["tokens_asked"]
    )
    means = table.groupby(SETTING)[["loss", "law", "share", "participants_mean"]].mean()
    means["seeds"] = table.groupby(SETTING)["loss"].count()
    rows = []
    for size, cohort in sorted(means.index.droplevel("kind").unique()):
        equal = means.loc[(size, cohort, "equal")]
        for kind in ORDER:
            if (size, cohort, kind) in means.index:
                row = means.loc[(size, cohort, kind)]
                more, missed = row["loss"] / equal["loss"] - 1, row["law"] / row["loss"] - 1
                rows.append([f"{si(size)}, {cohort:g} a round", kind, f"{row['seeds']:g}", f"{row['share']:.0%}",
                             f"{row['participants_mean']:.1f}", f"{row['loss']:.3f}", f"{more:+.1%}",
                             f"{missed:+.1%}"])  # fmt: skip
    late = runs[runs["stragglers"] > 0].iloc[0]
    return {"rows": rows, "runs": str(len(runs)), "tokens": si(float(runs["tokens_asked"].max())),
            "share": f"{late['straggler_share']:g}", "clients": f"{runs['clients'].iloc[0]:g}",
            "concentration": f"{runs.loc[runs['partition'] == 'quantity', 'concentration'].iloc[0]:g}"}  # fmt: skip


def _kind(run: "pd.Series[Any]") -> str:
    if run["partition"] == "quantity":
        return "sizes by Dirichlet"
    if run["stragglers"] > 0:
        return "stragglers"
    if run["dropout"] > 0:
        return "dropout"
    return "Bernoulli" if run["sampling"] == "bernoulli" else "equal"


if __name__ == "__main__":
    main()
