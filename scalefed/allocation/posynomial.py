"""What is the value and the shape of a sum of power-law products at a point, in logarithms?

A :class:`Posynomial` is a batch of functions ``f(x) = log sum_t exp(c_t + e_t . x + ...)`` of the logarithms ``x`` of
the planner's variables. A term may also carry sums raised to a positive power (the coupled law) and effective tokens
after repeats; both keep f convex, so every minimum is the global one.

Source: Boyd, Kim, Vandenberghe, Hassibi 2007, "A tutorial on geometric programming", sections 2 and 5 (generalised
posynomials); that minus the logarithm of effective tokens is convex in log tokens is ours (the slope falls with D).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalefed.errors import FitError
from scalefed.laws import Monomial
from scalefed.laws.terms import effective_slopes, log_effective

Array = NDArray[np.float64]

_NEVER_REPEATED = 690.0  # log of more different tokens than any run reads


@dataclass(frozen=True, slots=True)
class Power:
    """``power * log(inner sum)``, added to the logarithm of term ``term``; power (s,) is positive."""

    term: int
    power: Array
    inner: "Posynomial"


@dataclass(frozen=True, slots=True)
class Repeat:
    """``exponent * log(effective tokens)``, added to the logarithm of term ``term``; all arrays are (s,)."""

    term: int
    exponent: Array
    decay: Array
    log_unique: Array
    variable: int


@dataclass(frozen=True, slots=True)
class Posynomial:
    """A batch of s sums of t terms in v variables.

    Attributes:
        log_coefficient: (s, t).
        exponents: (s, t, v).
        powers, repeats: what terms carry beside powers of the variables.
    """

    log_coefficient: Array
    exponents: Array
    powers: tuple[Power, ...] = ()
    repeats: tuple[Repeat, ...] = ()

    def __len__(self) -> int:
        return len(self.log_coefficient)

    def take(self, rows: NDArray[np.intp]) -> "Posynomial":
        """The batch restricted to some rows."""
        return Posynomial(
            self.log_coefficient[rows],
            self.exponents[rows],
            tuple(Power(p.term, p.power[rows], p.inner.take(rows)) for p in self.powers),
            tuple(
                Repeat(r.term, r.exponent[rows], r.decay[rows], r.log_unique[rows], r.variable) for r in self.repeats
            ),
        )

    def log_terms(self, x: Array, basis: Array) -> tuple[Array, Array, Array]:
        """(s, t) logarithms of the terms, (s, t, w) slopes, (s, t, w, w) curvatures (empty if all are 0)."""
        value = self.log_coefficient + (self.exponents @ x[:, :, None])[:, :, 0]
        slope = self.exponents @ basis
        curvature = np.zeros(slope.shape + slope.shape[-1:] if self.powers or self.repeats else (0,))
        for power in self.powers:
            inner, first, second = power.inner.evaluate(x, basis)
            value[:, power.term] += power.power * inner
            slope[:, power.term] += power.power[:, None] * first
            curvature[:, power.term] += power.power[:, None, None] * second
        for repeat in self.repeats:
            asked = x[:, repeat.variable], repeat.log_unique, repeat.decay
            inner, (one, two) = log_effective(*asked), effective_slopes(*asked)
            axis = np.broadcast_to(basis, (len(x), *basis.shape[-2:]))[:, repeat.variable]
            value[:, repeat.term] += repeat.exponent * inner
            slope[:, repeat.term] += (repeat.exponent * one)[:, None] * axis
            curvature[:, repeat.term] += (repeat.exponent * two)[:, None, None] * axis[:, :, None] * axis[:, None]
        return value, slope, curvature

    def evaluate(self, x: Array, basis: Array) -> tuple[Array, Array, Array]:
        """Logarithm of the sum with gradient and Hessian along the columns of ``basis``.

        Args:
            x: (s, v) logarithms of the variables.
            basis: (v, w) or (s, v, w) directions; the identity for all variables.

        Returns:
            (s,) value, (s, w) gradient, (s, w, w) Hessian.
        """
        value, slope, curvature = self.log_terms(x, basis)
        top = value.max(1)
        share = np.exp(value - top[:, None])
        total = share.sum(1)
        share /= total[:, None]
        weighted = share[:, :, None] * slope
        gradient = weighted.sum(1)
        hessian = np.swapaxes(weighted, 1, 2) @ slope
        if self.powers or self.repeats:
            hessian += np.einsum("st,stwx->swx", share, curvature)
        hessian -= gradient[:, :, None] * gradient[:, None, :]
        return top + np.log(total), gradient, hessian

    def search_form(self) -> "Posynomial":
        """A sum with the same minimisers: a single term that is only a power of a sum is replaced by that sum."""
        alone = self.log_coefficient.shape[1] == 1 and len(self.powers) == 1 and not self.repeats
        if alone and not self.exponents.any():
            return self.powers[0].inner.search_form()
        return self

    def may_rise(self, variable: int) -> NDArray[np.bool_]:
        """(s,) whether some term of a row grows with a variable."""
        rises: NDArray[np.bool_] = np.any(self.exponents[:, :, variable] > 1e-12, axis=1)
        for power in self.powers:
            rises = rises | power.inner.may_rise(variable)
        for repeat in self.repeats:
            if repeat.variable == variable:
                rises = rises | (repeat.exponent > 0)
        return rises

    def depends_on(self, variable: int) -> bool:
        """Whether any term contains a variable."""
        own = bool(self.exponents[:, :, variable].any()) or any(r.variable == variable for r in self.repeats)
        return own or any(power.inner.depends_on(variable) for power in self.powers)


@dataclass(frozen=True, slots=True)
class Substitution:
    """A column of a law written in the planner's variables: ``log column = constant + exponents . x``."""

    constant: Array
    exponents: tuple[float, ...]


