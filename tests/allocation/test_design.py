"""Which runs to make next: the algebra of the criterion, the budget, and a simulation against random choice."""

import warnings

import numpy as np
import pandas as pd
import pytest
from fit_stub import Fitted

from scalefed.allocation import design
from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.design import grid, next_runs
from scalefed.allocation.optimum import minimise
from scalefed.errors import ConfigError, FitError, FitWarning
from scalefed.laws import LAWS
from scalefed.laws.simulate import simulate_runs

TRUTH = {"E": 0.35, "A": 6.0, "a": 0.34, "B": 200.0, "b": 0.42, "g": 0.5, "s": 1.2}
QUESTION = {"clients_per_round": 4, "skew": 0.3}
PILOT = {"params": [1e4, 5e4, 2e5], "tokens": [1e6, 4e6], "clients_per_round": [1, 8], "skew": [0.0, 0.5]}


def linear_fit(runs: pd.DataFrame, start: dict[str, float]) -> Fitted:
    """Least squares on log loss by Gauss-Newton, with normal replicates: all that these tests need of a fit."""
    law = LAWS["federated"]
    names = list(law.free)

    def natural(theta: np.ndarray) -> dict[str, np.ndarray]:
        return {n: np.exp(theta[..., i]) if n in law.positive else theta[..., i] for i, n in enumerate(names)}

    columns = {n: runs[n].to_numpy(float) for n in law.columns}
    theta = np.array([np.log(start[n]) if n in law.positive else start[n] for n in names])
    prior = np.eye(len(names)) * 1e-8
    for _ in range(60):
        moves = np.concatenate([np.eye(len(names)), -np.eye(len(names))]) * 1e-5
        logs = np.log(law.predict(natural(theta + moves), columns))
        jacobian = (logs[: len(names)] - logs[len(names) :]).T / 2e-5
        residual = np.log(runs["loss"].to_numpy()) - np.log(law.predict(natural(theta), columns))
        step = np.linalg.solve(jacobian.T @ jacobian + prior, jacobian.T @ residual)
        theta = theta + step / max(1.0, np.abs(step).max())
        if np.abs(step).max() < 1e-9:
            break
    noise = float(np.sqrt((residual**2).sum() / max(len(runs) - len(names), 1)))
    cover = np.linalg.inv(jacobian.T @ jacobian + prior) * max(noise, 1e-6) ** 2
    draws = np.random.default_rng(0).multivariate_normal(theta, cover, size=80, method="eigh")
    return Fitted(
        law, {n: float(v) for n, v in natural(theta).items()}, pd.DataFrame(natural(draws)), runs, noise=noise
    )


def pilot(seed: int, noise: float = 0.01) -> Fitted:
    return linear_fit(simulate_runs("federated", TRUTH, PILOT, noise=noise, seed=seed), TRUTH)


@pytest.fixture(scope="module")
def fit() -> Fitted:
    return pilot(0)


def test_the_plan_keeps_to_its_budget(fit):
    for compute, count in ((1e13, 6), (2e12, 12), (1e14, 1)):
        rows = next_runs(fit, compute=compute, count=count, **QUESTION)
        assert 1 <= len(rows) <= count
        assert rows["compute"].sum() <= compute * (1 + 1e-9)
        np.testing.assert_allclose(rows["compute"], 6 * rows["params"] * rows["tokens"])
        assert (np.diff(rows["expected_width"]) < 0).all()
        assert (rows["expected_width"] < rows["width_now"]).all()
    assert {"params", "tokens", "clients_per_round", "skew", "seed"} <= set(rows.columns)


def test_more_compute_and_more_runs_tell_more(fit):
    last = [next_runs(fit, compute=c, count=8, **QUESTION)["expected_width"].iloc[-1] for c in (2e12, 2e13, 2e14)]
    assert last[0] >= last[1] >= last[2]
    last = [next_runs(fit, compute=2e13, count=n, **QUESTION)["expected_width"].iloc[-1] for n in (2, 6, 12)]
    assert last[0] > last[1] > last[2]


def test_the_update_of_the_information_is_exact(fit):
    table = grid(fit, 1e13)
    table["compute"] = 6 * table["params"] * table["tokens"]
    made = design.design_of(fit, table, None, QUESTION, 0)
    chosen = [3, 40, 40, 100]
    updated = design.with_runs(made, chosen)
    rows = made.information[:, chosen]
    direct = np.linalg.inv(np.linalg.inv(made.covariance) + np.swapaxes(rows, 1, 2) @ rows)
    np.testing.assert_allclose(updated, direct, rtol=1e-5, atol=1e-12)
    back = design.with_one(made, design.with_runs(made, [3]), 3, sign=-1.0)
    np.testing.assert_allclose(back, made.covariance, rtol=1e-5, atol=1e-10)
    after, _ = design.gains(made, made.covariance)
    assert after[40] == pytest.approx(design.value_of(made, [40]), rel=1e-9)


