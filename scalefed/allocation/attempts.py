"""Which size solves the most problems when every problem may be tried as often as the compute of its use allows?

A smaller model can be sampled more often: with F FLOPs a problem and t tokens an attempt, k = F / (2 N t) attempts.
Training compute is fixed as well, so params N is the one thing to choose: tokens D = C / 6N, loss from the law, and
pass@k from the link. One dimension, scanned and refined for every pair of law and link replicates at once.

Source: T2 scaling (arXiv 2604.01411), section on joint budgets; k = C_inf / (2 N) there per token.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scalefed.allocation import optimum
from scalefed.allocation.answers import FitLike, against_runs, attached_link, must_be_determined, stacked_curves
from scalefed.allocation.budgets import Budget
from scalefed.allocation.defaults import question, words_of
from scalefed.allocation.mixture import values_of
from scalefed.allocation.optimum import Optimum
from scalefed.downstream.link import pass_at_k
from scalefed.errors import ConfigError, FitError
from scalefed.units import sampling_flops

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
    values = values_of(fit)
    rows = max(len(next(iter(values.values()))), len(link.replicates) + 1)
    values = {
        name: np.concatenate([series[:1], np.resize(series[1:] if len(series) > 1 else series, rows - 1)])
        for name, series in values.items()
    }
    curves = stacked_curves(link, rows)
    largest = np.log(compute_per_problem / sampling_flops(1, tokens_per_attempt))
    if largest < 0:
        raise FitError(
            f"{compute_per_problem:.3g} FLOPs a problem do not pay one attempt of {tokens_per_attempt:g} tokens by any "
            "model; raise compute_per_problem"
        )
    law = fit.law
    stacked = {name: series[:, None] for name, series in values.items()}

    def solved(log_params: Array) -> tuple[Array, Array]:
        """Pass@k and loss at (rows, points) log params."""
        size = np.exp(log_params)
        tokens = compute / setting.per_token(size)
        found = optimum.evaluate(law, stacked, setting, params=size, tokens=tokens)
        k = np.exp(np.maximum(largest - log_params, 0.0))
        offset = curves.offset(optimum.columns_of_runs(law, setting, params=size, tokens=tokens))
        return pass_at_k(curves, found, k, offset=offset), found

    n = _highest(lambda mesh: solved(mesh)[0], np.zeros(rows), np.full(rows, largest))
    own = optimum.minimise(law, values, budget=Budget(compute=compute), setting=setting)
    spent = own.tokens
    own = replace(own, params=np.exp(n), tokens=compute / setting.per_token(np.exp(n)), compute=np.full(rows, compute))
    own = replace(own, rounds=own.rounds * own.tokens / spent, prices={}, bounded=np.ones(rows, dtype=np.bool_))
    losses = law.predict(values, optimum.columns_at(law, own, setting))
    result = optimum.summarise(law, losses, own, level=level)
    at_best = solved(np.full((rows, 1), n[0]))[0][:, 0]
    k = float(np.exp(largest - n[0]))
    ends = np.quantile(at_best[1:], [(1 - level) / 2, (1 + level) / 2])
    share = float(at_best[0])
    table = {max(round(k), 1): (share, min(float(ends[0]), share), max(float(ends[1]), share))}
    words = f"k = {k:.4g} attempts a problem, pass@k {share:.3g}"
    told = replace(result, pass_at_k=table, regret=np.nan, notes=(*notes, words))
    return against_runs(fit, told, setting, asked)


def _highest(value: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Where each row's value is highest between its ends, by finer and finer meshes: (rows,)."""
    for _ in range(_REFINEMENTS):
        mesh = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, _POINTS)
        best = np.argmax(value(mesh), axis=1)
        low, high = (mesh[np.arange(len(low)), np.clip(best + move, 0, _POINTS - 1)] for move in (-1, 1))
    return np.asarray((low + high) / 2)
