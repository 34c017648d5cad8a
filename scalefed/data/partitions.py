"""Who holds which examples? Labelled examples are dealt to clients, and how unequal the deal is gets measured.

The knob (a Dirichlet concentration, families per client, ...) is no scale: two data sets give different heterogeneity
at the same concentration. So every :class:`Partition` carries its measured ``skew`` (:mod:`scalefed.skew`).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefed.errors import ConfigError, nearest
from scalefed.seeds import rng
from scalefed.skew import dirichlet_shares, fit_margins, jensen_shannon, measured_skew
from scalefed.values import PARTITIONS

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Partition:
    """Examples dealt to clients.

    Attributes:
        indices: one ascending array of example numbers a client; together every example exactly once.
        histograms: (clients, labels) weight of each label at each client.
        skew: 0 when all clients have the same mixture, 1 when no label is shared, see
            :func:`scalefed.skew.measured_skew`: of the mixtures that were to be dealt, so that small clients, whose
            counts differ from them by chance, do not look more different than they are. Whole groups are not dealt by
            mixtures: of ``natural`` it is the skew of the counts.
        skew_uncorrected: the skew of the counts as they came out, chance included.
        jensen_shannon: mean Jensen-Shannon divergence of the clients from the whole, nats.
        scheme: how they were dealt.
        concentration: Dirichlet concentration; infinity where it has no meaning.
        seed: of the deal.
    """

    indices: tuple[NDArray[np.int64], ...]
    histograms: Floats
    skew: float
    skew_uncorrected: float
    jensen_shannon: float
    scheme: str
    concentration: float
    seed: int

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Examples at each client."""
        return np.array([len(mine) for mine in self.indices])


def partition(
    labels: ArrayLike,
    *,
    clients: int,
    concentration: float = math.inf,
    scheme: str = "dirichlet",
    families_per_client: int = 2,
    balanced: bool = True,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    minimum: int = 1,
    minimum_weight: float = 0.0,
    seed: int = 0,
) -> Partition:
    """Deal labelled examples to clients.

    Schemes: ``iid`` (shuffled, equal), ``dirichlet`` (each client's mixture of labels is drawn from a Dirichlet;
    ``concentration`` times the labels' shares times their number, so 1 is uniform over mixtures and infinity is iid),
    ``pathological`` (exactly ``families_per_client`` labels a client), ``quantity`` (iid content, Dirichlet sizes) and
    ``natural`` (whole ``groups``, such as authors, largest first to the emptiest client).

    Mixtures are made consistent by iterative proportional fitting: the union is always the whole, and with
    ``balanced`` all clients hold equal weight: sizes differ by at most one example, or by some examples' weight where
    ``weights`` are given. How many examples of a label a client gets does not depend on the order of the rows (with
    unequal weights: by no more than rounding to whole examples).

    Args:
        labels: (n,) integer label of each example.
        clients: how many.
        concentration: Dirichlet concentration.
        scheme: one of the above.
        families_per_client: for ``pathological``.
        balanced: equal weight for every client; otherwise sizes follow the draw (``dirichlet``).
        weights: (n,) weight of each example, such as its tokens; 1 when None.
        groups: (n,) integer group of each example, for ``natural``.
        minimum: fewest examples of any client; met by taking from the largest clients their commonest label, except
            for ``pathological`` and ``natural``, which refuse rather than break their promise.
        minimum_weight: least weight of any client under ``quantity``, such as the tokens of one block; met by examples
            drawn from the largest clients. The other schemes do not deal by size.
        seed: of the deal.

    Raises:
        ConfigError: unknown scheme, settings out of range, or too few examples, labels or groups.

    Source: Hsu et al. 2019 (arXiv 1909.06335), section 3, for the Dirichlet mixtures; Deming and Stephan 1940 for the
    fitting; McMahan et al. 2017, section 3, for the pathological split.

    >>> partition([0, 0, 1, 1], clients=2, scheme="pathological", families_per_client=1).skew
    1.0
    """
    kinds, label, mass = _checked(labels, weights)
    _check_settings(len(label), scheme, clients, concentration, minimum)
    if scheme == "natural":
        owner, plan = _whole_groups(_groups(groups, label), mass, clients), None
    else:
        draw = rng(seed, "partition")
        totals = np.bincount(label, weights=mass, minlength=len(kinds)).astype(np.float64)
        plan = _plan(scheme, totals, clients, concentration, families_per_client, balanced, draw)
        owner = _deal(label, mass, plan, draw)
        if weights is None and (scheme == "iid" or (scheme == "dirichlet" and balanced)):
            owner = _level(owner, label, clients)
    owner = _with_minimum(scheme, owner, label, clients, minimum)
    if scheme == "quantity":
        owner = _with_weight(owner, mass, clients, minimum_weight, draw)
    histograms = np.zeros((clients, len(kinds)))
    np.add.at(histograms, (owner, label), mass)
    return Partition(
        indices=tuple(np.split(np.argsort(owner, kind="stable"), np.bincount(owner, minlength=clients).cumsum()[:-1])),
        histograms=histograms,
        skew=round(measured_skew(histograms if plan is None else plan), 12),
        skew_uncorrected=measured_skew(histograms),
        jensen_shannon=jensen_shannon(histograms),
        scheme=scheme,
        concentration=float(concentration),
        seed=seed,
    )


