"""How sure is a curve through success counts when problems are shared by runs and runs share problems?

Problems and runs are two crossed clusters. Replicates come from weights on both, their size is then corrected to the
two-way clustered covariance; how far single runs lie from the curve is kept apart, for intervals of a new run.

Source: bootstrap weights on two crossed factors, Owen (2007), with exponential weights (Rubin 1981) so that no
replicate loses a run altogether; two-way clustered covariance, Cameron, Gelbach and Miller (2011).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from scalefed.downstream.betabinomial import Cells, Maximum, maximise, run_derivatives
from scalefed.downstream.curve import PLAIN, mean_shape

Array = NDArray[np.float64]

_NO_CEILING = 40.0  # a logit so high that the ceiling is 1 to the last bit
MOST_AT_ONCE = 64  # replicates, so that they stay in the cache
WEIGHTS_AT_ONCE = 4_000_000  # of rows in all replicates that are made at once


def replicate(cells: Cells, best: Maximum, of_run: Array, of_task: Array, *, mean: str = "logistic") -> Maximum:
    """Refit on (b, r) weights of runs times (b, tasks) of problems, by Newton's method from the estimate.

    Replicates are taken some at a time, so that memory does not grow with their number, nor much with the rows.
    """
    chunk = min(MOST_AT_ONCE, max(1, WEIGHTS_AT_ONCE // len(cells.row_cell)))
    parts = []
    for first in range(0, len(of_run), chunk):
        some = slice(first, first + chunk)
        many = cells.multiplicity(of_run[some][:, cells.row_run] * of_task[some][:, cells.row_task])
        starts = np.repeat(best.theta, len(many), axis=0)
        parts.append(maximise(cells, starts, cells.tally(many), mean=mean, tolerance=1e-7))
    return Maximum(
        np.concatenate([part.theta for part in parts]),
        np.concatenate([part.value for part in parts]),
        np.concatenate([part.hessian for part in parts]),
        np.concatenate([part.converged for part in parts]),
    )


def two_way_shrinkage(cells: Cells, best: Maximum, mean: str) -> Array:
    """(p, p) map that takes deviations of crossed bootstrap replicates to the two-way clustered covariance.

    Crossed weights count the noise of single cells three times (Owen 2007); the clustered covariance, runs + problems
    - cells (Cameron, Gelbach and Miller 2011), counts it once. To first order both are known, so replicates keep
    their shape and get the right size. No direction is made narrower than the cells alone would have it.
    """
    alone = Cells(
        run=np.arange(len(cells.run)),
        samples=cells.samples,
        correct=cells.correct,
        starts=np.arange(len(cells.run)),
        z=cells.z[cells.run],
        covariates=cells.covariates[cells.run],
        row_cell=cells.row_cell,
        row_run=cells.row_run,
        row_task=cells.row_task,
        run_ids=cells.run_ids,
        tasks=cells.tasks,
    )
    _, gradient, _ = run_derivatives(best.theta, alone, alone.tally(np.ones((1, len(cells.run)))), mean, hessian=False)
    g, z = gradient[0], alone.z
    plain = np.stack([g[:, 0], g[:, 0] * z, g[:, 1], g[:, 2], g[:, 2] * z], axis=1)
    scores = np.concatenate([plain, g[:, :1] * alone.covariates], axis=1)[cells.row_cell]
    size = scores.shape[1]

    def meat(group: NDArray[np.intp], count: int) -> Array:
        summed = np.zeros((count, size))
        np.add.at(summed, group, scores)
        found: Array = summed.T @ summed * (count / max(count - 1, 1))
        return found

    single = scores.T @ scores
    crossed = meat(cells.row_run, len(cells.run_ids)) + meat(cells.row_task, cells.tasks)
    bread = np.linalg.inv(-best.hessian[0])
    # in coordinates where the cells' own covariance is the identity, nothing is smaller than it
    root = np.linalg.cholesky(bread @ single @ bread + 1e-12 * np.eye(size) * np.trace(bread))
    inverse = np.linalg.inv(root)
    values, vectors = np.linalg.eigh(inverse @ bread @ (crossed - single) @ bread @ inverse.T)
    target = (root @ vectors) * np.sqrt(np.maximum(values, 1.0))
    drawn = np.linalg.cholesky(bread @ (crossed + single) @ bread + 1e-12 * np.eye(size) * np.trace(bread))
    # of the square roots of the target, the one closest to the replicates' own
    left, _, right = np.linalg.svd(target.T @ np.linalg.inv(drawn).T)
    shrink: Array = target @ (left @ right) @ np.linalg.inv(drawn)
    return shrink


def newton_offsets(
    cells: Cells, theta: Array, *, mean: str = "logistic", prior_sd: float = 1.0, steps: int = 8
) -> Array:
    """(r, 2) how far each run lies from the curve in (logit mean, log spread), drawn towards it by a normal prior.

    Args:
        cells: the counts.
        theta: (5 + q,) the curve.
        mean: the shape of its mean.
        prior_sd: standard deviation of the prior.
        steps: Newton steps.
    """
    b0, b1, t, g0, g1 = theta[:PLAIN]
    inside = b0 + b1 * cells.z + cells.covariates @ theta[PLAIN:]
    centre = np.stack([logit(expit(t) * mean_shape(mean, inside)[0]), g0 + g1 * cells.z], axis=1)
    free = np.zeros((1, len(theta)))
    free[0, 2] = _NO_CEILING
    pick = np.ix_([0, 2], [0, 2])
    offsets, tally = np.zeros((len(cells.z), 2)), cells.tally()
    for _ in range(steps):
        _, gradient, hessian = run_derivatives(free, cells, tally, "logistic", shift=centre + offsets)
        curvature = np.stack([-h[pick] for h in hessian[0]]) + np.eye(2) / prior_sd**2
        least = np.linalg.eigvalsh(curvature).min(-1)
        curvature = curvature + np.maximum(1e-6 - least, 0)[:, None, None] * np.eye(2)
        uphill = gradient[0][:, [0, 2]] - offsets / prior_sd**2
        step = np.linalg.solve(curvature, uphill[..., None])[..., 0]
        offsets = offsets + step * np.minimum(1.0, 1.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
    return offsets
