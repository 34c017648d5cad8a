"""What should these clients train, given a fit of their pilot runs?

The functions here take a fit (anything with a law, its parameters, their replicates and the runs), fill in from the
runs what the question leaves out (:mod:`scalefed.allocation.defaults`), ask :mod:`scalefed.allocation.optimum`, and
tell the answer with its intervals and notes (:mod:`scalefed.allocation.answers`). They are the methods of a
:class:`scalefed.Fit`.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from scalefed.allocation import optimum
from scalefed.allocation.answers import (
    FitLike,
    against_runs,
    must_be_determined,
    report,
    with_repeats,
    with_tests,
)
from scalefed.allocation.budgets import Budget
from scalefed.allocation.defaults import question, words_of
from scalefed.allocation.mixture import mixed
from scalefed.allocation.optimum import Optimum, Solution
from scalefed.allocation.passes import attached_link, least_for_passes
from scalefed.allocation.populations import best_population
from scalefed.errors import ConfigError, FitError, check_level
from scalefed.laws import Law
from scalefed.units import grouped


def optimal_size(
    fit: FitLike,
    *,
    compute: float,
    clients: float | None = None,
    participation: float | None = None,
    clients_per_round: float | None = None,
    concentration: float | None = None,
    skew: float | None = None,
    local_steps: float | None = None,
    batch_tokens: float | None = None,
    unique_tokens: float | None = None,
    inner_state: str | None = None,
    sampled_tokens: float | None = None,
    flops: str | None = None,
    target: str = "loss",
    level: float = 0.95,
    columns: Mapping[str, float] | None = None,
) -> Optimum:
    """The size with the least loss (hence the best pass@k) at a total compute, with intervals.

    What the law depends on and is not given is taken from the runs where they agree; else the clients are taken to be
    alike (skew 0) and, where ``clients`` is given, all of them to train in every round. The notes say what was taken.

    Args:
        fit: a fit of a law in params and tokens.
        compute: FLOPs of all clients and rounds, and of ``sampled_tokens``: 6 params tokens, or counted as the runs'
            own column of compute counts them, and then a note says so.
        clients: clients that hold data.
        participation: share of them that trains in a round, in (0, 1]; or give ``clients_per_round``.
        clients_per_round: clients that train in a round.
        concentration: Dirichlet concentration, turned into skew by what the runs measured; or give ``skew``.
        skew: measured difference of the clients' mixtures, 0 to 1.
        local_steps: optimizer steps of a client in a round; by default the runs' most common number.
        batch_tokens: tokens of a client's step; by default the runs' most common number.
        unique_tokens: different tokens over all clients; a run that reads more repeats them.
        inner_state: whether clients keep their optimizer's state, "keep" or "reset", to be held against the runs.
        sampled_tokens: tokens that the finished model will generate at 2 params FLOPs each, paid from ``compute``:
            for a target of pass@k, questions times k times tokens of an answer.
        flops: how compute is counted, in place of what the runs show: ``"6*params*tokens"``, or any sum of powers of
            params times tokens.
        target: "loss", or "pass_at_k" with a k, which needs a link; both have the same optimum (for a link that looks
            at size or tokens beside the loss, that of the loss).
        level: coverage of the intervals.
        columns: values of any other column of the law or of the run log, such as ``{"data": "micro"}``.

    Raises:
        FitError: the runs cannot determine the law, with the reason and the runs that would help; the law cannot
            answer; or a value is missing that neither the question nor the runs settle.
        ConfigError: a number out of range.
    """
    words = words_of(locals(), "target")
    _check_target(fit, target)
    best = plan(fit, **words)
    told = () if target == "loss" else (f"the size of the least loss is that of the best {target}",)
    return replace(best, notes=(*best.notes, *told))


def plan(
    fit: FitLike,
    *,
    compute: float | None = None,
    compute_exact: float | None = None,
    compute_per_client: float | None = None,
    bytes_sent: float | None = None,
    bytes_per_client: float | None = None,
    memory: float | None = None,
    seconds: float | None = None,
    flops_per_second: float | None = None,
    bandwidth: float | None = None,
    latency: float | None = None,
    rounds: float | None = None,
    tokens: float | None = None,
    params: float | None = None,
    unique_tokens_per_client: float | None = None,
    epochs: float | None = None,
    sampled_tokens: float | None = None,
    clients: float | Literal["free"] | None = None,
    participation: float | None = None,
    clients_per_round: float | None = None,
    concentration: float | None = None,
    skew: float | None = None,
    local_steps: float | Literal["free"] | None = None,
    batch_tokens: float | None = None,
    unique_tokens: float | None = None,
    inner_state: str | None = None,
    bytes_per_value: float | None = None,
    trained_share: float | None = None,
    vocab: int | None = None,
    width_per_layer: float | None = None,
    flops: str | None = None,
    level: float = 0.95,
    columns: Mapping[str, float] | None = None,
) -> Optimum:
    """The best run under any mix of limits, the binding ones named with their shadow prices.

    Args:
        fit: a fit of a law in params and tokens.
        compute: limit on FLOPs of all clients and rounds, and of ``sampled_tokens``, counted as for an optimal size.
        compute_exact: limit on FLOPs as the runs' ``compute_exact`` counts them: with output layer and attention.
        compute_per_client: limit on FLOPs of a client, on average.
        bytes_sent: limit on bytes on the wire in all, up and down.
        bytes_per_client: limit on bytes on the wire of a client, on average.
        memory: limit on bytes of memory of a client.
        seconds: limit on the wall clock; needs ``flops_per_second``, ``bandwidth`` or both.
        flops_per_second: FLOPs per second of a client.
        bandwidth: bytes per second of a client.
        latency: seconds that a round takes besides; 0 by default.
        rounds: limit on rounds.
        tokens: limit on training tokens, all clients.
        params: limit on non-embedding parameters.
        unique_tokens_per_client: limit on the different tokens of a client, each used at most ``epochs`` times.
        epochs: passes over them; 1 by default, but as many as pay where the law has a term for repeats.
        sampled_tokens: tokens that the finished model will generate at 2 params FLOPs each, paid from the compute.
        clients: clients that hold data; ``"free"`` looks for the best number of them, where each brings
            ``unique_tokens_per_client`` of its own and the law knows population and repeats.
        participation: share of them that trains in a round, in (0, 1]; or give ``clients_per_round``.
        clients_per_round: clients that train in a round.
        concentration: Dirichlet concentration, turned into skew by what the runs measured; or give ``skew``.
        skew: measured difference of the clients' mixtures, 0 to 1.
        local_steps: optimizer steps of a client in a round; by default the runs' most common number; ``"free"`` lets
            the planner choose it, for laws that say what local steps cost.
        batch_tokens: tokens of a client's step; by default the runs' most common number.
        unique_tokens: different tokens over all clients; a run that reads more repeats them.
        inner_state: whether clients keep their optimizer's state, "keep" or "reset", to be held against the runs.
        bytes_per_value: bytes of a number on the wire and in memory; 4 by default.
        trained_share: trained over all parameters, below 1 for LoRA; 1 by default.
        vocab: entries of the tokenizer, for ``memory``; 0 by default.
        width_per_layer: the model's width over its number of layers, for ``memory``; 64 by default.
        flops: how compute is counted, in place of what the runs show: ``"6*params*tokens"``, or any sum of powers of
            params times tokens.
        columns: values of any other column of the law or of the run log, such as ``{"data": "micro"}``.
        level: coverage of the intervals.

    Raises:
        FitError: as :meth:`optimal_size`, or the limits leave the optimum open.
        ConfigError: a number out of range.
    """
    words = _said(locals())
    check_level(level)
    must_be_determined(fit, "an optimal size")
    chosen: tuple[str, ...] = ()
    if clients == "free":
        words["clients"], told = best_population(fit.law, fit.params, fit.runs, words)
        chosen = (told,)
    budget, setting, notes = question(fit.law, fit.runs, words)
    if sampled_tokens is not None and compute is None:
        raise ConfigError("sampled_tokens changes nothing here: it goes with a limit on compute, which pays for it")

    def ask(law: Law, values: Mapping[str, optimum.Array], limits: Budget = budget) -> Solution:
        return optimum.minimise(law, values, budget=limits, setting=setting)

    def solve(limits: Budget) -> Solution:
        return mixed(fit, partial(ask, limits=limits))

    found = solve(budget)
    best = report(fit, found, setting, (*chosen, *notes), level)
    best = with_tests(fit, best, found, setting, partial(ask, fit.law))
    said = words["unique_tokens"] is not None
    best, _ = with_repeats(fit, best, solve, budget=budget, setting=setting, said=said)
    return against_runs(fit, best, setting, words)


def least_compute(
    fit: FitLike,
    *,
    loss: float | None = None,
    pass_at_1: float | None = None,
    pass_at_k: float | None = None,
    k: int = 1,
    compute_exact: float | None = None,
    compute_per_client: float | None = None,
    bytes_sent: float | None = None,
    bytes_per_client: float | None = None,
    memory: float | None = None,
    seconds: float | None = None,
    flops_per_second: float | None = None,
    bandwidth: float | None = None,
    latency: float | None = None,
    rounds: float | None = None,
    tokens: float | None = None,
    params: float | None = None,
    unique_tokens_per_client: float | None = None,
    epochs: float | None = None,
    sampled_tokens: float | None = None,
    clients: float | None = None,
    participation: float | None = None,
    clients_per_round: float | None = None,
    concentration: float | None = None,
    skew: float | None = None,
    local_steps: float | Literal["free"] | None = None,
    batch_tokens: float | None = None,
    unique_tokens: float | None = None,
    inner_state: str | None = None,
    bytes_per_value: float | None = None,
    trained_share: float | None = None,
    vocab: int | None = None,
    width_per_layer: float | None = None,
    flops: str | None = None,
    level: float = 0.95,
    columns: Mapping[str, float] | None = None,
) -> Optimum:
    """The least compute, with its size and tokens, that reaches a target loss or pass@k.

    Args:
        fit: a fit of a law in params and tokens, with a link for a target in pass@k.
        loss: the target, in the unit of the law's target; or one of
        pass_at_1: the target share of problems solved by one sample;
        pass_at_k: the same by ``k`` samples.
        k: samples a problem may take.
        compute_exact: limit on FLOPs as the runs' ``compute_exact`` counts them: with output layer and attention.
        compute_per_client: limit on FLOPs of a client, on average.
        bytes_sent: limit on bytes on the wire in all, up and down.
        bytes_per_client: limit on bytes on the wire of a client, on average.
        memory: limit on bytes of memory of a client.
        seconds: limit on the wall clock; needs ``flops_per_second``, ``bandwidth`` or both.
        flops_per_second: FLOPs per second of a client.
        bandwidth: bytes per second of a client.
        latency: seconds that a round takes besides; 0 by default.
        rounds: limit on rounds.
        tokens: limit on training tokens, all clients.
        params: limit on non-embedding parameters.
        unique_tokens_per_client: limit on the different tokens of a client, each used at most ``epochs`` times.
        epochs: passes over them; 1 by default, but as many as pay where the law has a term for repeats.
        sampled_tokens: tokens that the finished model will generate at 2 params FLOPs each, which count as compute.
        clients: clients that hold data.
        participation: share of them that trains in a round, in (0, 1]; or give ``clients_per_round``.
        clients_per_round: clients that train in a round.
        concentration: Dirichlet concentration, turned into skew by what the runs measured; or give ``skew``.
        skew: measured difference of the clients' mixtures, 0 to 1.
        local_steps: optimizer steps of a client in a round; by default the runs' most common number; ``"free"`` lets
            the planner choose it, for laws that say what local steps cost.
        batch_tokens: tokens of a client's step; by default the runs' most common number.
        unique_tokens: different tokens over all clients; a run that reads more repeats them.
        inner_state: whether clients keep their optimizer's state, "keep" or "reset", to be held against the runs.
        bytes_per_value: bytes of a number on the wire and in memory; 4 by default.
        trained_share: trained over all parameters, below 1 for LoRA; 1 by default.
        vocab: entries of the tokenizer, for ``memory``; 0 by default.
        width_per_layer: the model's width over its number of layers, for ``memory``; 64 by default.
        flops: how compute is counted, in place of what the runs show: ``"6*params*tokens"``, or any sum of powers of
            params times tokens.
        columns: values of any other column of the law or of the run log, such as ``{"data": "micro"}``.
        level: coverage of the intervals; that of the compute stands in the notes.

    Raises:
        FitError: as :meth:`plan`, or the target cannot be reached by any compute.
        ConfigError: not one target, or a number out of range.
    """
    words = _said(locals())
    check_level(level)
    given = [name for name in ("loss", "pass_at_1", "pass_at_k") if words.pop(name) is not None]
    del words["k"]
    if k != 1 and given != ["pass_at_k"]:
        raise ConfigError("k changes nothing here: it goes with pass_at_k")
    if len(given) != 1:
        raise ConfigError(f"give one target, loss=, pass_at_1= or pass_at_k= with k=; got {given or 'none'}")
    must_be_determined(fit, "the compute for a goal")
    budget, setting, notes = question(fit.law, fit.runs, words)
    share = float(pass_at_k if pass_at_k is not None else pass_at_1 or 0.0)

    def ask(law: Law, values: Mapping[str, optimum.Array], limits: Budget = budget) -> Solution:
        if loss is not None:
            return optimum.least_compute(law, values, loss=loss, budget=limits, setting=setting)
        return least_for_passes(attached_link(fit), law, values, share, k, limits, setting)

    def solve(limits: Budget) -> Solution:
        return mixed(fit, partial(ask, limits=limits))

    found = solve(budget)
    if not np.isfinite(found.compute[0]):
        floor = float(found.loss[0] - found.excess[0])
        sought = f"loss {grouped(loss)}" if loss is not None else f"pass@{k} = {grouped(share, 6)}"
        raise FitError(
            f"no compute reaches {sought}: the fitted law ends at {grouped(floor)} (or at what the other limits "
            "allow); ask for less"
        )
    best = replace(report(fit, found, setting, notes, level), regret=np.nan)
    best = with_tests(fit, best, found, setting, partial(ask, fit.law))
    said = words["unique_tokens"] is not None
    best, once = with_repeats(fit, best, solve, budget=budget, setting=setting, said=said)
    ends = np.array([
        np.quantile(one.compute, [(1 - level) / 2, (1 + level) / 2], method="nearest")
        for one in (found, once) if one is not None
    ])  # fmt: skip
    low, high = ends[:, 0].min(), ends[:, 1].max()
    note = f"compute {grouped(found.compute[0])} FLOPs [{grouped(low)}, {grouped(high)}]"
    return against_runs(fit, replace(best, notes=(*best.notes, note)), setting, words)


# ---------------------------------------------------------------------- helpers
def _said(words: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a question, from the locals of a function that has just begun; one number each.

    Raises:
        ConfigError: an array.
    """
    said = words_of(words, "level")
    for name, value in said.items():
        if not isinstance(value, (str, Mapping)) and np.ndim(value) > 0:
            raise ConfigError(f"{name} must be one number here; fit.optimal_sizes(compute=[...]) takes many budgets")
    return said


def _check_target(fit: FitLike, target: str) -> None:
    if target == "loss":
        return
    if not target.startswith("pass_at_") or not target.removeprefix("pass_at_").isdigit():
        raise ConfigError(f"target must be 'loss' or 'pass_at_k' with a number for k, got {target!r}")
    attached_link(fit)
