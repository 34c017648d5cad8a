"""Can these runs determine the law at all? What the design leaves loose, in words, and which runs would fix it."""

import numpy as np

from scalefed.fitting.data import FitData
from scalefed.fitting.problem import Problem
from scalefed.fitting.solver import Solver
from scalefed.fitting.status import listed
from scalefed.laws.law import Law
from scalefed.laws.terms import Term
from scalefed.seeds import quasi_random
from scalefed.units import grouped

_PROBES = 24  # points of the parameter space: a rank that is full at one of them is full nearly everywhere
_SINGULAR = 1e-6  # share of the largest singular value: far above rounding, far below what 1% noise resolves
_PROPORTIONAL = 0.05  # of the spread: columns as near to a line as that cannot be told apart
_SHOWN_LEVELS = 4  # in a sentence
_ENOUGH = 20_000  # runs looked at for distinct settings
_PROBED = 1_000  # distinct settings that the rank is computed from


def gaps(data: FitData, problem: Problem, theta: np.ndarray, *, believed: bool = False) -> tuple[str, ...]:
    """Sentences naming what the runs cannot determine because of where they are; empty if nothing.

    Checked in turn: enough different designs for the free parameters; every column varies; no two columns move in
    proportion; the law's Jacobian has full rank, at generic parameters or at the optimum.

    Args:
        data: the runs.
        problem: law and runs as fitted.
        theta: (p,) the optimum.
        believed: whether beliefs fill in what the runs leave open; then only columns that never vary are gaps, as no
            width could tell how little is known of them.
    """
    law = data.law
    if not law.free:
        return ()
    if believed:
        return tuple(_constant_columns(law, data))
    gaps = _too_few(law, data) + _constant_columns(law, data)
    return tuple(gaps) or loose_designs(data, problem, theta)


def loose_designs(data: FitData, problem: Problem, theta: np.ndarray) -> tuple[str, ...]:
    """Sentences naming columns that move together, or parameters that the design leaves loose."""
    law = data.law
    return tuple(_proportional(law, data) or _rank(law, data, problem.to_values(theta[None])))


def _too_few(law: Law, data: FitData) -> list[str]:
    distinct, free = distinct_settings(data), len(law.free)
    if not law.columns:
        return [f"{law.formula!r} names no column of the runs, so they say nothing about {listed(law.free)}"]
    if distinct >= free:
        return []
    runs = f"{data.n} runs at {distinct} different settings" if distinct < data.n else f"{data.n} runs"
    more = "1 run" if free - distinct == 1 else f"{free - distinct} runs"
    return [
        f"{runs} for {free} free parameters ({', '.join(law.free)}): "
        f"add at least {more} at other settings of {listed(law.columns)}, or fix parameters"
    ]


