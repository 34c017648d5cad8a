"""The link from loss to pass@k: derivatives, recovery, limits, intervals, and the Pythia counts where at hand."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, polygamma

from scalefed.downstream import betabinomial
from scalefed.downstream.alternatives import compare_forms, rates
from scalefed.downstream.betabinomial import Cells, maximise, objective, trigamma
from scalefed.downstream.curve import Curve, failure, mean_shape
from scalefed.downstream.fit import fit_link, link_runs
from scalefed.downstream.link import EXAMPLE, NAMES, Link, pass_at_k
from scalefed.errors import ConfigError, DataError, FitError
from scalefed.laws import LAWS
from scalefed.passk import fit_beta, fit_k_exponent

TRUTH = {"middle": 0.7, "slope": 6.0, "ceiling": 0.9, "spread": 1.0, "spread_slope": -0.8}
PYTHIA = Path(__file__).parents[2].parent / "shared" / "data" / "pythia_math_successes.csv"


def simulated(runs: int = 24, problems: int = 164, samples: int = 20, *, seed: int = 0, mean: str = "logistic"):
    """Counts whose rates are independent draws from the link's own model."""
    generator = np.random.default_rng(seed)
    losses = pd.Series(np.linspace(0.4, 1.3, runs), index=[f"r{i:02d}" for i in range(runs)])
    s = TRUTH["slope"] * (losses - TRUTH["middle"])
    mu = TRUTH["ceiling"] * (1 / (1 + np.exp(s)) if mean == "logistic" else np.exp(-np.exp(s)))
    nu = np.exp(TRUTH["spread"] + TRUTH["spread_slope"] * losses)
    rows = []
    for name in losses.index:
        rate = generator.beta(mu[name] * nu[name], (1 - mu[name]) * nu[name], problems)
        correct = generator.binomial(samples, rate)
        rows.append(pd.DataFrame({"run_id": name, "task_id": range(problems), "samples": samples, "correct": correct}))
    return pd.concat(rows, ignore_index=True), losses


@pytest.fixture(scope="module")
def link() -> Link:
    counts, losses = simulated()
    return fit_link(counts, losses, resamples=100)


@pytest.mark.parametrize("mean", ["logistic", "power"])
def test_derivatives_against_finite_differences(mean):
    counts, losses = simulated(runs=5, problems=30)
    cells = Cells.build(counts, (losses - losses.mean()) / losses.std(ddof=0))
    theta, many, step = np.array([[0.2, -1.5, 1.5, 0.7, -0.2]]), cells.tally(), 1e-5
    _, gradient, hessian = objective(theta, cells, many, mean, hessian=True)
    moves = np.eye(5) * step
    ends = [[objective(theta + sign * m, cells, many, mean, hessian=False) for sign in (1, -1)] for m in moves]
    by_value = [(up[0][0] - down[0][0]) / (2 * step) for up, down in ends]
    by_gradient = [(up[1][0] - down[1][0]) / (2 * step) for up, down in ends]
    np.testing.assert_allclose(gradient[0], by_value, rtol=1e-6)
    np.testing.assert_allclose(hessian[0], by_gradient, rtol=1e-6, atol=1e-5)


def test_likelihood_is_scipys_beta_binomial():
    counts, losses = simulated(runs=4, problems=25)
    x = (losses - losses.mean()) / losses.std(ddof=0)
    cells = Cells.build(counts, x)
    theta = np.array([0.2, -1.5, 1.5, 0.7, -0.2])
    a, b = Curve(0.0, 1.0, theta[None]).shapes(x.loc[counts["run_id"]].to_numpy())
    expected = stats.betabinom.logpmf(counts["correct"], counts["samples"], a, b).sum()
    # the objective leaves out the binomial coefficients and adds the log prior
    n, c = counts["samples"], counts["correct"]
    expected -= (stats.binom.logpmf(c, n, 0.5) - n * np.log(0.5)).sum()
    prior = -0.5 * (((theta - [0, 0, 3, 1, 0]) / [8, 8, 1.5, 5, 5]) ** 2).sum()
    got = objective(theta[None], cells, cells.tally(), "logistic", hessian=False)[0][0]
    assert got == pytest.approx(expected + prior, rel=1e-10)


