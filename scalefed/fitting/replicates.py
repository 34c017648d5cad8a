"""How are the replicates of a fit made? By the bootstrap, or, where the runs are few or leave the law loose, drawn."""

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
    spare = spare_settings(trial.data, problem.p)
    each = min(int(trial.data.clusters.max()) + 1, problem.p + spare) / max(problem.p, 1)
    if may_draw and each < _FEW and not (spare > 0 and _exact(trial)):
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
