"""Skew is what clients differ by, not what chance makes of small ones: against clients whose truth is known."""

import math

import numpy as np
import pytest

from scalefed.data import micro
from scalefed.data.partitions import partition
from scalefed.errors import ConfigError
from scalefed.runs.derived import MICRO_DOCUMENT, MICRO_FAMILIES, MICRO_SPREAD, follow
from scalefed.skew import corrected_skew, dealing_noise, dirichlet_shares, expected_skew, measured_skew

PRIOR = np.array([0.23, 0.14, 0.1, 0.08, 0.07, 0.06, 0.06, 0.05, 0.05, 0.04, 0.04, 0.03, 0.02, 0.02, 0.01])


def test_disjoint_clients_have_skew_1_whatever_rounding_does():
    draw = np.random.default_rng(0)
    for _ in range(100):
        counts = np.zeros((10, 60))
        counts[draw.integers(0, 10, 60), np.arange(60)] = draw.integers(1, 10_000, 60)
        assert 1 - 1e-12 < measured_skew(counts) <= 1


@pytest.mark.parametrize("concentration", [0.03, 0.1, 0.3, 1.0, 10.0])
def test_the_expected_skew_is_that_of_drawn_mixtures(concentration):
    drawn = dirichlet_shares(PRIOR, clients=4000, concentration=concentration, draw=np.random.default_rng(0))
    assert expected_skew(PRIOR, concentration=concentration) == pytest.approx(measured_skew(drawn), abs=0.01)


@pytest.mark.parametrize("documents", [1, 2, 5, 24, 200])
def test_the_expected_skew_of_iid_clients_is_what_chance_makes(documents):
    counts = np.random.default_rng(1).multinomial(documents, PRIOR, size=4000)
    assert expected_skew(PRIOR, documents=documents) == pytest.approx(measured_skew(counts), abs=0.01)


@pytest.mark.parametrize("concentration", [0.1, 0.3, 1.0, math.inf])
@pytest.mark.parametrize("documents", [24, 100, 1000])
def test_correction_finds_the_skew_of_the_mixtures_behind_counts(concentration, documents):
    draw = np.random.default_rng(2)
    mixtures = np.tile(PRIOR, (1000, 1))
    if math.isfinite(concentration):
        mixtures = dirichlet_shares(PRIOR, clients=1000, concentration=concentration, draw=draw)
    counts = np.array([draw.multinomial(documents, one) for one in mixtures])
    truth, found = measured_skew(mixtures), measured_skew(counts, documents=documents)
    assert found == pytest.approx(
        truth, abs=0.03 if truth > 0.01 else 0.06
    )  # squares: a difference of 0.003 is 0.04 of iid
    assert abs(found - truth) <= abs(measured_skew(counts) - truth) + 0.005


def test_disjoint_clients_stay_disjoint_and_one_client_has_no_skew():
    assert measured_skew(np.eye(4) * 30, documents=30) == pytest.approx(1.0)
    assert measured_skew([[3, 5]], documents=8) == 0.0
    assert corrected_skew(0.1, 0.4) == 0.0


@pytest.mark.parametrize("bad", [[1, 2], [[1, -1]], [[math.nan, 1]], [[0, 0]], []])
def test_histograms_that_are_none_are_refused(bad):
    with pytest.raises(ConfigError, match="histograms must be a table"):
        measured_skew(bad)


@pytest.mark.parametrize("documents", [0, -1, math.nan, [5, 0]])
def test_documents_must_be_positive(documents):
    with pytest.raises(ConfigError, match="documents must be positive"):
        measured_skew([[1, 2], [2, 1]], documents=documents)


def test_a_thousand_iid_clients_are_iid():
    text = micro.corpus(2**20, seed=0)
    dealt = partition(text.families, clients=1000, weights=np.diff(text.offsets))
    assert dealt.skew == 0.0 and dealt.skew_uncorrected > 0.15
    skewed = partition(text.families, clients=1000, concentration=1.0, weights=np.diff(text.offsets))
    assert skewed.skew == pytest.approx(0.325, abs=0.01) and skewed.skew_uncorrected > skewed.skew + 0.03


@pytest.mark.parametrize(("clients", "tokens"), [(16, 2**21), (256, 2**19), (1000, 2**20)])
@pytest.mark.parametrize("concentration", [0.1, 1.0, math.inf])
def test_a_stored_run_gets_the_skew_of_its_mixtures(clients, tokens, concentration):
    text = micro.corpus(tokens, seed=0)
    dealt = partition(text.families, clients=clients, concentration=concentration, weights=np.diff(text.offsets))
    row = {"skew": dealt.skew_uncorrected, "clients": clients, "concentration": concentration, "data": "micro",
           "partition": "dirichlet", "unique_tokens": len(text.tokens), "checkpoint": ""}  # fmt: skip
    found = follow(row)
    assert found["skew"] == pytest.approx(dealt.skew, abs=0.012)
    assert found["skew_uncorrected"] == dealt.skew_uncorrected
    assert "skew" not in follow(row | found)  # once is enough


def test_a_skew_whose_partition_is_unknown_stays():
    for row in ({"skew": 0.3, "clients": 8}, {"skew": 0.3, "clients": 8, "partition": "natural", "data": "python"}):
        assert "skew" not in follow(row)


@pytest.mark.parametrize(("clients", "tokens"), [(16, 2**21), (256, 2**19), (1000, 2**20)])
def test_dealing_noise_is_the_skew_of_iid_clients(clients, tokens):
    text = micro.corpus(tokens, seed=0)
    sizes = np.diff(text.offsets)
    assert (len(micro.FAMILIES), sizes.mean()) == (MICRO_FAMILIES, pytest.approx(MICRO_DOCUMENT, rel=0.01))
    assert sizes.std() / sizes.mean() == pytest.approx(MICRO_SPREAD, rel=0.02)
    measured = partition(text.families, clients=clients, weights=sizes).skew_uncorrected
    noise = dealing_noise(labels=16, documents=len(sizes) / clients, spread=MICRO_SPREAD)
    assert noise == pytest.approx(measured, rel=0.16)