def test_small_counts_by_steps_are_the_gamma_functions_of_large_ones(monkeypatch):
    counts, losses = simulated(runs=5, problems=30)
    counts.loc[counts["run_id"] == counts["run_id"].iloc[0], "correct"] = 0
    theta, found = np.array([[0.2, -1.5, 1.5, 0.7, -0.2]]), []
    for large in (0, 64):
        monkeypatch.setattr(betabinomial, "LARGE_COUNT", large)
        cells = Cells.build(counts, (losses - losses.mean()) / losses.std(ddof=0))
        found.append(objective(theta, cells, cells.tally(), "logistic", hessian=True))
    for of_large, of_small in zip(*found, strict=True):
        np.testing.assert_allclose(of_small, of_large, rtol=1e-9)


def test_trigamma_agrees_with_scipy():
    x = np.geomspace(1e-6, 1e6, 500)
    np.testing.assert_allclose(trigamma(x), polygamma(1, x), rtol=1e-10)


def test_recovers_the_truth_that_drew_the_counts():
    counts, losses = simulated(runs=60, problems=400, samples=40, seed=3)
    found = fit_link(counts, losses, resamples=60).summary()
    truth = pd.Series(TRUTH)[list(NAMES)]
    assert (np.abs(found["estimate"] - truth) < 4 * found["std_error"] + 1e-3).all()
    np.testing.assert_allclose(found["estimate"][["middle", "ceiling"]], truth[["middle", "ceiling"]], rtol=0.04)


def test_auto_takes_the_shape_that_drew_the_counts():
    for mean in ("logistic", "power"):
        counts, losses = simulated(runs=40, problems=300, seed=5, mean=mean)
        assert fit_link(counts, losses, resamples=2).curve.mean == mean


def test_every_start_and_every_replicate_reaches_the_same_kind_of_optimum(link):
    counts, losses = simulated()
    cells = Cells.build(counts, (losses - losses.mean()) / losses.std(ddof=0))
    generator = np.random.default_rng(0)
    starts = link.curve.theta + 0.7 * generator.standard_normal((12, 5))
    found = maximise(cells, starts, cells.tally(), mean=link.curve.mean)
    assert found.converged.all()
    assert np.ptp(found.value) < 1e-6
    assert link.unconverged == 0 and link.status == "ok"


def test_one_sample_gives_the_mean_and_spread_has_its_limits():
    k = np.array([1.0, 10.0, 100.0])
    mean, b0 = 0.3, np.log(0.3 / 0.7)

    def curve(log_spread: float) -> np.ndarray:
        return pass_at_k(Curve(0.0, 1.0, np.array([[b0, 0.0, 40.0, log_spread, 0.0]])), np.zeros(1), k)

    assert curve(1.0)[0] == pytest.approx(mean, rel=1e-12)
    np.testing.assert_allclose(curve(20.0), 1 - (1 - mean) ** k, rtol=1e-6)  # no spread: independent attempts
    np.testing.assert_allclose(curve(-20.0), mean, rtol=1e-6)  # all or nothing: more attempts do not help


def test_beta_check_values():
    # E[(1-p)^k] for Beta(.3, 12), by 40-digit arithmetic; the asymptote gives .52473 and .131806
    a, b = np.array(0.3), np.array(12.0)
    assert float(failure(a, b, np.array(100.0))) == pytest.approx(0.5076637069774308, rel=1e-11)
    assert float(failure(a, b, np.array(1e4))) == pytest.approx(0.13175965031608308, rel=1e-10)


@settings(deadline=None, max_examples=30)
@given(loss=st.floats(0.3, 1.5), step=st.floats(0.01, 0.5))
def test_pass_at_k_falls_with_loss_and_rises_with_k(loss, step):
    found = Link.from_json(EXAMPLE).predict([loss, loss + step], (1, 10, 100), new_run=False)
    table = found.pivot(index="loss", columns="k", values="estimate").sort_index().to_numpy()
    assert (np.diff(table, axis=1) > 0).all()
    assert (np.diff(table, axis=0) < 0).all()
    assert ((table > 0) & (table < 1)).all()


