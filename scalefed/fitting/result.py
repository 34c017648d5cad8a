"""What does the fitted law say? `fit` makes a :class:`Fit`: parameters, intervals, predictions, the optimal size."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd

from scalefed.errors import ConfigError, DataError, FitError, FitWarning
from scalefed.fitting.data import FitData, hash_runs, prepare, read_frame, run_ids
from scalefed.fitting.identify import design_gaps
from scalefed.fitting.intervals import Replicates, bootstrap, noise_scale
from scalefed.fitting.problem import Problem
from scalefed.fitting.solver import Solver
from scalefed.fitting.starts import GlobalFit, global_fit
from scalefed.fitting.status import Certificate, FitStatus, certify, judge
from scalefed.laws import Law, as_law


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to runs.

    Attributes:
        law: the law that was fitted (with parameters fixed that the runs could not inform).
        params: every parameter's estimate, fixed ones included.
        covariance: (p, p) of the free parameters on their natural scale, from the replicates.
        status: a :class:`FitStatus`.
        message: full sentences: what the status means here, and what would help.
        certificate: the evidence (objective, Newton decrement, starts agreeing, replicates, bounds hit).
        run_ids: ids of the runs used.
        runs: the runs used.
        resampled: bootstrap replicates of the free parameters, one row each.
        target: the column that is predicted.
        robust: width of the Huber loss in log units.
        noise: standard deviation of log residuals, corrected for the fitted parameters.
        holdout_error: median relative error on the largest runs when they are held out; NaN if that cannot be done.
        notes: what was left out or fixed.
    """

    law: Law
    params: dict[str, float]
    covariance: pd.DataFrame
    status: FitStatus
    message: str
    certificate: Certificate
    run_ids: tuple[str, ...]
    runs: pd.DataFrame = field(repr=False)
    resampled: pd.DataFrame = field(repr=False)
    target: str
    robust: float
    noise: float
    holdout_error: float
    notes: tuple[str, ...]
    runs_hash: str
    source: str | None
    seed: int

    def summary(self, *, level: float = 0.95) -> pd.DataFrame:
        """Every parameter with ``estimate, std_error, low, high``; fixed ones have a zero error."""
        _check_level(level)
        rows = {}
        for name, value in self.params.items():
            if name in self.law.free and len(self.resampled):
                sample = self.resampled[name].to_numpy()
                low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
                rows[name] = (value, sample.std(ddof=1), low, high)
            else:
                rows[name] = (value, 0.0, value, value)
        return pd.DataFrame.from_dict(rows, orient="index", columns=["estimate", "std_error", "low", "high"])

    def predict(self, runs: Any = None, *, level: float = 0.9, **columns: Any) -> pd.DataFrame:
        """The predicted target with a band that a new run falls into with probability ``level``.

        Args:
            runs: a DataFrame or mapping with the law's columns; or give them by keyword.
            level: coverage of the band.
            columns: columns by keyword, numbers or arrays: ``fit.predict(params=1e9, tokens=2e10)``.

        Returns:
            ``estimate, low, high`` in the unit of the target, one row a run.
        """
        _check_level(level)
        frame = self._frame(runs, columns)
        arrays = {c: frame[c].to_numpy(dtype=float) for c in self.law.columns}
        estimate = self.law.predict(self.params, arrays)
        sample = self.law.predict({p: self.resampled[p].to_numpy() for p in self.law.free}, arrays)
        spread = np.sqrt(np.var(np.log(sample), axis=0) + self.noise**2) * _normal(level)
        table = {"estimate": estimate, "low": estimate * np.exp(-spread), "high": estimate * np.exp(spread)}
        return pd.DataFrame(table, index=frame.index)

    def _frame(self, runs: Any, columns: Mapping[str, Any]) -> pd.DataFrame:
        if runs is None:
            arrays = {k: np.atleast_1d(np.asarray(v, dtype=float)) for k, v in columns.items()}
            frame = pd.DataFrame(
                {
                    k: np.broadcast_to(v, np.broadcast_shapes(*(a.shape for a in arrays.values())))
                    for k, v in arrays.items()
                }
            )
        else:
            frame, _ = read_frame(runs)
        missing = [c for c in self.law.columns if c not in frame.columns]
        if missing:
            raise DataError(
                f"predict needs the column {', '.join(missing)} for the law {self.law.name!r}; "
                f"given: {', '.join(map(str, frame.columns)) or 'nothing'}"
            )
        return frame

    def optimal_size(self, **budget: Any) -> Any:
        """The model size that makes the best of a budget, with intervals; see :func:`planning.optimal_size`.

        Raises:
            FitError: the runs cannot determine the law, with the reason and the runs that would help.
        """
        from scalefed.fitting import planning

        self._must_be_identified("an optimal size")
        return planning.optimal_size(self, **budget)

    def plan(self, **budgets: Any) -> Any:
        """The best size, tokens and rounds under any mix of budgets; see :func:`planning.plan`.

        Raises:
            FitError: the runs cannot determine the law.
        """
        from scalefed.fitting import planning

        self._must_be_identified("a plan")
        return planning.plan(self, **budgets)

    def least_compute(self, **goal: Any) -> Any:
        """The least compute that reaches a target loss or pass@1; see :func:`planning.least_compute`.

        Raises:
            FitError: the runs cannot determine the law.
        """
        from scalefed.fitting import planning

        self._must_be_identified("the compute for a goal")
        return planning.least_compute(self, **goal)

    def _must_be_identified(self, what: str) -> None:
        if self.status is FitStatus.NOT_IDENTIFIED:
            raise FitError(f"these runs cannot determine {what}: {self.message}")


