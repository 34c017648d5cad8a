"""Which terms does the law of the grid need, and do laws beat what the last runs say by themselves?

    python paper/ablations.py        generated/ablations.json

Each term is taken out and the rest fitted anew to all shorter runs, for three held-out budgets, beside the loss of the
same setting at half the budget and a line through the two longest shorter runs. Then pass@k of the largest budget, from
the predicted loss, the measured loss, the loss alone, and from the same setting at half the budget.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from writing import write_facts

import scalefed as sf
from scalefed.charts.theme import si
from scalefed.downstream.alternatives import rates
from scalefed.errors import FitWarning
from scalefed.laws import Law

ROOT = Path(__file__).parent.parent
BUDGETS = (32e6, 64e6, 128e6)
SETTING = ["params", "clients_per_round", "concentration"]
ATTEMPTS = (1, 10)
STEPS, DATA = "(tokens/clients_per_round)^d", "B/tokens^b"
SKEW = dict.fromkeys("srht", 0.0)
TAKEN: tuple[tuple[str, Mapping[str, str], Mapping[str, float]], ...] = (
    ("nothing", {}, {}),
    ("the data term", {f" + {DATA}": ""}, {}),
    ("the steps term", {f" + G*exp(t*skew)/{STEPS}": ""}, {}),
    ("the cohort: tokens pooled", {STEPS: "tokens^d"}, {}),
    ("all but the cohort's average", {DATA: "B/(tokens/clients_per_round)^b"}, {}),
    ("the coupling", {}, {"c": 1.0}),
    ("skew", {}, SKEW),
)
"""What is taken out: the name, what is replaced in the formula, and which parameters are held."""


def main() -> None:
    """Fit, write, print."""
    runs, fit = sf.load_runs(ROOT / "runs/grid"), sf.load_fit(ROOT / "fits/grid.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        told = {
            "budgets": [si(budget) for budget in BUDGETS],
            "terms": terms(runs, fit),
            "passes": passes(runs, fit),
            "samples": f"{runs['samples'].iloc[0]:g}",
            "largest": si(BUDGETS[-1]),
        }
    write_facts("ablations", told)


# ---------------------------------------------------------------------- terms
def terms(runs: pd.DataFrame, fit: sf.Fit) -> list[list[str]]:
    """Median error of the held-out means, by what is taken out and by budget; last, what needs no law."""
    rows = []
    for words, replaced, held in TAKEN:
        formula = fit.law.formula
        for old, new in replaced.items():
            assert old in formula, old  # else nothing would be taken out
            formula = formula.replace(old, new)
        rows.append([words, *(_told(_law_errors(runs, fit, formula, held, budget)) for budget in BUDGETS)])
    rows.append(["(the loss at half the budget)", *(_told(_persistent(runs, budget, 0)) for budget in BUDGETS)])
    rows.append(["(a line through two budgets)", *(_told(_persistent(runs, budget, 1)) for budget in BUDGETS)])
    return rows


def _law_errors(runs: pd.DataFrame, fit: sf.Fit, formula: str, held: Mapping[str, float], budget: float) -> Any:
    law = Law.parse(formula)
    law = law.with_(bounds={name: ends for name, ends in fit.law.bounds.items() if name in law.parameters})
    fixed = {**fit.law.fixed, **held}
    known = runs[runs["tokens_asked"] < budget]
    other = sf.fit(known, law, fixed=fixed, scale_weight=1.0, huber_delta=fit.huber_delta, resamples=0, backtest=False)
    means = _means(runs, budget)
    return other.predict(means)["estimate"].to_numpy() / means["loss"].to_numpy() - 1


def _means(runs: pd.DataFrame, budget: float) -> pd.DataFrame:
    largest = runs[runs["tokens_asked"] == budget]
    return largest.groupby(SETTING, as_index=False)[["loss", "tokens", "skew"]].mean()


def _persistent(runs: pd.DataFrame, budget: float, order: int) -> Any:
    """Errors of the loss at half the budget (order 0), or of a line in logs through a half and a quarter (1)."""
    losses = runs.groupby([*SETTING, "tokens_asked"])["loss"].mean().unstack("tokens_asked")
    half, quarter = losses[budget / 2], losses[budget / 4]
    return (half * (half / quarter) ** order / losses[budget] - 1).dropna().to_numpy()


# ---------------------------------------------------------------------- programs
def passes(runs: pd.DataFrame, fit: sf.Fit) -> list[list[str]]:
    """Median error in points of pass@k of the largest budget's settings, by what it is predicted from."""
    budget = BUDGETS[-1]
    counts = sf.load_counts(ROOT / "runs/grid")
    covariates = fit.link.curve.covariates.names if fit.link and fit.link.curve.covariates else ()
    known, held = runs[runs["tokens_asked"] < budget], runs[runs["tokens_asked"] == budget]
    other = sf.fit(known, fit.law, fixed=fit.law.fixed, scale_weight=1.0, huber_delta=fit.huber_delta, resamples=0,
                   backtest=False)  # fmt: skip
    own = counts[counts["run_id"].isin(known["run_id"])]
    full, plain = other.with_link(own, covariates=covariates).link, other.with_link(own).link
    assert full is not None and plain is not None
    predicted = other.predict(held)["estimate"].to_numpy()
    measured = rates(counts, ATTEMPTS)  # a row a run, a column each k
    ways = {
        "predicted loss and what else the link takes": full.predict(predicted, ATTEMPTS, covariates=held),
        "measured loss and what else the link takes": full.predict(held["loss"], ATTEMPTS, covariates=held),
        "measured loss alone": plain.predict(held["loss"], ATTEMPTS),
    }
    truth = measured.loc[list(held["run_id"])].set_axis(held.index)
    groups = [held[name] for name in SETTING]
    means = truth.groupby(groups).mean()
    rows = []
    for words, table in ways.items():
        wide = table["estimate"].to_numpy().reshape(len(held), len(ATTEMPTS))
        guess = pd.DataFrame(wide, index=held.index, columns=list(ATTEMPTS)).groupby(groups).mean()
        rows.append([words, *_points(guess - means)])
    half = runs[runs["tokens_asked"] == budget / 2]
    before = measured.loc[list(half["run_id"])].set_axis(half.index).groupby([half[name] for name in SETTING]).mean()
    rows.append(["the same setting at half the budget", *_points((before - means).dropna())])
    spread = np.sqrt((truth.groupby(groups).std(ddof=1) ** 2).mean())
    rows.append(["(one seed and the next: standard deviation)", *(f"{100 * spread[k]:.1f}" for k in ATTEMPTS)])
    return rows


def _points(errors: pd.DataFrame) -> Sequence[str]:
    return [f"{100 * errors[k].abs().median():.1f}" for k in ATTEMPTS]


def _told(errors: Any) -> str:
    return f"{np.median(np.abs(errors)):.1%}"


if __name__ == "__main__":
    main()
