"""Do the intervals of pass@k cover, and how wide are they?

Run ``python tests/benchmarks/bench_passk_intervals.py [exact] [decided] [simulated] [conditional] [--repeats 1000]``.

* exact: one sample a problem, so that coverage is a sum over binomial counts: the least and the largest over all rates
  (just beside every end counted in), and the mean width over rates, beside Clopper-Pearson and logit-t.
* simulated: twenty samples a problem and less, for populations from all problems alike to solved always or never.
* decided: 164 problems, twenty samples each, and only whether the interval holds the truth, so that there can be
  repeats enough to tell 0.93 and 0.98 from what is found: a table by rate and population, with the standard error.
* conditional: the interval for these problems, on fixed rates.
"""

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from scalefed.passk import beta_pass_at_k, estimate_pass_at_k, pass_at_k
from scalefed.passk.intervals import mean_interval
from scalefed.passk.population import holds
from scalefed.seeds import rng

Array = NDArray[np.float64]
RATES = np.exp(np.linspace(np.log(0.005), np.log(0.5), 2000))
SHOWN = (0.005, 0.01, 2 / 164, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5)


def ends_of(problems: int, method: str) -> tuple[Array, Array]:
    """(problems + 1,) lower and upper ends by the number of problems solved, one sample each."""
    c = np.arange(problems + 1)
    if method == "clopper-pearson":
        return (
            np.where(c == 0, 0, beta.ppf(0.025, np.maximum(c, 1), problems - c + 1)),
            np.where(c == problems, 1, beta.ppf(0.975, c + 1, np.maximum(problems - c, 1))),
        )
    found = [mean_interval((np.arange(problems) < one).astype(float), 0.95, method) for one in c]
    low, high = np.array(found).T
    return low, high


def covered(problems: int, low: Array, high: Array, rates: Array) -> Array:
    """The chance that the interval holds each rate."""
    chances = binom.pmf(np.arange(problems + 1), problems, rates[:, None])
    return np.asarray(np.sum(chances * ((low <= rates[:, None]) & (rates[:, None] <= high)), axis=1))


def exact() -> None:
    """One sample a problem."""
    for problems in (2, 3, 5, 10, 20, 40, 164):
        for method in ("gaffke", "clopper-pearson", "logit-t"):
            low, high = ends_of(problems, method)
            ends = np.concatenate([low, high])
            covariates = np.clip(
                np.concatenate([ends - 1e-7, ends + 1e-7, np.linspace(1e-4, 0.5, 2000)]), 1e-7, 1 - 1e-7
            )
            anywhere, within = covered(problems, low, high, covariates), covered(problems, low, high, RATES)
            chances = binom.pmf(np.arange(problems + 1), problems, RATES[:, None])
            width = float(np.mean(chances @ (high - low)))
            print(
                f"{problems:4} problems x 1 {method:16} least at any rate {anywhere.min():.3f};"
                f" 0.5% to 50%: {within.min():.3f} to {within.max():.3f}, mean {within.mean():.3f},"
                f" {np.mean((within < 0.93) | (within > 0.98)):.1%} of log rates outside 0.93 to 0.98;"
                f" mean width {width:.4f}",
                flush=True,
            )
        if problems == 164:
            for method in ("gaffke", "clopper-pearson", "logit-t"):
                shares = covered(problems, *ends_of(problems, method), np.array(SHOWN))
                print(f"  {method:16}", "  ".join(f"{p:.2%} {s:.3f}" for p, s in zip(SHOWN, shares, strict=True)))
    reachable()
    for solved in range(4):
        row = estimate_pass_at_k(1, [1] * solved + [0] * (164 - solved), 1)[1]
        print(f"{solved} of 164: {row.estimate:.4f} [{row.low:.4f}, {row.high:.4f}]")


def reachable() -> None:
    """Where no run of counts a..b at all has a chance in the band, at 164 problems."""
    sums = np.concatenate([np.zeros((len(RATES), 1)), binom.cdf(np.arange(165), 164, RATES[:, None])], axis=1)
    chances = sums[:, None, 1:] - sums[:, :-1, None]
    never = ~((chances >= 0.93) & (chances <= 0.98)).any(axis=(1, 2))
    print(f"  no interval can be in the band from {RATES[never].min():.2%} to {RATES[never].max():.2%}")


