"""Intervals: replicates, coverage where the law is true, profiles, regions, and bands calibrated by back-testing."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from law_truths import TRUTHS

from scalefed.allocation.region import region
from scalefed.errors import ConfigError, FitError
from scalefed.fitting.alternative import Alternative, disagreement, rival_of
from scalefed.fitting.backtest import BackTest, distance, model_error, scale_columns
from scalefed.fitting.bootstrap import bootstrap, local_noise, noise_scale, robust_covariance
from scalefed.fitting.fit import Fit, fit
from scalefed.fitting.heteroscedasticity import unevenness
from scalefed.fitting.initialisation import global_fit
from scalefed.fitting.problem import Problem
from scalefed.fitting.profile import profile
from scalefed.fitting.solver import Solver
from scalefed.laws import LAWS, Law
from scalefed.laws.simulate import simulate_runs
from scalefed.seeds import rng

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TRUTH = TRUTHS["chinchilla"]


def problem_on(params: object, tokens: object, noise: float, seed: int, law: str = "chinchilla") -> Problem:
    grid = pd.DataFrame(itertools.product(params, tokens), columns=["params", "tokens"])  # type: ignore[call-overload]
    runs = simulate_runs(law, TRUTHS[law], grid, noise=noise, seed=seed)
    return Problem(
        LAWS[law], {c: runs[c].to_numpy(float) for c in ("params", "tokens")}, np.log(runs["loss"].to_numpy())
    )


GRID = (np.geomspace(1e7, 1e9, 6), np.geomspace(5e8, 5e10, 6))


# -- replicates ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["exchange", "pairs"])
def test_replicates_spread_like_repeated_experiments(method: str) -> None:
    estimates = []
    for seed in range(60):
        problem = problem_on(*GRID, noise=0.005, seed=seed)
        estimates.append(problem.to_values(global_fit(problem, delta=np.inf).theta[None])[0])
    problem = problem_on(*GRID, noise=0.005, seed=0)
    best = global_fit(problem, delta=np.inf)
    found = bootstrap(problem, best, np.arange(36), resamples=400, delta=np.inf, method=method)
    ratio = problem.to_values(found.theta).std(axis=0) / np.std(estimates, axis=0)
    assert found.converged.all() and found.method == method
    assert ((0.5 < ratio) & (ratio < 1.9)).all(), ratio


def test_replicates_of_many_runs_tend_to_the_robust_covariance() -> None:
    generator = np.random.default_rng(0)
    columns = {"params": 10 ** generator.uniform(7, 9, 800), "tokens": 10 ** generator.uniform(9, 11, 800)}
    log = np.log(LAWS["chinchilla"].predict(TRUTH, columns)) + 0.01 * generator.standard_normal(800)
    problem = Problem(LAWS["chinchilla"], columns, log)
    best = global_fit(problem, delta=np.inf)
    found = bootstrap(problem, best, np.arange(800), resamples=600, delta=np.inf, method="pairs")
    huber_delta = robust_covariance(Solver(problem, delta=np.inf), best.theta, np.arange(800))
    assert found.theta.std(axis=0) == pytest.approx(np.sqrt(np.diag(huber_delta)), rel=0.15)


def test_the_robust_covariance_is_that_of_statsmodels() -> None:
    """Without a floor and with one term the law is a linear regression in logarithms."""
    generator = np.random.default_rng(1)
    params = 10 ** generator.uniform(6, 9, 60)
    clusters = np.repeat(np.arange(20), 3)
    log = 2.0 - 0.1 * np.log(params) + 0.02 * generator.standard_normal(20)[clusters]
    log += 0.01 * generator.standard_normal(60)
    problem = Problem(Law.parse("A/params^a"), {"params": params}, log)
    best = global_fit(problem, delta=np.inf)
    design = np.column_stack([np.ones(60), -(np.log(params) - np.log(params).mean())])
    reference = sm.OLS(log, design).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    assert best.theta == pytest.approx(reference.params, rel=1e-8)
    ours = robust_covariance(Solver(problem, delta=np.inf), best.theta, clusters)
    assert ours == pytest.approx(reference.cov_params(), rel=1e-6)


def test_every_replicate_is_at_its_optimum_even_where_the_runs_say_little() -> None:
    """Noise far above the Huber zone and a loose floor: flat valleys with kinks; each against the best of 12 starts."""
    generator = np.random.default_rng(4)
    columns = {"params": 10 ** generator.uniform(3.5, 5.5, 40), "tokens": 10 ** generator.uniform(6.3, 6.9, 40)}
    truth = {"E": 0.2, "A": 12.0, "a": 0.32, "B": 3000.0, "b": 0.6}
    log = np.log(LAWS["chinchilla"].predict(truth, columns)) + 0.07 * generator.standard_normal(40)
    problem = Problem(LAWS["chinchilla"], columns, log)
    best = global_fit(problem)
    found = bootstrap(problem, best, np.arange(40), resamples=40, delta=1e-3, method="pairs")
    weights = rng(0, "bootstrap").multinomial(40, np.full(40, 1 / 40), 40).astype(float)
    solver = Solver(problem)
    reached = solver.loss(solver.residuals(found.theta)[0], weights)
    one = solver.solve(np.repeat(best.theta[None], 40, axis=0), weights, iterations=200).objective
    other = np.full(40, np.inf)
    for _ in range(12):
        starts = best.theta + 0.2 * generator.standard_normal((40, problem.p))
        other = np.minimum(other, solver.solve(starts, weights, iterations=200).objective)
    assert (one > other * (1 + 1e-9)).any(), "too easy: one start is enough"
    assert (reached <= other * (1 + 1e-9)).all()
    assert found.converged.all()


def uneven(seed: int, where: str, *, runs: int = 240) -> Problem:
    """Simulated runs whose noise is alike, or larger in a corner of the design that their losses do not single out."""
    generator = np.random.default_rng(seed)
    columns = {"params": 10 ** generator.uniform(7, 9, runs), "tokens": 10 ** generator.uniform(9, 11, runs)}
    ratio = np.log10(columns["tokens"] / columns["params"])
    noise = {"nowhere": np.full(runs, 0.01), "few tokens": np.where(ratio < 0.5, 0.1, 0.002)}[where]
    log = np.log(LAWS["chinchilla"].predict(TRUTH, columns)) + noise * generator.standard_normal(runs)
    return Problem(LAWS["chinchilla"], columns, log)


def test_noise_that_differs_across_the_design_is_noticed() -> None:
    """Every time at this size, and hardly ever where noise is alike."""
    chosen = {"nowhere": [], "few tokens": []}  # type: dict[str, list[str]]
    for seed, where in itertools.product(range(10), chosen):
        problem = uneven(seed, where)
        best = global_fit(problem, delta=np.inf)
        found = bootstrap(problem, best, np.arange(240), resamples=100, delta=np.inf, seed=seed)
        chosen[where].append(found.method)
    assert chosen["few tokens"].count("pairs") >= 9
    assert chosen["nowhere"].count("exchange") >= 9


def test_the_test_for_uneven_noise_is_exact_for_heavy_tails() -> None:
    """With Student's t of three degrees, 5% of the designs look uneven at the 5% level."""
    generator = np.random.default_rng(0)
    slopes = generator.standard_normal((60, 3))
    fitted = slopes @ np.array([0.3, -0.2, 0.1])
    found = [
        unevenness(generator.standard_t(3, 60), fitted, slopes, np.arange(60), block=20, seed=i) for i in range(400)
    ]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.033)  # three standard errors


