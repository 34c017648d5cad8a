"""Fitting runs: recovery, input of every kind, refusals, statuses, predictions, saving."""

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from law_truths import NAMES, OF_OWN_COLUMNS, TRUTHS

from scalefed.errors import ConfigError, DataError, FitError, FitWarning, RunLogWarning
from scalefed.fitting.data import hash_runs
from scalefed.fitting.fit import Fit, fit, load_fit
from scalefed.fitting.status import Certificate, FitStatus, judge
from scalefed.laws import LAWS, Law
from scalefed.laws.simulate import simulate_runs

COMMON = [name for name in NAMES if name not in OF_OWN_COLUMNS]
TRUTH = TRUTHS["chinchilla"]
GRID = {"params": [1e7, 4e7, 2e8, 1e9], "tokens": [5e8, 4e9, 3e10, 2e11]}
FEDERATED = {"params": [1e7, 1e8, 1e9], "tokens": [1e9, 1e10, 1e11], "clients_per_round": [1, 4, 16]}
FULL = {
    "params": [1e7, 4e7, 2e8, 1e9], "tokens": [5e8, 4e9, 3e10], "clients_per_round": [1, 4, 16], "skew": [0.0, 0.5],
    "local_steps": [10, 50], "unique_tokens": [2e8, 1e10], "clients": [16, 64], "rounds": [100.0, 1000.0],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return simulate_runs("chinchilla", TRUTH, GRID, noise=0.01, seed=1)


@pytest.fixture(scope="module")
def fitted(runs: pd.DataFrame) -> Fit:
    return fit(runs, "chinchilla", resamples=200)


# -- recovery --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", COMMON)
def test_the_truth_comes_back_without_noise(name: str) -> None:
    law = LAWS[name]
    runs = simulate_runs(law, TRUTHS[name], {c: FULL[c] for c in law.columns})
    found = fit(runs, law, resamples=0, backtest=False)
    assert found.params == pytest.approx(TRUTHS[name], rel=1e-6)
    assert found.status is FitStatus.CONVERGED, found.message
    assert found.certificate.objective < 1e-20


def test_order_of_rows_does_not_matter(runs: pd.DataFrame, fitted: Fit) -> None:
    shuffled = fit(runs.sample(frac=1.0, random_state=3), "chinchilla", resamples=0)
    assert shuffled.params == pytest.approx(fitted.params, rel=1e-6)
    assert shuffled.runs_hash == fitted.runs_hash


def test_a_formula_fits_like_the_named_law(runs: pd.DataFrame, fitted: Fit) -> None:
    own = fit(runs, "E + A*params^-a + B*tokens^-b", resamples=0)
    assert own.params == pytest.approx(fitted.params, rel=1e-6)


def test_fixed_shared_and_bounded_parameters(runs: pd.DataFrame) -> None:
    held = fit(runs, "chinchilla", fixed={"E": 1.8}, ties={"b": "a"}, bounds={"a": (0.1, 0.6)}, resamples=20)
    assert held.params["E"] == 1.8
    assert "b" not in held.params
    assert held.summary().loc["E", ["std_error", "low", "high"]].tolist() == [0.0, 1.8, 1.8]


def test_huber_ignores_an_outlier_that_least_squares_follows(runs: pd.DataFrame) -> None:
    spoiled = runs.copy()
    spoiled.loc[3, "loss"] *= 1.5
    huber_delta = fit(spoiled, "chinchilla", huber_delta=1e-3, resamples=0, backtest=False)
    plain = fit(spoiled, "chinchilla", huber_delta=None, resamples=0, backtest=False)
    clean = fit(runs, "chinchilla", resamples=0, backtest=False)
    assert abs(huber_delta.params["a"] - clean.params["a"]) < 0.2 * abs(plain.params["a"] - clean.params["a"])


def test_the_width_can_be_taken_from_the_runs() -> None:
    grid = {"params": np.geomspace(1e7, 1e9, 8), "tokens": np.geomspace(5e8, 5e10, 8)}
    runs = simulate_runs("chinchilla", TRUTH, grid, noise=0.01)
    assert fit(runs, "chinchilla", huber_delta="auto", resamples=0).huber_delta == pytest.approx(0.01345, rel=0.35)


# -- input -----------------------------------------------------------------------------------------------------------
def test_input_of_every_kind_gives_one_answer(runs: pd.DataFrame, tmp_path: Path) -> None:
    fitted = fit(runs, "chinchilla", resamples=0, backtest=False)
    runs.to_csv(tmp_path / "runs.csv", index=False)
    runs.to_parquet(tmp_path / "runs.parquet")
    runs.to_json(tmp_path / "runs.jsonl", orient="records", lines=True, double_precision=15)
    renamed = runs.rename(columns={"params": "N", "tokens": "D"})
    for source in (tmp_path / "runs.csv", str(tmp_path / "runs.parquet"), tmp_path / "runs.jsonl"):
        assert fit(source, "chinchilla", resamples=0, backtest=False).params == pytest.approx(fitted.params, rel=1e-6)
    other = fit(renamed, "chinchilla", columns={"params": "N", "tokens": "D"}, resamples=0, backtest=False)
    assert other.params == pytest.approx(fitted.params, rel=1e-9)
    table = {c: runs[c].to_list() for c in ("params", "tokens", "loss")}
    for given in (table, pd.DataFrame(table).to_dict("records")):
        assert fit(given, "chinchilla", resamples=0, backtest=False).params == pytest.approx(fitted.params, rel=1e-9)
    assert list(renamed.columns) == [{"params": "N", "tokens": "D"}.get(c, c) for c in runs.columns]


def test_unusable_rows_are_left_out_and_counted(runs: pd.DataFrame) -> None:
    spoiled = runs.assign(status="completed")
    spoiled.loc[0, "loss"] = np.nan
    spoiled.loc[1, "loss"] = np.inf
    spoiled.loc[2, "loss"] = -1.0
    spoiled.loc[3, "status"] = "diverged"
    spoiled.loc[4, "params"] = 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = fit(spoiled, "chinchilla", resamples=0, backtest=False)
    assert {w.category for w in caught} == {FitWarning}
    words = " ".join(str(w.message) for w in caught)
    assert "3 of 16 rows left out: loss" in words
    assert "1 of 16 rows left out: status diverged" in words
    assert "1 of 16 rows left out: params" in words
    assert len(found.run_ids) == 11
    assert len(found.notes) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.drop(columns="loss"), "no column 'loss'"),
        (lambda r: r.drop(columns=["tokens", "compute"], errors="ignore"), "no column 'tokens'"),
        (lambda r: r.iloc[:1], "only one run is left"),
        (lambda r: r.assign(loss=np.nan), "no run is left"),
        (lambda r: r.assign(params="big"), "must hold numbers"),
        (lambda r: [1, 2, 3], "must be a DataFrame"),
        (lambda r: r.assign(loss=2.0), "loss is 2 in each of 16 unlike runs"),
        (lambda r: r.assign(participation=20.0), "participation must be above 0 and at most 1, got 20"),
        (lambda r: r.assign(skew=50.0), "skew must be from 0 to 1, got 50"),
        (lambda r: r.assign(clients_per_round=20, clients=10), "20 is more than clients 10"),
        (lambda r: r.assign(params=r["params"] / 1e6, tokens=r["tokens"] * 10), "in millions or billions"),
        (lambda r: r.iloc[:0], "no run is left"),
    ],
)
@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
def test_runs_that_cannot_be_used_are_refused(runs: pd.DataFrame, change: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit(change(runs), "chinchilla")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"huber_delta": 0.0}, "positive number"),
        ({"huber_delta": "huge"}, "'auto'"),
        ({"resamples": -1}, "at least 0"),
        ({"resamples": 2.5}, "integer"),
        ({"law": "chinchila"}, "did you mean 'chinchilla'"),
        ({"law": "CHINCHILLA"}, "did you mean 'chinchilla'"),
        ({"law": "E + A/sqrt(params)"}, r"write \^0.5 for a root"),
        ({"fixed": {"q": 1.0}}, "no parameter 'q'"),
        ({"scale_weight": 9.0}, "between 0"),
        ({"intervals": "wild"}, "auto, bootstrap, exchange, pairs"),
    ],
)
def test_wrong_arguments_are_named(runs: pd.DataFrame, keywords: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fit(runs, **{"law": "chinchilla", **keywords})  # type: ignore[arg-type]


@pytest.mark.parametrize("law", ["E + A/(params-2e7)^a", "E + A/params^a + B/(tokens-5e8)^b", "E + B/(tokens-Q)^b"])
@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
def test_a_law_without_a_value_at_every_run_is_refused(runs: pd.DataFrame, law: str) -> None:
    with pytest.raises(FitError, match="no finite value at .* of 16 runs, the first with params|tokens"):
        fit(runs, law, resamples=20)


def test_bounds_keep_what_is_subtracted_below_every_run(runs: pd.DataFrame) -> None:
    with pytest.warns(FitWarning):
        found = fit(runs, "E + A/params^a + B/(tokens-Q)^b", bounds={"Q": (1.0, 4e8)}, resamples=20)
    assert np.isfinite(found.predict(params=1e8, tokens=1e10)).all(axis=None)


@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_law_of_one_term_is_held_against_a_rival_that_knows_no_budgets(runs: pd.DataFrame) -> None:
    found = fit(runs, "E + A/(params^a*tokens^b)", resamples=40)
    assert [one.law.name for one in found.alternatives] == ["rival of custom"]
    with pytest.raises(FitError, match="nothing holds the best size"):
        found.optimal_size(compute=1e19)


def test_another_loss_that_looks_held_out_is_pointed_out(runs: pd.DataFrame) -> None:
    both = runs.assign(val_loss=2 * runs["loss"])
    with pytest.warns(FitWarning, match="loss is fitted, not val_loss"):
        fit(both, "chinchilla", resamples=0, backtest=False)
    named = fit(both, "chinchilla", columns={"loss": "val_loss"}, resamples=0, backtest=False)
    assert not named.notes
    plain = fit(runs, "chinchilla", resamples=0, backtest=False)
    assert named.params["E"] == pytest.approx(2 * plain.params["E"], rel=1e-4)


def test_a_wrong_rename_is_named(runs: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="no column 'N' for params"):
        fit(runs, "chinchilla", columns={"params": "N"})


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_file_may_name_every_column_its_own_way(tmp_path: Path, suffix: str) -> None:
    """Foreign names for the run log's columns, for a law's own columns, and for the target."""
    table = simulate_runs("chinchilla", TRUTHS["chinchilla"], {c: FULL[c] for c in ("params", "tokens")})
    foreign = pd.DataFrame({"N": table["params"], "D": table["tokens"], "L": table["loss"]})
    path = tmp_path / f"mine{suffix}"
    if suffix == ".csv":
        foreign.to_csv(path, index=False)
    elif suffix == ".parquet":
        foreign.to_parquet(path)
    else:
        foreign.to_json(path, orient="records", lines=True)
    law = Law.parse("E + A/width^a + B/length^b", columns=("width", "length"))
    ways = (
        ("chinchilla", "loss", {"params": "N", "tokens": "D", "loss": "L"}),
        ("chinchilla", "bits", {"params": "N", "tokens": "D", "bits": "L"}),
        (law, "loss", {"width": "N", "length": "D", "loss": "L"}),
        (law, "bits", {"width": "N", "length": "D", "bits": "L"}),
    )
    for wanted, target, columns in ways:
        found = fit(path, wanted, target=target, columns=columns, resamples=0, backtest=False)
        assert found.params == pytest.approx(TRUTHS["chinchilla"], rel=1e-6)
    with pytest.raises(DataError, match="'W'"):
        fit(path, law, columns={"width": "W", "length": "D", "bits": "L"}, target="bits", resamples=0)


def test_the_federated_law_works_without_skew() -> None:
    truth = {p: v for p, v in TRUTHS["federated"].items() if p != "s"}
    runs = simulate_runs(LAWS["federated"].with_(fixed={"s": 0.0}), truth, FEDERATED)
    for frame, words in (
        (runs, "the runs have no skew, so s"),
        (runs.assign(skew=0.0), "skew is 0 in every run"),
        (runs.assign(skew=np.nan), "the runs have no skew"),
    ):
        with pytest.warns(FitWarning, match=words):
            found = fit(frame, "federated", resamples=0, backtest=False)
        assert found.params == pytest.approx({**truth, "s": 0.0}, rel=1e-6)
        assert found.status is FitStatus.CONVERGED
        assert found.predict(params=1e9, tokens=1e10, clients_per_round=4).shape == (1, 3)


def test_a_million_rows_are_fitted() -> None:
    generator = np.random.default_rng(0)
    size = 1_000_000
    frame = pd.DataFrame(
        {"params": 10 ** generator.uniform(6, 10, size), "tokens": 10 ** generator.uniform(8, 12, size)}
    )
    frame["loss"] = LAWS["chinchilla"].predict(TRUTH, frame) * np.exp(0.02 * generator.standard_normal(size))
    found = fit(frame, "chinchilla", huber_delta=0.02, resamples=200)
    assert found.params == pytest.approx(TRUTH, rel=0.02)
    table = found.summary()
    assert (table["std_error"] < 0.01 * table["estimate"]).all()
    assert (np.abs(table["estimate"] - pd.Series(TRUTH)) < 4 * table["std_error"]).all()


# -- what cannot be told ---------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
@pytest.mark.parametrize(
    ("frame", "law", "words"),
    [
        ({"params": np.geomspace(1e7, 1e10, 12), "ratio": 20.0}, "chinchilla", "tokens is about 20 times params"),
        ({"params": [1e8, 1e9], "tokens": [1e9, 1e10]}, "chinchilla", "add at least 1 run at other settings"),
        ({"params": [1e8, 1e9], "tokens": [1e9, 4e9, 1e10, 1e11]}, "chinchilla", "a third params"),
        ({"params": [1e7, 1e8, 1e9], "tokens": [1e10]}, "chinchilla", "tokens is 1e10 in every run"),
        ({**FEDERATED, "clients_per_round": [4]}, "federated", "clients_per_round is 4 in every run, so g"),
        ({"params": [1e8], "tokens": [1e9, 1e10, 1e11, 1e12]}, "chinchilla", "params is 100,000,000 in every run"),
    ],
)
def test_a_design_that_cannot_tell_is_named_and_refused(frame: dict[str, object], law: str, words: str) -> None:
    truth = {p: v for p, v in TRUTHS[law].items() if p != "s"}
    model = LAWS[law].with_(fixed={"s": 0.0}) if law == "federated" else LAWS[law]
    if "ratio" in frame:
        table = pd.DataFrame({"params": frame["params"]})
        table["tokens"] = table["params"] * frame["ratio"]
        runs = simulate_runs(model, truth, table, noise=0.003)
    else:
        runs = simulate_runs(model, truth, frame, noise=0.003)
    found = fit(runs, law, resamples=50, backtest=False, intervals="bootstrap")
    assert found.status is FitStatus.NOT_IDENTIFIED
    assert pd.Series([found.message]).str.contains(words).all(), found.message
    for question, words in ((found.optimal_size, "compute"), (found.plan, "compute"), (found.least_compute, "loss")):
        with pytest.raises(FitError, match="cannot determine"):
            question(**{words: 1e21})


def test_a_sound_design_is_not_refused(fitted: Fit) -> None:
    assert fitted.status is FitStatus.CONVERGED
    assert fitted.message == FitStatus.CONVERGED.value


@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
def test_a_bound_is_named_with_its_parameter(runs: pd.DataFrame) -> None:
    found = fit(runs, "chinchilla", bounds={"a": (0.6, 0.9)}, resamples=20, backtest=False)
    assert found.status is FitStatus.BOUND_HIT
    assert "a is at its lower bound: 0.6" in found.message
    assert found.certificate.bounds_hit == {"a": "at its lower bound: 0.6"}
    assert found.certificate.replicates_at_bounds["a"] > 0.3


@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
def test_a_missing_floor_is_told() -> None:
    runs = simulate_runs(
        "diloco", TRUTHS["diloco"], {"params": np.geomspace(1e7, 1e10, 6), "clients_per_round": [1, 2, 4]}
    )
    found = fit(runs, "diloco-offset", resamples=20, backtest=False)
    assert found.status is FitStatus.BOUND_HIT
    assert "the runs show no floor" in found.message


GOOD = Certificate(1e-3, 1e-12, True, 16, 1.0, 100, 0, {}, {}, "A and a", 0.1)


@pytest.mark.parametrize(
    ("change", "gaps", "status", "words"),
    [
        ({"loose_error": 5.0}, (), FitStatus.LOOSE, "the combination of A and a loose"),
        ({}, (), FitStatus.CONVERGED, "nothing speaks against it"),
        ({"replicates_not_converged": 7}, (), FitStatus.REPLICATES_NOT_CONVERGED, "7 of 100"),
        ({"agreeing": 0.01}, (), FitStatus.STARTS_DISAGREE, "1.0% of 16 starts"),
        ({"bounds_hit": {"b": "at its upper bound: 5"}}, (), FitStatus.BOUND_HIT, "b is at its upper bound: 5"),
        ({"converged": False, "decrement": 1e-3}, (), FitStatus.NOT_CONVERGED, "0.001"),
        ({"agreeing": 0.01}, ("g is loose",), FitStatus.NOT_IDENTIFIED, "g is loose"),
    ],
)
def test_every_status_is_a_sentence(
    change: dict[str, object], gaps: tuple[str, ...], status: FitStatus, words: str
) -> None:
    verdict = judge(dataclasses.replace(GOOD, **change), gaps, spare=1)  # type: ignore[arg-type]
    assert verdict.status is status
    assert words in verdict.message
    assert status.value.endswith(".")


@pytest.mark.filterwarnings("ignore:Some parameters are loose")
def test_without_a_spare_run_there_is_no_interval() -> None:
    runs = simulate_runs(
        "E + A/params^a", {"E": 1.8, "A": 30.0, "a": 0.3}, {"params": [1e7, 1e8, 1e9, 1e10]}, noise=0.01
    )
    with pytest.warns(FitWarning, match="no more different settings than free parameters"):
        found = fit(runs[:3], "E + A/params^a", resamples=20)
    assert found.status is FitStatus.NO_SPARE_RUN and not len(found.replicates) and np.isnan(found.noise)
    assert found.summary()["low"].isna().all()
    assert found.predict(params=1e12)[["low", "high"]].isna().all(axis=None)
    assert "noise unknown" in str(found)
    full = fit(runs, "E + A/params^a", intervals="bootstrap", resamples=20)
    assert full.status is not FitStatus.NO_SPARE_RUN and len(full.replicates) == 20


@pytest.mark.filterwarnings("ignore:Some parameters are loose")
def test_settings_that_are_repeated_are_no_spare_runs() -> None:
    law = "E + A/params^a"
    runs = simulate_runs(law, {"E": 1.8, "A": 30.0, "a": 0.3}, {"params": [1e7, 1e8, 1e9]}, noise=0.01)
    again = pd.concat([runs, runs, runs], ignore_index=True)
    again["run_id"] = [f"run {i}" for i in range(len(again))]
    again["loss"] *= np.exp(1e-9 * np.arange(len(again)))
    with pytest.warns(FitWarning, match="no more different settings than free parameters"):
        found = fit(again, law, resamples=20)
    assert found.status is FitStatus.NO_SPARE_RUN and found.summary()["low"].isna().all()


def test_a_few_wild_amplitudes_do_not_decide_their_standard_error(runs: pd.DataFrame) -> None:
    found = fit(runs, "chinchilla", resamples=20)
    wild = found.replicates.copy()
    wild.loc[0, "A"] = 1e30 * found.params["A"]
    error = dataclasses.replace(found, replicates=wild).summary().loc["A", "std_error"]
    assert error < 100 * found.params["A"]


def test_exact_copies_count_once(runs: pd.DataFrame) -> None:
    noisy = runs.assign(loss=runs["loss"] * np.exp(0.01 * np.random.default_rng(1).standard_normal(len(runs))))
    with pytest.warns(
        FitWarning, match=f"{len(runs)} of {2 * len(runs)} rows are exact copies of others: counted once"
    ):
        twice = fit(pd.concat([noisy, noisy]), "chinchilla", resamples=50)
    once = fit(noisy, "chinchilla", resamples=50)
    pd.testing.assert_frame_equal(twice.summary(), once.summary())
    with pytest.warns(FitWarning, match="are exact copies of others: counted once"):
        named = pd.concat([noisy.assign(run_name="first"), noisy.assign(run_name="second")])
        renamed = fit(named.assign(run_id=[f"run-{i}" for i in range(len(named))]), "chinchilla", resamples=50)
    pd.testing.assert_frame_equal(renamed.summary(), once.summary())
    seeds = pd.concat([noisy.assign(seed=1), noisy.assign(seed=2)])
    assert len(fit(seeds, "chinchilla", resamples=0, backtest=False).runs) == 2 * len(runs)


@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
def test_checkpoints_of_a_run_are_found_by_its_name(runs: pd.DataFrame) -> None:
    noisy = runs.assign(loss=runs["loss"] * np.exp(0.01 * np.random.default_rng(1).standard_normal(len(runs))))
    named = noisy.assign(run_name=noisy["params"].map("ladder-{:g}".format))
    found = fit(named, "chinchilla", resamples=20, backtest=False)
    assert found.cluster == "run_name" and "rows of one run_name are resampled together" in found.notes[0]
    asked = fit(noisy.assign(ladder=named["run_name"]), "chinchilla", cluster="ladder", resamples=20, backtest=False)
    pd.testing.assert_frame_equal(found.replicates, asked.replicates)
    kinds = noisy.assign(run_name="decoder")  # all sizes have one: it names no runs
    assert fit(kinds, "chinchilla", resamples=0, backtest=False).cluster is None


def test_rank_is_judged_at_the_optimum() -> None:
    tokens = np.geomspace(1e9, 1e12, 25)
    loss = 1.2 + 30 * tokens**-0.1 * (1 + (tokens / 3e10) ** 1.5) ** -0.2
    found = fit({"tokens": tokens, "loss": loss}, "E + A*tokens^-a*(1+(tokens/d)^g)^-h", resamples=20, backtest=False)
    assert found.status is FitStatus.CONVERGED and found.params["h"] == pytest.approx(0.2, rel=1e-6)


@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
def test_the_width_of_what_is_asked_decides_whether_it_is_answered(tmp_path: Path) -> None:
    runs = simulate_runs(
        "chinchilla", TRUTH, {"params": [1e8, 3e8, 1e9], "tokens": [2e9, 6e9, 2e10]}, noise=0.004, seed=2
    )
    found = fit(runs, "chinchilla", resamples=200, intervals="bootstrap")
    assert found.status is FitStatus.LOOSE and not found.undetermined
    near = found.optimal_size(compute=3e19)
    assert near.params_high < 10 * near.params_low
    with pytest.raises(FitError, match="interval, .* wider than a factor of 10.*next_runs"):
        found.optimal_size(compute=1e26)
    with pytest.raises(FitError, match="any of these best sizes"):
        found.optimal_sizes(compute=[1e26, 1e27])
    assert len(found.optimal_sizes(compute=[3e19, 1e26])) == 2


def test_every_status_can_be_told_apart() -> None:
    assert [s.severity for s in FitStatus] == list(range(len(FitStatus)))


# -- what it says ----------------------------------------------------------------------------------------------------
def test_summary_holds_estimate_error_and_interval(fitted: Fit) -> None:
    table = fitted.summary()
    assert list(table.columns) == ["estimate", "std_error", "low", "high"]
    assert list(table.index) == list(fitted.law.parameters)
    assert ((table["low"] <= table["estimate"]) & (table["estimate"] <= table["high"])).all()
    wide = fitted.summary(level=0.99)
    assert (wide["high"] - wide["low"] >= table["high"] - table["low"]).all()


def test_predictions_carry_bands_that_widen_beyond_the_runs(fitted: Fit, runs: pd.DataFrame) -> None:
    inside = fitted.predict(runs)
    assert list(inside.columns) == ["estimate", "low", "high"]
    covered = (inside["low"] <= runs["loss"]) & (runs["loss"] <= inside["high"])
    assert covered.mean() >= 0.75
    ahead = fitted.predict(params=[1e9, 1e10, 1e11], tokens=[2e11, 2e12, 2e13], parts=True)
    assert ahead["distance"].round(6).tolist() == [0.0, 2.0, 4.0]
    relative = (ahead["high"] - ahead["low"]) / ahead["estimate"]
    assert (np.diff(relative) > 0).all()
    assert ahead["model"].iloc[0] == 0.0 and (ahead[["parameter", "noise"]] > 0).all(axis=None)
    narrow = fitted.predict(params=1e10, tokens=2e12, level=0.5)
    assert narrow["high"].iloc[0] < ahead["high"].iloc[1]


def test_bands_have_no_step_at_the_edge_of_the_runs(fitted: Fit, runs: pd.DataFrame) -> None:
    edge, tokens = float(runs["params"].max()), float(runs["tokens"].max())
    rival = dataclasses.replace(fitted.alternatives[0], params={**fitted.params, "rival_power": 1.5})
    doubted = dataclasses.replace(fitted, alternatives=(rival,))
    band = doubted.predict(params=edge * np.array([0.999, 1.001, 2.0]), tokens=tokens, parts=True)
    assert (band["distance"] > 0).tolist() == [False, True, True]
    assert band["model"].iloc[2] > 0.02
    assert 0 < band["model"].iloc[1] < 0.05 * band["model"].iloc[2]


def test_predict_names_what_is_missing(fitted: Fit) -> None:
    with pytest.raises(DataError, match="needs the column tokens"):
        fitted.predict(params=1e9)
    with pytest.raises(ConfigError, match="level must be between"):
        fitted.predict(params=1e9, tokens=1e9, level=95)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"skew": 5.0, "clients_per_round": 4}, "skew must be from 0 to 1, got 5"),
        ({"skew": [0.1, -0.1], "clients_per_round": 4}, "skew must be from 0 to 1, got -0.1"),
        ({"skew": 0.1, "clients_per_round": [4, 20], "clients": 16}, "clients_per_round 20 is more than clients 16"),
    ],
)
@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
def test_no_loss_is_predicted_of_what_cannot_be(words: dict[str, object], message: str) -> None:
    runs = simulate_runs("federated", TRUTHS["federated"], {**FEDERATED, "skew": [0.0, 0.5]}, noise=0.01)
    found = fit(runs, "federated", resamples=10, backtest=False)
    with pytest.raises(DataError, match=message):
        found.predict(params=1e8, tokens=1e9, **words)


