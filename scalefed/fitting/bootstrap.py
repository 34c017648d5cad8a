"""How uncertain are the parameters? Refits in one batch, with whole runs exchanged or resampled.

``exchange``: every replicate gives each run the residuals of another run of similar loss (checkpoints of one run stay
together), with a random sign, and the law is fitted again. Donors are near in loss, so that small noisy runs do not
lend their noise to large quiet ones; residuals are enlarged for the fitted parameters and their scale is drawn anew for
every replicate, as Student's t asks. Percentiles of the refits cover at their nominal rate from 9 runs on, where
resampling runs loses the corners of small designs.

``pairs``: runs are drawn with replacement. Right also where noise depends on the design, as it does in published logs,
and where runs above the law pull less than those below, so that residuals cannot turn their sign.

``bootstrap``: exchange, unless there are enough runs, shuffled residuals say that noise is not alike across the design
(see :mod:`scalefed.fitting.heteroscedasticity`), and pairs spreads some parameter a quarter more. Beyond 20,000 rows
replicates are normal draws with the cluster-robust covariance, to which the bootstrap tends.
"""

from dataclasses import dataclass

import numpy as np

from scalefed.errors import ConfigError
from scalefed.fitting.heteroscedasticity import unevenness
from scalefed.fitting.initialisation import GlobalFit
from scalefed.fitting.problem import Problem
from scalefed.fitting.solver import Solution, Solver
from scalefed.seeds import rng

METHODS = ("bootstrap", "exchange", "pairs")
_ENOUGH_RUNS = 30  # below, or below 6 a parameter, unevenness cannot be seen and the safer of two ways is taken
_UNEVEN = 0.01  # p-value of the shuffling test: one false alarm in a hundred fits
_WIDER = 1.25  # a quarter: by so much may chance alone make an interval of pairs wider
_PILOT = 200  # replicates by which exchange and pairs are compared
_TURNS = 10  # of descent over a sample of replicates
_PATIENCE = 1  # turns without a gain after which a replicate rests
_SAMPLE = 40  # replicates that show whether a second start gains anything
_GAIN = 1e-9  # relative; a smaller gain is rounding
_WIDER_ZONES = (30.0, 5.0)  # times the Huber threshold, from which a robust fit is started
_SETTLED = 1e-12  # relative decrease at which a replicate stops; tests/benchmarks/bench_fitting.py speed shows the gap
_LARGE = 20_000  # runs; above, the curvature at the fit stands for refitting
_CHUNK_DOUBLES = 2**22  # 32 MB of residuals at a time
_FEWEST_DONORS = 15  # residuals that a run's error is drawn from
_WINDOWS = 7  # of runs in order of size, each with residuals of its own


@dataclass(frozen=True, slots=True)
class Replicates:
    """Bootstrap replicates of a fit.

    Attributes:
        theta: (B, p) coordinates.
        converged: (B,) whether the stopping rule was met.
        method: ``exchange``, ``pairs``, ``normal`` (large logs), ``none``, or ``posterior``.
        noise: standard deviation of log losses, where it was drawn with the parameters.
    """

    theta: np.ndarray
    converged: np.ndarray
    method: str
    noise: float | None = None


