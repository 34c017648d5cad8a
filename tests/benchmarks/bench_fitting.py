"""How fast, how exact and how honest is the fitter? Figures beside scipy, in one process.

Run from the repository root, with one thread for linear algebra:

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_fitting.py [speed] [diloco] [recovery] [coverage] [identify]
        [decade] [aside] [coverage=1000]

Without a section all run (about twelve minutes of one core); ``coverage=1000`` draws 1,000 data sets a design in place
of 150. A comparison with the package simple-scaling-laws is in ``bench_fitting_peer.py``. ``speed``, ``decade``,
``aside`` and ``diloco`` need the public tables in ``../shared/data`` and say so where those are absent; speed then uses
simulated runs of the same size. Times are processor times of one core, medians over rounds in which all codes take
turns.
"""

import itertools
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.optimum import minimise
from scalefed.fitting.bootstrap import bootstrap
from scalefed.fitting.fit import fit
from scalefed.fitting.initialisation import global_fit
from scalefed.fitting.problem import Problem
from scalefed.fitting.solver import Solver
from scalefed.fitting.status import FitStatus
from scalefed.laws import LAWS
from scalefed.laws.simulate import simulate_runs

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TRUTH = {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37}
PUBLISHED = 0.0010182740178006


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


# -- speed -----------------------------------------------------------------------------------------------------------
def published_problem() -> Problem:
    path = DATA / "chinchilla_epoch245.csv"
    if path.exists():
        runs = pd.read_csv(path)
        runs = runs[runs["used_in_published_fit"]]
    else:
        print("  (../shared/data is not here: 240 simulated runs instead)")
        generator = np.random.default_rng(0)
        grid = pd.DataFrame(
            {"params": 10 ** generator.uniform(7, 10, 240), "tokens": 10 ** generator.uniform(9, 11, 240)}
        )
        runs = simulate_runs("chinchilla", TRUTH, grid, noise=0.006)
    columns = {c: runs[c].to_numpy(float) for c in ("params", "tokens")}
    return Problem(LAWS["chinchilla"], columns, np.log(runs["loss"].to_numpy()))


class Scipy:
    """The strongest way we know to ask scipy: least_squares with Huber loss, analytic Jacobian, logarithms."""

    def __init__(self, problem: Problem) -> None:
        self.n, self.d = (np.log(problem.columns[c]) for c in ("params", "tokens"))
        self.z = problem.z

    def parts(self, x: np.ndarray) -> tuple[np.ndarray, ...]:
        terms = np.stack([x[0] - x[1] * self.n, x[2] - x[3] * self.d, np.full_like(self.n, x[4])])
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        return np.log(total) + top, shares / total

    def solve(self, start: np.ndarray, rows: np.ndarray | None = None) -> float:
        keep = slice(None) if rows is None else rows

        def residual(x: np.ndarray) -> np.ndarray:
            return (self.parts(x)[0] - self.z)[keep]

        def jacobian(x: np.ndarray) -> np.ndarray:
            q = self.parts(x)[1]
            return np.stack([q[0], -q[0] * self.n, q[1], -q[1] * self.d, q[2]], axis=1)[keep]

        found = least_squares(residual, start, jac=jacobian, loss="huber", f_scale=1e-3, x_scale="jac",
                              xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=500)  # fmt: skip
        return float(found.cost)


