"""``law="auto"``: which laws are tried, how they are weighed, and that answers carry their disagreement."""

import itertools
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from law_truths import TRUTHS

import scalefed as sf
from scalefed.allocation.mixture import mixed, shares
from scalefed.fitting.alternative import Alternative
from scalefed.fitting.backtest import of_several
from scalefed.fitting.candidates import beside, candidates
from scalefed.laws import LAWS
from scalefed.laws.simulate import simulate_runs

COUPLED = {"E": 1.7, "A": 2300.0, "a": 0.42, "B": 1e4, "b": 0.43, "c": 0.6}
SIZES = {"params": np.geomspace(1e7, 3e9, 7), "tokens": np.geomspace(5e8, 1e11, 7)}


def rows(**columns: object) -> pd.DataFrame:
    """Two runs with params, tokens and these columns."""
    return pd.DataFrame({"params": [1e6, 2e6], "tokens": [1e8, 2e8], **columns})


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (rows(), {"chinchilla", "coupled"}),
        (rows(clients_per_round=4, skew=[0.0, 0.5]), {"chinchilla", "coupled"}),
        (rows(unique_tokens=5e7), {"chinchilla", "coupled", "data-constrained"}),
        (rows(unique_tokens=1e9), {"chinchilla", "coupled"}),
        (rows(clients_per_round=[1, 4], skew=0.01),
         {"federated", "federated-steps", "federated-coupled", "federated-capacity-steps"}),
        (rows(clients_per_round=[1, 4], skew=[0.0, 0.5]),
         {"federated", "federated-capacity", "federated-coupled", "federated-capacity-steps"}),
    ],
)  # fmt: skip
def test_the_columns_that_vary_choose_the_laws(runs: pd.DataFrame, expected: set[str]) -> None:
    assert {law.name for law in candidates(runs)} == expected


def federation(**columns: object) -> pd.DataFrame:
    """Seventy runs of one and four clients of sixteen, all of whose text is new, with these columns in place."""
    known = {"params": 1e6, "tokens": np.arange(1, 71) * 1e6, "clients_per_round": [1, 4] * 35, "clients": 16,
             "skew": 0.0, "local_steps": 25, "unique_tokens": 1e8}  # fmt: skip
    return pd.DataFrame(known | columns)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("federated", "federated-capacity-steps"), ("federated-steps", "federated-capacity-steps"),
        ("federated-capacity-steps", "federated-coupled"), ("federated-coupled", "federated-capacity-steps"),
        ("chinchilla", None), ("average-compute", None), ("federated-population", None),
    ],
)  # fmt: skip
def test_a_named_law_stands_beside_the_richest_candidate_of_its_columns(name: str, expected: str | None) -> None:
    other = beside(LAWS[name], federation(skew=[0.0, 0.5] * 35))
    assert (other.name if other else None) == expected


def test_what_is_fixed_goes_over_to_a_parameter_of_the_same_meaning_and_unit() -> None:
    runs = federation(skew=[0.0, 0.5] * 35)
    other = beside(LAWS["federated"].with_(fixed={"E": 1.7, "s": 0.6, "A": 480.0}, ties={"b": "a"}), runs)
    assert other is not None and other.fixed == {"E": 1.7} and other.ties == {"b": "a"}


@pytest.mark.parametrize(("truth", "others"), [("federated", 0), ("federated-steps", 1)])
def test_a_named_law_that_misses_neighbours_alike_is_held_against_a_candidate(truth: str, others: int) -> None:
    grid = {"params": np.geomspace(1e7, 4e8, 3), "tokens": np.geomspace(1e9, 3e10, 3),
            "clients_per_round": [1.0, 4.0, 16.0], "skew": [0.0, 0.5]}  # fmt: skip
    runs = simulate_runs(truth, TRUTHS[truth], grid, noise=0.003, seed=0)
    found = sf.fit(runs, "federated", resamples=60).alternatives
    assert [one.law.name for one in found[1:]] == ["federated-capacity-steps"] * others
    assert all(one.weight == 0.25 for one in found)


CROSSED = {"clients": [16, 16, 64, 64, 16] * 14, "skew": [0.0, 0.5] * 35}
FINITE = {"federated-data-constrained", "federated-cross-device", "federated-population"}


