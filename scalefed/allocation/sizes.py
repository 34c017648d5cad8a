"""What is the best size at each of many budgets, or in each of many settings? Solved together, and smooth between."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scalefed.allocation import optimum
from scalefed.allocation.answers import FitLike, must_be_determined, must_be_narrow
from scalefed.allocation.defaults import question
from scalefed.allocation.mixture import mixed, values_of
from scalefed.laws import Law

Array = NDArray[np.float64]

_NODES = 65  # tests/benchmarks/bench_optimum.py sweep: what nodes and splines leave
_NODES_A_DECADE = 16
_SWEEP_ROWS = 2**18  # questions solved at once: half a gigabyte of work arrays


def optimal_sizes(
    fit: FitLike,
    *,
    compute: ArrayLike,
    compute_exact: ArrayLike | None = None,
    compute_per_client: ArrayLike | None = None,
    bytes_sent: ArrayLike | None = None,
    bytes_per_client: ArrayLike | None = None,
    memory: ArrayLike | None = None,
    seconds: ArrayLike | None = None,
    flops_per_second: ArrayLike | None = None,
    bandwidth: ArrayLike | None = None,
    latency: float | None = None,
    rounds: ArrayLike | None = None,
    tokens: ArrayLike | None = None,
    params: ArrayLike | None = None,
    unique_tokens_per_client: ArrayLike | None = None,
    epochs: float | None = None,
    sampled_tokens: ArrayLike | None = None,
    clients: ArrayLike | None = None,
    participation: ArrayLike | None = None,
    clients_per_round: ArrayLike | None = None,
    concentration: float | None = None,
    skew: ArrayLike | None = None,
    local_steps: ArrayLike | None = None,
    batch_tokens: ArrayLike | None = None,
    unique_tokens: ArrayLike | None = None,
    bytes_per_value: float | None = None,
    trained_share: float | None = None,
    vocab: int | None = None,
    width_per_layer: float | None = None,
    flops: str | None = None,
    level: float = 0.95,
    intervals: bool = True,
    columns: Mapping[str, ArrayLike] | None = None,
) -> pd.DataFrame:
    """A sweep: one row a budget with params, tokens, rounds, loss and their low and high.

    Answers are smooth in log compute, so beyond some sixty budgets they are solved at nodes, sixteen a decade, and
    interpolated by cubic splines: sizes to 1e-9, ends of intervals to 0.2% (their replicates make them a little rough).

    As in :meth:`optimal_size`, the ends of ``loss`` are the band of a run that is made, the others those of the best
    run over the replicates; they are NaN where the fit has no replicates. A row whose size the runs leave open by more
    than a factor of ten stands with its wide interval; where that is so of every row, the sweep is refused.

    Limits and setting are one number, or one a budget (q,), with the defaults of :meth:`optimal_size`.

    Args:
        fit: a fit of a law in params and tokens.
        compute: (q,) FLOPs of all clients and rounds.
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
        clients: clients that hold data.
        participation: share of them that trains in a round, in (0, 1]; or give ``clients_per_round``.
        clients_per_round: clients that train in a round.
        concentration: Dirichlet concentration, turned into skew by what the runs measured; or give ``skew``.
        skew: measured difference of the clients' mixtures, 0 to 1.
        local_steps: optimizer steps of a client in a round; by default the runs' most common number.
        batch_tokens: tokens of a client's step; by default the runs' most common number.
        unique_tokens: different tokens over all clients (for laws that price repetition).
        bytes_per_value: bytes of a number on the wire and in memory; 4 by default.
        trained_share: trained over all parameters, below 1 for LoRA; 1 by default.
        vocab: entries of the tokenizer, for ``memory``; 0 by default.
        width_per_layer: the model's width over its number of layers, for ``memory``; 64 by default.
        flops: how compute is counted, in place of what the runs show: ``"6*params*tokens"``, or any sum of powers of
            params times tokens.
        columns: values of other columns that the law needs.
        level: coverage of the intervals.
        intervals: False leaves the replicates out, for very many budgets.

    Raises:
        FitError: as :meth:`optimal_size`.
        ConfigError: a number out of range.
    """
    setting = locals().copy()
    for name in ("fit", "compute", "level", "intervals"):
        del setting[name]
    must_be_determined(fit, "optimal sizes")
    budgets = np.atleast_1d(np.asarray(compute, dtype=float))
    if intervals and (nodes := _nodes(budgets, setting)) is not None:
        return _between(_sweep(fit, nodes, setting, level, intervals), budgets)
    size = max(1, _SWEEP_ROWS // (1 + len(fit.replicates))) if intervals else max(len(budgets), 1)
    starts = range(0, max(len(budgets), 1), size)
    pieces = (slice(start, start + size) for start in starts)
    return pd.concat(
        [_sweep(fit, budgets[piece], _part(setting, piece, len(budgets)), level, intervals) for piece in pieces],
        ignore_index=True,
    )


def _part(setting: Mapping[str, Any], piece: slice, count: int) -> dict[str, Any]:
    """The setting of some of the budgets, where it has one value for each."""

    def cut(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: cut(inner) for name, inner in value.items()}
        return np.asarray(value)[piece] if not isinstance(value, str) and np.shape(value) == (count,) else value

    return {name: cut(value) for name, value in setting.items()}


def _nodes(budgets: Array, setting: Mapping[str, Any]) -> Array | None:
    """Budgets between which answers are interpolated, where that is cheaper than to ask them all; else None."""
    if len(budgets) <= _NODES or not (np.isfinite(budgets) & (budgets > 0)).all():
        return None
    if any(np.ndim(value) for value in (*setting.values(), *(setting["columns"] or {}).values())):
        return None
    low, high = np.log(budgets.min()), np.log(budgets.max())
    count = max(_NODES, int(np.ceil(_NODES_A_DECADE * (high - low) / np.log(10.0))))
    return None if count >= len(budgets) or low == high else np.exp(np.linspace(low, high, count))


def _between(table: pd.DataFrame, budgets: Array) -> pd.DataFrame:
    """The rows of a sweep at other budgets, by cubic splines in logarithms; NaN and infinite stretches stay as such."""
    from scipy.interpolate import CubicSpline

    at, nodes = np.log(budgets), np.log(table["compute"].to_numpy())
    found: dict[str, Array] = {"compute": budgets}
    for name in table.columns.drop("compute"):
        values = np.log(table[name].to_numpy(dtype=float))
        if np.isfinite(values).all():
            found[name] = np.exp(CubicSpline(nodes, values)(at))
        else:
            found[name] = np.exp(np.interp(at, nodes, values))
    return pd.DataFrame(found)


def _sweep(fit: FitLike, budgets: Array, setting: Mapping[str, Any], level: float, intervals: bool) -> pd.DataFrame:
    """Every budget solved for the estimate and, with intervals, for all replicates."""
    budget, known, _ = question(fit.law, fit.runs, {**setting, "compute": budgets})

    def ask(law: Law, values: Mapping[str, Array]) -> optimum.Solution:
        column = {name: series[:, None] for name, series in values.items()}
        return optimum.minimise(law, column, budget=budget, setting=known)

    one = {name: series[:1] for name, series in values_of(fit).items()}
    found = mixed(fit, ask) if intervals else ask(fit.law, one)
    nearest = found.params[:, np.argmin(np.ptp(np.log(found.params), axis=0))]
    must_be_narrow(fit, nearest, "any of these best sizes")
    table: dict[str, Array] = {"compute": budgets}
    for name, series in (
        ("params", found.params),
        ("tokens", found.tokens),
        ("rounds", found.rounds),
        ("loss", found.loss),
    ):
        table[name] = series[0]
        if intervals:
            table[name + "_low"], table[name + "_high"] = optimum.ends(series, level)
    predict = getattr(fit, "predict", None)
    if intervals and predict is not None and len(found.loss) > 1:
        best = (series[0] for series in (found.params, found.tokens, found.rounds, found.local_steps))
        band = predict(level=level, **optimum.columns_of(fit.law, known, *best))
        table["loss_low"], table["loss_high"] = band["low"].to_numpy(), band["high"].to_numpy()
    return pd.DataFrame(table)
