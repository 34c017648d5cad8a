"""What should these clients train, given a fit of their pilot runs?

The functions here take a fit (anything with a law, its parameters, their replicates and the runs), fill in from the
runs what the question leaves out, and ask :mod:`scalefed.allocation.optimum`. Where the fit carries a link to success
counts, pass@k is predicted too, law and link replicates paired.
"""

from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scalefed.allocation import optimum
from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.cost import cost_of
from scalefed.allocation.defaults import question
from scalefed.allocation.optimum import Optimum, Solution
from scalefed.downstream.curve import PLAIN, Curve
from scalefed.downstream.link import Link
from scalefed.downstream.link import inverse as link_inverse
from scalefed.errors import ConfigError, FitError, nearest
from scalefed.laws import Law

Array = NDArray[np.float64]

_TURNS = 60
_NODES = 65  # tests/benchmarks/bench_optimum.py sweep: what nodes and splines leave
_NODES_A_DECADE = 16
_SWEEP_ROWS = 2**18  # questions solved at once: half a gigabyte of work arrays
_AGREED = 1e-10
ALIKE = 0.1  # two counts of compute that differ by less are told as one


class FitLike(Protocol):
    """What planning needs of a fit; an attribute ``link`` (a Link or None) is used where there is one."""

    @property
    def law(self) -> Law:
        """The fitted law."""

    @property
    def params(self) -> Mapping[str, float]:
        """Its free parameters."""

    @property
    def replicates(self) -> pd.DataFrame:
        """One row a bootstrap replicate, one column a free parameter."""

    @property
    def runs(self) -> pd.DataFrame:
        """The runs behind the fit."""


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
    sampled_tokens: float | None = None,
    flops: str | None = None,
    target: str = "loss",
    level: float = 0.95,
    columns: Mapping[str, float] | None = None,
) -> Optimum:
    """The size with the least loss (hence the best pass@k) at a total compute, with intervals.

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
        unique_tokens: different tokens over all clients (for laws that price repetition).
        sampled_tokens: tokens that the finished model will generate at 2 params FLOPs each, paid from ``compute``:
            for a target of pass@k, questions times k times tokens of an answer.
        flops: how compute is counted, in place of what the runs show: ``"6*params*tokens"``, or any sum of powers of
            params times tokens.
        target: "loss", or "pass_at_k" with a k, which needs a link; both have the same optimum (for a link that looks
            at size or tokens beside the loss, that of the loss).
        level: coverage of the intervals.
        columns: values of other columns that the law needs.

    Raises:
        FitError: the law cannot answer, or a value is missing that the runs do not settle.
        ConfigError: a number out of range.
    """
    _check_target(fit, target)
    return plan(
        fit,
        compute=compute,
        clients=clients,
        participation=participation,
        clients_per_round=clients_per_round,
        concentration=concentration,
        skew=skew,
        local_steps=local_steps,
        batch_tokens=batch_tokens,
        unique_tokens=unique_tokens,
        sampled_tokens=sampled_tokens,
        flops=flops,
        level=level,
        columns=columns,
    )


def plan(fit: FitLike, *, level: float = 0.95, **limits_and_setting: Any) -> Optimum:
    """The best run under any mix of limits, the binding ones named with their shadow prices.

    Args:
        fit: a fit of a law in params and tokens.
        level: coverage of the intervals.
        limits_and_setting: the limits, as in :class:`scalefed.allocation.budgets.Budget` (compute, compute_per_client,
            bytes_sent, bytes_per_client, memory, seconds with flops_per_second, bandwidth and latency, rounds, tokens,
            params, unique_tokens_per_client with epochs, sampled_tokens), and the setting as in :func:`optimal_size`
            with, beside it, bytes_per_value, trained_share (below 1 for LoRA), vocab and width_per_layer.
            ``local_steps="free"`` lets the planner choose it, for laws that say what local steps cost.

    Raises:
        FitError: the law cannot answer, or a value is missing that the runs do not settle.
        ConfigError: an unknown limit, or a number out of range.
    """
    _one_question(limits_and_setting)
    budget, setting, notes = question(fit.law, fit.runs, limits_and_setting)
    values = values_of(fit)
    found = optimum.minimise(fit.law, values, budget=budget, setting=setting)
    return _report(fit, values, found, setting, notes, level)