@pytest.mark.parametrize(
    ("columns", "law", "fixed"),
    [
        ({"unique_tokens": 1e7}, "federated-data-constrained", {"k", "l", "y"}),
        ({"unique_tokens": 1e7, "local_steps": [1, 25] * 35}, "federated-data-constrained", {"k"}),
        ({"unique_tokens": 1e7, "clients": [16, 16, 64, 64, 16] * 14}, "federated-data-constrained", {"l", "y"}),
        ({"clients": [16, 16, 64, 64, 16] * 14}, "federated-population", {"l", "u"}),
        ({**CROSSED, "unique_tokens": 1e7}, "federated-cross-device", {"l", "y"}),
        ({**CROSSED, "unique_tokens": 1e7, "local_steps": [1, 25] * 35}, "federated-cross-device", set()),
        (CROSSED, "federated-population", {"l"}),
        ({**CROSSED, "skew": [0.5, 0.5, 0.0, 0.0, 0.5] * 14}, "federated-population", {"l", "u"}),  # in one
        ({**CROSSED, "skew": [0.0, 0.01] * 35}, "federated-population", {"l", "u"}),  # iid, as measured
        ({**CROSSED, "clients": "many"}, None, set()),
        ({**CROSSED, "clients": 0}, None, set()),
        ({"clients": [4, 16] * 35}, None, set()),  # always a quarter of them: the cohort again
        ({"local_steps": [1, 25] * 35}, None, set()),
        ({"unique_tokens": 1e7, "clients_per_round": 4}, None, set()),
        ({"unique_tokens": 1e7, "local_steps": [np.nan, 25] * 35}, None, set()),
    ],
)
def test_repeats_and_population_beside_cohorts_bring_laws_of_them(
    columns: dict[str, object], law: str | None, fixed: set[str]
) -> None:
    found = {one.name: one for one in candidates(federation(**columns))}
    finite = [found[name] for name in found if name in FINITE]
    assert [one.name for one in finite] == ([law] if law else [])
    assert all(set(one.fixed) == fixed for one in finite)
    few = federation(**columns).iloc[:30]
    assert not FINITE & {one.name for one in candidates(few)}


def test_without_tokens_there_is_nothing_to_choose() -> None:
    with pytest.raises(sf.DataError, match="no tokens"):
        sf.fit({"params": [1e6, 2e6, 3e6], "loss": [3.0, 2.5, 2.2]})
    with pytest.raises(sf.ConfigError, match="none of the laws chinchilla, coupled has a parameter 'gamma'"):
        sf.fit(simulate_runs("coupled", COUPLED, SIZES, noise=0.003), fixed={"gamma": 1.0})


@pytest.fixture(scope="module")
def chosen() -> sf.Fit:
    """Runs that follow the coupled law, with the law left to choose."""
    return sf.fit(simulate_runs("coupled", COUPLED, SIZES, noise=0.003, seed=2), resamples=100)


def test_the_law_that_foretells_best_is_the_fits_and_the_others_are_kept(chosen: sf.Fit) -> None:
    assert chosen.law.name == "coupled"
    assert chosen.weight + sum(one.weight for one in chosen.alternatives) == pytest.approx(1.0)
    for one in chosen.alternatives:
        assert one.holdout_error > chosen.holdout_error
    assert chosen.params["c"] == pytest.approx(0.6, abs=0.15)


