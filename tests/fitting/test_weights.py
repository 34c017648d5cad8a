"""Weights of laws and of runs, and how far a run may pull."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

import scalefed as sf
from scalefed.fitting.lack_of_fit import lack_of_fit
from scalefed.fitting.weights import stacking_weights


def test_two_laws_are_weighted_as_by_hand():
    """Errors (1, 0) and (0, 2): least ``a^2 + 4 (1-a)^2 + (1/2)^2 ((a-1/2)^2 + (1/2-a)^2)`` is at a = 8.5 / 11."""
    weights = stacking_weights(np.array([[1.0, 0.0], [0.0, 2.0]]))
    assert weights == pytest.approx([8.5 / 11, 2.5 / 11], rel=1e-5)


def test_the_size_of_the_errors_does_not_matter():
    errors = np.random.default_rng(0).normal(size=(20, 3)) * [1.0, 1.5, 3.0]
    assert stacking_weights(1e-4 * errors) == pytest.approx(stacking_weights(errors), rel=1e-6)


# -- weights of runs ---------------------------------------------------------------------------------------------------
TRUTH = {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37}
GRID = {"params": np.geomspace(1e7, 1e10, 8), "tokens": np.geomspace(1e9, 1e12, 8)}


def runs_of_unlike_errors() -> pd.DataFrame:
    """Sixty-four runs, some of them fifty times as noisy as the others, with their standard errors."""
    runs, draw = sf.simulate_runs("chinchilla", TRUTH, GRID), np.random.default_rng(0)
    spread = np.where(draw.random(64) < 0.3, 0.05, 0.001)
    loss = runs["loss"] * np.exp(spread * draw.standard_normal(64))
    return runs.assign(loss=loss, error=spread * loss, weight=1 / spread**2)


def test_a_run_counts_by_its_weight_or_its_standard_error(tmp_path: Path) -> None:
    runs = runs_of_unlike_errors()
    plain = {"scale_weight": 0.0, "huber_delta": None, "resamples": 40, "backtest": False}
    alike = sf.fit(runs, "chinchilla", **plain)
    ways = [{"standard_errors": "error"}, {"standard_errors": runs["error"]}, {"weights": "weight"}]
    fits = [sf.fit(runs, "chinchilla", **plain, **way) for way in ways]
    for found in fits:
        assert found.params == pytest.approx(fits[0].params, rel=1e-5)
        assert found.params["b"] == pytest.approx(0.37, abs=0.01) and abs(alike.params["b"] - 0.37) > 0.02
        assert found.noise < 0.3 * alike.noise and "weigh by weights of their own" in str(found)
    exact = {c: runs[c].to_numpy() for c in ("params", "tokens")}

    def missed(values: np.ndarray) -> np.ndarray:
        law = sf.LAWS["chinchilla"].predict(dict(zip("EAaBb", values, strict=True)), exact)
        return np.sqrt(runs["weight"].to_numpy()) * (np.log(runs["loss"]) - np.log(law))

    start = [fits[0].params[name] for name in "EAaBb"]
    other = least_squares(missed, start, x_scale=start, xtol=1e-14, ftol=1e-14)
    assert fits[0].params == pytest.approx(dict(zip("EAaBb", other.x, strict=True)), rel=1e-3)
    back = sf.load_fit(fits[0].save(tmp_path / "fit.json"))
    assert back.profile("a", points=5).low == pytest.approx(fits[0].profile("a", points=5).low)


def test_weights_that_cannot_be_are_named() -> None:
    runs = runs_of_unlike_errors()
    for way, said in (
        ({"weights": "wieght"}, "no column 'wieght' for weights=; did you mean 'weight'"),
        ({"weights": [1.0, 2.0]}, "one number for each of 64 runs"),
        ({"standard_errors": runs["error"] * 0}, "must be positive and finite, got 0 in row 0"),
        ({"weights": "weight", "standard_errors": "error"}, "not both"),
    ):
        with pytest.raises(sf.ScalefedError, match=said):
            sf.fit(runs, "chinchilla", **way)
    runs.loc[:3, "weight"] = np.nan
    with pytest.warns(sf.FitWarning, match="4 of 64 rows left out: weight missing"):
        sf.fit(runs, "chinchilla", weights="weight", resamples=0, backtest=False)


# -- runs above the law ------------------------------------------------------------------------------------------------
def test_runs_that_were_tuned_too_little_pull_less(tmp_path: Path) -> None:
    runs, draw = sf.simulate_runs("chinchilla", TRUTH, GRID, noise=0.003, seed=1), np.random.default_rng(0)
    worse = np.where(draw.random(64) < 0.4, 0.15 * draw.random(64), 0.0)
    runs = runs.assign(loss=runs["loss"] * np.exp(worse))
    plain = {"scale_weight": 0.0, "huber_delta": 0.01, "resamples": 40, "backtest": False}
    alike, above = (sf.fit(runs, "chinchilla", **plain, huber_above=share) for share in (1.0, 0.05))
    off = [abs(np.log(fit.predict(params=3e10, tokens=3e12, parts=False)["estimate"][0]
                      / sf.LAWS["chinchilla"].predict(TRUTH, {"params": 3e10, "tokens": 3e12})))
           for fit in (alike, above)]  # fmt: skip
    assert off[1] < 0.7 * off[0]
    assert "runs above the law pull as far as 0.05 of those below" in str(above)
    back = sf.load_fit(above.save(tmp_path / "fit.json"))
    assert back.huber_above == 0.05
    assert back.profile("a", points=5).high == pytest.approx(above.profile("a", points=5).high)
    with pytest.raises(sf.ConfigError, match="huber_above must be a share of huber_delta above 0"):
        sf.fit(runs, "chinchilla", huber_above=0.0)


def test_residuals_that_neighbours_share_are_no_noise() -> None:
    near = {"params": np.geomspace(1e7, 1e9, 10), "tokens": np.geomspace(1e9, 1e10, 8)}
    runs = sf.simulate_runs("chinchilla", TRUTH, near, noise=0.006, seed=1)
    bent = runs.assign(loss=runs["loss"] * (1 + 0.03 * np.sin(2 * np.log(runs["params"]))))
    straight, crooked = (sf.fit(one, "chinchilla", fixed={"E": 1.8}, resamples=0) for one in (runs, bent))
    assert min(straight.huber_delta, crooked.huber_delta) > 5e-3
    assert (straight.huber_above, crooked.huber_above) == (1.0, 0.1)
    for asked in ({"scale_weight": 1.0}, {"huber_delta": 1e-3}, {"huber_above": 1.0}):
        assert sf.fit(bent, "chinchilla", fixed={"E": 1.8}, resamples=0, **asked).huber_above == 1.0


def test_checkpoints_of_one_run_are_no_neighbours() -> None:
    draw = np.random.default_rng(3)
    columns = {"params": np.geomspace(1, 9, 10).repeat(40), "tokens": np.tile(np.geomspace(1, 9, 40), 10)}
    residuals = draw.standard_normal(10).repeat(40) + 0.01 * draw.standard_normal(400)
    assert lack_of_fit(residuals, columns, np.arange(400)) < 0.01
    assert lack_of_fit(residuals, columns, np.arange(10).repeat(40)) > 0.01
    assert lack_of_fit(residuals, columns, np.zeros(400, dtype=int)) == 1.0