def test_mean_shape_derivatives():
    s, step = np.linspace(-3, 3, 13), 1e-4
    for mean in ("logistic", "power"):
        value, first, second = mean_shape(mean, s)
        up, down = mean_shape(mean, s + step)[0], mean_shape(mean, s - step)[0]
        np.testing.assert_allclose(first * value, (up - down) / (2 * step), rtol=1e-5)
        np.testing.assert_allclose(second * value, (up - 2 * value + down) / step**2, rtol=1e-3, atol=1e-6)


def test_intervals_are_ordered_and_wider_for_a_new_run(link):
    curve = link.predict([0.5, 0.8], new_run=False)
    run = link.predict([0.5, 0.8])
    for table in (curve, run):
        assert (table["low"] <= table["estimate"]).all() and (table["estimate"] <= table["high"]).all()
    assert (run["high"] - run["low"]).sum() >= (curve["high"] - curve["low"]).sum()


@pytest.mark.slow
def test_the_interval_of_the_curve_covers():
    """Nominal 90% over 40 draws of counts: the truth is inside 80 to 98% of the time."""
    inside = []
    for seed in range(40):
        counts, losses = simulated(runs=16, problems=120, seed=100 + seed)
        found = fit_link(counts, losses, resamples=60, mean="logistic").predict(0.6, (1, 10), new_run=False)
        mu = TRUTH["ceiling"] / (1 + np.exp(TRUTH["slope"] * (0.6 - TRUTH["middle"])))
        nu = np.exp(TRUTH["spread"] + TRUTH["spread_slope"] * 0.6)
        truth = 1 - failure(np.array(mu * nu), np.array((1 - mu) * nu), np.array([1.0, 10.0]))
        inside.extend(((found["low"] <= truth) & (truth <= found["high"])).tolist())
    assert 0.80 <= np.mean(inside) <= 0.98


def test_inverse_gives_the_loss_back(link):
    for k in (1, 10):
        share = float(link.predict(0.75, k)["estimate"].iloc[0])
        assert link.inverse(share, k=k) == pytest.approx(0.75, abs=1e-9)
    with pytest.raises(FitError, match="out of reach"):
        link.inverse(0.999)


def test_stores_and_reads_back(link):
    again = Link.from_json(link.to_json())
    pd.testing.assert_frame_equal(link.predict([0.5, 1.0]), again.predict([0.5, 1.0]))
    broken = link.to_json()
    del broken["theta"]
    with pytest.raises(DataError, match="theta"):
        Link.from_json(broken)


def test_row_order_does_not_matter(link):
    counts, losses = simulated()
    shuffled = fit_link(counts.sample(frac=1, random_state=1), losses, resamples=2)
    np.testing.assert_allclose(shuffled.curve.theta, link.curve.theta, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c, x: (c.drop(columns="samples"), x), DataError, "samples"),
        (lambda c, x: (c.assign(correct=99), x), DataError, "99 correct of 20"),
        (lambda c, x: (c.assign(correct=-1), x), DataError, "impossible"),
        (lambda c, x: (c, x.drop("r03")), DataError, "r03"),
        (lambda c, x: (c[c["run_id"].isin(["r01", "r02"])], x), FitError, "3 or more"),
        (lambda c, x: (c.assign(correct=0), x), FitError, "no problem was ever solved"),
    ],
)
def test_bad_counts_are_refused(change, error, message):
    counts, losses = change(*simulated(runs=5, problems=20))
    with pytest.raises(error, match=message):
        fit_link(counts, losses)


def test_unknown_shape_is_refused():
    counts, losses = simulated(runs=5, problems=20)
    with pytest.raises(ConfigError, match="logistic"):
        fit_link(counts, losses, mean="probit")


def test_an_undetermined_ceiling_is_said():
    counts, losses = simulated()
    weak = counts[counts["run_id"].isin(losses.index[losses > 1.0])]
    assert "ceiling" in fit_link(weak, losses, resamples=2).status


