"""What do a few runs say of a law, beside what is believed of it? Draws of its parameters, in one batch.

The law is written by its optimum (:mod:`scalefed.fitting.optimum_terms`), believed weakly
(:mod:`scalefed.fitting.beliefs`), and its runs are taken to miss it by Student's t with four degrees of freedom, whose
scale is drawn with the rest. A thousand particles are drawn from the beliefs and taken to the posterior in steps, each
a power of the likelihood at which half of them still count; after each step they are resampled and moved by differences
of each other. No optimum is sought, so flat valleys and two of them do no harm, and the same seed makes the same draws.

Source: Del Moral, Doucet and Jasra 2006, "Sequential Monte Carlo samplers"; moves: ter Braak 2006 (differential
evolution Markov chain), with halves as in Foreman-Mackey et al. 2013 so that the moves keep the posterior.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scalefed.errors import ConfigError
from scalefed.fitting.beliefs import BORROWED, Beliefs, beliefs
from scalefed.fitting.optimum_terms import OptimumTerms, optimum_terms
from scalefed.fitting.problem import Problem
from scalefed.seeds import rng

METHODS = ("posterior", "posterior-borrowed")

_DEGREES = 4.0  # of freedom of a run's error: tails as heavy as those of published runs
_FEWEST = 1000  # particles; with fewer the differences do not span a dozen terms
_KEPT = 0.5  # effective share of the particles that a step leaves
_MOVES = 6  # after each step; tests/benchmarks/bench_posterior.py shows that these and the last are enough
_LAST_MOVES = 40  # of each kind, once the likelihood counts in full
_JITTER = 1e-4  # of the believed standard deviations, so that no direction is ever lost
_TAIL = 6.0  # degrees of freedom of the draws about the particles
_NEVER = -1e300  # a log likelihood whose power 0 is still 1

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Posterior:
    """Draws of a law's parameters.

    Attributes:
        middle: (p,) coordinates of the median of every optimum term: the estimate that goes with the draws.
        theta: (draws, p) coordinates.
        phi: (draws, k + 1) the optimum terms and the log of the noise.
        terms: the law by its optimum.
        noise: median standard deviation of log losses.
        notes: sentences that say how they were made.
    """

    middle: Array
    theta: Array
    phi: Array
    terms: OptimumTerms
    noise: float
    notes: tuple[str, ...]


def posterior(
    problem: Problem,
    clusters: Array,
    *,
    draws: int,
    seed: int = 0,
    borrowed: bool = False,
    believed: Beliefs | None = None,
) -> Posterior:
    """Draws from the posterior of a law.

    Args:
        problem: law and runs.
        clusters: (n,) integers from 0; rows of one number (checkpoints of a run) count as one run.
        draws: how many.
        seed: of the particles.
        borrowed: whether the slope of the best size is believed to be as in other families.
        believed: what is believed, in place of the weak beliefs.

    Raises:
        ConfigError: the law has no optimum of the form needed.
    """
    terms = optimum_terms(problem.law, problem.columns)
    if terms is None:
        raise ConfigError(
            f"the law {problem.law.name!r} is no floor and sum of terms in params and tokens with exponents of their "
            "own that are free, so its optimum cannot be drawn; ask for intervals='bootstrap'"
        )
    held = believed or beliefs(terms, _level(problem, terms), borrowed=borrowed)
    target = _Target(problem, terms, held, clusters)
    found = sample(target.log_likelihood, held, max(draws, _FEWEST), rng(seed, "posterior"))
    middle = np.median(found, axis=0)[None]
    note = "intervals are of a posterior under weak beliefs about the optimum"
    if problem.n <= problem.p:
        note += f", which fill in what {problem.n} runs leave open of {problem.p} parameters"
    notes = (f"{note}, with {BORROWED} borrowed",) if borrowed else (note,)
    noise = float(np.exp(middle[0, -1]) * np.sqrt(_DEGREES / (_DEGREES - 2)))
    kept = found[:draws]
    return Posterior(target.coordinates(middle)[0], target.coordinates(kept), kept, terms, noise, notes)


def has_posterior(problem: Problem) -> bool:
    """Whether the law can be written by its optimum."""
    return optimum_terms(problem.law, problem.columns) is not None


def sample(log_likelihood: Callable[[Array], Array], held: Beliefs, size: int, generator: np.random.Generator) -> Array:
    """(size, k) draws from beliefs times likelihood.

    Args:
        log_likelihood: of (v, k) terms, far below all others where they are not allowed.
        held: the beliefs.
        size: how many particles.
        generator: of all that is drawn.
    """
    phi = held.draw(generator, 2 * (size // 2 + size % 2))
    likelihood, power = log_likelihood(phi), 0.0
    while power < 1.0:
        step = _step(likelihood, power)
        rows = _resampled(step * likelihood, generator)
        phi, likelihood, power = phi[rows], likelihood[rows], power + step
        for _ in range(_MOVES if power < 1.0 else _LAST_MOVES):
            _move(phi, likelihood, power, log_likelihood, held, generator)
    return phi[generator.permutation(len(phi))[:size]]


def _step(likelihood: Array, power: float) -> float:
    """How much more of the likelihood leaves half of the particles counting."""

    def share(step: float) -> float:
        weights = np.exp(step * (likelihood - likelihood.max()))
        return float(weights.sum() ** 2 / (weights**2).sum() / len(weights))

    low, high = 0.0, 1.0 - power
    if share(high) >= _KEPT * min(1.0, share(0.0)):
        return high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) >= _KEPT * share(0.0) else (low, middle)
    return high


def _resampled(log_weights: Array, generator: np.random.Generator) -> Array:
    """Rows as often as they weigh, evenly spaced."""
    weights = np.exp(log_weights - log_weights.max())
    edges = np.cumsum(weights) / weights.sum()
    size = len(weights)
    rows = np.searchsorted(edges, (np.arange(size) + generator.random()) / size)
    return generator.permutation(np.minimum(rows, size - 1))


def _move(
    phi: Array,
    likelihood: Array,
    power: float,
    log_likelihood: Callable[[Array], Array],
    held: Beliefs,
    generator: np.random.Generator,
) -> None:
    """Move each half of the particles, in place: by differences of the other half, then to draws from about it."""
    half = len(phi) // 2
    for propose in (_by_differences, _anew, _by_scale):
        for rows, others in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
            moved, bias = propose(phi[rows], phi[others], held.sd, generator)
            there = log_likelihood(moved)
            gain = power * (there - likelihood[rows]) + held.log_density(moved) - held.log_density(phi[rows]) + bias
            taken = np.log(generator.random(half)) < gain
            phi[rows][taken], likelihood[rows][taken] = moved[taken], there[taken]


def _by_differences(
    phi: Array, others: Array, sd: Array, generator: np.random.Generator
) -> tuple[Array, Array | float]:
    """A step of each particle along the difference of two others."""
    half, dimensions = phi.shape
    first = generator.integers(0, half, half)
    second = (first + generator.integers(1, half, half)) % half
    length = 2.38 / np.sqrt(2 * dimensions) * np.exp(0.7 * generator.standard_normal((half, 1)))
    jitter = _JITTER * sd * generator.standard_normal(phi.shape)
    return phi + length * (others[first] - others[second]) + jitter, 0.0


def _by_scale(phi: Array, others: Array, sd: Array, generator: np.random.Generator) -> tuple[Array, Array | float]:
    """The noise, last of the terms, by a factor, and what it spreads about the least noisy other by the same."""
    half, dimensions = phi.shape
    quiet = others[np.argsort(others[:, -1])[generator.integers(0, max(1, half // 10), half)]]
    step = generator.standard_normal((half, 1))
    moved = quiet + (phi - quiet) * np.exp(step)
    moved[:, -1:] = phi[:, -1:] + step
    return moved, (dimensions - 1) * step[:, 0]


def _anew(phi: Array, others: Array, sd: Array, generator: np.random.Generator) -> tuple[Array, Array | float]:
    """Draws from Student's t about the others, and what its density favours."""
    half, dimensions = phi.shape
    centre = others.mean(axis=0)
    factor = np.linalg.cholesky(np.cov(others.T) + np.diag((_JITTER * sd) ** 2))
    tail = np.sqrt(_TAIL / generator.chisquare(_TAIL, (half, 1)))
    moved = centre + tail * generator.standard_normal((half, dimensions)) @ factor.T
    distance = [(np.linalg.solve(factor, (x - centre).T) ** 2).sum(axis=0) for x in (phi, moved)]
    before, after = (-0.5 * (_TAIL + dimensions) * np.log1p(x / _TAIL) for x in distance)
    return moved, before - after


