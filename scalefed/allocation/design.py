"""Which runs should be made next to narrow the optimal size, at a cost?

The question is the best size at one compute budget; its uncertainty, to first order, is ``g' M^-1 g``, with g the
gradient of log params at the optimum and M the information of all runs, both in the law's parameters (amplitudes in
logarithms). A new run at a candidate setting adds ``J J' / noise^2`` to M. Runs are picked greedily from a grid of
candidates under a total compute, averaged over bootstrap replicates of the parameters so that the choice does not
hang on the estimate, and then exchanged one by one while that helps.

Source: c-optimal design, Elfving (1952); exchange, Fedorov (1972); pseudo-Bayesian averaging, Atkinson, Donev and
Tobias 2007, "Optimum Experimental Designs, with SAS", chapters 12 and 18; greedy per gain and per gain over cost, the
better kept, Khuller, Moss and Naor (1999).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalefed.allocation import optimum
from scalefed.allocation.answers import FitLike
from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.cost import spent
from scalefed.allocation.defaults import question, skew_of, words_of
from scalefed.allocation.extrapolation import look, ranges_behind
from scalefed.errors import ConfigError, FitError
from scalefed.laws import Law
from scalefed.seeds import rng
from scalefed.units import grouped

Array = NDArray[np.float64]

DRAWS = 24  # replicates that a width is averaged over: time grows with them, scatter falls with their root
STEP = 1e-4  # of a central difference in standardised parameters: its error is of the order of its square
AHEAD = 10.0  # times the most expensive run: the budget that next runs are chosen for where none is named
PRIOR_SD = 3.0  # of log amplitudes and of exponents: so weak that it matters only where the runs say nothing


@dataclass(frozen=True, slots=True)
class Design:
    """What a choice is scored with.

    Attributes:
        gradient: (r, p) of log best params, one row a plausible parameter set, the estimate first.
        covariance: (r, p, p) from the runs made so far.
        information: (r, c, p) scaled Jacobian of each candidate.
        cost: (c,) FLOPs of each candidate.
    """

    gradient: Array
    covariance: Array
    information: Array
    cost: Array


def next_runs(
    fit: FitLike,
    *,
    compute: float,
    count: int,
    at: float | None = None,
    candidates: pd.DataFrame | None = None,
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
    seed: int = 0,
    columns: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """The runs that narrow the optimal size most for their compute.

    What the law needs of the setting and is not given is the median of the runs: new runs should narrow the answer in
    the middle of what was measured.

    Args:
        fit: a fit of a law in params and tokens; one that is not identified is allowed.
        compute: FLOPs for all new runs together.
        count: at most how many runs.
        at: the compute at which the best size is wanted; by default ten times the largest of the runs.
        candidates: settings to choose from, one row each with the law's columns; by default a grid over the range of
            the runs (a factor 4 beyond for params and tokens) with the clients per round and the skews that occur.
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
        level: coverage of the interval whose width is reported.
        seed: of the replicates that are averaged over.
        columns: values of other columns that the law needs.

    Returns:
        One row a run to make, best first: the candidates' columns, compute, ``seed`` (new for repeated settings),
        ``expected_width`` (log(high / low) of the best size once this row and those above are made) and
        ``width_now``.

    Raises:
        ConfigError: a budget or a count that is not positive, or candidates that cost more than the budget.
        FitError: the law cannot answer the question at all (no params or no tokens).

    The result is a plan for runs, not a promise: widths hold if the law does and the noise stays as it was.
    """
    words = words_of(locals(), "compute", "count", "at", "candidates", "level", "seed")
    if not (np.isfinite(compute) and compute > 0) or int(count) != count or count < 1:
        raise ConfigError(f"compute must be positive FLOPs and count a whole number from 1, got {compute}, {count}")
    table = grid(fit, compute) if candidates is None else candidates.reset_index(drop=True).copy()
    table["compute"] = spent(fit.runs, table)
    table = table[table["compute"] <= compute].reset_index(drop=True)
    if not len(table):
        raise ConfigError(
            f"no candidate run costs at most compute = {grouped(compute, 3)} FLOPs; raise it or give candidates="
        )
    _, setting, _ = question(fit.law, fit.runs, {**_defaults(fit.law, fit.runs, words), "compute": compute})
    look(fit.law, ranges_behind(fit), setting.given(), ())  # refuses what the runs cannot tell
    design = design_of(fit, table, at, words, seed)
    chosen = _choose(design, compute, int(count))
    order, widths, now = _order(design, chosen, level)
    scale = _calibration(fit, now, at, words, level)
    rows = table.iloc[order].reset_index(drop=True)
    rows["seed"] = _new_seeds(fit.runs, rows)
    rows["expected_width"] = widths * scale
    rows["width_now"] = now * scale
    return rows


def grid(fit: FitLike, compute: float, *, levels: int = 10) -> pd.DataFrame:
    """Candidate settings around the runs: params and tokens a factor 4 beyond, other columns as they occur.

    Args:
        fit: a fit with runs.
        compute: FLOPs that no candidate may exceed.
        levels: how many values of params and of tokens.
    """
    runs, law = fit.runs, fit.law
    axes: dict[str, Array] = {}
    for name in ("params", "tokens"):
        seen = runs[name].to_numpy(dtype=np.float64)
        axes[name] = np.geomspace(np.nanmin(seen), 4 * np.nanmax(seen), levels)
    held = [name for name in law.columns if name not in (*axes, "rounds", "compute", "skew")]
    for name in held:
        axes[name] = np.unique(runs[name].dropna().to_numpy(dtype=np.float64))[:6]
    names = list(axes)
    mesh = np.meshgrid(*axes.values(), indexing="ij")
    table = pd.DataFrame({name: part.ravel() for name, part in zip(names, mesh, strict=True)})
    if "skew" in law.columns:
        table = table.merge(_skews(runs), how="cross")
    table = table[spent(runs, table) <= compute].reset_index(drop=True)
    if "rounds" in law.columns:
        _, setting, _ = question(law, runs, _defaults(law, runs, {}) | {"compute": compute})
        step = setting.need("batch_tokens", "a law in rounds")
        local = table["local_steps"] if "local_steps" in table else setting.need("local_steps", "a law in rounds")
        table["rounds"] = table["tokens"] / (table["clients_per_round"] * local * step)
    return table


def _skews(runs: pd.DataFrame) -> pd.DataFrame:
    """Skews that occur, with their concentrations where those are known; at most six."""
    if "concentration" in runs and runs["concentration"].notna().any():
        levels = np.unique(runs["concentration"].dropna().to_numpy(dtype=np.float64))[:6]
        return pd.DataFrame({"concentration": levels, "skew": [skew_of(value, runs) for value in levels]})
    seen = np.unique(runs["skew"].dropna().to_numpy(dtype=np.float64))
    return pd.DataFrame({"skew": seen if len(seen) <= 6 else np.quantile(seen, np.linspace(0, 1, 4))})


def _defaults(law: Law, runs: pd.DataFrame, words: Mapping[str, Any]) -> dict[str, Any]:
    """The question's setting: as given, else the median of the runs for what the law needs."""
    full = {name: value for name, value in words.items() if value is not None}
    said = {"clients_per_round": {"participation"}, "skew": {"concentration"}}
    for name in law.columns:
        if name in Setting.__slots__ and name not in full and not said.get(name, set()) & set(full) and name in runs:
            full[name] = float(runs[name].median())
    return full


