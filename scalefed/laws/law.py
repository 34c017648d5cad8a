"""What does a law predict, which parameters does it have, and which columns does it need?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from scalefed.errors import ConfigError, DataError, refuses_old_words
from scalefed.laws.constraints import constraints
from scalefed.laws.parser import parse
from scalefed.laws.terms import (
    Atom,
    Part,
    Polynomial,
    Repeats,
    Term,
    evaluate,
    log_sum,
    log_term,
    rename,
    substitute_term,
)
from scalefed.typeset import Sheet, Typeset
from scalefed.units import grouped


class InsideExponentError(ConfigError):
    """A column stands in an exponent, so that the law is no sum of its powers."""


@dataclass(frozen=True, slots=True)
class Monomial:
    """A term of a law with numbers put in: ``exp(log_coefficient) * prod(column ^ exponent) * groups``.

    Attributes:
        log_coefficient: shape of the parameter values, natural logarithm.
        exponents: for every free column the exponent, shape of the parameter values.
        groups: sums raised to a power, each ``(power, terms)``.
        repeated: effective tokens raised to a power, each ``(exponent, decay R, tokens column, unique column)``.
        scales: for each of these, the logarithm of what its unique tokens are multiplied by.
        sign: -1 for a term that is subtracted.
    """

    log_coefficient: np.ndarray
    exponents: Mapping[str, np.ndarray]
    groups: tuple[tuple[np.ndarray, tuple["Monomial", ...]], ...] = ()
    repeated: tuple[tuple[np.ndarray, np.ndarray, str, str], ...] = ()
    scales: tuple[np.ndarray, ...] = ()
    sign: float = 1.0


@dataclass(frozen=True)
class Law(Typeset):
    """A scaling law: a sum of power-law products over columns of the run log.

    Build one with :meth:`parse`, or take a named one from ``LAWS``.

    Attributes:
        name: short name.
        formula: the text it was read from.
        terms: the parsed terms (see :mod:`scalefed.laws.terms`), fixed and shared parameters not yet put in.
        parameters: names of all parameters in order of appearance, fixed ones included, shared ones once.
        positive: parameters that stand as bases (amplitudes, the floor): always positive, fitted in logarithms.
        fixed: parameters held at a number.
        bounds: parameter -> (low, high), closed; None on a side means open.
        ties: parameter -> the parameter whose value it takes.
        extra_columns: columns beyond those of the run log.
        meanings: what each parameter stands for.
        units: the unit of each parameter.
        source: where the law comes from.
    """

    name: str
    formula: str
    terms: tuple[Term, ...] = field(repr=False)
    parameters: tuple[str, ...]
    positive: frozenset[str] = field(repr=False)
    fixed: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)
    extra_columns: tuple[str, ...] = field(default=(), repr=False)
    meanings: Mapping[str, str] = field(default_factory=dict, repr=False)
    units: Mapping[str, str] = field(default_factory=dict, repr=False)
    source: str = field(default="", repr=False)

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        name: str = "custom",
        columns: Sequence[str] = (),
        fixed: Mapping[str, float] | None = None,
        bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
        meanings: Mapping[str, str] | None = None,
        units: Mapping[str, str] | None = None,
        source: str = "",
    ) -> "Law":
        """Read a law from its formula.

        Args:
            text: the formula; the grammar is in :mod:`scalefed.laws.parser`.
            name: a short name for tables and files.
            columns: column names beyond those of the run log.
            fixed: parameters held at a number.
            bounds: parameter -> (low, high); None leaves a side open.
            meanings: what each parameter stands for.
            units: the unit of each parameter.
            source: where the law comes from.

        Raises:
            ConfigError: the formula cannot be read (with the position), or names an unknown parameter.

        >>> law = Law.parse("E + A/params^a")
        >>> round(float(law.predict({"E": 1.0, "A": 8.0, "a": 0.5}, {"params": 4.0})), 9)
        5.0
        """
        parsed = parse(text, columns)
        law = cls(
            name=name,
            formula=" ".join(text.split()),
            terms=parsed.terms,
            parameters=tuple(parsed.parameters),
            positive=frozenset(parsed.bases),
            extra_columns=tuple(columns),
            meanings=dict(meanings or {}),
            units=dict(units or {}),
            source=source,
        )
        return law.with_(fixed=fixed, bounds=bounds)

    @refuses_old_words
    def with_(
        self,
        *,
        fixed: Mapping[str, float] | None = None,
        bounds: Mapping[str, tuple[float | None, float | None]] | None = None,
        ties: Mapping[str, str] | None = None,
        name: str | None = None,
    ) -> "Law":
        """The same law with parameters fixed, bounded, or shared.

        Args:
            fixed: parameter -> number.
            bounds: parameter -> (low, high); None leaves a side open.
            ties: parameter -> the parameter whose value it takes, for example ``{"b": "a"}`` for equal exponents.
            name: a new name; by default the old one.

        Raises:
            ConfigError: an unknown parameter, a value out of range, or an empty interval.

        >>> Law.parse("E + A/params^a + B/tokens^b").with_(ties={"b": "a"}).parameters
        ('E', 'A', 'a', 'B')
        """
        held, limits, equal = constraints(
            self.name, self.parameters, self.positive, fixed=fixed, bounds=bounds, ties=ties
        )
        terms = tuple(rename(t, equal) for t in self.terms) if equal else self.terms
        kept = tuple(p for p in self.parameters if p not in equal)
        return replace(
            self,
            name=name or self.name,
            terms=terms,
            parameters=kept,
            fixed={p: v for p, v in {**self.fixed, **held}.items() if p in kept},
            bounds={p: v for p, v in {**self.bounds, **limits}.items() if p in kept},
            ties={**{p: equal.get(other, other) for p, other in self.ties.items()}, **equal},
        )

    @cached_property
    def free(self) -> tuple[str, ...]:
        """Parameters that a fit estimates: all but the fixed ones."""
        return tuple(p for p in self.parameters if p not in self.fixed)

    @cached_property
    def bound_terms(self) -> tuple[Term, ...]:
        """The terms with fixed parameters put in."""
        return tuple(substitute_term(t, self.fixed, self.positive) for t in self.terms)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns of the run log that the law needs; one that only a parameter fixed at 0 multiplies is not needed."""
        names: dict[str, None] = {}
        for term in self.bound_terms:
            for part in term.all_parts():
                for atom in part.atoms:
                    names.update(dict.fromkeys(atom.columns))
        return tuple(names)

    @cached_property
    def floor(self) -> str | None:
        """The parameter that is the irreducible loss: a term of its own without any column; None if there is none.

        Where something is subtracted a constant is no floor.
        """
        if any(term.sign < 0 for term in self.terms):
            return None
        for term in self.terms:
            plain = term.is_constant and len(term.parts) == 1 and len(term.parts[0].parameters) == 1
            if plain and term.parts[0].parameters[0] in self.positive:
                return term.parts[0].parameters[0]
        return None

    def predict(self, values: Mapping[str, ArrayLike], columns: Mapping[str, ArrayLike]) -> np.ndarray:
        """The loss for parameter values and runs.

        Args:
            values: every free parameter; numbers, or arrays of one shape V (bootstrap replicates); of a fixed one only
                the shape counts.
            columns: every needed column; numbers or arrays of one shape X (runs).

        Returns:
            Loss, shape V + X, in the unit of the fitted target (nats per token).

        Raises:
            DataError: a column or a parameter is missing.

        >>> LAW = Law.parse("A/params^a")
        >>> LAW.predict({"A": [1.0, 2.0], "a": [0.0, 0.5]}, {"params": [1.0, 4.0]}).tolist()
        [[1.0, 1.0], [2.0, 1.0]]
        """
        value_arrays, column_arrays = self._arrays(values, columns, self.columns)
        logs = log_sum(self.bound_terms, value_arrays, column_arrays, self.positive)
        shape = _common(value_arrays, column_arrays, self.columns)
        with np.errstate(over="ignore"):  # a loss beyond all numbers is infinite
            return np.broadcast_to(np.exp(logs), shape).copy()

    def monomials(
        self, values: Mapping[str, ArrayLike], given: Mapping[str, ArrayLike] | None = None
    ) -> tuple[Monomial, ...]:
        """The law as a posynomial in the columns that are not given: what the planner minimises.

        Args:
            values: every free parameter; numbers or arrays of one shape V.
            given: columns that are held fixed (clients_per_round, skew ...), numbers or arrays that broadcast with V.

        Returns:
            One :class:`Monomial` a term; coefficients and exponents have the broadcast shape of values and given.

        Raises:
            ConfigError: a column that is not given stands inside an exponent or ``exp``, so no power of it exists.

        >>> law = Law.parse("E + B/(tokens/clients^g)^b")
        >>> floor, term = law.monomials({"E": 1, "B": 2, "b": 0.5, "g": 1}, {"clients": 4})
        >>> float(term.exponents["tokens"]), float(np.exp(term.log_coefficient))
        (-0.5, 4.0)
        """
        fixed_columns = {k: np.asarray(v, dtype=float) for k, v in (given or {}).items()}
        missing = [p for p in self.free if p not in values]
        if missing:
            raise DataError(f"the law {self.name!r} needs a value for {', '.join(missing)}")
        arrays = {p: np.asarray(values[p], dtype=float) for p in self.free}
        arrays.update({p: np.asarray(v) for p, v in self.fixed.items()})
        shape = np.broadcast_shapes(*(a.shape for a in (*arrays.values(), *fixed_columns.values())), ())
        return tuple(_monomial(t, arrays, fixed_columns, self.positive, shape) for t in self.bound_terms)

    def _arrays(
        self, values: Mapping[str, ArrayLike], columns: Mapping[str, ArrayLike], needed: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        missing = [p for p in self.free if p not in values]
        if missing:
            raise DataError(f"the law {self.name!r} needs a value for {', '.join(missing)}")
        lacking = [c for c in needed if c not in columns]
        if lacking:
            raise DataError(
                f"the law {self.name!r} needs the column {', '.join(lacking)}; given: {', '.join(map(str, columns))}"
            )
        column_arrays = {c: np.asarray(columns[c], dtype=float) for c in needed}
        depth = max((a.ndim for a in column_arrays.values()), default=0)
        arrays = {p: np.asarray(values[p], dtype=float) for p in self.free}
        arrays |= {p: np.full(np.shape(values.get(p, v)), v) for p, v in self.fixed.items()}
        return {p: a.reshape(a.shape + (1,) * depth) for p, a in arrays.items()}, column_arrays

    def sheet(self) -> Sheet:
        """One row a parameter: meaning, unit, and what holds it."""
        rows = tuple((p, self.meanings.get(p, ""), self.units.get(p, ""), self._held(p)) for p in self.parameters)
        ties = tuple(f"{p} is {other}" for p, other in self.ties.items())
        sources = (f"source: {self.source}",) if self.source else ()
        return Sheet(str(self), ("parameter", "meaning", "unit", "held"), rows, (*ties, *sources))

    def _held(self, name: str) -> str:
        if name in self.fixed:
            return f"at {grouped(self.fixed[name])}"
        low, high = self.bounds.get(name, (None, None))
        return "" if low is None and high is None else f"{'' if low is None else low} to {'' if high is None else high}"

    def __str__(self) -> str:
        return f"{self.name}: loss = {self.formula}"

    def __hash__(self) -> int:
        return hash((self.name, self.formula, tuple(sorted(self.fixed.items()))))


def _common(
    values: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray], needed: Sequence[str]
) -> tuple[int, ...]:
    shapes = [a.shape for a in values.values()] + [columns[c].shape for c in needed]
    return np.broadcast_shapes(*shapes)


