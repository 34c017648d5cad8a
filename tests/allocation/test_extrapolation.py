"""No word of a question is dropped, and no answer goes outside the runs without saying so."""

import inspect
import itertools
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scalefed as sf
from scalefed.allocation.answers import distance
from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.extrapolation import Ranges, column_of, look, ranges_of
from scalefed.allocation.optimum import minimise
from scalefed.downstream.link import EXAMPLE, Link
from scalefed.errors import FitError, FitWarning, ScalefedError
from scalefed.fitting.result import Fit
from scalefed.laws import LAWS, Law
from scalefed.laws.simulate import simulate_runs

TRUTH = {"E": 0.35, "A": 6.0, "a": 0.34, "B": 200.0, "b": 0.42, "g": 0.5, "s": 1.2}


def made(skews=(0.0, 0.3, 0.6), cohorts=(1, 4, 16), **settings):
    """A fit of the law federated to runs of 16 clients that follow it and read their text once."""
    rows = []
    for params, tokens, cohort, skew in itertools.product((3e3, 3e4, 3e5), (1e6, 1e7, 1e8), cohorts, skews):
        row = {"params": params, "tokens": tokens, "clients": 16, "clients_per_round": cohort, "skew": skew}
        row |= {"concentration": {0.0: np.inf, 0.3: 0.3, 0.6: 0.1}[skew], "local_steps": 25, "batch_size": 4}
        row |= {"sequence_length": 128, "unique_tokens": tokens, "epochs": 1.0, "rounds": tokens / (cohort * 12_800)}
        row |= {
            "params_total": params + 8_000,
            "params_trained": params + 8_000,
            "compute_exact": 6.5 * params * tokens,
        }
        row |= {"inner_state": "keep", "data": "micro", "dropout": 0.0}
        rows.append(row | settings)
    law = LAWS["federated"] if len(skews) > 1 else LAWS["federated"].with_(fixed={"s": 0.0})
    truth = TRUTH if len(skews) > 1 else {name: value for name, value in TRUTH.items() if name != "s"}
    frame = simulate_runs(law, truth, pd.DataFrame(rows), noise=0.005, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return sf.fit(frame, "federated", huber_delta=1e-3, scale_weight=0.0, resamples=40)


@pytest.fixture(scope="module")
def fit() -> Fit:
    return made().with_link(Link.from_json(EXAMPLE))


BASE = {"clients": 16, "clients_per_round": 4, "skew": 0.1, "local_steps": 25, "batch_tokens": 512}
MEMORY = {"memory": 1e7, "vocab": 512}
SPEEDS = {"flops_per_second": 1e9, "bandwidth": 1e5}
LIMITS = {
    "compute_exact": (3e11, 1e12, {}),
    "compute_per_client": (1e10, 1e11, {}),
    "bytes_sent": (1.5e7, 1e9, {}),
    "bytes_per_client": (1e6, 1e8, {}),
    "memory": (1e6, 2e7, {}),
    "seconds": (100, 400, SPEEDS),
    "flops_per_second": (1e9, 4e9, {"seconds": 60}),
    "bandwidth": (1e5, 2e5, {"seconds": 80}),
    "latency": (0.1, 5.0, {"seconds": 300, **SPEEDS}),
    "rounds": (100, 200, {}),
    "tokens": (3e6, 6e6, {}),
    "params": (1e3, 2e3, {}),
    "unique_tokens_per_client": (5e5, 8e5, {}),
    "epochs": (1, 2, {"unique_tokens_per_client": 5e5}),
}
SETTING = {
    "clients": (16, 1000, {}),
    "participation": (0.25, 0.5, {"clients_per_round": None}),
    "clients_per_round": (4, 8, {}),
    "concentration": (0.1, 0.3, {"skew": None}),
    "skew": (0.1, 0.5, {}),
    "local_steps": (25, 500, {}),
    "batch_tokens": (512, 1024, {}),
    "unique_tokens": (3e8, 3e9, {}),
    "inner_state": ("keep", "reset", {}),
    "flops": ("6*params*tokens", "9*params*tokens", {}),
    "level": (0.8, 0.95, {}),
    "columns": ({"dropout": 0.0}, {"dropout": 0.5}, {}),
}
WHOLE = {
    "bytes_per_value": (2, 4, {"bytes_sent": 1e8}),
    "trained_share": (0.1, 1.0, {}),
    "vocab": (512, 4096, MEMORY),
    "width_per_layer": (32, 64, {**MEMORY, "memory": 3e6}),  # which holds the size: else only rounding tells them apart
}
QUESTIONS = {
    "optimal_size": {
        **SETTING, "compute": (1e13, 2e13, {}), "sampled_tokens": (1e6, 1e8, {}), "target": ("loss", "pass_at_1", {}),
    },
    "plan": {**SETTING, **LIMITS, **WHOLE, "compute": (1e12, 2e12, {}), "sampled_tokens": (1e6, 1e8, {})},
    "least_compute": {
        **{name: (low, high, {**beside, "loss": 1.0}) for name, (low, high, beside) in LIMITS.items()},
        **SETTING, **WHOLE,
        "loss": (1.0, 1.2, {}), "pass_at_1": (0.3, 0.4, {"loss": None}),
        "pass_at_k": (0.3, 0.4, {"loss": None}), "k": (2, 4, {"loss": None, "pass_at_k": 0.5}),
        "sampled_tokens": (1e6, 1e9, {}),
    },
    "optimal_sizes": {
        **SETTING, **LIMITS, **WHOLE, "compute": ([1e13], [2e13], {}), "sampled_tokens": (1e6, 1e8, {}),
        "intervals": (True, False, {}),
    },
}  # fmt: skip
NEEDED = {
    "optimal_size": {"compute": 3e12}, "plan": {"compute": 3e12}, "least_compute": {"loss": 1.0},
    "optimal_sizes": {"compute": [3e12]},
}  # fmt: skip


def outcome(fit, method, words):
    """What is answered, as text, and what is said about it; or why it is refused."""
    try:
        found = getattr(fit, method)(**{name: value for name, value in words.items() if value is not None})
    except ScalefedError as error:
        return "refused", str(error)
    if isinstance(found, pd.DataFrame):
        return found.to_json(), " ".join(found.attrs["notes"])
    plain = found.to_dict()
    return json.dumps({**plain, "notes": [], "extrapolation": {}}), " ".join(plain["notes"])


@pytest.mark.parametrize(
    ("method", "word"), [(method, word) for method, words in QUESTIONS.items() for word in words], ids=str
)
def test_every_word_has_an_effect_or_says_why_not(fit, method, word):
    one, other, beside = QUESTIONS[method][word]
    question = {**BASE, **NEEDED[method], **beside}
    first, second = (outcome(fit, method, {**question, word: value}) for value in (one, other))
    assert first[0] != second[0] or first[1] != second[1], first
    if first[0] == second[0]:
        assert any(name in second[1] for name in (word, *(other if word == "columns" else (str(other),)))), second


@pytest.mark.parametrize("method", QUESTIONS)
def test_no_word_is_forgotten_above(method):
    words = set(inspect.signature(getattr(Fit, method)).parameters) - {"self", "fit"}
    assert words == set(QUESTIONS[method])


BESIDE_THE_LAW = ("clients", "participation", "local_steps", "epochs", "unique_tokens", "dropout")


@pytest.mark.parametrize("word", sorted(LAWS["federated"].columns + BESIDE_THE_LAW))
def test_every_column_of_a_prediction_has_an_effect_or_says_why_not(fit, word):
    inside = {"params": 5e4, "tokens": 4e6, "clients_per_round": 4.0, "skew": 0.1}
    values = {
        "participation": 0.01,
        "clients": 1000,
        "local_steps": 500,
        "epochs": 20,
        "unique_tokens": 1e5,
        "dropout": 0.5,
    }
    other = values.get(word, 3 * inside.get(word, 0.1))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        changed = fit.predict(**{**inside, word: other})
    if changed["estimate"][0] == fit.predict(**inside)["estimate"][0]:
        assert told and all(one.category is FitWarning for one in told)


# ---------------------------------------------------------------------- outside the runs
def test_inside_the_runs_nothing_is_assumed(fit):
    best = fit.optimal_size(compute=3e12, **BASE)
    assert best.notes == () and best.extrapolation == {}


@pytest.mark.parametrize(
    ("words", "column", "away", "sentence"),
    [
        ({"clients": 1000}, "clients", np.log10(1000 / 16), "these runs all had 16 clients; the answer for 1,000"),
        ({"clients": 1000, "clients_per_round": 100}, "clients_per_round", np.log10(100 / 16),
         "100 clients per round is 6.25 times the most of the runs (16)"),
        ({"clients": 10_000}, "participation", np.log10(1 / 16 / 4e-4),
         "a participation of 0.0004 is 156.2 times below the least of the runs (0.0625)"),
        ({"local_steps": 500}, "local_steps", np.log10(20), "these runs all had 25 local steps; the answer for 500"),
        ({"skew": 0.95}, "skew", 0.35 / 0.6, "a skew of 0.95 is above the highest of the runs (0.6)"),
        ({"columns": {"dropout": 0.5}}, "dropout", 0.5, "these runs all had dropout 0; the answer for 0.5 assumes"),
    ],
)  # fmt: skip
def test_outside_the_runs_an_answer_says_so(fit, words, column, away, sentence):
    best = fit.optimal_size(compute=3e12, **{**BASE, **words})
    assert best.extrapolation[column] == pytest.approx(away, rel=1e-6)
    assert any(note.startswith(sentence) for note in best.notes), best.notes
    table = fit.optimal_sizes(compute=[3e12], **{**BASE, **words})
    assert table.attrs["extrapolation"][column] == pytest.approx(away, rel=1e-6)
    assert set(best.notes) <= set(table.attrs["notes"])


def test_texts_are_held_against_the_runs(fit):
    best = fit.optimal_size(
        compute=3e12, **BASE, inner_state="reset", columns={"data": "humaneval", "sampling": "fixed"}
    )
    assert "these runs all had inner_state keep; the answer for reset assumes that it does not matter" in best.notes
    assert "these runs all had data micro; the answer for humaneval assumes that it does not matter" in best.notes
    assert "the runs do not tell their sampling; the answer assumes that it does not matter" in best.notes


def test_a_column_of_one_value_binds_the_answer_where_the_law_needs_it():
    fit = made(skews=(0.0,))
    assert "skew" not in fit.law.columns
    inside = fit.optimal_size(compute=3e12, clients=16, clients_per_round=4, skew=0.01)
    assert inside.notes == ()
    for ask in (lambda: fit.optimal_size(compute=3e12, clients=16, clients_per_round=4, skew=0.9),
                lambda: fit.optimal_sizes(compute=[3e12], clients=16, clients_per_round=4, skew=0.9),
                lambda: fit.predict(params=1e4, tokens=1e6, clients_per_round=4, skew=0.9)):  # fmt: skip
        with pytest.raises(
            FitError, match=r"these runs all had a skew of 0, so what a skew of 0.9 does was not measured"
        ):
            ask()


def test_a_setting_that_varies_but_is_not_in_the_law_says_so():
    law = Law.parse("E + A/params^a + B/tokens^b")
    ranges = Ranges({"clients": (8.0, 64.0)}, {"inner_state": ("keep", "reset")})
    notes, beyond = look(law, ranges, {"clients": 32, "inner_state": "keep"}, {"clients", "inner_state"})
    assert beyond == {} and all("has no term in this law" in note for note in notes) and len(notes) == 2
    assert look(law, ranges, {"clients": 32}, set()) == ((), {})


@pytest.mark.parametrize(("column", "last"), [("clients_per_round", 16.016), ("skew", 0.62)])
def test_a_value_is_beyond_the_runs_from_a_thousandth_or_a_fiftieth_of_a_share_on(column, last):
    ranges = Ranges({"clients_per_round": (1.0, 16.0), "skew": (0.0, 0.6)})
    assert look(LAWS["federated"], ranges, {column: last - 1e-6}, {column}) == ((), {})
    (note,), beyond = look(LAWS["federated"], ranges, {column: last * 1.001}, {column})
    assert beyond[column] > 0 and note


def test_a_size_is_beyond_the_runs_from_a_thousandth_on():
    runs = pd.DataFrame({"params": [1e3, 1e5]})
    assert distance(runs, {"params": [0.9991e3, 1.0009e5]}) == ()
    assert len(distance(runs, {"params": [0.9989e3, 1.0011e5]})) == 2


def test_several_values_are_told_by_the_farthest():
    column = column_of("clients_per_round", Ranges({"clients_per_round": (1.0, 16.0)}), LAWS["federated"])
    values = np.array([4.0, 160.0, 32.0])
    notes, beyond = look(
        LAWS["federated"], Ranges({"clients_per_round": (1.0, 16.0)}), {"clients_per_round": values}, ()
    )
    assert beyond == {"clients_per_round": pytest.approx(1.0)} and notes == (column.sentence(160.0, said=True),)


# ---------------------------------------------------------------------- text that is read again
def test_repeated_text_widens_the_answer_or_is_refused(fit):
    fresh = fit.optimal_size(compute=3e12, **BASE)
    some = fit.optimal_size(compute=3e12, **BASE, unique_tokens=fresh.tokens / 3)
    assert some.params == fresh.params and some.extrapolation["epochs"] == pytest.approx(np.log10(3))
    assert some.params_high > 2.9 * fresh.params and some.loss_high > fresh.loss_high
    assert some.pass_at_1_low < fresh.pass_at_1_low and np.isnan(some.regret)
    enough = fit.optimal_size(compute=3e12, **BASE, unique_tokens=2 * fresh.tokens)
    assert (enough.params_high, enough.loss_high) == (fresh.params_high, fresh.loss_high)
    with pytest.raises(FitError, match="does not know what repeated text is worth"):
        fit.optimal_size(compute=3e12, **BASE, unique_tokens=fresh.tokens / 100)
    with pytest.raises(FitError, match="does not know what repeated text is worth"):
        fit.plan(compute=3e12, **BASE, unique_tokens_per_client=fresh.tokens / 16 / 100, epochs=100)
    with pytest.raises(FitError, match="does not know what repeated text is worth"):
        fit.least_compute(loss=fresh.loss, **BASE, unique_tokens=fresh.tokens / 100)
    table = fit.optimal_sizes(compute=[3e12], **BASE, unique_tokens=fresh.tokens / 3)
    assert table["params_high"][0] == pytest.approx(some.params_high)
    assert table["loss_high"][0] == pytest.approx(some.loss_high)


def test_bands_of_repeated_text_reach_to_one_pass(fit):
    inside = {"params": 5e4, "tokens": 4e6, "clients_per_round": 4.0, "skew": 0.1}
    once = fit.predict(**{**inside, "tokens": 1e6})
    with pytest.warns(FitWarning, match="read their text 4 times"):
        again = fit.predict(**inside, unique_tokens=1e6)
    assert again["high"][0] == pytest.approx(once["high"][0])
    assert again["low"][0] == pytest.approx(fit.predict(**inside)["low"][0])


def test_runs_that_repeated_their_text_answer_up_to_their_passes():
    fit = made(epochs=8.0)
    best = fit.optimal_size(compute=3e12, **BASE)
    assert "epochs" not in fit.optimal_size(compute=3e12, **BASE, unique_tokens=best.tokens / 7).extrapolation
    assert "epochs" in fit.optimal_size(compute=3e12, **BASE, unique_tokens=best.tokens / 16).extrapolation


# ---------------------------------------------------------------------- kept with a fit
def test_ranges_are_kept_and_an_old_file_finds_them_in_its_runs(fit, tmp_path: Path):
    assert fit.ranges == ranges_of(fit.runs, fit.law)
    path = fit.save(tmp_path / "fit.json")
    content = json.loads(path.read_text())
    content["runs"] = {name: values for name, values in content["runs"].items() if name != "clients"}
    path.write_text(json.dumps(content))
    assert sf.load_fit(path).ranges == fit.ranges
    del content["ranges"]
    path.write_text(json.dumps(content))
    old = sf.load_fit(path)
    assert "clients" not in old.ranges.numbers
    notes = old.optimal_size(compute=3e12, **BASE).notes
    assert "the runs do not tell their clients; the answer assumes that it does not matter" in notes


# ---------------------------------------------------------------------- wider beyond the runs in a column
BENT = Law.parse("E + A/params^a + B/(tokens/(clients_per_round + clients_per_round^2/8)^g)^b")


def test_a_law_that_bends_along_a_column_has_wide_intervals_beyond_it(fit):
    """Cohorts cost more and more: the law federated, which has them cost alike, is off beyond those it saw."""
    frame = fit.runs.drop(columns="loss").query("skew == 0").reset_index(drop=True)
    truth = {name: value for name, value in TRUTH.items() if name != "s"}
    frame = simulate_runs(BENT, truth, frame, noise=0.002, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        bent = sf.fit(frame, "federated", resamples=40)
    assert [test.column for test in bent.column_tests] == ["clients_per_round"]
    inside = {"clients": 4096, "clients_per_round": 4, "skew": 0.0}
    plain = replace(bent, column_tests=())
    ask = {"compute": 3e12, **inside}
    assert bent.optimal_size(**ask).params_high == plain.optimal_size(**ask).params_high
    ask["clients_per_round"] = 64
    far, blind = bent.optimal_size(**ask), plain.optimal_size(**ask)
    assert far.params == blind.params
    values = {name: np.array(value) for name, value in truth.items()}
    true = float(minimise(BENT, values, budget=Budget(compute=3e12), setting=Setting(clients_per_round=64)).params)
    assert far.params_low < true < far.params_high
    assert far.params_high / far.params_low > 1.2 * blind.params_high / blind.params_low
    table = bent.optimal_sizes(**{**ask, "compute": [3e12]})
    assert table["params_low"][0] == pytest.approx(far.params_low)
    assert far.loss_high > blind.loss_high


def test_too_far_beyond_a_column_there_is_no_answer():
    pilot = sf.load_fit(Path(__file__).parents[2] / "fits" / "pilot.json")
    with pytest.raises(FitError, match="so far beyond their clients_per_round"):
        pilot.optimal_size(compute=3e12, clients=1000, clients_per_round=32, skew=0)
    with pytest.raises(FitError, match="cannot tell the best size"):  # there the replicates alone say so
        pilot.optimal_size(compute=3e12, clients=1000, clients_per_round=100, skew=0)


def test_a_law_that_follows_its_columns_stays_narrow(fit):
    assert [test.column for test in fit.column_tests] == ["skew", "clients_per_round"]
    best = fit.optimal_size(compute=3e12, **{**BASE, "clients": 256, "clients_per_round": 64})
    assert best.params_high < 1.3 * best.params_low
    unseen = made(cohorts=(1, 4)).optimal_size(compute=3e12, **{**BASE, "clients_per_round": 16})
    assert any("these runs could not test the law there" in note for note in unseen.notes)


def test_tests_of_columns_are_kept(fit, tmp_path: Path):
    assert sf.load_fit(fit.save(tmp_path / "fit.json")).column_tests == fit.column_tests


def test_regions_and_passes_are_as_wide_as_the_tests_of_the_columns_ask(fit):
    ask = {"compute": 1e14, "clients_per_round": 4, "skew": 1.0}
    plain = replace(fit, column_tests=())
    assert any(test.column == "skew" for test in fit.column_tests)
    wide, narrow = fit.region(**ask), plain.region(**ask)
    assert wide.size_high / wide.size_low > narrow.size_high / narrow.size_low
    assert (wide.table["regret_high"] >= narrow.table["regret_high"] - 1e-12).all()
    link = Link.from_json({**EXAMPLE, **{name: EXAMPLE[name] * 40 for name in ("replicates", "scatter")}})
    both = [one.with_link(link).optimal_size(**ask) for one in (fit, plain)]
    (low, high), (least, most) = ((best.pass_at_1_low, best.pass_at_1_high) for best in both)
    assert high - low > most - least and low <= least and high >= most