def _plan(
    scheme: str, totals: Floats, clients: int, concentration: float, per_client: int, balanced: bool, draw: Any
) -> Floats:
    """Weight of each label that each client should hold, (clients, labels); columns sum to the totals."""
    equal = np.full(clients, totals.sum() / clients)
    prior = totals / totals.sum()
    if scheme == "iid" or (scheme == "dirichlet" and math.isinf(concentration)):
        return np.outer(equal, prior)
    if scheme == "quantity":
        shares = draw.dirichlet(np.full(clients, min(concentration, 1e6)))
        return np.outer(shares * totals.sum(), prior)
    if scheme == "pathological":
        return _disjoint_shares(totals, clients, per_client, draw)
    mixtures = dirichlet_shares(prior, clients=clients, concentration=concentration, draw=draw) + 1e-9 * prior
    return fit_margins(mixtures * equal[:, None], equal if balanced else np.full(clients, np.nan), totals)


def _deal(label: NDArray[np.int64], mass: Floats, plan: Floats, draw: Any) -> NDArray[np.int64]:
    """Give each label's shuffled examples to the clients in turn, as much weight to each as planned."""
    owner = np.empty(len(label), dtype=np.int64)
    for kind in range(plan.shape[1]):
        rows = draw.permutation(np.flatnonzero(label == kind))
        middle = np.cumsum(mass[rows]) - 0.5 * mass[rows]
        order = draw.permutation(len(plan))  # so that rounding does not always favour the first client
        edges = np.cumsum(plan[order, kind])
        owner[rows] = order[np.minimum(np.searchsorted(edges, middle), len(plan) - 1)]
    return owner


def _whole_groups(groups: NDArray[Any], mass: Floats, clients: int) -> NDArray[np.int64]:
    """Whole groups to clients: the largest left goes to the client that holds least."""
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group, weights=mass)
    if len(sizes) < clients:
        raise ConfigError(f"{len(sizes)} groups cannot fill {clients} clients; use at most {len(sizes)} clients")
    held, home = np.zeros(clients), np.empty(len(sizes), dtype=np.int64)
    for one in np.argsort(-sizes, kind="stable"):
        home[one] = int(held.argmin())
        held[home[one]] += sizes[one]
    return np.asarray(home[group])


def _with_minimum(
    scheme: str, owner: NDArray[np.int64], label: NDArray[np.int64], clients: int, minimum: int
) -> NDArray[np.int64]:
    """Move examples from the largest client, of its commonest label, to those with fewer than ``minimum``."""
    owner = owner.copy()
    while (sizes := np.bincount(owner, minlength=clients)).min() < minimum:
        if scheme in ("pathological", "natural"):
            raise ConfigError(
                f"scheme {scheme!r} leaves a client with {sizes.min()} examples, fewer than minimum={minimum}; "
                "use fewer clients, a smaller minimum or more examples"
            )
        poorest, richest = int(sizes.argmin()), int(sizes.argmax())
        commonest = np.bincount(label[owner == richest]).argmax()
        rows = np.flatnonzero((owner == richest) & (label == commonest))
        owner[rows[: min(minimum - sizes[poorest], sizes[richest] - minimum)]] = poorest
    return owner