def bent(seed: int) -> tuple[pd.DataFrame, pd.Series]:
    """Counts whose mean curve flattens at low losses, which no shape of the link can follow."""
    generator = np.random.default_rng(seed)
    losses = pd.Series(np.linspace(0.4, 1.3, 24), index=[f"r{i:02d}" for i in range(24)])
    mean = 0.9 / (1 + np.exp(6 * np.maximum(losses.to_numpy() - 0.7, 0.25 * (losses.to_numpy() - 0.7))))
    rate = generator.beta(3 * mean[:, None], 3 * (1 - mean[:, None]), (24, 200))
    table = {"run_id": np.repeat(losses.index, 200), "task_id": np.tile(np.arange(200), 24), "samples": 20}
    return pd.DataFrame({**table, "correct": generator.binomial(20, rate).ravel()}), losses


def test_beyond_the_runs_the_interval_holds_the_curves_own_error():
    """Smaller where the curve is right than where it is wrong, and none among the runs."""
    right = [fit_link(*simulated(seed=s), resamples=2).discrepancy[0, 0] for s in range(4)]
    wrong = [fit_link(*bent(s), resamples=2).discrepancy[0, 0] for s in range(4)]
    assert np.mean(right) < 0.7 * np.mean(wrong)
    link = fit_link(*bent(0), resamples=100)
    assert link.beyond([0.4, 1.3, 0.8]).tolist() == [0.0, 0.0, 0.0]
    assert link.beyond([0.4 - 0.45, 1.3 + 0.9]) == pytest.approx([0.5, 1.0])
    alone = dataclasses.replace(link, discrepancy=np.zeros((2, 2)))
    for loss, widened in ((0.5, False), (0.1, True)):
        with_error, without = link.predict(loss, (1, 10)), alone.predict(loss, (1, 10))
        assert ((with_error["high"] - with_error["low"]) > (without["high"] - without["low"]) * 1.1).all() == widened
    few = simulated(runs=3, problems=40)
    assert "too few runs to hold any out" in fit_link(*few, resamples=2).status


def near_a_floor(seed: int = 0, floor: float = 0.2) -> tuple[pd.DataFrame, pd.Series]:
    """Logistic in the log of the loss above a floor: near it success rises faster than along the loss."""
    generator = np.random.default_rng(seed)
    losses = pd.Series(np.geomspace(0.26, 1.3, 24), index=[f"r{i:02d}" for i in range(24)])
    mean = expit(-1.8 * (np.log(losses.to_numpy() - floor) + 2.8))[:, None]
    rate = generator.beta(mean * 2, (1 - mean) * 2, (24, 200))
    table = {"run_id": np.repeat(losses.index, 200), "task_id": np.tile(np.arange(200), 24), "samples": 20}
    return pd.DataFrame({**table, "correct": generator.binomial(20, rate).ravel()}), losses


def test_near_a_floor_success_follows_the_log_of_the_excess():
    counts, losses = near_a_floor()
    held, seen = list(losses.index[:4]), rates(counts, [1])[1]
    rest = counts[~counts["run_id"].isin(held)]
    missed = {}
    for name, floor in (("known", 0.2), ("auto", "auto"), ("none", None)):
        link = fit_link(rest, losses, floor=floor, resamples=20)
        missed[name] = (link.predict(losses[held].to_numpy(), 1)["estimate"].to_numpy() - seen[held]).abs().max()
        assert (link.curve.floor is None) == (floor is None)
    assert missed["known"] < 0.05 and missed["auto"] < 0.5 * missed["none"] and missed["none"] > 0.15
    link = fit_link(counts, losses, floor=0.2, resamples=20)
    assert link.predict(link.inverse(0.4), 1)["estimate"].item() == pytest.approx(0.4)
    assert link.predict([0.2, 0.1], 1)["estimate"].tolist() == pytest.approx(
        [link.summary()["estimate"]["ceiling"]] * 2
    )
    back = Link.from_json(json.loads(json.dumps(link.to_json())))
    assert back.predict(0.25, 1).equals(link.predict(0.25, 1)) and "log(loss - 0.2)" in repr(back)


