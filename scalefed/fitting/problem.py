"""How does a law become numbers for the solver? Centred features, monomials in the parameters, coordinates and bounds.

Every leaf term of a law has a logarithm ``v = offset + features @ monomials(theta)``; the features depend on the runs
only, so one matrix product serves every start and every bootstrap replicate. Amplitudes that belong to one term are
measured in logarithms, at the centre of the features and relative to the floor of the law, which makes the Hessian well
conditioned whatever the units of params and tokens are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from scalefed.fitting.channels import Channel, Node, Sum
from scalefed.laws.law import Law
from scalefed.laws.terms import Part, Polynomial, Term

OPEN = 1e6  # in natural logarithms or powers: no bound
VANISHED = 16.0  # natural log: a term e^16 below or above the loss is gone or all
_FLOOR_RANGE = (1e-4, 1.2)  # times the least loss: a floor below the first is none, above the second no law of it
_EXPONENT_RANGE = (-20.0, 20.0)  # far beyond any published exponent
_FARTHEST = 300.0  # of what stands in an exponent at the middle of the runs: exp of it is no loss any more


class Problem:
    """A law and its runs, ready for the batched solver.

    Args:
        law: the law; fixed parameters are put in as numbers.
        columns: every column of the law, each (n,).
        log_loss: (n,) natural logarithm of the target.
        weights: (n,) weights of the runs in the objective, or None for 1 each.
        above: width of the Huber loss above the law, as a share of that below.

    Attributes:
        names: free parameters, one coordinate each, in the law's order.
        lower, upper: (p,) box in coordinates.
        base: coordinate of the floor's logarithm, or None.
        base_constant: logarithm of a fixed floor (0 where there is none).
        scales: coordinate of a tower's factor -> the leaf whose centring it carries.
        has_floor: whether a constant term stands apart from the others.
    """

    def __init__(
        self,
        law: Law,
        columns: Mapping[str, np.ndarray],
        log_loss: np.ndarray,
        weights: np.ndarray | None = None,
        above: float = 1.0,
    ) -> None:
        self.law = law
        self.above = above
        self.weights = None if weights is None else np.asarray(weights, dtype=float)
        self.z = np.ascontiguousarray(log_loss, dtype=float)
        self.n = len(self.z)
        self.names = law.free
        self.p = len(self.names)
        self.index = {name: i for i, name in enumerate(self.names)}
        self.columns = {c: np.asarray(columns[c], dtype=float) for c in law.columns}
        self.uses = self._count_uses()
        self.channels: list[Channel] = []
        self.scales: dict[int, int] = {}
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
                for name in part.parameters:
                    if name in uses:
                        uses[name] += 1
        return uses

    def _take_floor(self, terms: list[Term]) -> list[Term]:
        """Set aside the first constant term; alone it stays, and where something is subtracted it is no floor."""
        if any(term.sign < 0 for term in terms):
            return terms
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

    def _own_amplitude(self, parts: Polynomial) -> tuple[int | None, bool]:
        """The parameter that nothing but this channel has and that it adds or subtracts, and whether it subtracts."""
        for part in parts:
            alone = not part.atoms and not part.factors and len(part.parameters) == 1
            name = part.parameters[0] if alone else ""
            if alone and self.uses[name] == 1 and name not in self.law.bounds:
                if part.coefficient in (1.0, -1.0):
                    return self.index[name], part.coefficient < 0
        return None, False

    def _node(self, term: Term, *, top: bool, unit: float = 0.0) -> Node:
        amplitude, turned = self._own_amplitude(term.parts)
        relative = top and amplitude is not None and self.has_floor
        log = self._sum(term.parts, amplitude, turned=turned, relative=relative, top=top, unit=unit)
        node = Node(log, sign=term.sign)
        for one in term.repeats:
            decay = self._channel((Part(1.0, (one.decay,)),), None)
            tokens, unique = (self._node(t, top=False) for t in (one.tokens, one.unique))
            node.repeats.append((self._sum(one.exponent, None), decay, tokens, unique))
        for power in term.powers:
            exponent = self._sum(power.exponent, None)
            unit = self._unit_of(power.terms) if self._liftable(exponent, amplitude) else 0.0
            node.groups.append((exponent, [self._node(t, top=False, unit=unit) for t in power.terms]))
            if unit:
                self.channels[log.channel].lifts.append((exponent.channel, unit))
        return node

    def _liftable(self, exponent: Sum, amplitude: int | None) -> bool:
        """Whether a sum may have a unit of its own: one exponent in all runs, and an amplitude to take it up."""
        channel = self.channels[exponent.channel]
        same = channel.offset is None or not np.ptp(channel.offset)
        return amplitude is not None and not exponent.towers and same and not np.ptp(channel.features, axis=0).any()

    def _unit_of(self, terms: Sequence[Term]) -> float:
        """The mean logarithm of the columns that are added without an amplitude: of the order of Q in x + Q."""
        for term in terms:
            plain = all(len(p.atoms) == 1 and not p.parameters and not p.factors for p in term.parts)
            if term.parts and plain and not term.powers and not term.repeats:
                logs = sum((p.coefficient * p.atoms[0].value(self.columns) for p in term.parts), np.zeros(self.n))
                return float(np.mean(logs))
        return 0.0

    def _sum(
        self,
        parts: Polynomial,
        amplitude: int | None,
        *,
        turned: bool = False,
        relative: bool = False,
        top: bool = False,
        unit: float = 0.0,
    ) -> Sum:
        flat = tuple(part for part in parts if not part.factors)
        found = Sum(self._channel(flat, amplitude, turned=turned, relative=relative, top=top, unit=unit))
        for part in parts:
            if part.factors:
                rest = self._channel((replace(part, factors=()),), None)
                nodes = [self._node(factor, top=False) for factor in part.factors]
                found.towers.append((rest, nodes))
                self._centre(part, nodes)
        return found

    def _centre(self, part: Part, nodes: Sequence[Node]) -> None:
        """Measure the s of ``s*params^q`` at the middle of the runs, where that is all there is."""
        alone = len(part.parameters) == 1 and self.uses.get(part.parameters[0]) == 1
        if not alone or part.parameters[0] in self.law.positive or part.parameters[0] in self.law.bounds:
            return
        leaf = nodes[0].leaf
        channel = self.channels[leaf]
        if len(nodes) > 1 or not nodes[0].is_plain or channel.amplitude is not None:
            return
        channel.means = channel.features.mean(axis=0)
        channel.features = np.ascontiguousarray(channel.features - channel.means)
        if channel.offset is not None:
            channel.offset_mean = float(channel.offset.mean())
            channel.offset = channel.offset - channel.offset_mean
        channel.constant = False
        self.scales[self.index[part.parameters[0]]] = leaf

    def _channel(
        self,
        parts: Polynomial,
        amplitude: int | None,
        *,
        turned: bool = False,
        relative: bool = False,
        top: bool = False,
        unit: float = 0.0,
    ) -> int:
        table: dict[tuple[int, ...], np.ndarray] = {}
        for part in parts:
            fixed = [name for name in part.parameters if name not in self.index]  # a decay that is held
            key = tuple(sorted(self.index[name] for name in part.parameters if name in self.index))
            column = np.full(self.n, part.coefficient)
            for name in fixed:
                column = column * np.log(self.law.fixed[name])
            for atom in part.atoms:
                column = column * atom.value(self.columns)
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
            offset_mean -= unit
        elif unit:
            constant = np.full(self.n, -unit) + (0.0 if constant is None else constant)
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
                turned=turned,
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
                self.lower[i], self.upper[i] = _EXPONENT_RANGE if i not in self._offsets() else (-_FARTHEST, _FARTHEST)
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

    def _offsets(self) -> set[int]:
        """Coordinates that are measured from the middle of a channel, or at the middle of a tower."""
        return {c.amplitude for c in self.channels if c.amplitude is not None} | set(self.scales)

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
        out = self._rescaled(self._shift_amplitudes(np.array(theta, dtype=float), sign=-1.0), theta, sign=-1.0)
        logs = self._logged()
        out[:, logs] = np.exp(out[:, logs])
        return out

    def to_coordinates(self, values: np.ndarray) -> np.ndarray:
        """Parameter values (B, p) to coordinates (B, p)."""
        out = np.array(values, dtype=float)
        logs = self._logged()
        out[:, logs] = np.log(out[:, logs])
        out = self._rescaled(out, out.copy(), sign=1.0)
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
            for exponent, unit in channel.lifts:
                at, power = self.slices[exponent], self.channels[exponent]
                offset = 0.0 if power.offset is None else power.offset[0]
                shift = shift + unit * (q[:, at] @ power.features[0] + offset)
            if channel.relative:
                shift = shift - (theta[:, self.base] if self.base is not None else self.base_constant)
            out[:, channel.amplitude] += -sign * shift if channel.turned else sign * shift
        return out

    def _rescaled(self, out: np.ndarray, exponents: np.ndarray, *, sign: float) -> np.ndarray:
        """Factors of towers at the middle of the runs (sign 1) or at 1 (sign -1) of what they multiply."""
        q = self.monomials(exponents) if self.scales else None
        for coordinate, leaf in self.scales.items():
            channel = self.channels[leaf]
            shift = q[:, self.slices[leaf]] @ channel.means + channel.offset_mean  # type: ignore[index]
            out[:, coordinate] *= np.exp(sign * shift)
        return out


def subset(problem: Problem, rows: Sequence[int] | np.ndarray) -> Problem:
    """The same problem on some of its runs."""
    rows = np.asarray(rows)
    weights = None if problem.weights is None else problem.weights[rows]
    columns = {c: v[rows] for c, v in problem.columns.items()}
    return Problem(problem.law, columns, problem.z[rows], weights, problem.above)