def _ask(fit: FitLike, values: Mapping[str, Array], at: float | None, words: Mapping[str, Any]) -> Array:
    """Log of the best params for parameter values, nan where nothing holds it."""
    runs = fit.runs
    budget = at if at is not None else AHEAD * float(np.nanmax(spent(runs)))
    _, setting, _ = question(fit.law, runs, {**_defaults(fit.law, runs, words), "compute": budget})
    found = optimum.minimise(fit.law, values, budget=Budget(compute=budget), setting=setting)
    return np.where(found.bounded, np.log(found.params), np.nan)


def _natural(law: Law, internal: Array) -> dict[str, Array]:
    """Parameter values from internal ones, (..., p): amplitudes are exponentiated."""
    return {
        name: np.exp(internal[..., i]) if name in law.positive else internal[..., i] for i, name in enumerate(law.free)
    }


def design_of(fit: FitLike, table: pd.DataFrame, at: float | None, words: Mapping[str, Any], seed: int) -> Design:
    """What every candidate run would tell about the answer, one row a replicate of the fit."""
    law, p = fit.law, len(fit.law.free)
    values = optimum.stack(law, fit.params, {name: fit.replicates[name].to_numpy(float) for name in fit.replicates})
    internal = np.stack([np.log(values[n]) if n in law.positive else values[n] for n in law.free], axis=1)
    if len(internal) > 1:
        picks = rng(seed, "next-runs").choice(len(internal) - 1, size=min(DRAWS, len(internal) - 1), replace=False)
        internal = internal[np.concatenate([[0], 1 + picks])]
    moves = np.concatenate([np.eye(p), -np.eye(p)]) * STEP
    shifted = _natural(law, (internal[:, None, :] + moves).reshape(-1, p))
    asked = _ask(fit, shifted, at, words).reshape(len(internal), 2, p)
    gradient: Array = (asked[:, 0] - asked[:, 1]) / (2 * STEP)
    usable = np.isfinite(gradient).all(1)
    if not usable.any():
        raise FitError(
            "no plausible parameters of this law give a best size at that compute, so no run can narrow it; "
            "fit another law or vary params and tokens apart"
        )
    noise = max(float(getattr(fit, "noise", 0.0)), 1e-4)

    def jacobian(frame: pd.DataFrame) -> Array:
        columns = {name: frame[name].to_numpy(dtype=np.float64) for name in law.columns}
        logs = np.log(law.predict(shifted, columns)).reshape(len(internal), 2, p, len(frame))
        found: Array = ((logs[:, 0] - logs[:, 1]).transpose(0, 2, 1) / (2 * STEP * noise))[usable]
        return found

    made = jacobian(fit.runs)
    covariance = np.linalg.inv(np.swapaxes(made, 1, 2) @ made + np.eye(p) / PRIOR_SD**2)
    return Design(
        gradient[usable],
        np.asarray(covariance, dtype=np.float64),
        jacobian(table),
        table["compute"].to_numpy(dtype=np.float64),
    )


