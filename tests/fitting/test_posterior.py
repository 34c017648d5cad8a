"""A posterior of few runs: the law by its optimum and back, draws that are exact where they can be, what fit says."""

import runpy
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

import scalefed as sf
from scalefed.errors import ConfigError
from scalefed.fitting.beliefs import Beliefs, beliefs
from scalefed.fitting.optimum_terms import optimum_terms
from scalefed.fitting.posterior import posterior, sample
from scalefed.fitting.problem import Problem
from scalefed.laws import LAWS

TRUTH = {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37}
FEDERATED = sf.first_runs(compute=1e20, count=16, clients_per_round=[1, 4, 16]).assign(
    skew=lambda runs: np.where(np.arange(len(runs)) % 4 == 3, 0.6, 0.0), rounds=100.0, local_steps=[25.0, 50.0] * 8
)
WRITTEN = ("chinchilla", "coupled", "average-compute", "federated", "federated-skew", "federated-steps",
           "federated-excess", "federated-coupled", "federated-capacity", "federated-capacity-steps")  # fmt: skip


def columns_of(name: str) -> dict[str, np.ndarray]:
    return {column: FEDERATED[column].to_numpy(dtype=float) for column in LAWS[name].columns}


def first_ten(noise: float = 0.003, seed: int = 0) -> pd.DataFrame:
    runs = sf.first_runs(compute=1e20)[["params", "tokens"]].astype(float)
    clean = LAWS["chinchilla"].predict(TRUTH, {c: runs[c].to_numpy() for c in runs})
    return runs.assign(loss=clean * np.exp(noise * np.random.default_rng(seed).standard_normal(len(runs))))


def best_size(compute: float) -> float:
    size = TRUTH["a"] * TRUTH["A"] / (TRUTH["b"] * TRUTH["B"]) * (compute / 6) ** TRUTH["b"]
    return size ** (1 / (TRUTH["a"] + TRUTH["b"]))


@pytest.mark.parametrize("name", WRITTEN)
def test_a_law_written_by_its_optimum_has_that_optimum(name):
    law, terms = LAWS[name], optimum_terms(LAWS[name], columns_of(name))
    generator = np.random.default_rng(1)
    phi = beliefs(terms, float(np.log(3.0))).draw(generator, 5)[:, :-1]
    values = terms.values(phi)
    assert set(values) == set(law.free) and all(np.isfinite(x).all() for x in values.values())

    def loss(row: int, log_params: float, log_compute: float) -> float:
        size = np.exp(log_params)
        columns = {**terms.reference, "params": size, "tokens": np.exp(log_compute) / (6 * size)}
        return float(law.predict({p: x[row] for p, x in values.items()}, columns))

    for row in range(5):
        middle = float(terms.log_best_params(phi[row : row + 1], terms.middle)[0])
        found = minimize_scalar(lambda x, r=row: loss(r, x, terms.middle), bracket=(middle - 0.5, middle + 0.4))
        assert found.x == pytest.approx(middle, abs=1e-4)
        assert np.exp(terms.middle - 2 * middle) / 6 == pytest.approx(np.exp(phi[row, 1]), rel=1e-6)
        assert found.fun == pytest.approx(np.exp(phi[row, 0]), rel=1e-6)


def test_laws_without_such_an_optimum_are_left_to_the_bootstrap():
    for name in ("kaplan", "data-constrained", "diloco", "vocabulary"):
        columns = {column: np.linspace(2.0, 3.0, 9) for column in LAWS[name].columns}
        assert optimum_terms(LAWS[name], columns) is None
    with pytest.raises(ConfigError, match="intervals='bootstrap'"):
        sf.fit(first_ten(), "kaplan", intervals="posterior")
    held = LAWS["chinchilla"].with_(fixed={"a": 0.34})
    assert optimum_terms(held, columns_of("chinchilla")) is None, "an exponent is never anything but what was asked"
    floor = optimum_terms(LAWS["chinchilla"].with_(fixed={"E": 1.7}), columns_of("chinchilla"))
    assert floor.floor == pytest.approx(1.7) and "floor_share" not in floor.roles


def test_draws_of_a_narrow_normal_posterior_are_exact():
    held = Beliefs(np.zeros(5), np.array([1.0, 2.0, 1.0, 3.0, 1.0]))
    rows = np.random.default_rng(0).standard_normal((4, 5)) / 0.05
    seen = rows @ np.array([0.3, -1.0, 0.5, 2.0, -0.2])
    found = sample(lambda x: -0.5 * ((x @ rows.T - seen) ** 2).sum(1), held, 4000, np.random.default_rng(1))
    covariance = np.linalg.inv(rows.T @ rows + np.diag(1 / held.sd**2))
    mean = covariance @ rows.T @ seen
    deviation = np.sqrt(np.diag(covariance))
    assert np.abs((found.mean(0) - mean) / deviation).max() < 0.12
    np.testing.assert_allclose(found.std(0), deviation, rtol=0.1)


