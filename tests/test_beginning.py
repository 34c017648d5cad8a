"""The first runs: two slices, cohorts that go with neither size nor budget, and an optimum they determine."""

import numpy as np
import pytest

import scalefed as sf
from scalefed.errors import ConfigError


def test_two_isoflop_slices_of_five_sizes_spend_the_compute():
    runs = sf.first_runs(compute=1e18)
    assert len(runs) == 10
    np.testing.assert_allclose(runs.compute.sum(), 1e18, rtol=0.02)
    np.testing.assert_allclose(runs.compute, 6 * runs.params * runs.tokens)
    small, large = runs.compute[:5], runs.compute[5:]
    np.testing.assert_allclose(small, small.mean(), rtol=0.02)
    np.testing.assert_allclose(large / small.mean(), 16, rtol=0.02)
    for half in (runs[:5], runs[5:]):
        ratio = half.tokens / half.params
        assert ratio.is_monotonic_decreasing and ratio.min() < 20 / 12 and ratio.max() > 20 * 12
        assert ratio.iloc[2] == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize(("count", "cohorts"), [(10, [1, 4, 16]), (7, [2]), (25, [1, 2, 4]), (13, [4, 1])])
def test_every_cohort_has_both_budgets_and_one_run_is_skewed(count, cohorts):
    runs = sf.first_runs(compute=1e13, count=count, clients_per_round=cohorts, tokens_per_param=100)
    assert len(runs) == count and not runs.duplicated().any()
    skewed = runs[runs.concentration < np.inf]
    assert skewed.clients_per_round.tolist() == [max(cohorts)]
    iid = runs[runs.concentration == np.inf]
    for _, cohort in iid.groupby("clients_per_round"):
        assert cohort.params.nunique() >= 2 and len(cohort) >= 3 and cohort.compute.round(-9).nunique() >= 2
    if len(cohorts) > 1:
        assert abs(np.corrcoef(np.log(iid.clients_per_round), np.log(iid.compute))[0, 1]) < 0.4
    assert abs(np.corrcoef(np.log(iid.params), np.log(iid.tokens))[0, 1]) < 0.9


def test_a_law_fitted_to_simulated_first_runs_finds_the_optimum():
    truth = {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37}
    runs = sf.first_runs(compute=1e20)[["params", "tokens"]]
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(runs)))
    runs["loss"] = noise * sf.LAWS["chinchilla"].predict(truth, {c: runs[c].to_numpy(float) for c in runs})
    found = sf.fit(runs, "chinchilla", resamples=0, backtest=False, huber_delta=None)
    best = [found.params, truth]
    sizes = [((v["a"] * v["A"] / (v["b"] * v["B"])) * (1e21 / 6) ** v["b"]) ** (1 / (v["a"] + v["b"])) for v in best]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.25)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"count": 9, "clients_per_round": [1, 4, 16]}, r"from 10 for clients_per_round=.1, 4, 16."),
        ({"count": 5}, "from 6"),
        ({"clients_per_round": [4, 4]}, "different whole numbers"),
        ({"clients_per_round": [0.5]}, "different whole numbers"),
        ({"clients_per_round": []}, "different whole numbers"),
        ({"tokens_per_param": 0}, "tokens_per_param"),
        ({"concentration": -1}, "concentration"),
        ({"budget_ratio": 1}, "above 1"),
        ({"compute": np.nan}, "compute"),
        ({"compute": "much"}, "compute must be a positive number, got 'much'"),
        ({"compute": 1e3}, "would train models of 1 parameters on 2 tokens; raise compute"),
        ({"compute": 1e12, "count": 1_000_000}, "lower count"),
    ],
)
def test_what_cannot_be_designed_is_refused(words, says):
    with pytest.raises(ConfigError, match=says):
        sf.first_runs(**{"compute": 1e18, **words})
