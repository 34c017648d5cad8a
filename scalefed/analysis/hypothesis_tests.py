"""Do skew and participation matter, and does average compute decide? Classical tests with cluster-robust errors.

The law is linear in its parameters close to its least-squares optimum, so the tests are those of a linear regression of
the log target on the law's Jacobian, done by statsmodels with standard errors that let runs of one cluster be
correlated. (Robust fits are refitted by least squares for the test.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scalefed.allocation.cost import spent
from scalefed.allocation.defaults import question
from scalefed.allocation.mixture import mixed
from scalefed.allocation.optimum import ends, minimise
from scalefed.downstream.regression import statsmodels
from scalefed.errors import ConfigError, DataError
from scalefed.fitting.data import clusters_of
from scalefed.fitting.problem import Problem
from scalefed.fitting.result import Fit
from scalefed.fitting.solver import Solver
from scalefed.fitting.weights import problem_of
from scalefed.laws import Law
from scalefed.runs.log import require
from scalefed.units import grouped


@dataclass(frozen=True, slots=True)
class NestedTest:
    """Whether parameters differ from the values that a smaller law gives them.

    Attributes:
        null: parameter -> its value in the smaller law.
        statistic: Wald's F.
        degrees: numerator and denominator degrees of freedom.
        p_value: chance of a statistic as large if the smaller law were true.
        message: the outcome in words.
    """

    null: Mapping[str, float]
    statistic: float
    degrees_of_freedom: tuple[int, int]
    p_value: float
    message: str


def nested_test(fit: Fit, null: Mapping[str, float], *, clusters: Sequence[object] | None = None) -> NestedTest:
    """Test a smaller law inside the fitted one, for example ``{"s": 0}`` (skew does not matter).

    Args:
        fit: a fit of the larger law.
        null: parameter -> value in the smaller law; exponents and discounts, not amplitudes.
        clusters: one label a run; by default ``run_id``, so that checkpoints of a run count as one.

    Raises:
        ConfigError: a parameter that is not free, or an amplitude.
        DataError: not one cluster label a run, or all runs in one cluster.

    Source: Liang and Zeger 1986 for the covariance; statsmodels for the test.
    """
    sm = statsmodels()

    if not null:
        raise ConfigError("null must name at least one parameter, for example {'s': 0.0}")
    for name in null:
        if name not in fit.law.free or name in fit.law.positive:
            kinds = [p for p in fit.law.free if p not in fit.law.positive]
            raise ConfigError(f"{name!r} cannot be tested; free exponents of {fit.law.name!r}: {', '.join(kinds)}")
        if not np.isfinite(null[name] if isinstance(null[name], (int, float)) else np.nan):
            raise ConfigError(f"{name} is tested against a number, got {null[name]!r}")
    labels = _labels(fit, clusters)
    problem, theta = _at_optimum(fit)
    solver = Solver(problem, delta=np.inf)
    theta = solver.solve(theta[None], iterations=200).theta[0]
    residuals = solver.residuals(theta[None])[0][0]
    jacobian = solver.jacobian(theta)
    weights = np.ones(problem.n) if problem.weights is None else problem.weights
    model = sm.WLS(residuals + jacobian @ theta, jacobian, weights=weights)
    result = model.fit(cov_type="cluster", cov_kwds={"groups": labels}, use_t=True)
    rows = np.zeros((len(null), problem.p))
    for i, name in enumerate(null):
        rows[i, problem.index[name]] = 1.0
    test = result.wald_test((rows, np.array(list(null.values()))), use_f=True, scalar=True)
    p_value = float(test.pvalue)
    words = " and ".join(f"{n} = {grouped(v, 6)}" for n, v in null.items())
    verdict = "is rejected" if p_value < 0.05 else "cannot be rejected"
    degrees_of_freedom = int(test.df_num), int(test.df_denom)
    return NestedTest(
        dict(null), float(test.statistic), degrees_of_freedom, p_value, f"{words} {verdict} (p = {p_value:.3g})"
    )


def _labels(fit: Fit, clusters: Sequence[object] | None) -> np.ndarray:
    labels = clusters_of(fit.runs, fit.cluster) if clusters is None else pd.factorize(np.asarray(clusters))[0]
    if len(labels) != len(fit.runs):
        raise DataError(f"clusters must hold one label for each of {len(fit.runs)} runs, got {len(labels)}")
    if len(np.unique(labels)) < 2:
        raise DataError("all runs are in one cluster, so errors robust to clusters do not exist; give finer labels")
    return np.asarray(labels)


def _at_optimum(fit: Fit) -> tuple[Problem, np.ndarray]:
    target = fit.runs[fit.target].to_numpy()
    problem = problem_of(fit.runs, fit.law, target, fit.scale_weight, fit.huber_above)
    return problem, problem.to_coordinates(np.array([[fit.params[p] for p in problem.names]]))[0]


@dataclass(frozen=True, slots=True)
class AverageComputeTest:
    """The test q = p of ``log size = c + p log compute - q log clients``.

    Attributes:
        p, q: exponents.
        p_low, p_high, q_low, q_high: their intervals.
        difference: q - p; 0 is the average-compute rule, -p is no effect of clients at all.
        low, high: interval of the difference.
        p_value: two-sided, of q = p.
        level: coverage of the intervals.
        message: the outcome in words.
    """

    p: float
    p_low: float
    p_high: float
    q: float
    q_low: float
    q_high: float
    difference: float
    low: float
    high: float
    p_value: float
    level: float
    message: str


def average_compute_test(
    optima: "pd.DataFrame | Fit",
    *,
    clients: str = "clients_per_round",
    clusters: Sequence[object] | None = None,
    concentration: float | None = None,
    skew: float | None = None,
    local_steps: float | None = None,
    batch_tokens: float | None = None,
    unique_tokens: float | None = None,
    flops: str | None = None,
    level: float = 0.95,
    columns: Mapping[str, float] | None = None,
) -> AverageComputeTest:
    """Does the optimal size depend on compute and clients through compute per client only?

    Args:
        optima: measured optimal sizes, columns ``params``, ``compute`` and ``clients_per_round``, fitted by least
            squares in logarithms; or a Fit of a law of params, tokens and clients per round, whose own optima at the
            runs' numbers of clients, from the least to the largest compute of a run, are fitted so (the estimate and
            every replicate). With one discount g this gives p = b/(a+b) and q = g p at every budget.
        clients: name of the clients column.
        clusters: one label a row for cluster-robust errors; by default heteroscedasticity-robust ones (HC3).
        concentration: for a fit, this and what follows as in ``fit.optimal_size``: Dirichlet concentration, turned into
            skew by what the runs measured; or give ``skew``.
        skew: measured difference of the clients' mixtures, 0 to 1.
        local_steps: optimizer steps of a client in a round.
        batch_tokens: tokens of a client's step.
        unique_tokens: different tokens over all clients.
        flops: how compute is counted, in place of what the runs show: ``"6*params*tokens"``, or any sum of powers of
            params times tokens.
        level: coverage of the intervals.
        columns: values of other columns that the law needs.

    Raises:
        DataError: a column is missing, or there are fewer than four optima.
        ConfigError: a fit whose law has no optimum that depends on clients per round, or a setting for a table.

    Source: Chen et al. 2025 (arXiv 2511.12188), corollaries 1 and 3; q = p is what they imply together.
    """
    words = {
        "concentration": concentration, "skew": skew, "local_steps": local_steps, "batch_tokens": batch_tokens,
        "unique_tokens": unique_tokens, "flops": flops, "columns": columns,
    }  # fmt: skip
    setting = {name: value for name, value in words.items() if value is not None}
    if isinstance(optima, Fit):
        return _from_fit(optima, level, setting)
    sm = statsmodels()

    if setting:
        raise ConfigError(f"a table of optima takes no setting, got {', '.join(setting)}; give it with a fit")
    require(optima, ["params", "compute", clients], "the optima")
    if len(optima) < 4:
        raise DataError(f"q = p needs at least 4 optima at several budgets and client counts, got {len(optima)}")
    logs = np.log(optima[["params", "compute", clients]].to_numpy(dtype=float))
    design = np.column_stack([np.ones(len(logs)), logs[:, 1], -logs[:, 2]])
    model = sm.OLS(logs[:, 0], design)
    if clusters is None:
        result = model.fit(cov_type="HC3", use_t=True)
    else:
        groups = pd.factorize(np.asarray(clusters))[0]
        result = model.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    test = result.t_test(np.array([[0.0, -1.0, 1.0]]))
    low, high = test.conf_int(alpha=1 - level)[0]
    limits = result.conf_int(alpha=1 - level)
    numbers = (result.params[1], *limits[1], result.params[2], *limits[2], test.effect[0], low, high, test.pvalue)
    return _average_compute([float(np.squeeze(x)) for x in numbers], level)


def _from_fit(fit: Fit, level: float, words: Mapping[str, object]) -> AverageComputeTest:
    law, count = fit.law, "clients_per_round"
    if not {count, "params", "tokens"} <= set(law.columns):
        raise ConfigError(
            f"the law {law.name!r} has no optimal size that depends on clients per round; fit 'federated', or another "
            "law of params, tokens and clients_per_round"
        )
    flops = spent(fit.runs)
    computes = np.geomspace(flops.min(), flops.max(), 3)
    counts = np.unique(fit.runs[count]) if fit.runs[count].nunique() > 1 else np.array([1.0, 2.0])
    compute, side = (grid.ravel() for grid in np.meshgrid(computes, counts))
    budget, setting, _ = question(law, fit.runs, {**words, "compute": compute, count: side})

    def best(law: Law, values: Mapping[str, np.ndarray]) -> np.ndarray:
        column = {name: series[:, None] for name, series in values.items()}
        return minimise(law, column, budget=budget, setting=setting).params

    sizes = np.log(mixed(fit, best))
    design = np.column_stack([np.ones(len(side)), np.log(compute), -np.log(side)])
    _, p, q = np.linalg.lstsq(design, sizes.T, rcond=None)[0]
    series = np.stack([p, q, q - p], axis=1)
    lows, highs = ends(series, level)
    draws = series[1:, 2]
    below = (np.sum(draws <= 0) + 1) / (len(draws) + 2)
    numbers = [x for column in zip(series[0], lows, highs, strict=True) for x in column]
    return _average_compute([float(x) for x in [*numbers, 2 * min(below, 1 - below)]], level)


def _average_compute(numbers: list[float], level: float) -> AverageComputeTest:
    p, p_low, p_high, q, q_low, q_high, difference, low, high, p_value = numbers
    verdict = "is rejected" if low > 0 or high < 0 else "cannot be rejected"
    message = (
        f"the average-compute rule (q = p) {verdict}: p = {p:.3g}, q = {q:.3g}, "
        f"q - p = {difference:.3g} [{low:.3g}, {high:.3g}]"
    )
    return AverageComputeTest(
        p, p_low, p_high, q, q_low, q_high, difference, low, high, p_value, level=level, message=message
    )
