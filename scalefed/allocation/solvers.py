"""Where is a convex law least, within its limits? Two batched solvers in logarithms, both with their multipliers.

:func:`along_limits` is for two variables (params, tokens) whose law never rises with tokens: the best tokens are the
most that the limits allow, so one dimension is left, and a bracketed Newton search in it starts at the closed form of
the two steepest terms (exact, and done at once, for a law of two terms under one limit). :func:`interior_point` is a
primal-dual method for everything else: rounds to choose as well, or terms that rise with tokens.

Source: Boyd and Vandenberghe 2004, "Convex Optimization", sections 4.5 (geometric programs) and 11.7 (primal-dual).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalefed.allocation.posynomial import Posynomial

Array = NDArray[np.float64]

FARTHEST = 69.0  # log 1e30: a solution out there means that nothing holds it
TIGHT = 1e-8  # in logarithms: a limit nearer than that is reached, one part in 10^8


@dataclass(frozen=True, slots=True)
class Minimum:
    """Minimisers of a batch: x (s, v), multipliers (s, limits) of the logarithmic limits, converged (s,)."""

    x: Array
    multipliers: Array
    converged: NDArray[np.bool_]


def along_limits(law: Posynomial, limits: Sequence[Posynomial]) -> Minimum:
    """Minimise over (log params, log tokens) with as many tokens as the limits allow.

    Args:
        law: (s) sums in two variables that do not rise with the second.
        limits: sums that must not exceed 1, each with one exponent of tokens in all its terms; at least one positive.
    """
    size = len(law)
    caps = [limit for limit in limits if limit.exponents[0, 0, 1] > 0]
    walls = [limit for limit in limits if limit.exponents[0, 0, 1] == 0]
    low, high = np.zeros(size), np.full(size, FARTHEST)
    for wall in walls:  # a limit on params alone is one monomial
        high = np.minimum(high, -wall.log_coefficient[:, 0] / wall.exponents[:, 0, 0])
    high = np.maximum(high, low)
    search = law.search_form()
    n = _closed_form(search, caps, (low + high) / 2, low, high)
    converged = np.zeros(size, bool)
    rows = np.arange(size)
    part, part_caps, part_n, part_low, part_high = search, caps, n.copy(), low.copy(), high.copy()
    before = np.full((2, size), np.inf)
    lines = np.full((4, size), np.nan)  # tokens and slope of the ceiling at both ends of the bracket
    for _ in range(200):
        slope, bend, tokens, tilt = _slope(part, part_caps, part_n)
        falls = slope < 0
        part_low, part_high = np.where(falls, part_n, part_low), np.where(falls, part_high, part_n)
        lines[0], lines[1] = np.where(falls, tokens, lines[0]), np.where(falls, tilt, lines[1])
        lines[2], lines[3] = np.where(falls, lines[2], tokens), np.where(falls, lines[3], tilt)
        step = -slope / np.where(bend > 1e-300, bend, 1e-300)
        fine = 1e-13 * (1 + np.abs(part_n))
        small = np.abs(step) < fine
        good = (part_n + step > part_low) & (part_n + step < part_high) & (np.abs(step) < 0.5 * before[0])
        # at a corner between two limits Newton bounces: there, go where the two limits cross
        corner = _crossing(part_low, part_high, lines)
        pinned = (np.abs(corner - part_n) < fine) & _rises_both_ways(part, part_n, tokens, lines)
        other = np.where((corner > part_low) & (corner < part_high), corner, (part_low + part_high) / 2)
        target = np.where(good | small, np.clip(part_n + step, part_low, part_high), other)
        target = np.where(pinned, part_n, target)
        before = np.stack([before[1], np.abs(target - part_n)])
        done = small | pinned | (part_high - part_low < fine)
        n[rows], converged[rows], part_n = target, done, target
        if done.all():
            break
        if 2 * np.count_nonzero(done) > len(rows) > 64:
            keep = np.flatnonzero(~done)
            part, part_caps, before = part.take(keep), [cap.take(keep) for cap in part_caps], before[:, keep]
            part_n, part_low, part_high, rows = part_n[keep], part_low[keep], part_high[keep], rows[keep]
            lines = lines[:, keep]
    x = np.stack([n, _ceiling(caps, n)[0]], axis=1)
    return Minimum(x, _multipliers(law, limits, x), converged)


def _crossing(low: Array, high: Array, lines: Array) -> Array:
    """Where the ceilings seen from the two ends of the bracket cross; nan where they are one line."""
    kink = lines[1] - lines[3]
    apart = np.abs(kink) > 1e-9
    crossing = (lines[2] - lines[3] * high - lines[0] + lines[1] * low) / np.where(apart, kink, 1.0)
    return np.where(apart, crossing, np.nan)


def _rises_both_ways(law: Posynomial, n: Array, tokens: Array, lines: Array) -> NDArray[np.bool_]:
    """Whether the law rises to the left along one ceiling and to the right along the other: the corner is best."""
    pull = law.evaluate(np.stack([n, tokens], axis=1), np.eye(2))[1]
    left, right = (pull[:, 0] + slope * pull[:, 1] for slope in (lines[1], lines[3]))
    return np.asarray((left <= 0) & (right >= 0), dtype=np.bool_)


def _ceiling(caps: Sequence[Posynomial], n: Array) -> tuple[Array, Array, Array]:
    """The most log tokens at log params n, with first and second derivative in n."""
    x, basis = np.stack([n, np.zeros_like(n)], axis=1), np.array([[1.0], [0.0]])
    best: tuple[Array, Array, Array] | None = None
    for cap in caps:
        power = cap.exponents[:, 0, 1]
        if cap.log_coefficient.shape[1] == 1:
            first = -cap.exponents[:, 0, 0] / power
            found = (first * n - cap.log_coefficient[:, 0] / power, first, np.zeros_like(n))
        else:
            value, slope, bend = cap.evaluate(x, basis)
            found = (-value / power, -slope[:, 0] / power, -bend[:, 0, 0] / power)
        if best is None:
            best = found
        else:
            lower = found[0] < best[0]
            value, slope, bend = (np.where(lower, new, old) for new, old in zip(found, best, strict=True))
            best = (value, slope, bend)
    assert best is not None  # noqa: S101  the caller gives at least one cap
    return best


def _slope(law: Posynomial, caps: Sequence[Posynomial], n: Array) -> tuple[Array, Array, Array, Array]:
    """First and second derivative in log params of the law along the ceiling; the ceiling and its slope."""
    tokens, first, second = _ceiling(caps, n)
    basis = np.stack([np.ones_like(n), first], axis=1)[:, :, None]
    x = np.stack([n, tokens], axis=1)
    _, gradient, hessian = law.evaluate(x, basis)
    bend = hessian[:, 0, 0]
    if second.any():
        bend = bend + law.evaluate(x, np.array([[0.0], [1.0]]))[1][:, 0] * second
    return gradient[:, 0], bend, tokens, first


def _closed_form(law: Posynomial, caps: Sequence[Posynomial], n: Array, low: Array, high: Array) -> Array:
    """Where the steepest falling and the steepest rising term balance, the other terms and corners left out."""
    tokens, first, _ = _ceiling(caps, n)
    basis = np.stack([np.ones_like(n), first], axis=1)[:, :, None]
    value, slope, _ = law.log_terms(np.stack([n, tokens], axis=1), basis)
    rows, slope = np.arange(len(n)), slope[:, :, 0]
    falling, rising = slope.argmin(1), slope.argmax(1)
    down, up = slope[rows, falling], slope[rows, rising]
    balanced = (down < 0) & (up > 0)
    ratio = np.log(np.where(balanced, -down, 1.0)) - np.log(np.where(balanced, up, 1.0))
    ratio += value[rows, falling] - value[rows, rising]
    start = n + np.where(balanced, ratio / np.where(balanced, up - down, 1.0), 0.0)
    return np.clip(start, low, high)


def _multipliers(law: Posynomial, limits: Sequence[Posynomial], x: Array) -> Array:
    """(s, limits) least-norm multipliers of the limits that hold with equality."""
    identity = np.eye(x.shape[1])
    pull = law.evaluate(x, identity)[1]
    columns = np.zeros((len(x), x.shape[1], len(limits)))
    for index, limit in enumerate(limits):
        value, gradient, _ = limit.evaluate(x, identity)
        columns[:, :, index] = np.where((np.abs(value) < TIGHT)[:, None], gradient, 0.0)
    length = (columns**2).sum(1)
    found = -(columns * pull[:, :, None]).sum(1) / np.where(length > 0, length, 1.0)
    many = np.flatnonzero((length > 0).sum(1) > 1)
    if len(many):
        found[many] = (np.linalg.pinv(columns[many], rcond=1e-9) @ -pull[many, :, None])[:, :, 0]
    multipliers: Array = np.maximum(found, 0.0)
    return multipliers


def interior_point(law: Posynomial, limits: Sequence[Posynomial], start: Array, *, iterations: int = 80) -> Minimum:
    """Minimise a convex law in any number of log variables, from a strictly feasible start.

    Args:
        law: (s) sums.
        limits: sums that must stay below 1 (logarithms below 0).
        start: (s, v) with every limit strictly met.
        iterations: at most this many.
    """
    identity, search, parts = np.eye(start.shape[1]), law.search_form(), list(limits)
    point, multipliers, reached = start.copy(), np.empty((len(start), len(limits))), np.zeros(len(start), bool)
    rows, x = np.arange(len(start)), start.copy()
    f = _values(parts, x, identity)
    dual, last = 1.0 / -f[0], np.full(len(x), np.inf)
    for count in range(iterations):
        _, df, hf = search.evaluate(x, identity)
        gap = -(f[0] * dual).sum(1)
        stationarity = df + np.einsum("sk,skv->sv", dual, f[1])
        error = np.abs(stationarity).max(1)
        # stop where the optimum is sharp, or where rounding (at a limit that just touches) stops all progress
        over = ((gap < 1e-12) & (error < 1e-10)) | (gap > 0.9 * last) & (gap < 1e-7) | (count == iterations - 1)
        last = gap
        point[rows], multipliers[rows], reached[rows] = x, dual, (gap < 1e-7) & (error < 1e-7)
        if over.all():
            break
        target = gap[:, None] / (10.0 * len(parts))
        step, change = _direction((df, hf), dual, f, target)
        x, dual, f = _advance(search, parts, (x, dual, f), (step, change), (stationarity, target))
        if 2 * np.count_nonzero(over) > len(rows):
            keep = np.flatnonzero(~over)
            search, parts = search.take(keep), [part.take(keep) for part in parts]
            rows, x, dual, last = rows[keep], x[keep], dual[keep], last[keep]
            f = (f[0][keep], f[1][keep], f[2][keep])
    own, searched = (np.abs(part.evaluate(point, identity)[1]).max(1) for part in (law, law.search_form()))
    return Minimum(point, multipliers * (own / np.maximum(searched, 1e-300))[:, None], reached)


def _direction(law: tuple[Array, Array], dual: Array, f: "Values", target: Array) -> tuple[Array, Array]:
    """The Newton step in the variables and the multipliers."""
    (df, hf), (g, dg, hg) = law, f
    weight, centre, identity = dual / -g, target / -g, np.eye(df.shape[1])
    matrix = hf + np.einsum("sk,skvw->svw", dual, hg) + np.einsum("sk,skv,skw->svw", weight, dg, dg)
    matrix += 1e-14 * np.trace(matrix, axis1=1, axis2=2)[:, None, None] * identity + 1e-300 * identity
    step = np.linalg.solve(matrix, -(df + np.einsum("sk,skv->sv", centre, dg))[:, :, None])[:, :, 0]
    return step, centre - dual + weight * np.einsum("skv,sv->sk", dg, step)


Values = tuple[Array, Array, Array]


def _values(limits: Sequence[Posynomial], x: Array, identity: Array) -> Values:
    parts = [limit.evaluate(x, identity) for limit in limits]
    return (
        np.stack([value for value, _, _ in parts], axis=1),
        np.stack([gradient for _, gradient, _ in parts], axis=1),
        np.stack([hessian for _, _, hessian in parts], axis=1),
    )


def _advance(
    law: Posynomial,
    limits: Sequence[Posynomial],
    state: tuple[Array, Array, Values],
    move: tuple[Array, Array],
    old: tuple[Array, Array],
) -> tuple[Array, Array, Values]:
    """A step that keeps every limit strict, every multiplier positive, and does not enlarge the residual."""
    (x, dual, f), (step, change), (stationarity, target) = state, move, old
    identity = np.eye(x.shape[1])
    falling = change < 0
    ratio = np.where(falling, -dual / np.where(falling, change, -1.0), np.inf)
    length = np.minimum(1.0, 0.995 * ratio.min(1))
    length = np.minimum(length, 5.0 / np.maximum(np.abs(step).max(1), 1e-300))
    before = np.sqrt((stationarity**2).sum(1) + ((-dual * f[0] - target) ** 2).sum(1))
    for _ in range(25):
        new_x, new_dual = x + length[:, None] * step, dual + length[:, None] * change
        new_f = _values(limits, new_x, identity)
        gradient = law.evaluate(new_x, identity)[1] + np.einsum("sk,skv->sv", new_dual, new_f[1])
        after = np.sqrt((gradient**2).sum(1) + ((-new_dual * new_f[0] - target) ** 2).sum(1))
        bad = (new_f[0] >= 0).any(1) | ~(after <= (1 - 0.01 * length) * before + 1e-13)
        if not bad.any():
            break
        length = np.where(bad, length * 0.5, length)
    stay = bad[:, None]
    kept = (
        np.where(stay, f[0], new_f[0]),
        np.where(stay[:, :, None], f[1], new_f[1]),
        np.where(stay[:, :, None, None], f[2], new_f[2]),
    )
    return np.where(stay, x, new_x), np.where(stay, dual, new_dual), kept
