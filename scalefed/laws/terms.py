"""What is a law made of? Products of powers whose logarithms are polynomials in the parameters, added or subtracted.

A law is a sum of terms, ``loss = sum_j sign_j exp(u_j)``, nearly always all added. The logarithm of a term is

    u_j = sum_i  coefficient_i * (parameters of part i) * (atoms of part i) * (factors of part i)
        + sum_g  power_g * log(sum of group g)  +  sum_r  power_r * log(effective tokens r)

where an *atom* is a function of a run's columns: ``log(column)``, the column itself (for columns such as ``skew`` that
may be 0), or ``log(log(column))``. A parameter that stands as a base (an amplitude) enters its part as a logarithm; one
that stands in an exponent enters as it is. A *factor* is a term again, by its value: the ``params^q`` of
``exp(s*params^q)``. Groups are sums raised to a power, as in the coupled law ``E + (A/params^a + B/tokens^b)^c``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

Columns = Mapping[str, np.ndarray]
Values = Mapping[str, np.ndarray]

_HIGHEST = 300.0  # log of the largest factor: what stands above it is too large for any law


@dataclass(frozen=True, slots=True, order=True)
class Atom:
    """A function of a run's column.

    Attributes:
        kind: ``"log"`` (its logarithm), ``"raw"`` (the column itself) or ``"loglog"`` (the logarithm of its logarithm).
        columns: the column, alone in a tuple.
    """

    kind: str
    columns: tuple[str, ...]

    def value(self, columns: Columns) -> np.ndarray:
        """The atom for every run."""
        column = np.asarray(columns[self.columns[0]], dtype=float)
        if self.kind == "raw":
            return column
        logs = np.asarray(np.log(column))
        return np.asarray(np.log(logs)) if self.kind == "loglog" else logs


@dataclass(frozen=True, slots=True)
class Part:
    """One product inside the logarithm of a term: ``coefficient * parameters * atoms * exp(factors)``."""

    coefficient: float
    parameters: tuple[str, ...] = ()
    atoms: tuple[Atom, ...] = ()
    factors: tuple["Term", ...] = ()

    def times(self, other: "Part") -> "Part":
        """The product of two parts."""
        return Part(
            self.coefficient * other.coefficient,
            tuple(sorted(self.parameters + other.parameters)),
            tuple(sorted(self.atoms + other.atoms)),
            self.factors + other.factors,
        )


Polynomial = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Power:
    """A group of terms raised to a power: ``(sum of terms) ^ exponent``; the exponent is a polynomial."""

    terms: tuple["Term", ...]
    exponent: Polynomial


@dataclass(frozen=True, slots=True)
class Repeats:
    """Effective tokens raised to a power, see :func:`log_effective_tokens`.

    Attributes:
        tokens, unique: products of powers.
        decay: the parameter R.
        exponent: a polynomial.
    """

    tokens: "Term"
    unique: "Term"
    decay: str
    exponent: Polynomial = (Part(1.0),)


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a law: ``sign * exp(sum of parts) * product of powers * product of repeats``.

    ``text`` is the term as the user wrote it, for messages.
    """

    parts: Polynomial
    powers: tuple[Power, ...] = ()
    text: str = ""
    repeats: tuple[Repeats, ...] = ()
    sign: float = 1.0

    @property
    def is_constant(self) -> bool:
        """Whether the term does not depend on any column (the floor of a law)."""
        return not self.powers and not self.repeats and not any(part.atoms or part.factors for part in self.parts)

    def all_parts(self) -> Iterator[Part]:
        """Every part of the term, those of exponents, factors and grouped terms included."""
        exponents = [power.exponent for power in self.powers] + [repeats.exponent for repeats in self.repeats]
        for polynomial in (self.parts, *exponents):
            for part in polynomial:
                yield part
                for factor in part.factors:
                    yield from factor.all_parts()
        for power in self.powers:
            for term in power.terms:
                yield from term.all_parts()
        for repeats in self.repeats:
            yield Part(1.0, (repeats.decay,))
            yield from repeats.tokens.all_parts()
            yield from repeats.unique.all_parts()

    def times(self, other: "Term") -> "Term":
        """The product of two terms."""
        return Term(
            collect(self.parts + other.parts),
            self.powers + other.powers,
            repeats=self.repeats + other.repeats,
            sign=self.sign * other.sign,
        )

    def raised(self, exponent: Polynomial) -> "Term":
        """The term, which must be positive, to a power."""
        return Term(
            multiply(self.parts, exponent),
            tuple(Power(p.terms, multiply(p.exponent, exponent)) for p in self.powers),
            self.text,
            tuple(replace(r, exponent=multiply(r.exponent, exponent)) for r in self.repeats),
        )

    def mapped(self, change: Callable[[Polynomial], Polynomial], decay: Callable[[str], str] = str) -> "Term":
        """The term with every polynomial in it changed, outermost first, and its decays renamed."""

        def inside(polynomial: Polynomial) -> Polynomial:
            parts = (replace(p, factors=tuple(f.mapped(change, decay) for f in p.factors)) for p in polynomial)
            return change(tuple(parts))

        powers = tuple(Power(tuple(t.mapped(change, decay) for t in p.terms), inside(p.exponent)) for p in self.powers)
        repeats = tuple(
            Repeats(r.tokens.mapped(change, decay), r.unique.mapped(change, decay), decay(r.decay), inside(r.exponent))
            for r in self.repeats
        )
        return Term(inside(self.parts), powers, self.text, repeats, self.sign)


