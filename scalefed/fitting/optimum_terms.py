"""What is a law in the terms of the question? Its optimum at a middle compute, in place of amplitudes and exponents.

Runs that leave the floor and the amplitudes of a law loose often determine its optimum all the same. So the law is
written by the tokens per parameter of its optimum at a middle compute, the slope s of the best size in compute, the
exponent by which the excess loss falls along the optimum, the coupling c, and the floor's share of the loss there; for
``E + (A/N^a + B/D^b)^c``, a = frontier / (c s), b = frontier / (c (1 - s)), and the size term is s of the sum.
Terms that fall with tokens in their own way (sequential steps) share what is left. Every other parameter stays as it
is, but for the effect of a column such as skew, which is measured in the middle of the runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scalefed.laws import Law
from scalefed.laws.terms import Part, Polynomial, Term, evaluate

Values = dict[str, np.ndarray]

_FLOPS = float(np.log(6.0))


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A term inside the sum: its parts, amplitude and the exponent that belongs to params or tokens alone ("")."""

    parts: Polynomial
    amplitude: str
    exponent: str


class OptimumTerms:
    """A law by its optimum; made by :func:`optimum_terms`.

    Attributes:
        law: the law.
        roles: what each term is, in order.
        middle: log compute in whose optimum the law is written.
        reference: the columns besides params and tokens there.
    """

    def __init__(self, law: Law, columns: Mapping[str, np.ndarray]) -> None:
        self.law = law
        self.middle = _FLOPS + float(np.mean(np.log(columns["params"] * columns["tokens"])))
        self.reference = {c: float(np.median(columns[c])) for c in law.columns if c not in ("params", "tokens")}
        self._read()
        self._others = [
            p for p in law.free if p not in self._amplitudes and p not in (self._exponents | {law.floor, self.coupling})
        ]
        _demand(not law.positive & set(self._others))
        self.roles: tuple[str, ...] = ("loss", "tokens_per_param", "slope", "frontier")
        self.roles += ("coupling",) * bool(self.coupling) + ("floor_share",) * (law.floor in law.free)
        self.roles += ("share", "ratio") * (len(self.falling) - 1) + ("side",) * len(self.sides)
        self.roles += tuple(self._role(p) for p in self._others)

    # -- reading the law ---------------------------------------------------------------------------------------------
    def _read(self) -> None:
        """Sort the law's terms; what is not of the form above is refused with a ValueError."""
        terms, self.floor = [], 0.0
        for term in self.law.bound_terms:
            if term.is_constant:
                self.floor = float(np.exp(sum(part.coefficient for part in term.parts if not part.parameters)))
            else:
                terms.append(term)
        self.outer: Polynomial = ()
        self.coupling, self.power = "", 1.0
        if len(terms) == 1 and len(terms[0].powers) == 1:
            (group,), self.outer = terms[0].powers, terms[0].parts
            _demand(len(group.exponent) == 1 and len(group.exponent[0].parameters) <= 1 and not group.exponent[0].atoms)
            self.power = group.exponent[0].coefficient
            self.coupling = next(iter(group.exponent[0].parameters), "")
            _demand(not self.coupling or self.power == 1.0)
            terms = list(group.terms)
        leaves = {kind: [self._leaf(t, kind) for t in terms if _kind(t) == kind] for kind in ("params", "tokens", "")}
        (self.size,), self.falling, self.sides = _one(leaves["params"]), leaves["tokens"], leaves[""]
        _demand(bool(self.falling) and not any(_has(self.outer, c) for c in ("params", "tokens")))
        every = [self.size, *self.falling, *self.sides]
        self._amplitudes = {leaf.amplitude for leaf in every}
        self._exponents = {leaf.exponent for leaf in every if leaf.exponent}
        _demand(len(self._amplitudes) == len(every) and len(self._exponents) == 1 + len(self.falling))

    def _leaf(self, term: Term, kind: str) -> _Leaf:
        _demand(not term.powers and not term.repeats and term.sign > 0 and not any(p.factors for p in term.parts))
        free, positive = self.law.free, self.law.positive
        amplitudes = [p.parameters[0] for p in term.parts if not p.atoms and len(p.parameters) == 1]
        amplitudes = [p for p in amplitudes if p in positive and self._uses(p) == 1]
        exponents = [p.parameters[0] for p in term.parts if kind and len(p.parameters) == 1 and _alone(p, "log", kind)]
        exponents = [p for p in exponents if p in free and p not in positive]
        _demand(len(amplitudes) == 1 and len(exponents) == bool(kind))
        return _Leaf(term.parts, amplitudes[0], exponents[0] if kind else "")

    def _uses(self, name: str) -> int:
        return sum(name in part.parameters for part in self._parts())

    def _parts(self) -> Iterator[Part]:
        for term in self.law.bound_terms:
            yield from term.all_parts()

    def _role(self, name: str) -> str:
        parts = [part for part in self._parts() if name in part.parameters]
        if all(len(p.parameters) == 1 and len(p.atoms) == 1 and p.atoms[0].kind == "raw" for p in parts):
            return "effect"
        if all({a.columns[0] for a in p.atoms} == {"clients_per_round"} for p in parts):
            return "discount"
        return "exponent"

    # -- from terms to parameters ------------------------------------------------------------------------------------
    def values(self, phi: np.ndarray) -> Values:
        """The law's free parameters, each (v,), from optimum terms (v, k)."""
        drawn = iter(phi.T)
        loss, ratio, slope, frontier = np.exp(next(drawn)), next(drawn), _sigmoid(next(drawn)), np.exp(next(drawn))
        coupling = np.exp(next(drawn)) if self.coupling else np.full(len(phi), self.power)
        found: Values = {self.coupling: coupling} if self.coupling else {}
        excess = loss
        if self.law.floor in self.law.free:
            share = _sigmoid(next(drawn))
            found[str(self.law.floor)], excess = share * loss, (1 - share) * loss
        parts = [(_sigmoid(next(drawn)), np.exp(next(drawn))) for _ in self.falling[1:]]
        sides = [next(drawn) for _ in self.sides]
        others = {name: next(drawn) for name in self._others}
        steep = frontier / coupling
        found |= dict.fromkeys(self._amplitudes, np.ones(len(phi)))
        found |= others
        middle = {"params": 0.5 * (self.middle - _FLOPS - ratio), "tokens": 0.5 * (self.middle - _FLOPS + ratio)}
        found[self.size.exponent] = self._exponent(self.size, "params", steep / slope, found)
        shares, steeps = _divided(parts, steep / (1 - slope))
        for leaf, one in zip(self.falling, steeps, strict=True):
            found[leaf.exponent] = self._exponent(leaf, "tokens", one, found)
        self._centre_effects(found, middle)
        outer = self._log(self.outer, found, middle)
        total = (np.log(excess) - outer) / coupling
        wanted = [total + np.log(slope), *(total + np.log((1 - slope) * one) for one in shares)]
        wanted += [total + one for one in sides]
        for leaf, log in zip((self.size, *self.falling, *self.sides), wanted, strict=True):
            found[leaf.amplitude] = np.exp(log - self._log(leaf.parts, found, middle))
        return found

    def log_best_params(self, phi: np.ndarray, log_compute: float) -> np.ndarray:
        """Log of the best params at a compute, (v,): a straight line where one term alone falls with tokens."""
        middle = 0.5 * (self.middle - _FLOPS - phi[:, 1])
        return np.asarray(middle + _sigmoid(phi[:, 2]) * (log_compute - self.middle))

    def _log(self, parts: Polynomial, values: Values, middle: Values, **changed: float) -> np.ndarray:
        columns = {c: np.asarray(x) for c, x in {**self.reference, **changed}.items()}
        columns |= {c: np.exp(x) for c, x in middle.items()}
        return evaluate(parts, values, columns, self.law.positive)

    def _exponent(self, leaf: _Leaf, column: str, wanted: np.ndarray, values: Values) -> np.ndarray:
        """The exponent with which the term falls that steeply, whatever else bends it in the middle."""
        own, rest = _slope(leaf.parts, column, leaf.exponent)
        return np.asarray((-wanted - self._log(rest, values, {})) / own)

    def _centre_effects(self, found: Values, middle: Values) -> None:
        """Turn effects in the middle into parameters: less what the same column does through exponents."""
        for name in self._others:
            if self._role(name) != "effect" or self._uses(name) > 1:
                continue
            (parts,) = [p for p in self._polynomials() if any(name in part.parameters for part in p)]
            (column,) = [part.atoms[0].columns[0] for part in parts if name in part.parameters]
            own, rest = _slope(parts, column, name)
            found[name] = found[name] - self._log(rest, found, middle) / own

    def _polynomials(self) -> Sequence[Polynomial]:
        return [self.outer, *(leaf.parts for leaf in (self.size, *self.falling, *self.sides))]