def test_near_the_best_of_all_pairs(fit):
    """Greedy with exchange against every pair of 60 candidates."""
    table = grid(fit, 1e13).iloc[::5].head(60).reset_index(drop=True)
    rows = next_runs(fit, compute=1e13, count=2, candidates=table, **QUESTION)
    table["compute"] = 6 * table["params"] * table["tokens"]
    made = design.design_of(fit, table, None, QUESTION, 0)
    pairs = [(i, j) for i in range(60) for j in range(i, 60) if made.cost[i] + made.cost[j] <= 1e13]
    best = min(design.value_of(made, list(pair)) for pair in pairs)
    index = [int(np.flatnonzero((table[["params", "tokens", "clients_per_round", "skew"]] == row).all(axis=1))[0])
             for row in rows[["params", "tokens", "clients_per_round", "skew"]].to_numpy()]  # fmt: skip
    assert design.value_of(made, index) <= best + 0.02


def test_candidates_of_ones_own_and_repeats_get_new_seeds(fit):
    table = pd.DataFrame({"params": [1e4], "tokens": [1e6], "clients_per_round": [1.0], "skew": [0.0]})
    rows = next_runs(fit, compute=1e12, count=3, candidates=table, **QUESTION)
    assert rows["seed"].tolist() == [0, 1, 2]
    fit.runs["seed"] = 4
    assert next_runs(fit, compute=1e12, count=2, candidates=table, **QUESTION)["seed"].tolist() == [5, 6]
    del fit.runs["seed"]


def test_a_design_on_one_ray_is_sent_off_it():
    """All runs at tokens = 20 params cannot tell params from tokens; the next runs leave that line."""
    ray = pd.DataFrame(
        {"params": np.geomspace(1e4, 1e6, 12), "clients_per_round": [1, 4] * 6, "skew": [0.0, 0.3, 0.6] * 4}
    )
    ray["tokens"] = 20 * ray["params"]
    runs = simulate_runs("federated", TRUTH, ray, noise=0.005, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        rows = next_runs(linear_fit(runs, TRUTH), compute=1e13, count=4, at=1e14, **QUESTION)
    ratio = np.abs(np.log(rows["tokens"] / rows["params"] / 20))
    assert (ratio > np.log(5)).sum() >= 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"compute": -1.0, "count": 3}, "compute must be positive"),
        ({"compute": 1e13, "count": 0}, "count a whole number"),
        ({"compute": 1e3, "count": 3}, "no candidate run costs"),
    ],
)
def test_wrong_questions_are_refused(fit, words, message):
    with pytest.raises(ConfigError, match=message):
        next_runs(fit, **words, **QUESTION)


def test_a_law_without_tokens_is_refused(fit):
    poor = Fitted(LAWS["diloco-offset"], {"E": 1.0, "A": 9.0, "a": 0.2, "g": 0.1}, pd.DataFrame(), fit.runs)
    with pytest.raises(FitError, match="tokens"):
        next_runs(poor, compute=1e13, count=2, clients_per_round=4)


@pytest.mark.slow
def test_beats_random_choice_in_simulation():
    """Same candidates, same number of runs, same compute: the error of the best size, 24 draws."""
    at, compute, count = 1e13, 2e13, 12
    setting = Setting(clients_per_round=4, skew=0.3)
    truth = np.log(float(minimise("federated", TRUTH, budget=Budget(compute=at), setting=setting).params))
    columns = ["params", "tokens", "clients_per_round", "skew"]
    errors: dict[str, list[float]] = {"chosen": [], "random": []}
    for seed in range(24):
        before = pilot(seed)
        table = grid(before, compute)
        table["compute"] = 6 * table["params"] * table["tokens"]
        generator = np.random.default_rng(seed)
        random = table.sample(count, random_state=generator)
        while random["compute"].sum() > compute:
            random = table.sample(count, random_state=generator)
        chosen = next_runs(before, compute=compute, count=count, at=at, **QUESTION)
        for name, rows in (("chosen", chosen), ("random", random)):
            more = simulate_runs("federated", TRUTH, rows[columns], noise=0.01, seed=500 + seed)
            after = linear_fit(pd.concat([before.runs, more], ignore_index=True), TRUTH)
            found = minimise("federated", after.params, budget=Budget(compute=at), setting=setting)
            errors[name].append(float(np.log(found.params)) - truth)
    rms = {name: float(np.sqrt(np.mean(np.square(values)))) for name, values in errors.items()}
    assert rms["chosen"] < 0.85 * rms["random"]
