"""The batched solver: exact derivatives, the global optimum, agreement with other people's optimisers."""

import csv
from pathlib import Path

import numpy as np
import pytest
from law_truths import NAMES, OF_OWN_COLUMNS, TRUTHS
from scipy.optimize import least_squares

from scalefed.fitting.identifiability import generic_jacobian
from scalefed.fitting.initialisation import global_fit
from scalefed.fitting.problem import Problem, subset
from scalefed.fitting.solver import Solver
from scalefed.laws import LAWS, Law
from scalefed.laws.simulate import simulate_runs
from scalefed.seeds import quasi_random

COMMON = [name for name in NAMES if name not in OF_OWN_COLUMNS]
DATA = Path(__file__).parents[2].parent / "shared" / "data"
GRID = {
    "params": [1e7, 4e7, 2e8, 1e9],
    "tokens": [5e8, 4e9, 3e10],
    "clients": [16, 64],
    "clients_per_round": [1, 4, 16],
    "skew": [0.0, 0.3, 0.7],
    "local_steps": [10, 50],
    "unique_tokens": [2e8, 1e10],
    "rounds": [100.0, 1000.0],
}


def grid_for(law: Law) -> dict[str, list[float]]:
    return {c: GRID[c] for c in law.columns}


def problem_for(name: str, noise: float = 0.0, seed: int = 0) -> Problem:
    law = LAWS[name]
    runs = simulate_runs(law, TRUTHS[name], grid_for(law), noise=noise, seed=seed)
    return Problem(law, {c: runs[c].to_numpy(float) for c in law.columns}, np.log(runs["loss"].to_numpy()))


def truth_of(problem: Problem) -> np.ndarray:
    return problem.to_coordinates(np.array([[TRUTHS[problem.law.name][p] for p in problem.names]]))


@pytest.mark.parametrize("name", COMMON)
def test_coordinates_and_values_are_inverse(name: str) -> None:
    problem = problem_for(name)
    values = np.array([[TRUTHS[name][p] for p in problem.names]])
    assert problem.to_values(problem.to_coordinates(values)) == pytest.approx(values, rel=1e-10)


@pytest.mark.parametrize("name", COMMON)
def test_the_solver_and_the_law_predict_alike(name: str) -> None:
    problem = problem_for(name)
    residuals, _ = Solver(problem).residuals(truth_of(problem))
    assert np.abs(residuals).max() < 1e-9


@pytest.mark.parametrize("name", COMMON)
@pytest.mark.parametrize("delta", [0.02, np.inf])
def test_gradient_and_hessian_match_finite_differences(name: str, delta: float) -> None:
    problem = problem_for(name, noise=0.02)
    solver = Solver(problem, delta=delta)
    generator = np.random.default_rng(1)
    theta = truth_of(problem) + 0.03 * generator.standard_normal((1, problem.p))
    weights = generator.exponential(size=(1, problem.n))
    residuals, state = solver.residuals(theta)
    gradient, hessian = solver.derivatives(theta, residuals, state, weights)

    def objective(t: np.ndarray) -> np.ndarray:
        return solver.loss(solver.residuals(t)[0], np.repeat(weights, len(t), axis=0))

    def slope(t: np.ndarray) -> np.ndarray:
        r, s = solver.residuals(t)
        return solver.derivatives(t, r, s, np.repeat(weights, len(t), axis=0))[0]

    step = 1e-5 * np.eye(problem.p)
    numeric = (objective(theta + step) - objective(theta - step)) / 2e-5
    assert gradient[0] == pytest.approx(numeric, rel=2e-5, abs=1e-6 * np.abs(numeric).max())
    step = 1e-7 * np.eye(problem.p)  # small: the Huber loss's second derivative jumps where a residual crosses delta
    curved = (slope(theta + step) - slope(theta - step)) / 2e-7
    assert hessian[0] == pytest.approx(curved.T, rel=1e-4, abs=1e-5 * np.abs(curved).max())


@pytest.mark.parametrize("name", COMMON)
def test_the_jacobian_matches_finite_differences(name: str) -> None:
    problem = problem_for(name)
    solver, theta = Solver(problem), truth_of(problem)
    step = 1e-6 * np.eye(problem.p)
    numeric = (solver.residuals(theta - step)[0] - solver.residuals(theta + step)[0]).T / 2e-6
    assert solver.jacobian(theta[0]) == pytest.approx(numeric, abs=1e-7 * np.abs(numeric).max())


