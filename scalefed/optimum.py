"""Which model size, on how many tokens and rounds, gives the least loss within these limits?

The law is a sum of power-law products and so is every limit (:mod:`scalefed.budgets`), so the question is a geometric
program: convex in logarithms, one global optimum, and a price for every limit that binds. All of it is batched: give
arrays of parameter values (bootstrap replicates) or of limits (a sweep) and get arrays back.

Source: the two-term closed form N* = G (C/6)^(b/(a+b)), G = (a A / (b B))^(1/(a+b)), Hoffmann et al. 2022 (arXiv
2203.15556), equation 4; the rest as cited in :mod:`scalefed.geometric`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefed import program
from scalefed.budgets import PARAMS, ROUNDS, TOKENS, Budget, Setting
from scalefed.errors import FitError
from scalefed.geometric import FARTHEST, Minimum
from scalefed.laws import Law, as_law
from scalefed.units import sampling_flops

Array = NDArray[np.float64]


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

    Newton's method on the least loss as a function of log compute, which is convex and whose slope is the price of
    compute; rows that cannot reach the target get infinite compute and ``bounded`` False.

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
    settled = np.zeros(shape, bool)
    for _ in range(100):
        question = program.build(law, values, replace(base, compute=np.exp(log_compute)), setting or Setting())
        found = _finish(question, program.solve(question))
        aim = target - (found.loss - found.excess)
        reachable = aim > 0
        distance = np.log(found.excess) - np.log(np.where(reachable, aim, 1.0))
        rate = 100 * found.prices["compute"] / found.excess
        out_of_reach = ~reachable | ((distance > 1e-9) & ((rate < 1e-9) | (log_compute > 2 * FARTHEST)))
        settled = out_of_reach | (np.abs(distance) < 1e-12)
        if settled.all():
            break
        step = np.where(settled, 0.0, distance / np.where(rate > 0, rate, 1.0))
        log_compute = log_compute + np.clip(step, -30.0, 30.0)
    lost = out_of_reach | ~settled
    return replace(found, compute=np.where(lost, np.inf, found.compute), bounded=np.asarray(found.bounded & ~lost))


def _finish(question: program.Program, found: Minimum) -> Solution:
    x, shape = found.x, question.shape
    log_excess = question.law.evaluate(x, np.eye(x.shape[1]))[0]
    excess = np.exp(log_excess)
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
    walled = any(limit.name in ("params", "memory") for limit in question.limits)
    top = (x[:, PARAMS] < FARTHEST - 1e-3) | walled
    bounded = found.converged & (x[:, PARAMS] > 1e-3) & top & (x[:, TOKENS] < FARTHEST + 30)
    compute = question.train * params * tokens + sampling_flops(params, question.sampled)
    arrays = (params, tokens, rounds, local, question.constant + excess, compute, excess)
    params, tokens, rounds, local, loss, compute, excess = (values.reshape(shape) for values in arrays)
    return Solution(params, tokens, rounds, local, loss, compute, excess, prices, bounded.reshape(shape))
