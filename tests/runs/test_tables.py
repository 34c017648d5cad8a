"""Tables as people have them: states, units in texts, impossible numbers; a fault is named, never an answer."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.errors import DataError, FitWarning, RunLogWarning
from scalefed.fitting.fit import fit
from scalefed.laws.simulate import simulate_runs
from scalefed.runs.amounts import number
from scalefed.runs.log import load_runs
from scalefed.runs.schema import COLUMNS
from scalefed.runs.states import FINISHED, UNFINISHED, is_finished, plain

settings.register_profile("quick", deadline=None, max_examples=60)
settings.load_profile("quick")

TRUTH = {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37}
GRID = {"params": [1e7, 1e8, 1e9, 1e10], "tokens": [1e9, 1e10, 1e11]}


def table(**columns: object) -> pd.DataFrame:
    return simulate_runs("chinchilla", TRUTH, GRID).drop(columns=["run_id", "compute"]).assign(**columns)


# ---------------------------------------------------------------------- states
STATES = {
    "wandb": (["finished"], ["running", "crashed", "failed", "killed", "preempting", "preempted"]),
    "mlflow": (["FINISHED"], ["RUNNING", "SCHEDULED", "FAILED", "KILLED"]),
    "ray tune": (["TERMINATED"], ["PENDING", "RUNNING", "PAUSED", "ERROR"]),
    "ray jobs": (["SUCCEEDED"], ["PENDING", "RUNNING", "STOPPED", "FAILED"]),
    "slurm": (
        ["COMPLETED"],
        ["CANCELLED by 1000", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "PENDING", "RUNNING"],
    ),
    "optuna": (["TrialState.COMPLETE"], ["TrialState.PRUNED", "TrialState.FAIL"]),
    "ours": (["completed"], ["diverged"]),
    "by hand": (["Done", " ok "], ["OOM", "Timed out", "nan", "still at it"]),
}


@pytest.mark.parametrize("tool", STATES)
def test_states_of_every_tool_are_understood(tool):
    good, bad = STATES[tool]
    assert all(map(is_finished, good)) and not any(map(is_finished, bad))


def test_no_state_is_on_both_lists():
    assert not FINISHED & UNFINISHED
    assert all(plain(state) == state for state in FINISHED | UNFINISHED)


@pytest.mark.parametrize("name", ["status", "state", "State", "Job State"])
def test_runs_that_did_not_end_well_are_left_out_by_name(name):
    frame = table(**{name: ["FINISHED"] * 8 + ["crashed", "Killed", "CRASHED", None]})
    frame.loc[8:10, "loss"] *= 1.5
    with pytest.warns(FitWarning):
        found = fit(frame, "chinchilla", resamples=0, backtest=False)
    assert len(found.runs) == 9
    assert found.notes == (f"2 of 12 rows left out: {name} crashed", f"1 of 12 rows left out: {name} killed")
    assert found.params["a"] == pytest.approx(0.35, abs=1e-6)


def test_a_column_that_only_looks_like_states_is_left_alone():
    found = fit(table(state=["Ohio", "Utah"] * 6), "chinchilla", resamples=0, backtest=False)
    assert len(found.runs) == 12 and not found.notes


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("_state", "finished", "crashed"),
        ("summary.State", "FINISHED", "oom"),
        ("attributes.status", "success", "preempted"),
        ("exit_code", 0, 137),
        ("exit_code", 0.0, 1.0),
        ("ExitCode", "0:0", "0:9"),
        ("finished", True, False),
        ("is_finished", "yes", "No"),
        ("done", 1, 0),
        ("diverged", False, True),
        ("OOM", "false", "true"),
    ],
)
def test_a_run_that_ended_badly_in_any_column_is_left_out(name, good, bad):
    frame = table(**{name: [good] * 8 + [bad, bad, good, None]})
    frame.loc[8:9, "loss"] *= 1.5
    with pytest.warns(FitWarning):
        found = fit(frame, "chinchilla", resamples=0, backtest=False)
    (note,) = found.notes
    assert len(found.runs) == 10 and note.lower().startswith(f"2 of 12 rows left out: {name} ".lower())


def test_every_column_that_tells_of_an_end_is_read():
    frame = table(state=["finished"] * 11 + ["failed"], exit_code=[0] * 9 + [1, 0, 1], finished=[True] * 11 + [False])
    with pytest.warns(FitWarning):
        found = fit(frame, "chinchilla", resamples=0, backtest=False)
    assert found.notes == ("1 of 12 rows left out: state failed", "1 of 12 rows left out: exit_code 1")


@pytest.mark.parametrize(("name", "values"), [("finished", "2026-01-01"), ("failed", 7), ("exit_code", "none of it")])
def test_a_column_that_only_looks_like_an_end_is_left_alone(name, values):
    found = fit(table(**{name: [values] * 12}), "chinchilla", resamples=0, backtest=False)
    assert len(found.runs) == 12 and not found.notes


@pytest.mark.parametrize("state", [True, "baseline", [1], 3])
def test_a_state_that_nobody_knows_does_not_count(state):
    with pytest.warns(FitWarning, match="4 of 12 rows left out: status .*no state that is known to be final"):
        found = fit(table(status=[state] * 4 + ["finished"] * 8), "chinchilla", resamples=0, backtest=False)
    assert len(found.runs) == 8


# ---------------------------------------------------------------------- units in texts
@given(st.floats(1, 999), st.sampled_from([("k", 1e3), ("M", 1e6), ("B", 1e9), (" bn", 1e9), ("T", 1e12)]))
def test_a_text_with_a_magnitude_is_its_number(value, unit):
    text = f"{value:.4g}{unit[0]}"
    assert number(text, "tokens") == pytest.approx(float(f"{value:.4g}") * unit[1], rel=1e-14)


@given(st.integers(0, 10**12), st.sampled_from([",", " ", "_", "'", "\u202f"]))
def test_thousands_may_be_set_apart(value, mark):
    assert number(f"{value:,}".replace(",", mark), "tokens") == value


@given(st.text(max_size=20))
def test_any_text_is_a_number_or_none(text):
    value = number(text, "tokens")
    assert value is None or isinstance(value, float)


def test_texts_are_read_where_they_can_be_and_named_where_not(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text('params,tokens,loss\n125M,2.5B,3.1\n"220,000,000",5B,OOM\n1.2B,10B,2.6\n')
    with pytest.warns(RunLogWarning, match="loss is 'OOM' in row 1: left empty"):
        frame = load_runs(path)
    assert frame["params"].tolist() == [125e6, 220e6, 1.2e9] and frame["compute"][0] == 6 * 125e6 * 2.5e9
    assert np.isnan(frame["loss"][1]) and frame["loss"][2] == 2.6
    path.write_text('params,tokens,loss\n125M,2.5B,3.1\n"1,2",5B,2\n')
    with pytest.raises(DataError, match=r"params must be a number \(parameters\), got '1,2' in row 1"):
        load_runs(path)


def test_a_fit_reads_texts_too():
    frame = table()
    texts = frame.assign(params=[f"{size / 1e6:g}M" for size in frame["params"]])
    assert fit(texts, "chinchilla", resamples=0, backtest=False).params == pytest.approx(
        fit(frame, "chinchilla", resamples=0, backtest=False).params
    )


def test_a_unit_in_the_name_of_a_column_is_read():
    frame = table().assign(**{"tokens (B)": lambda t: t["tokens"] / 1e9}).drop(columns="tokens")
    with pytest.warns(RunLogWarning, match=r"tokens is the column 'tokens \(B\)' times 1e\+09"):
        loaded = load_runs(frame, columns={"tokens": "tokens (B)"})
    assert loaded["tokens"].tolist() == pytest.approx(table()["tokens"].tolist())
    counted = frame.assign(**{"tokens (B)": table()["tokens"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_runs(counted, columns={"tokens": "tokens (B)"})["tokens"].equals(table()["tokens"])


# ---------------------------------------------------------------------- numbers that cannot be
IMPOSSIBLE = {
    "percent": ({"pass_at_1": 64.6}, r"pass_at_1 must be from 0 to 1, got 64.6 in row 0 and 11 more \(in percent\?"),
    "participation in percent": ({"participation": 20}, "participation must be above 0 and at most 1, got 20"),
    "participation of nobody": ({"participation": 0}, "participation must be above 0"),
    "more than all": ({"clients": 10, "clients_per_round": 20}, "clients_per_round 20 is more than clients 10"),
    "another share": (
        {"clients": 10, "clients_per_round": 2, "participation": 0.9},
        "participation 0.9 is not clients_per_round 2 of clients 10",
    ),
    "skew in percent": ({"skew": 30}, "skew must be from 0 to 1"),
    "infinite": ({"tokens": np.inf}, "tokens must be at least 0, got inf"),
    "negative": ({"params": -1.0}, "params must be above 0, got -1"),
    "billions of tokens": ({"tokens": [1.0, 10.0, 100.0] * 4}, "tokens is 1 to 100 for models of up to 1e"),
    "millions of parameters": ({"params": np.repeat([10.0, 100.0, 1e3], 4)}, "params is 10 to 1000 for runs of up to"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_is_refused_by_column_row_and_range(case):
    columns, message = IMPOSSIBLE[case]
    with pytest.raises(DataError, match=message):
        load_runs(table(**columns))


def test_all_faults_are_told_at_once():
    with pytest.raises(DataError) as caught:
        load_runs(table(pass_at_1=31.6, participation=20, clients=10, clients_per_round=[2] * 11 + [20]))
    for words in (
        "pass_at_1 must be",
        "participation must be",
        "clients_per_round 20 is more than clients 10 in row 11",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "law", "target"),
    [
        ({"pass_at_1": 64.6}, "E + A/params^a + B/tokens^b", "pass_at_1"),
        ({"skew": 30.0, "clients_per_round": 4.0}, "federated", "loss"),
        ({"clients": 2.0, "clients_per_round": 4.0}, "average-compute", "loss"),
        ({"tokens": [1.0, 10.0, 100.0] * 4}, "chinchilla", "loss"),
    ],
)
def test_a_fit_of_a_frame_refuses_what_cannot_be(columns, law, target):
    with pytest.raises(DataError, match="the runs: "):
        fit(table(**columns), law, target=target, resamples=0, backtest=False)


def test_fine_tuning_on_few_tokens_is_possible():
    frame = pd.DataFrame({"params": [108_645_696] * 2, "tokens": [10_240, 20_480], "loss": [1.0, 0.9]})
    assert len(load_runs(frame)) == 2


def test_every_number_of_the_schema_has_a_range():
    for column in COLUMNS.values():
        if column.is_number:
            assert column.range.low > -np.inf, column.name
            assert column.fault(np.nan) is None and column.fault(-2e4) and column.fault("x") and column.fault(True)
            assert column.fault(10**5000) and bool(column.fault(np.inf)) != column.range.infinite
