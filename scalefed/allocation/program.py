"""How does a law with its limits become a geometric program, and which solver takes it?

The law's columns are written in the planner's variables, log params and log tokens; rounds follow from tokens where
the local steps are given (tokens = clients_per_round * local_steps * batch_tokens * rounds) and are a third variable
where they are not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefed.allocation.budgets import PARAMS, ROUNDS, TOKENS, Budget, Limit, Setting, limits
from scalefed.allocation.cost import PowerSum
from scalefed.allocation.evaluation import by_evaluation, why_not_powers
from scalefed.allocation.posynomial import Posynomial, Substitution, from_monomials
from scalefed.allocation.search import Surface, lowest
from scalefed.allocation.solvers import FARTHEST, Minimum, along_limits, interior_point
from scalefed.errors import FitError
from scalefed.laws import Law

Array = NDArray[np.float64]

WALLS, _NEAR = ("params", "memory"), 1e-7
"""The limits on size alone, and how near in logarithms a size is held by one."""
ROUND_COLUMNS = frozenset({"rounds", "local_steps", "bytes_sent"})


@dataclass(frozen=True, slots=True)
class Program:
    """A question in logarithms, as a flat batch of s rows.

    Attributes:
        law: what is minimised, the constant terms left out; None for a law that is no sum of powers.
        surface: the same by evaluation, for such a law.
        constant: (s,) those terms: the loss that no size and no data removes.
        limits: what must stay below 1.
        shape: of the batch before it was flattened.
        chooses_rounds: whether rounds are a third variable beside params and tokens.
        log_step: (s,) log tokens of one local step of all clients of a round; nan where unknown.
        log_local_steps: (s,) nan where free or unknown.
        cost: FLOPs of a training token by params.
        sampled: (s,) tokens generated with the finished model, part of the compute.
    """

    law: Posynomial | None
    surface: Surface | None
    constant: Array
    limits: tuple[Limit, ...]
    shape: tuple[int, ...]
    chooses_rounds: bool
    log_step: Array
    log_local_steps: Array
    cost: PowerSum
    sampled: Array

    def log_excess(self, x: Array) -> Array:
        """Logarithm of the loss above the constant, (s,), at (s, v) logarithms of the variables."""
        if self.law is not None:
            return self.law.evaluate(x, np.eye(x.shape[1]))[0]
        assert self.surface is not None  # noqa: S101  one of the two is there
        return self.surface(x[:, :1], x[:, 1:2], np.arange(len(x)))[:, 0]

    def holds(self, x: Array, converged: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether the limits hold the optimum, (s,): a limit on size itself does, however flat the loss is there.

        Args:
            x: (s, v) logarithms of the variables.
            converged: (s,) whether the solver found an optimum.
        """
        walls = [limit.posynomial for limit in self.limits if limit.name in WALLS]
        for wall in walls:
            converged = converged | (np.abs(wall.evaluate(x, np.eye(x.shape[1]))[0]) < _NEAR)
        top = (x[:, PARAMS] < FARTHEST - 1e-3) | bool(walls)
        return np.asarray(converged & (x[:, PARAMS] > 1e-3) & top & (x[:, TOKENS] < FARTHEST + 30))


def build(law: Law, values: Mapping[str, ArrayLike], budget: Budget, setting: Setting) -> Program:
    """Put a question as a program.

    Raises:
        FitError: the law lacks params or tokens, nothing limits the run, or a needed value is not given.
    """
    _check_law(law)
    if not budget.names:
        raise FitError("no limit was given, so the best size is infinite; give compute=... (FLOPs) or another budget")
    given = _given(law, setting)
    shape = np.broadcast_shapes(
        budget.shape(), *(np.shape(v) for v in values.values()), *(v.shape for v in given.values())
    )

    def flat(value: ArrayLike | None) -> Array:
        number = np.nan if value is None else np.asarray(value, dtype=float)
        return np.broadcast_to(number, shape).reshape(-1)

    log_step = np.log(flat(setting.clients_per_round) * flat(setting.batch_tokens))
    log_local = np.log(flat(setting.local_steps))
    in_rounds = bool(ROUND_COLUMNS & set(law.columns)) and not (
        set(law.columns) & ROUND_COLUMNS <= {"local_steps"} and setting.local_steps is not None
    )
    made = limits(budget, setting, shape, repeats_priced="unique_tokens" in law.columns)
    limited = any(limit.posynomial.depends_on(ROUNDS) for limit in made)
    chooses = _chooses_rounds(law, setting, in_rounds, limited)
    variables = 3 if chooses else 2
    if not chooses and limited:
        made = [replace(limit, posynomial=_tie(limit.posynomial, log_step + log_local)) for limit in made]
    made = [replace(limit, posynomial=_cut(limit.posynomial, variables)) for limit in made]
    sampled = np.zeros(log_step.shape) if budget.sampled_tokens is None else flat(budget.sampled_tokens)
    flat_values = {name: flat(value) for name, value in values.items()}
    held = {name: flat(value) for name, value in given.items()}
    moving: Posynomial | None = None
    surface: Surface | None = None
    if why_not_powers(law, setting, held):
        if chooses:
            raise FitError(f"the law {law.name!r} is searched by size and tokens only; give local_steps=...")
        surface, constant = by_evaluation(law, flat_values, held, setting, log_step + log_local)
    else:
        moving, constant = _as_powers(law, values, given, setting, shape, log_step, log_local, variables)
    return Program(moving, surface, constant, tuple(made), shape, chooses, log_step, log_local, setting.per_token,
                   sampled)  # fmt: skip


