"""How do a law's terms make up its loss? Values and exact first and second derivatives in the channels.

With ``u_t`` the logarithm of term t relative to the floor, ``m = log(1 + sum exp(u_t))`` and ``share_t = dm/du_t``,

    m_a = share_t u_a            m_ab = [same term] share_t (u_ab + u_a u_b)  -  m_a m_b

for channels a, b of terms t, t'. ``Flat`` is the fast path for posynomials, where every term is one channel; ``Nested``
serves everything else (powers of sums, repeats, towers, terms that are subtracted), whose u_a and u_ab come from
second-order jets; share_t is negative for a term that is subtracted. The solver does not see a difference.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from scalefed.fitting.channels import Node, Sum
from scalefed.fitting.problem import Problem
from scalefed.laws.terms import effective_slopes, log_effective

State = list[np.ndarray]
Curvature = Callable[[np.ndarray, np.ndarray], Iterator[tuple[int, int, np.ndarray]]]
_LARGEST = 300.0  # log of the largest ratio of two terms: products of two stay finite
_HIGHEST = 300.0  # log of the largest factor or repetition: above it no law is near its runs


class Flat:
    """``log(1 + sum exp(v))`` (with a floor) or ``log(sum exp(v))``; the state is the share of each term."""

    def __init__(self, problem: Problem) -> None:
        self.with_one = problem.has_floor

    def value(self, v: State) -> tuple[np.ndarray, State]:
        """The logarithm of the law relative to its floor, (B, n), and the shares; the channels are written over."""
        if len(v) == 1 and not self.with_one:
            return v[0].copy(), [np.ones_like(v[0])]
        first = None if self.with_one else v[0]
        v = v if first is None else [x - first for x in v]
        q = [np.exp(np.minimum(x, _LARGEST, out=x), out=x) for x in v]
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


_ONE = np.ones((1, 1))  # the slope of a channel in itself; nothing is multiplied by it


def _times(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return y if x is _ONE else x if y is _ONE else x * y


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
            {i: _times(d, other.value) for i, d in self.first.items()},
            {i: _times(d, self.value) for i, d in other.first.items()},
        )
        second = _merge(
            {i: d * other.value for i, d in self.second.items()}, {i: d * self.value for i, d in other.second.items()}
        )
        for i, x in self.first.items():
            for j, y in other.first.items():
                key = (min(i, j), max(i, j))
                product = 2.0 * _times(x, y) if i == j else _times(x, y)
                second[key] = second[key] + product if key in second else product
        return Jet(self.value * other.value, first, second)

    def apply(self, value: np.ndarray, slope: np.ndarray, bend: np.ndarray) -> "Jet":
        """A scalar function of the jet, given its value and two derivatives."""
        first = {i: _times(d, slope) for i, d in self.first.items()}
        second = {i: d * slope for i, d in self.second.items()}
        for i, x in self.first.items():
            for j, y in self.first.items():
                if i <= j:
                    product = _times(_times(x, y), bend)
                    second[i, j] = second[i, j] + product if (i, j) in second else product
        return Jet(value, first, second)


def _merge(left: dict, right: dict) -> dict:  # type: ignore[type-arg]
    out = dict(left)
    for key, value in right.items():
        out[key] = out[key] + value if key in out else value
    return out


def log_sum(jets: list[Jet], signs: Sequence[float]) -> Jet:
    """``log(sum sign * exp)`` of jets."""
    value, shares = _soft_max([j.value for j in jets], signs, with_one=False)
    first: dict[int, np.ndarray] = {}
    second: dict[tuple[int, int], np.ndarray] = {}
    for share, jet in zip(shares, jets, strict=True):
        first = _merge(first, {i: _times(share, d) for i, d in jet.first.items()})
        second = _merge(second, {i: share * d for i, d in jet.second.items()})
        own = list(jet.first.items())
        squares = {(i, j): _times(share, _times(x, y)) for i, x in own for j, y in own if i <= j}
        second = _merge(second, squares)
    products = {(i, j): -x * y for i, x in first.items() for j, y in first.items() if i <= j}
    return Jet(value, first, _merge(second, products))


def _soft_max(
    values: list[np.ndarray], signs: Sequence[float], *, with_one: bool
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Logarithm of the signed sum of exponentials (plus 1 if asked), NaN where it is not positive; each one's share."""
    value, q, total = _summed(values, signs, with_one=with_one)
    for x in q:
        x /= total
    return value, q


