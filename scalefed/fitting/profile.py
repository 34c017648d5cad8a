"""What do the runs say about one parameter, or about the decision itself? Profiles, and regions of size and regret."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalefed.errors import ConfigError, FitError
from scalefed.fitting.fitted import Fit, check_level
from scalefed.fitting.problem import Problem
from scalefed.fitting.result import weights_for
from scalefed.fitting.solver import Solver
from scalefed.fitting.status import FitStatus

_SIZES = 241
_BANDWIDTH = 0.5


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
        ends = f"[{self.low:.4g}, {self.high:.4g}]"
        return (
            f"<Profile of {self.parameter}: {self.estimate:.4g} {ends} at {self.level:.0%}, {len(self.table)} values>"
        )


def profile(
    fit: Fit, parameter: str, *, values: Sequence[float] | None = None, points: int = 25, level: float = 0.95
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
    columns = {c: fit.runs[c].to_numpy(dtype=float) for c in fit.law.columns}
    log = np.log(fit.runs[fit.target].to_numpy(dtype=float))
    weights = weights_for(columns, fit.law, fit.scale_weight)
    objective = _descend(fit, parameter, grid, columns, log, weights)
    problem = Problem(fit.law, columns, log, weights)
    theta = problem.to_coordinates(np.array([[fit.params[p] for p in problem.names]]))
    residuals = Solver(problem, delta=fit.huber_delta).residuals(theta)[0][0]
    statistic = 2.0 * (objective - fit.certificate.objective) * _ratio(residuals, fit, weights)
    table = pd.DataFrame({"value": grid, "objective": objective, "statistic": np.maximum(statistic, 0.0)})
    limit = float(fdtri(1, fit.degrees_of_freedom, level))
    low, high = _crossings(grid, table["statistic"].to_numpy(), limit, fit.params[parameter])
    return Profile(parameter, table, fit.params[parameter], low, high, level)


def _values(fit: Fit, parameter: str, values: Sequence[float] | None, points: int) -> np.ndarray:
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


def _descend(
    fit: Fit,
    parameter: str,
    grid: np.ndarray,
    columns: dict[str, np.ndarray],
    log: np.ndarray,
    weights: np.ndarray | None,
) -> np.ndarray:
    """The objective at every value, each refit started from its neighbour nearer to the estimate."""
    objective = np.full(len(grid), np.nan)
    middle = int(np.argmin(np.abs(grid - fit.params[parameter])))
    for order in (range(middle, len(grid)), range(middle, -1, -1)):
        values = {p: v for p, v in fit.params.items() if p in fit.law.free and p != parameter}
        for i in order:
            law = fit.law.with_(fixed={parameter: float(grid[i])})
            problem = Problem(law, columns, log, weights)
            start = problem.to_coordinates(np.array([[values[p] for p in problem.names]]))
            found = Solver(problem, delta=fit.huber_delta).solve(start, cold=True, iterations=300)
            objective[i] = found.objective[0]
            values = dict(zip(problem.names, problem.to_values(found.theta)[0], strict=True))
    return objective


def _ratio(residuals: np.ndarray, fit: Fit, weights: np.ndarray | None) -> float:
    """E[psi'] / E[psi^2]: what makes twice the objective's rise a likelihood ratio; psi' smoothed by the noise."""
    from scipy.special import ndtr

    w = np.ones(len(residuals)) if weights is None else weights
    n, p = len(residuals), len(fit.law.free)
    width = max(_BANDWIDTH * fit.noise, 1e-300)
    inside = ndtr((fit.huber_delta - residuals) / width) - ndtr((-fit.huber_delta - residuals) / width)
    psi = np.clip(residuals, -fit.huber_delta, fit.huber_delta)
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


@dataclass(frozen=True, eq=False, repr=False)
class Region:
    """Which sizes are good enough at a budget, given all that the runs leave open.

    Attributes:
        compute: the budget, FLOPs.
        table: ``params, tokens, loss, regret, regret_high``, one row a size: the regret is the loss above the best
            size's, at the estimate and at the upper end over the replicates.
        size: best size at the estimate.
        size_low, size_high: interval of the best size over the replicates.
        good_low, good_high: sizes whose regret stays below ``tolerance`` in a share ``level`` of the replicates; NaN
            where there is none.
        tolerance: nats per token.
        level: coverage.
    """

    compute: float
    table: pd.DataFrame
    size: float
    size_low: float
    size_high: float
    good_low: float
    good_high: float
    tolerance: float
    level: float

    def __repr__(self) -> str:
        good = "no size is" if np.isnan(self.good_low) else f"{self.good_low:.4g} to {self.good_high:.4g} are"
        return (
            f"<Region at {self.compute:.4g} FLOPs: best size {self.size:.4g} [{self.size_low:.4g}, "
            f"{self.size_high:.4g}]; {good} within {self.tolerance:g} nats of the best at {self.level:.0%}>"
        )


def region(
    fit: Fit, *, compute: float, tolerance: float = 0.01, level: float = 0.95, sizes: Any = None, **setting: Any
) -> Region:
    """The joint region of optimal size and loss regret; the optimum is flat, so regret says more than the size does.

    Args:
        fit: a fit of a law in params and tokens.
        compute: the budget, FLOPs of all clients and rounds (6 params tokens where all parameters are trained).
        tolerance: regret that does not matter, nats per token.
        level: coverage.
        sizes: sizes to try; by default three decades around the best.
        setting: what else the law needs (clients_per_round or clients and participation, skew or concentration,
            local_steps ...), as in :meth:`Fit.optimal_size`; what all runs share is filled in.

    Raises:
        FitError: the runs cannot determine the law, or do not settle what the question leaves out.
        ConfigError: a number out of range, or the law lacks params or tokens.
    """
    from scalefed.allocation import optimum
    from scalefed.allocation.defaults import question
    from scalefed.allocation.planning import values_of

    check_level(level)
    if fit.status is FitStatus.NOT_IDENTIFIED:
        raise FitError(f"these runs cannot determine an optimal size. {fit.message}")
    if not {"params", "tokens"} <= set(fit.law.columns):
        raise ConfigError(f"the law {fit.law.name!r} has no params and tokens to trade against each other")
    if not (np.isfinite(compute) and compute > 0):
        raise ConfigError(f"compute must be positive and finite (FLOPs), got {compute}")
    _, known, _ = question(fit.law, fit.runs, {**setting, "compute": compute})
    values = {p: series[:, None] for p, series in values_of(fit).items()}

    def losses(params: np.ndarray) -> np.ndarray:
        tokens = compute / known.per_token(params)
        return np.asarray(optimum.evaluate(fit.law, values, known, params=params[None], tokens=tokens[None]))

    grid = np.sqrt(compute / 120.0) * np.geomspace(1e-4, 1e4, _SIZES) if sizes is None else np.asarray(sizes, float)
    loss = losses(grid)
    if sizes is None:
        grid = grid[np.argmin(loss[0])] * np.geomspace(10**-1.5, 10**1.5, _SIZES)
        loss = losses(grid)
    regret = loss - loss.min(axis=1, keepdims=True)
    optima = grid[np.argmin(loss, axis=1)]
    high = np.quantile(regret, level, axis=0)
    good = grid[high <= tolerance]
    low_size, high_size = np.quantile(optima, [(1 - level) / 2, (1 + level) / 2])
    table = pd.DataFrame(
        {
            "params": grid,
            "tokens": compute / known.per_token(grid),
            "loss": loss[0],
            "regret": regret[0],
            "regret_high": high,
        }
    )
    return Region(
        compute=float(compute),
        table=table,
        size=float(optima[0]),
        size_low=float(low_size),
        size_high=float(high_size),
        good_low=float(good.min()) if len(good) else float("nan"),
        good_high=float(good.max()) if len(good) else float("nan"),
        tolerance=tolerance,
        level=level,
    )
