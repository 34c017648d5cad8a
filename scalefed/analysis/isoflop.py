"""Where is the best size when no law is believed? Parabolas through measured runs of equal compute.

A check of a law, not a rival: parabolas are biased where the loss falls unlike in params and in tokens, and they say
nothing beyond the sizes and budgets that were measured.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), approach 2; for its bias, arXiv 2603.22339.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalefed.errors import ConfigError, DataError, check_level
from scalefed.runs.derived import flops_per_token
from scalefed.runs.log import require
from scalefed.seeds import rng
from scalefed.units import grouped

_FEWEST = 3  # sizes of a parabola
_BESIDE = 2  # sizes on either side of the lowest that it is laid through
_TOLERANCE = 0.01  # a budget this near to a measured one counts as measured


def isoflop_optima(
    runs: pd.DataFrame,
    compute: float | Iterable[float],
    *,
    axis: str = "compute",
    by: Sequence[str] = ("clients_per_round", "concentration"),
    target: str = "loss",
    floor: float = 0.0,
    resamples: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The best size at equal compute, from measured runs alone.

    For every size the log of the target above the floor is interpolated between its measured token budgets, to the
    tokens that the compute buys; a parabola in log params goes through the lowest size and its neighbours. Intervals
    carry the scatter of seeds (runs that agree in ``by``, params and tokens), pooled over all runs.

    Args:
        runs: one row a run, as :func:`scalefed.runs.log.load_runs` gives: params, tokens and the target.
        compute: training FLOPs of all clients, one or many, counted as ``axis`` says.
        axis: ``compute`` (6 x params x tokens), or ``compute_exact`` with all that is spent on a token, as in the runs.
        by: settings that are kept apart; those that the runs do not have are ignored.
        target: the column that is smallest at the best size.
        floor: what the target cannot go below, in its unit.
        resamples: draws of the seeds' scatter.
        level: coverage of the intervals.
        seed: of the draws.

    Returns:
        One row for each setting and compute that at least three sizes were measured at: the settings, the axis,
        ``sizes`` (how many the parabola uses), ``params``, ``params_low``, ``params_high``, ``tokens``, and the target.
        NaN where the lowest measured size is the smallest or the largest, or the draws do not agree that it is not.

    Raises:
        DataError: a column is missing, or no run has a positive size, budget and target above the floor.
        ConfigError: compute that is not positive, or a level outside (0, 1).

    >>> from scalefed.laws.simulate import simulate_runs
    >>> truth = {"E": 1.0, "A": 60.0, "a": 0.35, "B": 60.0, "b": 0.35}
    >>> grid = {"params": [1e4, 1e5, 1e6, 1e7], "tokens": [1e4, 1e5, 1e6, 1e7]}
    >>> found = isoflop_optima(simulate_runs("chinchilla", truth, grid), 6e11, floor=1.0)
    >>> float(round(found.params[0], -4)), int(found.sizes[0])
    (320000.0, 4)
    """
    check_level(level)
    wanted = np.atleast_1d(np.asarray(list(compute) if isinstance(compute, Iterable) else compute, dtype=float))
    if not (np.isfinite(wanted).all() and (wanted > 0).all()):
        raise ConfigError(f"compute must be positive FLOPs, got {compute!r}; for example 3e12")
    cost = flops_per_token(runs, axis)
    table, keys = _measured(runs, by, target, floor)
    scatter = _scatter(table, [*keys, "params", "tokens"])
    rows: list[dict[str, object]] = []
    groups = table.groupby(keys, dropna=False, sort=True) if keys else [((), table)]
    for values, own in groups:
        sizes = _curves(own)
        for budget in wanted:
            draw = rng(seed, "isoflop", len(rows))
            found = _vertex(sizes, float(budget), cost, scatter, draw, resamples, level)
            if found is not None:
                tokens = budget / cost(found["params"])
                lowest = floor + np.exp(found.pop("log"))
                rows.append(
                    dict(zip(keys, values, strict=True)) | {axis: budget} | found
                    | {"tokens": tokens, target: lowest}
                )  # fmt: skip
    names = [*keys, axis, "sizes", "params", "params_low", "params_high", "tokens", target]
    return pd.DataFrame(rows, columns=names)


