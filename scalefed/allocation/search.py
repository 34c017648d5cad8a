"""Where is any law least, within its limits? By evaluation alone, for laws that are no sums of powers.

A mesh in log params over the whole range, every point with the tokens that the limits allow there (or with the best
fewer, where the law rises with tokens), then finer and finer meshes about the lowest valley. The limits are sums of
powers of params and tokens that do not fall with tokens. A law that falls towards an end of the range has no optimum.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from scalefed.allocation.posynomial import Posynomial
from scalefed.allocation.solvers import FARTHEST, Minimum

Array = NDArray[np.float64]
Surface = Callable[[Array, Array, NDArray[np.intp]], Array]
"""Log of the loss above its floor at (r, k) log params and log tokens, for r rows of the batch; inf if it is none."""

_POINTS = 139  # half a unit of log params apart over the whole range: every minimum wider than a factor 1.6 is seen
_FINER, _LEVELS = 17, 9  # 8^9 times finer than the first mesh: log params to 1e-8
_DEPTH, _DEPTHS = 30.0, 31  # how far below the ceiling fewer tokens are looked for, in log tokens
_CHUNK = 2**19  # points evaluated at once
_STEP = 1e-4  # of the slopes that give the prices of limits
_REACHED = 1e-6  # log of how much of a limit is left where it binds
_PROBED = 16  # rows that tell whether the law rises with tokens


def lowest(surface: Surface, limits: Sequence[Posynomial], rows: int) -> Minimum:
    """Minimise over (log params, log tokens) within the limits.

    Args:
        surface: the law.
        limits: in log params and log tokens, each (rows); sums that must not exceed 1 and do not fall with tokens.
        rows: of the batch.
    """
    caps = [limit for limit in limits if limit.exponents[:, :, 1].any()]
    walls = [limit for limit in limits if not limit.exponents[:, :, 1].any()]
    probe = np.unique(np.linspace(0, rows - 1, min(rows, _PROBED)).astype(np.intp))
    deep = _rises(surface, caps, walls, probe)
    size = max(1, _CHUNK // (_POINTS * (_DEPTHS if deep else 1)))
    parts = [
        _zoom(surface, caps, walls, np.arange(start, min(start + size, rows), dtype=np.intp), deep)
        for start in range(0, rows, size)
    ]
    n, below, inside = (np.concatenate([part[i] for part in parts]) for i in range(3))
    x = np.stack([n, _ceiling(caps, n[:, None], np.arange(rows))[:, 0] - below], axis=1)
    return Minimum(x, _multipliers(surface, limits, x), inside.astype(bool))


def _rises(surface: Surface, caps: Sequence[Posynomial], walls: Sequence[Posynomial], rows: NDArray[np.intp]) -> bool:
    """Whether fewer tokens than the limits allow are better anywhere, in some rows."""
    n = _mesh(*_span(walls, rows))
    top = _ceiling(caps, n, rows)
    best = surface(n, top, rows)
    for below in np.linspace(0, _DEPTH, _DEPTHS)[1:]:
        if (surface(n, top - below, rows) < best - 1e-12).any():
            return True
    return False


def _zoom(
    surface: Surface, caps: Sequence[Posynomial], walls: Sequence[Posynomial], rows: NDArray[np.intp], deep: bool
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Best log params, how far log tokens stay below the ceiling, and whether that lies inside the range."""
    low, high = _span(walls, rows)
    floor, depth = np.zeros(len(rows)), np.full(len(rows), _DEPTH if deep else 0.0)
    inside = np.ones(len(rows), dtype=bool)
    at = np.arange(len(rows))
    for level in range(_LEVELS):
        n = _mesh(low, high, _FINER if level else _POINTS)
        steps = (_FINER if level else _DEPTHS) if deep else 1
        below = floor[:, None] + (depth - floor)[:, None] * np.linspace(0, 1, steps)[None]
        k = n.shape[1]
        grid_n, grid_b = np.repeat(n, steps, axis=1), np.tile(below, k)
        top = np.repeat(_ceiling(caps, n, rows), steps, axis=1)
        value = surface(grid_n, top - grid_b, rows)
        if level == 0:
            i, inside = _valley(value.reshape(len(rows), k, steps).min(axis=2), walled=bool(walls))
            j = np.argmin(value.reshape(len(rows), k, steps)[at, i], axis=1)
        else:
            i, j = np.divmod(np.argmin(value, axis=1), steps)
        low, high = n[at, np.maximum(i - 1, 0)], n[at, np.minimum(i + 1, k - 1)]
        if deep:
            floor, depth = below[at, np.maximum(j - 1, 0)], below[at, np.minimum(j + 1, steps - 1)]
    return n[at, i], below[at, j], inside


