"""Which sizes are good enough at a budget? The optimum is flat, so regret says more than the size does."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from scalefed.allocation import optimum
from scalefed.allocation.answers import FitLike, asked_of, given_of, must_be_determined, said_in
from scalefed.allocation.column_tests import beyond, stretched, tests_of
from scalefed.allocation.defaults import question, words_of
from scalefed.allocation.extrapolation import look, ranges_behind
from scalefed.allocation.mixture import law_error, mixed
from scalefed.errors import ConfigError, check_level
from scalefed.laws import Law
from scalefed.units import grouped, train_flops

_SIZES = 241  # points of the curve: 80 a decade, finer than a chart shows


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
        notes: what was assumed, and what of the question lies outside the runs.
        given: the laws that the intervals are conditional on.
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
    notes: tuple[str, ...] = ()
    given: str = ""

    def __repr__(self) -> str:
        good = "no size is" if np.isnan(self.good_low) else f"{grouped(self.good_low)} to {grouped(self.good_high)} are"
        return (
            f"<Region at {grouped(self.compute)} FLOPs: best size {grouped(self.size)} [{grouped(self.size_low)}, "
            f"{grouped(self.size_high)}]; {good} within {self.tolerance:g} nats of the best at {self.level:.0%}, given "
            f"{self.given}>"
        )


def region(
    fit: FitLike,
    *,
    compute: float,
    tolerance: float = 0.01,
    sizes: ArrayLike | None = None,
    clients: float | None = None,
    participation: float | None = None,
    clients_per_round: float | None = None,
    concentration: float | None = None,
    skew: float | None = None,
    local_steps: float | None = None,
    batch_tokens: float | None = None,
    unique_tokens: float | None = None,
    flops: str | None = None,
    level: float = 0.95,
    columns: Mapping[str, float] | None = None,
) -> Region:
    """The joint region of optimal size and loss regret.

    Args:
        fit: a fit of a law in params and tokens.
        compute: the budget, FLOPs of all clients and rounds, counted as in :meth:`optimal_size`.
        tolerance: regret that does not matter, in the unit of the law's target.
        sizes: sizes to try; by default three decades around the best.
        clients: clients that hold data.
        participation: share of them that trains in a round, in (0, 1]; or give ``clients_per_round``.
        clients_per_round: clients that train in a round.
        concentration: Dirichlet concentration, turned into skew by what the runs measured; or give ``skew``.
        skew: measured difference of the clients' mixtures, 0 to 1.
        local_steps: optimizer steps of a client in a round; by default the runs' most common number.
        batch_tokens: tokens of a client's step; by default the runs' most common number.
        unique_tokens: different tokens over all clients (for laws that price repetition).
        flops: how compute is counted, in place of what the runs show: ``"6*params*tokens"``, or any sum of powers of
            params times tokens.
        columns: values of other columns that the law needs.
        level: coverage.

    Raises:
        FitError: the runs cannot determine the law, or do not settle what the question leaves out.
        ConfigError: a number out of range, or the law lacks params or tokens.
    """
    words = words_of(locals(), "tolerance", "sizes", "level")
    check_level(level)
    must_be_determined(fit, "an optimal size")
    if not {"params", "tokens"} <= set(fit.law.columns):
        raise ConfigError(f"the law {fit.law.name!r} has no params and tokens to trade against each other")
    if not (np.isfinite(compute) and compute > 0):
        raise ConfigError(f"compute must be positive and finite (FLOPs), got {compute}")
    _, known, notes = question(fit.law, fit.runs, words)

    def ask(law: Law, values: Mapping[str, optimum.Array], params: optimum.Array) -> optimum.Array:
        column = {name: series[:, None] for name, series in values.items()}
        tokens = compute / known.per_token(params)
        return optimum.evaluate(law, column, known, params=params[None], tokens=tokens[None])

    def losses(params: optimum.Array) -> optimum.Array:
        return mixed(fit, partial(ask, params=params))

    grid = _usual_size(compute) * np.geomspace(1e-4, 1e4, _SIZES) if sizes is None else np.asarray(sizes, float)
    loss = losses(grid)
    if sizes is None:
        grid = grid[np.argmin(loss[0])] * np.geomspace(10**-1.5, 10**1.5, _SIZES)
        loss = losses(grid)
    regret = loss - loss.min(axis=1, keepdims=True)
    optima = grid[np.argmin(loss, axis=1)]
    optima = optima * law_error(fit, optima, compute / known.per_token(optima))
    tests = beyond(fit.law, ranges_behind(fit), tests_of(fit), known.given())
    others = [(ask(fit.law, test.values(), grid)[0], float(np.max(weight))) for test, weight in tests]
    high = _highest_regret(regret, others, level)
    good = grid[high <= tolerance]
    low_size, high_size = _ends(optima, [(grid[np.argmin(loss)], weight) for loss, weight in others], level)
    table = pd.DataFrame(
        {
            "params": grid,
            "tokens": compute / known.per_token(grid),
            "loss": loss[0],
            "regret": regret[0],
            "regret_high": high,
        }
    )
    best = int(np.argmin(loss[0]))
    asked = asked_of(
        fit, known, words, params=grid[best], tokens=compute / known.per_token(grid[best]), local_steps=np.nan
    )
    tested = [test.column for test in tests_of(fit)]
    outside, _ = look(fit.law, ranges_behind(fit), asked, said_in(words), tested)
    return Region(
        compute=float(compute),
        table=table,
        size=float(optima[0]),
        size_low=low_size,
        size_high=high_size,
        good_low=float(good.min()) if len(good) else float("nan"),
        good_high=float(good.max()) if len(good) else float("nan"),
        tolerance=tolerance,
        level=level,
        notes=(*notes, *outside),
        given=given_of(fit),
    )


def _highest_regret(regret: optimum.Array, others: list[tuple[optimum.Array, float]], level: float) -> optimum.Array:
    """The upper end of the regret at every size, (sizes,).

    Args:
        regret: (1 + b, sizes) of the estimate, then the replicates.
        others: losses (sizes,) by the tests of the columns in which the question lies outside the runs, with weights.
        level: coverage.
    """
    from scipy.special import ndtri

    high, error = np.quantile(regret, level, axis=0), np.zeros(regret.shape[1])
    for loss, weight in others:
        error = np.hypot(error, weight * (loss - loss.min() - regret[0]))
    return np.asarray(regret[0] + np.hypot(high - regret[0], float(ndtri(level)) * error))


def _ends(optima: optimum.Array, others: list[tuple[float, float]], level: float) -> tuple[float, float]:
    """The interval of the best size, wider by what the tests say it is, each with its weight."""
    from scipy.special import ndtri

    low, high = np.quantile(optima, [(1 - level) / 2, (1 + level) / 2])
    error = np.sqrt(sum((weight * np.log(size / optima[0])) ** 2 for size, weight in others))
    low, high = np.fmin(low, optima[0]), np.fmax(high, optima[0])
    low, high = stretched(optima[0], low, high, error, float(ndtri((1 + level) / 2)))
    return float(low), float(high)


def _usual_size(compute: float) -> float:
    """The params of a run with twenty tokens a parameter, where the search begins.

    Source: Hoffmann et al. 2022 (arXiv 2203.15556).
    """
    return float(np.sqrt(compute / train_flops(1, 20)))