def speed() -> None:
    """One global fit, 4,000 bootstraps, and scipy beside them."""
    problem = published_problem()
    best = global_fit(problem)
    print(f"objective {best.objective:.16g} (published optimum {PUBLISHED}, gap {best.objective - PUBLISHED:.1e}), "
          f"{best.agreeing:.0%} of {best.starts} starts agree, Newton decrement {best.decrement:.1e}")  # fmt: skip
    solver, generator, scipy = Solver(problem), np.random.default_rng(0), Scipy(problem)
    counts = generator.multinomial(problem.n, np.full(problem.n, 1 / problem.n), 4000).astype(float)
    epoch = np.array(list(itertools.product(np.arange(0, 30, 5.0), np.arange(0, 2.5, 0.5), np.arange(0, 30, 5.0),
                                            np.arange(0, 2.5, 0.5), np.arange(-1, 1.5, 0.5))))  # fmt: skip
    values = problem.to_values(best.theta[None])[0]
    warm = np.array([np.log(values[1]), values[2], np.log(values[3]), values[4], np.log(values[0])])
    ours, boots, scipy_boot, scipy_start = [], [], [], []
    for turn in range(5):
        ours.append(cpu(lambda: global_fit(Problem(problem.law, problem.columns, problem.z))))
        boots.append(cpu(lambda: solver.solve(np.repeat(best.theta[None], 4000, axis=0), counts)))
        rows = [np.repeat(np.arange(problem.n), counts[20 * turn + i].astype(int)) for i in range(10)]
        scipy_boot.append(cpu(lambda r=rows: [scipy.solve(warm, x) for x in r]) / len(rows) * 4000)
        some = epoch[generator.choice(len(epoch), 8, replace=False)]
        scipy_start.append(cpu(lambda s=some: [scipy.solve(x) for x in s]) / len(some) * len(epoch))
    fit_s, boot_s, other_s, start_s = (float(np.median(x)) for x in (ours, boots, scipy_boot, scipy_start))
    print(f"full global fit           {fit_s * 1e3:8.1f} ms")
    print(f"4,000 bootstraps          {boot_s:8.2f} s")
    print(f"  scipy least_squares     {other_s:8.2f} s (warm, analytic, extrapolated): ratio {other_s / boot_s:.0f}")
    print(f"scipy, {len(epoch)} Epoch-style starts {start_s:8.1f} s (extrapolated): ratio {start_s / fit_s:.0f}")
    check_replicates(problem, solver, best.theta, counts[:50])
    from_epoch(problem, solver, epoch, start_s, best.objective)


def check_replicates(problem: Problem, solver: Solver, theta: np.ndarray, counts: np.ndarray) -> None:
    """Are replicates at their own optimum? Each against the best of 12 starts."""
    warm = solver.solve(np.repeat(theta[None], len(counts), axis=0), counts, iterations=200)
    generator = np.random.default_rng(1)
    worst = 0.0
    for b, row in enumerate(counts):
        starts = theta + 0.2 * generator.standard_normal((12, problem.p))
        own = solver.solve(starts, np.repeat(row[None], 12, axis=0), iterations=200).objective.min()
        worst = max(worst, warm.objective[b] / own - 1)
    print(f"{len(counts)} replicates against the best of 12 own starts: worst gap {worst:.1e}")


def from_epoch(problem: Problem, solver: Solver, epoch: np.ndarray, scipy_s: float, optimum: float) -> None:
    """Our solver on the very starts that Epoch uses."""
    values = np.stack([np.exp(epoch[:, 4]), np.exp(epoch[:, 0]), epoch[:, 1], np.exp(epoch[:, 2]), epoch[:, 3]], axis=1)
    starts = problem.to_coordinates(values)
    start = time.process_time()
    found = solver.solve(starts, cold=True, iterations=100)
    ours = time.process_time() - start
    reached = np.mean(found.objective <= optimum * (1 + 1e-6))
    ratio = scipy_s / ours
    print(f"the same {len(epoch)} starts, batched {ours:.1f} s: ratio {ratio:.0f}; {reached:.0%} reach the optimum")


# -- coverage --------------------------------------------------------------------------------------------------------
FEDERATED = {"E": 0.35, "A": 6.0, "a": 0.34, "B": 200.0, "b": 0.42, "g": 0.5, "s": 1.2}


def coverage(data_sets: int = 150, resamples: int = 300) -> None:
    """Nominal 95% intervals of parameters, optimal size and its loss, where the law is true, n = 9 to 240."""
    generator = np.random.default_rng(11)
    one = ("chinchilla", TRUTH, Budget(compute=1e21), Setting())
    some = ("federated", FEDERATED, Budget(compute=1e13), Setting(clients_per_round=4, skew=0.3))
    designs = [(*one, side(n)) for n in (9, 16, 36)] + [(*one, scattered(n, generator)) for n in (100, 240)]
    designs += [(*some, mixed(seeds)) for seeds in (1, 4)]
    rows = []
    for delta, (law, truth, budget, setting, grid) in itertools.product((1e-3, np.inf), designs):
        start = time.process_time()
        hits, methods = cover(law, truth, budget, setting, grid, delta, 0.005, data_sets, resamples)
        rows.append(hits)
        words = " ".join(f"{k} {v:.3f}" for k, v in hits.items())
        print(f"{law} delta {delta:5g} n {len(grid):3d}: mean {np.mean(list(hits.values())):.3f}  {words}  "
              f"pairs {methods:.0%}  {time.process_time() - start:.0f} s", flush=True)  # fmt: skip
    means = pd.DataFrame(rows).mean()
    error = 1.96 * np.sqrt(0.95 * 0.05 / (data_sets * len(rows)))
    print("over all designs: " + " ".join(f"{k} {v:.3f}" for k, v in means.items()) + f"  (+- {error:.3f} by chance)")


