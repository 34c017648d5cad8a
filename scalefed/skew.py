"""How different are the clients' data? Shares drawn from a Dirichlet, the skew they should have, and the one they have.

Skew is measured on counts, and counts of small clients differ by chance: 24 documents a client are no mixture but a
sample of one. So there is the skew of the counts, and the skew corrected for what chance alone would have made.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalefed.errors import ConfigError

Floats = NDArray[np.float64]
_FITTING_ROUNDS = 2000  # of proportional fitting, which ends at the tolerance long before


# ---------------------------------------------------------------------- shares
def dirichlet_shares(prior: ArrayLike, *, clients: int, concentration: float, draw: np.random.Generator) -> Floats:
    """Each client's mixture of labels, ``(clients, labels)``: Dirichlet of ``concentration x labels x prior``.

    So concentration 1 is uniform over mixtures where labels are equally common. Hsu et al. and flwr-datasets have
    ``concentration x prior`` instead, without the number of labels: their 0.1 is more skewed than ours.

    Args:
        prior: (labels,) shares of the labels in the whole.
        clients: how many to draw.
        concentration: positive and finite.
        draw: where the randomness comes from.

    Source: Hsu et al. 2019 (arXiv 1909.06335), section 3, but for the factor.
    """
    shares = np.asarray(prior, dtype=np.float64)
    drawn: Floats = draw.dirichlet(concentration * len(shares) * shares, size=clients)
    return drawn


def fit_margins(plan: Floats, rows: Floats, columns: Floats) -> Floats:
    """Scale rows and columns of ``(clients, labels)`` in turn until both sums hold; rows that are NaN are free.

    Source: Deming and Stephan 1940, iterative proportional fitting.
    """
    free = np.isnan(rows).all()
    for _ in range(1 if free else _FITTING_ROUNDS):
        plan = plan * (columns / plan.sum(axis=0))
        if free:
            break
        sums = plan.sum(axis=1)
        if np.abs(sums / rows - 1).max() < 1e-9:
            break
        plan = plan * (rows / sums)[:, None]
    return np.asarray(plan * (columns / plan.sum(axis=0)))


# ---------------------------------------------------------------------- measured
def measured_skew(histograms: ArrayLike, *, documents: ArrayLike | None = None) -> float:
    """How different the clients are: 0 for equal mixtures, 1 for disjoint ones.

    The mean total variation distance of a client's distribution from the whole, weighted by the client's share ``w``,
    over the same mean for disjoint clients, ``sum w (1 - w)``.

    Args:
        histograms: (clients, categories) weights: of labels, or of tokens.
        documents: how many examples were drawn independently for each client, (clients,) or one for all: then the
            skew is corrected for the sampling noise of so few, and iid clients come out near 0 however small they are.
            None for the skew of the counts as they are.

    Raises:
        ConfigError: histograms that are no table of non-negative numbers, or documents that are not positive.

    >>> measured_skew([[1, 1], [1, 1]]), measured_skew([[1, 0], [0, 1]])
    (0.0, 1.0)
    >>> drawn = np.random.default_rng(0).multinomial(24, [1 / 16] * 16, size=1000)
    >>> round(measured_skew(drawn), 2), round(measured_skew(drawn, documents=24), 2)
    (0.32, 0.0)
    """
    shares, mixtures, whole = _distributions(histograms)
    disjoint = float((shares * (1 - shares)).sum())
    if disjoint <= 0:
        return 0.0
    distance = 0.5 * np.abs(mixtures - whole).sum(axis=1)
    skew = min(float((shares * distance).sum() / disjoint), 1.0)  # disjoint clients may come to more by rounding
    if documents is None:
        return skew
    drawn = np.broadcast_to(np.asarray(documents, dtype=np.float64), shares.shape)
    if not (np.isfinite(drawn).all() and (drawn > 0).all()):
        raise ConfigError(f"documents must be positive, one a client or one for all, got {documents!r:.80}")
    chance = sum(
        share * expected_skew(whole, documents=float(count)) * math.sqrt(1 - share)
        for share, count in zip(shares, drawn, strict=True)
    )
    return corrected_skew(skew, chance / disjoint)


def jensen_shannon(histograms: ArrayLike) -> float:
    """Jensen-Shannon divergence of the clients' distributions, nats: mean relative entropy to the whole.

    Source: Lin 1991, equation 5.1.

    >>> round(jensen_shannon([[1, 0], [0, 1]]), 6)
    0.693147
    """
    shares, mixtures, whole = _distributions(histograms)
    ratio = np.divide(mixtures, whole, out=np.ones_like(mixtures), where=mixtures > 0)
    return float((shares * (mixtures * np.log(ratio)).sum(axis=1)).sum())


def _distributions(histograms: ArrayLike) -> tuple[Floats, Floats, Floats]:
    try:
        counts = np.asarray(histograms, dtype=np.float64)
    except (TypeError, ValueError):
        counts = np.empty(0)
    if counts.ndim != 2 or not counts.size or not (np.isfinite(counts).all() and (counts >= 0).all() and counts.any()):
        raise ConfigError(
            f"histograms must be a table (clients, categories) of numbers from 0 up, got shape {counts.shape}; "
            "give one row a client"
        )
    sizes = counts.sum(axis=1, keepdims=True)
    mixtures = np.divide(counts, sizes, out=np.zeros_like(counts), where=sizes > 0)
    return sizes[:, 0] / sizes.sum(), mixtures, counts.sum(axis=0) / sizes.sum()


# ---------------------------------------------------------------------- expected, and corrected
def expected_skew(prior: ArrayLike, *, concentration: float = math.inf, documents: float = math.inf) -> float:
    """The skew of many clients whose mixtures are drawn by :func:`dirichlet_shares`, measured on so many documents.

    The deviations of a Beta (a label's share at a client) and of a binomial (its count among the documents) are known
    in closed form; independent deviations add as squares.

    Args:
        prior: (labels,) shares of the labels in the whole.
        concentration: Dirichlet concentration; infinity is iid.
        documents: independent draws a client, 1 or more; infinity for the mixtures themselves.

    Source: Johnson, Kotz and Balakrishnan 1995, volume 2, section 25.2; de Moivre's formula for the binomial.

    >>> expected_skew([0.5, 0.5])
    0.0
    >>> round(expected_skew([0.5, 0.5], concentration=1.0), 3)  # uniform shares
    0.25
    """
    shares = np.asarray(prior, dtype=np.float64)
    shares = shares[shares > 0] / shares.sum()
    total = concentration * len(shares)
    mixture = 0.0 if math.isinf(total) else 0.5 * sum(_of_beta(total * one, total * (1 - one)) for one in shares)
    chance = 0.0 if math.isinf(documents) else 0.5 * sum(_of_binomial(max(1, round(documents)), one) for one in shares)
    return math.sqrt(mixture**2 * (1 - chance**2) + chance**2)


def _of_beta(a: float, b: float) -> float:
    """Mean absolute deviation: ``2 a^a b^b / (B(a, b) (a + b)^(a + b + 1))``."""
    if b <= 0:  # the only label
        return 0.0
    logs = a * math.log(a) + b * math.log(b) - (a + b + 1) * math.log(a + b)
    return 2 * math.exp(logs + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))


def _of_binomial(count: int, share: float) -> float:
    """Mean absolute deviation of a share of ``count``: ``2 (1-p)^(n-m) p^(m+1) (m+1) C(n, m+1) / n``, m below np."""
    if share >= 1:
        return 0.0
    least = math.floor(count * share) + 1
    choose = math.lgamma(count + 1) - math.lgamma(least + 1) - math.lgamma(count - least + 1)
    logs = (count - least + 1) * math.log1p(-share) + least * math.log(share) + choose
    return 2 * least * math.exp(logs) / count


def corrected_skew(skew: float, chance: float) -> float:
    """Skew without what chance alone would have made: independent deviations add as squares, and disjoint stays 1.

    Args:
        skew: as measured on counts, 0 to 1.
        chance: the skew that iid clients of that size would have measured.

    >>> corrected_skew(0.17, 0.17), corrected_skew(1.0, 0.17), round(corrected_skew(0.363, 0.163), 3)
    (0.0, 1.0, 0.329)
    """
    if not 0 <= chance < 1:
        return 0.0 if chance >= 1 else skew
    return math.sqrt(max(0.0, skew**2 - chance**2) / (1 - chance**2))


def dealing_noise(*, labels: int, documents: float, spread: float = 0.0) -> float:
    """Skew that iid clients measure when labelled documents are dealt in turn, not drawn: only roundings are chance.

    A label's count at a client is off by a fraction ``f`` rounded up with probability ``f``: a third of a document on
    average. Good to 15% from 24 documents a client up (``tests/test_skew.py``).

    Args:
        labels: how many there are.
        documents: at a client.
        spread: coefficient of variation of the documents' sizes.

    >>> round(dealing_noise(labels=16, documents=2989, spread=0.545), 4)
    0.0012
    """
    return min(1.0, labels * (1 + spread**2) / (6 * max(documents, 1e-9)))
