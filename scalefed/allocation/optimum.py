"""Which model size, on how many tokens and rounds, gives the least loss within these limits?

The law is a sum of power-law products and so is every limit (:mod:`scalefed.allocation.budgets`), so the question is
a geometric program: convex in logarithms, one global optimum, and a price for every limit that binds. All of it is
batched: give arrays of parameter values (bootstrap replicates) or of limits (a sweep) and get arrays back.

Source: the two-term closed form N* = G (C/6)^(b/(a+b)), G = (a A / (b B))^(1/(a+b)), Hoffmann et al. 2022 (arXiv
2203.15556), equation 4; the rest as cited in :mod:`scalefed.allocation.solvers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefed.allocation import program
from scalefed.allocation.budgets import PARAMS, ROUNDS, TOKENS, Budget, Setting
from scalefed.allocation.evaluation import columns_of, columns_of_runs, evaluate
from scalefed.allocation.solvers import FARTHEST, Minimum
from scalefed.errors import FitError
from scalefed.laws import Law, as_law
from scalefed.runs.schema import unit_of
from scalefed.typeset import Sheet, Typeset
from scalefed.units import grouped, sampling_flops

__all__ = [
    "Optimum", "Solution", "columns_at", "columns_of", "columns_of_runs", "ends", "evaluate", "interval",
    "least_compute", "minimise", "stack", "summarise",
]  # fmt: skip

Array = NDArray[np.float64]

_ROUNDING = 1e-12  # of a loss: two solutions of one question differ by less
_EXACT, _TURNS, _NEAR = 1e-12, 20, 1e-7
"""How near to the loss wanted, in logarithms: Newton's method gets there within 20 turns, but for a law that is
searched by evaluation, whose least loss is known to some 1e-8 only."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Best runs, one for each parameter value and limit; every array has their common shape.

    Attributes:
        params, tokens: the best size and how long to train it.
        rounds, local_steps: the best number, or what follows from the setting; nan where the question leaves it open.
        loss: predicted at the optimum.
        compute: FLOPs spent.
        excess: loss above what no size and no data removes.
        prices: limit -> nats of loss saved by 1% more of it (0 where it does not bind).
        bounded: False where nothing holds the optimum (the law's exponents have the wrong sign there).
    """

    params: Array
    tokens: Array
    rounds: Array
    local_steps: Array
    loss: Array
    compute: Array
    excess: Array
    prices: Mapping[str, Array]
    bounded: NDArray[np.bool_]

    def binding(self, index: int = 0) -> tuple[str, ...]:
        """The limits that bind in one row (flattened), dearest first."""
        scale = float(self.excess.reshape(-1)[index])
        price = {name: float(values.reshape(-1)[index]) for name, values in self.prices.items()}
        held = [name for name, value in price.items() if value > 1e-8 * scale]
        return tuple(sorted(held, key=lambda name: -price[name]))


def minimise(
    law: Law | str, values: Mapping[str, ArrayLike], *, budget: Budget, setting: Setting | None = None
) -> Solution:
    """The least loss within a budget.

    Args:
        law: a law, its name, or a formula.
        values: its free parameters; numbers, or arrays that broadcast with the limits.
        budget: at least one limit that holds the tokens.
        setting: what is held fixed (clients per round, skew, local steps ...).

    Raises:
        FitError: the law does not say how loss depends on params or on tokens, the limits leave the optimum open, or
            a needed column is not given.

    >>> values = {"E": 1.69, "A": 406.4, "a": 0.34, "B": 410.7, "b": 0.28}
    >>> f"{float(minimise('chinchilla', values, budget=Budget(compute=1e20)).params):.4e}"
    '6.4486e+08'
    """
    question = program.build(as_law(law), values, budget, setting or Setting())
    return _finish(question, program.solve(question))


def least_compute(
    law: Law | str,
    values: Mapping[str, ArrayLike],
    *,
    loss: ArrayLike,
    budget: Budget | None = None,
    setting: Setting | None = None,
) -> Solution:
    """The least compute that reaches a loss, under any other limits.

    Newton's method on the least loss as a function of log compute, whose slope is the price of compute, kept between
    computes that are known to be too little and enough (a law that is no sum of powers need not be convex). Rows that
    cannot reach the target get infinite compute, params and tokens, and ``bounded`` False.

    Args:
        law: a law, its name, or a formula.
        values: its free parameters.
        loss: the target, nats per token; broadcasts with the values.
        budget: the other limits; its ``compute`` must be None.
        setting: what is held fixed.

    Raises:
        FitError: as :func:`minimise`, or compute was given.

    >>> values = {"E": 1.69, "A": 406.4, "a": 0.34, "B": 410.7, "b": 0.28}
    >>> found = least_compute("chinchilla", values, loss=2.5)
    >>> round(float(minimise("chinchilla", values, budget=Budget(compute=found.compute)).loss), 9)
    2.5
    """
    law, base = as_law(law), budget or Budget()
    if base.compute is not None:
        raise FitError("least_compute looks for the compute; give the other limits only, not compute")
    shape = np.broadcast_shapes(np.shape(loss), base.shape(), *(np.shape(v) for v in values.values()))
    target = np.broadcast_to(np.asarray(loss, dtype=float), shape)
    log_compute = np.full(shape, np.log(1e12))
    low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    settled = np.zeros(shape, bool)
    for turn in range(100):
        question = program.build(law, values, replace(base, compute=np.exp(log_compute)), setting or Setting())
        found = _finish(question, program.solve(question))
        aim = target - (found.loss - found.excess)
        reachable = aim > 0
        distance = np.log(found.excess) - np.log(np.where(reachable, aim, 1.0))
        rate = 100 * found.prices["compute"] / found.excess
        beyond = ~reachable | ((distance > 1e-9) & ((rate < 1e-9) | (log_compute > 2 * FARTHEST)))
        settled = beyond | (np.abs(distance) < (_EXACT if turn < _TURNS else _NEAR))
        if settled.all():
            break
        low, high = np.where(distance > 0, log_compute, low), np.where(distance < 0, log_compute, high)
        step = np.where(settled, 0.0, distance / np.where(rate > 0, rate, 1.0))
        moved = log_compute + np.clip(step, -30.0, 30.0)
        outside = ~settled & np.isfinite(low) & np.isfinite(high) & ((moved <= low) | (moved >= high))
        log_compute = np.where(outside, (low + high) / 2, moved)
    return out_of_reach(found, beyond | ~settled)


def out_of_reach(found: Solution, lost: np.ndarray) -> Solution:
    """The solution with infinite compute, size and tokens in the rows that no run brings to their goal."""
    return replace(
        found,
        compute=np.where(lost, np.inf, found.compute),
        params=np.where(lost, np.inf, found.params),
        tokens=np.where(lost, np.inf, found.tokens),
        rounds=np.where(lost, np.inf, found.rounds),
        bounded=np.asarray(found.bounded & ~lost),
    )


@dataclass(frozen=True, slots=True, repr=False)
class Optimum(Typeset):
    """The best run within the limits, with intervals; ``print`` it for a table, or set it as Markdown or LaTeX.

    Attributes:
        params, tokens, rounds: the best size, how long to train it (all clients) and in how many rounds (nan where
            the question leaves it open); each with ``_low`` and ``_high``.
        loss: the target predicted for a run of that size and length, in its own unit, with its interval.
        pass_at_1: predicted where a link to success counts is attached, else nan.
        local_steps: optimizer steps of a client in a round (nan where open).
        compute: FLOPs that the run spends.
        binding: the limits that hold it back, dearest first.
        shadow_prices: limit -> loss saved by 1% more of it.
        regret: with probability ``level``, training this size costs at most this much more loss than the truly best;
            0 where all replicates have this best size: limits hold it, or the runs are the law's own numbers.
        pass_at_k: k -> (estimate, low, high), where a link is attached.
        level: coverage of the intervals.
        given: the laws that the intervals are conditional on.
        notes: what to keep in mind, in words.
        extrapolation: column -> how far the answer lies beyond the runs: decades, or the share of their range for skew.
        replicates: one row a bootstrap replicate (params, tokens, loss at its own optimum), for a joint region.
        target: the column that the law explains.
    """

    params: float
    params_low: float
    params_high: float
    tokens: float
    tokens_low: float
    tokens_high: float
    rounds: float
    rounds_low: float
    rounds_high: float
    loss: float
    loss_low: float
    loss_high: float
    compute: float
    local_steps: float = np.nan
    pass_at_1: float = np.nan
    pass_at_1_low: float = np.nan
    pass_at_1_high: float = np.nan
    binding: tuple[str, ...] = ()
    shadow_prices: Mapping[str, float] = field(default_factory=dict)
    regret: float = np.nan
    pass_at_k: Mapping[int, tuple[float, float, float]] = field(default_factory=dict)
    level: float = 0.95
    given: str = ""
    notes: tuple[str, ...] = ()
    extrapolation: Mapping[str, float] = field(default_factory=dict)
    replicates: Mapping[str, Array] = field(default_factory=dict)
    target: str = "loss"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, without the replicates; what is unknown is None."""
        plain: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, float):
                value = float(value) if np.isfinite(value) else None
            plain[item.name] = dict(value) if isinstance(value, Mapping) else value
        plain.pop("replicates")
        plain["binding"], plain["notes"] = list(self.binding), list(self.notes)
        plain["pass_at_k"] = {str(k): list(values) for k, values in self.pass_at_k.items()}
        return plain

    def sheet(self) -> Sheet:
        """The best run as a table, and what holds it back."""
        known = np.isfinite(self.params_low)
        rows = []
        for name in ("params", "tokens", "rounds", "loss", "pass_at_1"):
            ends = [getattr(self, f"{name}_{end}") for end in ("low", "high")]
            rows.append((self.target if name == "loss" else name, getattr(self, name), *ends))
        rows += [(f"pass_at_{k}", *values) for k, values in self.pass_at_k.items() if k != 1]
        rows.append(("local_steps", self.local_steps, np.nan, np.nan))
        cells = tuple(
            (name, grouped(value), *("" if not np.isfinite(end) and not known else grouped(end) for end in ends))
            if np.isfinite(ends).any() or np.isinf(ends).any() else (name, grouped(value), "", "")
            for name, value, *ends in rows if np.isfinite(value)
        )  # fmt: skip
        given = f" given {self.given}" if self.given else ""
        how = f"{self.level:.0%} intervals{given}" if known else "without intervals: there are no replicates"
        title = f"Optimum for {grouped(self.compute)} FLOPs, {how}"
        return Sheet(title, ("", "estimate", "low", "high"), cells, tuple(self._lines()))

    def _lines(self) -> list[str]:
        unit = unit_of(self.target).split(" per ")[0]
        unit = f" {unit}" if unit else ""
        lines = [f"held by {name}: 1% more saves {grouped(self.shadow_prices[name], 2)}{unit}" for name in self.binding]
        if self.regret > 0:
            lines.append(f"regret: at most {grouped(self.regret, 2)}{unit} if the best size is another one")
        elif self.regret == 0 and self.params_high <= self.params_low * (1 + _ROUNDING**0.5):
            lines.append("regret: not told, as every replicate of the fit has this best size")
        return [*lines, *(f"note: {note}" for note in self.notes)]

    def __repr__(self) -> str:
        sheet = self.sheet()
        lines = [sheet.title]
        for name, value, low, high in sheet.rows:
            lines.append(f"  {name:<13}{value:>11}" + (f"   [{low}, {high}]" if low else ""))
        return "\n".join([*lines, *(f"  {line}" for line in sheet.lines)])


