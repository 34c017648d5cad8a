"""Do the runs that ``next_runs`` picks narrow the optimal size more than random or grid choice?

Run ``python tests/benchmarks/bench_design.py [draws]`` with the package on the path and ``OMP_NUM_THREADS=1`` (60
draws take about four CPU minutes). A pilot of 24 runs is drawn from a known federated law with 1% noise and fitted;
12 more runs of the same total compute are made by each rule; everything is refitted. Printed are the root mean square
error of log params at the best size, its median absolute value, and the median width of the 95% bootstrap interval.
"""

import sys
import time
import warnings

import numpy as np
import pandas as pd

from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.design import grid, next_runs
from scalefed.allocation.optimum import minimise, stack
from scalefed.errors import FitWarning
from scalefed.fitting.fit import Fit, fit
from scalefed.laws.simulate import simulate_runs

TRUTH = {"E": 0.35, "A": 6.0, "a": 0.34, "B": 200.0, "b": 0.42, "g": 0.5, "s": 1.2}
PILOT = {"params": [1e4, 5e4, 2e5], "tokens": [1e6, 4e6], "clients_per_round": [1, 8], "skew": [0.0, 0.5]}
COLUMNS = ["params", "tokens", "clients_per_round", "skew"]
AT, COMPUTE, COUNT, NOISE = 1e13, 2e13, 12, 0.01
BUDGET, SETTING = Budget(compute=AT), Setting(clients_per_round=4, skew=0.3)


def asked(found: Fit) -> tuple[float, float]:
    """Log best params, and the width of its bootstrap interval."""
    values = stack(found.law, found.params, {name: found.replicates[name].to_numpy() for name in found.replicates})
    sizes = np.log(minimise(found.law, values, budget=BUDGET, setting=SETTING).params)
    return float(sizes[0]), float(np.subtract(*np.quantile(sizes[1:], [0.975, 0.025])))


def by_chance(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """A random choice among the same candidates that fits the compute."""
    generator = np.random.default_rng(seed)
    while True:
        rows = table.sample(COUNT, random_state=generator)
        if rows["compute"].sum() <= COMPUTE:
            return rows


def by_grid() -> pd.DataFrame:
    """Sizes crossed with tokens and clients, tokens scaled to the compute: what people do by hand."""
    rows = [(n, d, m, s) for n in (1e4, 1e5, 8e5) for d in (1e6, 4e6) for m, s in ((1, 0.5), (8, 0.0))]
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["tokens"] *= COMPUTE / (6 * table["params"] * table["tokens"]).sum()
    return table


def main(draws: int) -> None:
    """Run the simulation and print the table."""
    warnings.simplefilter("ignore", FitWarning)
    truth = float(np.log(minimise("federated", TRUTH, budget=BUDGET, setting=SETTING).params))
    errors: dict[str, list[float]] = {name: [] for name in ("pilot only", "next_runs", "random", "grid")}
    widths: dict[str, list[float]] = {name: [] for name in errors}
    promised, seconds = [], []
    for seed in range(draws):
        runs = simulate_runs("federated", TRUTH, PILOT, noise=NOISE, seed=seed)
        first = fit(runs, "federated", resamples=100, seed=seed)
        table = grid(first, COMPUTE)
        table["compute"] = 6 * table["params"] * table["tokens"]
        start = time.process_time()
        chosen = next_runs(first, compute=COMPUTE, count=COUNT, at=AT, clients_per_round=4, skew=0.3)
        seconds.append(time.process_time() - start)
        promised.append(float(chosen["expected_width"].iloc[-1]))
        plans = {"pilot only": None, "next_runs": chosen, "random": by_chance(table, seed), "grid": by_grid()}
        for name, rows in plans.items():
            found = first
            if rows is not None:
                more = simulate_runs("federated", TRUTH, rows[COLUMNS], noise=NOISE, seed=10_000 + seed)
                both = pd.concat([runs, more], ignore_index=True)
                both["run_id"] = [f"run-{i}" for i in range(len(both))]
                found = fit(both, "federated", resamples=100, seed=seed)
            size, width = asked(found)
            errors[name].append(size - truth)
            widths[name].append(width)
    print(f"{draws} draws; {COUNT} runs of {COMPUTE:.0e} FLOPs together; best size at {AT:.0e} FLOPs")
    print("choice        rms error of log params   median |error|   median width of the 95% interval")
    for name, values in errors.items():
        rms, middle = float(np.sqrt(np.mean(np.square(values)))), float(np.median(np.abs(values)))
        print(f"{name:12s} {rms:19.4f} {middle:20.4f} {np.median(widths[name]):20.3f}")
    print(f"width promised by next_runs: {np.median(promised):.3f}; one call takes {np.median(seconds):.2f} CPU s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
