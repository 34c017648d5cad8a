"""A budget is counted as the runs count theirs; a law that is no sum of powers is searched, and its optimum checked."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.allocation import optimum
from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.cost import SIX_PARAMS, cost_from, cost_of, power_sum, spent
from scalefed.allocation.design import next_runs
from scalefed.analysis.isoflop import isoflop_optima
from scalefed.errors import ConfigError, FitError
from scalefed.fitting.fit import fit
from scalefed.laws import LAWS
from scalefed.laws.simulate import simulate_runs

settings.register_profile("quick", deadline=None, max_examples=30)
settings.load_profile("quick")

TRUTH = {"E": 1.7, "A": 400.0, "a": 0.34, "B": 900.0, "b": 0.3}
SIZES, LENGTHS = np.geomspace(5e6, 4e8, 6), np.geomspace(1e8, 1e10, 5)


def law_at(params, tokens):
    return TRUTH["E"] + TRUTH["A"] / params ** TRUTH["a"] + TRUTH["B"] / tokens ** TRUTH["b"]


def runs_counted(per_token) -> pd.DataFrame:
    runs = simulate_runs("chinchilla", TRUTH, {"params": SIZES, "tokens": LENGTHS})
    return runs.assign(compute=per_token(runs["params"].to_numpy()) * runs["tokens"].to_numpy())


def best_by_grid(per_token, compute: float) -> float:
    sizes = np.geomspace(1e5, 1e10, 400_001)
    return float(sizes[np.argmin(law_at(sizes, compute / per_token(sizes)))])


WAYS = {
    "output layer": lambda n: 6 * (n + 3.3e7),
    "attention and output layer": lambda n: 6 * n + 12 * 300 * n ** (2 / 3) + 6 * 50_000 * n ** (1 / 3),
    "experts": lambda n: 6 * 12 * n**0.8,
    "recomputed activations": lambda n: 8.0 * n,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_best_size_is_that_under_the_runs_own_compute(way):
    per_token = WAYS[way]
    found = fit(runs_counted(per_token), "chinchilla", resamples=20, backtest=False)
    for compute in (1e18, 1e20):
        best = found.optimal_size(compute=compute)
        assert best.params == pytest.approx(best_by_grid(per_token, compute), rel=2e-4)
        assert per_token(best.params) * best.tokens == pytest.approx(compute, rel=1e-6)
        assert best.compute == pytest.approx(compute, rel=1e-6)
        assert any("compute is counted as in the runs' compute" in note for note in best.notes)
    plain = found.optimal_size(compute=1e18, flops="6*params*tokens")
    assert plain.params == pytest.approx(best_by_grid(lambda n: 6 * n, 1e18), rel=2e-4)


def test_six_params_tokens_has_no_note_and_changes_nothing():
    found = fit(runs_counted(lambda n: 6 * n), "chinchilla", resamples=0, backtest=False)
    best = found.optimal_size(compute=1e18)
    assert cost_of(found.runs) is SIX_PARAMS and not any("counted" in note for note in best.notes)
    without = fit(found.runs.drop(columns="compute"), "chinchilla", resamples=0, backtest=False)
    assert without.optimal_size(compute=1e18).params == best.params


@pytest.mark.parametrize("name", ["flops", "total_FLOPs", "C"])
def test_compute_under_another_name_is_pointed_out(name):
    per_token = WAYS["output layer"]
    runs = runs_counted(per_token).rename(columns={"compute": name})
    for law in ("chinchilla", "auto"):
        best = fit(runs, law, resamples=20, backtest=False).optimal_size(compute=1e18)
        (note,) = (note for note in best.notes if f"columns={{'compute': '{name}'}}" in note)
        assert best.params == pytest.approx(best_by_grid(lambda n: 6 * n, 1e18), rel=2e-4)
    named = fit(runs, "chinchilla", columns={"compute": name}, resamples=20, backtest=False)
    assert named.optimal_size(compute=1e18).params == pytest.approx(best_by_grid(per_token, 1e18), rel=2e-4)
    plain = runs_counted(lambda n: 6 * n).rename(columns={"compute": name})
    assert cost_of(fit(plain, "chinchilla", resamples=0, backtest=False).runs) is SIX_PARAMS


def test_other_budgets_of_flops_are_counted_alike():
    found = fit(runs_counted(WAYS["output layer"]), "chinchilla", resamples=0, backtest=False)
    whole = found.optimal_size(compute=1e18)
    ties = found.plan(compute_per_client=1e17, clients=10)
    timed = found.plan(seconds=1e6, flops_per_second=1e12, clients_per_round=1)
    assert ties.params == pytest.approx(whole.params) and timed.params == pytest.approx(whole.params)
    least = found.least_compute(loss=whole.loss)
    assert least.compute == pytest.approx(1e18, rel=1e-6) and least.params == pytest.approx(whole.params, rel=1e-4)


def test_new_runs_cost_what_the_runs_cost():
    runs = runs_counted(WAYS["output layer"])
    noisy = runs.assign(loss=runs["loss"] * np.exp(0.003 * np.random.default_rng(0).standard_normal(len(runs))))
    table = next_runs(fit(noisy, "chinchilla", resamples=60, backtest=False), compute=3e18, count=4)
    assert table["compute"].to_numpy() == pytest.approx(6 * (table["params"] + 3.3e7) * table["tokens"], rel=1e-6)
    assert table["compute"].sum() <= 3e18 and spent(runs) == pytest.approx(runs["compute"].to_numpy(), rel=1e-6)


def test_compute_that_follows_from_nothing_is_refused_until_it_is_said():
    runs = runs_counted(lambda n: 6 * n)
    runs["compute"] *= np.where(np.arange(len(runs)) % 2, 1.0, 40.0)
    found = fit(runs, "chinchilla", resamples=0, backtest=False)
    with pytest.raises(FitError, match="does not follow from params and tokens .* say how it is counted, flops="):
        found.optimal_size(compute=1e18)
    assert found.optimal_size(compute=1e18, flops="6*params*tokens").params > 0


@pytest.mark.parametrize("unit", [8.64e19, 3.6e17, 1e-12])
def test_compute_in_another_unit_is_refused_by_name(unit):
    runs = runs_counted(WAYS["output layer"])
    found = fit(runs.assign(compute=runs["compute"] / unit), "chinchilla", resamples=0, backtest=False)
    with pytest.raises(FitError, match="it is not in FLOPs .*flops="):
        found.optimal_size(compute=1e18)
    assert found.optimal_size(compute=1e18, flops="6*params*tokens").params > 0


def test_one_wrong_cell_is_told_and_does_not_count():
    runs = runs_counted(WAYS["output layer"])
    runs.loc[3, "compute"] *= 1000
    cost = cost_of(runs)
    assert cost.per_token(1e8) == pytest.approx(6 * 1.33e8, rel=1e-6) and "1 of 30 runs differ" in cost.note


@given(st.lists(st.sampled_from([0.0, 1 / 3, 1 / 2, 2 / 3, 1.0]), min_size=1, max_size=3, unique=True), st.randoms())
def test_sums_of_powers_are_found_again(exponents, random):
    size = np.geomspace(1e5, 1e9, 12)
    values = sum(random.uniform(0.3, 3) * (size / 1e7) ** e for e in exponents)
    found = power_sum(size, values)
    assert np.asarray(found(size)) == pytest.approx(values, rel=0.02)
    assert all(k > 0 for k in found.coefficients)


@pytest.mark.parametrize(
    "formula", ["6*params", "6*params*tokens^2", "a*params*tokens", "6*params*tokens + 1e9", "exp(tokens)", "("]
)
def test_flops_is_a_sum_of_powers_of_params_times_tokens(formula):
    with pytest.raises(ConfigError):
        cost_from(formula)


# ---------------------------------------------------------------------- embeddings
def embedded(n):
    return n + 50_000 * 0.6 * n ** (1 / 3)


def test_a_law_in_all_parameters_answers_in_those_without_embeddings():
    law = "E + A/params_total^a + B/tokens^b"
    grid = pd.DataFrame([(n, d) for n in SIZES for d in LENGTHS], columns=["params", "tokens"])
    grid["params_total"] = embedded(grid["params"])
    found = fit(simulate_runs(law, TRUTH, grid), law, resamples=20, backtest=False)
    best = found.optimal_size(compute=1e18)
    sizes = np.geomspace(1e6, 1e9, 400_001)
    wanted = sizes[np.argmin(law_at(embedded(sizes), 1e18 / (6 * sizes)))]
    assert best.params == pytest.approx(wanted, rel=1e-4)
    assert 6 * best.params * best.tokens == pytest.approx(1e18, rel=1e-6)
    assert best.params_low <= best.params <= best.params_high
    only = fit(found.runs.drop(columns=["params", "compute"]), law, resamples=0, backtest=False)
    assert any("counts all parameters, embeddings too" in note for note in only.optimal_size(compute=1e18).notes)


# ---------------------------------------------------------------------- the search, against the geometric program
class Bent:
    """Params as they are, told as a relation that is no single power, so that the search is taken."""

    is_power = False
    coefficients, exponents = (0.5, 0.5), (1.0, 1.0)

    def __call__(self, params):
        return params


LIMITS = {
    "compute": {"compute": 1e18},
    "compute and tokens": {"compute": 1e18, "tokens": 5e8},
    "compute and params": {"compute": 1e18, "params": 1e7},
    "wire": {"compute": 1e18, "bytes_sent": 1e12},
    "time": {"seconds": 1e5, "flops_per_second": 1e12, "bandwidth": 1e6, "latency": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_the_search_agrees_with_the_geometric_program(name):
    law = LAWS["chinchilla"].with_()
    total = type(law).parse("E + A/params_total^a + B/tokens^b")
    values = {**TRUTH, "A": np.array([400.0, 300.0, 500.0])}
    setting = {"clients_per_round": 4.0, "local_steps": 25.0, "batch_tokens": 512.0}
    exact = optimum.minimise(law, values, budget=Budget(**LIMITS[name]), setting=Setting(**setting))
    searched = optimum.minimise(total, values, budget=Budget(**LIMITS[name]), setting=Setting(**setting, total=Bent()))
    assert searched.params == pytest.approx(exact.params, rel=1e-5)
    assert searched.tokens == pytest.approx(exact.tokens, rel=1e-5)
    assert searched.loss == pytest.approx(exact.loss, rel=1e-9) and searched.bounded.all()
    for limit, price in exact.prices.items():
        assert searched.prices[limit] == pytest.approx(price, rel=1e-3, abs=1e-6)


def test_the_exact_count_is_a_budget_and_a_note():
    runs = runs_counted(lambda n: 6 * n)
    runs["compute_exact"] = 6 * (runs["params"] + 3.3e7) * runs["tokens"]
    found = fit(runs, "chinchilla", resamples=20, backtest=False)
    exact = found.plan(compute_exact=1e18)
    assert exact.params == pytest.approx(best_by_grid(WAYS["output layer"], 1e18), rel=2e-4)
    assert exact.binding == ("compute_exact",)
    plain = found.optimal_size(compute=1e18)
    times = (plain.params + 3.3e7) / plain.params
    assert any(f"compute_exact) this run takes {times:.2g} times its compute" in note for note in plain.notes)
    without = fit(runs.drop(columns="compute_exact"), "chinchilla", resamples=0, backtest=False)
    with pytest.raises(FitError, match="the runs have no compute_exact"):
        without.plan(compute_exact=1e18)


def test_equal_compute_is_what_the_runs_count():
    per_token = WAYS["output layer"]
    sizes = np.geomspace(5e6, 4e8, 13)
    grid = pd.DataFrame(
        [(n, c / per_token(n)) for n in sizes for c in (3e17, 1e18, 3e18)], columns=["params", "tokens"]
    )
    runs = simulate_runs("chinchilla", TRUTH, grid)
    runs["compute"] = per_token(runs["params"]) * runs["tokens"]
    found = isoflop_optima(runs, 1e18, floor=TRUTH["E"])
    assert found["params"][0] == pytest.approx(best_by_grid(per_token, 1e18), rel=0.05)
    assert per_token(found["params"][0]) * found["tokens"][0] == pytest.approx(1e18, rel=0.02)