def _measured(runs: pd.DataFrame, by: Sequence[str], target: str, floor: float) -> tuple[pd.DataFrame, list[str]]:
    require(runs, ["params", "tokens", target], "the runs")
    keys = [name for name in by if name in runs.columns]
    table = runs[[*keys, "params", "tokens"]].copy()
    above = runs[target].astype(float) - floor
    kept = (above > 0) & np.isfinite(above) & (table["params"] > 0) & (table["tokens"] > 0)
    if not kept.any():
        raise DataError(
            f"none of the {len(runs)} runs has positive params and tokens and a {target} above {grouped(floor, 6)}"
        )
    return table[kept].assign(log=np.log(above[kept])), keys


def _scatter(table: pd.DataFrame, cell: list[str]) -> float:
    """Standard deviation of seeds, pooled; NaN where no setting has two."""
    groups = table.groupby(cell, dropna=False)["log"]
    spread, count = groups.var(ddof=1), groups.size()
    several = count > 1
    if not several.any():
        return float("nan")
    return float(np.sqrt((spread * (count - 1))[several].sum() / (count - 1)[several].sum()))


@dataclass(frozen=True)
class _Curve:
    """One size: logs of its token budgets, of the mean target there, and how many runs each mean is of."""

    params: float
    tokens: np.ndarray
    level: np.ndarray
    count: np.ndarray


def _curves(own: pd.DataFrame) -> list[_Curve]:
    curves = []
    for params, runs in own.groupby("params", sort=True):
        means = runs.groupby("tokens", sort=True)["log"].agg(["mean", "size"])
        logs = np.log(means.index.to_numpy(dtype=float))
        curves.append(_Curve(float(params), logs, means["mean"].to_numpy(), means["size"].to_numpy(dtype=float)))
    return curves


def _vertex(
    curves: list[_Curve],
    compute: float,
    cost: Callable[[Any], Any],
    scatter: float,
    draw: np.random.Generator,
    resamples: int,
    level: float,
) -> dict[str, float] | None:
    """The lowest point of the parabola through the sizes measured at this compute; None with fewer than three."""
    sizes, logs, draws = [], [], []
    for curve in curves:
        at = float(np.log(compute / cost(curve.params)))
        if not curve.tokens[0] - _TOLERANCE <= at <= curve.tokens[-1] + _TOLERANCE:
            continue
        sizes.append(np.log(curve.params))
        logs.append(np.interp(at, curve.tokens, curve.level))
        noise = scatter / np.sqrt(curve.count) * draw.standard_normal((resamples, len(curve.count)))
        draws.append([np.interp(at, curve.tokens, one) for one in curve.level + noise])
    if len(sizes) < _FEWEST:
        return None
    x, y = np.array(sizes), np.array(logs)
    lowest = int(np.argmin(y))
    near = slice(max(0, lowest - _BESIDE), lowest + _BESIDE + 1)
    x, y, drawn = x[near], y[near], np.array(draws).reshape(len(sizes), -1)[near].T
    best, bottom = _lowest(x, y[None])
    low = high = float("nan")
    others, _ = _lowest(x, drawn)
    tail = (1 - level) / 2
    if len(others) and np.isnan(others).mean() < tail:
        low, high = np.exp(np.nanquantile(others, [tail, 1 - tail]))
    params = float(np.exp(best[0]))
    return {"sizes": len(x), "params": params, "params_low": low, "params_high": high, "log": float(bottom[0])}


def _lowest(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices of parabolas and their values, ``(n,), (r, n) -> (r,), (r,)``; NaN for one outside the sizes."""
    centre = x.mean()
    c, b, a = np.linalg.pinv(np.vander(x - centre, 3, increasing=True)) @ y.T
    with np.errstate(divide="ignore", invalid="ignore"):
        at = -b / (2 * a)
        inside = (a > 0) & (at + centre >= x[0]) & (at + centre <= x[-1])
        return np.where(inside, at + centre, np.nan), np.where(inside, c + b * at / 2, np.nan)