def _as_powers(
    law: Law,
    values: Mapping[str, ArrayLike],
    given: Mapping[str, Array],
    setting: Setting,
    shape: tuple[int, ...],
    log_step: Array,
    log_local: Array,
    variables: int,
) -> tuple[Posynomial, Array]:
    """The law as a sum of powers of the planner's variables, and its constant terms, (s,)."""
    terms = law.monomials(
        values, {name: v for name, v in given.items() if name in law.columns and name != "unique_tokens"}
    )
    moves = [bool(term.exponents or term.groups or term.repeated) for term in terms]
    columns = _substitutions(setting, given, shape, log_step, log_local, variables)
    moving = from_monomials([term for term, yes in zip(terms, moves, strict=True) if yes], columns, shape, variables)
    size = int(np.prod(shape, dtype=int))
    constant = np.zeros(size)
    for term, yes in zip(terms, moves, strict=True):
        if not yes:
            constant = constant + term.sign * np.exp(np.broadcast_to(term.log_coefficient, shape).reshape(-1))
    for variable, name in ((PARAMS, "params"), (TOKENS, "tokens")):
        if not moving.depends_on(variable):
            raise _no_trade(law, name)
    return moving, constant


def _check_law(law: Law) -> None:
    for name, sources in (("params", {"params", "params_total", "params_trained"}), ("tokens", {"tokens", "epochs"})):
        if not sources & set(law.columns) and not ({"compute"} & set(law.columns)):
            if name == "tokens" and ROUND_COLUMNS & set(law.columns):
                continue
            raise _no_trade(law, name)


def _no_trade(law: Law, name: str) -> FitError:
    other = "tokens" if name == "params" else "params"
    return FitError(
        f"the law {law.name!r} ({law.formula}) does not say how loss depends on {name}, so no budget can be divided "
        f"between {name} and {other}; fit a law with both, such as 'chinchilla' or 'federated'"
    )


def _given(law: Law, setting: Setting) -> dict[str, Array]:
    given = setting.given()
    columns = law.columns
    chosen = {"params", "params_total", "params_trained", "tokens", "epochs", "compute", *ROUND_COLUMNS}
    needed = [name for name in columns if name != "unique_tokens" or "epochs" in columns]
    if "epochs" in columns and "unique_tokens" not in needed:
        needed.append("unique_tokens")
    missing = [name for name in needed if name not in given and name not in chosen]
    if missing:
        raise FitError(
            f"the law {law.name!r} depends on {', '.join(missing)}; give {', '.join(f'{name}=...' for name in missing)}"
        )
    return given


def _chooses_rounds(law: Law, setting: Setting, in_rounds: bool, limited: bool) -> bool:
    if not (in_rounds or limited):
        return False
    for name in ("clients_per_round", "batch_tokens"):
        setting.need(name, "a law or a limit in rounds")
    if setting.local_steps is not None:
        return False
    if not in_rounds:
        raise FitError(
            f"a limit on communication or rounds needs local_steps=...: the law {law.name!r} does not say what longer "
            "local training costs, so the fewest rounds would always look best"
        )
    return True


def _substitutions(
    setting: Setting, given: Mapping[str, Array], shape: tuple[int, ...], log_step: Array, log_local: Array, count: int
) -> dict[str, Substitution]:
    """How the columns that the planner moves are written in (log params, log tokens[, log rounds])."""
    zero = np.zeros(shape)

    def write(constant: Array, *exponents: float) -> Substitution:
        return Substitution(constant.reshape(shape), exponents[:count])

    wire = float(np.log(2 * setting.bytes_per_value * setting.trained_share))
    clients_per_round = np.log(np.broadcast_to(given.get("clients_per_round", np.asarray(np.nan)), shape))
    share = float(np.log(setting.trained_share))
    columns = {
        "params": write(zero, 1, 0, 0),
        "params_total": _power(setting.total, write, zero),
        "params_trained": write(zero + share, 1, 0, 0),
        "tokens": write(zero, 0, 1, 0),
        "compute": _power(setting.per_token, write, zero, 1),
        "unique_tokens": write(zero, 0, 1, 0),  # where it is not given, every token is read once
    }
    if "unique_tokens" in given:
        unique = np.broadcast_to(given["unique_tokens"], shape)
        columns["unique_tokens"] = write(np.log(np.minimum(unique, 1e300)), 0, 0, 0)
    if count == 3:
        columns["rounds"] = write(zero, 0, 0, 1)
        columns["local_steps"] = write(-log_step, 0, 1, -1)
        columns["bytes_sent"] = write(zero + wire + clients_per_round, 1, 0, 1)
    elif np.all(np.isfinite(log_step + log_local)):
        columns["rounds"] = write(-log_step - log_local, 0, 1)
        columns["bytes_sent"] = write((wire + clients_per_round.reshape(-1) - log_step - log_local), 1, 1)
    return columns


