"""Which parameters fit best, from many starts and for many bootstrap replicates at once?

Minimises, for every member b of a batch with its own weights,

    F_b(theta) = sum_i  w_bi * huber_delta(log loss_i - log law(run_i; theta))

(a sum, not a mean) by a semismooth Newton method with the exact Hessian, Levenberg damping scaled by the diagonal, and
a box on the coordinates. Features are shared by the batch, so a bootstrap replicate is a weight vector and the Hessians
of all replicates are a few matrix products.

Source: Huber 1964 for the loss; Hoffmann et al. 2022 (arXiv 2203.15556) for its use on log losses.
"""

from dataclasses import dataclass

import numpy as np

from scalefed.fitting.derivatives import Flat, Nested, State, combiner
from scalefed.fitting.problem import Problem

_CACHE_DOUBLES = 1048576  # 8 MB: a step of fewer members is mostly calls; tests/benchmarks/bench_fitting.py speed
_LONGEST_STEP = 2.0  # in any coordinate (logarithms and exponents): further out the quadratic model is no guide
_EXACT = 1e-28  # squared residuals a run: nothing is left but rounding
_NEAR = 1e-3  # relative gain below which a start counts as near its end
_LOST = 0.1  # damping above which a start that does not gain is given up
_FLAT = 1e-16  # relative decrement below what a double can show
_LENGTHS = (0.3, 0.1, 0.03, 0.01)  # of a step that are tried after the whole of it, before damping rises
_STAGES = (12, 30, 80)
"""Steps after which the members still moving are gathered into new chunks: a chunk costs much the same for two members
as for a hundred, and one replicate in ten needs ten times the steps of the others."""


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver found for every member of a batch.

    Attributes:
        theta: (B, p) coordinates.
        objective: (B,) sum of Huber losses.
        iterations: (B,) Newton steps tried.
        converged: (B,) whether the stopping rule was met.
        decrement: (B,) half the squared Newton decrement at the last step: how much lower F could still go.
    """

    theta: np.ndarray
    objective: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    decrement: np.ndarray


class Solver:
    """The batched solver of one problem.

    Args:
        problem: law and runs.
        delta: width of the quadratic zone of the Huber loss, in units of log loss; infinity is least squares.
    """

    def __init__(self, problem: Problem, *, delta: float = 1e-3) -> None:
        self.problem, self.delta = problem, float(delta)
        self.upper = self.delta * problem.above
        self.combine: Flat | Nested = combiner(problem)
        channels = problem.channels
        self.transposed = [np.ascontiguousarray(c.features.T) for c in channels]
        self.products = {
            (a, b): np.ascontiguousarray(
                (channels[a].features[:, :, None] * channels[b].features[:, None, :]).reshape(problem.n, -1)
            )
            for a in range(len(channels))
            for b in range(a, len(channels))
        }

    # -- pieces ------------------------------------------------------------------------------------------------------
    def residuals(self, theta: np.ndarray, log_loss: np.ndarray | None = None) -> tuple[np.ndarray, State]:
        """Log loss minus log law, (B, n), and the state for the derivatives."""
        q = self.problem.monomials(theta)
        v = []
        for channel, where, features in zip(self.problem.channels, self.problem.slices, self.transposed, strict=True):
            x = q[:, where] @ (features[:, :1] if channel.constant else features)
            if channel.offset is not None:
                x += channel.offset
            v.append(x)
        m, state = self.combine.value(v)
        if self.problem.base is not None:
            m += theta[:, self.problem.base, None]
        elif self.problem.base_constant:
            m += self.problem.base_constant
        z = self.problem.z if log_loss is None else log_loss
        return np.subtract(z, m, out=m if len(m) >= z.size // z.shape[-1] else None), state

    def weigh(self, weights: np.ndarray | None, size: int) -> np.ndarray | None:
        """Weights of the batch times the problem's own, (size, n), or None where all are 1."""
        own = self.problem.weights
        if own is None:
            return weights
        return np.broadcast_to(own, (size, self.problem.n)) if weights is None else weights * own

    def loss(self, r: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        """The objective, (B,)."""
        v = self.huber(r, self.delta, self.upper)
        return np.asarray(v.sum(1) if weights is None else np.einsum("bn,bn->b", v, weights))

    @staticmethod
    def huber(r: np.ndarray, delta: float, upper: float | None = None) -> np.ndarray:
        """Huber's loss of every residual: r^2/2 up to delta, then delta |r| - delta^2/2; ``upper`` where r > 0."""
        c = np.clip(r, -delta, delta if upper is None else upper)
        v = c * -0.5
        v += r
        v *= c
        return np.asarray(v)

    def derivatives(
        self,
        theta: np.ndarray,
        r: np.ndarray,
        state: State,
        weights: np.ndarray | None,
        far: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Gradient (B, p) and Hessian (B, p, p) of the objective.

        Members marked in ``far`` (B,) get the Hessian of the quadratic that lies above the Huber loss and touches it
        at their residuals (iteratively reweighted least squares): positive definite, and right far from the optimum,
        where most residuals are in the linear zone and the exact Hessian says little.
        """
        problem = self.problem
        c = np.clip(r, -self.delta, self.upper)
        k = (c == r).astype(float)
        if far is not None and far.any():
            k[far] = np.minimum(1.0, np.where(r[far] > 0, self.upper, self.delta) / np.maximum(np.abs(r[far]), 1e-300))
        if weights is not None:
            c *= weights
            k *= weights
        size, nq = len(r), len(problem.keys)
        g, h = np.zeros((size, nq)), np.zeros((size, nq, nq))
        first, curvature = self.combine.derivatives(state)
        for a, where in enumerate(problem.slices):
            g[:, where] = -((c * first[a]) @ problem.channels[a].features)
        if problem.base is not None:
            g[:, -1] = -c.sum(1)
            h[:, -1, -1] = k.sum(1)
            for a, where in enumerate(problem.slices):
                h[:, -1, where] = h[:, where, -1] = (k * first[a]) @ problem.channels[a].features
        if far is not None and far.any():
            c = np.where(far[:, None], 0.0, c)
        for a, b, w in curvature(c, k):
            rows, columns = problem.slices[a], problem.slices[b]
            shape = (size, rows.stop - rows.start, columns.stop - columns.start)
            block = (w @ self.products[a, b]).reshape(shape)
            h[:, rows, columns] = block
            if a != b:
                h[:, columns, rows] = block.transpose(0, 2, 1)
        return self._to_theta(theta, g, h, far)

    def _to_theta(
        self, theta: np.ndarray, g: np.ndarray, h: np.ndarray, far: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.problem.linear:
            s = self.problem.selection
            return g @ s, s.T @ h @ s
        j = self.problem.chain(theta)
        gradient = np.einsum("bk,bkp->bp", g, j)
        bend = self.problem.chain_curvature(theta, g)
        if far is not None:
            bend[far] = 0.0
        hessian = j.transpose(0, 2, 1) @ h @ j + bend
        return gradient, hessian

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """Slopes of the log law in the coordinates for every run at one point (p,): (n, p)."""
        problem = self.problem
        _, state = self.residuals(theta[None])
        columns = np.zeros((problem.n, len(problem.keys)))
        for where, channel, slope in zip(
            problem.slices, problem.channels, self.combine.derivatives(state)[0], strict=True
        ):
            columns[:, where] = np.broadcast_to(slope, (1, problem.n))[0][:, None] * channel.features
        if problem.base is not None:
            columns[:, -1] = 1.0
        chain = problem.selection if problem.linear else problem.chain(theta[None])[0]
        return np.asarray(columns @ chain)

    # -- the batched iteration ---------------------------------------------------------------------------------------
    def solve(
        self,
        theta: np.ndarray,
        weights: np.ndarray | None = None,
        *,
        log_loss: np.ndarray | None = None,
        cold: bool = False,
        iterations: int = 100,
        tolerance: float = 1e-12,
    ) -> Solution:
        """Minimise from every row of ``theta``, in cache-sized chunks that are gathered anew as members finish.

        Args:
            theta: (B, p) starting coordinates.
            weights: (B, n) weights of the runs for every member, on top of the problem's own; or None for 1.
            log_loss: (B, n) log losses for every member, or None for the runs' own.
            cold: whether the starts may be far from the optimum.
            iterations: most Newton steps.
            tolerance: relative decrease at which a member stops.

        >>> from scalefed.laws import Law
        >>> n = np.array([1.0, 4.0, 16.0, 64.0])
        >>> problem = Problem(Law.parse("E + A/params^a"), {"params": n}, np.log(1 + n**-0.5))
        >>> found = Solver(problem).solve(problem.to_coordinates(np.array([[0.9, 1.2, 0.4]])))
        >>> problem.to_values(found.theta).round(6).tolist()
        [[1.0, 1.0, 0.5]]
        """
        done = _Batch.of(np.clip(theta, self.problem.lower, self.problem.upper), cold)
        rows, spent = np.arange(len(theta)), 0
        chunk = max(16, _CACHE_DOUBLES // (8 * self.problem.n))
        for most in (*(stage for stage in _STAGES if stage < iterations), iterations):
            for i in range(0, len(rows), chunk):
                part = rows[i : i + chunk]
                w = self.weigh(None if weights is None else weights[part], len(part))
                z = None if log_loss is None else log_loss[part]
                self._solve_chunk(done, part, w, z, most - spent, tolerance)
            rows, spent = np.flatnonzero(~done.converged), most
        return Solution(done.theta, done.objective, done.iterations, done.converged, done.decrement)

    def _solve_chunk(
        self,
        done: "_Batch",
        rows: np.ndarray,
        w: np.ndarray | None,
        z: np.ndarray | None,
        iterations: int,
        tolerance: float,
    ) -> None:
        theta, damping, far = done.theta[rows], done.damping[rows], done.far[rows]
        alike = len(rows) > 1 and bool((theta == theta[0]).all())  # replicates start where the fit ended
        r, state = self.residuals(theta[:1] if alike else theta, z)
        r = np.repeat(r, len(rows), axis=0) if len(r) < len(rows) else r
        f = self.loss(r, w)
        for _ in range(iterations):
            g, h = self.derivatives(theta, r, state, w, far)
            step, decrement = self._step(theta, g, h, damping)
            if alike:
                state, alike = [np.repeat(x, len(rows), axis=0) for x in state], False
            before = f.copy()
            better, r, state = self._advance(theta, step, f, r, state, w, z)
            relative = (before - f) / np.maximum(before, 1e-300)
            lost = ~better & (damping > 1e6)
            far = np.where(far, ~(better & (relative < _NEAR)), ~better & (damping > _LOST))
            damping = np.where(better, np.maximum(damping * 0.1, 1e-13), np.clip(damping * 10.0, 1e-4, 1e10))
            stop = (better & (relative < tolerance)) | lost | (f <= _EXACT * self.problem.n)
            stop |= decrement <= _FLAT * f
            done.record(rows, theta, f, decrement, damping, far, stop)
            if stop.any():
                keep = ~stop
                if not keep.any():
                    break
                theta, f, r, damping, far = theta[keep], f[keep], r[keep], damping[keep], far[keep]
                state = [x[keep] for x in state]
                w, z = (None if x is None else x[keep] for x in (w, z))
                rows = rows[keep]

    def _advance(
        self,
        theta: np.ndarray,
        step: np.ndarray,
        f: np.ndarray,
        r: np.ndarray,
        state: State,
        w: np.ndarray | None,
        z: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray, State]:
        """Move theta and f in place along the step, shorter where the whole of it climbs.

        Close to the optimum few residuals lie in the quadratic zone, and a Newton step overshoots the kinks of the
        others: its direction is good, its length is not.

        Returns:
            Which members moved, (B,), with the residuals and the state of all.
        """
        trial = np.clip(theta + step, self.problem.lower, self.problem.upper)
        r_new, state_new = self.residuals(trial, z)
        f_new = self.loss(r_new, w)
        moved = f_new < f
        left = np.flatnonzero(~moved)
        for new, old in zip((trial, f_new, r_new, *state_new), (theta, f, r, *state), strict=True):
            new[left] = old[left]
        theta[:], f[:], r, state = trial, f_new, r_new, state_new
        for length in _LENGTHS:
            if not len(left):
                break
            w_left, z_left = (None if x is None else x[left] for x in (w, z))
            trial = np.clip(theta[left] + length * step[left], self.problem.lower, self.problem.upper)
            r_new, state_new = self.residuals(trial, z_left)
            f_new = self.loss(r_new, w_left)
            better = f_new < f[left]
            at = left[better]
            for old, new in zip((theta, f, r, *state), (trial, f_new, r_new, *state_new), strict=True):
                old[at] = new[better]
            moved[at] = True
            left = left[~better]
        return moved, r, state

    def _step(
        self, theta: np.ndarray, g: np.ndarray, h: np.ndarray, damping: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        frozen = ((theta <= self.problem.lower) & (g > 0)) | ((theta >= self.problem.upper) & (g < 0))
        if frozen.any():
            g = np.where(frozen, 0.0, g)
            h = np.where(frozen[:, :, None] | frozen[:, None, :], 0.0, h)
            h[:, np.arange(h.shape[1]), np.arange(h.shape[1])] += frozen
        diagonal = np.einsum("bii->bi", h)
        scale = np.abs(diagonal) + np.abs(g)
        scale = scale + 1e-8 * scale.max(1, keepdims=True) + 1e-30
        diagonal += damping[:, None] * scale
        step = -np.linalg.solve(h, g[:, :, None])[:, :, 0]
        decrement = np.abs(np.einsum("bp,bp->b", g, step)) / 2
        longest = np.maximum(np.abs(step).max(1), 1e-300)
        step *= np.minimum(1.0, _LONGEST_STEP / longest)[:, None]
        return step, decrement


@dataclass(slots=True)
class _Batch:
    """Where every member of a batch stands: its point, and how the next step is to be damped; all (B, ...)."""

    theta: np.ndarray
    objective: np.ndarray
    decrement: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray
    damping: np.ndarray
    far: np.ndarray

    @classmethod
    def of(cls, theta: np.ndarray, cold: bool) -> "_Batch":
        size = len(theta)
        nothing, no = np.full(size, np.inf), np.zeros(size, dtype=bool)
        damping, far = np.full(size, 1e-3), np.full(size, cold)
        return cls(theta, nothing, nothing.copy(), np.zeros(size, dtype=int), no, damping, far)

    def record(
        self,
        rows: np.ndarray,
        theta: np.ndarray,
        f: np.ndarray,
        decrement: np.ndarray,
        damping: np.ndarray,
        far: np.ndarray,
        stop: np.ndarray,
    ) -> None:
        self.theta[rows], self.objective[rows], self.decrement[rows] = theta, f, decrement
        self.damping[rows], self.far[rows], self.converged[rows] = damping, far, stop
        self.iterations[rows] += 1
