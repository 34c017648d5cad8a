"""Which size solves the most problems when every problem may be tried as often as the compute of its use allows?

A smaller model can be sampled more often: with F FLOPs a problem and t tokens an attempt, k = F / (2 N t) attempts.
Training compute is fixed as well, so params N is the one thing to choose: tokens D = C / 6N, loss from the law, and
pass@k from the link. One dimension, scanned and refined for every pair of law and link replicates at once.

Source: T2 scaling (arXiv 2604.01411), section on joint budgets; k = C_inf / (2 N) there per token.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from scalefed.allocation import optimum
from scalefed.allocation.answers import (
    FitLike,
    against_runs,
    given_of,
    must_be_determined,
    must_be_narrow,
    with_tests,
)
from scalefed.allocation.budgets import Budget
from scalefed.allocation.defaults import question, words_of
from scalefed.allocation.mixture import mixed, with_law_error
from scalefed.allocation.optimum import Optimum, Solution
from scalefed.allocation.passes import attached_link, stacked_curves, with_loss_error
from scalefed.downstream.link import pass_at_k
from scalefed.errors import ConfigError, FitError
from scalefed.laws import Law
from scalefed.units import grouped, sampling_flops

Array = NDArray[np.float64]

_POINTS = 241  # of a mesh of log attempts, each a fraction of the last mesh's step
_REFINEMENTS = 4  # of that mesh; its step falls 120 times in each


def optimal_size_with_attempts(
    fit: FitLike,
    *,
    compute: float,
    compute_per_problem: float,
    tokens_per_attempt: float,
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
) -> Optimum:
    """The size with the best pass@k where k is what a fixed compute for use buys.

    Args:
        fit: a fit of a law in params and tokens with a link attached.
        compute: training FLOPs of all clients and rounds.
        compute_per_problem: FLOPs that one problem may cost at use.
        tokens_per_attempt: tokens generated in one attempt, the prompt's included if it is not cached.
        clients: clients that hold data.
        participation: share of them that trains in a round, in (0, 1]; or give ``clients_per_round``.
        clients_per_round: clients that train in a round.
        concentration: Dirichlet concentration, turned into skew by what the runs measured; or give ``skew``.
        skew: measured difference of the clients' mixtures, 0 to 1.
        local_steps: optimizer steps of a client in a round.
        batch_tokens: tokens of a client's step.
        unique_tokens: different tokens over all clients.
        flops: how compute is counted, in place of what the runs show: ``"6*params*tokens"``, or any sum of powers of
            params times tokens.
        level: coverage of the intervals.
        columns: values of other columns that the law needs.

    Returns:
        An optimum whose ``pass_at_k`` holds the chosen k; the notes name it.

    Raises:
        FitError: as :func:`planning.optimal_size`; there is no link; or not even one attempt is affordable for any
            size at which the law can be asked.
    """
    asked = words_of(locals(), "compute_per_problem", "tokens_per_attempt", "level")
    for name, value in (("compute_per_problem", compute_per_problem), ("tokens_per_attempt", tokens_per_attempt)):
        if not (np.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be positive and finite, got {value}")
    must_be_determined(fit, "an optimal size")
    link = attached_link(fit)
    _, setting, notes = question(fit.law, fit.runs, asked)
    largest = np.log(compute_per_problem / sampling_flops(1, tokens_per_attempt))
    if largest < 0:
        raise FitError(
            f"{grouped(compute_per_problem, 3)} FLOPs a problem do not pay one attempt of "
            f"{grouped(tokens_per_attempt, 6)} tokens by any model; raise compute_per_problem"
        )

    def solve(law: Law, values: Mapping[str, Array]) -> Solution:
        """The best size of every row, each with a replicate of the link."""
        values = _with_links(values, len(link.replicates))
        rows = len(next(iter(values.values())))
        curves, stacked = stacked_curves(link, rows), {name: series[:, None] for name, series in values.items()}

        def passes(log_params: Array) -> Array:
            size = np.exp(log_params)
            tokens = compute / setting.per_token(size)
            found = optimum.evaluate(law, stacked, setting, params=size, tokens=tokens)
            offset = curves.offset(optimum.columns_of_runs(law, setting, params=size, tokens=tokens))
            return pass_at_k(curves, found, np.exp(np.maximum(largest - log_params, 0.0)), offset=offset)

        size = np.exp(_highest(passes, np.zeros(rows), np.full(rows, largest)))
        tokens = compute / setting.per_token(size)
        own = optimum.minimise(law, values, budget=Budget(compute=compute), setting=setting)
        loss = optimum.evaluate(law, values, setting, params=size, tokens=tokens)
        return replace(
            own, params=size, tokens=tokens, rounds=own.rounds * tokens / own.tokens, loss=loss, prices={},
            compute=np.full(rows, compute), bounded=np.ones(rows, dtype=np.bool_),
        )  # fmt: skip

    found = with_law_error(fit, mixed(fit, solve))
    must_be_narrow(fit, found.params, f"the best size for {grouped(compute)} FLOPs and its attempts")
    here = optimum.columns_at(fit.law, found, setting)
    losses = mixed(fit, lambda law, values: law.predict(_with_links(values, len(link.replicates)), here))
    best = optimum.summarise(fit.law, losses, found, level=level, given=given_of(fit))
    attempts = compute_per_problem / sampling_flops(best.params, tokens_per_attempt)
    curves = stacked_curves(link, len(losses))
    spread = with_loss_error(fit, losses, here)[:, None]
    offset = curves.offset({name: [value] for name, value in here.items()})
    solved = pass_at_k(curves, spread, np.array(attempts), offset=offset)[:, 0]
    low, high = optimum.ends(solved[:, None], level)
    share = float(solved[0])
    table = {max(round(attempts), 1): (share, float(low[0]), float(high[0]))}
    words = f"k = {grouped(attempts)} attempts a problem, pass@k {grouped(share, 3)}"
    told = replace(best, pass_at_k=table, regret=np.nan, notes=(*notes, words))
    told = with_tests(fit, told, found, setting, partial(solve, fit.law))
    return against_runs(fit, told, setting, asked)


def _with_links(values: Mapping[str, Array], links: int) -> Mapping[str, Array]:
    """The values, or where they are an estimate alone that estimate beside every replicate of the link."""
    alone = all(len(series) == 1 for series in values.values())
    return {name: np.resize(series, links + 1) for name, series in values.items()} if alone else values


def _highest(value: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Where each row's value is highest between its ends, by finer and finer meshes: (rows,)."""
    for _ in range(_REFINEMENTS):
        mesh = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, _POINTS)
        best = np.argmax(value(mesh), axis=1)
        low, high = (mesh[np.arange(len(low)), np.clip(best + move, 0, _POINTS - 1)] for move in (-1, 1))
    return np.asarray((low + high) / 2)
