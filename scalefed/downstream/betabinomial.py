"""How likely are these success counts under a curve of mean and spread, and which curve makes them most likely?

The beta-binomial likelihood with its exact gradient and Hessian, for a batch of curves and a batch of weights on
problems and runs at once. Counts are first reduced to cells (run, samples, correct) with a multiplicity, so the cost
does not grow with the number of problems; ratios of gamma functions of small counts are products, so their logarithms
and derivatives are sums over the steps of a ladder of logarithms and reciprocals. Internal parameters, z being the
standardised covariate::

    mean = expit(t) shape(b0 + b1 z + d . f)        log spread = g0 + g1 z        theta = (b0, b1, t, g0, g1, d)

f being what else of a run counts (see :class:`scalefed.downstream.curve.Beside`; nothing in the plain curve), and
shape(s) = 1 / (1 + exp(-s)) ("logistic") or exp(-exp(-s)) ("power": -log mean is a power law in what x is the
logarithm of, PassUntil's form).

A weak normal prior (standard deviation 5; for the ceiling's logit 3 +- 1.5) keeps what the counts say nothing about
from running off; where the counts speak it is far below their weight.

Source: beta-binomial likelihood, Skellam (1948).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import digamma, expit, gammaln

from scalefed.downstream.curve import LOG_SPREAD_LIMIT, PLAIN, SMALLEST_SHAPE, mean_shape
from scalefed.errors import DataError

Array = NDArray[np.float64]

LARGE_COUNT = 64
"""Beyond it a count's sum over its steps costs more than the gamma functions of it."""


def prior(parameters: int) -> tuple[Array, Array]:
    """Mean and standard deviation of the weak normal prior on ``theta``."""
    rest = parameters - PLAIN
    return np.array([0.0, 0.0, 3.0, 1.0, 0.0] + rest * [0.0]), np.array([8.0, 8.0, 1.5, 5.0, 5.0] + rest * [5.0])


def trigamma(x: Array) -> Array:
    """The second derivative of log gamma for positive x, to 1e-10: moved up by seven, then the asymptotic series.

    Source: Abramowitz and Stegun 1964, 6.4.6 and 6.4.12.

    >>> round(float(trigamma(np.array([1.0]))[0] - np.pi**2 / 6), 9)
    0.0
    """
    total = 1 / (x * x)
    for step in range(1, 7):
        shifted = x + step
        shifted *= shifted
        total += 1 / shifted
    inverse = 1 / (x + 7)
    square = inverse * inverse
    series = square * (1 / 6 - square * (1 / 30 - square * (1 / 42 - square * (1 / 30 - square * (5 / 66)))))
    tail: Array = total + (1 + 0.5 * inverse + series) * inverse
    return tail


@dataclass(frozen=True)
class Ladder:
    """Sums over a run's cells of log gamma(x + count) - log gamma(x) and of its derivatives, x being the run's own.

    Attributes:
        count: (u,) of each cell.
        run: (e,) run of each term, and ``starts`` (r,) the first term of each run.
        step: (e,) what is added to x in each term: a step below a count, or where counts are large the count itself.
        tails: (u, e) which cells count in which terms; None where every cell is a term of its own.
    """

    count: Array
    run: NDArray[np.intp]
    starts: NDArray[np.intp]
    step: Array
    tails: csr_array | None

    @classmethod
    def build(cls, count: Array, run: NDArray[np.intp], starts: NDArray[np.intp]) -> "Ladder":
        """From the counts and runs of the cells, sorted by run, and the first cell of each run."""
        if count.max(initial=0.0) > LARGE_COUNT:
            return cls(count, run, starts, count, None)
        lengths = np.maximum(np.maximum.reduceat(count, starts), 1).astype(np.intp)
        first = np.concatenate([[0], np.cumsum(lengths)])
        terms = count.astype(np.intp)
        ends = np.cumsum(terms)
        step = np.arange(int(ends[-1])) - np.repeat(ends - terms, terms)
        columns = np.repeat(first[run], terms) + step
        tails = csr_array((np.ones(len(columns)), columns, np.concatenate([[0], ends])), shape=(len(count), first[-1]))
        of_term = np.repeat(np.arange(len(starts)), lengths)
        return cls(count, of_term, first[:-1], (np.arange(first[-1]) - first[of_term]).astype(float), tails)

    def weights(self, many: Array) -> Array:
        """(b, e) how often each term counts, under (b, u) multiplicities."""
        return many if self.tails is None else np.ascontiguousarray((self.tails.T @ many.T).T)

    def rising(self, x: Array, weights: Array, *, second: bool) -> tuple[Array, Array, Array]:
        """(b, r) sums, and their first and second derivatives in (b, r) x; without ``second`` the last is empty."""
        at, none = x[:, self.run] + self.step, np.empty(0)
        if self.tails is not None:
            inverse = 1 / at
            slopes = weights * inverse
            bends = -self._by_run(slopes * inverse) if second else none
            return self._by_run(weights * np.log(at)), self._by_run(slopes), bends
        total = self._by_run(weights)
        value, slope = (self._by_run(weights * of(at)) - total * of(x) for of in (gammaln, digamma))
        return value, slope, self._by_run(weights * trigamma(at)) - total * trigamma(x) if second else none

    def _by_run(self, values: Array) -> Array:
        return np.add.reduceat(values, self.starts, axis=-1)


