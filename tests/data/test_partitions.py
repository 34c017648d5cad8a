"""Who holds which examples: every example once, sizes by construction, skew measured by two implementations."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from scalefed.data import micro
from scalefed.data.partitions import partition
from scalefed.errors import ConfigError
from scalefed.skew import jensen_shannon, measured_skew

SCHEMES = ("iid", "dirichlet", "pathological", "quantity", "natural")


@st.composite
def deals(draw):
    families = draw(st.integers(2, 6))
    clients = draw(st.integers(1, 8))
    count = draw(st.integers(40, 200))
    labels = draw(st.lists(st.integers(0, families - 1), min_size=count, max_size=count))
    labels[: 8 * families] = list(range(families)) * 8  # every label, so that groups and covers exist
    concentration = draw(st.sampled_from([0.01, 0.1, 1.0, 100.0, math.inf]))
    return np.array(labels), clients, concentration, draw(st.integers(0, 1000))


def counts(dealt, labels):
    found = np.zeros((len(dealt.indices), labels.max() + 1), int)
    for client, mine in enumerate(dealt.indices):
        np.add.at(found[client], labels[mine], 1)
    return found


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("weighted", [False, True])
@settings(max_examples=25, deadline=None)
@given(deals())
def test_a_partition_uses_each_example_once(scheme, weighted, deal):
    labels, clients, concentration, seed = deal
    clients = min(clients, labels.max() + 1) if scheme == "natural" else max(clients, 3)
    weights = np.random.default_rng(seed).integers(20, 200, len(labels)) if weighted else None
    dealt = partition(labels, clients=clients, concentration=concentration, scheme=scheme, weights=weights, seed=seed)
    together = np.concatenate(dealt.indices)
    assert sorted(together.tolist()) == list(range(len(labels)))
    assert len(dealt.indices) == clients and dealt.sizes.min() >= 1
    assert all((np.diff(mine) > 0).all() for mine in dealt.indices)
    mass = np.ones(len(labels)) if weights is None else weights
    assert dealt.histograms.sum() == pytest.approx(mass.sum())
    assert -1e-12 <= dealt.skew <= 1 + 1e-12


@pytest.mark.parametrize("scheme", ["iid", "dirichlet"])
@settings(max_examples=25, deadline=None)
@given(deals())
def test_balanced_clients_hold_equally_many(scheme, deal):
    labels, clients, concentration, seed = deal
    dealt = partition(labels, clients=clients, concentration=concentration, scheme=scheme, seed=seed)
    assert dealt.sizes.max() - dealt.sizes.min() <= 1


@pytest.mark.parametrize("concentration", [0.01, 0.1, 1.0, math.inf])
def test_balanced_clients_hold_equal_weight(concentration):
    text = micro.corpus(300_000, seed=0)
    weights = np.diff(text.offsets)
    held = partition(text.families, clients=16, concentration=concentration, weights=weights).histograms.sum(axis=1)
    assert np.abs(held - held.mean()).max() < 2 * weights.max()
    assert held.sum() == len(text.tokens)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=20, deadline=None)
@given(deals())
def test_row_order_does_not_matter(scheme, deal):
    labels, clients, concentration, seed = deal
    clients = min(clients, labels.max() + 1) if scheme == "natural" else max(clients, 3)
    order = np.random.default_rng(seed).permutation(len(labels))
    options = {"clients": clients, "concentration": concentration, "scheme": scheme, "seed": seed, "minimum": 4}
    one, other = partition(labels, **options), partition(labels[order], **options)
    assert np.array_equal(counts(one, labels), counts(other, labels[order]))


def test_row_order_moves_weights_by_roundings_only():
    text = micro.corpus(100_000, seed=0)
    weights, order = np.diff(text.offsets), np.random.default_rng(0).permutation(len(text.families))
    one = partition(text.families, clients=8, concentration=0.3, weights=weights)
    other = partition(text.families[order], clients=8, concentration=0.3, weights=weights[order])
    assert np.abs(one.histograms - other.histograms).max() <= 2 * weights.max()


def test_a_larger_concentration_gives_less_skew():
    labels = np.arange(16).repeat(400)
    skews = [partition(labels, clients=20, concentration=c, seed=1).skew for c in (0.01, 0.1, 1.0, 10.0, math.inf)]
    assert all(a > b for a, b in zip(skews, skews[1:], strict=False))
    assert skews[0] > 0.8 and skews[-1] < 0.01


def test_the_seed_decides_and_is_recorded():
    labels = np.arange(6).repeat(50)
    one, same, other = (partition(labels, clients=5, concentration=0.5, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one.indices, same.indices, strict=True))
    assert not np.array_equal(one.histograms, other.histograms)
    assert (one.seed, one.scheme, one.concentration) == (1, "dirichlet", 0.5)


@pytest.mark.parametrize(
    ("clients", "per_client", "families"), [(4, 1, 4), (10, 2, 6), (3, 2, 6), (7, 5, 5), (40, 3, 16)]
)
def test_pathological_clients_hold_exactly_so_many_families(clients, per_client, families):
    labels = np.random.default_rng(0).integers(0, families, 200 * families)
    dealt = partition(labels, clients=clients, scheme="pathological", families_per_client=per_client)
    held = counts(dealt, labels) > 0
    assert (held.sum(axis=1) == per_client).all()
    assert held.any(axis=0).all()


def test_quantity_changes_sizes_not_content():
    labels = np.arange(4).repeat(2000)
    dealt = partition(labels, clients=10, scheme="quantity", concentration=0.5, seed=3)
    assert dealt.sizes.max() > 3 * np.median(dealt.sizes)
    assert dealt.skew < 0.01
    assert np.ptp(partition(labels, clients=10, scheme="quantity").sizes) < 40  # infinity: equal sizes


@pytest.mark.parametrize("concentration", [0.05, 0.1, 0.3])
def test_quantity_leaves_every_client_a_block(concentration):
    text = micro.corpus(300_000, seed=0)
    weights = np.diff(text.offsets)
    deal = {"clients": 16, "scheme": "quantity", "concentration": concentration, "weights": weights}
    plain, dealt = partition(text.families, **deal), partition(text.families, **deal, minimum_weight=129)
    held, before = dealt.histograms.sum(axis=1), plain.histograms.sum(axis=1)
    assert before.min() < 129 <= held.min() and held.sum() == before.sum()
    assert np.abs(held - before).max() < 16 * (129 + weights.max())  # the large stay as they were drawn
    assert dealt.skew == plain.skew < 1e-9
    enough = partition(text.families, **deal | {"concentration": 100.0}, minimum_weight=129)
    assert np.array_equal(enough.histograms, partition(text.families, **deal | {"concentration": 100.0}).histograms)


def test_quantity_refuses_a_least_weight_that_nobody_can_spare():
    with pytest.raises(ConfigError, match="cannot give 4 clients at least 30 each; use fewer clients"):
        partition(np.zeros(100, int), clients=4, scheme="quantity", concentration=0.1, minimum_weight=30)


def test_natural_groups_stay_whole():
    groups = np.repeat(["ann", "bob", "cyd", "dan", "eve"], [50, 40, 30, 20, 10])
    labels = np.arange(150) % 3
    dealt = partition(labels, clients=2, scheme="natural", groups=groups)
    homes = [set(groups[mine]) for mine in dealt.indices]
    assert not homes[0] & homes[1]
    assert sorted(dealt.sizes.tolist()) == [70, 80]  # 50 + 20 (+10) against 40 + 30 (+10)


def test_unbalanced_dirichlet_sizes_follow_the_draw():
    labels = np.arange(8).repeat(250)
    dealt = partition(labels, clients=10, concentration=0.1, balanced=False, minimum=5, seed=2)
    assert dealt.sizes.min() >= 5 and np.ptp(dealt.sizes) > 50


@settings(max_examples=40, deadline=None)
@given(deals(), st.integers(1, 10))
def test_the_minimum_is_met(deal, minimum):
    labels, clients, concentration, seed = deal
    clients = min(clients, len(labels) // minimum)
    for scheme in ("quantity", "dirichlet"):
        dealt = partition(
            labels, clients=clients, concentration=min(concentration, 0.1), scheme=scheme, balanced=False,
            minimum=minimum, seed=seed,
        )  # fmt: skip
        assert dealt.sizes.min() >= minimum and dealt.sizes.sum() == len(labels)


def reference_skew(histograms):
    """Written differently: half the sum of absolute differences, client by client, over what disjoint clients have."""
    whole = [sum(row[j] for row in histograms) for j in range(len(histograms[0]))]
    everything = sum(whole)
    distance = disjoint = 0.0
    for row in histograms:
        share = sum(row) / everything
        overlap = sum(min(mine / sum(row), all_ / everything) for mine, all_ in zip(row, whole, strict=True))
        distance += share * (1 - overlap)
        disjoint += share * (1 - share)
    return distance / disjoint


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(1, 6), st.integers(0, 10_000))
def test_skew_against_a_second_implementation(clients, labels, seed):
    histograms = np.random.default_rng(seed).integers(0, 20, (clients, labels)) + np.eye(clients, labels, dtype=int)
    histograms[:, 0] += 1
    assert measured_skew(histograms) == pytest.approx(reference_skew(histograms.tolist()), abs=1e-12)
    assert measured_skew(3 * histograms[::-1]) == pytest.approx(measured_skew(histograms), abs=1e-12)


def test_skew_of_known_cases():
    assert measured_skew([[5, 5], [5, 5], [10, 10]]) == 0
    assert measured_skew([[5, 0, 0], [0, 3, 1]]) == pytest.approx(1.0)
    assert measured_skew([[1, 2, 3]]) == 0
    # two equal clients (3/4, 1/4) and (1/4, 3/4): each 1/4 from the whole; disjoint ones would be 1/2 away
    assert measured_skew([[3, 1], [1, 3]]) == pytest.approx(0.5)
    two = np.array([[3.0, 1.0], [1.0, 3.0]])
    assert jensen_shannon(two) == pytest.approx(jensenshannon(two[0], two[1]) ** 2)


def test_the_deals_behind_committed_runs_do_not_change():
    text = micro.corpus(200_000, seed=0)
    for concentration, expected in ((0.1, "5eb7de5a7d121955"), (math.inf, "8ba8849b2472557f")):
        dealt = partition(text.families, clients=16, concentration=concentration, weights=np.diff(text.offsets))
        state = hashlib.blake2b(digest_size=8)
        for mine in dealt.indices:
            state.update(mine.astype("<i8").tobytes() + b"|")
        assert state.hexdigest() == expected


LABELS = np.arange(4).repeat(5)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (LABELS, {"clients": 2, "scheme": "dirchlet"}, "did you mean 'dirichlet'"),
        (LABELS, {"clients": 0}, "cannot give 0 clients"),
        (LABELS, {"clients": 2.5}, "clients must be a whole number, got 2.5"),
        (LABELS, {"clients": 2, "concentration": "0.1"}, "concentration must be a number, got '0.1'"),
        (LABELS, {"clients": 2, "seed": 1.5}, "seed must be a whole number, got 1.5"),
        (LABELS, {"clients": 21}, "fewer clients or more examples"),
        (LABELS, {"clients": 5, "minimum": 5}, "at least 5 each"),
        (LABELS, {"clients": 2, "concentration": 0.0}, "concentration must be positive"),
        (LABELS, {"clients": 2, "concentration": math.nan}, "concentration must be positive"),
        (LABELS, {"clients": 5, "scheme": "natural"}, "4 groups cannot fill 5 clients"),
        (LABELS, {"clients": 4, "scheme": "natural", "minimum": 5, "groups": [0, 1, 2] + [3] * 17}, "smaller minimum"),
        (LABELS, {"clients": 2, "scheme": "natural", "groups": [1, 2]}, "groups must be 20 values"),
        (LABELS, {"clients": 2, "scheme": "pathological", "families_per_client": 5}, "must be at most 4"),
        (LABELS, {"clients": 2, "scheme": "pathological", "families_per_client": 1}, "at least 2"),
        (LABELS, {"clients": 2, "weights": [1.0]}, "weights must be 20 positive numbers"),
        (LABELS, {"clients": 2, "weights": np.zeros(20)}, "positive"),
        ([], {"clients": 1}, "at least one"),
        (["a", "b"], {"clients": 1}, "row of integers"),
        ([[1, 2]], {"clients": 1}, "row of integers"),
    ],
)
def test_wrong_settings_are_named(labels, options, message):
    with pytest.raises(ConfigError, match=message):
        partition(labels, **options)