def distinct_settings(data: FitData) -> int:
    """How many different settings of the law's columns the runs have, of at most 20,000 runs that are looked at."""
    table = np.stack([data.columns[c] for c in data.law.columns], axis=1) if data.law.columns else np.zeros((data.n, 1))
    return len(np.unique(table[:: max(1, data.n // _ENOUGH)], axis=0))


def spare_settings(data: FitData, free: int) -> int:
    """How many different settings there are besides those that the free parameters use up."""
    return distinct_settings(data) - free


def _constant_columns(law: Law, data: FitData) -> list[str]:
    gaps = []
    for column in law.columns:
        levels = np.unique(data.columns[column])
        users = exponents_of(law, column)
        users = [p for p in users if _only_with(law, p, column)] or users
        if len(levels) == 1 and users:
            gaps.append(
                f"{column} is {grouped(levels[0])} in every run, so {listed(users)} cannot be determined: "
                f"add runs with another {column}"
            )
    return gaps


def _only_with(law: Law, parameter: str, column: str) -> bool:
    parts = [p for t in law.bound_terms for p in t.all_parts() if parameter in p.parameters]
    return all(any(column in a.columns for a in p.atoms) for p in parts)


def exponents_of(law: Law, column: str) -> list[str]:
    """Free parameters that stand in exponents of a column or multiply it."""
    names = [name for term in law.bound_terms for name in _touching(term, column)]
    return [name for name in dict.fromkeys(names) if name in law.free]


def _touching(term: Term, column: str) -> list[str]:
    names: list[str] = []
    for part in term.parts:
        if any(column in atom.columns for atom in part.atoms):
            names += part.parameters
        for factor in part.factors:
            if _involves(factor, column):
                names += [*part.parameters, *_touching(factor, column)]
    for power in term.powers:
        inner = [name for one in power.terms for name in _touching(one, column)]
        if not inner and any(_involves(one, column) for one in power.terms):
            inner = [name for part in power.exponent for name in part.parameters]
        names += inner
    for one in term.repeats:
        if _involves(one.tokens, column) or _involves(one.unique, column):
            names += [*(name for part in one.exponent for name in part.parameters), one.decay]
            names += [*_touching(one.tokens, column), *_touching(one.unique, column)]
    return names


def _involves(term: Term, column: str) -> bool:
    return any(column in atom.columns for part in term.all_parts() for atom in part.atoms)


def _proportional(law: Law, data: FitData) -> list[str]:
    """Pairs of columns of which one is a power of the other in every run."""
    atoms = {
        a.columns[0]: a.value(data.columns)
        for t in law.bound_terms
        for p in t.all_parts()
        for a in p.atoms
        if a.kind == "log" and p.parameters
    }
    names, gaps = list(atoms), []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            x, y = atoms[first] - atoms[first].mean(), atoms[second] - atoms[second].mean()
            slope = (x @ y) / (x @ x)
            if np.std(y - slope * x) > _PROPORTIONAL * np.std(y):
                continue
            ratio = float(np.exp(np.median(atoms[second] - atoms[first])))
            how = f"about {grouped(ratio, 3)} times {first}" if abs(slope - 1) < 0.05 else f"a fixed power of {first}"
            users = listed(dict.fromkeys(exponents_of(law, first) + exponents_of(law, second)))
            gaps.append(
                f"{second} is {how} in every run, so the effects of {first} and {second} ({users} and the amplitudes) "
                f"cannot be told apart: add runs that vary {second} at fixed {first}, for example a quarter and four "
                f"times as many {second}"
            )
    return gaps


def _rank(law: Law, data: FitData, best: np.ndarray) -> list[str]:
    """Where the Jacobian loses rank, at generic parameters and at the best, a combination never shows in the losses."""
    table = np.stack([data.columns[c] for c in law.columns], axis=1)
    distinct = np.unique(table[:: max(1, data.n // _ENOUGH)], axis=0)[:: max(1, min(data.n, _ENOUGH) // _PROBED)]
    columns = {c: distinct[:, i] for i, c in enumerate(law.columns)}
    problem = Problem(law, columns, np.zeros(len(distinct)))
    singular, direction = _weakest(problem, generic_jacobian(problem))
    if singular > _SINGULAR or _weakest(problem, _jacobian(problem, problem.to_coordinates(best)))[0] > _SINGULAR:
        return []
    loose = [n for n, w in zip(problem.names, direction, strict=True) if abs(w) > 0.1]
    thin = [c for c in law.columns if len(np.unique(data.columns[c])) < 3]
    if thin:
        column = thin[0]
        levels = ", ".join(grouped(x) for x in np.unique(data.columns[column])[:_SHOWN_LEVELS])
        return [
            f"{column} has only the levels {levels}, so the combination of {listed(loose)} is loose: "
            f"add runs at a third {column}, well apart from these"
        ]
    return [f"the combination of {listed(loose)} is loose: vary {listed(law.columns)} independently of each other"]


def _weakest(problem: Problem, jacobian: np.ndarray) -> tuple[float, np.ndarray]:
    """Median over (points, n, p) Jacobians of the smallest singular value, and the direction that belongs to it."""
    jacobian = jacobian[np.isfinite(jacobian).all(axis=(1, 2))]  # what is subtracted may leave nothing at a probe
    if not len(jacobian):
        return 1.0, np.zeros(problem.p)
    if problem.n < problem.p:
        return 0.0, np.ones(problem.p)
    _, singular, right = np.linalg.svd(jacobian, full_matrices=False)
    order = np.argsort(singular[:, -1])
    middle = order[len(order) // 2]
    direction = right[middle, -1]
    return float(singular[middle, -1] / np.sqrt(problem.n)), direction / np.abs(direction).max()


def generic_jacobian(problem: Problem) -> np.ndarray:
    """D log loss / d coordinate with columns scaled to unit size, at several plausible parameters: (probes, n, p)."""
    cube = quasi_random(_PROBES, problem.p)
    theta = 0.2 + 0.5 * cube
    for channel in problem.channels:
        if channel.amplitude is not None:
            theta[:, channel.amplitude] = np.log(0.3) + 0.6 * (cube[:, channel.amplitude] - 0.5)
    for name, i in problem.index.items():
        if i == problem.base:
            theta[:, i] = 0.0
        elif name in problem.law.positive and problem.law.bounds.get(name):
            theta[:, i] = np.log(4.0 + 8.0 * cube[:, i])
    return _jacobian(problem, theta)


def _jacobian(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """D log loss / d coordinate with columns scaled to unit size, at (points, p) coordinates: (points, n, p)."""
    solver, step = Solver(problem), 1e-6
    jacobian = np.empty((len(theta), problem.n, problem.p))
    for i in range(problem.p):
        move = np.zeros(problem.p)
        move[i] = step
        jacobian[:, :, i] = (solver.residuals(theta - move)[0] - solver.residuals(theta + move)[0]) / (2 * step)
    size = np.sqrt((jacobian**2).mean(axis=1, keepdims=True))
    return np.asarray(jacobian / np.maximum(size, 1e-12))
