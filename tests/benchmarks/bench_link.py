"""How well is pass@k of larger models predicted, and how fast is the link fitted?

Run ``python tests/benchmarks/bench_link.py`` with the package on the path and ``OMP_NUM_THREADS=1``. With the Pythia
success counts in ``../shared/data`` it holds out the two largest sizes and compares the link with a sigmoid for each
k, PassUntil's form, a power law in k and binomial regression; then it predicts pass@1000 from 100 of the 10,000
samples. Then, on simulated counts, the coverage of the 90% interval and the CPU time and memory of fits
of 40 to 3,490 runs.
"""

import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

from scalefed.downstream.alternatives import compare_forms, rates
from scalefed.downstream.curve import failure
from scalefed.downstream.fit import fit_link

PYTHIA = Path(__file__).parents[2].parent / "shared" / "data" / "pythia_math_successes.csv"
KS = (1, 10, 100, 1000)


def pythia() -> None:
    """Held-out sizes, and a thousand attempts from a hundred."""
    table = pd.read_csv(PYTHIA, comment="#")
    counts = table.rename(columns={"size": "run_id", "problem": "task_id", "n": "samples", "c": "correct"})
    log_params = np.log(counts.groupby("run_id")["N"].first())
    found = compare_forms(counts, log_params, holdout=["6.9B", "12B"], k=KS, covariate="log params")
    print("6.9B and 12B predicted from 70M to 2.8B: relative error")
    wide = found.pivot(index="form", columns=["run_id", "k"], values="relative_error")
    print(wide.round(3).to_string())
    found["miss"] = np.abs(np.log(found["estimate"] / found["observed"]))
    print("mean |log error|:", found.groupby("form")["miss"].mean().round(3).to_dict())
    link = found[found["form"] == "link"]
    inside = ((link["low"] <= link["observed"]) & (link["observed"] <= link["high"])).sum()
    print(f"inside the link's 90% interval: {inside} of {len(link)}")
    truth = rates(counts, [1000])[1000]
    solved = counts["correct"].to_numpy()
    misses = []
    for seed in range(5):
        drawn = np.random.default_rng(seed).hypergeometric(solved, 10_000 - solved, 100)
        few = fit_link(counts.assign(samples=100, correct=drawn), log_params, covariate="log params", resamples=2)
        predicted = few.predict(log_params[truth.index].to_numpy(), 1000)["estimate"].to_numpy()
        misses.append(predicted / truth.to_numpy() - 1)
    means = pd.Series(np.mean(misses, axis=0), index=truth.index).loc[log_params.sort_values().index]
    print("pass@1000 from 100 samples a problem, relative error by size:", means.round(3).to_dict())


def simulated(seed: int, runs: int, problems: int) -> tuple[pd.DataFrame, pd.Series]:
    """Counts from the model itself, each run with its own draw of rates."""
    generator = np.random.default_rng(seed)
    losses = pd.Series(np.linspace(0.4, 1.3, runs), index=[f"r{i:02d}" for i in range(runs)])
    parts = []
    for name, loss in losses.items():
        mean, spread = 0.9 / (1 + np.exp(6 * (loss - 0.7))), np.exp(1 - 0.8 * loss)
        rate = generator.beta(mean * spread, (1 - mean) * spread, problems)
        table = {"run_id": name, "task_id": range(problems), "samples": 20, "correct": generator.binomial(20, rate)}
        parts.append(pd.DataFrame(table))
    return pd.concat(parts, ignore_index=True), losses


def coverage(draws: int = 100) -> None:
    """How often the interval of the curve holds the truth."""
    mean, spread = 0.9 / (1 + np.exp(6 * (0.6 - 0.7))), np.exp(1 - 0.8 * 0.6)
    truth = 1 - failure(np.array(mean * spread), np.array((1 - mean) * spread), np.array([1.0, 10.0]))
    inside = []
    for seed in range(draws):
        link = fit_link(*simulated(seed, 16, 120), resamples=100)
        table = link.predict(0.6, (1, 10), new_run=False)
        inside.append(((table["low"] <= truth) & (truth <= table["high"])).tolist())
    shares = np.mean(inside, axis=0)
    print(
        f"90% interval of the curve, {draws} draws: covers pass@1 {shares[0]:.2f}, pass@10 {shares[1]:.2f} of the time"
    )


def speed() -> None:
    """CPU time of a fit, and the memory of the process; goals for 3,490 runs are 60 s and 1 GB."""
    for runs in (40, 349, 3_490):
        counts, losses = simulated(0, runs, 164)
        start = time.process_time()
        fit_link(counts, losses)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{runs} runs x 164 problems, both shapes, 400 replicates: {time.process_time() - start:.2f} CPU s, "
              f"{memory:.0f} MB at most", flush=True)  # fmt: skip


if __name__ == "__main__":
    if PYTHIA.exists():
        pythia()
    else:
        print(f"no Pythia counts at ../shared/data/{PYTHIA.name}: that part is left out")
    coverage()
    speed()