def side(n: int) -> pd.DataFrame:
    """A square grid of sizes and budgets."""
    k = round(n**0.5)
    return crossed(params=np.geomspace(1e7, 1e9, k), tokens=np.geomspace(5e8, 5e10, k))


def scattered(n: int, generator: np.random.Generator) -> pd.DataFrame:
    """Sizes and budgets at random."""
    return pd.DataFrame({"params": 10 ** generator.uniform(7, 9.5, n), "tokens": 10 ** generator.uniform(8.7, 10.7, n)})


def mixed(seeds: int) -> pd.DataFrame:
    """36 federated settings, each run ``seeds`` times."""
    grid = crossed(params=[1e4, 5e4, 2e5], tokens=[1e6, 4e6, 16e6], clients_per_round=[1, 8], skew=[0.0, 0.5])
    return pd.concat([grid] * seeds, ignore_index=True)


def cover(
    name: str, truth: dict[str, float], budget: Budget, setting: Setting, grid: pd.DataFrame,
    delta: float, noise: float, data_sets: int, resamples: int,
) -> tuple[dict[str, float], float]:  # fmt: skip
    """Share of data sets whose intervals hold the truth; share of bootstraps that drew whole runs."""
    law = LAWS[name]
    truth = {parameter: truth[parameter] for parameter in law.free}
    columns = {c: grid[c].to_numpy(float) for c in law.columns}
    clean = np.log(law.predict(truth, columns))
    hits, pairs = [], 0
    generator = np.random.default_rng(5)
    for seed in range(data_sets):
        problem = Problem(law, columns, clean + noise * generator.standard_normal(len(clean)))
        best = global_fit(problem, delta=delta)
        found = bootstrap(problem, best, np.arange(problem.n), resamples=resamples, delta=delta, seed=seed)
        pairs += found.method == "pairs"
        values = np.vstack([list(truth.values()), problem.to_values(found.theta)])
        answer = minimise(law, dict(zip(truth, values.T, strict=True)), budget=budget, setting=setting)
        wanted, *drawn = np.column_stack([values, np.log(answer.params), np.log(answer.loss)])
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        hits.append((low <= wanted) & (wanted <= high))
    return dict(zip([*truth, "size", "loss"], np.mean(hits, axis=0), strict=True)), pairs / data_sets


# -- one decade out --------------------------------------------------------------------------------------------------
def public_sets() -> dict[str, pd.DataFrame]:
    """Public run logs with params, tokens and loss, one table a set."""
    sets: dict[str, pd.DataFrame] = {}
    names = ["params", "tokens", "loss"]
    runs = pd.read_csv(DATA / "chinchilla_epoch245.csv")
    sets["chinchilla"] = runs[runs["used_in_published_fit"]][names]
    over = pd.read_csv(DATA / "overtraining_mlfoundations.csv")
    for name, group in over.groupby("train_set"):
        sets[f"overtraining {name}"] = group.assign(loss=group["loss_c4_val"])[names]
    porian = pd.read_parquet(DATA / "porian_isoflop.parquet")
    porian = porian[porian["tokens"] / porian["params"] > 1]
    keys = ["dataset", "hparams", "warmup", "decay", "param_count_rule", "loss_kind"]
    for key, group in porian.groupby(keys):
        sets["porian " + " ".join(map(str, key))] = group[names]
    repeats = pd.read_csv(DATA / "datablations_contours.csv")
    repeats = repeats[repeats["loss"] < 7]
    sets["datablations to 1 epoch"] = repeats[repeats["epochs"] <= 1.01][names]
    sets["datablations to 4 epochs"] = repeats[repeats["epochs"] <= 4.01][names]
    return {name: table.astype(float).reset_index(drop=True) for name, table in sets.items()}


