"""How long does a user wait for an answer? The public functions themselves, on this repository's own runs.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_questions.py [--repeats 3]

Loading packed runs, ``sf.fit`` on ``runs/grid`` with and without ``scale_weight``, optimal sizes with their intervals,
the link to pass@k, the page, the comparison of two fits, and judging where one sample in fifty never ends. Processor
seconds of this process and of what it started, the median of the repeats; a line as soon as a question is answered. The
machine may be busy.
"""

import argparse
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import scalefed as sf
from scalefed.data.problems import load_problems
from scalefed.evaluation.judge import judge

ROOT = Path(__file__).resolve().parents[2]
GRID = ROOT / "runs" / "grid"
BUDGETS = [1e12, 3e12, 1e13]
FITS = {"chinchilla": 1.0, "coupled": 3.0, "auto": 5.0}  # seconds that 240 runs and 4,000 replicates may take
MANY, MANY_SECONDS = "10,000 optimal sizes with intervals", 1.0
TRUTH = {"E": 1.7, "A": 480.0, "a": 0.35, "B": 2085.0, "b": 0.37}


def questions(folder: str) -> dict[str, Callable[[], object]]:
    """What is asked, by name."""
    runs, counts = sf.load_runs(GRID), sf.load_counts(GRID)
    stored, fits = sf.load_fit(ROOT / "fits" / "grid.json"), dict[str, sf.Fit]()
    grid = {"params": 10 ** np.linspace(7.5, 10, 20), "tokens": 10 ** np.linspace(9, 11, 12)}
    simulated = sf.simulate_runs("chinchilla", TRUTH, grid, noise=0.006)
    problems = load_problems("humaneval")
    samples = [(p.task_id, "    while True: pass\n" if i % 50 == 0 else p.canonical_solution)
               for i, p in enumerate(problems)]  # fmt: skip
    return {
        "load the runs": lambda: sf.load_runs(GRID),
        "load the rounds": lambda: sf.load_runs(GRID, rounds=True),
        "load the counts": lambda: sf.load_counts(GRID),
        MANY: lambda: stored.optimal_sizes(
            compute=np.geomspace(1e11, 6e13, 10_000), clients=16, clients_per_round=4, skew=0.0
        ),
        **{_simulated(law): lambda law=law: sf.fit(simulated, law, resamples=4_000) for law in FITS},
        **{f"fit {law}, {len(runs)} runs": lambda law=law: fits.update({law: sf.fit(runs, law)}) for law in FITS},
        f"fit coupled, {len(runs)} runs, scale_weight 0.5": lambda: sf.fit(runs, "coupled", scale_weight=0.5),
        f"{len(BUDGETS)} optimal sizes with intervals": lambda: stored.optimal_sizes(
            compute=BUDGETS, clients=16, clients_per_round=4, skew=0.0
        ),
        "link to pass@k": lambda: stored.with_link(counts, covariates=["tokens"]),
        "page": lambda: sf.write_report(stored, out=Path(folder) / "page.html"),
        "compare two fits": lambda: sf.compare(
            fits["chinchilla"], fits["coupled"], holdout=runs["tokens"] > runs["tokens"].median()
        ),
        f"judge {len(samples)} samples, {len(samples[::50])} of them endless, 3 s each": lambda: judge(
            problems, samples, workers=1, timeout=3.0
        ),
    }  # fmt: skip


def _simulated(law: str) -> str:
    return f"fit {law}, 240 simulated runs, 4,000 replicates"


def measured(repeats: int) -> Iterator[tuple[str, list[float], list[float], float]]:
    """Each question: its name, processor and wall seconds of every repeat, and the goal for the former or 0."""
    goals = {MANY: MANY_SECONDS, **{_simulated(law): goal for law, goal in FITS.items()}}
    with tempfile.TemporaryDirectory() as folder:
        for name, ask in questions(folder).items():
            spent = []
            for _ in range(repeats):
                begin, clock = _cpu(), time.monotonic()
                ask()
                spent.append((_cpu() - begin, time.monotonic() - clock))
            cpu, wall = map(list, zip(*spent, strict=True))
            yield name, cpu, wall, goals.get(name, 0.0)


def _cpu() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    warnings.simplefilter("ignore")
    print(f"{'question':<56}{'CPU s':>8}{'from':>8}{'to':>8}{'wall s':>8}   goal")
    for name, cpu, wall, goal in measured(parser.parse_args().repeats):
        middle = statistics.median(cpu)
        asked = f"<= {goal:g} {'met' if middle <= goal else 'MISSED'}" if goal else "-"
        print(f"{name:<56}{middle:>8.2f}{min(cpu):>8.2f}{max(cpu):>8.2f}{statistics.median(wall):>8.2f}   {asked}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
