"""How are the replicates of a fit made? By the bootstrap, or, where the runs are few or leave the law loose, drawn."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scalefed.errors import ConfigError
from scalefed.fitting import bootstrap, posterior
from scalefed.fitting.bootstrap import Replicates, noise_scale
from scalefed.fitting.candidates import Trial
from scalefed.fitting.identifiability import spare_settings
from scalefed.fitting.solver import Solver
from scalefed.fitting.status import LOOSE, loosest

_FEW = 2  # times as many runs at different settings as free parameters: below, refits tell too little
_SMALL = 6  # times as many: above, a law that is left loose is so for another reason than few runs
_EXACT = 1e-6  # noise at which runs are a law's own numbers

METHODS = ("auto", *bootstrap.METHODS, *posterior.METHODS)


def check_method(method: str) -> None:
    """Raises ConfigError where there is no such way."""
    if method not in METHODS:
        raise ConfigError(f"intervals must be one of {', '.join(METHODS)}, got {method!r}; 'auto' is usual")


def with_replicates(trial: Trial, resamples: int, seed: int, method: str) -> tuple[Trial, Replicates]:
    """The trial with its replicates; where they are drawn, its estimate is the posterior's.

    Args:
        trial: the fitted law.
        resamples: how many.
        seed: of the bootstrap or the draws.
        method: one of ``METHODS``.
    """
    problem = trial.problem
    if method in posterior.METHODS:
        return _drawn(trial, resamples, seed, borrowed=method == "posterior-borrowed")
    may_draw = method == "auto" and resamples > 0 and problem.p > 0 and posterior.has_posterior(problem)
    spare, each = _spare(trial)
    if may_draw and _is_few(trial):
        return _drawn(trial, resamples, seed)
    if spare < 1:
        resamples = 0  # without a spare setting nothing tells how far off the parameters are
    way = "bootstrap" if method == "auto" else method
    refits = bootstrap.bootstrap(
        problem, trial.best, trial.data.clusters, resamples=resamples, delta=trial.delta, seed=seed, method=way
    )
    if may_draw and each < _SMALL and len(refits.theta) > 1 and loosest(problem, np.cov(refits.theta.T))[1] > LOOSE:
        return _drawn(trial, resamples, seed)
    return trial, refits


def richest_of_few(trials: Sequence[Trial], method: str) -> list[Trial]:
    """The richest law alone, where the runs are so few that it is drawn: beliefs fill in what they leave open of it.

    What could be held out of so few says little, and a simpler law is sure of what it cannot say.

    Args:
        trials: one a candidate.
        method: how replicates are made.
    """
    richest = max(trials, key=lambda one: one.problem.p)
    drawn = method in posterior.METHODS or (method == "auto" and _is_few(richest))
    return [richest] if drawn and posterior.has_posterior(richest.problem) else list(trials)


def _is_few(trial: Trial) -> bool:
    """Whether refits of the law to such runs tell too little."""
    spare, each = _spare(trial)
    return each < _FEW and not (spare > 0 and _exact(trial))


def _spare(trial: Trial) -> tuple[int, float]:
    """Settings beyond the free parameters, and how many times as many runs at different settings there are."""
    spare = spare_settings(trial.data, trial.problem.p)
    runs = int(trial.data.clusters.max()) + 1
    return spare, min(runs, trial.problem.p + spare) / max(trial.problem.p, 1)


def _exact(trial: Trial) -> bool:
    """Whether the runs are a law's own numbers: then there is nothing to draw."""
    residuals = Solver(trial.problem).residuals(trial.best.theta[None])[0][0]
    return noise_scale(residuals, trial.problem.p) < _EXACT


def _drawn(trial: Trial, resamples: int, seed: int, *, borrowed: bool = False) -> tuple[Trial, Replicates]:
    found = posterior.posterior(trial.problem, trial.data.clusters, draws=resamples, seed=seed, borrowed=borrowed)
    never = np.zeros(trial.problem.p, dtype=bool)
    best = replace(
        trial.best, theta=found.middle, decrement=0.0, converged=True, agreeing=1.0, at_lower=never, at_upper=never
    )
    data = replace(trial.data, notes=(*trial.data.notes, *found.notes))
    refits = Replicates(found.theta, np.ones(len(found.theta), dtype=bool), "posterior", found.noise)
    return replace(trial, best=best, data=data), refits
