"""How far does the best size move when the largest runs are held out? What the law itself gets wrong, in log size."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.optimum import minimise
from scalefed.errors import ScalefedError
from scalefed.fitting.backtest import Folds
from scalefed.fitting.candidates import Trial
from scalefed.laws.parser import MAY_BE_ZERO
from scalefed.units import train_flops

_SHORT = 0.9  # decades: the hold-outs that are looked at
_ENOUGH = 2  # times as many runs as free parameters in what a hold-out keeps: fewer tell their own noise
_OTHER_SIDE = 0.5  # of the whole drift is kept where best sizes did not go: they may turn
_OF_A_SETTING = ("clients", "clients_per_round", "skew", "local_steps", "batch_tokens", "unique_tokens")


def size_drift(trials: Sequence[Trial]) -> tuple[tuple[float, float], float]:
    """How far log best size fell, and rose, a decade of scale that came in; and how far it moved with its columns.

    Root mean squares over fits and their short hold-outs. It is taken at the largest compute of the runs, for few,
    usual and many clients a round; NaN where nothing was held out, or the laws have no best size.

    Args:
        trials: fits of one or several laws, with their hold-outs.
    """
    by_scale = [change for trial in trials for change in _changes(trial, trial.folds[:1])]
    by_columns = [change for trial in trials for change in _changes(trial, trial.folds[1:])]
    return _sides(by_scale), float(np.sqrt(np.mean(np.square(by_columns)))) if by_columns else float("nan")


def _sides(changes: list[float]) -> tuple[float, float]:
    """Root mean squares of what went down and of what went up; neither is less than a share of both together."""
    if not changes:
        return float("nan"), float("nan")
    size = np.array([np.maximum(changes, 0.0), np.maximum(np.negative(changes), 0.0)])
    down, up = np.sqrt(np.mean(size**2, axis=1))
    least = _OTHER_SIDE * np.hypot(down, up)
    return float(max(down, least)), float(max(up, least))


def _changes(trial: Trial, ways: Folds) -> list[float]:
    """Log best size without the runs that are held out, less that with them, a decade."""
    columns, names = trial.problem.columns, trial.problem.names
    fewest = _ENOUGH * trial.problem.p
    folds = [f for way in ways for f in way if f.below < _SHORT and trial.problem.n - f.size >= fewest]
    if not folds or not {"params", "tokens"} <= set(columns):
        return []
    full = dict(zip(names, trial.problem.to_values(trial.best.theta[None])[0], strict=True))
    values = {name: np.array([full[name], *(fold.params[name] for fold in folds)])[:, None] for name in names}
    top = float(train_flops(columns["params"], columns["tokens"]).max())
    try:
        best = minimise(trial.data.law, values, budget=Budget(compute=top), setting=_usual(columns))
    except ScalefedError:
        return []
    moved = np.log(best.params[1:] / best.params[:1])
    held = best.bounded[1:] & best.bounded[:1]
    below = np.array([fold.below for fold in folds])[:, None]
    return [float(change) for change in (moved / below)[held]]


def _usual(columns: dict[str, np.ndarray]) -> Setting:
    """Few, usual and many clients a round, alike, and the most text of any run; else the middle of the runs."""
    own = {name: float(np.median(values)) for name, values in columns.items() if name not in ("params", "tokens")}
    own |= {name: float(columns[name].min()) for name in own if name in MAY_BE_ZERO}
    known: dict[str, Any] = {name: own.pop(name) for name in _OF_A_SETTING if name in own}
    if "unique_tokens" in known:
        known["unique_tokens"] = float(columns["unique_tokens"].max())
    if "clients_per_round" in known:
        known["clients_per_round"] = np.quantile(columns["clients_per_round"], [0, 0.5, 1])
        if "clients" in known:
            known["clients"] = np.maximum(known["clients"], known["clients_per_round"])
    return Setting(**known, columns=own)
