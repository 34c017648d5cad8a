"""Which laws could these runs follow? A few named ones, by the columns that vary, and how well each foretells.

``law="auto"`` fits each of them, holds out the runs' own largest (by scale, by params, by tokens), and weighs the laws
by what they missed. The best single one is the fit's law; the others are its alternatives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalefed.errors import ConfigError, DataError, nearest
from scalefed.fitting.backtest import Folds
from scalefed.fitting.data import SAME, FitData, adapt
from scalefed.fitting.initialisation import GlobalFit
from scalefed.fitting.problem import Problem
from scalefed.fitting.weights import stacking_weights
from scalefed.laws import LAWS, Law
from scalefed.laws.parser import MAY_BE_ZERO
from scalefed.runs.tables import likely_columns, some_names

_USUAL, _CLEARLY = 0.5, 0.5  # the usual weight of runs, and how much less another must miss to be taken
_DECIDING = ("clients_per_round", "skew")  # the columns that bring laws in which they have a term
_FINITE = {  # columns of a law of finite text and population, and what cannot be told where they have one value
    "clients": ("k", "u"), "local_steps": ("l", "y"), "skew": ("u",), "clients_per_round": (), "unique_tokens": (),
}  # fmt: skip
_COHORT = ("clients_per_round", "clients")
_APART = 0.05  # of what a term varies by that the terms beside it leave over: with less it cannot be told from them
_RUNS_A_PARAMETER = 3  # that such a law needs: with fewer, nothing could be held out for the others either
_LEAST_WEIGHT = 0.02  # of a law that is kept beside the best one


def candidates(frame: pd.DataFrame) -> tuple[Law, ...]:
    """The named laws to try, the simplest first.

    Args:
        frame: the runs, under the run log's column names.

    Raises:
        DataError: without params and tokens there is nothing to choose from.

    >>> runs = pd.DataFrame({"params": [1e6, 2e6], "tokens": [1e8, 2e8], "clients_per_round": 4})
    >>> [law.name for law in candidates(runs)]
    ['chinchilla', 'coupled']
    """
    missing = [name for name in ("params", "tokens") if name not in frame.columns]
    if missing:
        guess = likely_columns(frame.columns) or {missing[0]: "its name"}
        raise DataError(
            f"law='auto' chooses among laws of params and tokens, but the runs have no {' and no '.join(missing)}, "
            f"only {some_names(frame.columns)}; say which it is by columns={guess}, or give a law of your own such as "
            "'E + A/params^a'"
        )
    finite = _of_finite_text(frame)
    return (*_usual(frame), *([finite] if finite else []))


def _usual(frame: pd.DataFrame) -> tuple[Law, ...]:
    """The candidates for fresh text in a population that does not matter, or for repeats without a federation."""
    if _varies(frame, "clients_per_round"):
        skewed = _varies(frame, "skew")
        third = "federated-capacity" if skewed else "federated-steps"
        names = ["federated", third, "federated-coupled", "federated-capacity-steps"]
    elif _repeats(frame):
        names = ["chinchilla", "coupled", "data-constrained"]
    else:
        names = ["chinchilla", "coupled"]
    return tuple(LAWS[name] for name in names)


def _of_finite_text(frame: pd.DataFrame) -> Law | None:
    """The law of repeats or population beside cohorts, where they vary and the runs are enough; what is loose is 0."""
    if not all(_is_known(frame, name) for name in _FINITE) or not _varies(frame, "clients_per_round"):
        return None
    share = frame["clients_per_round"] / frame["clients"]
    population = _varies(frame, "clients") and float(np.ptp(share)) > 0.0  # else it is the cohort again
    if not population and not _repeats(frame):
        return None
    crossed = population and _crossed(frame)
    repeated = "federated-cross-device" if crossed else "federated-data-constrained"
    law = LAWS[repeated if _repeats(frame) else "federated-population"]
    same = {"clients": not population, "local_steps": not _varies(frame, "local_steps"), "skew": not crossed}
    loose = {parameter for name, constant in same.items() if constant for parameter in _FINITE[name]}
    law = law.with_(fixed={name: 0.0 for name in law.parameters if name in loose})
    return law if len(frame) >= _RUNS_A_PARAMETER * len(law.free) else None


def _is_known(frame: pd.DataFrame, name: str) -> bool:
    """Whether every run has a number there, above 0 where a law takes its logarithm."""
    if name not in frame.columns or not pd.api.types.is_numeric_dtype(frame[name]):
        return False
    return bool(np.isfinite(frame[name]).all() and (name in MAY_BE_ZERO or (frame[name] > 0).all()))


def _crossed(frame: pd.DataFrame) -> bool:
    """Whether skewed clients came from populations of several sizes, for which size and cohort do not stand."""
    skew = np.where(frame["skew"] > frame["skew"].min() + SAME["skew"], frame["skew"], 0.0) ** 2
    params, cohort, clients = (np.log(frame[name].to_numpy(float)) for name in ("params", *_COHORT))
    beside, term = skew[:, None] * np.stack([np.ones(len(frame)), params, cohort], axis=1), skew * clients
    left = term - beside @ np.linalg.lstsq(beside, term, rcond=None)[0]
    return bool(np.linalg.norm(left) > _APART * np.linalg.norm(skew * np.ptp(clients)))


def bound_columns(frame: pd.DataFrame) -> tuple[str, ...]:
    """The columns for which candidates have a term where they vary, and which these runs have at one value only.

    >>> bound_columns(pd.DataFrame({"clients_per_round": [4, 4], "skew": [0.0, 0.5]}))
    ('clients_per_round',)
    """
    finite = _of_finite_text(frame)
    own = LAWS[finite.name].columns if finite else ()
    named = dict.fromkeys((*_DECIDING, *(name for name in _FINITE if name in own)))
    return tuple(name for name in named if name in frame.columns and not _varies(frame, name))


def beside(law: Law, frame: pd.DataFrame) -> Law | None:
    """The richest candidate of the same columns to hold a named law against, or the next one where it is that itself.

    What is fixed or tied in the named law is so in the other, where it has parameters of that name, meaning and unit.
    """
    if not {"params", "tokens"} <= set(frame.columns):
        return None
    known = [adapt(one, frame)[0] for one in reversed(_usual(frame))]
    other = next((one for one in known if one.name != law.name and set(one.columns) == set(law.columns)), None)
    if other is None:
        return None
    same = {name for name in other.parameters if _what(law, name) == _what(other, name)}
    fixed = {name: value for name, value in law.fixed.items() if name in same}
    ties = {name: to for name, to in law.ties.items() if {name, to} <= same}
    return other.with_(fixed=fixed, ties=ties)


def _what(law: Law, parameter: str) -> tuple[str | None, str | None]:
    return law.meanings.get(parameter), law.units.get(parameter)


def _own(law: Law, asked: Any) -> dict[str, Any]:
    return {name: value for name, value in (asked or {}).items() if name in law.parameters}


def constrained(
    laws: Sequence[Law], *, fixed: Mapping[str, Any] | None, bounds: Mapping[str, Any] | None, ties: Any
) -> tuple[Law, ...]:
    """The laws with what was asked of their parameters, each as far as it has them.

    Raises:
        ConfigError: a parameter that no law has.
    """
    known = {parameter for law in laws for parameter in law.parameters}
    for name in (*(fixed or {}), *(bounds or {}), *(ties or {})):
        if name not in known:
            tried = ", ".join(law.name for law in laws)
            raise ConfigError(f"none of the laws {tried} has a parameter {name!r}; {nearest(str(name), sorted(known))}")

    return tuple(law.with_(fixed=_own(law, fixed), bounds=_own(law, bounds), ties=_own(law, ties)) for law in laws)


def _varies(frame: pd.DataFrame, name: str) -> bool:
    if name not in frame.columns or not pd.api.types.is_numeric_dtype(frame[name]):
        return False
    values = frame[name].dropna().to_numpy(dtype=float)
    return len(values) > 0 and float(np.ptp(values)) > SAME.get(name, 0.0)


def _repeats(frame: pd.DataFrame) -> bool:
    """Whether some runs saw text more than once."""
    return "unique_tokens" in frame.columns and bool((frame["tokens"] > 1.05 * frame["unique_tokens"]).any())


@dataclass(frozen=True, slots=True)
class Trial:
    """A law fitted to the runs, and what it missed where the largest of them were held out.

    Attributes:
        data: the runs as the law needs them.
        problem: what was minimised.
        best: the fit.
        delta: width of the Huber loss.
        scale_weight: the power of scale by which a run weighs.
        folds: the hold-outs.
        misfit: whether neighbouring runs are missed alike, so that the law does not fit.
    """

    data: FitData
    problem: Problem
    best: GlobalFit
    delta: float
    scale_weight: float
    folds: Folds = ()
    misfit: bool = False

    @property
    def errors(self) -> np.ndarray:
        """Log errors of the held-out runs, each hold-out with the same weight in their sum of squares.

        Of the hold-outs in one direction only the narrowest counts, which leaves most of what the fit is made of: where
        small runs bend away from a law, a fit to them says little of one to all.
        """
        pieces = [fold.missed / np.sqrt(fold.size) for way in self.folds for fold in way[:1]]
        return np.concatenate(pieces) if pieces else np.zeros(0)


def least_missed(trials: Sequence[Trial]) -> Trial:
    """The trial at the usual weight of runs, or one that misses held-out runs by half its squared error or less."""
    usual = next((trial for trial in trials if trial.scale_weight == _USUAL), trials[0])
    best = min(trials, key=lambda trial: float(np.square(trial.errors).sum()))
    return best if np.square(best.errors).sum() < _CLEARLY * np.square(usual.errors).sum() else usual


def weigh(trials: Sequence[Trial]) -> tuple[tuple[Trial, float], ...]:
    """The trials with their weights, the best single law first; those that add next to nothing are left out.

    Where nothing could be held out all weigh the same, and the simplest law is first.
    """
    errors = np.stack([trial.errors for trial in trials], axis=1)
    if not len(errors):
        order = sorted(range(len(trials)), key=lambda i: trials[i].problem.p)
        return tuple((trials[i], 1.0 / len(trials)) for i in order)
    weights = stacking_weights(errors)
    order = list(np.argsort(np.square(errors).sum(axis=0), kind="stable"))
    weights[order[0]] = max(weights[order[0]], 1.0 / len(trials))
    kept = [i for i in order if i == order[0] or weights[i] >= _LEAST_WEIGHT]
    return tuple((trials[i], float(weights[i] / weights[kept].sum())) for i in kept)