def test_a_fit_prints_equation_parameters_runs_status_and_error(fitted: Fit) -> None:
    text = str(fitted)
    for words in ("loss = E + A/params^a + B/tokens^b", "std_error", "16 runs", "status: converged", "held-out error"):
        assert words in text
    assert f"{fitted.params['E']:.4g} + {fitted.params['A']:.4g}/params^" in text
    page = fitted._repr_html_()
    assert "<table" in page and "16 runs" in page
    assert "chinchilla" in repr(fitted)


def test_a_fit_cannot_be_changed(fitted: Fit) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        fitted.seed = 3  # type: ignore[misc]


def test_holdout_error_is_measured_on_the_largest_runs(fitted: Fit) -> None:
    assert fitted.backtest.folds >= 1
    assert 0.0 < fitted.holdout_error < 0.05
    too_few = fit(simulate_runs("chinchilla", TRUTH, {**GRID, "tokens": [5e8, 4e9]}), "chinchilla", resamples=0,
                  fixed={"E": 1.8, "b": 0.37, "B": 2100.0, "a": 0.35}, backtest=False)  # fmt: skip
    assert np.isnan(too_few.holdout_error)


def test_checkpoints_of_a_run_stay_together() -> None:
    rows = simulate_runs(
        "chinchilla", TRUTH, {"params": np.geomspace(1e7, 1e9, 7), "tokens": np.geomspace(5e8, 5e10, 8)}
    )
    run = np.repeat(np.arange(7), 8)
    effect = 0.01 * np.random.default_rng(0).standard_normal(7)[run]
    rows["loss"] *= np.exp(effect)
    alone = fit(rows, "chinchilla", huber_delta=None, resamples=300, intervals="exchange")
    rows["run_id"] = [f"run-{i}" for i in run]
    together = fit(rows, "chinchilla", huber_delta=None, resamples=300, intervals="exchange")
    assert together.params == pytest.approx(alone.params, rel=1e-9)
    assert together.summary().loc["a", "std_error"] > 1.3 * alone.summary().loc["a", "std_error"]
    named = fit(rows.rename(columns={"run_id": "trial"}), "chinchilla", huber_delta=None, resamples=300,
                cluster="trial",
                intervals="exchange")  # fmt: skip
    assert named.summary().loc["a", "std_error"] == pytest.approx(together.summary().loc["a", "std_error"], rel=1e-9)