def bootstrap(
    problem: Problem,
    best: GlobalFit,
    clusters: np.ndarray,
    *,
    resamples: int,
    delta: float,
    seed: int = 0,
    method: str = "bootstrap",
) -> Replicates:
    """Refit under resampled runs.

    Args:
        problem: law and runs.
        best: the fit.
        clusters: (n,) integers from 0; rows with one number stay together.
        resamples: number of replicates.
        delta: width of the Huber loss.
        seed: of the resampling.
        method: ``"bootstrap"``, ``"exchange"`` or ``"pairs"``.

    Raises:
        ConfigError: an unknown method.
    """
    if method not in METHODS:
        raise ConfigError(f"a bootstrap is one of {', '.join(METHODS)}, got {method!r}")
    if resamples == 0 or problem.p == 0:
        return Replicates(np.repeat(best.theta[None], resamples, axis=0), np.ones(resamples, dtype=bool), "none")
    solver = Solver(problem, delta=delta)
    if problem.n > _LARGE:
        return _normal(solver, best, clusters, resamples, seed)
    pairs, exchange = _Pairs(clusters, seed), _Exchange(solver, best, clusters, seed)
    if method == "pairs" or (method == "bootstrap" and problem.above != 1.0):
        return _refit(solver, best, pairs, resamples, "pairs")
    if method == "exchange" or not _looks_uneven(solver, best, clusters, seed):
        return _refit(solver, best, exchange, resamples, "exchange")
    few = min(resamples, _PILOT)
    left = _refit(solver, best, pairs, few, "pairs")
    right = _refit(solver, best, exchange, few, "exchange")
    chosen, draw = (left, pairs) if _most_widened(left, right) > _WIDER else (right, exchange)
    return chosen if few == resamples else _joined(chosen, _refit(solver, best, draw, resamples - few, chosen.method))


def _joined(first: Replicates, rest: Replicates) -> Replicates:
    theta, converged = (np.concatenate([getattr(r, name) for r in (first, rest)]) for name in ("theta", "converged"))
    return Replicates(theta, converged, first.method)


def _looks_uneven(solver: Solver, best: GlobalFit, clusters: np.ndarray, seed: int) -> bool:
    problem, runs = solver.problem, int(clusters.max()) + 1
    if runs < max(_ENOUGH_RUNS, 6 * problem.p):
        return False
    residuals = solver.residuals(best.theta[None])[0][0]
    slopes, block = solver.jacobian(best.theta), donors_among(runs)
    return unevenness(residuals, problem.z - residuals, slopes, clusters, block=block, seed=seed) <= _UNEVEN