def collect(parts: Iterable[Part]) -> Polynomial:
    """Merge parts that have the same parameters, atoms and factors; parts that cancel disappear."""
    merged: dict[tuple[tuple[str, ...], tuple[Atom, ...], tuple[Term, ...]], float] = {}
    for part in parts:
        key = (part.parameters, part.atoms, part.factors)
        merged[key] = merged.get(key, 0.0) + part.coefficient
    return tuple(Part(value, *key) for key, value in merged.items() if value != 0.0)


def multiply(left: Polynomial, right: Polynomial) -> Polynomial:
    """The product of two polynomials."""
    return collect(a.times(b) for a in left for b in right)


def substitute_term(term: Term, fixed: Mapping[str, float], logged: frozenset[str]) -> Term:
    """A term with some parameters replaced by numbers; ``logged`` names those that enter as logarithms.

    A decay of repeats keeps its name: its number is among the values that the term is asked with.
    """

    def numbers(polynomial: Polynomial) -> Polynomial:
        parts = []
        for part in polynomial:
            value = part.coefficient
            for name in part.parameters:
                if name in fixed:
                    value *= float(np.log(fixed[name])) if name in logged else fixed[name]
            left = tuple(p for p in part.parameters if p not in fixed)
            parts.append(replace(part, coefficient=value, parameters=left))
        return collect(parts)

    return term.mapped(numbers)


def rename(term: Term, names: Mapping[str, str]) -> Term:
    """A term with parameters renamed; two parameters with one name are tied."""

    def renamed(polynomial: Polynomial) -> Polynomial:
        return collect(
            replace(part, parameters=tuple(sorted(names.get(n, n) for n in part.parameters))) for part in polynomial
        )

    return term.mapped(renamed, lambda name: names.get(name, name))


def evaluate(polynomial: Polynomial, values: Values, columns: Columns, logged: frozenset[str]) -> np.ndarray:
    """The value of a polynomial; parameters and columns broadcast by numpy's rules."""
    total: np.ndarray = np.zeros(())
    for part in polynomial:
        product: np.ndarray = np.asarray(part.coefficient)
        for name in part.parameters:
            value = np.asarray(values[name], dtype=float)
            product = product * (_log(value) if name in logged else value)
        for atom in part.atoms:
            product = product * atom.value(columns)
        for factor in part.factors:
            product = product * np.exp(np.minimum(log_term(factor, values, columns, logged), _HIGHEST))
        total = total + product
    return total


def _log(value: np.ndarray) -> np.ndarray:
    """The logarithm; a replicate's factor that is below all numbers is 0, and so is its term."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(value))


def log_term(term: Term, values: Values, columns: Columns, logged: frozenset[str]) -> np.ndarray:
    """The logarithm of a term without its sign; parameters and columns broadcast by numpy's rules."""
    total = evaluate(term.parts, values, columns, logged)
    for power in term.powers:
        exponent = evaluate(power.exponent, values, columns, logged)
        total = total + exponent * log_sum(power.terms, values, columns, logged)
    for repeats in term.repeats:
        tokens, unique = (np.exp(log_term(t, values, columns, logged)) for t in (repeats.tokens, repeats.unique))
        decay = np.asarray(values[repeats.decay], dtype=float)
        exponent = evaluate(repeats.exponent, values, columns, logged)
        total = total + exponent * log_effective_tokens(tokens, unique, decay)
    return total


def log_sum(terms: tuple[Term, ...], values: Values, columns: Columns, logged: frozenset[str]) -> np.ndarray:
    """The logarithm of the sum of terms, without overflow; NaN where subtracted terms leave nothing above 0."""
    logs = [log_term(term, values, columns, logged) for term in terms]
    if all(term.sign > 0 for term in terms):
        total = logs[0]
        for one in logs[1:]:
            total = np.logaddexp(total, one)
        return total
    top = np.asarray(np.max(np.stack(np.broadcast_arrays(*logs)), axis=0))
    rest = sum((term.sign * np.exp(one - top) for term, one in zip(terms, logs, strict=True)), np.zeros(()))
    return top + np.log(np.where(rest > 0, rest, np.nan))


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
    return log_effective(np.log(tokens), np.log(unique), decay)


def log_effective(log_tokens: np.ndarray, log_unique: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """:func:`log_effective_tokens` from logarithms."""
    repeats = np.expm1(np.clip(log_tokens - log_unique, 0.0, _HIGHEST))
    return np.asarray(np.minimum(log_unique, log_tokens) + np.log1p(-decay * np.expm1(-repeats / decay)))


def effective_slopes(
    log_tokens: np.ndarray, log_unique: np.ndarray, decay: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivative of :func:`log_effective` in ``log_tokens``: both fall where text is repeated."""
    ratio = np.exp(np.clip(log_tokens - log_unique, 0.0, _HIGHEST))
    fading = -(ratio - 1.0) / decay
    repeated = log_tokens > log_unique
    slope = np.where(repeated, ratio * np.exp(fading) / (1.0 - decay * np.expm1(fading)), 1.0)
    return slope, np.where(repeated, slope * (1.0 - ratio / decay - slope), 0.0)
