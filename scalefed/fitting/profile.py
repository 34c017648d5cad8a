"""What do the runs say about one parameter? The objective with it held at each of several values, the rest refitted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from scalefed.allocation.mixture import Fitted
from scalefed.errors import ConfigError, check_level
from scalefed.fitting.problem import Problem
from scalefed.fitting.solver import Solver
from scalefed.fitting.status import Certificate
from scalefed.fitting.weights import problem_of
from scalefed.units import grouped

_BANDWIDTH = 0.5  # standard deviation of the smoothing, in units of the noise


class Refittable(Fitted, Protocol):
    """What a profile needs of a fit: its law, its runs, and how it was fitted to them."""

    @property
    def runs(self) -> pd.DataFrame:
        """The runs that were fitted."""

    @property
    def target(self) -> str:
        """The column that the law explains."""

    @property
    def huber_delta(self) -> float:
        """Width of the Huber loss in log units."""

    @property
    def huber_above(self) -> float:
        """The width above the law, as a share of that below."""

    @property
    def scale_weight(self) -> float:
        """Exponent of scale in the runs' weights."""

    @property
    def noise(self) -> float:
        """Standard deviation of log residuals."""

    @property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom behind the noise."""

    @property
    def certificate(self) -> Certificate:
        """The evidence behind the fit, with its objective."""


@dataclass(frozen=True, eq=False, repr=False)
class Profile:
    """The objective as a function of one parameter, all others at their best.

    Attributes:
        parameter: its name.
        table: ``value, objective, statistic``, one row a value; the statistic is about chi-squared with one degree of
            freedom (F for few runs) at the truth.
        estimate: the best value.
        low, high: where the statistic crosses the limit; infinite if it never does within the values tried.
        level: coverage.
    """

    parameter: str
    table: pd.DataFrame
    estimate: float
    low: float
    high: float
    level: float

    def __repr__(self) -> str:
        found = f"{grouped(self.estimate)} [{grouped(self.low)}, {grouped(self.high)}]"
        return f"<Profile of {self.parameter}: {found} at {self.level:.0%}, {len(self.table)} values>"


def profile(
    fit: Refittable, parameter: str, *, values: Sequence[float] | None = None, points: int = 25, level: float = 0.95
) -> Profile:
    """Refit with one parameter held at each of several values: an interval that need not be symmetric, or even closed.

    Args:
        fit: a fit.
        parameter: a free parameter.
        values: values to try; by default ``points`` values over four standard errors on either side.
        points: how many.
        level: coverage of the interval.

    Raises:
        ConfigError: the parameter is not free, or a value is out of its range.

    Source: Venzon and Moolgavkar 1988 for profiles; Schrader and Hettmansperger 1980 for robust likelihood ratios.
    """
    from scipy.special import fdtri

    check_level(level)
    if points < 3:
        raise ConfigError(f"a profile needs at least 3 points, got {points}; 25 is usual")
    if parameter not in fit.law.free:
        raise ConfigError(f"{parameter!r} is not free in {fit.law.name!r}; free: {', '.join(fit.law.free)}")
    grid = _values(fit, parameter, values, points)
    target = fit.runs[fit.target].to_numpy()
    problem = problem_of(fit.runs, fit.law, target, fit.scale_weight, fit.huber_above)
    objective = _descend(fit, problem, parameter, grid)
    theta = problem.to_coordinates(np.array([[fit.params[p] for p in problem.names]]))
    residuals = Solver(problem, delta=fit.huber_delta).residuals(theta)[0][0]
    statistic = 2.0 * (objective - fit.certificate.objective) * _ratio(residuals, fit, problem.weights)
    table = pd.DataFrame({"value": grid, "objective": objective, "statistic": np.maximum(statistic, 0.0)})
    limit = float(fdtri(1, fit.degrees_of_freedom, level))
    low, high = _crossings(grid, table["statistic"].to_numpy(), limit, fit.params[parameter])
    return Profile(parameter, table, fit.params[parameter], low, high, level)


def _values(fit: Refittable, parameter: str, values: Sequence[float] | None, points: int) -> np.ndarray:
    positive = parameter in fit.law.positive
    if values is not None:
        grid = np.sort(np.asarray(values, dtype=float))
        if grid.size < 3 or not np.isfinite(grid).all() or (positive and grid[0] <= 0):
            kind = "positive numbers" if positive else "numbers"
            raise ConfigError(f"values for {parameter} must be at least three {kind}, got {values!r}")
        return grid
    estimate = fit.params[parameter]
    spread = fit.replicates[parameter].to_numpy() if len(fit.replicates) > 1 else np.array([0.8, 1.2]) * estimate
    if positive:
        sd = max(float(np.std(np.log(spread))), 1e-3)
        return np.asarray(estimate * np.exp(np.linspace(-4 * sd, 4 * sd, points)))
    sd = max(float(np.std(spread)), 1e-4)
    return np.asarray(np.linspace(estimate - 4 * sd, estimate + 4 * sd, points))


def _descend(fit: Refittable, full: Problem, parameter: str, grid: np.ndarray) -> np.ndarray:
    """The objective at every value, each refit started from its neighbour nearer to the estimate."""
    objective = np.full(len(grid), np.nan)
    middle = int(np.argmin(np.abs(grid - fit.params[parameter])))
    for order in (range(middle, len(grid)), range(middle, -1, -1)):
        values = {p: v for p, v in fit.params.items() if p in fit.law.free and p != parameter}
        for i in order:
            law = fit.law.with_(fixed={parameter: float(grid[i])})
            problem = Problem(law, full.columns, full.z, full.weights, full.above)
            start = problem.to_coordinates(np.array([[values[p] for p in problem.names]]))
            found = Solver(problem, delta=fit.huber_delta).solve(start, cold=True, iterations=300)
            objective[i] = found.objective[0]
            values = dict(zip(problem.names, problem.to_values(found.theta)[0], strict=True))
    return objective


def _ratio(residuals: np.ndarray, fit: Refittable, weights: np.ndarray | None) -> float:
    """E[psi'] / E[psi^2]: what makes twice the objective's rise a likelihood ratio; psi' smoothed by the noise."""
    from scipy.special import ndtr

    w = np.ones(len(residuals)) if weights is None else weights
    n, p = len(residuals), len(fit.law.free)
    width = max(_BANDWIDTH * fit.noise, 1e-300)
    upper = fit.huber_delta * fit.huber_above
    inside = ndtr((upper - residuals) / width) - ndtr((-fit.huber_delta - residuals) / width)
    psi = np.clip(residuals, -fit.huber_delta, upper)
    return float(np.average(inside, weights=w) / (np.average(psi**2, weights=w) * n / max(n - p, 1) + 1e-300))


def _crossings(grid: np.ndarray, statistic: np.ndarray, limit: float, estimate: float) -> tuple[float, float]:
    low, high = -np.inf, np.inf
    for i in range(len(grid) - 1):
        left, right = statistic[i] - limit, statistic[i + 1] - limit
        if left * right > 0 or left == right:
            continue
        at = grid[i] + (grid[i + 1] - grid[i]) * left / (left - right)
        if left > 0 and at <= estimate:
            low = at
        if right > 0 and at >= estimate and not np.isfinite(high):
            high = at
    return float(low), float(high)