def with_weight(fit: sf.Fit, weight: float) -> sf.Fit:
    """The fit beside one of chinchilla with that weight."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = sf.fit(fit.runs, "chinchilla", resamples=60, backtest=False)
    beside = Alternative(other.law, other.params, other.replicates, weight)
    return replace(fit, alternatives=(beside,))


def test_every_answer_carries_the_disagreement_of_the_laws(chosen: sf.Fit) -> None:
    alone, both = replace(chosen, alternatives=()), with_weight(chosen, 0.4)
    other = with_weight(chosen, 1.0).optimal_size(compute=3e23)
    one, two = (fit.optimal_size(compute=3e23) for fit in (alone, both))
    assert two.params == one.params and two.loss == one.loss
    assert two.params_low <= one.params_low and two.params_high >= one.params_high
    assert two.params_low <= np.median(other.replicates["params"]) <= two.params_high
    assert len(two.replicates["params"]) == len(chosen.replicates)
    sweep = both.optimal_sizes(compute=[3e23])
    assert sweep.loc[0, "params_high"] == pytest.approx(two.params_high)
    goals = [fit.least_compute(loss=1.2 * one.loss) for fit in (alone, both)]
    assert goals[1].params == goals[0].params and goals[1].params_high >= goals[0].params_high
    band, own = (fit.predict(params=1e11, tokens=1e12).loc[0] for fit in (both, alone))
    assert band["estimate"] == own["estimate"] and band["high"] - band["low"] > own["high"] - own["low"]
    region = both.region(compute=3e23)
    assert (
        region.size_high / region.size_low >= alone.region(compute=3e23).size_high / alone.region(compute=3e23).size_low
    )


def test_what_widens_a_size_widens_its_regret(chosen: sf.Fit) -> None:
    answers = []
    for drift in (0.0, 0.2, 0.4):
        test = replace(chosen.backtest, drift=(drift, drift), drift_aside=drift)
        answers.append(replace(chosen, backtest=test).optimal_size(compute=3e23))
    sure, loose, looser = answers
    assert sure.regret < loose.regret < looser.regret
    width = [np.log(one.params_high / one.params_low) for one in answers]
    assert looser.regret / loose.regret == pytest.approx((width[2] / width[1]) ** 2, rel=0.3)


def test_a_mixture_takes_rows_by_weight(chosen: sf.Fit) -> None:
    both = with_weight(chosen, 0.4)
    assert [len(taken) for _, taken in shares(both)] == [61, 40]
    rows = mixed(both, lambda law, values: values["E"])
    assert rows[0] == both.params["E"] and set(rows[61:]) <= set(both.alternatives[0].replicates["E"])
    assert len(mixed(replace(both, replicates=both.replicates.iloc[:0]), lambda law, values: values["E"])) == 1


def test_a_chosen_law_is_kept_with_its_alternatives(chosen: sf.Fit, tmp_path: object) -> None:
    both = with_weight(chosen, 0.3)
    back = sf.load_fit(both.save(f"{tmp_path}/fit.json"))
    assert back.alternatives[0].law == both.alternatives[0].law
    assert back.optimal_size(compute=3e22).params_high == pytest.approx(both.optimal_size(compute=3e22).params_high)
    assert "intervals of predictions and sizes mix coupled 70% with chinchilla 30%" in str(back)
    rival = sf.fit(chosen.runs, "chinchilla", resamples=5)
    again = sf.load_fit(rival.save(f"{tmp_path}/rival.json"))
    assert again.alternatives[0].params == rival.alternatives[0].params


def test_clients_and_skew_are_weighed_by_what_is_held_out() -> None:
    truth = {"E": 0.2, "A": 12.0, "a": 0.3, "B": 300.0, "b": 0.45, "g": 0.6, "s": 0.5, "r": 0.1, "c": 1.4}
    grid = itertools.product([4e3, 1e4, 3e4, 1e5, 3e5], [1e6, 4e6, 1.6e7, 6.4e7], [1.0, 4.0, 16.0], [0.0, 0.5])
    columns = dict(
        zip(("params", "tokens", "clients_per_round", "skew"), map(np.array, zip(*grid, strict=True)), strict=True)
    )
    runs = simulate_runs("federated-coupled", truth, pd.DataFrame(columns), noise=0.01, seed=3)
    found = sf.fit(runs, fixed={"E": 0.2}, resamples=20)
    assert found.law.name == "federated-coupled"
    answer = found.optimal_size(compute=1e14, clients_per_round=4, skew=0.0)
    best = sf.fit(runs, "federated-coupled", fixed={"E": 0.2}, resamples=0, backtest=False)
    assert answer.params == pytest.approx(
        best.optimal_size(compute=1e14, clients_per_round=4, skew=0.0).params, rel=0.02
    )


# -- weights of runs, and the law's own error of a size ----------------------------------------------------------------
def test_the_weight_of_runs_is_chosen_by_what_is_held_out() -> None:
    many = {"params": np.geomspace(1e7, 3e9, 12), "tokens": np.geomspace(5e8, 1e11, 12)}
    truth = {"E": 1.7, "A": 400.0, "a": 0.34, "B": 2000.0, "b": 0.37}
    straight = simulate_runs("chinchilla", truth, many, noise=0.003)
    scale = np.log10(straight["params"] * straight["tokens"] / 5e15)
    bent = straight.assign(loss=straight["loss"] * (1 + 2 * np.exp(-2.1 * scale)))  # small runs lie above the law
    found = sf.fit(bent, "chinchilla", resamples=0)
    assert found.scale_weight == 1.0
    assert "runs weigh by scale^1, as good as" in str(found)
    alike = sf.fit(bent, "chinchilla", scale_weight=0.0, resamples=0)
    assert found.holdout_error < alike.holdout_error
    few = straight.sample(12, random_state=0)  # as good as fewer than ten alike, if they weighed by scale
    assert sf.fit(few, "chinchilla", intervals="bootstrap", resamples=0).scale_weight == 0.0


def test_best_sizes_carry_the_drift_of_the_back_test(chosen: sf.Fit) -> None:
    def ends(fit: sf.Fit, compute: float) -> np.ndarray:
        found = fit.optimal_size(compute=compute)
        return np.log(
            np.array([found.params, found.params_low, found.params_high, found.tokens_low, found.tokens_high])
        )

    alone = replace(chosen, alternatives=(), backtest=replace(chosen.backtest, drift=(0.0, 0.0)))
    moved = replace(alone, backtest=replace(chosen.backtest, drift=(0.2, 0.4)))
    far = 3e23
    best, low, high, *_ = ends(alone, far)
    beyond = np.log10(far / 6 / (3e9 * 1e11))
    wide = ends(moved, far)
    down, up = 1.96 * 0.5 * np.array([0.2, 0.4]) * max(beyond, np.log10(np.exp(best) / 3e9))
    assert wide[0] == best
    assert best - wide[1] == pytest.approx(np.hypot(best - low, down), rel=0.05)
    assert wide[2] - best == pytest.approx(np.hypot(high - best, up), rel=0.05)
    assert wide[4] - wide[3] == pytest.approx(wide[2] - wide[1], rel=1e-2)  # what size gains, tokens lose
    assert np.ptp(ends(moved, 1e19)[1:3]) == pytest.approx(np.ptp(ends(alone, 1e19)[1:3]))  # deep inside the runs
    held = moved.plan(compute=far, params=1e9)
    assert held.params_low == held.params_high == pytest.approx(1e9)
    row = moved.optimal_sizes(compute=[far]).loc[0]
    assert np.log(row[["params_low", "params_high"]].to_numpy(float)) == pytest.approx(wide[1:3])


def test_a_law_that_moves_when_the_largest_runs_go_says_so() -> None:
    runs = simulate_runs("coupled", COUPLED, SIZES, noise=0.003, seed=2)
    right, wrong = (sf.fit(runs, law, resamples=20).backtest for law in ("coupled", "chinchilla"))
    assert 0 < right.drift_aside < wrong.drift_aside
    down, up = wrong.drift
    assert max(down, up) == pytest.approx(2 * min(down, up), rel=0.25)  # it moves one way, and may turn


def test_an_older_fit_has_one_drift_for_all(chosen: sf.Fit, tmp_path: Path) -> None:
    path = chosen.save(tmp_path / "fit.json")
    assert sf.load_fit(path).backtest == chosen.backtest
    content = json.loads(path.read_text())
    del content["backtest"]["drift_aside"]
    content["backtest"]["drift"] = 0.4
    path.write_text(json.dumps(content))
    older = sf.load_fit(path).backtest
    assert older.drift == (0.4, 0.4) and older.drift_aside == 0.4


def test_a_law_of_the_population_has_a_drift_too() -> None:
    """Its best size needs the number of clients, which was left out with the usual cohorts."""
    values = {"E": 0.2, "A": 20.0, "a": 0.42, "B": 900.0, "b": 0.59, "G": 360.0, "d": 0.59, "k": 0.1, "f": 0.45}
    law = "E + A/params^a + B/tokens^b + G*clients^k*clients_per_round^f/tokens^d"
    grid = {"params": [3e3, 1e4, 3e4, 1e5, 3e5], "tokens": [1e6, 4e6, 1.6e7, 6.4e7], "clients": [16, 64],
            "clients_per_round": [1, 4, 16]}  # fmt: skip
    runs = sf.simulate_runs(law, values, grid, noise=0.01, seed=3)
    assert np.isfinite(sf.fit(runs, law, resamples=5).backtest.drift).all()


@pytest.mark.parametrize("bend", [0.0, 0.03])
def test_seeds_tell_their_noise_from_lack_of_fit(bend: float) -> None:
    law = {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37}
    grid = itertools.product(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6), range(4))
    table = pd.DataFrame(list(grid), columns=["params", "tokens", "seed"])
    runs = simulate_runs("chinchilla", law, table, noise=0.01, seed=3)
    off = bend * np.random.default_rng(0).standard_normal(36).repeat(4)
    found = sf.fit(runs.assign(loss=runs["loss"] * np.exp(off)), "chinchilla", resamples=0, backtest=False)
    assert found.seed_noise is not None and found.seed_noise.settings == 36
    assert found.seed_noise.seeds == pytest.approx(0.01, rel=0.15)
    assert found.seed_noise.lack_of_fit == pytest.approx(bend, rel=0.35, abs=0.003)
    assert "seeds of 36 settings" in str(found)
    assert sf.fit(runs.iloc[::4], "chinchilla", resamples=0, backtest=False).seed_noise is None


@pytest.mark.parametrize(
    ("columns", "own", "other", "said"),
    [
        (
            {"clients_per_round": 4.0},
            {"clients_per_round": 4},
            {"clients_per_round": 16},
            "all had 4 clients per round",
        ),
        ({"skew": 0.3}, {"skew": 0.3}, {"skew": 0.9}, "all had a skew of 0.3"),
        ({"skew": 0.0}, {}, {"concentration": 0.1}, "concentration and skew together"),
    ],
)
def test_an_answer_of_a_chosen_law_is_bound_to_a_column_of_one_value(
    columns: dict[str, float], own: dict[str, float], other: dict[str, float], said: str, tmp_path: object
) -> None:
    grid = pd.DataFrame(itertools.product(*SIZES.values()), columns=list(SIZES)).assign(**columns)
    fit = sf.fit(simulate_runs("coupled", COUPLED, grid, noise=0.003), resamples=20)
    back = sf.load_fit(fit.save(f"{tmp_path}/fit.json"))
    assert back.optimal_size(compute=1e21, **own).notes == fit.optimal_size(compute=1e21, **own).notes
    for one in (fit, back):
        with pytest.raises(sf.FitError, match=said):
            one.optimal_size(compute=1e21, **other)


def test_a_law_chosen_for_missing_least_is_taken_to_miss_as_those_beside_it(chosen: sf.Fit) -> None:
    first = chosen.backtest
    other = replace(
        first, discrepancy=7 * first.discrepancy, aside=tuple(7 * one for one in first.aside), drift=(0.0, 0.0)
    )
    both = of_several([first, other])
    assert both.discrepancy == pytest.approx(5 * first.discrepancy) and both.drift == first.drift
    assert both.aside == pytest.approx([5 * one for one in first.aside])
    assert of_several([first]) == first


def test_runs_of_several_populations_choose_the_law_that_knows_them() -> None:
    truth = {"E": 0.2, "A": 22.0, "a": 0.42, "B": 900.0, "b": 0.6, "G": 360.0, "d": 0.59, "k": 0.2, "f": 0.45, "c": 2.2}
    still = dict.fromkeys(("s", "r", "h", "t", "l", "u"), 0.0)
    axes = {"params": [3e3, 1e4, 3e4, 1e5], "tokens": [1e6, 4e6, 1.6e7, 6.4e7], "clients": [16, 128],
            "clients_per_round": [1, 4, 16], "skew": [0.0], "local_steps": [25], "unique_tokens": [1e9]}  # fmt: skip
    runs = sf.simulate_runs("federated-population", truth | still, axes, noise=0.01, seed=3)
    with pytest.warns(sf.FitWarning, match="s and r and h and t cannot be fitted"):
        found = sf.fit(runs.assign(unique_tokens=1e9), fixed={"E": 0.2}, resamples=0)
    assert found.law.name == "federated-population" and found.params["k"] == pytest.approx(0.2, abs=0.02)
    assert {"skew", "local_steps"} <= set(found.ranges.bound)
    few, many = (found.optimal_size(compute=1e13, clients_per_round=4, clients=clients).loss for clients in (16, 128))
    assert many > 1.05 * few


def test_skewed_clients_of_several_populations_choose_the_law_in_which_both_meet() -> None:
    truth = {"E": 0.2, "A": 22.0, "a": 0.42, "B": 900.0, "b": 0.6, "G": 360.0, "d": 0.59, "k": 0.1, "f": 0.45, "c": 2.2,
             "s": -1.0, "r": 0.1, "h": 0.1, "t": 0.2, "l": 0.0, "u": 0.12}  # fmt: skip
    axes = {"params": [3e3, 1e4, 3e4, 1e5], "tokens": [1e6, 4e6, 1.6e7, 6.4e7], "clients": [16, 512],
            "clients_per_round": [1, 4, 16], "skew": [0.0, 0.8], "local_steps": [25]}  # fmt: skip
    runs = sf.simulate_runs("federated-population", truth, axes, noise=0.01, seed=3).assign(unique_tokens=1e9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sf.fit(runs, fixed={"E": 0.2}, resamples=0)
    assert found.law.name == "federated-population" and found.params["u"] == pytest.approx(0.12, abs=0.03)
    asked = {"compute": 1e13, "clients_per_round": 4, "skew": 0.8}
    few, many = (found.optimal_size(**asked, clients=clients).loss for clients in (16, 512))
    alike = [found.optimal_size(**{**asked, "skew": 0.0}, clients=clients).loss for clients in (16, 512)]
    assert many / few > 1.02 * alike[1] / alike[0]
