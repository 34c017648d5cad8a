"""What is a law made of? Power-law products whose logarithms are polynomials in the parameters.

A law is a sum of positive terms, ``loss = sum_j exp(u_j)``. The logarithm of a term is a sum of parts

    u_j = sum_i  coefficient_i * (parameters of part i) * (atoms of part i)  +  sum_g  power_g * log(sum of group g)

where an *atom* is a function of a run's columns: ``log(column)``, the column itself (for columns such as ``skew`` that
may be 0), or the logarithm of the effective tokens after repeats. A parameter that stands as a base (an amplitude)
enters its part as a logarithm; one that stands in an exponent enters as it is. Groups are sums raised to a power, as in
the coupled law ``E + (A/params^a + B/tokens^b)^c``.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

Columns = Mapping[str, np.ndarray]
Values = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, order=True)
class Atom:
    """A function of a run's columns.

    Attributes:
        kind: ``"log"`` (logarithm of a column), ``"raw"`` (the column itself) or ``"repeats"`` (logarithm of the
            effective tokens, see :func:`log_effective_tokens`).
        columns: the columns it reads; one for log and raw, ``(tokens, unique_tokens)`` for repeats.
        parameter: the decay parameter of ``repeats``, else the empty string.
    """

    kind: str
    columns: tuple[str, ...]
    parameter: str = ""

    def value(self, columns: Columns, values: Values) -> np.ndarray:
        """The atom for every run; broadcasts parameters against columns by numpy's rules."""
        if self.kind == "raw":
            return np.asarray(columns[self.columns[0]], dtype=float)
        if self.kind == "log":
            return np.asarray(np.log(np.asarray(columns[self.columns[0]], dtype=float)))
        tokens, unique = (np.asarray(columns[name], dtype=float) for name in self.columns)
        return log_effective_tokens(tokens, unique, np.asarray(values[self.parameter], dtype=float))


@dataclass(frozen=True, slots=True)
class Part:
    """One product inside the logarithm of a term: ``coefficient * parameters * atoms``."""

    coefficient: float
    parameters: tuple[str, ...] = ()
    atoms: tuple[Atom, ...] = ()

    def times(self, other: "Part") -> "Part":
        """The product of two parts."""
        return Part(
            self.coefficient * other.coefficient,
            tuple(sorted(self.parameters + other.parameters)),
            tuple(sorted(self.atoms + other.atoms)),
        )

    def names(self) -> Iterator[str]:
        """Every parameter that the part needs, with those inside atoms."""
        yield from self.parameters
        yield from (atom.parameter for atom in self.atoms if atom.parameter)


Polynomial = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Power:
    """A group of terms raised to a power: ``(sum of terms) ^ exponent``; the exponent is a polynomial."""

    terms: tuple["Term", ...]
    exponent: Polynomial


@dataclass(frozen=True, slots=True)
class Term:
    """One positive term of a law: ``exp(sum of parts) * product of powers``.

    ``text`` is the term as the user wrote it, for messages.
    """

    parts: Polynomial
    powers: tuple[Power, ...] = ()
    text: str = ""

    @property
    def is_constant(self) -> bool:
        """Whether the term does not depend on any column (the floor of a law)."""
        return not self.powers and not any(part.atoms for part in self.parts)

    def all_parts(self) -> Iterator[Part]:
        """Every part of the term, those of exponents and of grouped terms included."""
        yield from self.parts
        for power in self.powers:
            yield from power.exponent
            for term in power.terms:
                yield from term.all_parts()


def collect(parts: Iterable[Part]) -> Polynomial:
    """Merge parts that have the same parameters and atoms; parts that cancel disappear."""
    merged: dict[tuple[tuple[str, ...], tuple[Atom, ...]], float] = {}
    for part in parts:
        key = (part.parameters, part.atoms)
        merged[key] = merged.get(key, 0.0) + part.coefficient
    return tuple(Part(value, *key) for key, value in merged.items() if value != 0.0)


