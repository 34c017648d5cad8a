"""Does the posterior of a few runs cover? ``python tests/benchmarks/bench_posterior.py [data sets] [law ...]``

Simulation-based calibration (Talts, Betancourt, Simpson, Vehtari and Gelman 2018, arXiv 1804.06788): parameters are
drawn from the beliefs, ten runs of ``first_runs`` are simulated with them, and the truth must lie anywhere among the
draws with equal probability. Printed for every term: how often central intervals of 50 and 95% hold the truth, and the
p-value of the ranks (Kolmogorov and Smirnov); ``optimum`` is the best size at ten times the largest run's compute.
"""

import sys
import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import kstest

from scalefed.beginning import first_runs
from scalefed.fitting.beliefs import beliefs
from scalefed.fitting.optimum_terms import optimum_terms
from scalefed.fitting.posterior import posterior
from scalefed.fitting.problem import Problem
from scalefed.laws import LAWS

NAMES = ("chinchilla", "coupled", "federated-capacity-steps")
FAMILIAR = float(np.log(3.0))  # about the loss at the optimum of the runs


def design(name: str) -> dict[str, np.ndarray]:
    """Ten runs for a law without clients, sixteen over three cohorts and four skews for one with them."""
    if name in ("chinchilla", "coupled"):
        table = first_runs(compute=1e20)
    else:
        table = first_runs(compute=1e20, count=16, clients_per_round=[1, 4, 16])
        table["skew"] = np.where(np.arange(len(table)) % 4 == 3, 0.6, 0.0)
    return {column: table[column].to_numpy(dtype=float) for column in LAWS[name].columns}


def ranks(name: str, sets: int, *, seed: int = 0, draws: int = 1000) -> Iterator[dict[str, float]]:
    """For each data set, the share of the draws below the truth, by term."""
    law, columns = LAWS[name], design(name)
    terms = optimum_terms(law, columns)
    held = beliefs(terms, FAMILIAR)
    generator = np.random.default_rng(seed)
    asked = np.log(10 * 6 * (columns["params"] * columns["tokens"]).max())
    roles = [f"{role} {i}" for i, role in enumerate((*terms.roles, "noise"))]
    made = 0
    while made < sets:
        truth = held.draw(generator, 1)
        values = terms.values(truth[:, :-1])
        if not all(_inside(law.bounds.get(name), value[0]) for name, value in values.items()):
            continue
        clean = np.log(law.predict({name: value[0] for name, value in values.items()}, columns))
        problem = Problem(law, columns, clean + np.exp(truth[0, -1]) * generator.standard_t(4, len(clean)))
        found = posterior(problem, np.arange(problem.n), draws=draws, seed=made, believed=held)
        table = dict(zip(roles, (found.phi < truth).mean(axis=0), strict=True))
        best = [terms.log_best_params(phi, asked) for phi in (found.phi, truth)]
        yield table | {"optimum": float((best[0] < best[1]).mean())}
        made += 1


def _inside(bounds: tuple[float | None, float | None] | None, value: float) -> bool:
    low, high = bounds or (None, None)
    return (low is None or value >= low) and (high is None or value <= high)


def main(sets: int = 200, *names: str) -> None:
    """Print one table a law."""
    for name in names or NAMES:
        started = time.perf_counter()
        table = pd.DataFrame(ranks(name, sets))
        rows = {
            term: (
                ((x > 0.25) & (x < 0.75)).mean(),
                ((x > 0.025) & (x < 0.975)).mean(),
                kstest(x, "uniform").pvalue,
            )
            for term, x in table.items()
        }
        print(f"{name}: {sets} data sets, {(time.perf_counter() - started) / sets:.2f} s each")
        print(pd.DataFrame.from_dict(rows, orient="index", columns=["50%", "95%", "p of ranks"]).round(3).to_string())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
