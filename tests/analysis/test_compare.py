"""Comparing laws on held-out larger runs, blending them, and the classical tests."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from law_truths import TRUTHS

from scalefed.analysis.compare import blend, compare
from scalefed.analysis.hypothesis_tests import average_compute_test, nested_test
from scalefed.errors import ConfigError, DataError
from scalefed.fitting.fit import Fit, fit
from scalefed.fitting.holdout import predict_held, split
from scalefed.fitting.stacking import stacking_weights
from scalefed.laws.simulate import simulate_runs

TRUTH = {**TRUTHS["federated"], "g": 0.6, "s": 0.3}
GRID = {"params": [1e7, 4e7, 2e8, 1e9], "tokens": [5e8, 4e9, 3e10], "clients_per_round": [1, 4, 16], "skew": [0.0, 0.5]}


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return simulate_runs("federated", TRUTH, GRID, noise=0.01, seed=2)


@pytest.fixture(scope="module")
def fits(runs: pd.DataFrame) -> tuple[Fit, ...]:
    laws = ("chinchilla", "average-compute", "federated", "federated-skew")
    return tuple(fit(runs, law, huber_delta=None, scale_weight=0.0, resamples=100) for law in laws)


@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
def test_the_true_law_wins_on_larger_runs(fits: tuple[Fit, ...]) -> None:
    for holdout in (None, "tokens", 0.2):
        table = compare(*fits, holdout=holdout)
        assert list(table.index) == ["chinchilla", "average-compute", "federated", "federated-skew"]
        assert {"holdout_error", "aic", "bic", "weight"} <= set(table.columns)
        error = table["holdout_error"]
        assert error[["federated", "federated-skew"]].max() < 0.5 * error[["chinchilla", "average-compute"]].min()
        assert table["aic"].idxmin() in ("federated", "federated-skew")
        assert table["bic"].idxmin() == "federated"
        assert table["weight"].sum() == pytest.approx(1.0)
        assert table["coverage"].between(0, 1).all() and (table["width"] > 0).all()
        assert set(table["training_status"]) <= {"converged", "bound_hit", "loose", "not_identified"}
        assert table.loc[["federated", "federated-skew"], "weight"].sum() > 0.9


def test_held_out_runs_are_the_largest(runs: pd.DataFrame) -> None:
    needed = ("params", "tokens")
    for holdout in (None, 0.25, "tokens"):
        train, held = split(runs, holdout, needed=needed, least=7)
        assert len(train) + len(held) == len(runs)
        key = runs["tokens"] if holdout == "tokens" else runs["compute"]
        assert key[train.index].max() < key[held.index].min()
    train, held = split(runs, runs.iloc[:5], needed=needed, least=7)
    assert len(train) == len(runs) - 5 and len(held) == 5


def test_held_out_runs_can_come_from_elsewhere(fits: tuple[Fit, ...]) -> None:
    ahead = simulate_runs("federated", TRUTH, {**GRID, "params": [1e10], "tokens": [3e11]})
    ahead["run_id"] = "ahead-" + ahead["run_id"]
    table = compare(*fits[1:3], holdout=ahead)
    assert (table["held_out"] == 6).all()
    assert table["holdout_error"].idxmin() == "federated"


def test_one_hold_out_can_be_said_in_many_ways(runs: pd.DataFrame) -> None:
    """A budget that rounds differently from run to run, a condition, a mask, a function, the runs themselves."""
    asked = runs.assign(tokens=runs["tokens"] * (1 - 0.01 * (runs["params"] > 1e8)))
    top = asked["tokens"] > 2e10
    ways = ("tokens", "tokens >= 2e10", top, top.to_numpy(), lambda table: table["tokens"] > 2e10, asked[top])
    for holdout in ways:
        train, held = split(asked, holdout, needed=("params", "tokens"), least=7)
        assert list(held["run_id"]) == list(asked.loc[top, "run_id"])
        assert len(train) + len(held) == len(asked)


def test_the_true_law_has_honest_bands_on_the_largest_budget() -> None:
    """Four budgets, the largest held out, three draws of the noise: nominal 90%."""
    truth = {"E": 0.2, "A": 12.0, "a": 0.32, "B": 3000.0, "b": 0.6, "g": 0.4, "s": 0.6}
    levels = {"params": np.geomspace(3e3, 3e5, 6), "tokens": [2e6, 4e6, 8e6, 16e6]}
    covered = []
    for seed in range(3):
        grid = {**levels, "clients_per_round": [1, 4, 16], "skew": [0.0, 0.4, 0.7]}
        table = simulate_runs("federated-excess", truth, grid, noise=0.03, seed=seed)
        found = fit(table, "federated-excess", huber_delta=None, resamples=100, backtest=False)
        train, held = split(table, "tokens", needed=("params", "tokens"), least=9)
        ahead = predict_held(found, train, held)
        assert ahead.width < 0.2
        assert ahead.band["estimate"].to_numpy() * (1 + ahead.errors) == pytest.approx(held["loss"].to_numpy())
        covered.append(ahead.coverage)
    assert np.mean(covered) == pytest.approx(0.9, abs=0.08)


def test_replicates_are_held_against_their_means(fits: tuple[Fit, ...]) -> None:
    grid = {**GRID, "tokens": [1e11], "seed": list(range(16))}
    larger = simulate_runs("federated", TRUTH, grid, noise=0.05, seed=5)
    larger["run_id"] = [f"larger-{i}" for i in range(len(larger))]
    table = compare(*fits[2:], holdout=larger, settings=["params", "clients_per_round", "skew"])
    assert table["means"].tolist() == [24, 24] and table["held_out"].tolist() == [384, 384]
    assert (table["mean_error"] < table["holdout_error"] / 2).all()
    found = predict_held(fits[2], fits[2].runs, larger)
    one = larger[(larger["params"] == 1e7) & (larger["clients_per_round"] == 4) & (larger["skew"] == 0.5)]
    expected = np.exp(np.log(one["loss"]).mean()) / found.band.loc[one.index[0], "estimate"] - 1
    assert np.isclose(found.errors_of_means(["params", "clients_per_round", "skew"]), expected).any()


def test_a_floor_held_at_a_known_value_stays_there_in_the_comparison(runs: pd.DataFrame) -> None:
    """The held-out refit keeps what the fit fixed: at a floor far from the truth it must predict worse."""
    keywords = {"huber_delta": None, "scale_weight": 0.0, "resamples": 20}
    right, wrong = (fit(runs, "federated", fixed={"E": e}, **keywords) for e in (1.8, 0.5))  # type: ignore[arg-type]
    train, held = split(runs, "tokens", needed=("params", "tokens"), least=7)
    assert predict_held(wrong, train, held).fit.params["E"] == 0.5
    table = compare(right, wrong, holdout="tokens")
    assert table["holdout_error"].iloc[0] < 0.5 * table["holdout_error"].iloc[1]
    assert table["weight"].iloc[0] > 0.8


def test_success_counts_put_pass_at_1_beside_the_loss(fits: tuple[Fit, ...], runs: pd.DataFrame) -> None:
    generator = np.random.default_rng(0)
    mean = 0.9 / (1 + np.exp(4.0 * (runs["loss"].to_numpy() - 3.0)))
    rate = generator.beta(4 * mean[:, None], 4 * (1 - mean[:, None]), (len(runs), 60))
    counts = pd.DataFrame(
        {
            "run_id": np.repeat(runs["run_id"].to_numpy(), 60),
            "task_id": np.tile(np.arange(60), len(runs)),
            "samples": 20,
            "correct": generator.binomial(20, rate).ravel(),
        }
    )
    table = compare(*fits[:3], holdout="tokens", counts=counts)
    assert table["pass_at_1_error"].idxmin() == "federated"
    assert table.loc["federated", "pass_at_1_error"] < 0.05
    assert table.loc["federated", "pass_at_1_coverage"] >= 0.75
    linked = fits[0].with_link(counts)
    assert linked.link is not None and linked.link.runs == len(runs)
    assert linked.link.to_json() == fits[0].with_link(linked.link).link.to_json()
    with pytest.raises(DataError, match="none of the runs has success counts"):
        fits[0].with_link(counts.assign(run_id="x"))
    with pytest.raises(DataError, match="success counts"):
        compare(*fits[:2], holdout="tokens", counts=counts.assign(run_id="x"))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"holdout": 1.5}, "a share in \\(0, 1\\)"),
        ({"holdout": "colour"}, "no column of numbers among the runs"),
        ({"holdout": True}, "a share in"),
        ({"holdout": "compute > e"}, "no number"),
        ({"holdout": np.array([True, False])}, "one True or False for each of 72 runs"),
        ({"level": 1.0}, "level must be between"),
        ({"settings": ["clients"]}, "no column 'clients'; allowed: clients_per_round"),
    ],
)
def test_a_wrong_holdout_is_named(fits: tuple[Fit, ...], keywords: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compare(*fits, **keywords)  # type: ignore[arg-type]


def test_fits_that_cannot_be_compared_are_refused(fits: tuple[Fit, ...], runs: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="at least two fits"):
        compare(fits[0])
    other = fit(
        runs.assign(bits=runs["loss"]), "chinchilla", target="bits", huber_delta=None, resamples=20, backtest=False
    )
    with pytest.raises(ConfigError, match="different columns"):
        compare(fits[0], other)
    with pytest.raises(DataError, match="hold out fewer"):
        compare(*fits, holdout=0.95)
    elsewhere = runs.assign(run_id="x" + runs["run_id"])
    alone = fit(elsewhere, "federated", huber_delta=None, resamples=20, backtest=False)
    with pytest.raises(DataError, match="share no runs"):
        compare(fits[2], alone)


def test_information_criteria_are_those_of_a_gaussian_regression() -> None:
    generator = np.random.default_rng(0)
    params = 10 ** generator.uniform(6, 9, 40)
    frame = pd.DataFrame(
        {"params": params, "loss": np.exp(2 - 0.1 * np.log(params) + 0.02 * generator.standard_normal(40))}
    )
    two = [fit(frame, law, huber_delta=None, resamples=20, backtest=False) for law in ("A/params^a", "A*params^a")]
    table = compare(*two, holdout=0.2)
    reference = sm.OLS(np.log(frame["loss"]), sm.add_constant(np.log(params))).fit()
    assert table["aic"].iloc[0] == pytest.approx(reference.aic + 2, abs=1e-6)  # statsmodels does not count the variance
    assert table["bic"].iloc[0] == pytest.approx(reference.bic + np.log(40), abs=1e-6)


def test_stacking_weights_solve_the_least_squares_problem() -> None:
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((200, 2))
    errors = np.column_stack([noise[:, 0], noise[:, 1], 10 + noise[:, 0]])
    weights = stacking_weights(errors)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[:2] == pytest.approx([0.5, 0.5], abs=0.08)
    assert weights[2] < 0.01


@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
def test_a_blend_lies_between_its_laws(fits: tuple[Fit, ...]) -> None:
    mixed = blend(*fits[1:3], weights=[0.3, 0.7])
    ahead = {"params": [1e9, 1e10], "tokens": [1e10, 1e12], "clients_per_round": 8, "skew": 0.2}
    tables = [f.predict(**ahead) for f in fits[1:3]]
    out = mixed.predict(**ahead)
    expected = np.exp(0.3 * np.log(tables[0]["estimate"]) + 0.7 * np.log(tables[1]["estimate"]))
    assert out["estimate"].to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-12)
    assert (out["low"] < out["estimate"]).all() and (out["estimate"] < out["high"]).all()
    with pytest.raises(ConfigError, match="2 numbers of at least 0"):
        blend(*fits[1:3], weights=[1.0, -1.0])
    stacked = blend(*fits[1:3])
    assert stacked.weights[1] > 0.8


# -- classical tests -------------------------------------------------------------------------------------------------
def test_nested_tests_find_what_matters(fits: tuple[Fit, ...]) -> None:
    assert nested_test(fits[2], {"s": 0.0}).p_value < 1e-6
    assert nested_test(fits[2], {"g": 0.0}).p_value < 1e-6
    assert nested_test(fits[2], {"g": 1.0}).p_value < 1e-6
    assert nested_test(fits[3], {"h": 0.0}).p_value > 0.01
    both = nested_test(fits[3], {"h": 0.0, "s": 0.0})
    assert both.degrees_of_freedom[0] == 2 and "rejected" in both.message


def test_a_nested_test_is_the_wald_test_of_a_linear_regression() -> None:
    generator = np.random.default_rng(3)
    params, clients = 10 ** generator.uniform(6, 9, 48), generator.choice([1.0, 2.0, 4.0, 8.0], 48)
    groups = np.repeat(np.arange(16), 3)
    log = 2 - 0.1 * np.log(params) + 0.004 * np.log(clients) + 0.01 * generator.standard_normal(16)[groups]
    log += 0.01 * generator.standard_normal(48)
    frame = pd.DataFrame({"params": params, "clients_per_round": clients, "loss": np.exp(log)})
    found = nested_test(
        fit(frame, "diloco", huber_delta=None, resamples=20, backtest=False), {"g": 0.0}, clusters=groups
    )
    design = sm.add_constant(np.column_stack([np.log(params), np.log(clients)]))
    reference = sm.OLS(log, design).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    assert found.p_value == pytest.approx(float(reference.pvalues[2]), rel=1e-5)
    assert found.statistic == pytest.approx(float(reference.tvalues[2] ** 2), rel=1e-5)


def test_nested_tests_have_the_right_size() -> None:
    rejected = 0
    small = {p: v for p, v in TRUTHS["chinchilla"].items()}
    for seed in range(60):
        runs = simulate_runs(
            "chinchilla", small, {"params": GRID["params"], "tokens": GRID["tokens"]}, noise=0.01, seed=seed
        )
        runs["clients_per_round"] = np.tile([1.0, 4.0, 16.0, 2.0], 3)
        formula = "E + A/params^a + B/(tokens/clients_per_round^g)^b"
        found = fit(runs, formula, huber_delta=None, resamples=0, backtest=False,
                    fixed={"E": 1.8})  # fmt: skip
        rejected += nested_test(found, {"g": 0.0}).p_value < 0.05
    assert rejected <= 14


def test_what_cannot_be_tested_is_named(fits: tuple[Fit, ...]) -> None:
    for null, words in (({}, "at least one"), ({"A": 1.0}, "cannot be tested"), ({"zz": 0.0}, "cannot be tested")):
        with pytest.raises(ConfigError, match=words):
            nested_test(fits[2], null)


def optima(q: float, noise: float = 0.02, seed: int = 0) -> pd.DataFrame:
    table = pd.DataFrame([(c, m) for c in np.geomspace(1e18, 1e21, 5) for m in (1.0, 2.0, 4.0, 8.0, 16.0)],
                         columns=["compute", "clients_per_round"])  # fmt: skip
    error = noise * np.random.default_rng(seed).standard_normal(len(table))
    table["params"] = np.exp(0.5 * np.log(table["compute"]) - q * np.log(table["clients_per_round"]) + error)
    return table


def test_the_average_compute_rule_is_accepted_where_it_holds_and_rejected_where_not() -> None:
    holds, fails = average_compute_test(optima(0.5)), average_compute_test(optima(0.1))
    assert holds.p == pytest.approx(0.5, abs=0.01) and holds.q == pytest.approx(0.5, abs=0.03)
    assert holds.low < 0 < holds.high and "cannot be rejected" in holds.message
    assert fails.p_value < 1e-6 and fails.high < 0 and "is rejected" in fails.message
    grouped = average_compute_test(optima(0.1), clusters=list(range(5)) * 5)
    assert grouped.difference == pytest.approx(fails.difference)


def test_the_rule_can_be_asked_of_a_fit(fits: tuple[Fit, ...]) -> None:
    found = average_compute_test(replace(fits[2], alternatives=()))
    p = fits[2].params["b"] / (fits[2].params["a"] + fits[2].params["b"])
    assert found.p == pytest.approx(p) and found.q == pytest.approx(p * fits[2].params["g"])
    replicates = fits[2].replicates
    shares = replicates["b"] / (replicates["a"] + replicates["b"])
    ends = np.quantile((replicates["g"] - 1) * shares, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(ends))
    assert found.high < 0 and found.p_value < 0.05
    with pytest.raises(ConfigError, match="no optimal size that depends on clients per round"):
        average_compute_test(fits[0])
    with pytest.raises(ConfigError, match="takes no setting, got skew"):
        average_compute_test(optima(0.5), skew=0)


def test_the_rule_can_be_asked_of_laws_without_a_discount(runs: pd.DataFrame) -> None:
    rule = fit(runs, law="average-compute", resamples=20, backtest=False)
    found = average_compute_test(rule)
    assert found.q == pytest.approx(found.p) == pytest.approx(rule.params["b"] / (rule.params["a"] + rule.params["b"]))
    steps = average_compute_test(fit(runs, law="federated-steps", resamples=20, backtest=False))
    assert 0 < steps.q < steps.p


@pytest.mark.parametrize(
    ("table", "words"),
    [(optima(0.5).drop(columns="compute"), "no column 'compute'"), (optima(0.5).iloc[:3], "at least 4 optima")],
)
def test_too_little_for_the_rule_is_named(table: pd.DataFrame, words: str) -> None:
    with pytest.raises(DataError, match=words):
        average_compute_test(table)
