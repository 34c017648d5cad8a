"""Runs drawn from a law are what the law says, plus the noise that was asked for."""

import numpy as np
import pandas as pd
import pytest
from law_truths import NAMES, RUN, TRUTHS

from scalefed.errors import ConfigError, DataError
from scalefed.laws import LAWS
from scalefed.laws.simulate import simulate_runs

GRID = {"params": [1e7, 1e8], "tokens": [1e9, 1e10, 1e11]}


@pytest.mark.parametrize("name", NAMES)
def test_noise_free_runs_lie_on_the_law(name: str) -> None:
    runs = simulate_runs(name, TRUTHS[name], {c: [RUN[c], 2 * RUN[c]] for c in LAWS[name].columns})
    assert runs["loss"].to_numpy() == pytest.approx(LAWS[name].predict(TRUTHS[name], runs), rel=1e-14)


def test_a_grid_is_crossed_and_a_table_is_taken_as_it_is() -> None:
    crossed = simulate_runs("chinchilla", TRUTHS["chinchilla"], GRID)
    assert len(crossed) == 6
    assert crossed["run_id"].is_unique
    assert crossed["compute"].to_numpy() == pytest.approx(6 * crossed["params"] * crossed["tokens"])
    table = pd.DataFrame({"params": [1e7, 1e8], "tokens": [1e9, 1e11]}, index=[5, 9])
    drawn = simulate_runs("chinchilla", TRUTHS["chinchilla"], table)
    assert len(drawn) == 2
    assert list(table.columns) == ["params", "tokens"]


def test_noise_has_the_asked_size_and_depends_on_the_seed_only() -> None:
    table = pd.DataFrame({"params": np.full(4000, 1e8), "tokens": np.full(4000, 1e10)})
    one, two, other = (simulate_runs("chinchilla", TRUTHS["chinchilla"], table, noise=0.02, seed=s) for s in (1, 1, 2))
    assert np.log(one["loss"]).std() == pytest.approx(0.02, rel=0.05)
    pd.testing.assert_frame_equal(one, two)
    assert not np.allclose(one["loss"], other["loss"])


@pytest.mark.parametrize(
    ("parameters", "noise", "words"),
    [
        ({**TRUTHS["chinchilla"], "g": 1.0}, 0.0, "unknown: g"),
        ({"E": 1.0}, 0.0, "missing: A, a, B, b"),
        (TRUTHS["chinchilla"], -0.1, "at least 0"),
    ],
)
def test_wrong_settings_are_named(parameters: dict[str, float], noise: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        simulate_runs("chinchilla", parameters, GRID, noise=noise)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DataError, match="needs the column tokens"):
        simulate_runs("chinchilla", TRUTHS["chinchilla"], {"params": [1e7]})