def interval(
    law: Law | str,
    best: Mapping[str, float],
    replicates: Mapping[str, ArrayLike],
    *,
    budget: Budget,
    setting: Setting | None = None,
    level: float = 0.95,
) -> Optimum:
    """The best run with intervals from bootstrap replicates of the law's parameters.

    The interval of the loss is that of a run at the reported size, not of every replicate's own best.

    Args:
        law: a law, its name, or a formula.
        best: its free parameters, as fitted.
        replicates: parameter -> (b,) replicates; may be empty, then the intervals are nan.
        budget: the limits, single numbers.
        setting: what is held fixed.
        level: coverage of the intervals.

    Raises:
        FitError: as :func:`minimise`, or nothing holds the optimum.
    """
    law, setting = as_law(law), setting or Setting()
    values = stack(law, best, replicates)
    found = minimise(law, values, budget=budget, setting=setting)
    return summarise(law, law.predict(values, columns_at(law, found, setting)), found, level=level)


def stack(law: Law, best: Mapping[str, float], replicates: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """Parameter -> (1 + b,): the estimate first, then its replicates; of a law without free ones the fixed (1,)."""
    known = {**best, **law.fixed}
    return {
        name: np.concatenate([[float(known[name])], np.asarray(replicates.get(name, ()), dtype=float)])
        for name in law.free or law.parameters
    }


def columns_at(law: Law, found: Solution, setting: Setting) -> dict[str, float]:
    """The law's columns for the best run of the first row."""
    row = (a.reshape(-1)[0] for a in (found.params, found.tokens, found.rounds, found.local_steps))
    params, tokens, rounds, local_steps = map(float, row)
    flat = columns_of(law, setting, params, tokens, rounds, local_steps)
    return {name: float(np.reshape(value, -1)[0]) for name, value in flat.items()}


def summarise(law: Law, losses: Array, found: Solution, *, level: float = 0.95, given: str = "") -> Optimum:
    """An :class:`Optimum` from solutions, first the estimate, then replicates, and the losses of the estimate's run.

    Raises:
        FitError: nothing holds the estimate's optimum.
    """
    if not found.bounded[0]:
        raise FitError(
            f"nothing holds the best size of {law.name!r}: with the fitted exponents the loss falls for ever towards "
            f"params = {grouped(found.params[0])}, tokens = {grouped(found.tokens[0])}; add limits (params=..., "
            "tokens=...) or runs that vary params and tokens apart"
        )
    series = np.stack([found.params, found.tokens, found.rounds, losses], axis=1)
    lows, highs = ends(series, level)
    params, tokens, rounds, loss = map(float, series[0])
    params_low, tokens_low, rounds_low, loss_low = map(float, lows)
    params_high, tokens_high, rounds_high, loss_high = map(float, highs)
    loose = float(np.mean(~found.bounded[1:])) if len(losses) > 1 else 0.0
    return Optimum(
        params=params,
        params_low=params_low,
        params_high=params_high,
        tokens=tokens,
        tokens_low=tokens_low,
        tokens_high=tokens_high,
        rounds=rounds,
        rounds_low=rounds_low,
        rounds_high=rounds_high,
        loss=loss,
        loss_low=loss_low,
        loss_high=loss_high,
        compute=float(found.compute[0]),
        local_steps=float(found.local_steps[0]),
        binding=found.binding(),
        shadow_prices={name: float(series[0]) for name, series in found.prices.items()},
        regret=_regret(losses[1:], found.loss[1:], level),
        level=level,
        given=given or law.name,
        notes=() if loose == 0 else (f"in {loose:.1%} of the replicates nothing holds the best size",),
        replicates={"params": found.params[1:], "tokens": found.tokens[1:], "loss": found.loss[1:]},
    )


def _regret(losses: Array, least: Array, level: float) -> float:
    """What the replicates lose at the estimate's run, at most, with this probability; rounding is no loss."""
    if not len(losses):
        return float("nan")
    lost = float(np.quantile(losses - least, level))
    return lost if lost > _ROUNDING * float(np.median(losses)) else 0.0


def ends(series: Array, level: float) -> tuple[Array, Array]:
    """Low and high percentiles of the replicates (rows 1 on), stretched to hold the estimate (row 0), or NaN."""
    if len(series) < 2:
        return np.full(series.shape[1:], np.nan), np.full(series.shape[1:], np.nan)
    # interpolating between infinite replicates would give nan
    method: Literal["linear", "nearest"] = "nearest" if np.isinf(series).any() else "linear"
    low, high = np.quantile(series[1:], [(1 - level) / 2, (1 + level) / 2], axis=0, method=method)
    return np.minimum(low, series[0]), np.maximum(high, series[0])


def _finish(question: program.Program, found: Minimum) -> Solution:
    x, shape = found.x, question.shape
    excess = np.exp(question.log_excess(x))
    params, tokens = np.exp(x[:, PARAMS]), np.exp(x[:, TOKENS])
    if question.chooses_rounds:
        rounds = np.exp(x[:, ROUNDS])
        local = np.exp(x[:, TOKENS] - x[:, ROUNDS] - question.log_step)
    else:
        rounds = np.exp(x[:, TOKENS] - question.log_step - question.log_local_steps)
        local = np.exp(question.log_local_steps)
    prices = {
        limit.name: (0.01 * found.multipliers[:, i] * limit.elasticity * excess).reshape(shape)
        for i, limit in enumerate(question.limits)
    }
    bounded = question.holds(x, found.converged)
    compute = question.cost(params) * tokens + sampling_flops(params, question.sampled)
    arrays = (params, tokens, rounds, local, question.constant + excess, compute, excess)
    params, tokens, rounds, local, loss, compute, excess = (values.reshape(shape) for values in arrays)
    return Solution(params, tokens, rounds, local, loss, compute, excess, prices, bounded.reshape(shape))