def gains(design: Design, covariance: Array) -> tuple[Array, Array]:
    """(c,) mean log variance of the answer after each candidate, and (r,) the variance before."""
    pulled = np.einsum("rpq,rq->rp", covariance, design.gradient)
    before = np.einsum("rp,rp->r", pulled, design.gradient)
    moved = design.information @ covariance
    across = np.einsum("rcp,rp->rc", moved, design.gradient)
    along = 1 + np.einsum("rcp,rcp->rc", moved, design.information)
    after = before[:, None] - across**2 / along
    mean: Array = np.log(np.maximum(after, 1e-300)).mean(0)
    return mean, before


def with_one(design: Design, covariance: Array, index: int, sign: float = 1.0) -> Array:
    """Covariance with one candidate more (or, sign -1, one less): Sherman and Morrison."""
    row = design.information[:, index]
    moved = np.einsum("rpq,rq->rp", covariance, row)
    scale = sign / (1 + sign * np.einsum("rp,rp->r", moved, row))
    changed: Array = covariance - scale[:, None, None] * moved[:, :, None] * moved[:, None, :]
    return changed


def _choose(design: Design, compute: float, count: int) -> list[int]:
    """The best of several greedy choices, each improved by exchange."""
    best: tuple[float, list[int]] | None = None
    shares = (1.0, 4.0 / count, 2.0 / count, 1.0 / count)
    rules = [(0.0, share) for share in shares if share <= 1] + [(0.5, 1.0), (1.0, 1.0)]
    for power, share in rules:
        chosen = _exchange(design, _greedy(design, compute, count, power, share), compute)
        if chosen:
            value = value_of(design, chosen)
            if best is None or value < best[0]:
                best = (value, chosen)
    if best is None:
        raise ConfigError(f"no run fits a total of {grouped(compute, 3)} FLOPs; raise compute or lower count")
    return best[1]


