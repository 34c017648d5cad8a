"""Who trains: sizes, chances, windows and luck of each scheme, as pure functions of (seed, round, client)."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.config import RunConfig
from scalefed.federated.participation import cohort, survivors
from scalefed.seeds import rng
from scalefed.values import PARTICIPATION

ROUNDS = 600


def config(**changes: object) -> RunConfig:
    return RunConfig(**{"clients": 12, "clients_per_round": 3, **changes})


def counts(chosen: RunConfig, rounds: int = ROUNDS) -> np.ndarray:
    seen = Counter(client for number in range(rounds) for client in cohort(chosen, number))
    return np.array([seen[client] for client in range(chosen.clients)])


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(PARTICIPATION), st.integers(1, 30), st.integers(1, 30), st.integers(0, 10**6), st.integers(0, 99)
)
def test_a_cohort_holds_distinct_clients_in_order(
    scheme: str, clients: int, wanted: int, number: int, seed: int
) -> None:
    wanted = min(wanted, clients)
    chosen = RunConfig(clients=clients, clients_per_round=wanted, sampling=scheme, seed=seed)
    drawn = cohort(chosen, number)
    assert drawn == cohort(chosen, number)
    assert list(drawn) == sorted(set(drawn))
    assert all(0 <= client < clients for client in drawn)
    assert len(drawn) >= 1
    if scheme != "bernoulli":
        assert len(drawn) == wanted


@pytest.mark.parametrize("scheme", ["fixed", "uniform", "bernoulli"])
def test_every_client_is_equally_likely(scheme: str) -> None:
    seen = counts(config(sampling=scheme))
    expected = ROUNDS * 0.25
    chi_square = ((seen - expected) ** 2 / (expected * 0.75)).sum()
    assert chi_square < 35  # 12 clients: exceeded with probability 5e-4


def test_bernoulli_cohorts_vary_in_size_and_are_never_empty() -> None:
    sizes = [len(cohort(config(sampling="bernoulli"), number)) for number in range(ROUNDS)]
    assert min(sizes) == 1
    assert max(sizes) > 5
    expected = 3 + 0.75**12  # an empty round is given one client
    assert abs(np.mean(sizes) - expected) < 4 * math.sqrt(12 * 0.25 * 0.75 / ROUNDS)


def test_weighted_follows_the_availability_of_the_run() -> None:
    chosen = config(sampling="weighted", clients_per_round=1)
    share = counts(chosen, 2_000) / 2_000
    availability = rng(chosen.seed, "availability").dirichlet(np.ones(12))
    assert np.abs(share - availability).max() < 4 * 0.5 / math.sqrt(2_000)
    assert share.max() > 2 * share[share > 0].min()


def test_cyclic_draws_from_a_window_that_moves() -> None:
    chosen = config(sampling="cyclic")
    for number in range(40):
        start = 3 * number % 12
        window = {(start + offset) % 12 for offset in range(6)}
        assert set(cohort(chosen, number)) <= window
    assert counts(chosen, 40).min() > 0


def test_one_client_a_round_and_all_clients_a_round() -> None:
    assert {len(cohort(config(clients_per_round=1), number)) for number in range(20)} == {1}
    assert cohort(config(clients_per_round=12), 5) == tuple(range(12))


def test_another_seed_draws_other_cohorts() -> None:
    first, second = ([cohort(config(seed=seed), number) for number in range(20)] for seed in (0, 1))
    assert first != second


def test_nobody_drops_out_unless_asked() -> None:
    chosen = config()
    assert survivors(chosen, 7, (1, 4, 5)) == {1: 25, 4: 25, 5: 25}


def test_dropout_and_stragglers_come_as_often_as_they_should() -> None:
    chosen = config(dropout=0.3, stragglers=0.4, straggler_share=0.2)
    answers = [survivors(chosen, number, tuple(range(12))) for number in range(ROUNDS)]
    answered = sum(map(len, answers))
    steps = Counter(count for answer in answers for count in answer.values())
    assert set(steps) == {5, 25}
    total = 12 * ROUNDS
    assert abs(answered / total - 0.7) < 4 * math.sqrt(0.21 / total)
    assert abs(steps[5] / answered - 0.4) < 4 * math.sqrt(0.24 / answered)


def test_a_straggler_takes_at_least_one_step() -> None:
    chosen = config(stragglers=1.0, straggler_share=0.0)
    assert survivors(chosen, 0, (2, 3)) == {2: 1, 3: 1}


def test_when_all_drop_out_one_stays_and_it_is_not_always_the_same() -> None:
    chosen = config(dropout=1.0)
    stayed = [survivors(chosen, number, tuple(range(12))) for number in range(200)]
    assert {len(one) for one in stayed} == {1}
    assert len({client for one in stayed for client in one}) == 12


def test_a_clients_luck_does_not_depend_on_who_else_was_drawn() -> None:
    chosen = config(dropout=0.5, stragglers=0.5)
    for number in range(50):
        together, alone = survivors(chosen, number, tuple(range(12))), survivors(chosen, number, (4, 9))
        if len(alone) == 2:
            assert {4: together[4], 9: together[9]} == alone