def judged(
    runs: pd.DataFrame, near: pd.Series, far: pd.Series, law: str, scale_weight: float
) -> tuple[float, float, float]:
    """Fit the near runs, predict the far ones: coverage of nominal 90% bands, their median width, the median error."""
    band = fit(runs[near], law, scale_weight=scale_weight, resamples=200).predict(runs[far])
    loss = runs.loc[far, "loss"]
    width = ((band["high"] - band["low"]) / band["estimate"]).median()
    inside = (band["low"] <= loss) & (loss <= band["high"])
    return float(inside.mean()), float(width), float((loss / band["estimate"] - 1).abs().median())


def report(label: str, rows: list[tuple[float, float, float]], start: float) -> None:
    covered, widths, errors = np.array(rows).T
    print(f"{label}: coverage {covered.mean():.3f} (least {covered.min():.2f}), median width "
          f"{np.median(widths):.1%}, error {np.median(errors):.2%} median {errors.mean():.2%} mean, "
          f"{len(rows)} sets, {time.process_time() - start:.0f} s", flush=True)  # fmt: skip


def decade() -> None:
    """Fit at a tenth of the largest compute or less, predict the rest: nominal 90% bands."""
    if not (DATA / "porian_isoflop.parquet").exists():
        print("  (../shared/data is not here: nothing to predict)")
        return
    for law, scale_weight in (
        ("chinchilla", 0.0),
        ("chinchilla", 0.5),
        ("coupled", 0.0),
        ("coupled", 0.5),
        ("coupled", 1.0),
    ):
        rows, start = [], time.process_time()
        for name, runs in public_sets().items():
            compute = runs["params"] * runs["tokens"]
            far = compute > compute.max() / 10
            rows.append(judged(runs, ~far, far, law, scale_weight))
            if (law, scale_weight) == ("coupled", 0.5):
                print("    {:52s} coverage {:.2f} width {:6.1%} error {:.2%}".format(name, *rows[-1]))
        report(f"{law:10s} scale_weight {scale_weight:3.1f}", rows, start)


def aside() -> None:
    """Hold out the half decade of largest params, or of most tokens, and predict those whose scale was seen."""
    if not (DATA / "porian_isoflop.parquet").exists():
        print("  (../shared/data is not here: nothing to predict)")
        return
    for column, (law, scale_weight) in itertools.product(("params", "tokens"), (("chinchilla", 0.0), ("coupled", 0.5))):
        rows, start = [], time.process_time()
        for runs in public_sets().values():
            compute = runs["params"] * runs["tokens"]
            near = runs[column] <= runs[column].max() / 10**0.5
            far = ~near & (compute <= compute[near].max())
            if near.sum() >= 12 and far.any():
                rows.append(judged(runs, near, far, law, scale_weight))
        report(f"most {column}, {law:10s} scale_weight {scale_weight:3.1f}", rows, start)


# -- what cannot be told ---------------------------------------------------------------------------------------------
def identify(simulations: int = 200) -> None:
    """Designs that cannot determine the law must be flagged; sound ones must not."""
    for label, make in (("undetermined", undetermined), ("sound", sound)):
        generator = np.random.default_rng(0)
        flagged = 0
        for i in range(simulations):
            law, grid = make(i, generator)
            truth = TRUTH if law == "chinchilla" else {**TRUTH, "g": 0.5, "s": 0.6}
            runs = simulate_runs(law, truth, grid, noise=10 ** generator.uniform(-3, -2), seed=i)
            flagged += fit(runs, law, resamples=100, backtest=False).status is FitStatus.NOT_IDENTIFIED
        print(f"{label} designs flagged: {flagged} of {simulations}", flush=True)


def crossed(**levels: object) -> pd.DataFrame:
    return pd.DataFrame(itertools.product(*levels.values()), columns=list(levels)).astype(float)  # type: ignore[call-overload]


def undetermined(i: int, generator: np.random.Generator) -> tuple[str, pd.DataFrame]:
    n, d = np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 3)
    if i % 5 == 0:
        n = np.geomspace(1e7, 10 ** generator.uniform(9, 10.5), generator.integers(8, 25))
        return "chinchilla", pd.DataFrame({"params": n, "tokens": 20 * n})
    if i % 5 == 1:
        return "chinchilla", crossed(params=[1e8, 1e9], tokens=np.geomspace(1e9, 1e11, generator.integers(2, 7)))
    if i % 5 == 2:
        return "chinchilla", crossed(params=n, tokens=d).sample(int(generator.integers(2, 5)), random_state=i)
    if i % 5 == 3:
        return "federated", crossed(params=n, tokens=d, clients_per_round=[generator.choice([1, 4, 16])], skew=[0, 0.5])
    grid = crossed(params=np.geomspace(1e7, 1e10, 8), clients_per_round=[1, 4, 16], skew=[0, 0.5])
    return "federated", grid.assign(tokens=20 * grid["params"])


