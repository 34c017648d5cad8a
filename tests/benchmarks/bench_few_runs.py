"""Ten runs of a public family, the best size asked at ten times their largest compute: how far off is ``sf.fit``?

Run from the repository root, with one thread for linear algebra (fifteen draws take about ten CPU minutes):

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_few_runs.py [draws a family] [law=auto] [intervals=auto]

Families of the standard count and the validation loss (``../shared/data``). The ten runs are of the lowest two decades
of compute: any at random, five sizes about the lowest of each of two budgets at least a factor four apart, or ten of
those with 10 to 40 tokens a parameter, which say next to nothing of what other shares would give. The truth
is the measured isoFLOP minima, joined by straight lines in log compute. Printed by design: the median miss as a factor,
the share within 1.3 (a refusal is not), coverage of the 95% intervals, their median half-width (the root of upper over
lower end) and the share refused. Then the same of ten of ``runs/grid`` with their floor known, by ``law="auto"``.
"""

import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from bench_optima_coverage import DATA, KEYS, minimum

import scalefed as sf
from scalefed.errors import ScalefedError

WITHIN = 1.3
ROOT = Path(__file__).parents[2]
ASKED, COHORTS = 1.3e13, (1, 4, 16)  # FLOPs, clients a round


def families() -> list[tuple[str, pd.DataFrame]]:
    """Name and runs (params, tokens, loss, budget, compute) of the standard families."""
    runs = pd.read_parquet(DATA / "porian_isoflop.parquet").rename(columns={"flops_budget": "budget"})
    runs = runs[(runs["param_count_rule"] == "standard") & (runs["loss_kind"] == "val")]
    runs = runs[runs["tokens"] / runs["params"] > 1]
    runs = runs.assign(compute=6.0 * runs["params"] * runs["tokens"])
    return [(" ".join(key[:4]), group.reset_index(drop=True)) for key, group in runs.groupby(KEYS)]


def at_random(cheap: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Any ten."""
    return cheap.iloc[generator.choice(len(cheap), 10, replace=False)]


def slices(cheap: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Five sizes about the lowest of each of two budgets at least a factor four apart."""
    budgets = np.sort(cheap["budget"].unique())
    low = generator.choice(budgets[budgets <= budgets[-1] / 4])
    high = generator.choice(budgets[budgets >= 4 * low])
    parts = []
    for budget in (low, high):
        own = cheap[cheap["budget"] == budget].sort_values("params")
        lowest = int(np.argmin(own["loss"].to_numpy()))
        parts.append(own.iloc[max(0, min(lowest - 2, len(own) - 5)) :][:5])
    return pd.concat(parts)


def alike(cheap: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Any ten of those near 20 tokens a parameter; all where there are fewer."""
    near = cheap[(cheap["tokens"] / cheap["params"]).between(10, 40)]
    return at_random(near, generator) if len(near) > 10 else near


def draws(count: int, law: str, intervals: str) -> pd.DataFrame:
    """One row a design, family and draw."""
    rows = []
    for number, (name, runs) in enumerate(families()):
        found = {b: minimum(runs, b) for b in np.sort(runs["budget"].unique())}
        known = {b: m for b, m in found.items() if m is not None}
        where = np.log([runs.loc[runs["budget"] == b, "compute"].median() for b in known])
        sizes = np.array([m[0] for m in known.values()])
        cheap = runs[runs["budget"] <= runs["budget"].min() * 100]
        for design in (at_random, slices, alike):
            for draw in range(count):
                chosen = design(cheap, np.random.default_rng([number, draw]))
                if len(chosen) < 10:
                    continue
                asked = 10 * float(chosen["compute"].max())
                if not where[0] <= np.log(asked) <= where[-1]:
                    continue
                truth = float(np.exp(np.interp(np.log(asked), where, sizes)))
                row = {"design": design.__name__, "family": name, "draw": draw, "truth": truth}
                try:
                    fit = sf.fit(chosen[["params", "tokens", "loss"]], law, intervals=intervals)
                    answer = fit.optimal_size(compute=asked)
                    row |= {"size": answer.params, "low": answer.params_low, "high": answer.params_high}
                except ScalefedError as error:
                    row |= {"why": str(error)}
                rows.append(row)
    return pd.DataFrame(rows)


def federated(count: int, law: str) -> pd.DataFrame:
    """One row a question, draw and design: ten of runs/grid's cheap runs, floor known, the truth the fit of all."""
    runs, whole = sf.load_runs(ROOT / "runs/grid"), sf.load_fit(ROOT / "fits/grid.json")
    cheap = runs[(runs["tokens"] <= 4.2e6) & (runs["params"] <= 56e3) & runs["clients_per_round"].isin(COHORTS)]
    rows = []
    for design in (at_random, threes):
        for draw in range(count):
            chosen = design(cheap, np.random.default_rng([7, draw]))
            fit = sf.fit(chosen, law, fixed={"E": whole.params["E"]})
            for cohort in COHORTS:
                question = {"compute": ASKED, "clients": 16, "clients_per_round": cohort, "skew": 0.0}
                row = {"design": f"federated {design.__name__}", "truth": whole.optimal_size(**question).params}
                try:
                    answer = fit.optimal_size(**question)
                    row |= {"size": answer.params, "low": answer.params_low, "high": answer.params_high}
                except ScalefedError as error:
                    row |= {"why": str(error)}
                rows.append(row)
    return pd.DataFrame(rows)


def threes(cheap: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Three sizes of alike clients at each cohort, and one skewed run of several clients."""
    alone, parts = cheap[cheap["skew"] < 0.1], []
    for cohort in COHORTS:
        own = alone[alone["clients_per_round"] == cohort]
        sizes = generator.choice(own["params"].unique(), 3, replace=False)
        parts += [own[own["params"] == size].sample(1, random_state=int(generator.integers(1e9))) for size in sizes]
    skewed = cheap[(cheap["skew"] > 0.1) & (cheap["clients_per_round"] > 1)]
    return pd.concat([*parts, skewed.sample(1, random_state=int(generator.integers(1e9)))])


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """What is printed, one row a design."""
    lines = {}
    for design, part in rows.groupby("design"):
        told = part.dropna(subset=["size"])
        miss = np.exp(np.abs(np.log(told["size"] / told["truth"])))
        lines[design] = {
            "draws": len(part),
            "miss": miss.median(),
            f"<= {WITHIN}": (miss <= WITHIN).sum() / len(part),
            "covered": told["truth"].between(told["low"], told["high"]).mean(),
            "half-width": np.sqrt(told["high"] / told["low"]).median(),
            "refused": 1 - len(told) / len(part),
        }
    return pd.DataFrame.from_dict(lines, orient="index")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    words = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    count = next((int(word) for word in sys.argv[1:] if "=" not in word), 15)
    start = time.process_time()
    law = words.get("law", "auto")
    print(table(draws(count, law, words.get("intervals", "auto"))).round(3).to_string())
    if law == "auto":
        print(table(federated(count, law)).round(3).to_string())
    print(f"{time.process_time() - start:.0f} s")