def test_a_floor_is_not_sought_where_the_loss_itself_will_do():
    for seed in range(4):
        assert fit_link(*simulated(seed=seed), resamples=2).curve.floor is None


@pytest.mark.parametrize("floor", [0.26, "low", True, float("nan")])
def test_a_floor_that_is_none_is_refused(floor):
    with pytest.raises(ConfigError, match="a number below the least covariate 0.26"):
        fit_link(*near_a_floor(), floor=floor)


def test_the_floor_of_a_law_is_taken_where_it_is_known():
    counts, losses = near_a_floor()
    runs = losses.rename("loss").rename_axis("run_id").reset_index()
    for law, options in [
        (LAWS["chinchilla"].with_(fixed={"E": 0.2}), {"floor": 0.2}),
        (LAWS["chinchilla"].with_(fixed={"E": 0.4}), {}),
        (LAWS["chinchilla"], {}),
    ]:
        linked = link_runs(law, runs, "loss", counts, resamples=2)
        assert linked.to_json() == fit_link(counts, losses, resamples=2, **options).to_json()


def test_runs_without_counts_are_left_out_of_a_link_and_all_without_are_refused():
    counts, losses = near_a_floor()
    runs = losses.rename("loss").rename_axis("run_id").reset_index()
    more = pd.concat([runs, pd.DataFrame({"run_id": ["uncounted"], "loss": [0.1]})])
    law = LAWS["chinchilla"]
    assert link_runs(law, more, "loss", counts, resamples=2).runs == len(runs)
    with pytest.raises(DataError, match="none of the runs has success counts"):
        link_runs(law, more.tail(1), "loss", counts)
    with pytest.raises(DataError, match="the runs need run_id"):
        link_runs(law, runs[["loss"]], "loss", counts)


def test_bands_of_runs_beyond_a_bent_curve_cover():
    """The four best runs held out, four draws: nominal 90%."""
    inside = []
    for seed in range(4):
        counts, losses = bent(seed)
        held = list(losses.index[:4])
        link = fit_link(counts[~counts["run_id"].isin(held)], losses, resamples=100)
        band, seen = link.predict(losses[held].to_numpy(), 1), rates(counts, [1])[1][held].to_numpy()
        inside.extend(((band["low"] <= seen) & (seen <= band["high"])).tolist())
    assert np.mean(inside) >= 0.8


def test_forms_are_compared_on_held_out_runs():
    counts, losses = simulated(runs=14, problems=800, samples=40)
    table = compare_forms(counts, losses, holdout=["r06", "r10"], k=(1, 10), resamples=20)
    assert set(table["form"]) == {"link", "passuntil", "sigmoid", "k-power", "gold-power", "glm"}
    error = table["relative_error"].abs().groupby(table["form"]).mean()
    assert error["link"] < 0.1 and error["link"] < 0.5 * error["glm"]
    with pytest.raises(DataError, match="nobody"):
        compare_forms(counts, losses, holdout=["nobody"])


def test_the_gold_power_recovers_its_own_curve():
    """-log pass@1 = 0.2 + 1.5 x^0.8, without noise."""
    gold = pd.Series(np.linspace(0.2, 1.5, 9), index=[f"r{i}" for i in range(9)])
    solved = np.exp(-(0.2 + 1.5 * gold**0.8))
    parts = [
        pd.DataFrame({"run_id": run, "task_id": range(2), "samples": 10**6, "correct": round(10**6 * share)})
        for run, share in solved.items()
    ]
    table = compare_forms(pd.concat(parts), gold, holdout=["r0", "r8"], k=(1,), covariate="gold_loss", resamples=5)
    found = table[table["form"] == "gold-power"]
    np.testing.assert_allclose(found["estimate"], found["observed"], rtol=1e-3)


# -- Pythia on MATH: 7 sizes, 128 problems, 10,000 samples ------------------------------------------------------------