def multiply(left: Polynomial, right: Polynomial) -> Polynomial:
    """The product of two polynomials."""
    return collect(a.times(b) for a in left for b in right)


def substitute(polynomial: Polynomial, fixed: Mapping[str, float], logged: frozenset[str]) -> Polynomial:
    """Replace parameters by numbers; ``logged`` names those that enter as logarithms."""
    parts = []
    for part in polynomial:
        value = part.coefficient
        for name in part.parameters:
            if name in fixed:
                value *= float(np.log(fixed[name])) if name in logged else fixed[name]
        parts.append(replace(part, coefficient=value, parameters=tuple(p for p in part.parameters if p not in fixed)))
    return collect(parts)


def substitute_term(term: Term, fixed: Mapping[str, float], logged: frozenset[str]) -> Term:
    """A term with some parameters replaced by numbers (parameters inside atoms stay, see :class:`Atom`)."""
    powers = tuple(
        Power(tuple(substitute_term(t, fixed, logged) for t in p.terms), substitute(p.exponent, fixed, logged))
        for p in term.powers
    )
    return Term(substitute(term.parts, fixed, logged), powers, term.text)


def rename(term: Term, names: Mapping[str, str]) -> Term:
    """A term with parameters renamed; two parameters with one name are shared."""

    def polynomial(parts: Polynomial) -> Polynomial:
        return collect(
            Part(
                part.coefficient,
                tuple(sorted(names.get(n, n) for n in part.parameters)),
                tuple(replace(a, parameter=names.get(a.parameter, a.parameter)) for a in part.atoms),
            )
            for part in parts
        )

    powers = tuple(Power(tuple(rename(t, names) for t in p.terms), polynomial(p.exponent)) for p in term.powers)
    return Term(polynomial(term.parts), powers, term.text)


def evaluate(polynomial: Polynomial, values: Values, columns: Columns, logged: frozenset[str]) -> np.ndarray:
    """The value of a polynomial; parameters and columns broadcast by numpy's rules."""
    total: np.ndarray = np.zeros(())
    for part in polynomial:
        product: np.ndarray = np.asarray(part.coefficient)
        for name in part.parameters:
            value = np.asarray(values[name], dtype=float)
            product = product * (np.log(value) if name in logged else value)
        for atom in part.atoms:
            product = product * atom.value(columns, values)
        total = total + product
    return total


def log_term(term: Term, values: Values, columns: Columns, logged: frozenset[str]) -> np.ndarray:
    """The logarithm of a term; parameters and columns broadcast by numpy's rules."""
    total = evaluate(term.parts, values, columns, logged)
    for power in term.powers:
        exponent = evaluate(power.exponent, values, columns, logged)
        total = total + exponent * log_sum(power.terms, values, columns, logged)
    return total


def log_sum(terms: tuple[Term, ...], values: Values, columns: Columns, logged: frozenset[str]) -> np.ndarray:
    """The logarithm of the sum of terms, without overflow."""
    total = log_term(terms[0], values, columns, logged)
    for term in terms[1:]:
        total = np.logaddexp(total, log_term(term, values, columns, logged))
    return total


def log_effective_tokens(tokens: np.ndarray, unique: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """How many fresh tokens are repeated tokens worth? The logarithm of ``U (1 + R (1 - exp(-(D/U - 1)/R)))``.

    Args:
        tokens: D, training tokens with repeats.
        unique: U, unique tokens; where it is not below ``tokens`` nothing is repeated and the answer is log D.
        decay: R, the number of repeats after which a further repeat is worth 1/e of a fresh pass.

    Source: Muennighoff et al. 2023 (arXiv 2305.16264), equation 5.

    >>> float(np.exp(log_effective_tokens(np.array(4e9), np.array(1e9), np.array(15.4)))).__round__(-6)
    3726000000.0
    """
    unique = np.minimum(unique, tokens)
    repeats = tokens / unique - 1.0
    return np.asarray(np.log(unique) + np.log1p(-decay * np.expm1(-repeats / decay)))
