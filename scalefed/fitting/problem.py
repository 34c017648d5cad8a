"""How does a law become numbers for the solver? Centred features, monomials in the parameters, coordinates and bounds.

Every leaf term of a law has a logarithm ``v = offset + features @ monomials(theta)``; the features depend on the runs
only, so one matrix product serves every start and every bootstrap replicate. Amplitudes that belong to one term are
measured in logarithms, at the centre of the features and relative to the floor of the law, which makes the Hessian well
conditioned whatever the units of params and tokens are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from scalefed.laws.law import Law
from scalefed.laws.terms import Part, Polynomial, Term

OPEN = 1e6
VANISHED = 16.0
_FLOOR_RANGE = (1e-4, 1.2)
_EXPONENT_RANGE = (-20.0, 20.0)


@dataclass(slots=True)
class Channel:
    """One scalar a run that is affine in monomials of the parameters: ``offset + features @ monomials``.

    Attributes:
        keys: for every monomial the coordinates multiplied in it.
        features: (n, k), centred where the channel has an amplitude of its own.
        offset: (n,) or None.
        means: (k,) what centring subtracted.
        offset_mean: what centring subtracted from the offset.
        amplitude: coordinate of the channel's own amplitude, or None.
        relative: whether the amplitude is measured relative to the floor.
        constant: whether the features are the same in every run, as for the power of a sum.
    """

    keys: list[tuple[int, ...]]
    features: np.ndarray
    offset: np.ndarray | None
    means: np.ndarray
    offset_mean: float = 0.0
    amplitude: int | None = None
    relative: bool = False
    constant: bool = False


@dataclass(slots=True)
class Node:
    """Where a term's channels are: its leaf, its repeat factors and its groups (indices into the channel list)."""

    leaf: int
    repeats: list[tuple[int, int, np.ndarray, np.ndarray]] = field(default_factory=list)
    groups: list[tuple[int, list["Node"]]] = field(default_factory=list)


