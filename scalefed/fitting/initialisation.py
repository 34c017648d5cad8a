"""Where should the solver start, and has it found the global optimum?

Exponents and other nonlinear parameters come from a quasi-random set; amplitudes and the floor then follow by weighted
linear least squares (variable projection), so that nearly every start reaches the optimum. Small samples have real
local minima: there the width of the Huber loss is continued from large to small and the best starts are jittered.
"""

from dataclasses import dataclass

import numpy as np

from scalefed.fitting.channels import Channel, Node
from scalefed.fitting.derivatives import log_node
from scalefed.fitting.problem import Problem, subset
from scalefed.fitting.solver import Solution, Solver
from scalefed.seeds import quasi_random, rng

_SCREEN_RUNS = 512  # runs that thousands of starts are screened on
_LARGE = 20_000  # runs; above, starts descend on a quarter of so many
_SMALL = 40  # runs; below, the loss has more than one valley more often and more starts descend
_DELTAS = (1e-1, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)  # thresholds from wide to narrow: each optimum starts the next
_SAME_OPTIMUM = 1e-6  # relative: two descents that end so near found one optimum
_WIDER = 10.0  # thresholds: the Huber zone from which a fit near another is continued
# Where towers, exp(s x^q + c), are begun: s x^q and c at the middle of the runs, and q; published laws (Farseer, arXiv
# 2506.10972, table 1) have 0.2 to 12 and 0.1 to 0.2 there, of either sign.
_FACTORS, _OFFSETS, _IN_TOWERS = (-6.0, 6.0), (-4.0, 4.0), (-0.5, 0.5)


@dataclass(frozen=True, slots=True)
class GlobalFit:
    """The best of all starts.

    Attributes:
        theta: (p,) coordinates.
        objective: sum of Huber losses at the optimum.
        decrement: how much lower the objective could still go by Newton's local model.
        converged: whether the stopping rule was met.
        starts: how many starts ran to the end.
        agreeing: share of them within 1e-6 (relative) of the best objective.
        others: (m, p) coordinates of other good local minima, best first, for restarts of replicates.
        at_lower, at_upper: (p,) coordinates that sit on their bound.
    """

    theta: np.ndarray
    objective: float
    decrement: float
    converged: bool
    starts: int
    agreeing: float
    others: np.ndarray
    at_lower: np.ndarray
    at_upper: np.ndarray