def populations(rate: float) -> dict[str, tuple[Callable[[np.random.Generator, int], Array], Callable[[int], float]]]:
    """Name -> (draw rates, true pass@k), all with this mean."""

    def spread(share: float, size: float) -> tuple[Callable[[np.random.Generator, int], Array], Callable[[int], float]]:
        mean = rate / share

        def draw(generator: np.random.Generator, count: int) -> Array:
            solvable = generator.random(count) < share
            return np.where(solvable, generator.beta(mean * size, (1 - mean) * size, count), 0.0)

        return draw, lambda k: share * float(beta_pass_at_k(mean, size, k))

    found = {
        "all alike": (lambda _, count: np.full(count, rate), lambda k: 1 - (1 - rate) ** k),
        "beta, size 5": spread(1.0, 5.0),
        "beta, size 1": spread(1.0, 1.0),
        "half never": spread(0.5, 2.3) if rate < 0.5 else None,
        "90% never": spread(0.1, 2.3) if rate < 0.1 else None,
        "all or none": (lambda g, count: (g.random(count) < rate).astype(float), lambda _: rate),
    }
    return {name: made for name, made in found.items() if made is not None}


def simulated(repeats: int) -> None:
    """Several samples a problem: coverage and mean width of the default, and of logit-t."""
    for problems, n in ((164, 20), (40, 10), (10, 5), (2, 20)):
        for rate in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
            for name, (rates, truth) in populations(rate).items():
                draw = rng(0, f"bench-passk-{problems}-{rate}-{name}")
                hits = {(m, k): np.zeros(2) for k in (1, 10) if k <= n for m in ("gaffke", "logit-t")}
                for _ in range(repeats):
                    correct = draw.binomial(n, rates(draw, problems))
                    for method, k in hits:
                        low, high = mean_interval(pass_at_k(n, correct, k), 0.95, method)
                        hits[method, k] += (low - 1e-12 <= truth(k) <= high + 1e-12, high - low)
                words = [f"pass@{k} {m} {v[0] / repeats:.3f} ({v[1] / repeats:.4f})" for (m, k), v in hits.items()]
                print(f"{problems:4} x {n:2}, {rate:5.1%} {name:12}: {'; '.join(words)}", flush=True)


def decided(repeats: int) -> None:
    """Coverage at 164 problems and twenty samples each, at pass@1 and pass@10, and what lies outside 0.93 to 0.98."""
    problems, n, outside, cells = 164, 20, [], 0
    for rate in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        for name, (rates, truth) in populations(rate).items():
            draw = rng(1, f"bench-passk-{problems}-{rate}-{name}")
            drawn = draw.binomial(n, np.stack([rates(draw, problems) for _ in range(repeats)]))
            different, times = np.unique(np.sort(drawn, axis=1), axis=0, return_counts=True)
            for k in (1, 10):
                held = np.array([holds(pass_at_k(n, correct, k), truth(k), 0.95) for correct in different])
                share = float(held @ times) / repeats
                error, cells = float(np.sqrt(share * (1 - share) / repeats)), cells + 1
                words = f"{rate:5.1%} {name:12} pass@{k:<2} ({truth(k):.4f}): {share:.4f} +- {error:.4f}"
                print(words, flush=True)
                if share < 0.93 - 2 * error or share > 0.98 + 2 * error:
                    outside.append(words)
    print(f"{repeats} repeats: {len(outside)} of {cells} outside 0.93 to 0.98 by more than two standard errors")
    print("\n".join(outside))


def conditional(repeats: int) -> None:
    """The interval for these problems, whose rates are held fixed."""
    for problems, n in ((164, 20), (164, 2), (40, 10), (10, 5), (2, 20)):
        for rate in (0.005, 0.02, 0.1, 0.3, 0.5):
            for name, (rates, _) in populations(rate).items():
                draw = rng(0, f"bench-passk-conditional-{problems}-{rate}-{name}")
                own = rates(draw, problems)
                ks = tuple(k for k in (1, 10) if k <= n)
                hits = {k: np.zeros(2) for k in ks}
                for _ in range(repeats):
                    for row in estimate_pass_at_k(n, draw.binomial(n, own), ks):
                        truth, ends = (
                            float(np.mean(1 - (1 - own) ** row.k)),
                            (row.low_conditional, row.high_conditional),
                        )
                        hits[row.k] += (ends[0] - 1e-12 <= truth <= ends[1] + 1e-12, ends[1] - ends[0])
                words = [f"pass@{k} {v[0] / repeats:.3f} ({v[1] / repeats:.4f})" for k, v in hits.items()]
                print(f"{problems:4} x {n:2}, {rate:5.1%} {name:12}: {'; '.join(words)}", flush=True)


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"exact": lambda _: exact(), "decided": decided, "simulated": simulated, "conditional": conditional}
    parser.add_argument("parts", nargs="*", default=list(parts), choices=[*parts, []])
    parser.add_argument("--repeats", type=int, default=1000)
    arguments = parser.parse_args()
    for part in arguments.parts:
        parts[part](arguments.repeats)


if __name__ == "__main__":
    main()
