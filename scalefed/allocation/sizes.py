"""What is the best size at each of many budgets, or in each of many settings? Solved together, and smooth between."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scalefed.allocation import optimum
from scalefed.allocation.answers import WIDEST, FitLike, asked_of, distance, must_be_determined, must_be_narrow, said_in
from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.column_tests import ColumnTest, beyond, size_errors, stretched, tests_of, too_far
from scalefed.allocation.defaults import question, words_of
from scalefed.allocation.extrapolation import look, ranges_behind
from scalefed.allocation.mixture import mixed, values_of, with_law_error
from scalefed.allocation.repeats import MOST_APART, Repeats, repeats_of
from scalefed.errors import check_level
from scalefed.laws import Law

Array = NDArray[np.float64]

_NODES = 65  # tests/benchmarks/bench_optimum.py sweep: what nodes and splines leave
_NODES_A_DECADE = 16  # the optimum is nearly a line in logarithms, so that splines between such nodes are read
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
    inner_state: str | None = None,
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
    than a factor of ten stands with its wide interval; where that is so of every row, the sweep is refused. The
    frame's ``attrs`` hold ``notes`` and ``extrapolation``, as an :class:`Optimum` has them, of the farthest row.

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
        intervals: False leaves the replicates out, for very many budgets.

    Raises:
        FitError: as :meth:`optimal_size`.
        ConfigError: a number out of range.
    """
    setting = words_of(locals(), "compute", "level", "intervals")
    check_level(level)
    must_be_determined(fit, "optimal sizes")
    budgets = np.atleast_1d(np.asarray(compute, dtype=float))
    if intervals and (nodes := _nodes(budgets, setting)) is not None:
        return _between(_sweep(fit, nodes, setting, level, intervals), budgets)
    size = max(1, _SWEEP_ROWS // (1 + len(fit.replicates))) if intervals else max(len(budgets), 1)
    starts = range(0, max(len(budgets), 1), size)
    pieces = (slice(start, start + size) for start in starts)
    parts = [_sweep(fit, budgets[piece], _part(setting, piece, len(budgets)), level, intervals) for piece in pieces]
    frame = pd.concat(parts, ignore_index=True)
    frame.attrs = {
        "notes": tuple(dict.fromkeys(note for part in parts for note in part.attrs["notes"])),
        "extrapolation": {
            name: max(part.attrs["extrapolation"].get(name, 0.0) for part in parts)
            for name in dict.fromkeys(name for part in parts for name in part.attrs["extrapolation"])
        },
    }
    return frame


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
    frame = pd.DataFrame(found)
    frame.attrs = table.attrs
    return frame


def _sweep(fit: FitLike, budgets: Array, setting: Mapping[str, Any], level: float, intervals: bool) -> pd.DataFrame:
    """Every budget solved for the estimate and, with intervals, for all replicates."""
    budget, known, notes = question(fit.law, fit.runs, {**setting, "compute": budgets})

    def ask(law: Law, values: Mapping[str, Array], limits: Budget = budget) -> optimum.Solution:
        column = {name: series[:, None] for name, series in values.items()}
        return optimum.minimise(law, column, budget=limits, setting=known)

    def solve(limits: Budget) -> optimum.Solution:
        one = {name: series[:1] for name, series in values_of(fit).items()}
        if not intervals:
            return ask(fit.law, one, limits)
        return with_law_error(fit, mixed(fit, partial(ask, limits=limits)))

    found = solve(budget)
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
    predicted = getattr(fit, "predicted", None)
    if intervals and predicted is not None and len(found.loss) > 1:
        best = (series[0] for series in (found.params, found.tokens, found.rounds, found.local_steps))
        band = predicted(level=level, **optimum.columns_of(fit.law, known, *best))
        table["loss_low"], table["loss_high"] = band["low"].to_numpy(), band["high"].to_numpy()
    if tests := beyond(fit.law, ranges_behind(fit), tests_of(fit), known.given()):
        _stretch(table, size_errors(tests, found, partial(ask, fit.law)), tests, level)
    return _told(fit, table, found, solve, budget, known, notes, setting, level)


def _stretch(
    table: dict[str, Array], errors: Mapping[str, Array], tests: list[tuple[ColumnTest, Array]], level: float
) -> None:
    """Widen the intervals of a table by what the tests of its columns found."""
    from scipy.special import ndtri

    if "params_low" not in table:
        return
    for name, error in errors.items():
        ends = table[f"{name}_low"], table[f"{name}_high"]
        low, high = stretched(table[name], *ends, error, float(ndtri((1 + level) / 2)))
        table[f"{name}_low"], table[f"{name}_high"] = low, high
    if np.all(table["params_high"] > WIDEST * table["params_low"]):
        raise too_far([test for test, _ in tests], table["params_low"][0], table["params_high"][0], WIDEST)


def _told(
    fit: FitLike,
    table: dict[str, Array],
    found: optimum.Solution,
    solve: Callable[[Budget], optimum.Solution],
    budget: Budget,
    known: Setting,
    notes: tuple[str, ...],
    setting: Mapping[str, Any],
    level: float,
) -> pd.DataFrame:
    """The table with its notes and how far it goes beyond the runs; wider where text is repeated more than they did."""
    size = {"params": found.params[0], "tokens": found.tokens[0]}
    repeats = repeats_of(fit.law, ranges_behind(fit), budget, known, size["tokens"])
    said = said_in(setting)
    often = {}
    if repeats is not None:
        if repeats.beyond:
            often["epochs"] = repeats.beyond
            _widen(fit, table, found, solve(repeats.once(budget)), repeats, known, level)
        notes = (*notes, *filter(None, [repeats.note(said="unique_tokens" in said)]))
    asked = asked_of(fit, known, setting, **size, local_steps=found.local_steps[0])
    outside, away = look(fit.law, ranges_behind(fit), asked, said, [test.column for test in tests_of(fit)])
    frame = pd.DataFrame(table)
    frame.attrs = {"notes": (*notes, *distance(fit.runs, size), *outside), "extrapolation": {**often, **away}}
    return frame


def _widen(
    fit: FitLike,
    table: dict[str, Array],
    found: optimum.Solution,
    once: optimum.Solution,
    repeats: Repeats,
    known: Setting,
    level: float,
) -> None:
    """Put ends into the table that hold the answers to which text read again teaches nothing."""
    for name in ("params", "tokens", "rounds"):
        if f"{name}_low" in table:
            rows = [table[name], table[f"{name}_low"], table[f"{name}_high"], *optimum.ends(getattr(once, name), level)]
            rows.append(getattr(once, name)[0])
            table[f"{name}_low"], table[f"{name}_high"] = np.fmin.reduce(rows), np.fmax.reduce(rows)
    low, high = np.fmin(found.params[0], once.params[0]), np.fmax(found.params[0], once.params[0])
    if (apart := np.flatnonzero(high > MOST_APART * low)).size:
        raise repeats.refusal(float(low[apart[0]]), float(high[apart[0]]))
    predicted = getattr(fit, "predicted", None)
    if "loss_high" in table and predicted is not None:
        tokens = np.minimum(found.tokens[0], repeats.unique * repeats.seen)
        columns = optimum.columns_of(fit.law, known, found.params[0], tokens, found.rounds[0], found.local_steps[0])
        table["loss_high"] = np.fmax(table["loss_high"], predicted(level=level, **columns)["high"].to_numpy())
