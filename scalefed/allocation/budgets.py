"""What limits a federated training run, and what is held fixed while its size is chosen?

Every limit is a sum of power-law products of params (N), tokens (D) and rounds (R), so that the best run within any
mix of limits is a geometric program. With m clients a round, K clients, b tokens a step, w bytes a number and a share
q of the parameters trained (1 for all, less under LoRA)::

    compute             (4 + 2 q) N D + 2 N (sampled tokens)       or as the runs' own column counts the first
    compute_exact       as the runs' column counts it
    compute_per_client  (4 + 2 q) N D / K                          mean over clients
    bytes_sent          2 w q N m R                                up and down, all clients
    bytes_per_client    2 w q N R m / K                            mean over clients
    memory              w (N + embedding + 3 q N + activations)    of a client, one step
    seconds             (4 + 2 q) N D / (m flops_per_second) + R (2 w q N / bandwidth + latency)
    rounds, tokens, params, unique_tokens_per_client (D <= epochs K U)

Sources: :mod:`scalefed.units` for each formula; seconds is the synchronous round of McMahan et al. 2017 (arXiv
1602.05629) whose clients work side by side.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefed.allocation.cost import PowerSum
from scalefed.allocation.posynomial import Posynomial
from scalefed.errors import ConfigError, FitError
from scalefed.units import activation_values, client_memory_bytes, grouped, sampling_flops, train_flops

Array = NDArray[np.float64]
Flat = Callable[[ArrayLike], Array]
Terms = list[tuple[Array, tuple[float, int, int]]]

PARAMS, TOKENS, ROUNDS = 0, 1, 2  # where in the planner's vector of logarithms each stands
_HIDDEN = activation_values(width=1, layers=1, tokens=1, vocab=0)
_LOGITS = activation_values(width=1, layers=1, tokens=1, vocab=1) - _HIDDEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is held fixed while params and tokens are chosen; numbers, or arrays for many questions at once.

    Attributes:
        clients: K, clients that hold data.
        clients_per_round: m, clients that train in a round.
        skew: measured difference of the clients' mixtures, 0 to 1.
        local_steps: optimizer steps of a client in a round; None leaves them free.
        batch_tokens: b, tokens in a client's step.
        unique_tokens: different tokens over all clients.
        bytes_per_value: w, bytes of a number on the wire and in memory.
        trained_share: q, trained over all parameters.
        vocab: entries of the tokenizer (memory only).
        width_per_layer: the model's width over its number of layers (memory only).
        cost: FLOPs of a training token by params; None for (4 + 2 q) params.
        exact: the same with output layer and attention counted, for a limit on compute_exact.
        total: parameters with embeddings by params; None where the law's params_total is the size that is chosen.
        columns: values of any other column that the law needs.
    """

    clients: ArrayLike | None = None
    clients_per_round: ArrayLike | None = None
    skew: ArrayLike | None = None
    local_steps: ArrayLike | None = None
    batch_tokens: ArrayLike | None = None
    unique_tokens: ArrayLike | None = None
    bytes_per_value: float = 4.0
    trained_share: float = 1.0
    vocab: int = 0
    width_per_layer: float = 64.0
    cost: PowerSum | None = None
    exact: PowerSum | None = None
    total: PowerSum | None = None
    columns: Mapping[str, ArrayLike] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        for name in ("clients", "clients_per_round", "local_steps", "batch_tokens", "unique_tokens"):
            _positive(name, getattr(self, name))
        _positive("bytes_per_value", self.bytes_per_value)
        _positive("trained_share", self.trained_share)
        if self.trained_share > 1:
            raise ConfigError(f"trained_share must be in (0, 1], got {self.trained_share}; 1 trains all parameters")
        if self.skew is not None and not np.all((np.asarray(self.skew) >= 0) & (np.asarray(self.skew) <= 1)):
            raise ConfigError(f"skew must be in [0, 1] (0 iid, 1 disjoint), got {np.asarray(self.skew)}")
        if self.clients is not None and self.clients_per_round is not None:
            if np.any(np.asarray(self.clients_per_round) > np.asarray(self.clients)):
                raise ConfigError(
                    f"clients_per_round must be at most clients, got {np.asarray(self.clients_per_round)} "
                    f"of {np.asarray(self.clients)}"
                )

    def given(self) -> dict[str, Array]:
        """The columns of a law that this setting fixes."""
        known = {name: np.asarray(value, dtype=float) for name, value in self.columns.items()}
        for name in ("clients", "clients_per_round", "skew", "local_steps", "batch_tokens", "unique_tokens"):
            if getattr(self, name) is not None:
                known[name] = np.asarray(getattr(self, name), dtype=float)
        if "clients" in known and "clients_per_round" in known:
            known["participation"] = known["clients_per_round"] / known["clients"]
        return known

    def need(self, name: str, why: str) -> Array:
        """A field that may be missing.

        Raises:
            FitError: it is missing; the message says why it is needed.
        """
        value = getattr(self, name)
        if value is None:
            raise FitError(f"{why} needs {name}=...; it was not given and the runs do not settle it")
        return np.asarray(value, dtype=float)

    @property
    def per_token(self) -> PowerSum:
        """FLOPs of a training token by params."""
        return self.cost or PowerSum((float(train_flops(1, 1, trained=self.trained_share)),), (1.0,))

    def memory(self, params: ArrayLike) -> Array:
        """Bytes that one client needs to train ``params`` non-embedding parameters."""
        size = np.asarray(params, dtype=float)
        width = np.cbrt(size * self.width_per_layer / 12)
        tokens = self.need("batch_tokens", "memory")
        activations = _HIDDEN * width**2 / self.width_per_layer * tokens + _LOGITS * self.vocab * tokens
        total = size + self.vocab * width
        values = client_memory_bytes(
            total, trained=self.trained_share * total, activations=activations, bytes_per_value=1
        )
        return np.asarray(self.bytes_per_value * values, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The limits of a run; numbers, or arrays for many questions at once; None is no limit.

    Attributes:
        compute: FLOPs of all clients and rounds, and of ``sampled_tokens`` generated with the finished model.
        compute_exact: the same as the runs' ``compute_exact`` counts it: with output layer and attention.
        compute_per_client: FLOPs of a client, on average.
        bytes_sent: bytes on the wire in all, up and down.
        bytes_per_client: bytes on the wire of a client, on average.
        memory: bytes of memory of a client.
        seconds: wall clock; with ``flops_per_second`` and ``bandwidth`` (bytes per second) of a client, and
            ``latency`` in seconds a round.
        rounds, tokens, params: the largest number.
        unique_tokens_per_client: different tokens of a client, used at most ``epochs`` times: once if that is not
            given, but as often as pays where the law has a term for repeats.
    """

    compute: ArrayLike | None = None
    compute_exact: ArrayLike | None = None
    compute_per_client: ArrayLike | None = None
    bytes_sent: ArrayLike | None = None
    bytes_per_client: ArrayLike | None = None
    memory: ArrayLike | None = None
    seconds: ArrayLike | None = None
    rounds: ArrayLike | None = None
    tokens: ArrayLike | None = None
    params: ArrayLike | None = None
    unique_tokens_per_client: ArrayLike | None = None
    flops_per_second: ArrayLike | None = None
    bandwidth: ArrayLike | None = None
    latency: float = 0.0
    epochs: float | None = None
    sampled_tokens: ArrayLike | None = None

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        for item in fields(self):
            if item.name != "latency":
                _positive(item.name, getattr(self, item.name))
        if self.latency < 0:
            raise ConfigError(f"latency must be zero or more seconds, got {self.latency}")

    def shape(self) -> tuple[int, ...]:
        """The common shape of all limits."""
        return np.broadcast_shapes(
            *(np.shape(getattr(self, item.name)) for item in fields(self) if _is_set(self, item.name))
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The limits that are set."""
        extra = {"flops_per_second", "bandwidth", "latency", "epochs", "sampled_tokens"}
        return tuple(item.name for item in fields(self) if item.name not in extra and _is_set(self, item.name))


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit ``f(x) <= 0``; ``elasticity`` (s,) is d f / d log budget with the sign turned."""

    name: str
    posynomial: Posynomial
    elasticity: Array


def limits(budget: Budget, setting: Setting, shape: tuple[int, ...], *, repeats_priced: bool) -> list[Limit]:
    """Every limit as a posynomial in log params, log tokens, log rounds.

    Args:
        budget: what limits the run.
        setting: what is held fixed.
        shape: of the batch, flattened in the result.
        repeats_priced: the law has a term for repeated tokens, so unique tokens limit only where epochs are given.
    """

    def flat(value: ArrayLike) -> Array:
        return np.broadcast_to(np.asarray(value, dtype=float), shape).reshape(-1)

    cost = setting.per_token
    wire = 2 * setting.bytes_per_value * setting.trained_share
    made: list[Limit] = []
    terms: Terms
    for name in budget.names:
        if name == "unique_tokens_per_client" and repeats_priced and budget.epochs is None:
            continue
        top = flat(getattr(budget, name))
        elasticity = np.ones(len(top))
        if name == "compute":
            terms = _spent(cost, top)
            if budget.sampled_tokens is not None:
                terms.append((sampling_flops(1, 1) * flat(budget.sampled_tokens) / top, (1, 0, 0)))
        elif name == "compute_exact":
            if setting.exact is None:
                raise FitError("the runs have no compute_exact, so no budget can be counted in it; give compute=...")
            terms = _spent(setting.exact, top)
        elif name == "compute_per_client":
            terms = _spent(cost, top * flat(setting.need("clients", name)))
        elif name == "bytes_sent":
            terms = [(wire * flat(setting.need("clients_per_round", name)) / top, (1, 0, 1))]
        elif name == "bytes_per_client":
            share = flat(setting.need("clients_per_round", name)) / flat(setting.need("clients", name))
            terms = [(wire * share / top, (1, 0, 1))]
        elif name == "seconds":
            terms = _seconds(budget, setting, wire, top, flat)
        elif name == "memory":
            largest, elasticity = _largest(setting, np.asarray(budget.memory, dtype=float))
            terms = [(1 / flat(largest), (1, 0, 0))]
            elasticity = flat(elasticity)
        elif name == "unique_tokens_per_client":
            terms = [(1 / (top * (budget.epochs or 1.0) * flat(setting.need("clients", name))), (0, 1, 0))]
        else:
            exponents = {"rounds": (0, 0, 1), "tokens": (0, 1, 0), "params": (1, 0, 0)}[name]
            terms = [(1 / top, exponents)]
        made.append(Limit(name, _posynomial(terms), elasticity))
    return made


def _spent(cost: PowerSum, top: Array) -> Terms:
    """The FLOPs of training over those that there are."""
    return [(k / top, (e, 1, 0)) for k, e in zip(cost.coefficients, cost.exponents, strict=True)]


def _seconds(budget: Budget, setting: Setting, wire: float, top: Array, flat: Flat) -> Terms:
    clients_per_round = flat(setting.need("clients_per_round", "seconds"))
    if budget.flops_per_second is None and budget.bandwidth is None:
        raise FitError("seconds needs flops_per_second=... of a client, bandwidth=... in bytes per second, or both")
    terms: Terms = []
    if budget.flops_per_second is not None:
        terms += _spent(setting.per_token, clients_per_round * flat(budget.flops_per_second) * top)
    if budget.bandwidth is not None:
        terms.append((wire / (flat(budget.bandwidth) * top), (1, 0, 1)))
    if budget.latency:
        terms.append((budget.latency / top, (0, 0, 1)))
    return terms


def _largest(setting: Setting, top: Array) -> tuple[Array, Array]:
    """Params that fill the memory, and d log params / d log memory there (by bisection; memory rises with params)."""
    if np.any(setting.memory(1.0) > top):
        raise FitError(
            f"memory = {grouped(np.min(top), 3)} bytes does not hold the activations of one step of "
            f"{grouped(np.max(np.asarray(setting.batch_tokens)), 6)} tokens; lower batch_tokens or raise memory"
        )
    shape = np.broadcast_shapes(top.shape, setting.need("batch_tokens", "memory").shape)
    low, high = np.zeros(shape), np.full(shape, 70.0)
    for _ in range(60):
        middle = (low + high) / 2
        over = setting.memory(np.exp(middle)) > top
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    rise = np.log(setting.memory(np.exp(low + 1e-4)) / setting.memory(np.exp(low - 1e-4))) / 2e-4
    return np.exp(low), 1 / rise


def _posynomial(terms: Terms) -> Posynomial:
    coefficient = np.log(np.stack([value for value, _ in terms], axis=1))
    exponents = np.broadcast_to(np.array([e for _, e in terms], float), (len(coefficient), len(terms), 3)).copy()
    return Posynomial(coefficient, exponents)


def _is_set(budget: Budget, name: str) -> bool:
    return getattr(budget, name) is not None


def _positive(name: str, value: ArrayLike | None) -> None:
    if value is None:
        return
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} must be a positive number, got {value!r}") from error
    if not np.all(np.isfinite(numbers) & (numbers > 0)):
        raise ConfigError(f"{name} must be positive and finite, got {numbers}")
