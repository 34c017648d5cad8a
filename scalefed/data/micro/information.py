"""How much is there to learn, exactly? Entropies of the benchmark's text: the floor no model can go below.

A document's text determines its draw (phrases are distinct and without commas, the header gives the first type, the
first phrase the family), so the entropy of the text is that of the draw. The docstring carries all of it: given the
docstring, the body is certain. Sums over all pipelines, the held-out ones left out, are carried through the states
(type, residue) of the grammar as (mass, mass * log probability, mass * tokens).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scalefed.data.micro.grammar import MODULUS, grammar
from scalefed.data.micro.primitives import TYPES
from scalefed.data.micro.text import pieces
from scalefed.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Entropy:
    """Entropy of the training text under one mixture of families.

    Attributes:
        nats_per_document: entropy of a document's text, its length included.
        tokens_per_document: expected tokens of a document, its end included (512-token vocabulary).
        nats_per_token: the ratio of the two: the loss of a model that knows the distribution and always sees the
            document from its beginning.
        family_nats: (f,) entropy of a document given its family.
        family_tokens: (f,) expected tokens given the family.
        held_out: (f,) share of each family's pipelines that is reserved for evaluation.
        mixture: (f,) the mean mixture of families.
    """

    nats_per_document: float
    tokens_per_document: float
    nats_per_token: float
    family_nats: NDArray[np.float64]
    family_tokens: NDArray[np.float64]
    held_out: NDArray[np.float64]
    mixture: NDArray[np.float64]


def entropy(mixture: NDArray[np.float64] | None = None, *, concentration: float = math.inf) -> Entropy:
    """The exact entropy of training documents, in nats.

    With probability m of families and entropy H_f of a document of family f, a document has H(m) + sum_f m_f H_f. For
    clients whose mixtures are Dirichlet(concentration * mixture), H(m) is replaced by its mean
    psi(c + 1) - sum_f m_f psi(c m_f + 1): the floor of a model that knows each client's own mixture.

    Args:
        mixture: (f,) probability of each family; the benchmark's own by default.
        concentration: of the clients' Dirichlet distribution; infinity means that all clients have the mixture.

    Raises:
        ConfigError: the mixture has the wrong length or does not sum to 1, or the concentration is not positive.

    Source: the mean entropy of a Dirichlet draw is in Wolpert and Wolf (1995), Phys. Rev. E 52, 6841.

    >>> entropy(concentration=0.1).nats_per_document < entropy().nats_per_document
    True
    """
    prior = grammar().families
    weights = prior if mixture is None else np.asarray(mixture, dtype=float)
    if weights.shape != prior.shape or weights.min() < 0 or not math.isclose(weights.sum(), 1.0, rel_tol=1e-9):
        raise ConfigError(f"mixture must hold {len(prior)} probabilities that sum to 1, got {mixture!r}")
    if not concentration > 0:
        raise ConfigError(f"concentration must be positive (infinity for equal clients), got {concentration}")
    nats, tokens, held_out = _families()
    there = weights[weights > 0]
    if math.isinf(concentration):
        labels = float(-(there * np.log(there)).sum())
    else:
        labels = digamma(concentration + 1) - sum(float(m) * digamma(concentration * float(m) + 1) for m in there)
    per_document = labels + float(weights @ nats)
    per_tokens = float(weights @ tokens)
    return Entropy(per_document, per_tokens, per_document / per_tokens, nats, tokens, held_out, weights)


@lru_cache(maxsize=1)
def _families() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    rows = np.array([of_family(family) for family in range(len(grammar().families))])
    return rows[:, 0], rows[:, 1], rows[:, 2]


def of_family(family: int) -> tuple[float, float, float]:
    """Nats and tokens per training document of a family, and the held-out share of its pipelines."""
    model, table_of = grammar(), pieces()
    lengths = table_of.lengths
    count = len(model.source)
    code = lengths[table_of.code : table_of.code + count]
    opening = lengths[model.source] + lengths[table_of.first : table_of.first + count] + code
    adding = lengths[table_of.later : table_of.later + count] + code
    closing = lengths[table_of.end : table_of.end + len(TYPES)] + lengths[table_of.close]

    # sums[0] mass, sums[1] mass * log probability, sums[2] mass * tokens, each over (type, residue)
    first = _arrivals(model.first[family], opening, model.opening)
    later = [_arrivals(model.later[family, kind], adding, model.residues) for kind in range(len(TYPES))]
    sums = first
    kept = np.zeros(3)
    for stop in model.depths:
        ended = np.stack([sums[0], sums[1] + sums[0] * math.log(stop), sums[2] + sums[0] * closing[:, None]])
        kept += stop * ended[:, :, 1:].sum(axis=(1, 2))
        following = np.zeros_like(sums)
        for kind, state in zip(*np.nonzero(sums[0]), strict=True):
            mass, log_mass, tokens = sums[:, kind, state]
            step = np.roll(later[kind], 3 * int(state), axis=2)
            following += mass * step
            following[1] += log_mass * step[0]
            following[2] += tokens * step[0]
        sums = following
    mass, log_mass, tokens = (float(value) for value in kept)
    return math.log(mass) - log_mass / mass, tokens / mass, 1.0 - mass


def _arrivals(
    probability: NDArray[np.float64], tokens: NDArray[np.int64], residues: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(3, types, residues) sums over the variants drawn with ``probability``, by the type and residue they lead to."""
    there = np.flatnonzero(probability)
    share = probability[there]
    where = grammar().target[there] * MODULUS + residues[there]
    weights = (share, share * np.log(share), share * tokens[there])
    sums = [np.bincount(where, weights=w, minlength=len(TYPES) * MODULUS) for w in weights]
    return np.stack(sums).astype(np.float64).reshape(3, len(TYPES), MODULUS)


def digamma(x: float) -> float:
    """Derivative of log gamma for x >= 1, to 1e-12: recurrence up to 10, then the asymptotic series."""
    shift = 0.0
    while x < 10:
        shift -= 1 / x
        x += 1
    y = 1 / (x * x)
    return shift + math.log(x) - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))
