"""Parabolas at equal compute find the best size of laws whose best size is known, and say when they cannot."""

import numpy as np
import pandas as pd
import pytest

from scalefed.analysis.isoflop import isoflop_optima
from scalefed.errors import ConfigError, DataError
from scalefed.laws.simulate import simulate_runs

EVEN = {"E": 1.0, "A": 60.0, "a": 0.35, "B": 60.0, "b": 0.35}  # equal in params and tokens: half of the logs each
SIZES = [1e4, 3e4, 1e5, 3e5, 1e6]
GRID = {"params": SIZES, "tokens": [1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7, 3e7]}


def best(compute: float) -> float:
    return (compute / 6) ** 0.5


def test_an_even_law_is_found_to_a_percent_or_two():
    compute = [6e9, 6e9 * 3, 6e10]
    found = isoflop_optima(simulate_runs("chinchilla", EVEN, GRID), compute, floor=1.0)
    np.testing.assert_allclose(found["params"], [best(one) for one in compute], rtol=0.02)
    np.testing.assert_allclose(6 * found["params"] * found["tokens"], compute, rtol=1e-12)
    lowest = 1 + 60 * found["params"] ** -0.35 + 60 * found["tokens"] ** -0.35
    np.testing.assert_allclose(found["loss"], lowest, rtol=0.01)
    assert found[["params_low", "params_high"]].isna().all(axis=None)  # one seed: the scatter is not known
    assert found["sizes"].tolist() == [4, 4, 5]


def test_settings_are_kept_apart_and_missing_ones_ignored():
    runs = simulate_runs("chinchilla", EVEN, GRID)
    worse = runs.assign(clients_per_round=4, loss=1 + 2 * (runs["loss"] - 1))
    both = pd.concat([runs.assign(clients_per_round=1), worse])
    found = isoflop_optima(both, 6e9, floor=1.0)
    assert found["clients_per_round"].tolist() == [1, 4] and "concentration" not in found
    assert found["params"][0] == pytest.approx(found["params"][1], rel=1e-9)
    assert found["loss"][1] - 1 == pytest.approx(2 * (found["loss"][0] - 1), rel=1e-9)


def test_a_best_size_at_an_end_is_not_told():
    runs = simulate_runs("chinchilla", EVEN, GRID)
    found = isoflop_optima(runs[runs["params"] >= 1e5], 6e9, floor=1.0)
    assert found["sizes"].tolist() == [3] and np.isnan(found["params"][0])
    assert isoflop_optima(runs[runs["params"] >= 3e5], 6e9).empty
    assert isoflop_optima(runs, 6e20).empty


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, inside, truth = np.random.default_rng(0), [], isoflop_optima(
        simulate_runs("chinchilla", EVEN, GRID), 6e9, floor=1.0
    )["params"][0]  # fmt: skip
    clean = pd.concat([simulate_runs("chinchilla", EVEN, GRID)] * 2, ignore_index=True)
    for number in range(150):
        noisy = clean.assign(loss=1 + (clean["loss"] - 1) * np.exp(0.02 * rng.standard_normal(len(clean))))
        found = isoflop_optima(noisy, 6e9, floor=1.0, seed=number).iloc[0]
        inside.append(found["params_low"] <= truth <= found["params_high"])
    assert 0.89 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"compute": -1.0}, ConfigError, "compute must be positive FLOPs"),
        ({"compute": [6e9, np.nan]}, ConfigError, "compute must be positive FLOPs"),
        ({"level": 95}, ConfigError, "level must be between 0 and 1"),
        ({"target": "los"}, DataError, "no column 'los'"),
        ({"floor": 1e3}, DataError, "a loss above 1,000"),
    ],
)
def test_what_cannot_be_done_is_said(words, error, match):
    with pytest.raises(error, match=match):
        isoflop_optima(simulate_runs("chinchilla", EVEN, GRID), **{"compute": 6e9, **words})