def test_the_test_for_uneven_noise_shuffles_whole_runs() -> None:
    """Checkpoints of one run share their scatter; that alone is no unevenness."""
    generator = np.random.default_rng(2)
    clusters = np.repeat(np.arange(40), 5)
    found = []
    for i in range(200):
        slopes = generator.standard_normal((40, 2))[clusters]
        noise = generator.standard_t(3, 40)[clusters] * generator.choice([0.9, 1.1], 200)
        found.append(unevenness(noise, slopes[:, 0], slopes, clusters, block=15, seed=i))
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.047)


def answers(values: np.ndarray, compute: float = 1e21) -> np.ndarray:
    e, a_size, a, b_size, b = values.T
    size = (np.log(a * a_size / (b * b_size)) + b * np.log(compute / 6)) / (a + b)
    loss = e + a_size * np.exp(-a * size) + b_size * np.exp(-b * (np.log(compute / 6) - size))
    return np.column_stack([values, size, np.log(loss)])


@pytest.mark.slow
@pytest.mark.parametrize(("levels", "delta"), [(3, 1e-3), (3, np.inf), (6, 1e-3), (6, np.inf)])
def test_nominal_95_percent_intervals_cover(levels: int, delta: float) -> None:
    """Parameters, optimal size and its loss, 150 data sets each: a standard error of about 2 points for each."""
    truth = answers(np.array([list(TRUTH.values())]))[0]
    hits = []
    for seed in range(150):
        problem = problem_on(np.geomspace(1e7, 1e9, levels), np.geomspace(5e8, 5e10, levels), 0.005, seed)
        best = global_fit(problem, delta=delta)
        found = bootstrap(problem, best, np.arange(problem.n), resamples=300, delta=delta, seed=seed)
        low, high = np.quantile(answers(problem.to_values(found.theta)), [0.025, 0.975], axis=0)
        hits.append((low <= truth) & (truth <= high))
    assert 0.92 <= np.mean(hits) <= 0.985, np.mean(hits, axis=0)
    assert np.mean(hits, axis=0).min() >= 0.88


