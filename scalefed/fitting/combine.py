"""How do a law's terms make up its loss? Values and exact first and second derivatives in the channels.

``Flat`` is the fast path for posynomials: the derivatives are the shares of the terms (a softmax). ``Nested`` serves
powers of sums and repeats with second-order jets over the channels; the solver does not see the difference.
"""

from collections.abc import Iterator

import numpy as np

from scalefed.fitting.problem import Node, Problem

State = list[np.ndarray]
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

    def first(self, state: State) -> State:
        """dm/dv for every channel."""
        return state

    def curvature(self, state: State, c: np.ndarray, k: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """Weights W_ab of the Hessian, ``k m_a m_b - c m_ab`` with m_ab = share_a (delta_ab - share_b)."""
        both = c + k
        for a, qa in enumerate(state):
            wa = both * qa
            for b in range(a, len(state)):
                w = wa * state[b]
                if a == b:
                    w -= c * qa
                yield a, b, w


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


def log_sum(jets: list[Jet], *, with_one: bool) -> Jet:
    """``log(sum exp)`` of jets, with 1 added inside if asked."""
    stack = [j.value for j in jets]
    top = np.maximum.reduce([*stack, np.zeros_like(stack[0])] if with_one else stack)
    q = [np.exp(x - top) for x in stack]
    total = sum(q[1:], q[0]) + (np.exp(-top) if with_one else 0.0)
    shares = [x / total for x in q]
    first: dict[int, np.ndarray] = {}
    second: dict[tuple[int, int], np.ndarray] = {}
    for share, jet in zip(shares, jets, strict=True):
        first = _merge(first, {i: share * d for i, d in jet.first.items()})
        second = _merge(second, {i: share * d for i, d in jet.second.items()})
        squares = {(i, j): share * x * y for i, x in jet.first.items() for j, y in jet.first.items() if i <= j}
        second = _merge(second, squares)
    for i, x in first.items():
        for j, y in first.items():
            if i <= j:
                second[i, j] = second[i, j] - x * y if (i, j) in second else -x * y
    return Jet(np.log(total) + top, first, second)


class Nested:
    """Laws with powers of sums or repeats; the state is the jet's derivatives."""

    def __init__(self, problem: Problem) -> None:
        self.nodes, self.with_one = problem.nodes, problem.has_floor

    def value(self, v: State) -> tuple[np.ndarray, State]:
        """The logarithm of the law relative to its floor, (B, n), and the derivatives packed in one list."""
        size = len(v)
        jets = [self._jet(node, v) for node in self.nodes]
        jet = log_sum(jets, with_one=self.with_one)
        zero = np.zeros_like(v[0])
        state = [jet.first.get(i, zero) for i in range(size)]
        state += [jet.second.get((i, j), zero) for i in range(size) for j in range(i, size)]
        return jet.value, [np.array(np.broadcast_to(x, zero.shape)) for x in state]

    def _jet(self, node: Node, v: State) -> Jet:
        one = np.ones((1, 1))
        total = Jet(v[node.leaf], {node.leaf: one})
        for exponent, decay, log_unique, repeats in node.repeats:
            total = total + Jet(v[exponent], {exponent: one}) * _repeats_jet(v[decay], decay, log_unique, repeats)
        for exponent, children in node.groups:
            inside = log_sum([self._jet(child, v) for child in children], with_one=False)
            total = total + Jet(v[exponent], {exponent: one}) * inside
        return total

    @staticmethod
    def _channels(state: State) -> int:
        return int(round((np.sqrt(9 + 8 * len(state)) - 3) / 2))

    def first(self, state: State) -> State:
        """dm/dv for every channel."""
        return state[: self._channels(state)]

    def curvature(self, state: State, c: np.ndarray, k: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """Weights W_ab of the Hessian, ``k m_a m_b - c m_ab``."""
        size = self._channels(state)
        at = size
        for a in range(size):
            for b in range(a, size):
                yield a, b, k * state[a] * state[b] - c * state[at]
                at += 1


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