def _valley(profile: Array, *, walled: bool) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each row is lowest between higher neighbours, and whether it is anywhere.

    A law may fall for ever beyond a ridge that no run has seen (Farseer's does, at a thousand times its sizes): the
    valley is what is asked for, not the far side. The end of the range counts where a limit on params makes it.
    """
    beyond = np.full((len(profile), 1), np.inf if walled else -np.inf)
    left = np.concatenate([np.full((len(profile), 1), -np.inf), profile[:, :-1]], axis=1)
    right = np.concatenate([profile[:, 1:], beyond], axis=1)
    ends = np.isfinite(left) & (np.isfinite(right) | (np.arange(profile.shape[1]) == profile.shape[1] - 1))
    low = (profile < left) & (profile <= right) & ends & np.isfinite(profile)
    found = low.any(axis=1)
    return np.argmin(np.where(low | ~found[:, None], profile, np.inf), axis=1), found


def _span(walls: Sequence[Posynomial], rows: NDArray[np.intp]) -> tuple[Array, Array]:
    """The least and the largest log params, each (rows): one parameter, and what the limits on params alone allow."""
    low, high = np.zeros(len(rows)), np.full(len(rows), FARTHEST)
    for wall in walls:
        high = np.minimum(high, -wall.log_coefficient[rows, 0] / wall.exponents[rows, 0, 0])
    return low, np.maximum(high, low)


def _mesh(low: Array, high: Array, points: int = _POINTS) -> Array:
    return np.asarray(low[:, None] + (high - low)[:, None] * np.linspace(0, 1, points)[None])


def _log_sum(limit: Posynomial, n: Array, d: Array, rows: NDArray[np.intp]) -> Array:
    """Logarithm of a limit's sum at (r, k) points."""
    c, e = limit.log_coefficient[rows, :, None], limit.exponents[rows]
    return np.asarray(np.logaddexp.reduce(c + e[:, :, :1] * n[:, None] + e[:, :, 1:2] * d[:, None], axis=1))


def _ceiling(caps: Sequence[Posynomial], n: Array, rows: NDArray[np.intp]) -> Array:
    """The most log tokens at (r, k) log params: exact under limits with one exponent of tokens, else by bisection."""
    best = np.full(n.shape, 2 * FARTHEST)
    for cap in caps:
        powers = cap.exponents[rows, :, 1]
        if np.ptp(powers) == 0:
            found = -_log_sum(cap, n, np.zeros_like(n), rows) / powers[0, 0]
        else:
            low, high = np.full(n.shape, -2 * FARTHEST), np.full(n.shape, 2 * FARTHEST)
            for _ in range(60):
                middle = (low + high) / 2
                fits = _log_sum(cap, n, middle, rows) < 0
                low, high = np.where(fits, middle, low), np.where(fits, high, middle)
            found = low
        best = np.minimum(best, found)
    return best


def _multipliers(surface: Surface, limits: Sequence[Posynomial], x: Array) -> Array:
    """How much log excess each limit costs, (rows, limits), from the slopes of the law and of the limits reached."""
    rows = np.arange(len(x))
    n, d = x[:, :1], x[:, 1:]

    def slopes(function: Callable[[Array, Array], Array]) -> Array:
        pairs = [function(n + dn, d + dd) - function(n - dn, d - dd) for dn, dd in ((_STEP, 0.0), (0.0, _STEP))]
        return np.concatenate(pairs, axis=1) / (2 * _STEP)

    uphill = slopes(lambda a, b: surface(a, b, rows))
    out = np.zeros((len(x), len(limits)))
    of_limits = np.zeros((len(x), 2, len(limits)))
    for i, limit in enumerate(limits):
        reached = np.abs(_log_sum(limit, n, d, rows)) < _REACHED
        of_limits[:, :, i] = slopes(lambda a, b, one=limit: _log_sum(one, a, b, rows)) * reached  # type: ignore[misc]
    for row in np.flatnonzero(np.isfinite(uphill).all(axis=1)):
        out[row] = nnls(of_limits[row], -uphill[row])[0]
    return out