# -- noise and scale -------------------------------------------------------------------------------------------------
def test_noise_scale_estimates_a_standard_deviation() -> None:
    r = 0.03 * np.random.default_rng(0).standard_normal(2000)
    assert noise_scale(r, 5) == pytest.approx(0.03, rel=0.06)
    r[:50] = 5.0
    assert noise_scale(np.where(np.abs(r) > 1, 0.5, r), 5) < 0.06
    weights = np.concatenate([np.full(1000, 1.0), np.full(1000, 0.0)])
    mixed = np.concatenate([0.01 * np.ones(1000), np.ones(1000)])
    assert noise_scale(mixed, 0, weights) == pytest.approx(0.014826)


def test_local_noise_follows_the_runs() -> None:
    fitted = np.linspace(0, 1, 300)
    residuals = np.random.default_rng(0).standard_normal(300) * np.where(fitted > 0.5, 0.05, 0.005)
    centres, levels = local_noise(fitted, residuals, 3)
    assert list(centres) == sorted(centres)
    assert levels[0] < 0.01 < 0.03 < levels[-1]


def test_distance_counts_decades_beyond_the_runs() -> None:
    test = BackTest(1, 3, 0.01, 0.0, 0.1, ("params", "tokens"), 16.0, 20.0)
    columns = {"params": np.array([1e8, 1e10, 1e6]), "tokens": np.array([1e10, 1e12, 1e9])}
    assert distance(test, columns).tolist() == [0.0, 2.0, 1.0]
    assert model_error(test, columns).tolist() == pytest.approx([0.0, 0.05, 0.025])
    wide = replace(test, ranges=((7.0, 9.5), (9.0, 11.0)), aside=(0.2, 0.3))
    assert distance(wide, columns).tolist() == [0.0, 2.0, 1.0]
    assert model_error(wide, columns).tolist() == pytest.approx([0.0, 0.05, 0.025])  # beyond in scale: as without
    alone = {"params": np.array([1e6, 1e9]), "tokens": np.array([1e11, 1e8])}  # at scales that were measured
    assert distance(test, alone).tolist() == [0.0, 0.0]
    assert distance(wide, alone).tolist() == [1.0, 1.0]
    assert model_error(wide, alone).tolist() == pytest.approx([0.2 / 2.5, 0.3 / 2.0])
    assert scale_columns(columns, ("params", "skew")) == ("params",)


def test_back_testing_widens_bands_where_the_law_is_wrong() -> None:
    """Runs from the coupled law, fitted by the separable one: the bands must notice."""
    grid = {"params": np.geomspace(1e6, 1e9, 7), "tokens": np.geomspace(1e8, 1e11, 7)}
    right = simulate_runs("chinchilla", TRUTH, grid, noise=0.002)
    wrong = simulate_runs("coupled", {**TRUTHS["coupled"], "c": 0.4, "A": 2e6, "B": 1e8, "a": 0.9, "b": 0.9}, grid,
                          noise=0.002)  # fmt: skip
    ahead = {"params": 1e11, "tokens": 1e13}
    sound, poor = (fit(runs, "chinchilla", resamples=50, huber_delta=1e-3, scale_weight=0.0) for runs in (right, wrong))
    widths = [f.predict(parts=True, **ahead)["model"].iloc[0] for f in (sound, poor)]  # type: ignore[arg-type]
    assert widths[1] > 4 * widths[0]
    assert poor.holdout_error > 2 * sound.holdout_error
    aside = {"params": [1e9, 1e10, 1e11], "tokens": [1e10, 1e9, 1e8]}  # one measured scale, larger and larger models
    parts = poor.predict(parts=True, **aside)
    assert parts["model"].iloc[0] == 0.0 < parts["model"].iloc[1] < parts["model"].iloc[2]
    assert parts["distance"].tolist() == pytest.approx([0.0, 1.0, 2.0])
    truth = LAWS["coupled"].predict({**TRUTHS["coupled"], "c": 0.4, "A": 2e6, "B": 1e8, "a": 0.9, "b": 0.9}, ahead)
    band = poor.predict(**ahead).iloc[0]
    assert band["low"] <= float(truth) <= band["high"]