@pytest.fixture(scope="module")
def pythia() -> tuple[pd.DataFrame, pd.Series]:
    if not PYTHIA.exists():
        pytest.skip("the Pythia success counts (../shared/data/pythia_math_successes.csv) are not on this machine")
    table = pd.read_csv(PYTHIA, comment="#")
    counts = table.rename(columns={"size": "run_id", "problem": "task_id", "n": "samples", "c": "correct"})
    return counts, np.log(counts.groupby("run_id")["N"].first())


def test_pythia_table(pythia):
    counts, _ = pythia
    expected = {
        "70M": (94, 0.00065, 0.00597, 0.0361, 0.1241, 0.2656, 0.191, 0.065),
        "160M": (55, 0.00267, 0.02509, 0.1619, 0.4102, 0.5703, 0.280, 0.176),
        "410M": (44, 0.00622, 0.05172, 0.2272, 0.4818, 0.6563, 0.286, 0.180),
        "1B": (33, 0.00833, 0.06646, 0.2745, 0.5462, 0.7422, 0.312, 0.216),
        "2.8B": (24, 0.02031, 0.13475, 0.4220, 0.6778, 0.8125, 0.337, 0.246),
        "6.9B": (21, 0.01856, 0.13140, 0.4317, 0.6877, 0.8359, 0.350, 0.270),
        "12B": (16, 0.02319, 0.15682, 0.4834, 0.7233, 0.8750, 0.370, 0.296),
    }
    ks = (1, 10, 100, 1000, 10000)
    table = rates(counts, ks)
    for size, (unsolved, *passes, exponent, alpha) in expected.items():
        part = counts[counts["run_id"] == size]
        assert int((part["correct"] == 0).sum()) == unsolved
        np.testing.assert_allclose(table.loc[size], passes, atol=6e-5)
        n, c = part["samples"].to_numpy(), part["correct"].to_numpy()
        beta = fit_beta(n, c)
        assert beta.mean * beta.concentration == pytest.approx(alpha, abs=2e-3)
        assert fit_k_exponent(n, c, k=ks).exponent == pytest.approx(exponent, abs=0.03)


def test_pythia_two_largest_sizes_held_out(pythia):
    counts, log_params = pythia
    table = compare_forms(
        counts, log_params, holdout=["6.9B", "12B"], k=(1, 10, 100, 1000), covariate="log params", resamples=100
    )
    table["miss"] = np.abs(np.log(table["estimate"] / table["observed"]))
    overall = table.groupby("form")["miss"].mean()
    large_k = table[table["k"] >= 100].groupby("form")["miss"].mean()
    assert overall["link"] < min(overall["passuntil"], overall["sigmoid"], overall["glm"])
    assert large_k["link"] < 0.1 and large_k["link"] < 0.6 * min(large_k["passuntil"], large_k["sigmoid"])


def test_pythia_bands_hold_the_sizes_held_out(pythia):
    """pass@1, @10, @100 and @1000 of the two largest sizes: eight values, nominal 90%."""
    counts, log_params = pythia
    held = ["6.9B", "12B"]
    link = fit_link(counts[~counts["run_id"].isin(held)], log_params, covariate="log params", resamples=200)
    ks = (1, 10, 100, 1000)
    band, seen = link.predict(log_params[held].to_numpy(), ks), rates(counts, ks).loc[held].to_numpy().ravel()
    assert ((band["low"] <= seen) & (seen <= band["high"])).sum() >= 7


def test_pythia_thousand_attempts_from_a_hundred(pythia):
    """100 of the 10,000 samples of each problem, drawn without replacement, give pass@1000 of every size."""
    counts, log_params = pythia
    truth = rates(counts, [1000])[1000]
    generator = np.random.default_rng(0)
    few = counts.assign(
        samples=100, correct=generator.hypergeometric(counts["correct"], 10000 - counts["correct"], 100)
    )
    found = fit_link(few, log_params, covariate="log params", resamples=50)
    larger = [size for size in log_params.index if size != "70M"]
    predicted = found.predict(log_params[larger].to_numpy(), 1000)["estimate"].to_numpy()
    assert np.mean(np.abs(predicted / truth[larger].to_numpy() - 1)) < 0.15