def test_the_optimum_of_ten_runs_is_covered_and_the_seed_decides_the_draws():
    runs = first_ten()
    problem = Problem(LAWS["coupled"], {c: runs[c].to_numpy() for c in ("params", "tokens")}, np.log(runs["loss"]))
    found = posterior(problem, np.arange(10), draws=300, seed=1)
    again = posterior(problem, np.arange(10), draws=300, seed=1)
    np.testing.assert_array_equal(found.theta, again.theta)
    compute = 10 * 6 * (runs.params * runs.tokens).max()
    low, high = np.exp(np.quantile(found.terms.log_best_params(found.phi, np.log(compute)), [0.025, 0.975]))
    assert low < best_size(compute) < high < 2.5 * low
    borrowed = posterior(problem, np.arange(10), draws=300, seed=1, borrowed=True)
    assert "slope of the best size" in borrowed.notes[0] and "borrowed" not in found.notes[0]


def test_checkpoints_of_one_run_count_once():
    runs = pd.concat([first_ten()] * 3, ignore_index=True)
    columns = {c: runs[c].to_numpy() for c in ("params", "tokens")}
    problem = Problem(LAWS["chinchilla"], columns, np.log(runs["loss"]))
    spread = [
        posterior(problem, clusters, draws=1000).phi.std(axis=0)[1] for clusters in (np.arange(30) % 10, np.arange(30))
    ]
    assert spread[0] > 1.3 * spread[1]


def test_fit_takes_the_posterior_for_few_runs_and_says_so():
    runs = first_ten()[:9]
    found = sf.fit(runs, "chinchilla", resamples=400)
    assert any("posterior under weak beliefs" in note for note in found.notes) and len(found.replicates) == 400
    compute = 10 * 6 * (runs.params * runs.tokens).max()
    answer = found.optimal_size(compute=compute)
    assert answer.params_low < best_size(compute) < answer.params_high
    forced = sf.fit(runs, "chinchilla", resamples=20, intervals="bootstrap", backtest=False)
    assert not forced.notes and len(forced.replicates) == 20
    with pytest.raises(ConfigError, match="intervals must be one of auto, bootstrap"):
        sf.fit(runs, "chinchilla", intervals="bayes")


@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
def test_of_few_runs_the_richest_law_is_drawn_alone():
    found = sf.fit(first_ten(), resamples=200)
    assert (found.law.name, found.alternatives) == ("coupled", ())
    by_name = sf.fit(first_ten(), "coupled", resamples=200)
    assert found.optimal_size(compute=1e21).params == by_name.optimal_size(compute=1e21).params
    exact, refitted = sf.fit(first_ten(noise=0.0), resamples=20), sf.fit(first_ten(), resamples=20, intervals="pairs")
    assert exact.alternatives and refitted.alternatives  # nothing is left open, or no belief is asked for


def test_fewer_runs_than_parameters_answer_widely_or_refuse_for_the_width():
    runs = first_ten().iloc[[0, 4, 5, 9]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sf.fit(runs, "chinchilla", resamples=400)
    assert any("4 runs leave open of 5" in note for note in found.notes)
    asked = 6 * (runs.params * runs.tokens).max()
    try:
        answer = found.optimal_size(compute=asked)
    except sf.FitError as error:
        assert "wider than a factor" in str(error)
    else:
        assert answer.params_high > 1.2 * answer.params_low


def test_a_column_that_never_varies_is_not_filled_in_by_belief():
    runs = first_ten().assign(clients_per_round=16, skew=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sf.fit(runs, "federated", resamples=50)
    assert "clients_per_round is 16 in every run" in found.undetermined


def test_what_belief_fills_in_is_named():
    runs = first_ten()[:8].assign(tokens=lambda table: 20 * table.params)
    runs["loss"] = LAWS["chinchilla"].predict(TRUTH, {c: runs[c].to_numpy() for c in ("params", "tokens")})
    runs["loss"] *= np.exp(0.003 * np.random.default_rng(0).standard_normal(8))
    found = sf.fit(runs, "chinchilla", resamples=200, backtest=False)
    assert not found.undetermined and any("open: tokens is about 20 times params" in note for note in found.notes)


def test_runs_that_are_a_laws_own_numbers_keep_their_exact_fit():
    found = sf.fit(first_ten(noise=0.0)[:8], "chinchilla", resamples=20, backtest=False)
    assert found.params["a"] == pytest.approx(TRUTH["a"], abs=1e-5) and not found.notes


def test_intervals_cover_parameters_drawn_from_the_beliefs():
    bench = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "bench_posterior.py"))
    table = pd.DataFrame(bench["ranks"]("chinchilla", 8))
    inside = (table > 0.025) & (table < 0.975)
    assert inside.to_numpy().mean() > 0.8 and table.mean().between(0.15, 0.85).all()