@dataclass(frozen=True)
class Cells:
    """Counts reduced to distinct (run, samples, correct), sorted by run.

    Attributes:
        run, samples, correct: (u,) of each cell; ``starts`` (r,) the first cell of each run.
        z: (r,) standardised covariate of each run; ``covariates`` (r, q) what else of it counts.
        row_cell, row_run, row_task: (rows,) the cell, run and task of each row of the table.
        run_ids: (r,) names; tasks: how many different problems.
    """

    run: NDArray[np.intp]
    samples: Array
    correct: Array
    starts: NDArray[np.intp]
    z: Array
    covariates: Array
    row_cell: NDArray[np.intp]
    row_run: NDArray[np.intp]
    row_task: NDArray[np.intp]
    run_ids: tuple[str, ...]
    tasks: int

    @classmethod
    def build(cls, counts: pd.DataFrame, z: pd.Series, covariates: pd.DataFrame | None = None) -> "Cells":
        """From a validated table (run_id, task_id, samples, correct), the covariate and the features by run."""
        row_run, run_ids = pd.factorize(counts["run_id"], sort=True)
        row_task, tasks = pd.factorize(counts["task_id"], sort=True)
        key = np.stack([row_run, counts["samples"], counts["correct"]], axis=1).astype(np.int64)
        cells, row_cell = np.unique(key, axis=0, return_inverse=True)
        starts = np.searchsorted(cells[:, 0], np.arange(len(run_ids)))
        return cls(
            run=cells[:, 0].astype(np.intp),
            samples=cells[:, 1].astype(float),
            correct=cells[:, 2].astype(float),
            starts=starts.astype(np.intp),
            z=z.loc[list(run_ids)].to_numpy(float),
            covariates=np.zeros((len(run_ids), 0))
            if covariates is None
            else covariates.loc[list(run_ids)].to_numpy(float),
            row_cell=row_cell.reshape(-1).astype(np.intp),
            row_run=row_run.astype(np.intp),
            row_task=row_task.astype(np.intp),
            run_ids=tuple(str(name) for name in run_ids),
            tasks=len(tasks),
        )

    @cached_property
    def ladders(self) -> tuple[Ladder, Ladder, Ladder]:
        """Of correct samples, of wrong ones, and of all."""
        counts = (self.correct, self.samples - self.correct, self.samples)
        correct, wrong, samples = (Ladder.build(count, self.run, self.starts) for count in counts)
        return correct, wrong, samples

    @cached_property
    def basis(self) -> Array:
        """(r, 3, p) derivatives of (logit mean, ceiling logit, log spread) of each run in the parameters."""
        found = np.zeros((len(self.z), 3, PLAIN + self.covariates.shape[1]))
        found[:, 0, 0] = found[:, 1, 2] = found[:, 2, 3] = 1.0
        found[:, 0, 1] = found[:, 2, 4] = self.z
        found[:, 0, PLAIN:] = self.covariates
        return found

    @cached_property
    def pairs(self) -> Array:
        """(9 r, p p) products of two of ``basis``: a second derivative in the parameters is one matrix product."""
        size = self.basis.shape[-1]
        products = self.basis[:, :, None, :, None] * self.basis[:, None, :, None, :]
        return np.ascontiguousarray(products.reshape(-1, size * size))

    def multiplicity(self, weights: Array | None = None) -> Array:
        """(b, u) how often each cell counts, under (b, rows) weights (None: every row once)."""
        rows = np.ones((1, len(self.row_cell))) if weights is None else weights
        return np.stack([np.bincount(self.row_cell, weights=row, minlength=len(self.run)) for row in rows])

    def tally(self, many: Array | None = None) -> Array:
        """(b, e) what the likelihood takes of (b, u) multiplicities (None: every row once), ladder beside ladder."""
        many = self.multiplicity() if many is None else many
        return np.concatenate([ladder.weights(many) for ladder in self.ladders], axis=1)


