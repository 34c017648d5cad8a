"""Can the fit be trusted? A status with a full sentence, and the certificate behind it."""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from scalefed.fitting.initialisation import GlobalFit
from scalefed.fitting.problem import VANISHED, Problem
from scalefed.units import grouped

_FEW_AGREE = 0.02  # of the starts: one in fifty by itself may be luck
_NOT_CONVERGED_SHARE = 0.01  # of replicates: fewer move no end of a 95% interval
_DECREMENT = 1e-6  # relative fall still to come, far below the noise of any run
LOOSE = 3.0  # standard error where 1 is a factor of e: a factor of 20 either way is not known


class FitStatus(Enum):
    """What a fit says of itself, worst last; the value is the sentence."""

    CONVERGED = "The optimum was found and nothing speaks against it."
    REPLICATES_NOT_CONVERGED = "Some bootstrap replicates did not converge, so the intervals are rough."
    STARTS_DISAGREE = "Very few starts reached the best optimum, so a better one may exist."
    BOUND_HIT = "A parameter sits on its bound, so its interval is one-sided and its value is a limit, not an estimate."
    LOOSE = "Some parameters are loose, so only what does not hang on them is answered."
    NO_SPARE_RUN = "There are no more different settings than free parameters, so no error can be estimated."
    NOT_CONVERGED = "The solver stopped before it reached an optimum."
    NOT_IDENTIFIED = "These runs cannot determine the law."

    @property
    def severity(self) -> int:
        """0 for CONVERGED; larger is worse."""
        return list(FitStatus).index(self)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The evidence behind a status.

    Attributes:
        objective: sum of Huber losses of log residuals.
        decrement: how much lower the objective could still go by Newton's local model.
        converged: whether the solver's stopping rule was met.
        starts: starts run to the end.
        agreeing: share of them within 1e-6 (relative) of the best.
        replicates: bootstrap replicates.
        replicates_not_converged: how many of them did not meet the stopping rule (kept, not dropped).
        bounds_hit: parameter -> which bound, in words.
        replicates_at_bounds: parameter -> share of replicates on a bound.
        loose: the loosest combination of parameters, in words.
        loose_error: its standard error (amplitudes in logarithms, at the centre of the runs).
    """

    objective: float
    decrement: float
    converged: bool
    starts: int
    agreeing: float
    replicates: int
    replicates_not_converged: int
    bounds_hit: dict[str, str]
    replicates_at_bounds: dict[str, float]
    loose: str
    loose_error: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The worst status and full sentences for all of them."""

    status: FitStatus
    message: str


def certify(problem: Problem, best: GlobalFit, theta: np.ndarray, converged: np.ndarray) -> Certificate:
    """Collect the evidence.

    Args:
        problem: law and runs.
        best: the fit.
        theta: (B, p) coordinates of the replicates.
        converged: (B,) whether they met the stopping rule.
    """
    slack = 1e-9 * np.maximum(1.0, np.abs(theta))
    at = (theta <= problem.lower + slack) | (theta >= problem.upper - slack)
    shares = at.mean(axis=0) if len(theta) else np.zeros(problem.p)
    covariance = np.cov(theta.T).reshape(problem.p, problem.p) if len(theta) > 1 else np.zeros((problem.p,) * 2)
    words, error = loosest(problem, covariance)
    return Certificate(
        objective=best.objective,
        decrement=best.decrement,
        converged=best.converged,
        starts=best.starts,
        agreeing=best.agreeing,
        replicates=len(theta),
        replicates_not_converged=int((~converged).sum()),
        bounds_hit=bounds_hit(problem, best),
        replicates_at_bounds={n: float(x) for n, x in zip(problem.names, shares, strict=True) if x > 0},
        loose=words,
        loose_error=error,
    )


def judge(certificate: Certificate, gaps: tuple[str, ...], spare: int) -> Verdict:
    """The status of a fit.

    Args:
        certificate: the evidence.
        gaps: what the design leaves undetermined, in sentences.
        spare: different settings of the runs more than free parameters.
    """
    found: dict[FitStatus, str] = {}
    if gaps:
        found[FitStatus.NOT_IDENTIFIED] = "; ".join(gaps)
    elif spare < 1:
        found[FitStatus.NO_SPARE_RUN] = "add runs at 1 other setting at least, better 3 or more, or fix parameters"
    elif certificate.loose_error > LOOSE:
        error = grouped(certificate.loose_error, 2)
        found[FitStatus.LOOSE] = (
            f"the losses leave the combination of {certificate.loose} loose, standard error {error} "
            "where 1 is a factor of e: vary the runs further, or repeat with more seeds"
        )
    if not certificate.converged and certificate.decrement > _DECREMENT * certificate.objective:
        found[FitStatus.NOT_CONVERGED] = f"the objective could still fall by about {grouped(certificate.decrement, 1)}"
    if certificate.bounds_hit:
        found[FitStatus.BOUND_HIT] = "; ".join(f"{n} is {w}" for n, w in certificate.bounds_hit.items())
    if certificate.agreeing < _FEW_AGREE and certificate.starts > 1:
        found[FitStatus.STARTS_DISAGREE] = f"{certificate.agreeing:.1%} of {certificate.starts} starts agree"
    if certificate.replicates_not_converged > _NOT_CONVERGED_SHARE * certificate.replicates:
        count, total = certificate.replicates_not_converged, certificate.replicates
        found[FitStatus.REPLICATES_NOT_CONVERGED] = f"{count} of {total} replicates; they are kept"
    if not found:
        return Verdict(FitStatus.CONVERGED, FitStatus.CONVERGED.value)
    ordered = sorted(found, key=lambda s: -s.severity)
    return Verdict(ordered[0], " ".join(f"{s.value} ({found[s]}.)" for s in ordered))


def bounds_hit(problem: Problem, best: GlobalFit) -> dict[str, str]:
    """Parameters on a bound: name -> which bound, in words."""
    words = {}
    values = problem.to_values(best.theta[None])[0]
    floor = None if problem.base is None else problem.names[problem.base]
    for i, name in enumerate(problem.names):
        if not (best.at_lower[i] or best.at_upper[i]):
            continue
        side = "lower" if best.at_lower[i] else "upper"
        if name == floor and name not in problem.law.bounds:
            why = "the runs show no floor" if side == "lower" else "the floor is above every run"
        elif problem.lower[i] == -VANISHED and side == "lower":
            why = "the runs show no such term"
        else:
            why = grouped(values[i])
        words[name] = f"at its {side} bound: {why}"
    return words


def loosest(problem: Problem, covariance: np.ndarray) -> tuple[str, float]:
    """The loosest combination of parameters and its standard error.

    Args:
        problem: law and runs.
        covariance: (p, p) of the coordinates.
    """
    if not problem.p:
        return "nothing", 0.0
    values, vectors = np.linalg.eigh(covariance)
    worst = vectors[:, -1] / max(np.abs(vectors[:, -1]).max(), 1e-300)
    names = [n for n, w in zip(problem.names, worst, strict=True) if abs(w) > 0.3]
    return listed(names), float(np.sqrt(max(values[-1], 0.0)))


def listed(names: object) -> str:
    """Words joined for a sentence.

    >>> listed(["A", "a", "b"])
    'A, a and b'
    """
    words = [str(n) for n in names]  # type: ignore[attr-defined]
    return "".join(words) if len(words) < 2 else ", ".join(words[:-1]) + " and " + words[-1]
