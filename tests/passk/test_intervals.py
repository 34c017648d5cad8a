"""Intervals of pass@k: what must hold for any counts, exact coverage, and other people's formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from scalefed import passk
from scalefed.errors import ConfigError, DataError
from scalefed.passk.intervals import mean_interval
from scalefed.passk.population import exceeds
from scalefed.seeds import rng

SETTINGS = settings(deadline=None, max_examples=60, derandomize=True)


@st.composite
def benchmarks(draw, *, most=24, equal=True):
    """Samples and correct ones of a few problems, with rare, frequent and mixed passes."""
    problems = draw(st.integers(1, 12))
    n = draw(st.integers(1, most)) if equal else None
    samples = [n or draw(st.integers(1, most)) for _ in range(problems)]
    return samples, [draw(st.sampled_from([0, 0, 1, m, m, m - 1]) | st.integers(0, m)) for m in samples]


def row(samples, correct, k=1):
    return passk.estimate_pass_at_k(samples, correct, k)[k]


# ---------------------------------------------------------------- what must hold for any counts
@given(benchmarks(), st.data())
@SETTINGS
def test_both_intervals_rise_with_every_success(case, data):
    samples, correct = case
    missing = [i for i, (n, c) in enumerate(zip(samples, correct, strict=True)) if c < n]
    if missing:
        lucky = data.draw(st.sampled_from(missing))
        before, after = row(samples, correct), row(samples, [c + (i == lucky) for i, c in enumerate(correct)])
        for end in ("low", "high", "low_conditional", "high_conditional"):
            assert getattr(after, end) >= getattr(before, end) - 1e-9, end
        assert after.high > before.high or after.high > 1 - 1e-9


@given(benchmarks(most=12), st.data())
@SETTINGS
def test_the_interval_for_new_problems_rises_with_every_success_at_every_k(case, data):
    samples, correct = case
    k = data.draw(st.integers(1, samples[0]))
    place = data.draw(st.integers(0, len(samples) - 1))
    if correct[place] < samples[place]:
        before, after = row(samples, correct, k), row(samples, [c + (i == place) for i, c in enumerate(correct)], k)
        assert after.low >= before.low - 1e-9 and after.high >= before.high - 1e-9


@given(benchmarks(equal=False))
@SETTINGS
def test_passes_and_failures_mirror(case):
    samples, correct = case
    one, other = row(samples, correct), row(samples, [n - c for n, c in zip(samples, correct, strict=True)])
    assert one.low == pytest.approx(1 - other.high, abs=1e-9)
    assert one.low_conditional == pytest.approx(1 - other.high_conditional, abs=1e-9)


@given(benchmarks(equal=False), st.data())
@SETTINGS
def test_new_problems_are_never_surer_than_these_and_no_width_is_zero(case, data):
    samples, correct = case
    found = row(samples, correct, data.draw(st.integers(1, min(samples))))
    assert 0 <= found.low <= found.low_conditional and found.high_conditional <= found.high <= 1
    assert found.low <= found.estimate <= found.high
    assert found.high - found.low > 0.05 / len(samples)
    assert found.high_conditional - found.low_conditional > 0.1 / sum(samples)


@given(benchmarks(equal=False), st.randoms(use_true_random=False))
@SETTINGS
def test_the_order_of_problems_does_not_matter(case, random):
    pairs = list(zip(*case, strict=True))
    before = row(*case)
    random.shuffle(pairs)
    after = row(*zip(*pairs, strict=True))
    assert (after.low, after.high) == pytest.approx((before.low, before.high), abs=1e-9)
    conditional = (before.low_conditional, before.high_conditional)
    assert (after.low_conditional, after.high_conditional) == pytest.approx(conditional, abs=1e-9)


@given(benchmarks(), st.sampled_from([(0.8, 0.9), (0.9, 0.95), (0.95, 0.99)]))
@SETTINGS
def test_a_higher_level_is_a_wider_interval(case, levels):
    narrow, wide = (passk.estimate_pass_at_k(*case, 1, level=level)[1] for level in levels)
    assert wide.low <= narrow.low + 1e-9 and narrow.high <= wide.high + 1e-9
    assert wide.low_conditional <= narrow.low_conditional and narrow.high_conditional <= wide.high_conditional


# ---------------------------------------------------------------- exact coverage, one sample a problem
def exact_coverage(problems: int, rates: np.ndarray) -> np.ndarray:
    """The chance that the interval holds the rate, for each of the rates and just beside every end."""
    ends = [passk.estimate_pass_at_k(1, [1] * c + [0] * (problems - c), 1)[1] for c in range(problems + 1)]
    low, high = np.array([r.low for r in ends]), np.array([r.high for r in ends])
    edges = np.concatenate([low, high])
    p = np.unique(np.clip(np.concatenate([rates, edges - 1e-7, edges + 1e-7]), 1e-6, 1 - 1e-6))
    chances = binom.pmf(np.arange(problems + 1), problems, p[:, None])
    return np.sum(chances * ((low <= p[:, None]) & (p[:, None] <= high)), axis=1)


@pytest.mark.parametrize("problems", [1, 2, 3, 5, 8, 13, 20, 40])
def test_few_problems_are_covered_at_every_rate(problems):
    assert exact_coverage(problems, np.linspace(0.001, 0.999, 999)).min() >= 0.93


@pytest.mark.slow
def test_humanevals_size_is_covered_within_its_band():
    assert exact_coverage(164, np.linspace(0.0001, 0.5, 500)).min() >= 0.93
    ends = [passk.estimate_pass_at_k(1, [1] * c + [0] * (164 - c), 1)[1] for c in range(165)]
    inside = [(r.low, r.high) for r in ends]
    for rate in (0.005, 0.01, 2 / 164, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5):
        share = sum(binom.pmf(c, 164, rate) for c, (low, high) in enumerate(inside) if low <= rate <= high)
        assert 0.93 <= share <= 0.98, rate


@pytest.mark.parametrize(("passed", "problems"), [(0, 164), (1, 164), (2, 164), (82, 164), (40, 40), (0, 5)])
def test_one_sample_each_lies_within_clopper_pearson(passed, problems):
    found = row(1, [1] * passed + [0] * (problems - passed))
    low, high = beta.ppf(0.025, passed, problems - passed + 1), beta.ppf(0.975, passed + 1, problems - passed)
    assert found.low >= (0 if passed == 0 else low) - 1e-7
    assert found.high <= (1 if passed == problems else high) + 1e-7
    if passed not in (0, problems):  # and not far within: some of the nearest counts' probability is given away
        assert found.high - found.low > 0.85 * (high - low)
    assert (found.low_conditional, found.high_conditional) == (found.low, found.high)


def test_all_failing_and_all_passing_give_the_exact_ends():
    none, all_ = row(20, [0] * 12), row(20, [20] * 12)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 12)) and none.low == 0
    assert none.high_conditional == pytest.approx(1 - 0.025 ** (1 / 240)) and none.low_conditional == 0
    assert all_.low == pytest.approx(0.025 ** (1 / 12)) and all_.high == 1
    assert row(20, [0] * 12, 10).high_conditional == pytest.approx(1 - 0.025 ** (10 / 240))


# ---------------------------------------------------------------- simulated coverage
def cover(problems: int, samples: int, draw_rates, truth: dict[int, float], repeats: int) -> dict[str, float]:
    """Share of intervals that hold the population's value, and this set's own."""
    hits: dict[str, float] = {}
    draw = rng(7, "test-coverage", problems)
    for _ in range(repeats):
        rates = draw_rates(draw)
        for r in passk.estimate_pass_at_k(samples, draw.binomial(samples, rates), tuple(truth)):
            own = float(np.mean(1 - (1 - rates) ** r.k))
            for name, held in (
                (f"new {r.k}", r.low <= truth[r.k] <= r.high),
                (f"these {r.k}", r.low_conditional <= own <= r.high_conditional),
            ):
                hits[name] = hits.get(name, 0) + held / repeats
    return hits


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "samples"), [(164, 20), (40, 10)])
def test_intervals_cover_where_half_of_the_problems_are_never_solved(problems, samples):
    truth = {1: 0.5 * 0.3 / 2.3, 10: 0.5 * float(passk.beta_pass_at_k(0.3 / 2.3, 2.3, 10))}

    def rates(draw):
        return np.where(draw.random(problems) < 0.5, 0, draw.beta(0.3, 2, problems))

    shares = cover(problems, samples, rates, truth, 500)
    assert all(0.93 <= share for share in shares.values()), shares  # a true 0.95 is below this once in 50
    assert shares["new 1"] <= 0.99 and shares["new 10"] <= 0.985, shares


# ---------------------------------------------------------------- the pieces
@pytest.mark.parametrize(("passed", "failed"), [(1, 1), (2, 1), (3, 162), (1, 164), (80, 85), (400, 3)])
@pytest.mark.parametrize("level", [0.005, 0.025, 0.5, 0.975])
def test_weighted_means_of_zeros_and_ones_are_beta(passed, failed, level):
    mean = beta.ppf(level, passed, failed)
    assert exceeds(np.array([0.0, 1.0]), np.array([failed, passed], float), mean) == pytest.approx(1 - level, abs=1e-6)


def test_weighted_means_agree_with_drawing_them():
    values, weights = np.array([0.0, 0.05, 0.4, 0.9, 1.0]), np.array([20.0, 5.0, 3.0, 1.0, 1.0])
    draws = rng(0, "dirichlet").dirichlet(weights, 400_000) @ values
    for mean in (0.05, 0.1, 0.2):
        assert exceeds(values, weights, mean) == pytest.approx(np.mean(draws > mean), abs=0.004)


def test_result_gives_both_intervals_and_says_how():
    counts = [0, 0, 3, 20, 7, 0, 1, 0, 12, 5]
    result = passk.estimate_pass_at_k(20, counts, k=(1, 10))
    assert result.k == (1, 10) and result.problems == 10 and result.samples_min == result.samples_max == 20
    assert result[10].estimate == pytest.approx(np.mean(passk.pass_at_k(20, counts, 10)))
    assert result == passk.estimate_pass_at_k(20, counts, k=(1, 10))
    assert "pass@10" in str(result) and "new problems" in str(result) and "20 samples each" in str(result)
    plain = result.to_dict()
    assert plain["problems"] == 10 and plain["pass@1"]["low"] == result[1].low
    with pytest.raises(DataError, match=r"pass@5 .* k = 1, 10"):
        result[5]
    assert "2 problems, 1 to 3 samples each" in str(passk.estimate_pass_at_k([1, 3], [1, 0], 1))


def test_t_and_logit_t_agree_with_statsmodels():
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    values = np.array([0.1, 0.4, 0.35, 0.8, 0.0, 0.2])
    low, high = weightstats.DescrStatsW(values).tconfint_mean()
    assert mean_interval(values, 0.95, "t") == pytest.approx((max(low, 0), high))
    ends = np.array(mean_interval(values, 0.95, "logit-t"))
    reach = np.log(ends / (1 - ends)) - np.log(values.mean() / (1 - values.mean()))
    assert reach == pytest.approx(np.array([-1, 1]) * (high - low) / 2 / (values.mean() * (1 - values.mean())))
    for method in passk.METHODS:
        low, high = mean_interval(np.zeros(12), 0.95, method)
        assert low == 0 and high == pytest.approx(1 - 0.025 ** (1 / 12))


@pytest.mark.parametrize(
    ("change", "error"),
    [({"method": "gafke"}, ConfigError), ({"level": 95}, ConfigError), ({"k": 30}, DataError)],
)
def test_bad_settings_are_named(change, error):
    with pytest.raises(error):
        passk.estimate_pass_at_k(20, [1, 2, 3], **change)
