"""How uncertain are parameters and predictions? Bootstrap over runs, noise, and a back-test beyond the data."""

from dataclasses import dataclass

import numpy as np

from scalefed.fitting.problem import Problem
from scalefed.fitting.solver import Solver
from scalefed.fitting.starts import GlobalFit
from scalefed.seeds import rng


@dataclass(frozen=True, slots=True)
class Replicates:
    """Bootstrap replicates of a fit.

    Attributes:
        theta: (B, p) coordinates.
        converged: (B,) whether the stopping rule was met.
        method: how they were made, in words.
    """

    theta: np.ndarray
    converged: np.ndarray
    method: str


def cluster_weights(clusters: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Random weights of mean 1, the same for all rows of a cluster: (resamples, n).

    Every cluster keeps a positive weight (exponential weights scaled to sum to the number of clusters), so that no
    replicate loses a corner of a small design.
    """
    count = int(clusters.max()) + 1
    weights = rng(seed, "bootstrap").exponential(size=(resamples, count))
    weights *= count / weights.sum(axis=1, keepdims=True)
    return np.asarray(weights[:, clusters])


def bootstrap(
    problem: Problem, best: GlobalFit, clusters: np.ndarray, *, resamples: int, delta: float, seed: int
) -> Replicates:
    """Refit under random cluster weights, all replicates in one batch."""
    if resamples == 0 or problem.p == 0:
        return Replicates(np.repeat(best.theta[None], resamples, axis=0), np.ones(resamples, dtype=bool), "none")
    weights = cluster_weights(clusters, resamples, seed)
    found = Solver(problem, delta=delta).solve(np.repeat(best.theta[None], resamples, axis=0), weights, iterations=200)
    count = int(clusters.max()) + 1
    spread = np.sqrt(count / max(count - problem.p, 1.0))
    theta = np.clip(best.theta + spread * (found.theta - best.theta), problem.lower, problem.upper)
    return Replicates(theta, found.converged, "bootstrap over runs")


def noise_scale(residuals: np.ndarray, parameters: int) -> float:
    """Robust standard deviation of log residuals, corrected for the fitted parameters."""
    n = len(residuals)
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    root = float(np.sqrt(np.mean(residuals**2)))
    return max(spread, 0.5 * root) * float(np.sqrt(n / max(n - parameters, 1)))