@pytest.mark.parametrize("name", COMMON)
@pytest.mark.parametrize("delta", [1e-3, np.inf])
def test_noise_free_runs_give_back_the_truth(name: str, delta: float) -> None:
    problem = problem_for(name)
    best = global_fit(problem, delta=delta)
    found = dict(zip(problem.names, problem.to_values(best.theta[None])[0], strict=True))
    assert found == pytest.approx({p: TRUTHS[name][p] for p in problem.names}, rel=1e-6)


def scipy_optimum(problem: Problem, delta: float, start: np.ndarray) -> np.ndarray:
    """scipy's least_squares on the law itself, in logarithms of the amplitudes."""
    law = problem.law
    logs = np.array([p in law.positive for p in problem.names])

    def residual(x: np.ndarray) -> np.ndarray:
        values = dict(zip(problem.names, np.where(logs, np.exp(x), x), strict=True))
        return problem.z - np.log(law.predict(values, problem.columns))

    values = problem.to_values(start[None])[0]
    x = np.where(logs, np.log(np.where(logs, values, 1.0)), values)
    keywords = {"loss": "huber", "f_scale": delta} if np.isfinite(delta) else {}
    found = least_squares(residual, x, jac="3-point", xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=4000,
                          x_scale="jac", **keywords)  # fmt: skip
    return np.where(logs, np.exp(found.x), found.x)


@pytest.mark.parametrize("name", ["chinchilla", "coupled", "federated", "federated-steps", "diloco-offset"])
def test_least_squares_agrees_with_scipy(name: str) -> None:
    problem = problem_for(name, noise=0.01)
    best = global_fit(problem, delta=np.inf)
    ours = dict(zip(problem.names, problem.to_values(best.theta[None])[0], strict=True))
    theirs = scipy_optimum(problem, np.inf, best.theta)
    predicted = problem.law.predict(dict(zip(problem.names, theirs, strict=True)), problem.columns)
    assert problem.law.predict(ours, problem.columns) == pytest.approx(predicted, rel=1e-8)
    residual = problem.z - np.log(predicted)
    assert best.objective <= 0.5 * residual @ residual * (1 + 1e-12)


def test_the_huber_fit_agrees_with_scipy() -> None:
    problem = problem_for("chinchilla", noise=0.01)
    best = global_fit(problem, delta=0.005)
    ours = problem.law.predict(
        dict(zip(problem.names, problem.to_values(best.theta[None])[0], strict=True)), problem.columns
    )
    theirs = scipy_optimum(problem, 0.005, best.theta)
    assert ours == pytest.approx(
        problem.law.predict(dict(zip(problem.names, theirs, strict=True)), problem.columns), rel=1e-8
    )


def test_weights_act_like_repeated_runs() -> None:
    problem = problem_for("chinchilla", noise=0.01)
    counts = np.random.default_rng(0).integers(1, 4, problem.n)
    repeated = subset(problem, np.repeat(np.arange(problem.n), counts))
    solver = Solver(problem, delta=0.01)
    weighted = solver.solve(truth_of(problem), counts[None].astype(float))
    direct = Solver(repeated, delta=0.01).solve(truth_of(repeated))
    assert problem.to_values(weighted.theta) == pytest.approx(repeated.to_values(direct.theta), rel=1e-7)
    assert weighted.objective == pytest.approx(direct.objective, rel=1e-12)


def test_a_batch_solves_every_member_as_if_alone() -> None:
    problem = problem_for("federated", noise=0.01)
    solver = Solver(problem, delta=0.01)
    weights = np.random.default_rng(0).exponential(size=(40, problem.n))
    together = solver.solve(np.repeat(truth_of(problem), 40, axis=0), weights)
    alone = solver.solve(truth_of(problem), weights[17:18])
    assert together.converged.all()
    assert problem.to_values(together.theta[17:18]) == pytest.approx(problem.to_values(alone.theta), rel=1e-6)


def test_every_replicate_is_as_good_as_the_best_of_its_own_starts() -> None:
    problem = problem_for("chinchilla", noise=0.01)
    solver = Solver(problem)
    best = global_fit(problem)
    generator = np.random.default_rng(3)
    weights = generator.multinomial(problem.n, np.full(problem.n, 1 / problem.n), 6).astype(float)
    warm = solver.solve(np.repeat(best.theta[None], 6, axis=0), weights, iterations=200)
    starts = best.theta + 0.1 * generator.standard_normal((12, problem.p))
    for b in range(6):
        own = solver.solve(starts, np.repeat(weights[b : b + 1], 12, axis=0), iterations=200)
        assert warm.objective[b] <= own.objective.min() * (1 + 1e-9)