def sound(i: int, generator: np.random.Generator) -> tuple[str, pd.DataFrame]:
    n, d = np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 3)
    if i % 5 == 0:
        return "chinchilla", crossed(params=np.geomspace(1e7, 1e9, 3), tokens=np.geomspace(5e8, 5e10, 3))
    if i % 5 == 1:
        return "chinchilla", pd.DataFrame(10 ** generator.uniform(8, 10, (60, 2)), columns=["params", "tokens"])
    if i % 5 == 2:
        return "federated", crossed(params=n, tokens=d, clients_per_round=[1, 4, 16], skew=[0, 0.5])
    if i % 5 == 3:
        return "federated", crossed(params=n, tokens=[1e9, 4e9, 1.6e10], clients_per_round=[1, 4], skew=[0, 0.3])
    n = np.repeat(np.geomspace(1e7, 1e9, 6), 3)
    return "chinchilla", pd.DataFrame({"params": n, "tokens": n * np.tile([5, 20, 80], 6)})


# -- DiLoCo ----------------------------------------------------------------------------------------------------------
def diloco() -> None:
    """Fit DiLoCo's published losses up to 2.4B and predict the 4B and 10B runs."""
    path = DATA / "diloco_eval_loss.csv"
    if not path.exists():
        print("  (../shared/data is not here)")
        return
    names = {"params": "N", "clients_per_round": "M", "loss": "eval_loss"}
    runs = pd.read_csv(path, comment="#")
    runs = runs[runs["algorithm"] == "diloco"]
    ahead = pd.read_csv(DATA / "diloco_extrapolation_4b_10b.csv", comment="#")
    ahead = ahead[ahead["algorithm"] == "diloco"].groupby(["N", "M"], as_index=False)["eval_loss"].min()
    for law, scale_weight in (("diloco", 0.0), ("diloco-offset", 0.0), ("diloco-offset", 0.5)):
        found = fit(runs, law, scale_weight=scale_weight, columns=names)
        band = found.predict(params=ahead["N"].to_numpy(), clients_per_round=ahead["M"].to_numpy())
        loss = ahead["eval_loss"].to_numpy()
        inside = ((band["low"] <= loss) & (loss <= band["high"])).mean()
        width = ((band["high"] - band["low"]) / band["estimate"]).mean()
        print(f"{law:14s} weight {scale_weight:3.1f}: mean error {np.mean(np.abs(loss / band['estimate'] - 1)):.2%}, "
              f"{inside:.0%} inside the 90% band, width {width:.1%}, "
              f"g = {found.params['g']:.4f}")  # fmt: skip


# -- every law -------------------------------------------------------------------------------------------------------
def recovery() -> None:
    """Noise-free runs of every named law: how far are the parameters from the truth?"""
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
    from law_truths import TRUTHS

    levels = {
        "params": [1e7, 4e7, 2e8, 1e9], "tokens": [5e8, 4e9, 3e10], "clients_per_round": [1, 4, 16], "skew": [0.0, 0.5],
        "local_steps": [10, 50], "unique_tokens": [2e8, 1e10], "rounds": [100.0, 1000.0],
    }  # fmt: skip
    for name, truth in TRUTHS.items():
        runs = simulate_runs(name, truth, {c: levels[c] for c in LAWS[name].columns})
        start = time.process_time()
        found = fit(runs, name, resamples=0, backtest=False)
        worst = max(abs(found.params[p] / v - 1) for p, v in truth.items())
        print(f"{name:24s} {len(runs):4d} runs: worst relative error {worst:.1e}, {time.process_time() - start:.2f} s")


SECTIONS = {"speed": speed, "coverage": coverage, "decade": decade, "aside": aside, "identify": identify,
            "diloco": diloco, "recovery": recovery}  # fmt: skip

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for section in sys.argv[1:] or SECTIONS:
        name, _, count = section.partition("=")
        print(f"== {name}: {(SECTIONS[name].__doc__ or '').splitlines()[0]}", flush=True)
        SECTIONS[name](*([int(count)] if count else []))