def test_focus_follows_the_large_runs() -> None:
    runs = simulate_runs(
        "chinchilla", TRUTH, {"params": np.geomspace(1e6, 1e9, 7), "tokens": np.geomspace(1e8, 1e11, 7)}
    )
    small = runs["compute"] < 1e17
    runs.loc[small, "loss"] *= 1.0 + 0.05 * np.log10(1e17 / runs.loc[small, "compute"])
    ahead = {"params": 1e10, "tokens": 1e12}
    truth = float(LAWS["chinchilla"].predict(TRUTH, ahead))
    errors = [
        abs(
            fit(runs, "chinchilla", huber_delta=None, scale_weight=f, resamples=0, backtest=False)
            .predict(ahead_frame(ahead))["estimate"]
            .iloc[0]
            / truth
            - 1
        )
        for f in (0.0, 1.0)
    ]
    assert errors[1] < 0.5 * errors[0]


def ahead_frame(columns: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame({k: [v] for k, v in columns.items()})


# -- kept ------------------------------------------------------------------------------------------------------------
def test_a_saved_fit_answers_as_before(fitted: Fit, tmp_path: Path) -> None:
    path = fitted.save(tmp_path / "fits" / "chinchilla.json")
    again = load_fit(path)
    assert again.params == fitted.params
    assert again.status is fitted.status and again.message == fitted.message
    assert again.certificate == fitted.certificate and again.backtest == fitted.backtest
    assert again.run_ids == fitted.run_ids and again.runs_hash == fitted.runs_hash
    ahead = {"params": [1e8, 1e11], "tokens": [1e9, 1e13]}
    pd.testing.assert_frame_equal(again.predict(ahead), fitted.predict(ahead), rtol=1e-9)
    pd.testing.assert_frame_equal(again.summary(), fitted.summary(), rtol=1e-9)
    assert str(again) == str(fitted)


def test_a_stored_fit_is_lean(fitted: Fit, tmp_path: Path) -> None:
    """One line an array, one value for a column that is the same in every run, nothing of a run's time and machine."""
    told = {"algorithm": "fedavg", "wall_s": 1.5, "commit": "abc", "mine": [[1]] * len(fitted.runs)}
    timed = dataclasses.replace(fitted, runs=fitted.runs.assign(**told))
    timed.save(tmp_path / "fit.json")
    stored = json.loads((tmp_path / "fit.json").read_text())["runs"]
    assert stored["algorithm"] == "fedavg" and stored["commit"] == "abc" and not {"wall_s", "mine"} & stored.keys()
    assert len((tmp_path / "fit.json").read_text().splitlines()) < 400
    back = load_fit(tmp_path / "fit.json").runs
    assert back["algorithm"].tolist() == ["fedavg"] * len(fitted.runs)
    assert back["loss"].tolist() == pytest.approx(fitted.runs["loss"].tolist(), rel=1e-14)


def test_a_saved_fit_keeps_its_own_law(runs: pd.DataFrame, tmp_path: Path) -> None:
    law = Law.parse("E + A/params^a + B/width^b", name="mine", columns=("width",), bounds={"a": (None, 2.0)})
    frame = runs.rename(columns={"tokens": "width"})
    found = fit(frame, law, fixed={"E": 1.8}, resamples=5, backtest=False)
    again = load_fit(found.save(tmp_path / "mine.json"))
    assert again.law == found.law
    assert again.predict(params=1e8, width=1e9)["estimate"].iloc[0] == pytest.approx(
        found.predict(params=1e8, width=1e9)["estimate"].iloc[0], rel=1e-12
    )


def test_loading_warns_when_the_runs_have_changed(runs: pd.DataFrame, tmp_path: Path) -> None:
    runs.to_csv(tmp_path / "runs.csv", index=False)
    path = fit(tmp_path / "runs.csv", "chinchilla", resamples=5, backtest=False).save(tmp_path / "fit.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_fit(path)
    changed = runs.copy()
    changed.loc[0, "loss"] += 0.001
    changed.to_csv(tmp_path / "runs.csv", index=False)
    with pytest.warns(RunLogWarning, match="have changed since fit.json"):
        load_fit(path)


def test_what_is_no_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no fit at"):
        load_fit(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not a saved fit"):
        load_fit(tmp_path / "broken.json")
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}), encoding="utf-8")
    with pytest.raises(DataError, match="JSON but not a saved fit"):
        load_fit(tmp_path / "other.json")


def test_the_hash_sees_a_changed_number_and_no_order(runs: pd.DataFrame) -> None:
    columns = ("params", "tokens")
    base = hash_runs(runs, columns, "loss")
    assert hash_runs(runs.iloc[::-1], columns, "loss") == base
    changed = runs.copy()
    changed.loc[5, "loss"] *= 1 + 1e-12
    assert hash_runs(changed, columns, "loss") != base


def test_the_same_seed_gives_the_same_replicates(runs: pd.DataFrame) -> None:
    one, two, other = (fit(runs, "chinchilla", resamples=20, seed=s, backtest=False) for s in (4, 4, 5))
    pd.testing.assert_frame_equal(one.replicates, two.replicates)
    assert not np.allclose(one.replicates, other.replicates)
