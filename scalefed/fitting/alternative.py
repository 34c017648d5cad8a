"""What would another law say? Its disagreement beyond the runs is a sign of how far a law can be trusted.

``law="auto"`` has fitted several; a law asked by name has its rival, the next richer law.

A law that adds its terms (``E + A/params^a + B/tokens^b``) has as its rival the same terms under a common power
(``E + (A/params^a + B/tokens^b)^c``), a law without a floor the same law with one, and a single term beside a floor the
same term with an exponent that changes with scale. The rival contains the law, so on the runs it fits at least as well;
where the two part company beyond them, the runs cannot tell who is right.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from scalefed.fitting.bootstrap import bootstrap
from scalefed.fitting.initialisation import summarise
from scalefed.fitting.problem import Problem
from scalefed.fitting.solver import Solver
from scalefed.laws.law import Law
from scalefed.laws.terms import Part, Power, Term

_POWER, _FLOOR, _BEND = "rival_power", "rival_floor", "rival_bend"
_POWER_BOUNDS = (0.1, 5.0)  # of the power around the sum: 1 is the law itself
_BEND_BOUNDS = (-0.2, 0.2)  # of the curvature in log size, beside exponents of 0.1 to 1
_LARGE = 5_000  # runs; above, every so manieth is looked at

_REPLICATES = 60  # of a rival

BESIDE = 0.25  # share of the replicates behind an interval that an alternative of a law asked by name makes
RIVAL = "rival of "  # how the name of a rival begins

STRENGTH = 2.0  # how much of the rival's disagreement is a standard deviation; calibrated on public run logs
EDGE = 0.1  # decades beyond the runs over which that comes in, so that a band has no step at their edge


@dataclass(frozen=True, eq=False)
class Alternative:
    """Another law fitted to the same runs, whose disagreement the answers carry.

    Attributes:
        law: the law.
        params: its estimates.
        replicates: bootstrap replicates of its free parameters, one row each.
        weight: its share of the replicates behind an interval.
        holdout_error: its median relative error on the largest runs when they are held out.
        widens: how many standard deviations of a band its distance from the first law is, beyond the runs.
    """

    law: Law
    params: dict[str, float]
    replicates: pd.DataFrame
    weight: float
    holdout_error: float = float("nan")
    widens: float = 0.0

    def __repr__(self) -> str:
        return f"<Alternative {self.law.name!r}: weight {self.weight:.2f}, held-out error {self.holdout_error:.2%}>"


@lru_cache(maxsize=64)
def rival_of(law: Law) -> Law | None:
    """The next richer law, or None where there is none.

    >>> from scalefed.laws import LAWS
    >>> rival_of(LAWS["chinchilla"]).parameters
    ('E', 'A', 'a', 'B', 'b', 'rival_power')
    >>> rival_of(LAWS["coupled"]) is None
    True
    """
    terms = list(law.terms)
    constants = [t for t in terms if t.is_constant]
    others = tuple(t for t in terms if not t.is_constant)
    if not others:
        return None
    if not constants:
        floor = Term((Part(1.0, (_FLOOR,)),), (), _FLOOR)
        return _extended(law, (floor, *terms), _FLOOR)
    if len(others) == 1:
        return _bent(law, constants, others[0])
    group = Term((), (Power(others, (Part(1.0, (_POWER,)),)),), "(...)^" + _POWER)
    return _extended(law, (*constants, group), _POWER, bounds=_POWER_BOUNDS)


def _bent(law: Law, constants: list[Term], term: Term) -> Law | None:
    logs = [a for part in term.parts for a in part.atoms if a.kind == "log"]
    if term.powers or not logs:
        return None
    scale = next((a for a in logs if a.columns == ("params",)), logs[0])
    bent = Term((*term.parts, Part(1.0, (_BEND,), (scale, scale))), (), term.text)
    return _extended(law, (*constants, bent), _BEND, bounds=_BEND_BOUNDS)


def _extended(law: Law, terms: tuple[Term, ...], name: str, *, bounds: tuple[float, float] | None = None) -> Law:
    return replace(
        law,
        name=f"{RIVAL}{law.name}",
        terms=terms,
        parameters=(*law.parameters, name),
        positive=law.positive | {name} if bounds is None else law.positive,
        bounds=law.bounds if bounds is None else {**law.bounds, name: bounds},
    )


def fit_rival(
    problem: Problem, theta: np.ndarray, clusters: np.ndarray, *, delta: float, resamples: int, seed: int
) -> Alternative | None:
    """The law's rival, fitted from the law's own optimum; None where there is no rival.

    Args:
        problem: law and runs.
        theta: (p,) the law's optimum.
        clusters: (n,) integers from 0; rows with one number are resampled together.
        delta: width of the Huber loss.
        resamples: bootstrap replicates of the law itself; the rival has a few of its own.
        seed: of the resampling.
    """
    law = rival_of(problem.law)
    if law is None or problem.n < len(law.free) + 1:
        return None
    rows = np.arange(problem.n)[:: max(1, problem.n // _LARGE)]
    weights = None if problem.weights is None else problem.weights[rows]
    columns = {c: v[rows] for c, v in problem.columns.items()}
    richer = Problem(law, columns, problem.z[rows], weights, problem.above)
    values = dict(zip(problem.names, problem.to_values(theta[None])[0], strict=True))
    starts = [{**values, **extra} for extra in _extras(law, problem)]
    coordinates = richer.to_coordinates(np.array([[s[n] for n in richer.names] for s in starts]))
    found = Solver(richer, delta=delta).solve(coordinates, cold=True, iterations=100, tolerance=1e-9)
    best = summarise(richer, found, len(starts), 1.0)
    params = dict(zip(richer.names, map(float, richer.to_values(best.theta[None])[0]), strict=True))
    few = min(resamples, _REPLICATES) if problem.n <= _LARGE and problem.n > len(law.free) else 0
    refits = bootstrap(richer, best, clusters[rows], resamples=few, delta=delta, seed=seed)
    table = pd.DataFrame(richer.to_values(refits.theta), columns=list(richer.names))
    return Alternative(law, params, table, BESIDE if few else 0.0, widens=STRENGTH)


def _extras(law: Law, problem: Problem) -> list[dict[str, float]]:
    if _POWER in law.parameters:
        return [{_POWER: 1.0}]
    if _BEND in law.parameters:
        return [{_BEND: 0.0}]
    return [{_FLOOR: share * float(np.exp(problem.z.min()))} for share in (0.01, 0.3)]


def disagreement(
    law: Law,
    params: Mapping[str, float],
    alternatives: tuple[Alternative, ...],
    columns: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Standard deviation of log predictions that the distances between a law and others stand for, one a run."""
    ours, total = np.log(law.predict(params, columns)), np.zeros(1)
    for one in alternatives:
        if one.widens:
            total = total + (one.widens * (np.log(one.law.predict(one.params, columns)) - ours)) ** 2
    return np.asarray(np.sqrt(total))
