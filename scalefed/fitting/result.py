"""How do runs become a fit? Clean them, find the optimum, resample, back-test, judge: :func:`fit`, :func:`load_fit`."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from scalefed.allocation.extrapolation import ranges_of
from scalefed.errors import ConfigError, FitWarning, refuses_old_words
from scalefed.fitting.alternative import fit_alternative
from scalefed.fitting.backtest import back_test
from scalefed.fitting.bootstrap import Replicates, bootstrap, local_noise, noise_scale
from scalefed.fitting.data import FitData, hash_runs, prepare, run_ids
from scalefed.fitting.fitted import Fit
from scalefed.fitting.identifiability import gaps
from scalefed.fitting.initialisation import GlobalFit, global_fit
from scalefed.fitting.problem import Problem
from scalefed.fitting.solver import Solver
from scalefed.fitting.status import FitStatus, certify, judge
from scalefed.fitting.store import load_fit
from scalefed.fitting.weights import problem_of
from scalefed.laws import Law, as_law
from scalefed.laws.parser import COLUMNS

__all__ = ["Fit", "fit", "load_fit"]

_USUAL_DELTA = 1e-3
_SMALLEST_DELTA = 1e-6
_HUBER = 1.345


@refuses_old_words
def fit(
    runs: Any,
    law: "Law | str" = "federated",
    *,
    target: str = "loss",
    huber_delta: float | str | None = _USUAL_DELTA,
    scale_weight: float = 0.0,
    resamples: int = 1000,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    cluster: str | None = None,
    fixed: Mapping[str, float] | None = None,
    bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
    ties: Mapping[str, str] | None = None,
    intervals: str = "auto",
    backtest: bool = True,
) -> Fit:
    """Fit a law to runs.

    Args:
        runs: a DataFrame, a mapping of columns, a run folder, or a CSV, Parquet or JSONL file.
        law: a Law, a name in ``LAWS``, or a formula.
        target: the column that the law explains, positive; ``loss`` in nats per token.
        huber_delta: width of the Huber loss in units of log target; None is least squares, ``"auto"`` takes the width
            from the residuals (1.345 robust standard deviations).
        scale_weight: a run weighs its scale (params x tokens) to this power; 0 weighs all alike, 0.5 predicts
            better beyond the runs where small runs bend away from the law.
        resamples: bootstrap replicates.
        seed: of the bootstrap and the starts.
        columns: our name -> the name in ``runs``, for example ``{"params": "N"}``; a formula may use columns of your
            own that are named here (``{"width": "width"}``).
        cluster: column whose equal values are resampled together; by default ``run_id`` where rows share one.
        fixed: parameters held at a number.
        bounds: parameter -> (low, high).
        ties: parameter -> the parameter whose value it takes.
        intervals: how replicates are made: ``"auto"``, ``"exchange"`` or ``"pairs"``
            (see :mod:`scalefed.fitting.bootstrap`).
        backtest: whether to hold out the largest runs and fit a richer law, which widens bands beyond the runs.

    Raises:
        DataError: the runs cannot be used.
        ConfigError: an argument is out of range or names something unknown.

    >>> from scalefed.laws.simulate import simulate_runs
    >>> truth = {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37}
    >>> grid = {"params": [1e7, 1e8, 1e9, 1e10], "tokens": [1e9, 1e10, 1e11]}
    >>> round(fit(simulate_runs("chinchilla", truth, grid), "chinchilla", resamples=10).params["a"], 6)
    0.35
    """
    delta = _delta(huber_delta)
    _check(resamples, scale_weight)
    own = [name for name in columns or {} if name not in COLUMNS]
    law = as_law(law, columns=own).with_(fixed=fixed, bounds=bounds, ties=ties)
    data = prepare(runs, law, target=target, columns=columns, cluster=cluster)
    problem = problem_of(data.columns, data.law, data.target, scale_weight)
    best = global_fit(problem, delta=delta, seed=seed)
    if huber_delta == "auto":
        for _ in range(3):
            delta = max(_HUBER * noise_scale(_residuals(problem, best), problem.p), _SMALLEST_DELTA)
            best = global_fit(problem, delta=delta, seed=seed, extra=best.theta[None])
    replicates = bootstrap(problem, best, data.clusters, resamples=resamples, delta=delta, seed=seed, method=intervals)
    found = _assemble(data, problem, best, replicates, delta, target, cluster, scale_weight, seed, backtest)
    return replace(found, columns=dict(columns or {}))


def _assemble(
    data: FitData,
    problem: Problem,
    best: GlobalFit,
    refits: Replicates,
    delta: float,
    target: str,
    cluster: str | None,
    scale_weight: float,
    seed: int,
    backtest: bool,
) -> Fit:
    residuals = _residuals(problem, best)
    certificate = certify(problem, best, refits.theta, refits.converged)
    verdict = judge(certificate, gaps(data, problem, certificate))
    estimates = dict(zip(problem.names, map(float, problem.to_values(best.theta[None])[0]), strict=True))
    replicates = pd.DataFrame(problem.to_values(refits.theta), columns=list(problem.names))
    if verdict.status is not FitStatus.CONVERGED:
        warnings.warn(verdict.message, FitWarning, stacklevel=3)
    runs = int(data.clusters.max()) + 1
    return Fit(
        law=data.law,
        params={p: estimates.get(p, data.law.fixed.get(p, np.nan)) for p in data.law.parameters},
        covariance=replicates.cov() if len(replicates) > 1 else pd.DataFrame(),
        status=verdict.status,
        message=verdict.message,
        certificate=certificate,
        run_ids=run_ids(data.frame),
        runs=data.frame,
        replicates=replicates,
        target=target,
        huber_delta=delta,
        scale_weight=scale_weight,
        noise=noise_scale(residuals, problem.p, problem.weights),
        noise_by_loss=local_noise(problem.z - residuals, residuals, problem.p, problem.weights),
        degrees_of_freedom=max(runs - problem.p, 1),
        backtest=back_test(data, problem, delta=delta, seed=seed, folds=backtest),
        alternative=fit_alternative(problem, best.theta, delta=delta) if backtest else None,
        notes=data.notes,
        runs_hash=hash_runs(data.frame, data.law.columns, target),
        source=data.source,
        cluster=cluster,
        seed=seed,
        ranges=ranges_of(data.frame, data.law),
    )


def _residuals(problem: Problem, best: GlobalFit) -> np.ndarray:
    return np.asarray(Solver(problem).residuals(best.theta[None])[0][0])


def _delta(huber_delta: float | str | None) -> float:
    if huber_delta is None:
        return float("inf")
    if huber_delta == "auto":
        return _USUAL_DELTA
    if isinstance(huber_delta, str) or not huber_delta > 0:
        raise ConfigError(f"huber_delta must be a positive number, None or 'auto', got {huber_delta!r}; 1e-3 is usual")
    return float(huber_delta)


def _check(resamples: int, scale_weight: float) -> None:
    if isinstance(resamples, bool) or not isinstance(resamples, (int, np.integer)) or resamples < 0:
        raise ConfigError(f"resamples must be an integer of at least 0, got {resamples!r}; 1000 is usual")
    if not 0.0 <= scale_weight <= 3.0:
        raise ConfigError(
            f"scale_weight must be between 0 (all runs alike) and 3, got {scale_weight!r}; 0.5 favours large runs"
        )