class Problem:
    """A law and its runs, ready for the batched solver.

    Args:
        law: the law; fixed parameters are put in as numbers.
        columns: every column of the law, each (n,).
        log_loss: (n,) natural logarithm of the target.
        weights: (n,) weights of the runs in the objective, or None for 1 each.

    Attributes:
        names: free parameters, one coordinate each, in the law's order.
        lower, upper: (p,) box in coordinates.
        base: coordinate of the floor's logarithm, or None.
        base_constant: logarithm of a fixed floor (0 where there is none).
        has_floor: whether a constant term stands apart from the others.
    """

    def __init__(
        self,
        law: Law,
        columns: Mapping[str, np.ndarray],
        log_loss: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> None:
        self.law = law
        self.weights = None if weights is None else np.asarray(weights, dtype=float)
        self.z = np.ascontiguousarray(log_loss, dtype=float)
        self.n = len(self.z)
        self.names = law.free
        self.p = len(self.names)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.columns = {c: np.asarray(columns[c], dtype=float) for c in law.columns}
        self.uses = self._count_uses()
        self.channels: list[Channel] = []
        terms = list(law.bound_terms)
        self.base: int | None = None
        self.base_constant, self.has_floor = 0.0, False
        terms = self._take_floor(terms)
        self.nodes = [self._node(term, top=True) for term in terms]
        self._set_bounds()
        self._set_chain()

    # -- building ----------------------------------------------------------------------------------------------------
    def _count_uses(self) -> dict[str, int]:
        uses = dict.fromkeys(self.names, 0)
        for term in self.law.bound_terms:
            for part in term.all_parts():
                for name in part.names():
                    if name in uses:
                        uses[name] += 1
        return uses

    def _take_floor(self, terms: list[Term]) -> list[Term]:
        """Set aside the first constant term; without any other term there is nothing to set aside."""
        for i, term in enumerate(terms):
            if not term.is_constant or len(terms) == 1:
                continue
            names = [name for part in term.parts for name in part.parameters]
            if not names:
                self.base_constant = sum(part.coefficient for part in term.parts)
            elif len(term.parts) == 1 and len(names) == 1 and term.parts[0].coefficient == 1.0:
                self.base = self.index[names[0]]
            else:
                continue
            self.has_floor = True
            return terms[:i] + terms[i + 1 :]
        return terms

    def _own_amplitude(self, parts: Polynomial) -> int | None:
        for part in parts:
            if (
                part.coefficient == 1.0
                and not part.atoms
                and len(part.parameters) == 1
                and part.parameters[0] in self.law.positive
                and self.uses[part.parameters[0]] == 1
                and part.parameters[0] not in self.law.bounds
            ):
                return self.index[part.parameters[0]]
        return None

    def _node(self, term: Term, *, top: bool) -> Node:
        flat = tuple(p for p in term.parts if not self._has_repeats(p))
        amplitude = self._own_amplitude(term.parts)
        leaf = self._channel(flat, amplitude, relative=top and amplitude is not None and self.has_floor, top=top)
        node = Node(leaf)
        for part in term.parts:
            if self._has_repeats(part):
                node.repeats.append(self._repeats(part))
        for power in term.powers:
            exponent = self._channel(power.exponent, None, relative=False, top=False)
            node.groups.append((exponent, [self._node(t, top=False) for t in power.terms]))
        return node

    def _has_repeats(self, part: Part) -> bool:
        return any(a.kind == "repeats" and a.parameter in self.index for a in part.atoms)

    def _repeats(self, part: Part) -> tuple[int, int, np.ndarray, np.ndarray]:
        atom = next(a for a in part.atoms if a.kind == "repeats")
        rest = Part(part.coefficient, part.parameters, tuple(a for a in part.atoms if a is not atom))
        exponent = self._channel((rest,), None, relative=False, top=False)
        decay = self._channel((Part(1.0, (atom.parameter,)),), None, relative=False, top=False)
        tokens, unique = (self.columns[c] for c in atom.columns)
        unique = np.minimum(tokens, unique)
        return exponent, decay, np.log(unique), tokens / unique - 1.0

    def _channel(self, parts: Polynomial, amplitude: int | None, *, relative: bool, top: bool) -> int:
        values = {name: np.asarray(value) for name, value in self.law.fixed.items()}
        table: dict[tuple[int, ...], np.ndarray] = {}
        for part in parts:
            key = tuple(sorted(self.index[name] for name in part.parameters))
            column = np.full(self.n, part.coefficient)
            for atom in part.atoms:
                column = column * atom.value(self.columns, values)
            table[key] = table.get(key, np.zeros(self.n)) + column
        if top and self.has_floor and not relative:
            self._subtract_floor(table)
        constant = table.pop((), None)
        keys = list(table)
        features = np.stack([table[k] for k in keys], axis=1) if keys else np.zeros((self.n, 0))
        means, offset_mean = np.zeros(len(keys)), 0.0
        if amplitude is not None:
            means = np.array([0.0 if k == (amplitude,) else table[k].mean() for k in keys])
            features = features - means
            if constant is not None:
                offset_mean = float(constant.mean())
                constant = constant - offset_mean
        offset = None if constant is None or not np.any(constant) else constant
        self.channels.append(
            Channel(
                keys=keys,
                features=np.ascontiguousarray(features),
                offset=offset,
                means=means,
                offset_mean=offset_mean,
                amplitude=amplitude,
                relative=relative,
                constant=not top and amplitude is None and offset is None and not np.ptp(features, axis=0).any(),
            )
        )
        return len(self.channels) - 1

    def _subtract_floor(self, table: dict[tuple[int, ...], np.ndarray]) -> None:
        key = () if self.base is None else (self.base,)
        shift = -self.base_constant if self.base is None else -1.0
        table[key] = table.get(key, np.zeros(self.n)) + shift

    def _set_bounds(self) -> None:
        self.lower, self.upper = np.full(self.p, -OPEN), np.full(self.p, OPEN)
        least = float(self.z.min())
        for name, i in self.index.items():
            if i == self.base:
                self.lower[i], self.upper[i] = least + np.log(_FLOOR_RANGE[0]), least + np.log(_FLOOR_RANGE[1])
            elif name not in self.law.positive:
                self.lower[i], self.upper[i] = _EXPONENT_RANGE
            low, high = self.law.bounds.get(name, (None, None))
            log = name in self.law.positive
            if low is not None and (low > 0 or not log):
                self.lower[i] = np.log(low) if log else low
            if high is not None:
                self.upper[i] = np.log(high) if log else high
        for channel in self.channels:
            if channel.amplitude is not None and channel.relative:
                self.lower[channel.amplitude] = -VANISHED
                self.upper[channel.amplitude] = VANISHED

    def _set_chain(self) -> None:
        """Where each channel's monomials stand in the long vector q, and whether q is linear in theta."""
        keys = [key for channel in self.channels for key in channel.keys]
        self.keys = keys + ([(self.base,)] if self.base is not None else [])
        starts = np.concatenate([[0], np.cumsum([len(c.keys) for c in self.channels])])
        self.slices = [slice(int(a), int(b)) for a, b in zip(starts[:-1], starts[1:], strict=True)]
        self.linear = all(len(key) == 1 for key in self.keys)
        self.selection = np.zeros((len(self.keys), self.p))
        for k, key in enumerate(self.keys):
            if len(key) == 1:
                self.selection[k, key[0]] = 1.0

    # -- coordinates -------------------------------------------------------------------------------------------------
    def monomials(self, theta: np.ndarray) -> np.ndarray:
        """The long vector q of monomials, (B, nq), for coordinates (B, p)."""
        if self.linear:
            return theta @ self.selection.T
        return np.stack([np.prod(theta[:, list(key)], axis=1) for key in self.keys], axis=1)

    def chain(self, theta: np.ndarray) -> np.ndarray:
        """dq/dtheta, (B, nq, p)."""
        out = np.zeros((len(theta), len(self.keys), self.p))
        for k, key in enumerate(self.keys):
            for at, i in enumerate(key):
                out[:, k, i] += np.prod(theta[:, list(key[:at] + key[at + 1 :])], axis=1)
        return out

    def chain_curvature(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """sum_k gradient_k * d2 q_k / dtheta2, (B, p, p)."""
        out = np.zeros((len(theta), self.p, self.p))
        for k, key in enumerate(self.keys):
            for a in range(len(key)):
                for b in range(len(key)):
                    if a != b:
                        rest = [key[c] for c in range(len(key)) if c not in (a, b)]
                        out[:, key[a], key[b]] += gradient[:, k] * np.prod(theta[:, rest], axis=1)
        return out

    def to_values(self, theta: np.ndarray) -> np.ndarray:
        """Coordinates (B, p) to parameter values (B, p), amplitudes and floor as plain numbers."""
        out = self._shift_amplitudes(np.array(theta, dtype=float), sign=-1.0)
        logs = self._logged()
        out[:, logs] = np.exp(out[:, logs])
        return out

    def to_coordinates(self, values: np.ndarray) -> np.ndarray:
        """Parameter values (B, p) to coordinates (B, p)."""
        out = np.array(values, dtype=float)
        logs = self._logged()
        out[:, logs] = np.log(out[:, logs])
        return self._shift_amplitudes(out, sign=1.0)

    def _logged(self) -> list[int]:
        return [i for name, i in self.index.items() if name in self.law.positive]

    def _shift_amplitudes(self, theta: np.ndarray, *, sign: float) -> np.ndarray:
        q = self.monomials(theta)
        out = theta.copy()
        for channel, where in zip(self.channels, self.slices, strict=True):
            if channel.amplitude is None:
                continue
            shift = q[:, where] @ channel.means + channel.offset_mean
            if channel.relative:
                shift = shift - (theta[:, self.base] if self.base is not None else self.base_constant)
            out[:, channel.amplitude] += sign * shift
        return out

    def jacobian_of_values(self, theta: np.ndarray) -> np.ndarray:
        """d(parameter on its natural scale) / d(coordinate) at one point, (p, p); amplitudes in logarithms."""
        step = 1e-6
        moved = self._shift_amplitudes(theta[None] + step * np.eye(self.p), sign=-1.0)
        back = self._shift_amplitudes(theta[None] - step * np.eye(self.p), sign=-1.0)
        return np.asarray((moved - back) / (2 * step)).T


def subset(problem: Problem, rows: Sequence[int] | np.ndarray) -> Problem:
    """The same problem on some of its runs."""
    rows = np.asarray(rows)
    weights = None if problem.weights is None else problem.weights[rows]
    return Problem(problem.law, {c: v[rows] for c, v in problem.columns.items()}, problem.z[rows], weights)