def global_fit(problem: Problem, *, delta: float = 1e-3, seed: int = 0, extra: np.ndarray | None = None) -> GlobalFit:
    """The best fit over many starts.

    Args:
        problem: law and runs.
        delta: width of the Huber loss.
        seed: of the quasi-random set and the jitter.
        extra: (m, p) further starts in coordinates.
    """
    if problem.n > _LARGE:
        rows = rng(seed, "fit-subsample").choice(problem.n, _LARGE // 4, replace=False)
        small = global_fit(_like(problem, subset(problem, np.sort(rows))), delta=delta, seed=seed)
        values = subset(problem, np.sort(rows)).to_values(small.theta[None])
        solution = Solver(problem, delta=delta).solve(problem.to_coordinates(values))
        return summarise(problem, solution, small.starts, small.agreeing)
    if problem.p == 0:
        return summarise(problem, _evaluate(problem, delta), 1, 1.0)
    dimensions = len(_nonlinear(problem))
    nested = not all(node.is_plain for node in problem.nodes)
    hard = problem.n < _SMALL or dimensions > 2 or nested
    starts = projected_starts(problem, keep=32 if hard else 16, delta=delta, seed=seed)
    if extra is not None and len(extra):
        starts = np.concatenate([np.atleast_2d(extra), starts])
    solver = Solver(problem, delta=delta)
    found = solver.solve(starts, cold=True, iterations=200)
    agreeing = _agreeing(found, 1e-9 * problem.n * min(delta, 1e-3) ** 2)
    if problem.n < _SMALL or agreeing < 0.5:
        found = _refine(problem, solver, starts, found, delta, seed)
    return summarise(problem, found, len(starts), agreeing)


def local_fit(problem: Problem, near: GlobalFit, *, delta: float) -> GlobalFit:
    """The best fit from the optima of a problem that differs in its weights, its runs or its Huber zone alone.

    Args:
        problem: law and runs.
        near: the fit of the other problem, in the same units.
        delta: width of the Huber loss.
    """
    starts = np.concatenate([near.theta[None], near.others])
    solver = Solver(problem, delta=delta)
    found = solver.solve(starts, cold=True, iterations=200)
    if np.isfinite(delta):
        wide = Solver(problem, delta=_WIDER * delta).solve(starts, cold=True, iterations=40, tolerance=1e-8)
        found = _join(found, solver.solve(wide.theta, iterations=200))
    return summarise(problem, found, near.starts, near.agreeing)


def projected_starts(problem: Problem, *, keep: int, delta: float, seed: int = 0) -> np.ndarray:
    """Quasi-random nonlinear parameters with the linear part solved; the best ``keep`` by objective, (keep, p)."""
    screen = problem
    if problem.n > _SCREEN_RUNS:
        rows = rng(seed, "fit-screen").choice(problem.n, _SCREEN_RUNS, replace=False)
        screen = subset(problem, np.sort(rows))
    nonlinear = _nonlinear(problem)
    count = min(4096, 512 * 2 ** max(0, len(nonlinear) - 2))
    low, high = _ranges(screen, nonlinear)
    theta = np.zeros((count, problem.p))
    theta[:, nonlinear] = low + (high - low) * quasi_random(count, len(nonlinear), seed)[:count]
    theta = _solve_linear(screen, theta)
    theta = np.clip(theta, screen.lower, screen.upper)
    solver = Solver(screen, delta=delta)
    chunk = max(16, 2**19 // screen.n)
    objective = np.concatenate([_objective(solver, theta[i : i + chunk]) for i in range(0, count, chunk)])
    best = theta[np.argsort(np.where(np.isfinite(objective), objective, np.inf), kind="stable")[:keep]]
    return problem.to_coordinates(screen.to_values(best)) if screen is not problem else best


def _nonlinear(problem: Problem) -> list[int]:
    """Coordinates that are not solved linearly: all but the floor and the amplitudes of plain terms."""
    linear = {problem.channels[node.leaf].amplitude for node in problem.nodes} | {problem.base}
    group = _power_group(problem)
    if group is not None:
        linear |= {problem.channels[child.leaf].amplitude for child in group[1]}
        linear -= {problem.base}
    return [i for i in range(problem.p) if i not in linear]


def _power_group(problem: Problem) -> tuple[int, list[Node]] | None:
    """``[floor +] (sum of plain terms)^power``: linear in the amplitudes once floor and power are set; else None."""
    node = problem.nodes[0]
    if len(problem.nodes) != 1 or len(node.groups) != 1 or node.repeats or node.log.towers or node.sign < 0:
        return None
    leaf = problem.channels[node.leaf]
    power, children = node.groups[0]
    plain = not power.towers and all(c.is_plain and problem.channels[c.leaf].amplitude is not None for c in children)
    only_floor = all(len(key) == 1 and key[0] == problem.base for key in leaf.keys) and leaf.amplitude is None
    return (power.channel, children) if plain and only_floor else None


def _ranges(problem: Problem, nonlinear: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Where to draw the nonlinear parameters: by what they multiply, cut to their bounds."""
    low, high = np.full(problem.p, 0.02), np.full(problem.p, 1.5)
    least = float(problem.z.min())
    offsets = {c.amplitude for c in problem.channels if c.amplitude is not None}
    exponents = {key[0] for leaf in problem.scales.values() for key in problem.channels[leaf].keys if len(key) == 1}
    for name, i in problem.index.items():
        if i == problem.base:
            low[i], high[i] = least + np.log(0.05), least + np.log(0.98)
        elif i in problem.scales:
            low[i], high[i] = _FACTORS
        elif i in exponents:
            low[i], high[i] = _IN_TOWERS
        elif i in offsets and name not in problem.law.positive:
            low[i], high[i] = _OFFSETS
        elif name in problem.law.positive:
            low[i], high[i] = (np.log(0.3), np.log(200.0)) if _is_decay(problem, i) else (least - 3.0, least + 3.0)
        else:
            spread = _spread_of(problem, i)
            if spread is not None:
                low[i], high[i] = -1.0 / spread, 2.0 / spread
    span_low, span_high = np.maximum(low, problem.lower), np.minimum(high, problem.upper)
    empty = span_low >= span_high
    narrow_low, narrow_high = np.maximum(problem.lower, -3.0), np.minimum(problem.upper, 3.0)
    span_low, span_high = np.where(empty, narrow_low, span_low), np.where(empty, narrow_high, span_high)
    span_low, span_high = np.minimum(span_low, span_high), np.maximum(span_low, span_high)
    return span_low[nonlinear], span_high[nonlinear]


def _is_decay(problem: Problem, i: int) -> bool:
    name = problem.names[i]
    return any(name == one.decay for term in problem.law.terms for one in term.repeats)


def _spread_of(problem: Problem, i: int) -> float | None:
    """For a parameter that multiplies a raw column (skew) by itself: the spread of that feature; else None."""
    name = problem.names[i]
    for term in problem.law.bound_terms:
        for part in term.all_parts():
            if part.parameters == (name,) and any(a.kind == "raw" for a in part.atoms):
                values = np.prod([a.value(problem.columns) for a in part.atoms], axis=0) * part.coefficient
                return float(max(np.ptp(values), 1e-3))
    return None


def _solve_linear(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """Fill in floor and amplitudes by least squares on loss, weighted by 1/loss^2."""
    group = _power_group(problem)
    if group is not None:
        return _solve_group(problem, theta, *group)
    v = _channels(problem, problem.monomials(theta))
    known = np.zeros((len(theta), problem.n))
    columns, owners = [], []
    for node in problem.nodes:
        channel = problem.channels[node.leaf]
        curve = node.sign * np.exp(np.clip(log_node(node, v) - problem.z, -300.0, 300.0))
        if channel.amplitude is not None:
            columns.append(curve)
            owners.append(channel)
        elif problem.base is None:
            known = known + curve
    floor = np.exp(-problem.z)
    if problem.base is not None:
        columns.append(np.broadcast_to(floor, (len(theta), problem.n)))
    elif problem.has_floor:
        known = known + np.exp(problem.base_constant) * floor
    if not columns:
        return theta
    solution = _positive_least_squares(np.stack(columns, axis=1), 1.0 - known, problem)
    return _store(problem, theta, solution, owners)


def _channels(problem: Problem, q: np.ndarray) -> list[np.ndarray]:
    """Every channel, (starts, n) each, from the monomials."""
    found = []
    for channel, where in zip(problem.channels, problem.slices, strict=True):
        values = q[:, where] @ channel.features.T
        found.append(values if channel.offset is None else values + channel.offset)
    return found


def _positive_least_squares(design: np.ndarray, target: np.ndarray, problem: Problem) -> np.ndarray:
    """Batched normal equations with a small ridge, cut off at a small positive share of the smallest loss."""
    matrix = design @ design.transpose(0, 2, 1)
    size = matrix.shape[1]
    diagonal = np.einsum("bii->bi", matrix)
    diagonal *= 1.0 + 1e-9
    diagonal += 1e-300
    right = np.einsum("bkn,bn->bk", design, np.broadcast_to(target, (len(design), problem.n)))
    usable = np.isfinite(matrix).all(axis=(1, 2)) & np.isfinite(right).all(axis=1)
    matrix[~usable], right[~usable] = np.eye(size), 0.0
    solution = np.linalg.solve(matrix, right[:, :, None])[:, :, 0]
    least = np.full(size, 1e-3)
    if problem.base is not None:
        least[-1] = 1e-2
    return np.asarray(np.maximum(solution, least * np.exp(problem.z.min())))


def _store(problem: Problem, theta: np.ndarray, solution: np.ndarray, owners: list[Channel]) -> np.ndarray:
    out = theta.copy()
    base = np.full(len(theta), problem.base_constant)
    if problem.base is not None:
        base = np.log(solution[:, -1])
        out[:, problem.base] = base
    for k, channel in enumerate(owners):
        assert channel.amplitude is not None
        height = np.log(solution[:, k]) - (base if channel.relative else 0.0)
        out[:, channel.amplitude] = -height if channel.turned else height
    return out


def _solve_group(problem: Problem, theta: np.ndarray, power: int, children: list[Node]) -> np.ndarray:
    q = problem.monomials(theta)
    loss = np.exp(problem.z)
    if problem.base is not None:
        floor = np.exp(theta[:, problem.base, None])
    else:
        floor = np.full((1, 1), np.exp(problem.base_constant) if problem.has_floor else 0.0)
    v = _channels(problem, q)
    exponent = v[power]
    log_target = np.log(np.maximum(loss - floor, 1e-6 * loss)) / np.maximum(exponent, 0.02)
    columns = [np.exp(np.clip(log_node(c, v) - log_target, -300.0, 300.0)) for c in children]
    solution = _positive_least_squares(np.stack(columns, axis=1), np.ones(1), problem)
    out = theta.copy()
    for k, child in enumerate(children):
        amplitude = problem.channels[child.leaf].amplitude
        assert amplitude is not None
        out[:, amplitude] = np.log(np.maximum(solution[:, k], 1e-12))
    return out


def _refine(problem: Problem, solver: Solver, starts: np.ndarray, found: Solution, delta: float, seed: int) -> Solution:
    """Continue the starts from a wide Huber zone to the asked one, then jitter the best eight."""
    theta = starts
    for wide in (d for d in _DELTAS if d > delta * 1.01):
        theta = Solver(problem, delta=wide).solve(theta, cold=True, iterations=40, tolerance=1e-8).theta
    found = _join(found, solver.solve(theta, iterations=200))
    order = np.argsort(found.objective, kind="stable")[:8]
    jitter = rng(seed, "fit-jitter").standard_normal((8 * len(order), problem.p)) * 0.05
    return _join(found, solver.solve(np.repeat(found.theta[order], 8, axis=0) + jitter, iterations=200))


def _join(left: Solution, right: Solution) -> Solution:
    return Solution(*(np.concatenate([getattr(left, f), getattr(right, f)]) for f in Solution.__dataclass_fields__))


def _agreeing(found: Solution, exact: float) -> float:
    best = found.objective.min()
    return float(np.mean(found.objective <= best * (1.0 + _SAME_OPTIMUM) + exact))


def summarise(problem: Problem, found: Solution, starts: int, agreeing: float) -> GlobalFit:
    """The best of what the solver found.

    Args:
        problem: law and runs.
        found: the solutions from several starts.
        starts: how many starts there were.
        agreeing: share of them that reached the best objective.
    """
    objective = np.where(np.isfinite(found.objective), found.objective, np.inf)
    order = np.argsort(objective, kind="stable")
    best = order[0]
    theta = found.theta[best]
    slack = 1e-9 * np.maximum(1.0, np.abs(theta))
    return GlobalFit(
        theta=theta,
        objective=float(found.objective[best]),
        decrement=float(found.decrement[best]),
        converged=bool(found.converged[best]),
        starts=starts,
        agreeing=agreeing,
        others=_distinct(found.theta[order], objective[order]),
        at_lower=theta <= problem.lower + slack,
        at_upper=theta >= problem.upper - slack,
    )


def _distinct(theta: np.ndarray, objective: np.ndarray) -> np.ndarray:
    """Other local minima within a factor two of the best objective, at most three, clearly apart."""
    kept = [theta[0]]
    for candidate, value in zip(theta, objective, strict=True):
        if len(kept) > 3 or not value <= 2.0 * objective[0] + 1e-20:
            break
        if all(np.abs(candidate - k).max(initial=0.0) > 0.02 for k in kept):
            kept.append(candidate)
    return np.array(kept[1:]).reshape(len(kept) - 1, theta.shape[1])


def _evaluate(problem: Problem, delta: float) -> Solution:
    solver = Solver(problem, delta=delta)
    theta = np.zeros((1, 0))
    value = _objective(solver, theta)
    return Solution(theta, value, np.zeros(1, dtype=int), np.ones(1, dtype=bool), np.zeros(1))


def _objective(solver: Solver, theta: np.ndarray) -> np.ndarray:
    return solver.loss(solver.residuals(theta)[0], solver.weigh(None, len(theta)))


def _like(problem: Problem, small: Problem) -> Problem:
    """A subsample keeps the whole problem's bounds."""
    small.lower, small.upper = problem.lower, problem.upper
    return small