def _with_weight(owner: NDArray[np.int64], mass: Floats, clients: int, least: float, draw: Any) -> NDArray[np.int64]:
    """Move examples drawn from the client that holds most to those that hold less than ``least``."""
    owner = owner.copy()
    while (held := np.bincount(owner, weights=mass, minlength=clients)).min() < least:
        poorest, richest = int(held.argmin()), int(held.argmax())
        rows = draw.permutation(np.flatnonzero(owner == richest))
        given = np.cumsum(mass[rows])
        count = 1 + int(np.searchsorted(given, least - held[poorest]))
        if count >= len(rows) or held[richest] - given[count - 1] < least:
            raise ConfigError(
                f"examples of weight {mass.sum():g} cannot give {clients} clients at least {least:g} each; "
                "use fewer clients or more examples (unique_tokens of a run)"
            )
        owner[rows[:count]] = poorest
    return owner


def _level(owner: NDArray[np.int64], label: NDArray[np.int64], clients: int) -> NDArray[np.int64]:
    """Move single examples until sizes differ by at most one, each of the label its giver has most of."""
    owner = owner.copy()
    while (sizes := np.bincount(owner, minlength=clients)).max() - sizes.min() > 1:
        poorest, richest = int(sizes.argmin()), int(sizes.argmax())
        commonest = np.bincount(label[owner == richest]).argmax()
        owner[np.flatnonzero((owner == richest) & (label == commonest))[0]] = poorest
    return owner


def _check_settings(examples: int, scheme: str, clients: int, concentration: float, minimum: int) -> None:
    if scheme not in PARTITIONS:
        raise ConfigError(f"unknown partition scheme {scheme!r}; {nearest(scheme, PARTITIONS)}")
    for name, value in {"clients": clients, "concentration": concentration, "minimum": minimum}.items():
        if isinstance(value, str | bool) or (name != "concentration" and int(value) != value):
            raise ConfigError(f"{name} must be a {'' if name == 'concentration' else 'whole '}number, got {value!r}")
    if clients < 1 or minimum < 1 or examples < clients * minimum:
        raise ConfigError(
            f"{examples} examples cannot give {clients} clients at least {minimum} each; "
            "use fewer clients or more examples"
        )
    if not concentration > 0:
        raise ConfigError(f"concentration must be positive (infinity is iid), got {concentration}")


def _checked(labels: ArrayLike, weights: ArrayLike | None) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """The distinct labels, each example's place among them, and its weight."""
    given = np.asarray(labels)
    if given.ndim != 1 or len(given) == 0 or not np.issubdtype(given.dtype, np.integer):
        raise ConfigError(
            f"labels must be a row of integers, at least one, got {given.dtype} of shape {given.shape}; "
            "number the labels, for example with numpy.unique(..., return_inverse=True)"
        )
    kinds, label = np.unique(given.astype(np.int64), return_inverse=True)
    mass = np.ones(len(label)) if weights is None else np.asarray(weights, dtype=np.float64)
    if mass.shape != label.shape or not np.isfinite(mass).all() or mass.min() <= 0:
        raise ConfigError(f"weights must be {len(label)} positive numbers, one a label, got shape {mass.shape}")
    return kinds, label, mass


def _groups(groups: ArrayLike | None, label: NDArray[np.int64]) -> NDArray[Any]:
    given = label if groups is None else np.asarray(groups)
    if given.shape != label.shape:
        raise ConfigError(f"groups must be {len(label)} values, one a label, got shape {given.shape}")
    return given


def _disjoint_shares(totals: Floats, clients: int, per_client: int, draw: Any) -> Floats:
    """Weight of each label at each client when every client has exactly ``per_client`` labels, (clients, labels).

    A label has as many holders as its size deserves (at least one), who share it equally. Holders are dealt round a
    shuffled table: a label's holders sit side by side, so they are different clients.
    """
    labels, seats = len(totals), clients * per_client
    if not 1 <= per_client <= labels or seats < labels:
        raise ConfigError(
            f"families_per_client={per_client} with {clients} clients cannot cover {labels} labels; "
            f"it must be at most {labels} and at least {-(-labels // clients)}"
        )
    holders = np.ones(labels, dtype=np.int64)
    for _ in range(seats - labels):
        holders[int(np.where(holders < clients, totals / (holders + 0.5), -1.0).argmax())] += 1
    order = draw.permutation(labels)
    seated = np.repeat(order, holders[order])
    plan = np.zeros((clients, labels))
    plan[draw.permutation(clients)[np.arange(seats) % clients], seated] = (totals / holders)[seated]
    return plan