def least_compute(
    fit: FitLike,
    *,
    loss: float | None = None,
    pass_at_1: float | None = None,
    pass_at_k: float | None = None,
    k: int = 1,
    level: float = 0.95,
    **limits_and_setting: Any,
) -> Optimum:
    """The least compute, with its size and tokens, that reaches a target loss or pass@k.

    Args:
        fit: a fit of a law in params and tokens, with a link for a target in pass@k.
        loss: the target, nats per token; or one of
        pass_at_1: the target share of problems solved by one sample;
        pass_at_k: the same by ``k`` samples.
        k: samples a problem may take.
        level: coverage of the intervals; that of the compute stands in the notes.
        limits_and_setting: as in :func:`plan`, without compute.

    Raises:
        FitError: the target cannot be reached by any compute.
    """
    given = [name for name, v in (("loss", loss), ("pass_at_1", pass_at_1), ("pass_at_k", pass_at_k)) if v is not None]
    if len(given) != 1:
        raise ConfigError(f"give one target, loss=, pass_at_1= or pass_at_k= with k=; got {given or 'none'}")
    _one_question(limits_and_setting)
    budget, setting, notes = question(fit.law, fit.runs, limits_and_setting)
    values = values_of(fit)
    if loss is not None:
        goal = np.full(len(next(iter(values.values()))), loss)
        found = optimum.least_compute(fit.law, values, loss=goal, budget=budget, setting=setting)
    else:
        share = float(pass_at_k if pass_at_k is not None else pass_at_1 or 0.0)
        goal, found = _least_for_passes(fit, values, share, k, budget, setting)
    if not np.isfinite(found.compute[0]):
        floor = float(found.loss[0] - found.excess[0])
        raise FitError(
            f"no compute reaches loss {goal[0]:.4g}: the fitted law ends at {floor:.4g} (or at what the other limits "
            "allow); ask for a higher loss"
        )
    low, high = np.quantile(found.compute, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    notes = (*notes, f"compute {found.compute[0]:.4g} FLOPs [{low:.4g}, {high:.4g}]")
    return replace(_report(fit, values, found, setting, notes, level), regret=np.nan)


def optimal_sizes(
    fit: FitLike, *, compute: ArrayLike, level: float = 0.95, intervals: bool = True, **setting_words: Any
) -> pd.DataFrame:
    """A sweep: one row a budget with params, tokens, rounds, loss and their low and high.

    Answers are smooth in log compute, so beyond some sixty budgets they are solved at nodes, sixteen a decade, and
    interpolated by cubic splines: sizes to 1e-9, ends of intervals to 0.2% (their replicates make them a little rough).

    As in :func:`optimal_size`, the ends of ``loss`` are the band of a run that is made, the others those of the best
    run over the replicates; they are NaN where the fit has no replicates.

    Args:
        fit: a fit of a law in params and tokens.
        compute: (q,) FLOPs.
        level: coverage of the intervals.
        intervals: False leaves the replicates out, for very many budgets.
        setting_words: as in :func:`optimal_size`.

    Raises:
        FitError: as :func:`optimal_size`.
    """
    budgets = np.atleast_1d(np.asarray(compute, dtype=float))
    words = {**setting_words, "level": level, "intervals": intervals}
    if intervals and (nodes := _nodes(budgets, setting_words)) is not None:
        return _between(_sweep(fit, nodes, **words), budgets)
    size = max(1, _SWEEP_ROWS // (1 + len(fit.replicates))) if intervals else len(budgets)
    return pd.concat(
        [_sweep(fit, budgets[i : i + size], **words) for i in range(0, max(len(budgets), 1), max(size, 1))],
        ignore_index=True,
    )


def _nodes(budgets: Array, setting: Mapping[str, Any]) -> Array | None:
    """Budgets between which answers are interpolated, where that is cheaper than to ask them all; else None."""
    if len(budgets) <= _NODES or not (np.isfinite(budgets) & (budgets > 0)).all():
        return None
    if any(np.ndim(value) for name, value in setting.items() if name != "columns"):
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


def _sweep(fit: FitLike, budgets: Array, *, level: float, intervals: bool, **setting_words: Any) -> pd.DataFrame:
    """Every budget solved for the estimate and, with intervals, for all replicates."""
    budget, setting, _ = question(fit.law, fit.runs, {**setting_words, "compute": budgets})
    values = {name: series[: None if intervals else 1, None] for name, series in values_of(fit).items()}
    found = optimum.minimise(fit.law, values, budget=budget, setting=setting)
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
        band = predict(level=level, **optimum.columns_of(fit.law, setting, *best))
        table["loss_low"], table["loss_high"] = band["low"].to_numpy(), band["high"].to_numpy()
    return pd.DataFrame(table)


def values_of(fit: FitLike) -> dict[str, Array]:
    """Parameter -> (1 + b,): the estimate first, then the bootstrap replicates."""
    table = fit.replicates.to_numpy(dtype=float)
    return optimum.stack(fit.law, fit.params, {str(name): table[:, i] for i, name in enumerate(fit.replicates.columns)})


def _report(
    fit: FitLike, values: Mapping[str, Array], found: Solution, setting: Setting, notes: tuple[str, ...], level: float
) -> Optimum:
    best = optimum.summarise(fit.law, values, found, setting=setting, level=level)
    best = replace(best, notes=(*best.notes, *notes, *_exact(fit.runs, setting, best), *_distance(fit.runs, best)))
    if (predict := getattr(fit, "predict", None)) is not None:
        band = predict(level=level, **optimum.columns_at(fit.law, found, setting)).iloc[0]
        best = replace(best, loss_low=float(band["low"]), loss_high=float(band["high"]))
    link = getattr(fit, "link", None)
    return best if link is None else _with_link(fit, link, values, found, setting, best)


def _with_link(
    fit: FitLike, link: Link, values: Mapping[str, Array], found: Solution, setting: Setting, best: Optimum
) -> Optimum:
    """Pass@k at the best run: every link replicate at the loss of a law replicate."""
    ks = (1, 10, 100)
    here = optimum.columns_at(fit.law, found, setting)
    losses = fit.law.predict(values, here)
    paired = losses[1:] if len(losses) > 1 else losses
    paired = np.resize(paired, len(link.replicates))[:, None]
    draws = link.draw(paired, ks, covariates=here)[:, 0, :]
    point = link.predict(best.loss, ks, covariates=here)["estimate"].to_numpy(float)
    low, high = np.quantile(draws, [(1 - best.level) / 2, (1 + best.level) / 2], axis=0)
    table = {
        k: (float(p), min(float(a), float(p)), max(float(b), float(p)))
        for k, p, a, b in zip(ks, point, low, high, strict=True)
    }
    one = table[1]
    return replace(best, pass_at_k=table, pass_at_1=one[0], pass_at_1_low=one[1], pass_at_1_high=one[2])


def _least_for_passes(
    fit: FitLike, values: Mapping[str, Array], share: float, k: int, budget: Budget, setting: Setting
) -> tuple[Array, Solution]:
    """The loss that solves this share of the problems, and the least compute for it.

    Where the link looks at columns beside the loss, the loss wanted depends on the run that reaches it: both are found
    in turn, from the middle of the runs, until they agree.
    """
    rows = len(next(iter(values.values())))
    curves = stacked_curves(attached_link(fit), rows)
    plain = replace(curves, theta=curves.theta[:, :PLAIN], covariates=None)
    spent = np.ones(rows)
    for turn in range(_TURNS):
        try:
            goal = link_inverse(plain, share, k)
        except FitError:
            if turn == 0:
                raise
            break
        found = optimum.least_compute(fit.law, values, loss=goal, budget=budget, setting=setting)
        reached = np.isfinite(found.compute)
        moved, spent = np.log(found.compute[reached] / spent[reached]), found.compute
        if curves.covariates is None or not reached[0] or np.abs(moved).max() < _AGREED:
            return goal, found
        here = optimum.columns_of(fit.law, setting, found.params, found.tokens, found.rounds, found.local_steps)
        offset = curves.offset({name: np.reshape(value, (-1, 1)) for name, value in here.items()})
        plain = replace(plain, theta=np.hstack([curves.theta[:, :1] + offset, plain.theta[:, 1:]]))
    raise FitError(
        f"no run agrees with the loss that pass@{k} = {share:g} needs: size and tokens count for more beside the loss "
        "than the loss itself; fit the link without them"
    )


def stacked_curves(link: Link, rows: int) -> Curve:
    """The link's estimate, then its replicates, as many as there are rows."""
    others = np.resize(link.replicates.theta, (rows - 1, link.replicates.theta.shape[1]))
    return replace(link.curve, theta=np.concatenate([link.curve.theta, others]))


def attached_link(fit: FitLike) -> Link:
    """The fit's link from loss to pass@k.

    Raises:
        FitError: there is none.
    """
    link = getattr(fit, "link", None)
    if not isinstance(link, Link):
        raise FitError(
            "this fit knows no pass@k: fit a link, fit.with_link(load_counts(runs)), or scalefed fit --passk"
        )
    return link


def check_words(words: Mapping[str, Any]) -> None:
    """Refuse what :func:`optimal_size` does not know, and a question without its budget.

    Raises:
        ConfigError: naming the nearest word, or the plan for other limits.
    """
    allowed = [name for name in signature(optimal_size).parameters if name != "fit"]
    for name in words:
        if name not in allowed:
            more = "; other limits are for fit.plan(...)" if name in Budget.__slots__ else ""
            raise ConfigError(f"an optimal size has no {name!r}; {nearest(name, allowed)}{more}")
    if "compute" not in words:
        raise ConfigError("an optimal size needs compute=..., FLOPs of all clients; other limits are for fit.plan(...)")


def _one_question(words: Mapping[str, Any]) -> None:
    """Refuse arrays where one answer is asked for."""
    for name, value in words.items():
        if not isinstance(value, (str, Mapping)) and np.ndim(value) > 0:
            raise ConfigError(f"{name} must be one number here; fit.optimal_sizes(compute=[...]) takes many budgets")


def _check_target(fit: FitLike, target: str) -> None:
    if target == "loss":
        return
    if not target.startswith("pass_at_") or not target.removeprefix("pass_at_").isdigit():
        raise ConfigError(f"target must be 'loss' or 'pass_at_k' with a number for k, got {target!r}")
    attached_link(fit)


def _exact(runs: pd.DataFrame, setting: Setting, best: Optimum) -> tuple[str, ...]:
    """What the answer costs with output layer and attention counted, where the runs tell that and it differs."""
    if "compute_exact" not in runs or not best.params > 0:
        return ()
    try:
        ratio = cost_of(runs, "compute_exact").per_token(best.params) / setting.per_token(best.params)
    except FitError:
        return ()
    if abs(ratio - 1) < ALIKE:
        return ()
    return (f"with output layer and attention counted (compute_exact) this run takes {ratio:.2g} times its compute",)


def _distance(runs: pd.DataFrame, best: Optimum) -> tuple[str, ...]:
    """How far beyond the runs the answer lies."""
    notes = []
    for name in ("params", "tokens"):
        if name in runs and len(runs):
            seen = runs[name].to_numpy(dtype=np.float64)
            value, low, high = getattr(best, name), float(np.nanmin(seen)), float(np.nanmax(seen))
            if value > 1.001 * high:
                notes.append(f"{name} {value:.3g} is {value / high:.2g} times the largest of the runs ({high:.3g})")
            elif value < 0.999 * low:
                notes.append(f"{name} {value:.3g} is below the smallest of the runs ({low:.3g})")
    return tuple(notes)