def _refit(solver: Solver, best: GlobalFit, draw: "_Pairs | _Exchange", resamples: int, method: str) -> Replicates:
    theta, converged = [], []
    chunk = max(1, _CHUNK_DOUBLES // solver.problem.n)
    for first in range(0, resamples, chunk):
        count = min(chunk, resamples - first)
        weights, log_loss = draw(count)
        start = np.repeat(best.theta[None], count, axis=0)
        found = solver.solve(start, weights, log_loss=log_loss, iterations=200, tolerance=_SETTLED)
        found = _restart(solver, found, weights, log_loss)
        theta.append(found.theta)
        converged.append(found.converged)
    return Replicates(np.concatenate(theta), np.concatenate(converged), method)


def _restart(solver: Solver, found: Solution, weights: np.ndarray | None, log_loss: np.ndarray | None) -> Solution:
    """Start replicates anew where that helps: from a wider Huber zone, and from each other's optima.

    Where the runs say little the objective has long flat valleys with kinks, in which single replicates stop early. A
    sample is restarted first, then all that had not settled, and the others too if a settled one of the sample gained.
    """
    if not np.isfinite(solver.delta):
        return found  # least squares is smooth: no kinks to stop at
    size = len(found.theta)
    sample, follow = np.arange(0, size, max(1, size // _SAMPLE)), False
    for turn in range(2):
        tried = _again(solver, found, weights, log_loss, sample, turn)
        follow |= bool((_gained(found.objective[sample], tried.objective) & found.converged[sample]).any())
        found = _better(found, tried, sample)
    rows = np.flatnonzero(~found.converged | follow)
    last = np.zeros(len(rows), dtype=int)
    for turn in range(_TURNS):
        if not len(rows):
            break
        tried = _again(solver, found, weights, log_loss, rows, turn)
        last = np.where(_gained(found.objective[rows], tried.objective), turn, last)
        found = _better(found, tried, rows)
        moving = last >= turn - _PATIENCE
        found.converged[rows[~moving]] = True  # no way of starting anew leads lower
        rows, last = rows[moving], last[moving]
    return found


def _gained(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.asarray(after < before * (1 - _GAIN))


def _again(
    solver: Solver,
    found: Solution,
    weights: np.ndarray | None,
    log_loss: np.ndarray | None,
    rows: np.ndarray,
    turn: int,
) -> Solution:
    w, z = (None if x is None else x[rows] for x in (weights, log_loss))
    start = np.roll(found.theta, turn // 2 + 1, axis=0)[rows]
    if turn % 2 == 0:
        start = found.theta[rows]
        for factor in _WIDER_ZONES:
            wide = Solver(solver.problem, delta=factor * solver.delta)
            start = wide.solve(start, w, log_loss=z, cold=True, iterations=40, tolerance=1e-8).theta
    return solver.solve(start, w, log_loss=z, iterations=200, tolerance=_SETTLED)


def _better(found: Solution, tried: Solution, rows: np.ndarray) -> Solution:
    """The solutions with those rows replaced whose objective fell."""
    lower = tried.objective < found.objective[rows]
    fields = {name: getattr(found, name).copy() for name in Solution.__dataclass_fields__}
    for name, values in fields.items():
        values[rows[lower]] = getattr(tried, name)[lower]
    return Solution(**fields)


def _most_widened(left: Replicates, right: Replicates) -> float:
    """Largest over the coordinates of the ratio of interquartile ranges."""
    wide, narrow = (np.subtract(*np.quantile(r.theta, [0.75, 0.25], axis=0)) for r in (left, right))
    return float(np.max(wide / np.maximum(narrow, 1e-300)))


def donors_among(runs: int) -> int:
    """How many runs of similar loss lend each other their residuals."""
    return min(max(_FEWEST_DONORS, runs // 3), runs)


class _Pairs:
    """Weights of runs drawn with replacement; all rows of a run share a weight."""

    def __init__(self, clusters: np.ndarray, seed: int) -> None:
        self.clusters, self.count = clusters, int(clusters.max()) + 1
        self.generator = rng(seed, "bootstrap")

    def __call__(self, size: int) -> tuple[np.ndarray, None]:
        drawn = self.generator.multinomial(self.count, np.full(self.count, 1.0 / self.count), size)
        return drawn[:, self.clusters].astype(float), None


class _Exchange:
    """Log losses made of the fit and the residuals of other runs of similar loss."""

    def __init__(self, solver: Solver, best: GlobalFit, clusters: np.ndarray, seed: int) -> None:
        problem = solver.problem
        n, p, runs = problem.n, problem.p, int(clusters.max()) + 1
        residuals = solver.residuals(best.theta[None])[0][0]
        self.fitted = problem.z - residuals
        free = max(n - p, 1)
        self.residuals = residuals * np.sqrt(n / free)
        self.degrees_of_freedom = float(free if runs == n else max(1, min(free, runs - 1)))
        interpolates = solver.delta < np.median(np.abs(residuals))
        self.smooth = 0.4 if interpolates else 0.25
        self.generator = rng(seed, "bootstrap")
        self._arrange(clusters, runs)

    def _arrange(self, clusters: np.ndarray, runs: int) -> None:
        """Rows sorted by run and loss; runs sorted by mean loss; each run's window of donors."""
        self.rows = np.lexsort((-self.fitted, clusters))
        self.sizes = np.bincount(clusters, minlength=runs)
        self.first = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self.run_of = clusters
        place = np.empty(len(clusters), dtype=int)
        place[self.rows] = np.arange(len(clusters))
        self.share = (place - self.first[clusters] + 0.5) / self.sizes[clusters]
        means = np.bincount(clusters, self.fitted, minlength=runs) / self.sizes
        self.by_loss = np.argsort(means, kind="stable")
        rank = np.empty(runs, dtype=int)
        rank[self.by_loss] = np.arange(runs)
        self.donors = donors_among(runs)
        self.window = np.clip(rank - self.donors // 2, 0, runs - self.donors)
        squares = np.bincount(clusters, self.residuals**2, minlength=runs)[self.by_loss]
        totals, counts = (np.concatenate([[0.0], np.cumsum(x)]) for x in (squares, self.sizes[self.by_loss]))
        end = self.window + self.donors
        self.local = np.sqrt((totals[end] - totals[self.window]) / (counts[end] - counts[self.window]))

    def __call__(self, size: int) -> tuple[None, np.ndarray]:
        runs, draw = len(self.sizes), self.generator
        donor = self.by_loss[self.window + draw.integers(0, self.donors, (size, runs))]
        sign = draw.choice([-1.0, 1.0], (size, runs))
        blur = self.smooth * self.local * draw.standard_normal((size, runs))
        giver = donor[:, self.run_of]
        row = self.rows[self.first[giver] + (self.share * self.sizes[giver]).astype(int)]
        error = self.residuals[row] * sign[:, self.run_of] + blur[:, self.run_of]
        scale = np.sqrt(self.degrees_of_freedom / draw.chisquare(self.degrees_of_freedom, size)) / np.sqrt(
            1.0 + self.smooth**2
        )
        return None, self.fitted + error * scale[:, None]


def _normal(solver: Solver, best: GlobalFit, clusters: np.ndarray, resamples: int, seed: int) -> Replicates:
    covariance = robust_covariance(solver, best.theta, clusters)
    values, vectors = np.linalg.eigh(covariance)
    draws = rng(seed, "bootstrap").standard_normal((resamples, len(values)))
    theta = best.theta + (draws * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    theta = np.clip(theta, solver.problem.lower, solver.problem.upper)
    return Replicates(theta, np.ones(resamples, dtype=bool), "normal")


def robust_covariance(solver: Solver, theta: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Cluster-robust (sandwich) covariance of the coordinates, (p, p), with the usual small-sample factor.

    Source: Liang and Zeger 1986; White 1980 where every run is its own cluster.
    """
    problem = solver.problem
    runs = int(clusters.max()) + 1
    residuals, state = solver.residuals(theta[None])
    score = np.clip(residuals[0], -solver.delta, solver.upper)
    jacobian = solver.jacobian(theta)
    if problem.weights is not None:
        score = score * problem.weights
    by_run = np.stack([np.bincount(clusters, score * column, minlength=runs) for column in jacobian.T], axis=1)
    _, hessian = solver.derivatives(theta[None], residuals, state, solver.weigh(None, 1))
    inverse = np.linalg.pinv(hessian[0], hermitian=True)
    factor = runs / max(runs - 1, 1) * (problem.n - 1) / max(problem.n - problem.p, 1)
    return np.asarray(inverse @ (by_run.T @ by_run) @ inverse * factor)


def noise_scale(residuals: np.ndarray, parameters: int, weights: np.ndarray | None = None) -> float:
    """Robust standard deviation of log residuals, corrected for the fitted parameters.

    The larger of 1.4826 times the (weighted) median absolute residual and half the root mean square.
    """
    n = len(residuals)
    w = np.ones(n) if weights is None else weights
    size = np.abs(residuals)
    order = np.argsort(size)
    half = np.searchsorted(np.cumsum(w[order]), 0.5 * w.sum())
    spread = 1.4826 * float(size[order][min(half, n - 1)])
    root = float(np.sqrt(np.average(residuals**2, weights=w)))
    return max(spread, 0.5 * root) * float(np.sqrt(n / max(n - parameters, 1)))


def local_noise(
    fitted: np.ndarray, residuals: np.ndarray, parameters: int, weights: np.ndarray | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Noise as a function of the predicted log loss: centres of windows of similar runs, and the noise in each.

    Args:
        fitted: (n,) predicted log loss.
        residuals: (n,) log residuals.
        parameters: fitted parameters.
        weights: (n,) weights of the runs in the fit, or None.
    """
    n = len(fitted)
    size = donors_among(n)
    order = np.argsort(fitted, kind="stable")
    starts = np.unique(np.linspace(0, n - size, _WINDOWS).round().astype(int))
    enlarge = np.sqrt(n / max(n - parameters, 1))
    centres, levels = [], []
    for start in starts:
        rows = order[start : start + size]
        centres.append(float(np.mean(fitted[rows])))
        levels.append(float(noise_scale(residuals[rows], 0, None if weights is None else weights[rows]) * enlarge))
    return tuple(centres), tuple(levels)