def optimum_terms(law: Law, columns: Mapping[str, np.ndarray]) -> OptimumTerms | None:
    """The law by its optimum; None where it has none or is not of that form.

    The form is a floor and one term that falls with params, one or more that fall with tokens, and any without both,
    as a sum or as a power of their sum, each with an amplitude and an exponent of its own that are free.

    Args:
        law: the law, fixed parameters included.
        columns: the runs' columns, each (n,).
    """
    if not {"params", "tokens"} <= set(law.columns):
        return None
    try:
        return OptimumTerms(law, columns)
    except ValueError:
        return None


def _demand(holds: bool) -> None:
    if not holds:
        raise ValueError("not a law of this form")


def _one(leaves: list[_Leaf]) -> list[_Leaf]:
    _demand(len(leaves) == 1)
    return leaves


def _kind(term: Term) -> str:
    kinds = [c for c in ("params", "tokens") if _has(term.parts, c)]
    _demand(len(kinds) < 2)
    return kinds[0] if kinds else ""


def _has(parts: Polynomial, column: str) -> bool:
    return any(column in atom.columns for part in parts for atom in part.atoms)


def _slope(parts: Polynomial, column: str, name: str) -> tuple[float, Polynomial]:
    """How the sum of parts changes with a column: by a parameter, and by the rest."""
    bent = [
        replace(part, atoms=tuple(atom for atom in part.atoms if column not in atom.columns))
        for part in parts
        if any(column in atom.columns for atom in part.atoms)
    ]
    (own,) = [part.coefficient for part in bent if part.parameters == (name,) and not part.atoms]
    return own, tuple(part for part in bent if part.parameters != (name,) or part.atoms)


def _alone(part: Part, kind: str, column: str) -> bool:
    return len(part.atoms) == 1 and part.atoms[0].kind == kind and part.atoms[0].columns == (column,)


def _divided(parts: Sequence[tuple[np.ndarray, np.ndarray]], steep: np.ndarray) -> tuple[list[np.ndarray], ...]:
    """Shares of the terms that fall with tokens, and the exponent of each, whose mean is the given one."""
    shares, ratios, left = [], [], np.ones_like(steep)
    for share, ratio in parts:
        shares.append(left * share)
        ratios.append(ratio)
        left = left * (1 - share)
    shares, ratios = [left, *shares], [np.ones_like(steep), *ratios]
    mean = sum((s * r for s, r in zip(shares, ratios, strict=True)), np.zeros_like(steep))
    return shares, [steep * r / mean for r in ratios]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))))