def _power(
    found: PowerSum | None, write: Callable[..., Substitution], zero: Array, tokens: float = 0.0
) -> Substitution:
    """What is one power of params, times tokens to a power; a sum of powers is asked by evaluation instead."""
    power = found or PowerSum((1.0,), (1.0,))
    return write(zero + np.log(power.coefficients[0]), power.exponents[0], tokens, 0)


def _tie(limit: Posynomial, log_round: Array) -> Posynomial:
    """Write rounds as tokens over the tokens of one round."""
    rounds = limit.exponents[:, :, ROUNDS]
    exponents = limit.exponents.copy()
    exponents[:, :, TOKENS] += rounds
    exponents[:, :, ROUNDS] = 0
    return Posynomial(limit.log_coefficient - rounds * log_round[:, None], exponents)


def _cut(limit: Posynomial, variables: int) -> Posynomial:
    return Posynomial(limit.log_coefficient, np.ascontiguousarray(limit.exponents[:, :, :variables]))


def solve(program: Program) -> Minimum:
    """Minimise by the solver that fits: along the limits where that is possible, else by the interior-point method.

    Raises:
        FitError: no limit holds the tokens, or a limit is too small for any run.
    """
    parts = [limit.posynomial for limit in program.limits]
    if not any(part.exponents[:, :, 1:].any() for part in parts):
        raise FitError(
            f"the limits {', '.join(limit.name for limit in program.limits)} hold no tokens, so training for ever is "
            "best; add compute=..., tokens=..., rounds=... or seconds=..."
        )
    one_way = all(np.ptp(part.exponents[:, :, TOKENS], axis=1).max() == 0 for part in parts)
    if program.law is None:
        assert program.surface is not None  # noqa: S101  one of the two is there
        return lowest(program.surface, parts, len(program.constant))
    if program.chooses_rounds or not one_way:
        return _general(program, np.arange(len(program.law)))
    rising = program.law.may_rise(TOKENS)
    if not rising.any():
        return along_limits(program.law, parts)
    found = Minimum(
        np.empty((len(rising), 2)), np.empty((len(rising), len(parts))), np.empty(len(rising), dtype=np.bool_)
    )
    for rows, flat in ((np.flatnonzero(~rising), True), (np.flatnonzero(rising), False)):
        if len(rows):
            here = [part.take(rows) for part in parts]
            solved = along_limits(program.law.take(rows), here) if flat else _general(program, rows)
            found.x[rows], found.multipliers[rows] = solved.x, solved.multipliers
            found.converged[rows] = solved.converged
    return found


def _general(program: Program, rows: NDArray[np.intp]) -> Minimum:
    """By the interior-point method, with the walls that keep the search finite."""
    assert program.law is not None  # noqa: S101  solve() asks other laws by evaluation
    count, size = program.law.exponents.shape[2], len(rows)
    parts = [limit.posynomial.take(rows) for limit in program.limits]
    identity = np.eye(count)

    def wall(exponents: Array, coefficient: Array | float) -> Posynomial:
        held = np.broadcast_to(np.asarray(coefficient, float), (size,))
        return Posynomial(held[:, None].copy(), np.broadcast_to(exponents, (size, 1, count)).copy())

    walls = [wall(-identity[PARAMS], 0.0), wall(identity[PARAMS], -FARTHEST), wall(identity[TOKENS], -FARTHEST)]
    corner = np.full((size, count), 0.01)
    direction = np.ones(count)
    if program.chooses_rounds:
        walls.append(wall(-identity[ROUNDS], 0.0))
        walls.append(wall(identity[ROUNDS] - identity[TOKENS], program.log_step[rows]))
        corner[:, TOKENS] = program.log_step[rows] + 0.02
        direction[ROUNDS] = 0.5
    else:
        walls.append(wall(-identity[TOKENS], 0.0))
    solved = interior_point(program.law.take(rows), parts + walls, _inside(parts + walls, corner, direction, program))
    return Minimum(solved.x, solved.multipliers[:, : len(parts)], solved.converged)


def _inside(parts: Sequence[Posynomial], corner: Array, direction: Array, program: Program) -> Array:
    """A point well within every limit, on the way up from the smallest run there is."""
    identity = np.eye(corner.shape[1])

    def worst(x: Array) -> Array:
        found: Array = np.stack([part.evaluate(x, identity)[0] for part in parts]).max(0)
        return found

    if np.any(worst(corner) >= 0):
        values = [part.evaluate(corner, identity)[0].max() for part in parts[: len(program.limits)]]
        name = program.limits[int(np.argmax(values))].name
        raise FitError(f"the limit {name} is too small for even one parameter and one step; raise it")
    low, high = np.zeros(len(corner)), np.full(len(corner), 2 * FARTHEST)
    for _ in range(50):
        middle = (low + high) / 2
        fits = worst(corner + middle[:, None] * direction) < 0
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return corner + 0.5 * low[:, None] * direction
