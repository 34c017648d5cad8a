"""What does a law say of a run of this size and length in this setting? By evaluation, whatever its form.

The columns of a run follow from its size, its tokens and the setting; a law that is no sum of powers of them (an
exponential of a power, a sum in a denominator, a size that counts embeddings) is asked here and searched by
:mod:`scalefed.allocation.search`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefed.allocation.budgets import Setting
from scalefed.allocation.search import Surface
from scalefed.laws import Law
from scalefed.laws.terms import Term, log_sum

Array = NDArray[np.float64]


def columns_of(
    law: Law, setting: Setting, params: ArrayLike, tokens: ArrayLike, rounds: ArrayLike, local_steps: ArrayLike
) -> dict[str, ArrayLike]:
    """The law's columns for runs of this size and length in a setting; all broadcast by numpy's rules."""
    known = _columns(setting, setting.given(), params, tokens, rounds, local_steps)
    return {name: known[name] for name in law.columns}


def columns_of_runs(law: Law, setting: Setting, *, params: ArrayLike, tokens: ArrayLike) -> dict[str, ArrayLike]:
    """The law's columns for runs of this size and length, with the rounds that they take in the setting."""
    size, length = np.asarray(params, dtype=float), np.asarray(tokens, dtype=float)
    local = np.asarray(np.nan if setting.local_steps is None else setting.local_steps, dtype=float)
    clients_per_round, batch = (getattr(setting, name) for name in ("clients_per_round", "batch_tokens"))
    step = (
        np.nan
        if clients_per_round is None or batch is None
        else np.asarray(clients_per_round, float) * np.asarray(batch, float)
    )
    return columns_of(law, setting, size, length, length / (step * local), local)


def evaluate(
    law: Law, values: Mapping[str, ArrayLike], setting: Setting, *, params: ArrayLike, tokens: ArrayLike
) -> Array:
    """The loss of runs of this size and length in a setting; values, params and tokens broadcast by numpy's rules.

    >>> from scalefed.laws import as_law
    >>> values = {"E": 1.0, "A": [8.0, 4.0], "a": 0.5, "B": 0.0, "b": 1.0}
    >>> evaluate(as_law("chinchilla").with_(fixed={"b": 1.0}), {**values, "B": 1e-9}, Setting(),
    ...          params=[4.0, 16.0], tokens=1.0).round(6).tolist()
    [5.0, 2.0]
    """
    columns = {k: np.asarray(v) for k, v in columns_of_runs(law, setting, params=params, tokens=tokens).items()}
    arrays = {name: np.asarray(value, dtype=float) for name, value in {**values, **law.fixed}.items()}
    return np.asarray(np.exp(log_sum(law.bound_terms, arrays, columns, law.positive)), dtype=np.float64)


def _columns(
    setting: Setting,
    given: Mapping[str, Array],
    params: ArrayLike,
    tokens: ArrayLike,
    rounds: ArrayLike,
    local_steps: ArrayLike,
) -> dict[str, ArrayLike]:
    trained = np.asarray(params) * setting.trained_share
    known: dict[str, ArrayLike] = {
        **given,
        "params": params,
        "params_total": params if setting.total is None else setting.total(params),
        "params_trained": trained,
        "tokens": tokens,
        "rounds": rounds,
        "local_steps": local_steps,
        "compute": setting.per_token(params) * np.asarray(tokens),
    }
    clients_per_round = np.asarray(known.get("clients_per_round", np.nan))
    known["bytes_sent"] = 2 * setting.bytes_per_value * trained * np.asarray(rounds) * clients_per_round
    known.setdefault("unique_tokens", tokens)  # every token is read once
    known["epochs"] = np.asarray(tokens) / np.asarray(known["unique_tokens"])
    return known


def why_not_powers(law: Law, setting: Setting, given: Mapping[str, Array]) -> str:
    """Why a law is no sum of powers of params, tokens and rounds in this setting; empty where it is one.

    Args:
        law: the law.
        setting: with the relations that the runs show.
        given: the columns that are held fixed.
    """
    for column, relation in (("params_total", setting.total), ("compute", setting.per_token)):
        if column in law.columns and relation is not None and not relation.is_power:
            return f"{column} is no power of params"
    known = set(given) - {"unique_tokens"}
    for term in law.bound_terms:
        if _moves(term, known) and (why := _not_a_power(term, known)):
            return why
    return ""


def _not_a_power(term: Term, known: set[str]) -> str:
    """Why a term is no product of powers, sums to positive powers and effective tokens; empty where it is."""
    if term.sign < 0:
        return f"{term.text or 'a term'} is subtracted"
    for part in term.parts:
        inner = any(_moves(factor, known) for factor in part.factors)
        if inner or any(atom.kind != "log" and not set(atom.columns) <= known for atom in part.atoms):
            return f"an exponent of {term.text or 'a term'} moves"
    for power in term.powers:
        if not any(_moves(inner, known) for inner in power.terms):
            continue
        if any(part.coefficient < 0 and not part.parameters for part in power.exponent):
            return f"{term.text or 'a term'} divides by a sum"
        if why := next((why for inner in power.terms if (why := _not_a_power(inner, known))), ""):
            return why
    return ""


def by_evaluation(
    law: Law, values: Mapping[str, Array], given: Mapping[str, Array], setting: Setting, log_round: Array
) -> tuple[Surface, Array]:
    """The law above its constant terms as a surface over log params and log tokens, and those terms, (s,).

    Args:
        law: the law.
        values: parameter -> (s,).
        given: column -> (s,), those that are held fixed.
        setting: the rest of what is fixed.
        log_round: (s,) log tokens of a round; nan where unknown.
    """
    known = {**values, **{name: np.full(len(log_round), value) for name, value in law.fixed.items()}}
    moving = tuple(term for term in law.bound_terms if _moves(term, given))
    still = tuple(term for term in law.bound_terms if not _moves(term, given))
    constant = np.zeros(len(log_round))
    for term in still:
        constant = constant + term.sign * np.exp(log_sum((replace(term, sign=1.0),), known, given, law.positive))

    def surface(n: Array, d: Array, rows: NDArray[np.intp]) -> Array:
        with np.errstate(all="ignore"):
            size, length = np.exp(n), np.exp(d)
            rounds = np.exp(d - log_round[rows, None])
            held = {name: value[rows, None] for name, value in given.items()}
            columns = _columns(setting, held, size, length, rounds, np.nan)
            columns |= {name: held[name] for name in held if name in ("local_steps", "rounds")}
            arrays = {name: np.asarray(columns[name], dtype=float) for name in law.columns}
            here = {name: value[rows, None] for name, value in known.items()}
            found = log_sum(moving, here, arrays, law.positive)
        return np.where(np.isfinite(found), found, np.inf)

    return surface, np.broadcast_to(constant, log_round.shape)


def _moves(term: Term, given: Collection[str]) -> bool:
    """Whether a term changes with what is not held fixed."""
    return any(set(atom.columns) - set(given) for part in term.all_parts() for atom in part.atoms)
