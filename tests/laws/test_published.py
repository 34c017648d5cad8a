"""Laws that people publish and that are no sums of powers: read, differentiated, recovered, and asked for a size."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from law_truths import TRUTHS

from scalefed.allocation import optimum
from scalefed.allocation.budgets import Budget, Setting
from scalefed.errors import ConfigError, DataError, FitError
from scalefed.fitting.fit import fit
from scalefed.fitting.problem import Problem
from scalefed.fitting.solver import Solver
from scalefed.laws import LAWS, RECOMMENDED, Law

SIZES, LENGTHS = np.geomspace(2e8, 6e9, 7), np.geomspace(2e9, 2e11, 7)
AXES = {
    "params": SIZES, "tokens": LENGTHS, "bits": [3.0, 4, 6, 16], "vocab_params": np.geomspace(1e6, 1e9, 6),
    "task_loss": np.linspace(2.0, 4.0, 40), "unique_tokens": np.geomspace(1e9, 1e11, 5), "epochs": [1.0, 2, 4, 8, 16],
    "clients_per_round": [1.0, 4, 16], "samples": np.geomspace(1, 1e4, 20), "compute": np.geomspace(1e18, 1e22, 20),
}  # fmt: skip
OWN = {
    "division by a sum": ("U/(1 + exp(k*task_loss - c))", {"U": 0.8, "k": 4.0, "c": 12.0}),
    "a power of -1": ("U*(1 + exp(k*task_loss - c))^-1", {"U": 0.8, "k": 4.0, "c": 12.0}),
    "rectified": ("E + B/(G + tokens^b)", {"E": 1.0, "B": 9e3, "G": 2e4, "b": 0.45}),
    "what is left to guess": ("U - k*exp(-g*task_loss)", {"U": 0.85, "k": 2.1, "g": 0.7}),
    "a ceiling": ("U - A/params^a", {"U": 1.0, "A": 40.0, "a": 0.25}),
    "a floor below 0": ("A/params^a + B/tokens^b - E", {"A": 30.0, "a": 0.1, "B": 20.0, "b": 0.12, "E": 3.0}),
    "a logarithm": ("A - b*log(compute)", {"A": 900.0, "b": 16.0}),
    "passes by attempts": ("exp(-A*samples^-k)", {"A": 3.0, "k": 0.4}),
    "discounted repeats": (
        "E + A/params^a + B/repeats(tokens/clients_per_round^g, unique_tokens, R)^b",
        {"E": 1.8, "A": 400.0, "a": 0.34, "B": 2000.0, "g": 0.4, "R": 10.0, "b": 0.36},
    ),
    "greek": (
        "E + A/params^alpha + B/tokens^beta", {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37},
    ),
}  # fmt: skip
LAWS_HERE = {name: (LAWS[name], TRUTHS[name]) for name in LAWS if name in (
    "farseer", "precision", "epoch-decay", "transfer", "vocabulary", "sigmoid-accuracy", "data-constrained")} | {
    name: (Law.parse(formula, name=name, columns=["task_loss"]), truth) for name, (formula, truth) in OWN.items()
}  # fmt: skip


def design(law: Law) -> pd.DataFrame:
    axes = {column: AXES[column] for column in law.columns}
    if law.name == "precision":
        axes |= {"params": np.geomspace(3e7, 3e8, 5), "tokens": np.geomspace(1e9, 3e10, 5)}
    if law.name == "transfer":
        axes |= {"params": np.geomspace(1e6, 1e9, 6), "tokens": np.geomspace(1e5, 1e10, 8)}
    return pd.DataFrame(list(itertools.product(*axes.values())), columns=list(axes))


@pytest.mark.parametrize("name", LAWS_HERE)
def test_derivatives_are_exact(name):
    law, truth = LAWS_HERE[name]
    runs = design(law)
    columns = {c: runs[c].to_numpy(dtype=float) for c in law.columns}
    log_loss = np.log(law.predict(truth, columns)) + 0.01 * np.random.default_rng(0).standard_normal(len(runs))
    problem = Problem(law, columns, log_loss)
    solver = Solver(problem, delta=np.inf)
    at = problem.to_coordinates(np.array([[truth[p] for p in problem.names]]))
    assert problem.to_values(at)[0] == pytest.approx([truth[p] for p in problem.names], rel=1e-9)
    predicted = np.log(law.predict(truth, columns))
    assert log_loss - solver.residuals(at)[0][0] == pytest.approx(predicted, abs=1e-10)
    at = at + 0.01

    def gradient(theta):
        r, state = solver.residuals(theta)
        return solver.derivatives(theta, r, state, None, np.array([False]))

    slope, bend = (x[0] for x in gradient(at))
    moves = np.eye(problem.p)
    step = 1e-6
    loss = [solver.loss(solver.residuals(at + s * step * m)[0], None)[0] for m in moves for s in (1, -1)]
    assert slope == pytest.approx(
        (np.array(loss[::2]) - loss[1::2]) / (2 * step), rel=1e-4, abs=1e-6 * abs(slope).max()
    )
    moved = [(gradient(at + step * m)[0][0] - gradient(at - step * m)[0][0]) / (2 * step) for m in moves]
    assert bend == pytest.approx(np.array(moved), rel=1e-4, abs=1e-6 * abs(bend).max())


@pytest.mark.parametrize("name", LAWS_HERE)
def test_noise_free_runs_give_the_truth_back(name):
    law, truth = LAWS_HERE[name]
    runs = design(law)
    runs["loss"] = law.predict(truth, runs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit(runs, law, resamples=0, backtest=False)
    assert found.certificate.objective < 1e-20
    assert found.params == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("name", ["farseer", "vocabulary", "epoch-decay", "a floor below 0", "discounted repeats"])
def test_the_best_size_is_that_of_a_fine_grid(name):
    law, truth = LAWS_HERE[name]
    given = {"vocab_params": 5e7}
    setting = Setting(
        clients_per_round=4.0, unique_tokens=3e9, columns={c: v for c, v in given.items() if c in law.columns}
    )
    values = {p: np.array([v, v * 1.02 if p in ("A", "B") else v]) for p, v in truth.items()}
    for compute in (3e19, 3e20):
        found = optimum.minimise(law, values, budget=Budget(compute=compute), setting=setting)
        sizes = np.geomspace(1e6, 3e10 if name == "farseer" else 1e13, 200_001)
        tokens = compute / (6 * sizes)
        columns = {"params": sizes, "tokens": tokens, "clients_per_round": 4.0, "unique_tokens": 3e9,
                   "epochs": tokens / 3e9, "vocab_params": 5e7}  # fmt: skip
        for row in range(2):
            loss = law.predict({p: v[row] for p, v in values.items()}, {c: columns[c] for c in law.columns})
            assert found.params[row] == pytest.approx(sizes[np.nanargmin(loss)], rel=2e-3)
            assert found.loss[row] == pytest.approx(np.nanmin(loss), rel=1e-9)
        assert found.bounded.all() and 6 * found.params * found.tokens == pytest.approx(compute, rel=1e-9)
        more = optimum.minimise(law, values, budget=Budget(compute=1.01 * compute), setting=setting)
        assert found.prices["compute"] == pytest.approx(found.loss - more.loss, rel=0.02)


def test_a_law_that_falls_for_ever_has_no_best_size():
    found = optimum.minimise("farseer", TRUTHS["farseer"], budget=Budget(compute=1e23))
    assert not found.bounded
    held = optimum.minimise("farseer", TRUTHS["farseer"], budget=Budget(compute=1e23, params=1e9))
    assert held.bounded and held.params == pytest.approx(1e9, rel=1e-6) and held.prices["params"] > 0


def test_more_tokens_than_are_good_are_left():
    law = Law.parse("E + A/params^a + B/tokens^b + C*tokens^c")
    values = {"E": 1.0, "A": 50.0, "a": 0.3, "B": 400.0, "b": 0.3, "C": 1e-7, "c": 0.6}
    exact = optimum.minimise(law, values, budget=Budget(compute=1e22))
    other = Law.parse("E + A/params^a + B/tokens^b - Z + C*tokens^c + Z")  # the same, but not for the program
    searched = optimum.minimise(
        Law.parse("E + A/(params - 0.5*params)^a + B/tokens^b + C*tokens^c"),
        values | {"A": 50.0 * 0.5**0.3},
        budget=Budget(compute=1e22),
    )
    assert other.parameters[-1] == "c" or "Z" in other.parameters
    assert searched.params == pytest.approx(exact.params, rel=1e-4)
    assert searched.tokens == pytest.approx(exact.tokens, rel=1e-4)
    assert 6 * float(exact.params) * float(exact.tokens) < 1e22 * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e9, 1e12, 1e15, 1e17])
def test_a_parameter_that_is_added_to_a_column_is_sought_on_its_scale(scale):
    x = np.geomspace(scale, scale * 1e5, 12)
    for formula in ("E + A*(x+Q)^-a", "E + A*(Q+x)^-a", "E + A*(1+x/Q)^-a"):
        runs = {"x": x, "loss": 0.1 + 2 * (1 + x / (30 * scale)) ** -0.4}
        found = fit(runs, formula, columns={"x": "x"}, resamples=0, backtest=False)
        assert found.status.name == "CONVERGED" and found.certificate.objective < 1e-20
        assert found.params["Q"] == pytest.approx(30 * scale, rel=1e-6)


def test_a_typing_slip_of_a_column_is_still_told():
    for formula, column in (("E + A/param^a", "params"), ("E + B/token^b", "tokens"), ("G/round^d", "rounds")):
        with pytest.raises(ConfigError, match=f"did you mean the column '{column}'"):
            Law.parse(formula)
    with pytest.raises(ConfigError, match="did you mean the column 'skew'"):
        Law.parse("E + B*exp(s*skews)/tokens^b")
    runs = pd.DataFrame({"params": SIZES, "beta": SIZES, "loss": 1 + 9 / SIZES**0.2})
    with pytest.raises(ConfigError, match="the law takes 'beta' for a parameter, but the runs have"):
        fit(runs, "E + A/params^beta")


def test_a_search_says_what_it_needs():
    with pytest.raises(FitError, match="depends on vocab_params"):
        optimum.minimise("vocabulary", TRUTHS["vocabulary"], budget=Budget(compute=1e20))
    with pytest.raises(FitError, match="depends on unique_tokens"):
        optimum.minimise("epoch-decay", TRUTHS["epoch-decay"], budget=Budget(compute=1e20))
    with pytest.raises(DataError):
        LAWS["precision"].predict(TRUTHS["precision"], {"params": 1e8, "tokens": 1e9})


def test_eight_laws_come_first():
    assert len(RECOMMENDED) == 8 and set(RECOMMENDED) <= set(LAWS)
    assert not {"farseer", "federated-drift"} & set(RECOMMENDED)