def fit(
    runs: Any,
    law: "Law | str" = "federated",
    *,
    target: str = "loss",
    robust: float | str | None = 1e-3,
    resamples: int = 1000,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    cluster: str | None = None,
    fixed: Mapping[str, float] | None = None,
    bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
    shared: Mapping[str, str] | None = None,
) -> Fit:
    """Fit a law to runs.

    Args:
        runs: a DataFrame, a mapping of columns, a run folder, or a CSV, Parquet or JSONL file.
        law: a Law, a name in ``LAWS``, or a formula.
        target: the column that the law explains, positive; ``loss`` in nats per token.
        robust: width of the Huber loss in units of log target; None is least squares, ``"auto"`` takes the width
            from the residuals (1.345 robust standard deviations).
        resamples: bootstrap replicates.
        seed: of the bootstrap and the starts.
        columns: our name -> the name in ``runs``, for example ``{"params": "N"}``.
        cluster: column whose equal values are resampled together; by default ``run_id`` where rows share one.
        fixed: parameters held at a number.
        bounds: parameter -> (low, high).
        shared: parameter -> the parameter whose value it takes.

    Raises:
        DataError: the runs cannot be used.
        ConfigError: an argument is out of range or names something unknown.

    >>> from scalefed.simulation import simulate_runs
    >>> truth = {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37}
    >>> grid = {"params": [1e7, 1e8, 1e9, 1e10], "tokens": [1e9, 1e10, 1e11]}
    >>> round(fit(simulate_runs("chinchilla", truth, grid), "chinchilla", resamples=10).params["a"], 6)
    0.35
    """
    delta = _delta(robust)
    if not isinstance(resamples, int) or resamples < 0:
        raise ConfigError(f"resamples must be an integer of at least 0, got {resamples!r}; 1000 is usual")
    law = as_law(law).with_(fixed=fixed, bounds=bounds, shared=shared)
    data = prepare(runs, law, target=target, columns=columns, cluster=cluster)
    problem = Problem(data.law, data.columns, np.log(data.target))
    best = global_fit(problem, delta=delta, seed=seed)
    if robust == "auto":
        for _ in range(3):
            residuals = Solver(problem).residuals(best.theta[None])[0][0]
            delta = max(1.345 * noise_scale(residuals, problem.p), 1e-6)
            best = global_fit(problem, delta=delta, seed=seed)
    replicates = bootstrap(problem, best, data.clusters, resamples=resamples, delta=delta, seed=seed)
    return _assemble(data, problem, best, replicates, delta, seed, target)


def _assemble(
    data: FitData,
    problem: Problem,
    best: GlobalFit,
    replicates: Replicates,
    delta: float,
    seed: int,
    target: str,
) -> Fit:
    residuals = Solver(problem, delta=delta).residuals(best.theta[None])[0][0]
    certificate = certify(problem, best, replicates.theta, replicates.converged)
    verdict = judge(certificate, design_gaps(data))
    values = problem.to_values(best.theta[None])[0]
    estimates = dict(zip(problem.names, map(float, values), strict=True))
    resampled = pd.DataFrame(problem.to_values(replicates.theta), columns=list(problem.names))
    if verdict.status is not FitStatus.CONVERGED:
        warnings.warn(verdict.message, FitWarning, stacklevel=3)
    return Fit(
        law=data.law,
        params={p: estimates.get(p, data.law.fixed.get(p, np.nan)) for p in data.law.parameters},
        covariance=resampled.cov(),
        status=verdict.status,
        message=verdict.message,
        certificate=certificate,
        run_ids=run_ids(data.frame),
        runs=data.frame,
        resampled=resampled,
        target=target,
        robust=delta,
        noise=noise_scale(residuals, problem.p),
        holdout_error=float("nan"),
        notes=data.notes,
        runs_hash=hash_runs(data.frame, data.law.columns, target),
        source=data.source,
        seed=seed,
    )


def _delta(robust: float | str | None) -> float:
    if robust is None:
        return float("inf")
    if robust == "auto":
        return 1e-3
    if isinstance(robust, str) or not robust > 0:
        raise ConfigError(f"robust must be a positive number, None or 'auto', got {robust!r}; 1e-3 is usual")
    return float(robust)


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level must be between 0 and 1, got {level!r}; 0.95 is usual")


def _normal(level: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf((1 + level) / 2))


def load_fit(path: "str | PathLike[str]") -> Fit:
    """Read a fit."""
    raise DataError(str(path))