@pytest.mark.parametrize(
    ("name", "extra"),
    [("chinchilla", "rival_power"), ("diloco", "rival_floor"), ("diloco-offset", "rival_bend"), ("coupled", None),
     ("kaplan", "rival_floor"), ("federated", "rival_power")],
)  # fmt: skip
def test_a_rival_contains_its_law(name: str, extra: str | None) -> None:
    law = LAWS[name]
    alternative = rival_of(law)
    if extra is None:
        assert alternative is None
        return
    assert alternative is not None and set(alternative.parameters) - set(law.parameters) == {extra}
    neutral = {"rival_power": 1.0, "rival_floor": 1e-12, "rival_bend": 0.0}[extra]
    columns = {c: np.array([1e8, 2e9]) if c in ("params", "tokens") else np.array([1.0, 0.5]) for c in law.columns}
    rival = Alternative(alternative, {**TRUTHS[name], extra: neutral}, pd.DataFrame(), 0.0, widens=1.0)
    same = disagreement(law, TRUTHS[name], (rival,), columns)
    assert np.abs(same).max() < 1e-9


# -- profiles and regions --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit(simulate_runs("chinchilla", TRUTH, {"params": GRID[0], "tokens": GRID[1]}, noise=0.005), "chinchilla",
               huber_delta=None, resamples=400)  # fmt: skip


@pytest.mark.parametrize("parameter", ["E", "a", "b", "A"])
def test_a_profile_agrees_with_the_bootstrap(fitted: Fit, parameter: str) -> None:
    found = profile(fitted, parameter)
    row = fitted.summary().loc[parameter]
    assert found.low < row["estimate"] < found.high
    assert found.high - found.low == pytest.approx(row["high"] - row["low"], rel=0.5)
    table = found.table
    assert table["objective"].min() >= fitted.certificate.objective * (1 - 1e-9)
    assert table.loc[(table["value"] - row["estimate"]).abs().idxmin(), "statistic"] < 0.5


def test_a_profile_says_what_cannot_be_asked(fitted: Fit) -> None:
    with pytest.raises(ConfigError, match="not free"):
        profile(fitted, "g")
    with pytest.raises(ConfigError, match="at least three positive numbers"):
        fitted.profile("A", values=[1.0, -1.0, 2.0])


def test_a_region_holds_the_best_size_and_its_regret(fitted: Fit) -> None:
    found = region(fitted, compute=1e21, tolerance=0.005)
    size = np.exp(answers(np.array([[fitted.params[p] for p in ("E", "A", "a", "B", "b")]]))[0, 5])
    assert found.size == pytest.approx(size, rel=0.02)
    assert found.size_low <= found.size <= found.size_high
    assert found.good_low < found.size < found.good_high
    table = found.table
    assert table["regret"].min() == 0.0
    assert (table["regret_high"] >= table["regret"] - 1e-12).mean() > 0.9
    assert table["params"].to_numpy() * table["tokens"].to_numpy() * 6 == pytest.approx(np.full(len(table), 1e21))


@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
def test_a_region_is_refused_where_the_design_cannot_tell(fitted: Fit) -> None:
    n = np.geomspace(1e7, 1e10, 10)
    runs = simulate_runs("chinchilla", TRUTH, pd.DataFrame({"params": n, "tokens": 20 * n}), noise=0.002)
    with pytest.raises(FitError, match="20 times params"):
        fit(runs, "chinchilla", resamples=20, backtest=False, intervals="bootstrap").region(compute=1e21)
    with pytest.raises(ConfigError, match="compute must be positive"):
        fitted.region(compute=-1.0)


def test_a_region_takes_the_words_of_an_optimal_size() -> None:
    grid = pd.DataFrame(
        itertools.product(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 3), [1, 4, 16], [0.0, 0.5]),
        columns=["params", "tokens", "clients_per_round", "skew"],
    )
    found = fit(simulate_runs("federated", TRUTHS["federated"], grid, noise=0.002), "federated", resamples=50)
    question = {"compute": 1e20, "clients": 32, "participation": 0.25, "skew": 0.2}
    best, area = found.optimal_size(**question), found.region(**question)
    assert area.size == pytest.approx(best.params, rel=0.03)
    assert area.table["loss"].min() == pytest.approx(best.loss, rel=1e-5)
    assert (area.size_low, area.size_high) == pytest.approx((best.params_low, best.params_high), rel=0.1)
    with pytest.raises(FitError, match="clients train in a round"):
        found.region(compute=1e20, skew=0.2)