def _summed(
    values: list[np.ndarray], signs: Sequence[float], *, with_one: bool
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """That logarithm; the exponentials relative to the largest, and their sum."""
    if with_one:
        top = np.maximum(values[0], 0.0)
    else:
        top = values[0].copy()
    for x in values[1:]:
        top = np.maximum(top, x, out=top if top.shape == np.broadcast_shapes(top.shape, x.shape) else None)
    q = []
    for x, sign in zip(values, signs, strict=True):
        one = x - top
        np.exp(one, out=one)
        q.append(np.negative(one, out=one) if sign < 0 else one)
    total = np.exp(-top) if with_one else np.zeros_like(top)
    for one in q:
        total += one
    if min(signs) < 0:
        total = np.where(total > 0, total, np.nan)
    value = np.log(total)
    value += top
    return value, q, total


class Nested:
    """Laws with powers of sums, repeats, towers or differences; the state is the channels themselves."""

    def __init__(self, problem: Problem) -> None:
        self.nodes, self.with_one, self.size = problem.nodes, problem.has_floor, len(problem.channels)
        self.signs = [node.sign for node in problem.nodes]

    def value(self, v: State) -> tuple[np.ndarray, State]:
        """The logarithm of the law relative to its floor, (B, n), and the state."""
        value, _, _ = _summed([log_node(node, v) for node in self.nodes], self.signs, with_one=self.with_one)
        return value, v

    def derivatives(self, state: State) -> tuple[State, Curvature]:
        """Slopes dm/dv of every channel, and a function of (c, k) that yields the weights of the Hessian's blocks."""
        jets = [_jet(node, state) for node in self.nodes]
        _, shares = _soft_max([j.value for j in jets], self.signs, with_one=self.with_one)
        first = {i: _times(share, u) for share, jet in zip(shares, jets, strict=True) for i, u in jet.first.items()}
        term = {i: t for t, jet in enumerate(jets) for i in jet.first}

        def curvature(c: np.ndarray, k: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
            both, falls = c + k, [c * share for share in shares]
            for a in range(self.size):
                wa = both * first[a]
                for b in range(a, self.size):
                    w = wa * first[b]
                    if term[a] == term[b]:
                        jet = jets[term[a]]
                        bend = _times(jet.first[a], jet.first[b])
                        bend = bend + jet.second[a, b] if (a, b) in jet.second else bend
                        w = w - _times(falls[term[a]], bend)
                    yield a, b, w

        return [first[i] for i in range(self.size)], curvature


# ---------------------------------------------------------------------- a term: its value, and its jet
def log_node(node: Node, v: State) -> np.ndarray:
    """The logarithm of a term without its sign, (B, n), from its channels."""
    total = _value(node.log, v)
    for exponent, decay, tokens, unique in node.repeats:
        total = total + _value(exponent, v) * log_effective(log_node(tokens, v), log_node(unique, v), np.exp(v[decay]))
    for exponent, children in node.groups:
        inside, _, _ = _summed([log_node(c, v) for c in children], [c.sign for c in children], with_one=False)
        total = total + _value(exponent, v) * inside
    return total


def _value(found: Sum, v: State) -> np.ndarray:
    total = v[found.channel]
    for channel, nodes in found.towers:
        height = sum((log_node(node, v) for node in nodes[1:]), log_node(nodes[0], v))
        total = total + v[channel] * np.exp(np.minimum(height, _HIGHEST))
    return total


def _jet(node: Node, v: State) -> Jet:
    total = _sum_jet(node.log, v)
    for exponent, decay, tokens, unique in node.repeats:
        inner = _effective_jet(_jet(tokens, v), _jet(unique, v), _channel_jet(decay, v))
        total = total + _sum_jet(exponent, v) * inner
    for exponent, children in node.groups:
        total = total + _sum_jet(exponent, v) * log_sum([_jet(c, v) for c in children], [c.sign for c in children])
    return total


def _sum_jet(found: Sum, v: State) -> Jet:
    total = _channel_jet(found.channel, v)
    for channel, nodes in found.towers:
        height = _jet(nodes[0], v)
        for node in nodes[1:]:
            height = height + _jet(node, v)
        value = np.exp(np.minimum(height.value, _HIGHEST))
        total = total + _channel_jet(channel, v) * height.apply(value, value, value)
    return total


def _channel_jet(channel: int, v: State) -> Jet:
    return Jet(v[channel], {channel: _ONE})


def _effective_jet(tokens: Jet, unique: Jet, decay: Jet) -> Jet:
    """The same of jets: effective tokens are U h(D/U, R), so the slope in log U is 1 less that in log D."""
    size = np.exp(decay.value)
    by_ratio, bend_ratio = effective_slopes(tokens.value, unique.value, size)
    ratio = np.exp(np.clip(tokens.value - unique.value, 0.0, _HIGHEST))
    t = (ratio - 1.0) / size
    fade = np.exp(-t)
    gain = -size * np.expm1(-t)
    worth = 1.0 + gain
    value = log_effective(tokens.value, unique.value, size)
    slope = gain - (ratio - 1.0) * fade
    by_decay = slope / worth
    bend_decay = (slope - (ratio - 1.0) * t * fade) / worth - by_decay**2
    mixed = np.where(tokens.value > unique.value, by_ratio * (t - by_decay), 0.0)
    x = tokens + _negative(unique)
    first = _merge(
        unique.first,
        _merge({i: by_ratio * d for i, d in x.first.items()}, {i: by_decay * d for i, d in decay.first.items()}),
    )
    second = _merge(
        unique.second,
        _merge({i: by_ratio * d for i, d in x.second.items()}, {i: by_decay * d for i, d in decay.second.items()}),
    )
    for left, right, bend in ((x, x, bend_ratio), (decay, decay, bend_decay), (x, decay, mixed), (decay, x, mixed)):
        pairs = {(i, j): bend * a * b for i, a in left.first.items() for j, b in right.first.items() if i <= j}
        second = _merge(second, pairs)
    return Jet(value, first, second)


def _negative(jet: Jet) -> Jet:
    return Jet(-jet.value, {i: -d for i, d in jet.first.items()}, {i: -d for i, d in jet.second.items()})


def combiner(problem: Problem) -> Flat | Nested:
    """The fast path where the law allows it."""
    simple = all(node.is_plain for node in problem.nodes)
    return Flat(problem) if simple else Nested(problem)