def _monomial(
    term: Term,
    values: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    logged: frozenset[str],
    shape: tuple[int, ...],
) -> Monomial:
    by_column: dict[str, list[Polynomial]] = {}
    constant: list[Polynomial] = []
    for part in term.parts:
        free = [a for a in part.atoms if not set(a.columns) <= set(given)]
        inner = {c for factor in part.factors for p in factor.all_parts() for a in p.atoms for c in a.columns}
        if not free and inner <= set(given):
            constant.append((part,))
            continue
        if len(free) != 1 or free[0].kind != "log" or not inner <= set(given):
            names = ", ".join(sorted({c for a in free for c in a.columns} | inner - set(given)))
            raise InsideExponentError(f"{names} stands inside an exponent of '{term.text}'; give its value")
        rest = replace(part, atoms=_without(part.atoms, free[0]))
        by_column.setdefault(free[0].columns[0], []).append((rest,))

    def total(polynomials: list[Polynomial]) -> np.ndarray:
        parts = tuple(part for polynomial in polynomials for part in polynomial)
        return np.broadcast_to(evaluate(parts, values, given, logged), shape)

    groups = tuple(
        (
            np.broadcast_to(evaluate(p.exponent, values, given, logged), shape),
            tuple(_monomial(t, values, given, logged, shape) for t in p.terms),
        )
        for p in term.powers
    )
    exponents = {column: total(polynomials) for column, polynomials in by_column.items()}
    coefficient, repeated, scales = total(constant), [], []
    for repeats in term.repeats:
        exponent = np.broadcast_to(evaluate(repeats.exponent, values, given, logged), shape)
        if all(
            set(atom.columns) <= set(given)
            for t in (repeats.tokens, repeats.unique)
            for p in t.parts
            for atom in p.atoms
        ):
            alone = Term((), repeats=(replace(repeats, exponent=(Part(1.0),)),))
            coefficient = coefficient + exponent * log_term(alone, values, given, logged)
            continue
        (tokens, more), (unique, fewer) = (
            _multiple(argument, repeats, values, given, logged) for argument in (repeats.tokens, repeats.unique)
        )
        # effective tokens are homogeneous: of c D and c U there are c times as many
        coefficient = coefficient + exponent * more
        repeated.append((exponent, np.broadcast_to(values[repeats.decay], shape), tokens, unique))
        scales.append(np.broadcast_to(fewer - more, shape))
    return Monomial(np.broadcast_to(coefficient, shape), exponents, groups, tuple(repeated), tuple(scales), term.sign)


def _multiple(
    argument: Term,
    repeats: Repeats,
    values: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    logged: frozenset[str],
) -> tuple[str, np.ndarray]:
    """The column that an argument of repeats is a multiple of, and the logarithm of what it is multiplied by."""
    own = next(
        (part for part in argument.parts if part.coefficient == 1 and len(part.atoms) == 1 and not part.parameters),
        None,
    )
    rest = tuple(part for part in argument.parts if part is not own)
    if own is None or any(set(atom.columns) - set(given) for part in rest for atom in part.atoms):
        raise ConfigError(f"an argument of repeats(..., {repeats.decay}) must be a column times what is given")
    return own.atoms[0].columns[0], np.asarray(evaluate(rest, values, given, logged))


def _without(atoms: tuple[Atom, ...], atom: Atom) -> tuple[Atom, ...]:
    index = atoms.index(atom)
    return atoms[:index] + atoms[index + 1 :]