def from_monomials(
    terms: Sequence[Monomial], columns: Mapping[str, Substitution], shape: tuple[int, ...], variables: int
) -> Posynomial:
    """A law's monomials as a posynomial in the planner's variables.

    Args:
        terms: from ``Law.monomials``.
        columns: how each free column is written in the variables.
        shape: of the batch, flattened in the result.
        variables: how many there are.

    Raises:
        FitError: a term needs a column that is neither given nor one of the variables.
    """

    def flat(values: object) -> Array:
        return np.broadcast_to(np.asarray(values, dtype=float), shape).reshape(-1)

    size = int(np.prod(shape, dtype=int))
    log_coefficient, exponents = np.empty((size, len(terms))), np.zeros((size, len(terms), variables))
    powers: list[Power] = []
    repeats: list[Repeat] = []
    for index, term in enumerate(terms):
        log_coefficient[:, index] = flat(term.log_coefficient)
        for name, exponent in term.exponents.items():
            written = _written(name, columns)
            log_coefficient[:, index] += flat(exponent) * flat(written.constant)
            exponents[:, index] += flat(exponent)[:, None] * np.asarray(written.exponents)
        for power, inner in term.groups:
            powers.append(Power(index, flat(power), from_monomials(inner, columns, shape, variables)))
        for (exponent, decay, tokens, unique), scale in zip(term.repeated, term.scales, strict=True):
            held, moved = _written(unique, columns), _written(tokens, columns)
            variable = int(np.argmax(moved.exponents))
            log_unique = (
                flat(held.constant) + flat(scale) if not any(held.exponents) else np.full(size, _NEVER_REPEATED)
            )
            repeats.append(Repeat(index, flat(exponent), flat(decay), log_unique, variable))
    return Posynomial(log_coefficient, exponents, tuple(powers), tuple(repeats))


def _written(name: str, columns: Mapping[str, Substitution]) -> Substitution:
    if name not in columns:
        raise FitError(
            f"the law depends on {name}, which is neither chosen by the planner nor given; pass {name}=... "
            f"(the planner chooses among: {', '.join(columns)})"
        )
    return columns[name]
