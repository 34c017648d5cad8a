"""How do runs become a fit? Clean them, find the optimum, resample, back-test, judge: :func:`fit`, :func:`load_fit`."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from scalefed.allocation.extrapolation import SIZE, ranges_of
from scalefed.errors import ConfigError, FitError, FitWarning, refuses_old_words
from scalefed.fitting.alternative import BESIDE, Alternative, fit_rival
from scalefed.fitting.backtest import SPARE, back_test, cuts, hold_outs, of_several
from scalefed.fitting.bootstrap import Replicates, local_noise, noise_scale
from scalefed.fitting.candidates import Trial, beside, bound_columns, candidates, constrained, least_missed, weigh
from scalefed.fitting.column_tests import column_tests
from scalefed.fitting.data import FitData, adapt, hash_runs, prepare, read_frame, run_ids, with_derived
from scalefed.fitting.drift import size_drift
from scalefed.fitting.identifiability import gaps, loose_designs, spare_settings
from scalefed.fitting.initialisation import GlobalFit, global_fit, local_fit
from scalefed.fitting.kernels import mixed_kernels
from scalefed.fitting.lack_of_fit import lack_of_fit
from scalefed.fitting.problem import Problem
from scalefed.fitting.replicates import check_method, richest_of_few, with_replicates
from scalefed.fitting.result import Fit
from scalefed.fitting.run_weights import PerRun, with_weights
from scalefed.fitting.solver import Solver
from scalefed.fitting.status import FitStatus, certify, judge
from scalefed.fitting.store import load_fit
from scalefed.fitting.weights import effective_runs, problem_of
from scalefed.laws import Law, as_law
from scalefed.laws.parser import COLUMNS

__all__ = ["Fit", "fit", "load_fit"]

_USUAL_DELTA = 1e-3  # Hoffmann et al. 2022, on log losses
_SMALLEST_DELTA = 1e-6  # of log loss: noise-free runs have a threshold too
_HUBER = 1.345  # noise units: 95% efficient under normal errors (Huber 1964)
_ENOUGH, _SPARE_TIMES = 30, 2  # runs that tell their own noise; times as many as parameters that weights must leave
_ROUNDS = 3  # of fits, each with the threshold that the residuals of the last one ask for
_MISFIT = 0.01  # p-value of the test of neighbours: one false alarm in a hundred fits
_BENT = 0.1  # width above the law where it does not fit: small runs lie above it more easily than any lies below
_POWERS = (0.0, 0.5, 1.0)  # of scale, by which runs may weigh
_FEWEST_REPLICATES, _MOST_REPLICATES = 50, 250  # of a law beside the best one


@dataclass(frozen=True, slots=True)
class _Loss:
    """The Huber loss that was asked for: its width, whether that is to come from the residuals, and the share above.

    The share is None where it is to come from the residuals too.
    """

    delta: float
    from_residuals: bool
    above: float | None


@refuses_old_words
def fit(
    runs: Any,
    law: "Law | str" = "auto",
    *,
    target: str = "loss",
    huber_delta: float | str | None = "auto",
    huber_above: float | None = None,
    scale_weight: float | None = None,
    weights: PerRun = None,
    standard_errors: PerRun = None,
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
        runs: a DataFrame, a mapping of columns, a list of rows, a run folder, or a CSV, Parquet or JSONL file.
        law: a Law, a name in ``LAWS``, or a formula; ``"auto"`` tries the named laws that the runs' varying columns
            allow, holds out the largest runs, and weighs the laws by what they missed: the best is ``fit.law``, the
            others are ``fit.alternatives``, and every interval carries their disagreement.
        target: the column that the law explains, positive; ``loss`` in nats per token.
        huber_delta: width of the Huber loss in units of log target; ``"auto"`` takes it from the residuals (1.345
            robust standard deviations) for a law of loss that has runs enough to tell, 1e-3 otherwise; None is least
            squares.
        huber_above: the width for runs above the law, as a share of that below: 0.1 where runs that were tuned too
            little lie above the frontier more easily than any lies below it. None takes 0.1 where the width
            comes from the residuals, ``scale_weight`` is chosen by back-test, and neighbouring runs are missed alike,
            so that what is left is the law's lack of fit (:mod:`scalefed.fitting.lack_of_fit`); else 1.
        scale_weight: a run weighs its scale (params x tokens) to this power: 0 weighs all alike, above 0 predicts
            better beyond the runs where small runs bend away from the law; None takes, for a law of loss that has runs
            enough to spare, 0.5, or 0 or 1 where that misses clearly less of the runs' own largest when they are held
            out; else 0.
        weights: a column of the runs, or one positive number a run: how much it counts, times its scale's.
        standard_errors: the same, of the target and in its unit; a run weighs their inverse square.
        resamples: bootstrap replicates.
        seed: of the bootstrap and the starts.
        columns: our name -> the name in ``runs``, for example ``{"params": "N"}``; a formula may use columns of your
            own that are named here (``{"width": "width"}``).
        cluster: column whose equal values are resampled together; by default ``run_id`` where rows share one, or
            another column of run names of which each has one size and several token counts.
        fixed: parameters held at a number (with ``"auto"`` in the laws that have them).
        bounds: parameter -> (low, high).
        ties: parameter -> the parameter whose value it takes.
        intervals: how replicates are made: ``"bootstrap"`` (or one of its ways, ``"exchange"`` and ``"pairs"``, see
            :mod:`scalefed.fitting.bootstrap`), or ``"posterior"``: draws under weak beliefs about the optimum, for few
            runs (see :mod:`scalefed.fitting.posterior`), with ``"posterior-borrowed"`` the slope of the best size as
            in other families too. ``"auto"`` is the posterior where there are fewer than twice as many runs as free
            parameters, or fewer than six times as many and the bootstrap leaves the law loose; a note says so.
            Estimates that go with a posterior are its medians.
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
    loss = _Loss(_delta(huber_delta), huber_delta == "auto", huber_above)
    _check(resamples, scale_weight, loss)
    check_method(intervals)
    if intervals == "auto" and not (weights is None and standard_errors is None and huber_above in (None, 1.0)):
        intervals = "pairs"  # runs of unlike errors cannot exchange them, nor turn their sign
    frame, source = read_frame(runs, columns)
    frame = with_weights(frame, weights, standard_errors, target)
    data, laws = _chosen(frame, law, target, columns, cluster, fixed, bounds, ties)
    data = replace(data, source=source)
    each = [_data_of(data, one) for one in laws]
    least = max(len(one.law.free) for one in each) + SPARE
    masks = cuts(data.columns, data.law.columns, least) if backtest else ()
    powers = (scale_weight,) if scale_weight is not None else _POWERS if any(masks) else (0.0,)
    tried = [_fitted(one, powers, masks, loss, seed) for one in each]
    best = [least_missed(trials) for trials in tried]
    weighed = weigh(richest_of_few(best, intervals) if law == "auto" else best)
    (trial, _), others = weighed[0], weighed[1:]
    trial, replicates = with_replicates(trial, resamples, seed, intervals)
    alternatives = tuple(_alternative(other, weight, resamples, seed, intervals) for other, weight in others)
    if law != "auto" and backtest:
        few = 0 if replicates.method == "posterior" else resamples  # wide as no bootstrap of few runs is
        alternatives = _of_a_name(trial, powers, masks, loss, few, seed, intervals)
    found = _assemble(trial, replicates, target, seed)
    ahead, aside = size_drift([one for trials in tried for one in trials])
    test = of_several([back_test(one.problem, one.folds) for one, _ in weighed])
    test = replace(test, drift=ahead, drift_aside=aside)
    tests = column_tests(trial.problem, trial.best.theta, delta=trial.delta) if backtest else ()
    if law == "auto":
        found = replace(found, ranges=replace(found.ranges, bound=bound_columns(data.frame)))
    return replace(found, backtest=test, alternatives=alternatives, column_tests=tests, columns=dict(columns or {}))


def _chosen(
    frame: pd.DataFrame,
    law: "Law | str",
    target: str,
    columns: Mapping[str, str] | None,
    cluster: str | None,
    fixed: Mapping[str, float] | None,
    bounds: Mapping[str, tuple[float | None, float | None]] | None,
    ties: Mapping[str, str] | None,
) -> tuple[FitData, tuple[Law, ...]]:
    """The runs as the law that needs most of them does, and the laws to fit."""
    own = [name for name in columns or {} if name not in COLUMNS]
    if law != "auto":
        one = as_law(law, columns=own).with_(fixed=fixed, bounds=bounds, ties=ties)
        data = prepare(frame, one, target=target, cluster=cluster)
        return data, (data.law,)
    frame = with_derived(frame)
    laws = constrained(candidates(frame), fixed=fixed, bounds=bounds, ties=ties)
    data = prepare(frame, max(laws, key=lambda one: len(one.columns)), target=target, cluster=cluster)
    return data, laws


def _data_of(data: FitData, law: Law) -> FitData:
    """The same runs for another law."""
    if law == data.law:
        return data
    law, notes = adapt(law, data.frame)
    notes = tuple(dict.fromkeys((*(n for n in data.notes if "cannot be fitted" not in n), *notes)))
    arrays = {c: data.frame[c].to_numpy(dtype=float) for c in law.columns}
    return replace(data, law=law, columns=arrays, notes=notes)


def _fitted(
    data: FitData,
    powers: tuple[float, ...],
    masks: tuple[tuple[np.ndarray, ...], ...],
    loss: _Loss,
    seed: int,
) -> list[Trial]:
    """The law fitted with the runs weighed by each of these powers of their scale, and back-tested."""
    trials: list[Trial] = []
    own = loss.from_residuals and _is_of_loss(data.law) and data.n >= max(_ENOUGH, 6 * len(data.law.free))
    above, misfit = loss.above or 1.0, False
    for power in powers if len(powers) == 1 else _affordable(data, powers):
        problem, width = problem_of(data.frame, data.law, data.target, power, above), loss.delta
        near = trials[0].best if trials else None
        best = local_fit(problem, near, delta=width) if near else global_fit(problem, delta=width, seed=seed)
        if not trials and _is_of_loss(data.law) and data.n >= _ENOUGH:
            misfit = lack_of_fit(_residuals(problem, best), data.columns, data.clusters) < _MISFIT
            if misfit and own and loss.above is None and len(powers) > 1:
                above = _BENT
                problem = problem_of(data.frame, data.law, data.target, power, above)
        for _ in range(_ROUNDS if own else 0):
            width = max(_HUBER * noise_scale(_residuals(problem, best), problem.p), _SMALLEST_DELTA)
            best = local_fit(problem, best, delta=width)
        _check_values(data, problem, best)
        folds = hold_outs(problem, best, masks, delta=width)
        trials.append(Trial(data, problem, best, width, power, folds, misfit))
    return trials


def _check_values(data: FitData, problem: Problem, best: GlobalFit) -> None:
    """Refuse a law that has no finite value at every run, whatever its parameters."""
    none = np.flatnonzero(~np.isfinite(_residuals(problem, best)))
    if len(none):
        at = ", ".join(f"{name} = {values[none[0]]:g}" for name, values in data.columns.items())
        raise FitError(
            f"the law {data.law.formula!r} has no finite value at {len(none)} of {data.n} runs, the first with {at}: "
            "what is divided by or raised to a power must be above 0 at every run, and no term beyond all numbers; "
            "bounds= keeps a parameter where there is a value"
        )


def _is_of_loss(law: Law) -> bool:
    """Whether a law falls with params and tokens towards a floor."""
    return {"params", "tokens"} <= set(law.columns) and any(term.is_constant for term in law.terms)


def _affordable(data: FitData, powers: tuple[float, ...]) -> list[float]:
    """The powers of scale that leave a law of loss as good as twice as many runs as free parameters; 0 always."""
    least = _SPARE_TIMES * len(data.law.free) if _is_of_loss(data.law) else np.inf
    return [power for power in powers if power == 0 or effective_runs(data.frame, data.law, power) >= least]


def _of_a_name(
    trial: Trial,
    powers: tuple[float, ...],
    masks: tuple[tuple[np.ndarray, ...], ...],
    loss: _Loss,
    resamples: int,
    seed: int,
    method: str,
) -> tuple[Alternative, ...]:
    """What a law asked by name is held against: the next richer law, and a candidate where that cannot say enough.

    The next richer law knows of size and length what the candidates do, of further columns no more than the law
    itself: where neighbouring runs are missed alike, a candidate that has terms of its own for them is asked too.
    """
    problem, data = trial.problem, trial.data
    rival = fit_rival(
        problem, trial.best.theta, data.clusters, delta=trial.delta, resamples=resamples, seed=seed
    )  # fmt: skip
    rivals = () if rival is None else (rival,)
    unheard = trial.misfit and not set(data.law.columns) <= set(SIZE)
    other = beside(data.law, data.frame) if any(masks) and resamples and (unheard or not rivals) else None
    if other is None:
        return rivals
    tried = least_missed(_fitted(_data_of(data, other), powers, masks, loss, seed))
    return (*rivals, _alternative(tried, BESIDE, resamples, seed, method))


def _alternative(trial: Trial, weight: float, resamples: int, seed: int, method: str) -> Alternative:
    """A law that is not the best one, with replicates for its share."""
    law, names = trial.data.law, list(trial.problem.names)
    share = min(resamples, max(_FEWEST_REPLICATES, min(round(weight * resamples), _MOST_REPLICATES)))
    trial, refits = with_replicates(trial, share, seed, method)
    values = trial.problem.to_values(refits.theta)
    test = back_test(trial.problem, trial.folds)
    return Alternative(
        law, _params(trial), pd.DataFrame(values, columns=names), weight=weight, holdout_error=test.error
    )


def _params(trial: Trial) -> dict[str, float]:
    estimates = trial.problem.to_values(trial.best.theta[None])[0]
    known = {**trial.data.law.fixed, **dict(zip(trial.problem.names, map(float, estimates), strict=True))}
    return {p: known.get(p, np.nan) for p in trial.data.law.parameters}


def _assemble(trial: Trial, refits: Replicates, target: str, seed: int) -> Fit:
    data, problem, best = trial.data, trial.problem, trial.best
    residuals = _residuals(problem, best)
    noise = noise_scale(residuals, problem.p, problem.weights)
    by_loss = local_noise(problem.z - residuals, residuals, problem.p, problem.weights)
    runs = int(data.clusters.max()) + 1
    certificate = certify(problem, best, refits.theta, refits.converged)
    believed, spare = refits.method == "posterior", spare_settings(data, problem.p)
    undetermined = gaps(data, problem, best.theta, believed=believed)
    verdict = judge(certificate, undetermined, max(spare, int(believed)))
    if refits.noise is not None or spare < 1:
        noise = np.nan if refits.noise is None else refits.noise
        by_loss = by_loss[0], (noise,) * len(by_loss[1])
    notes = data.notes
    if believed:
        notes += tuple(
            f"beliefs fill in what these runs leave open: {gap}" for gap in loose_designs(data, problem, best.theta)
        )
    replicates = pd.DataFrame(problem.to_values(refits.theta), columns=list(problem.names))
    if verdict.status is not FitStatus.CONVERGED:
        warnings.warn(verdict.message, FitWarning, stacklevel=3)
    return Fit(
        law=data.law,
        params=_params(trial),
        covariance=replicates.cov() if len(replicates) > 1 else pd.DataFrame(),
        status=verdict.status,
        message=verdict.message,
        certificate=certificate,
        run_ids=run_ids(data.frame),
        runs=data.frame,
        replicates=replicates,
        target=target,
        huber_delta=trial.delta,
        huber_above=problem.above,
        scale_weight=trial.scale_weight,
        noise=noise,
        noise_by_loss=by_loss,
        degrees_of_freedom=max(runs - problem.p, 1),
        backtest=back_test(problem, trial.folds),
        alternatives=(),
        notes=(*notes, *mixed_kernels(data.frame)),
        runs_hash=hash_runs(data.frame, data.law.columns, target),
        source=data.source,
        cluster=data.cluster,
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


def _check(resamples: int, scale_weight: float | None, loss: _Loss) -> None:
    if isinstance(resamples, bool) or not isinstance(resamples, (int, np.integer)) or resamples < 0:
        raise ConfigError(f"resamples must be an integer of at least 0, got {resamples!r}; 1000 is usual")
    if scale_weight is not None and not 0.0 <= scale_weight <= 3.0:
        raise ConfigError(
            f"scale_weight must be between 0 (all runs alike) and 3, got {scale_weight!r}; 0.5 favours large runs"
        )
    above = 1.0 if loss.above is None else loss.above
    if not 0.0 < above <= 1e6 or (above != 1.0 and not np.isfinite(loss.delta)):
        raise ConfigError(
            f"huber_above must be a share of huber_delta above 0, got {above!r} of {loss.delta:g}; "
            "1 is symmetric, 0.1 lets runs above the law pull a tenth as far"
        )