def run_derivatives(
    theta: Array, cells: Cells, tally: Array, mean: str, *, hessian: bool = True, shift: Array | None = None
) -> tuple[Array, Array, Array]:
    """Log-likelihood and its derivatives in (logit mean, ceiling logit, log spread), run by run.

    Args:
        theta: (t, 5 + q) with t = 1 or b.
        cells: the counts.
        tally: (b, e) of :meth:`Cells.tally`.
        mean: the shape of the mean curve.
        hessian: False leaves the last result empty, at a third of the cost.
        shift: (r, 2) added to the logit mean and the log spread of each run, or None.

    Returns:
        (b,) log-likelihood, (b, r, 3) gradient, (b, r, 3, 3) Hessian.
    """
    s = theta[:, :1] + theta[:, 1:2] * cells.z + theta[:, PLAIN:] @ cells.covariates.T
    w = theta[:, 3:4] + theta[:, 4:5] * cells.z
    if shift is not None:
        s, w = s + shift[:, 0], w + shift[:, 1]
    w = np.clip(w, -LOG_SPREAD_LIMIT, LOG_SPREAD_LIMIT)
    ceiling, (sigma, first, bend), spread = expit(theta[:, 2:3]), mean_shape(mean, s), np.exp(w)
    tiny = SMALLEST_SHAPE
    a, b = np.maximum(ceiling * sigma * spread, tiny), np.maximum((1 - ceiling * sigma) * spread, tiny)
    parts = np.split(tally, np.cumsum([len(ladder.step) for ladder in cells.ladders])[:-1], axis=1)
    of_a, of_b, of_n = (
        ladder.rising(x, part, second=hessian)
        for ladder, x, part in zip(cells.ladders, (a, b, spread), parts, strict=True)
    )
    value = (of_a[0] + of_b[0] - of_n[0]).sum(-1)
    la, lb = of_a[1] - of_n[1], of_b[1] - of_n[1]
    # first derivatives of the two shapes in (logit mean, ceiling logit, log spread)
    slope_s, slope_t = a * first, a * (1 - ceiling)
    ja = np.stack(np.broadcast_arrays(slope_s, slope_t, a), axis=-1)
    jb = np.stack(np.broadcast_arrays(-slope_s, -slope_t, b), axis=-1)
    gradient = la[..., None] * ja + lb[..., None] * jb
    if not hessian:
        return value, gradient, np.empty(0)
    laa, lbb, shared = of_a[2] - of_n[2], of_b[2] - of_n[2], -of_n[2]
    outer = laa[..., None, None] * ja[..., :, None] * ja[..., None, :]
    outer = outer + lbb[..., None, None] * jb[..., :, None] * jb[..., None, :]
    cross = ja[..., :, None] * jb[..., None, :]
    outer = outer + shared[..., None, None] * (cross + np.swapaxes(cross, -1, -2))
    # second derivatives of the shapes; those of b are minus those of a, except in the spread
    second = np.zeros(slope_s.shape + (3, 3))
    second[..., 0, 0] = a * bend
    second[..., 1, 1] = slope_t * (1 - 2 * ceiling)
    second[..., 0, 1] = second[..., 1, 0] = slope_s * (1 - ceiling)
    second[..., 0, 2] = second[..., 2, 0] = slope_s
    second[..., 1, 2] = second[..., 2, 1] = slope_t
    outer = outer + (la - lb)[..., None, None] * second
    outer[..., 2, 2] += la * a + lb * b
    return value, gradient, outer


def _assemble(cells: Cells, gradient: Array, hessian: Array | None) -> tuple[Array, Array]:
    """From per-run derivatives in three quantities to derivatives in the parameters."""
    size = cells.basis.shape[-1]
    flat = gradient.reshape(len(gradient), -1) @ cells.basis.reshape(-1, size)
    if hessian is None:
        return flat, np.empty(0)
    return flat, (hessian.reshape(len(hessian), -1) @ cells.pairs).reshape(-1, size, size)


@dataclass(frozen=True, slots=True)
class Maximum:
    """The best curves of a batch of p parameters: theta (b, p), value (b,), hessian (b, p, p), converged (b,)."""

    theta: Array
    value: Array
    hessian: Array
    converged: NDArray[np.bool_]


