"""Does pass@100 follow from twenty samples? As measured, beside what the link and a beta say of it.

    scalefed evaluate runs/NAME/RUN --samples 200 --k 1,10,100      (a run whose weights are in the cache)
    python paper/pass100.py          generated/pass100.json

The runs that were sampled 200 times a problem besides the 20 of every run. From their loss the link of the study,
fitted to 20 samples a problem, tells pass@100; from a run's own 20 samples a beta distribution of success rates does.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from writing import write_facts

import scalefed as sf
from scalefed.charts.theme import si
from scalefed.errors import DataError
from scalefed.passk import fit_beta

ROOT = Path(__file__).parent.parent
SAMPLES = 200
EVALUATION = f"micro-n{SAMPLES}-s0"
ATTEMPTS = (1, 10, 100)


def main() -> None:
    """Write, print."""
    write_facts("pass100", facts(sf.load_fit(ROOT / "fits/study.json")))


def facts(fit: sf.Fit) -> dict[str, Any]:
    """One row a run, by falling loss: measured, and what is told of it; then the errors in points."""
    if fit.link is None:
        raise DataError("fits/study.json has no link to pass@k; scalefed fit fits/study.toml --out fits/study.json")
    rows, errors, sampled = [], [], sorted(_sampled(), key=lambda found: -found[0]["loss"])
    for run, few, many in sampled:
        measured = list(sf.estimate_pass_at_k(many["samples"], many["correct"], k=ATTEMPTS))
        told = fit.link.predict(run["loss"], ATTEMPTS, covariates=pd.DataFrame([run]))
        beta = fit_beta(few["samples"], few["correct"]).pass_at_k(100)
        last, hundred = told.iloc[-1], measured[-1]
        rows.append([*_words(run), f"{run['loss']:.3f}", *(f"{one.estimate:.1%}" for one in measured[:-1]),
                     _told(hundred.estimate, hundred.low_conditional, hundred.high_conditional),
                     _told(last["estimate"], last["low"], last["high"]), f"{float(beta):.0%}"])  # fmt: skip
        errors.append({"link": abs(last["estimate"] - hundred.estimate),
                       "beta": abs(float(beta) - hundred.estimate),
                       "inside": last["low"] <= hundred.estimate <= last["high"]})  # fmt: skip
    table, few_samples = pd.DataFrame(errors), str(max(few["samples"].max() for _, few, _ in sampled))
    return {"rows": rows, "runs": str(len(rows)), "samples": str(SAMPLES), "few": few_samples,
            "link": f"{100 * table['link'].median():.1f}", "beta": f"{100 * table['beta'].median():.1f}",
            "inside": f"{table['inside'].sum():.0f}"}  # fmt: skip


def _sampled() -> list[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]]:
    found = []
    for folder in sorted(path.parent for path in ROOT.glob("runs/*/runs.parquet")):
        try:
            many = sf.load_counts(folder, evaluation=EVALUATION)
        except DataError:
            continue  # none of these runs was sampled so often
        few, runs = sf.load_counts(folder), sf.load_runs(folder).set_index("run_id", drop=False)
        for run_id, counts in many.groupby("run_id"):
            found.append((runs.loc[run_id].to_dict(), few[few["run_id"] == run_id], counts))
    return found


def _words(run: dict[str, Any]) -> list[str]:
    skewed = "" if run["skew"] < 0.1 else f", Dirichlet {run['concentration']:g}"
    text = "" if run["epochs"] <= 1 else f", {run['epochs']:.0f} passes"
    return [si(run["params"]), si(run["tokens"]), f"{run['clients_per_round']:g} of {run['clients']:g}{skewed}{text}"]


def _told(estimate: float, low: float, high: float) -> str:
    return f"{estimate:.0%} ({100 * low:.0f} to {100 * high:.0f})"


if __name__ == "__main__":
    main()