# -- published runs --------------------------------------------------------------------------------------------------
def test_standard_errors_on_the_published_runs() -> None:
    """The re-estimate of Besiroglu et al. 2024 has bootstrap errors A 124.6, B 1293, E 0.03, alpha 0.02, beta 0.02."""
    path = DATA / "chinchilla_epoch245.csv"
    if not path.exists():
        pytest.skip("the published runs are not here (../shared/data/chinchilla_epoch245.csv)")
    runs = pd.read_csv(path)
    found = fit(runs[runs["used_in_published_fit"]], "chinchilla", huber_delta=1e-3, backtest=False)
    errors = found.summary()["std_error"]
    assert errors["A"] == pytest.approx(124.6, rel=0.2)
    assert errors[["E", "a", "b"]].to_numpy() == pytest.approx([0.026, 0.015, 0.020], rel=0.2)
    published = {"A": 482.01, "B": 2085.43, "E": 1.8172, "a": 0.3478, "b": 0.3658}
    assert all(abs(found.params[p] - v) < errors[p] for p, v in published.items())


def test_larger_diloco_runs_fall_inside_the_band() -> None:
    if not (DATA / "diloco_eval_loss.csv").exists():
        pytest.skip("the published table is not here (../shared/data/diloco_eval_loss.csv)")
    names = {"params": "N", "clients_per_round": "M", "loss": "eval_loss"}
    runs = pd.read_csv(DATA / "diloco_eval_loss.csv", comment="#")
    ahead = pd.read_csv(DATA / "diloco_extrapolation_4b_10b.csv", comment="#")
    ahead = ahead[ahead["algorithm"] == "diloco"].groupby(["N", "M"], as_index=False)["eval_loss"].min()
    found = fit(runs[runs["algorithm"] == "diloco"], "diloco-offset", columns=names, huber_delta=1e-3,
                scale_weight=0.0)  # fmt: skip
    band = found.predict(params=ahead["N"].to_numpy(), clients_per_round=ahead["M"].to_numpy())
    loss = ahead["eval_loss"].to_numpy()
    assert np.mean(np.abs(loss / band["estimate"] - 1)) <= 0.01
    assert ((band["low"] <= loss) & (loss <= band["high"])).all()


def test_diloco_power_laws_are_the_least_squares_values() -> None:
    """OLS of log loss on log size and log replicates, nominal sizes: hand-computed check values."""
    if not (DATA / "diloco_eval_loss.csv").exists():
        pytest.skip("the published table is not here (../shared/data/diloco_eval_loss.csv)")
    runs = pd.read_csv(DATA / "diloco_eval_loss.csv", comment="#").rename(columns={"N": "params", "eval_loss": "loss"})
    runs["clients_per_round"] = runs["M"]
    expected = {1: (18.384, 0.09612), 2: (18.799, 0.09700), 4: (19.786, 0.09924), 8: (21.084, 0.10187)}
    keywords = {"huber_delta": None, "resamples": 0, "backtest": False}
    for replicas, (size, exponent) in expected.items():
        found = fit(runs[runs["M"] == replicas], "A/params^a", **keywords)  # type: ignore[arg-type]
        assert found.params == pytest.approx({"A": size, "a": exponent}, rel=2e-4)
    joint = fit(runs[runs["algorithm"] == "diloco"], "diloco", **keywords)  # type: ignore[arg-type]
    assert joint.params == pytest.approx({"A": 19.252, "a": 0.09856, "g": 0.01162}, rel=1e-3)


@pytest.mark.slow
def test_bands_one_decade_out_cover_on_public_logs() -> None:
    """Nominal 90%: the mean over four public sets, each fitted at a tenth of its compute or less."""
    path = DATA / "porian_isoflop.parquet"
    if not path.exists():
        pytest.skip("the public runs are not here (../shared/data/porian_isoflop.parquet)")
    runs = pd.read_parquet(path)
    runs = runs[(runs["tokens"] / runs["params"] > 1) & (runs["param_count_rule"] == "standard")]
    covered, errors = [], []
    for _, group in list(runs.groupby(["dataset", "hparams", "warmup", "decay", "loss_kind"]))[:4]:
        table = group[["params", "tokens", "loss"]].astype(float)
        compute = table["params"] * table["tokens"]
        far = compute > compute.max() / 10
        found = fit(table[~far], "coupled", scale_weight=0.5, resamples=100)
        band = found.predict(table[far])
        loss = table.loc[far, "loss"]
        covered.append(((band["low"] <= loss) & (loss <= band["high"])).mean())
        errors.append((loss / band["estimate"] - 1).abs().median())
    assert np.mean(covered) >= 0.85
    assert np.median(errors) <= 0.025