def objective(theta: Array, cells: Cells, tally: Array, mean: str, *, hessian: bool) -> tuple[Array, Array, Array]:
    """(b,) log-likelihood and log prior, (b, p) gradient, (b, p, p) Hessian; arguments as in run_derivatives."""
    value, per_run, second = run_derivatives(theta, cells, tally, mean, hessian=hessian)
    middle, sd = prior(theta.shape[1])
    away = (theta - middle) / sd
    gradient, full = _assemble(cells, per_run, second if hessian else None)
    if hessian:
        full = full - np.diag(sd**-2.0)
    return value - 0.5 * (away**2).sum(-1), gradient - away / sd, full


def maximise(
    cells: Cells,
    starts: Array,
    tally: Array,
    *,
    mean: str = "logistic",
    iterations: int = 100,
    tolerance: float = 1e-10,
) -> Maximum:
    """Damped Newton from every start, all in one batch.

    Args:
        cells: the counts.
        starts: (b, p).
        tally: (b, e) or (1, e) of :meth:`Cells.tally`.
        mean: the shape of the mean curve.
        iterations: at most this many.
        tolerance: stop when the Newton decrement (twice the gain still expected) is below this.
    """
    count, size = starts.shape
    best = Maximum(starts.astype(float), np.empty(count), np.empty((count, size, size)), np.zeros(count, bool))
    rows, damping = np.arange(count), np.full(count, 1e-3)
    theta, tally = starts.astype(float), np.broadcast_to(tally, (count, tally.shape[1]))
    value, gradient, hessian = objective(theta, cells, tally, mean, hessian=True)
    for _ in range(iterations):
        step = _newton_step(gradient, hessian, damping)
        settled = (step * gradient).sum(-1) < tolerance
        step *= np.minimum(1.0, 3.0 / np.maximum(np.abs(step).max(-1), 1e-300))[:, None]
        new_value, new_gradient, new_hessian = objective(theta + step, cells, tally, mean, hessian=True)
        better = new_value >= value - 1e-12 * np.abs(value)
        theta, value = np.where(better[:, None], theta + step, theta), np.where(better, new_value, value)
        gradient = np.where(better[:, None], new_gradient, gradient)
        hessian = np.where(better[:, None, None], new_hessian, hessian)
        damping = np.where(better, np.maximum(damping * 0.1, 1e-12), np.minimum(damping * 10, 1e8))
        best.theta[rows], best.value[rows], best.hessian[rows], best.converged[rows] = theta, value, hessian, settled
        if settled.all():
            break
        keep = np.flatnonzero(~settled)
        rows, theta, value, gradient, hessian = rows[keep], theta[keep], value[keep], gradient[keep], hessian[keep]
        damping, tally = damping[keep], tally[keep]
    return best


def _newton_step(gradient: Array, hessian: Array, damping: Array) -> Array:
    """A damped step; where the Hessian is indefinite (far from the optimum) it is lifted to be definite first."""
    curvature = -hessian
    scale = np.abs(np.einsum("bii->bi", curvature)) + 1e-12
    least = np.linalg.eigvalsh(curvature / np.sqrt(scale[:, :, None] * scale[:, None])).min(-1)
    lift = damping + 1.1 * np.maximum(1e-8 - least, 0)
    damped = curvature + (scale * lift[:, None])[:, :, None] * np.eye(scale.shape[1])
    step: Array = np.linalg.solve(damped, gradient[..., None])[..., 0]
    return step


def check_counts(counts: pd.DataFrame) -> None:
    """Raise :class:`DataError` unless the table has the four columns and possible counts."""
    missing = {"run_id", "task_id", "samples", "correct"} - set(counts.columns)
    if missing:
        raise DataError(
            f"counts lack the columns {sorted(missing)}; load_counts gives run_id, task_id, samples, correct"
        )
    numbers = counts[["samples", "correct"]].to_numpy(float)
    bad = ~np.isfinite(numbers).all(1) | (numbers[:, 0] < 1) | (numbers[:, 1] < 0) | (numbers[:, 1] > numbers[:, 0])
    if bad.any():
        row = counts.iloc[int(np.argmax(bad))]
        raise DataError(
            f"{int(bad.sum())} rows of counts are impossible, first run {row['run_id']!r}, problem {row['task_id']!r}: "
            f"{row['correct']} correct of {row['samples']}; needed are samples >= 1 and 0 <= correct <= samples"
        )
