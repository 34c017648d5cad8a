"""What does a question leave out, and what do the runs say about it? One rule, for Python, shell, charts and page.

What a question needs and does not say is as in the runs, where they agree (for local steps and tokens of a step, as in
most of them). Else clients are taken to be alike (skew 0), and all clients that the question names to train in every
round. Every answer tells in a note what was taken so; what none of this settles is refused by name.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.cost import cost_from, cost_of, power_sum
from scalefed.allocation.program import ROUND_COLUMNS
from scalefed.errors import ConfigError, FitError, nearest
from scalefed.laws import Law
from scalefed.runs.schema import COLUMNS as SCHEMA
from scalefed.units import grouped

Array = NDArray[np.float64]

LIMITS = Budget.__slots__
"""What limits a run; see :class:`scalefed.allocation.budgets.Budget`."""
SETTING = ("participation", "concentration", "flops", "inner_state", *(
    name for name in Setting.__slots__ if name not in ("cost", "exact", "total")
))  # fmt: skip
"""What is held fixed; see :class:`scalefed.allocation.budgets.Setting` and :func:`planning.optimal_size`."""
_LIMITED_BY_ROUNDS = {"bytes_sent", "bytes_per_client", "seconds", "rounds"}
_LIMITED_BY_CLIENTS = {"compute_per_client", "bytes_per_client", "unique_tokens_per_client"}
_GOES_WITH: Mapping[str, tuple[str, ...]] = {
    "flops_per_second": ("seconds",),
    "bandwidth": ("seconds",),
    "latency": ("seconds",),
    "epochs": ("unique_tokens_per_client",),
    "vocab": ("memory",),
    "width_per_layer": ("memory",),
    "bytes_per_value": ("memory", "bytes_sent", "bytes_per_client", "seconds"),
}
"""Words that say something only beside another."""
_TEXTS = ("flops", "inner_state", "columns")
_COUNTED = ("clients", "clients_per_round", "local_steps")
_HINTS = {
    "skew": "; 0 is iid, 1 disjoint, or give concentration=... of a Dirichlet partition",
    "participation": "; a quarter is 0.25",
}
_IID = 0.02
"""Skews that differ by less are chance: iid clients measure a skew near zero, each deal another."""


OF_A_SIZE = ("compute", "sampled_tokens", *(
    name for name in SETTING if name not in ("bytes_per_value", "trained_share", "vocab", "width_per_layer")
))  # fmt: skip
"""What the question for a best size may hold; the other words are for a plan."""
OF_NEXT_RUNS = tuple(name for name in OF_A_SIZE if name not in ("compute", "sampled_tokens", "inner_state"))


def check_words(words: Iterable[str], allowed: Sequence[str] = (*LIMITS, *SETTING)) -> None:
    """Refuse words that no question has, such as a person may write them in a shell.

    Args:
        words: names of limits and settings.
        allowed: those that the question at hand may have.

    Raises:
        ConfigError: naming the nearest word.
    """
    for name in words:
        if name not in allowed:
            kind = "this question takes" if name in (*LIMITS, *SETTING) else "there is"
            raise ConfigError(f"{kind} no limit or setting {name!r}; {nearest(name, allowed)}")


def words_of(call: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """The words of a question, from the ``locals()`` of a function just begun; the fit and ``but`` left out."""
    return {name: value for name, value in call.items() if name not in ("fit", *but)}


def question(law: Law, runs: pd.DataFrame, words: Mapping[str, Any]) -> tuple[Budget, Setting, tuple[str, ...]]:
    """Split keywords into limits and setting, and fill the setting from the runs.

    Returns:
        The budget, the setting, and notes on what was filled in.

    Raises:
        ConfigError: an unknown keyword, or two that say the same.
        FitError: something is missing that the runs do not settle.
    """
    words = {name: value for name, value in words.items() if value is not None}
    check_words(words)
    _check_effect(words)
    words = {name: _number(name, value) for name, value in words.items()}
    columns, _ = columns_and_texts(law, runs, words)
    budget = Budget(**{name: value for name, value in words.items() if name in LIMITS})
    known = {name: value for name, value in words.items() if name in Setting.__slots__}
    known["columns"] = columns
    needed = set(law.columns)
    notes = [*_participants(known, words, runs, needed, budget), *_skew(known, words, runs, needed)]
    if "unique_tokens" in needed and "unique_tokens" not in known:
        notes += _text(known, budget)
    in_rounds = bool(needed & ROUND_COLUMNS or set(budget.names) & _LIMITED_BY_ROUNDS)
    if known.get("local_steps") == "free":
        del known["local_steps"]
    elif "local_steps" not in known and (usual := _common(_known(runs, "local_steps"))) is not None:
        known["local_steps"] = usual
        if in_rounds:
            notes.append(f"local_steps = {grouped(usual, 6)}, as in the runs")
    notes += _relations(known, words, law, runs)
    if "batch_tokens" not in known and (usual := _batch_tokens(runs)) is not None:
        known["batch_tokens"] = usual
        if in_rounds or "memory" in budget.names:
            notes.append(f"batch_tokens = {grouped(usual, 6)}, as in the runs")
    return budget, Setting(**known), tuple(notes)


def columns_and_texts(
    law: Law, runs: pd.DataFrame, words: Mapping[str, Any]
) -> tuple[dict[str, ArrayLike], dict[str, str]]:
    """The other columns that a question names: those of numbers, and those of texts.

    Raises:
        ConfigError: a column that neither law nor runs nor the run log know, or a text where a number belongs.
    """
    given = {**(words.get("columns") or {})}
    if (state := words.get("inner_state")) is not None:
        given["inner_state"] = state
    known = {*law.columns, *map(str, runs.columns), *SCHEMA}
    texts = {}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"there is no column {name!r}; {nearest(name, known)}")
        wants_text = name in SCHEMA and SCHEMA[name].dtype == "str"
        if isinstance(value, str) != wants_text:
            raise ConfigError(f"{name} must be a {'text' if wants_text else 'number'}, got {value!r}")
        if isinstance(value, str):
            texts[name] = value
    return {name: value for name, value in given.items() if name not in texts}, texts


def _number(name: str, value: Any) -> Any:
    """A word's number or numbers; what is no number is as it was.

    Raises:
        ConfigError: neither a number nor a word that is known, or less than one of what is counted.
    """
    if name in _TEXTS or (isinstance(value, str) and value == "free"):
        return value
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be a number, got {value!r}{_HINTS.get(name, '')}") from error
    if np.asarray(value).dtype.kind == "b":
        raise ConfigError(f"{name} must be a number, got {value!r}")
    if name in _COUNTED and np.any((numbers > 0) & (numbers < 1)):
        raise ConfigError(f"{name} must be at least 1, got {numbers}")
    return float(numbers) if isinstance(value, str) else value


def _check_effect(words: Mapping[str, Any]) -> None:
    """Refuse a word that says nothing without another.

    Raises:
        ConfigError: naming both.
    """
    for name, others in _GOES_WITH.items():
        if name in words and not any(other in words for other in others):
            raise ConfigError(f"{name} changes nothing here: it goes with a limit on {' or '.join(others)}")


def _relations(known: dict[str, Any], words: Mapping[str, Any], law: Law, runs: pd.DataFrame) -> list[str]:
    """Fill in what a token costs and what embeddings add, as the runs show it; in words where that is not as usual."""
    notes = []
    both = {"params", "params_total"} <= set(runs.columns)
    if "params_total" in law.columns and both:
        known["total"] = power_sum(*_pair(runs, "params", "params_total"))
    elif "params_total" in law.columns and "params_total" in runs.columns:
        notes.append("params counts all parameters, embeddings too: the runs do not have both counts")
    if "compute_exact" in words and "compute_exact" in runs.columns:
        known["exact"] = cost_of(runs, "compute_exact").per_token
    if (formula := words.get("flops")) is not None:
        cost = cost_from(formula)
    elif known.get("trained_share", 1.0) != 1.0:
        return notes  # (4 + 2 q) params, as the question says
    else:
        only_total = "params" not in runs.columns and "params_total" in runs.columns
        cost = cost_of(runs.rename(columns={"params_total": "params"}) if only_total else runs)
    if cost.note:
        known["cost"] = cost.per_token
        notes.append(cost.note)
    return notes


def _pair(runs: pd.DataFrame, first: str, second: str) -> tuple[Array, Array]:
    """Two columns where both are positive.

    Raises:
        FitError: nowhere.
    """
    x, y = (runs[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in (first, second))
    known = np.isfinite(x * y) & (x > 0) & (y > 0)
    if not known.any():
        raise FitError(f"no run has both {first} and {second}, which this law's answer needs; add them")
    return x[known], y[known]


def _participants(
    known: dict[str, Any], words: Mapping[str, Any], runs: pd.DataFrame, needed: set[str], budget: Budget
) -> list[str]:
    """Fill in clients and clients per round, in words where they were not given."""
    share, limits, notes = words.get("participation"), set(budget.names), []
    by_clients = bool(needed & {"clients", "participation"} or limits & _LIMITED_BY_CLIENTS or share is not None)
    by_cohort = bool(needed & {"clients_per_round", "participation"} or limits & _LIMITED_BY_ROUNDS)
    if "clients" not in known and (only := _only(runs, "clients")) is not None:
        if not np.any(np.asarray(known.get("clients_per_round", 0.0)) > only):
            known["clients"] = only
            notes += [f"clients = {grouped(only, 6)}, as in the runs"] if by_clients else []
    if share is not None:
        if not np.all((np.asarray(share) > 0) & (np.asarray(share) <= 1)):
            raise ConfigError(f"participation must be in (0, 1], got {share}")
        if "clients_per_round" in known:
            raise ConfigError("give participation or clients_per_round, not both")
        if "clients" not in known:
            raise ConfigError("participation is a share of clients; give clients=... too, or clients_per_round=...")
        known["clients_per_round"] = np.asarray(share, dtype=float) * np.asarray(known["clients"], dtype=float)
        if np.any(known["clients_per_round"] < 1 - 1e-9):
            raise ConfigError(
                f"participation {share} of {known['clients']} clients is less than one client a round; raise either"
            )
    if "clients_per_round" in known:
        return notes
    only = _only(runs, "clients_per_round")
    if only is not None and np.all(np.asarray(known.get("clients", only)) >= only):
        known["clients_per_round"] = only
        notes += [f"clients_per_round = {grouped(only, 6)}, as in the runs"] if by_cohort else []
    elif not by_cohort:
        return notes
    elif words.get("clients") is not None:
        known["clients_per_round"] = known["clients"]
        notes.append("clients_per_round = clients: all of them train in every round, as no participation is given")
    else:
        seen = (
            sorted(map(float, runs["clients_per_round"].unique())) if "clients_per_round" in runs else "none recorded"
        )
        raise FitError(
            "this question depends on how many clients train in a round; give clients_per_round=..., or clients=... "
            f"and participation=... (runs: {seen})"
        )
    return notes


def _text(known: dict[str, Any], budget: Budget) -> list[str]:
    """Fill in how many different tokens there are, in words where that was not given either."""
    if budget.unique_tokens_per_client is None:
        return ["unique_tokens = tokens: every token is read once, as the question does not say how much text there is"]
    if "clients" in known:
        known["unique_tokens"] = np.asarray(budget.unique_tokens_per_client, float) * np.asarray(
            known["clients"], float
        )
    return []


def _skew(known: dict[str, Any], words: Mapping[str, Any], runs: pd.DataFrame, needed: set[str]) -> list[str]:
    """Fill in skew, in words where it was not given."""
    concentration = words.get("concentration")
    if concentration is not None and "skew" in known:
        raise ConfigError("give concentration or skew, not both")
    if concentration is not None:
        known["skew"] = skew_of(concentration, runs)
        return []
    if "skew" in known or "skew" not in needed:
        return []
    if (only := _only(runs, "skew", tolerance=_IID)) is not None:
        known["skew"] = only
        return [f"skew = {grouped(only, 3)}, as in the runs"]
    known["skew"] = 0.0
    return ["skew = 0: the clients are taken to be alike (iid), as neither skew nor concentration is given"]


def skew_of(concentration: float, runs: pd.DataFrame) -> float:
    """The skew that a Dirichlet concentration gave in the runs, interpolated between the measured ones.

    Raises:
        ConfigError: a concentration that is not positive.
        FitError: outside what the runs measured.
    """
    if not concentration > 0:
        raise ConfigError(f"concentration must be positive (infinity is iid), got {concentration}")
    if not {"concentration", "skew"} <= set(runs.columns):
        if np.isinf(concentration):
            return 0.0
        raise FitError("the runs do not record concentration and skew together; give skew=... (0 iid .. 1 disjoint)")
    seen, skews = (runs[name].to_numpy(float) for name in ("concentration", "skew"))
    known = ~(np.isnan(seen) | np.isnan(skews))
    levels, group = np.unique(seen[known], return_inverse=True)
    medians = np.array([np.median(skews[known][group == i]) for i in range(len(levels))])
    if np.isinf(concentration) and not np.isinf(levels).any():
        return 0.0
    # 1 / (1 + concentration) maps iid to 0 and one family a client to 1, nearly linear in skew
    position = 1 / (1 + levels)
    order, wanted = np.argsort(position), 1 / (1 + concentration)
    if not len(position) or not position.min() - 1e-9 <= wanted <= position.max() + 1e-9:
        raise FitError(
            f"concentration {grouped(concentration, 6)} lies outside those of the runs ({levels.tolist()}), so its "
            "skew was never measured; give skew=..., or sf.partition(...).skew of your clients"
        )
    return float(np.interp(wanted, position[order], medians[order]))


def _only(runs: pd.DataFrame, name: str, *, tolerance: float = 0.0) -> float | None:
    """The value of a column if all runs share it."""
    values = _known(runs, name)
    return float(np.median(values)) if len(values) and np.ptp(values) <= tolerance else None


def _common(values: Array) -> float | None:
    """The most common value."""
    if not len(values):
        return None
    levels, counts = np.unique(values, return_counts=True)
    return float(levels[np.argmax(counts)])


def _known(runs: pd.DataFrame, name: str) -> Array:
    if name not in runs:
        return np.empty(0)
    values: Array = runs[name].to_numpy(dtype=np.float64)
    known: Array = values[~np.isnan(values)]
    return known


def _batch_tokens(runs: pd.DataFrame) -> float | None:
    if {"batch_size", "sequence_length"} <= set(runs.columns):
        size = runs["batch_size"].to_numpy(dtype=np.float64) * runs["sequence_length"].to_numpy(dtype=np.float64)
        return _common(size[~np.isnan(size)])
    parts = ["tokens", "rounds", "clients_per_round", "local_steps"]
    if "batch_tokens" in runs or not set(parts) <= set(runs.columns):
        return _common(_known(runs, "batch_tokens"))
    tokens, rounds, clients_per_round, steps = (runs[name].to_numpy(dtype=np.float64) for name in parts)
    found = tokens / (rounds * clients_per_round * steps)
    return float(np.nanmedian(found)) if not np.isnan(found).all() else None
