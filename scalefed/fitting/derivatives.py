"""How do a law's terms make up its loss? Values and exact first and second derivatives in the channels.

With ``u_t`` the logarithm of term t relative to the floor, ``m = log(1 + sum exp(u_t))`` and ``share_t = dm/du_t``,

    m_a = share_t u_a            m_ab = [same term] share_t (u_ab + u_a u_b)  -  m_a m_b

for channels a, b of terms t, t'. ``Flat`` is the fast path for posynomials, where every term is one channel; ``Nested``
serves powers of sums and repeats, whose u_a and u_ab come from second-order jets. The solver does not see a difference.
"""

from collections.abc import Callable, Iterator

import numpy as np

from scalefed.fitting.problem import Node, Problem

State = list[np.ndarray]
Curvature = Callable[[np.ndarray, np.ndarray], Iterator[tuple[int, int, np.ndarray]]]
_LARGEST = 300.0


class Flat:
    """``log(1 + sum exp(v))`` (with a floor) or ``log(sum exp(v))``; the state is the share of each term."""

    def __init__(self, problem: Problem) -> None:
        self.with_one = problem.has_floor

    def value(self, v: State) -> tuple[np.ndarray, State]:
        """The logarithm of the law relative to its floor, (B, n), and the shares."""
        if len(v) == 1 and not self.with_one:
            return v[0].copy(), [np.ones_like(v[0])]
        first = None if self.with_one else v[0]
        q = [np.exp(np.minimum(x if first is None else x - first, _LARGEST)) for x in v]
        total = q[0] + 1.0 if self.with_one else q[0].copy()
        for x in q[1:]:
            total += x
        inverse = 1.0 / total
        for x in q:
            x *= inverse
        m = np.log(total, out=total)
        if first is not None:
            m += first
        return m, q

    def derivatives(self, state: State) -> tuple[State, "Curvature"]:
        """Slopes dm/dv of every channel, and a function of (c, k) that yields the weights of the Hessian's blocks."""

        def curvature(c: np.ndarray, k: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
            both = c + k
            for a, qa in enumerate(state):
                wa = both * qa
                for b in range(a, len(state)):
                    w = wa * state[b]
                    if a == b:
                        w -= c * qa
                    yield a, b, w

        return state, curvature


class Jet:
    """A value with first and second derivatives in the channels, all (B, n)."""

    def __init__(
        self,
        value: np.ndarray,
        first: dict[int, np.ndarray] | None = None,
        second: dict[tuple[int, int], np.ndarray] | None = None,
    ) -> None:
        self.value, self.first, self.second = value, first or {}, second or {}

    def __add__(self, other: "Jet") -> "Jet":
        return Jet(self.value + other.value, _merge(self.first, other.first), _merge(self.second, other.second))

    def __mul__(self, other: "Jet") -> "Jet":
        first = _merge(
            {i: d * other.value for i, d in self.first.items()}, {i: d * self.value for i, d in other.first.items()}
        )
        second = _merge(
            {i: d * other.value for i, d in self.second.items()}, {i: d * self.value for i, d in other.second.items()}
        )
        for i, x in self.first.items():
            for j, y in other.first.items():
                key = (min(i, j), max(i, j))
                product = x * y * (2.0 if i == j else 1.0)
                second[key] = second[key] + product if key in second else product
        return Jet(self.value * other.value, first, second)

    def apply(self, value: np.ndarray, slope: np.ndarray, bend: np.ndarray) -> "Jet":
        """A scalar function of the jet, given its value and two derivatives."""
        first = {i: d * slope for i, d in self.first.items()}
        second = {i: d * slope for i, d in self.second.items()}
        for i, x in self.first.items():
            for j, y in self.first.items():
                if i <= j:
                    product = x * y * bend
                    second[i, j] = second[i, j] + product if (i, j) in second else product
        return Jet(value, first, second)


def _merge(left: dict, right: dict) -> dict:  # type: ignore[type-arg]
    out = dict(left)
    for key, value in right.items():
        out[key] = out[key] + value if key in out else value
    return out


def log_sum(jets: list[Jet]) -> Jet:
    """``log(sum exp)`` of jets."""
    value, shares = _soft_max([j.value for j in jets], with_one=False)
    first: dict[int, np.ndarray] = {}
    second: dict[tuple[int, int], np.ndarray] = {}
    for share, jet in zip(shares, jets, strict=True):
        first = _merge(first, {i: share * d for i, d in jet.first.items()})
        second = _merge(second, {i: share * d for i, d in jet.second.items()})
        squares = {(i, j): share * x * y for i, x in jet.first.items() for j, y in jet.first.items() if i <= j}
        second = _merge(second, squares)
    products = {(i, j): -x * y for i, x in first.items() for j, y in first.items() if i <= j}
    return Jet(value, first, _merge(second, products))


def _soft_max(values: list[np.ndarray], *, with_one: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logarithm of the sum of exponentials (plus 1 if asked), and each one's share."""
    top = values[0]
    for x in values[1:]:
        top = np.maximum(top, x)
    if with_one:
        top = np.maximum(top, 0.0)
    q = [np.exp(x - top) for x in values]
    total = sum(q[1:], q[0]) + (np.exp(-top) if with_one else 0.0)
    return np.log(total) + top, [x / total for x in q]


class Nested:
    """Laws with powers of sums or repeats; the state is the channels themselves."""

    def __init__(self, problem: Problem) -> None:
        self.nodes, self.with_one, self.size = problem.nodes, problem.has_floor, len(problem.channels)

    def value(self, v: State) -> tuple[np.ndarray, State]:
        """The logarithm of the law relative to its floor, (B, n), and the state."""
        value, _ = _soft_max([self._log_term(node, v) for node in self.nodes], with_one=self.with_one)
        return value, v

    def _log_term(self, node: Node, v: State) -> np.ndarray:
        total = v[node.leaf]
        for exponent, decay, log_unique, repeats in node.repeats:
            fade = np.exp(v[decay])
            total = total + v[exponent] * (log_unique + np.log1p(-fade * np.expm1(-repeats / fade)))
        for exponent, children in node.groups:
            inside, _ = _soft_max([self._log_term(child, v) for child in children], with_one=False)
            total = total + v[exponent] * inside
        return total

    def _jet(self, node: Node, v: State) -> Jet:
        one = np.ones((1, 1))
        total = Jet(v[node.leaf], {node.leaf: one})
        for exponent, decay, log_unique, repeats in node.repeats:
            total = total + Jet(v[exponent], {exponent: one}) * _repeats_jet(v[decay], decay, log_unique, repeats)
        for exponent, children in node.groups:
            inside = log_sum([self._jet(child, v) for child in children])
            total = total + Jet(v[exponent], {exponent: one}) * inside
        return total

    def derivatives(self, state: State) -> tuple[State, Curvature]:
        """Slopes dm/dv of every channel, and a function of (c, k) that yields the weights of the Hessian's blocks."""
        jets = [self._jet(node, state) for node in self.nodes]
        _, shares = _soft_max([j.value for j in jets], with_one=self.with_one)
        first = {i: share * u for share, jet in zip(shares, jets, strict=True) for i, u in jet.first.items()}
        term = {i: t for t, jet in enumerate(jets) for i in jet.first}

        def curvature(c: np.ndarray, k: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
            both, falls = c + k, [c * share for share in shares]
            for a in range(self.size):
                wa = both * first[a]
                for b in range(a, self.size):
                    w = wa * first[b]
                    if term[a] == term[b]:
                        jet = jets[term[a]]
                        bend = jet.first[a] * jet.first[b] + jet.second.get((a, b), 0.0)
                        w = w - falls[term[a]] * bend
                    yield a, b, w

        return [first[i] for i in range(self.size)], curvature


def _repeats_jet(log_decay: np.ndarray, channel: int, log_unique: np.ndarray, repeats: np.ndarray) -> Jet:
    """log(U (1 + R (1 - exp(-x/R)))) as a function of log R, with two derivatives."""
    decay = np.exp(log_decay)
    t = repeats / decay
    fade = np.exp(-t)
    gain = -decay * np.expm1(-t)
    slope = gain - repeats * fade
    bend = slope - repeats * t * fade
    first = slope / (1.0 + gain)
    return Jet(log_unique + np.log1p(gain), {channel: first}, {(channel, channel): bend / (1.0 + gain) - first**2})


def combiner(problem: Problem) -> Flat | Nested:
    """The fast path where the law allows it."""
    simple = all(not node.repeats and not node.groups for node in problem.nodes)
    return Flat(problem) if simple else Nested(problem)