def test_order_of_runs_and_units_do_not_matter() -> None:
    problem = problem_for("federated", noise=0.01)
    order = np.random.default_rng(0).permutation(problem.n)
    shuffled = subset(problem, order)
    scaled = Problem(problem.law, {**problem.columns, "params": problem.columns["params"] / 1e6}, problem.z)
    one, two, three = (global_fit(p) for p in (problem, shuffled, scaled))
    assert two.objective == pytest.approx(one.objective, rel=1e-9)
    assert three.objective == pytest.approx(one.objective, rel=1e-9)
    names = list(problem.names)
    a, b = (p.to_values(f.theta[None])[0] for p, f in ((problem, one), (scaled, three)))
    assert b[names.index("a")] == pytest.approx(a[names.index("a")], rel=1e-6)
    assert b[names.index("A")] == pytest.approx(a[names.index("A")] / 1e6 ** a[names.index("a")], rel=1e-6)


def test_bounds_hold_and_fixed_and_shared_parameters_stay() -> None:
    runs = simulate_runs("chinchilla", TRUTHS["chinchilla"], grid_for(LAWS["chinchilla"]), noise=0.01)
    columns = {c: runs[c].to_numpy(float) for c in ("params", "tokens")}
    law = LAWS["chinchilla"].with_(bounds={"a": (0.5, 0.9), "A": (1.0, 1e5)}, ties={"b": "a"})
    problem = Problem(law, columns, np.log(runs["loss"].to_numpy()))
    best = global_fit(problem)
    values = dict(zip(problem.names, problem.to_values(best.theta[None])[0], strict=True))
    assert values["a"] == pytest.approx(0.5)
    assert best.at_lower[problem.names.index("a")]
    assert 1.0 <= values["A"] <= 1e5
    fixed = Problem(LAWS["chinchilla"].with_(fixed={"E": 1.8, "a": 0.35}), columns, np.log(runs["loss"].to_numpy()))
    assert fixed.names == ("A", "B", "b")
    found = dict(zip(fixed.names, fixed.to_values(global_fit(fixed).theta[None])[0], strict=True))
    assert found["b"] == pytest.approx(0.37, abs=0.05)


def test_quasi_random_points_fill_the_cube() -> None:
    points = quasi_random(256, 3)
    assert points.shape == (256, 3)
    counts = np.histogramdd(points, bins=2, range=[(0, 1)] * 3)[0]
    assert counts.min() >= 24


def test_a_generic_jacobian_loses_rank_where_two_columns_are_one() -> None:
    n = np.geomspace(1e7, 1e10, 8)
    good = Problem(LAWS["chinchilla"], {"params": n, "tokens": n[::-1] ** 1.3}, np.zeros(8))
    bad = Problem(LAWS["average-compute"], {"params": n, "tokens": n, "clients_per_round": np.ones(8)}, np.zeros(8))
    assert np.linalg.svd(generic_jacobian(good), compute_uv=False)[:, -1].max() > 1e-3
    assert np.median(np.linalg.svd(generic_jacobian(bad), compute_uv=False)[:, -1]) < 1e-2


@pytest.fixture(scope="module")
def published() -> Problem:
    path = DATA / "chinchilla_epoch245.csv"
    if not path.exists():
        pytest.skip("the published runs are not here (../shared/data/chinchilla_epoch245.csv)")
    with open(path, encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["used_in_published_fit"] == "True"]
    n, d, loss = (np.array([float(row[k]) for row in rows]) for k in ("params", "tokens", "loss"))
    return Problem(LAWS["chinchilla"], {"params": n, "tokens": d}, np.log(loss))


def test_the_published_chinchilla_optimum_is_found(published: Problem) -> None:
    best = global_fit(published)
    assert best.objective == pytest.approx(0.0010182740178006, abs=1e-12)
    assert best.agreeing == 1.0
    assert best.decrement < 1e-15
    found = dict(zip(published.names, published.to_values(best.theta[None])[0], strict=True))
    assert found == pytest.approx({"E": 1.81722, "A": 477.83, "a": 0.34731, "B": 2143.4, "b": 0.36717}, rel=2e-5)


def test_bootstrap_replicates_on_the_published_runs_are_at_their_optimum(published: Problem) -> None:
    best = global_fit(published)
    solver = Solver(published)
    generator = np.random.default_rng(0)
    weights = generator.multinomial(240, np.full(240, 1 / 240), 200).astype(float)
    found = solver.solve(np.repeat(best.theta[None], 200, axis=0), weights)
    assert found.converged.all()
    for b in range(0, 200, 40):
        starts = best.theta + 0.2 * generator.standard_normal((12, 5))
        own = solver.solve(starts, np.repeat(weights[b : b + 1], 12, axis=0), iterations=200)
        assert found.objective[b] <= own.objective.min() * (1 + 1e-9)