def _greedy(design: Design, compute: float, count: int, power: float, share: float) -> list[int]:
    """Pick by gain / cost^power, no run above a share of the compute, room left for the cheapest to follow."""
    covariance, left, chosen = design.covariance, compute, []
    cheapest = float(design.cost.min())
    for pick in range(count):
        room = min(left - cheapest * (count - pick - 1), share * compute)
        open_ = design.cost <= max(room, min(left, cheapest))
        if not open_.any() or left < cheapest:
            break
        after, before = gains(design, covariance)
        gain = (np.log(before).mean() - after) / design.cost**power
        index = int(np.argmax(np.where(open_, gain, -np.inf)))
        covariance, left = with_one(design, covariance, index), left - float(design.cost[index])
        chosen.append(index)
    return chosen


def _exchange(design: Design, chosen: Sequence[int], compute: float, *, rounds: int = 3) -> list[int]:
    """Swap each run for the best affordable one, until nothing improves."""
    picked = list(chosen)
    for _ in range(rounds):
        changed = False
        for place in range(len(picked)):
            rest = picked[:place] + picked[place + 1 :]
            covariance = with_runs(design, rest)
            after, _ = gains(design, covariance)
            left = compute - float(design.cost[rest].sum())
            index = int(np.argmin(np.where(design.cost <= left * (1 + 1e-12), after, np.inf)))
            if after[index] < after[picked[place]] - 1e-9:
                picked[place], changed = index, True
        if not changed:
            break
    return picked


def with_runs(design: Design, chosen: Sequence[int]) -> Array:
    """Covariance with these candidates more."""
    covariance = design.covariance
    for index in chosen:
        covariance = with_one(design, covariance, index)
    return covariance


def value_of(design: Design, chosen: Sequence[int]) -> float:
    """Mean log variance of the answer after these candidates."""
    _, before = gains(design, with_runs(design, chosen))
    return float(np.log(before).mean())


def _order(design: Design, chosen: Sequence[int], level: float) -> tuple[list[int], Array, float]:
    """The runs with the most telling first, the width after each, and the width now."""
    reach = 2 * _normal(level)
    covariance, left, order, widths = design.covariance, list(chosen), [], []
    _, start = gains(design, covariance)
    while left:
        after, _ = gains(design, covariance)
        index = min(left, key=lambda candidate: float(after[candidate]))
        left.remove(index)
        covariance = with_one(design, covariance, index)
        order.append(index)
        widths.append(reach * float(np.exp(0.5 * np.log(gains(design, covariance)[1]).mean())))
    return order, np.array(widths), reach * float(np.exp(0.5 * np.log(start).mean()))


def _calibration(fit: FitLike, now: float, at: float | None, words: Mapping[str, Any], level: float) -> float:
    """Bootstrap width now over the first-order width now (1 where there are too few replicates)."""
    if len(fit.replicates) < 50:
        return 1.0
    values = optimum.stack(fit.law, fit.params, {name: fit.replicates[name].to_numpy(float) for name in fit.replicates})
    sizes = _ask(fit, values, at, words)[1:]
    if np.isnan(sizes).mean() > 0.01:
        return 1.0
    low, high = np.nanquantile(sizes, [(1 - level) / 2, (1 + level) / 2])
    return float((high - low) / now) if high > low else 1.0


def _new_seeds(runs: pd.DataFrame, rows: pd.DataFrame) -> Array:
    """Seeds after those of the runs, counted up where a setting is chosen again."""
    first = int(runs["seed"].max()) + 1 if "seed" in runs and runs["seed"].notna().any() else 0
    names = [name for name in rows.columns if name != "compute"]
    return np.asarray(rows.groupby(names, dropna=False).cumcount().to_numpy() + first, dtype=np.int64)


def _normal(level: float) -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2))