class _Target:
    """The likelihood of optimum terms, and the coordinates that belong to them."""

    def __init__(self, problem: Problem, terms: OptimumTerms, held: Beliefs, clusters: Array) -> None:
        self.problem, self.terms, self.held = problem, terms, held
        self.weights = 1.0 / np.bincount(clusters)[clusters]
        self.scale = np.zeros(problem.n) if problem.weights is None else -0.5 * np.log(problem.weights)
        bounds = [problem.law.bounds.get(name, (None, None)) for name in problem.names]
        self.low = np.array([-np.inf if low is None else low for low, _ in bounds])
        self.high = np.array([np.inf if high is None else high for _, high in bounds])

    def _values(self, phi: Array) -> Array:
        found = self.terms.values(phi[:, :-1])
        return np.stack([found[name] for name in self.problem.names], axis=1)

    def log_likelihood(self, phi: Array) -> Array:
        """(v,) for optimum terms and log noise (v, k + 1); far below outside the law's bounds."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            values = self._values(phi)
            by_name = {name: values[:, i] for i, name in enumerate(self.problem.names)}
            missed = self.problem.z - np.log(self.problem.law.predict(by_name, self.problem.columns))
            noise = phi[:, -1:] + self.scale
            terms = -0.5 * (_DEGREES + 1) * np.log1p((missed * np.exp(-noise)) ** 2 / _DEGREES) - noise
            total = (self.weights * terms).sum(axis=1)
        inside = ((values >= self.low) & (values <= self.high)).all(axis=1)
        return np.where(inside & np.isfinite(total), total, _NEVER)

    def coordinates(self, phi: Array) -> Array:
        """(v, p) the solver's coordinates, within its box."""
        found = self.problem.to_coordinates(self._values(phi))
        return np.asarray(np.clip(found, self.problem.lower, self.problem.upper))


def _level(problem: Problem, terms: OptimumTerms) -> float:
    """Log of the median loss, less the floor where that is known."""
    return float(np.log(max(np.median(np.exp(problem.z)) - terms.floor, 1e-12)))
