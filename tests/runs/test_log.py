"""The run log: columns with units, whole-or-nothing writing, forgiving reading, tables from anywhere."""

import json
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.config import RunConfig
from scalefed.errors import DataError, RunLogWarning
from scalefed.runs.importers.rounds import import_rounds
from scalefed.runs.jsontext import dumps, loads
from scalefed.runs.log import (
    COLUMNS,
    ROUND_COLUMNS,
    SCHEMA,
    TIMING,
    Run,
    add_evaluation,
    load_counts,
    load_runs,
    log_differences,
    provenance,
    read_run,
    same_log,
    write_run,
)

ROUNDS = [{"round": 1, "tokens": 500, "train_loss": 2.0, "wall_s": 0.1}, {"round": 2, "tokens": 1000, "loss": 1.25}]
COUNTS = {"task_ids": ["micro/0", "micro/1"], "samples": 20, "correct": [3, 20], "pass_at_1": 0.575}


def make_run(folder: Path, *, loss: float = 1.25, wall_s: float = 1.0, **settings: object) -> Path:
    config = RunConfig(**{"params": 3000, "tokens": 1000, **settings})
    result = {"params": 3105, "tokens": 1024, "loss": loss, "skew": 0.0, "rounds": 2, "wall_s": wall_s}
    return write_run(
        folder, config=config.to_dict(), result=result, rounds=ROUNDS, evaluation=COUNTS, provenance=provenance()
    )


def folders_like(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------- the schema
@pytest.mark.parametrize("column", [*COLUMNS.values(), *ROUND_COLUMNS.values()], ids=lambda column: column.name)
def test_every_column_has_type_unit_and_meaning(column):
    assert column.dtype in ("int", "float", "bool", "str", "list")
    assert column.unit and len(column.meaning) > 5
    assert column.kind in ("setting", "result", "timing")
    if column.dtype in ("str", "bool"):
        assert column.unit == "-"


def test_schema_covers_every_setting_and_the_promised_columns():
    assert set(RunConfig.fields()) <= set(COLUMNS)
    promised = (
        "run_id sweep status params params_total params_trained tokens compute clients clients_per_round participation "
        "concentration skew local_steps rounds bytes_sent loss loss_std_error bits_per_byte pass_at_1 pass_at_1_low "
        "pass_at_1_high pass_at_10 pass_at_10_low pass_at_10_high entropy_per_token unique_tokens epochs weights_hash "
        "wall_s cpu_s peak_memory_mb tokens_per_s started commit dirty device python torch"
    )
    assert set(promised.split()) <= set(COLUMNS)
    assert {"wall_s", "started", "commit"} <= TIMING and not TIMING & {"loss", "tokens", "device", "seed"}


# ---------------------------------------------------------------------- writing
def test_a_run_comes_back_as_it_was(tmp_path):
    folder = make_run(tmp_path / "pilot", loss=0.1 + 0.2, concentration=math.inf, seed=3)
    row = load_runs(tmp_path).iloc[0]
    assert row["loss"] == 0.1 + 0.2 and row["concentration"] == math.inf and row["seed"] == 3
    assert (row["params"], row["params_asked"], row["tokens"], row["tokens_asked"]) == (3105, 3000, 1024, 1000)
    assert row["compute"] == 6 * 3105 * 1024 and row["participation"] == 0.25
    assert row["sweep"] == "pilot" and row["status"] == "completed" and row["pass_at_1"] == 0.575
    run = read_run(folder)
    assert run["schema"] == SCHEMA and run["provenance"]["python"] == sys.version.split()[0]
    assert "Infinity" not in (folder / "run.json").read_text()


def test_a_stored_run_is_never_overwritten(tmp_path):
    first = make_run(tmp_path, loss=1.0)
    second = make_run(tmp_path, loss=2.0)
    assert first == second and read_run(first)["result"]["loss"] == 1.0
    assert folders_like(tmp_path) == [first.name]


def test_a_damaged_run_gives_way_and_is_kept_aside(tmp_path):
    folder = make_run(tmp_path)
    (folder / "run.json").write_text('{"run_id": "x"')
    with pytest.warns(RunLogWarning, match="was damaged; its old files are now in"):
        make_run(tmp_path, loss=2.0)
    assert read_run(folder)["result"]["loss"] == 2.0
    aside = [path for path in tmp_path.iterdir() if "damaged" in path.name]
    assert len(aside) == 1 and (aside[0] / "run.json").read_text() == '{"run_id": "x"'
    assert len(load_runs(tmp_path)) == 1


def _write_many(folder: str, writer: int) -> None:
    for seed in range(6):
        make_run(Path(folder), loss=float(writer), seed=seed)


def test_parallel_writers_of_the_same_runs_leave_one_whole_run_each(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(str(tmp_path), writer)) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    frame = load_runs(tmp_path, rounds=False)
    assert len(frame) == 6 and set(frame["loss"]) <= {0.0, 1.0, 2.0}
    assert len(load_runs(tmp_path, rounds=True)) == 12
    assert not [name for name in folders_like(tmp_path) if name.startswith(".")]


def test_a_writer_killed_half_way_leaves_nothing_that_is_read(tmp_path):
    program = (
        "import os, signal, sys; import scalefed.runs.files as f; from test_log import make_run\n"
        "write = f.write_file\n"
        "def once(path, text):\n"
        "    write(path, text); os.kill(os.getpid(), signal.SIGKILL)\n"
        "f.write_file = once\n"
        "make_run(__import__('pathlib').Path(sys.argv[1]))\n"
    )
    root, here = Path(__file__).parents[2], Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{here}"}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, env=environment, timeout=60)
    assert done.returncode == -9
    assert len(folders_like(tmp_path)) == 1
    with pytest.raises(DataError, match="no runs in"):
        load_runs(tmp_path)
    folder = make_run(tmp_path)
    assert folders_like(tmp_path) == [folder.name], "the half-built copy of a dead writer is removed"


def test_a_share_that_rounding_takes_above_1_is_stored_and_read(tmp_path):
    config = RunConfig().to_dict()
    a_little, too_much = 1.0000000000000002, 1.001
    write_run(tmp_path / "a", config=config, result={"loss": 1.0, "skew_uncorrected": a_little})
    assert load_runs(tmp_path)["skew_uncorrected"].tolist() == [a_little]
    with pytest.raises(DataError, match="skew_uncorrected must be from 0 to 1"):
        load_runs(pd.DataFrame({"params": [1e6], "tokens": [1e6], "loss": [1.0], "skew_uncorrected": [too_much]}))


def test_unknown_result_and_status_are_named(tmp_path):
    config = RunConfig().to_dict()
    with pytest.raises(DataError, match="'losss', which is no column of the run log; did you mean 'loss'"):
        write_run(tmp_path, config=config, result={"losss": 1.0})
    with pytest.raises(DataError, match="describe it in scalefed/runs/schema.py first"):
        write_run(tmp_path, config=config, result={"zzzzzzzz": 1.0})
    with pytest.raises(DataError, match="round record has the key 'trainloss'"):
        write_run(tmp_path, config=config, result={"loss": 1.0}, rounds=[{"trainloss": 1}])
    with pytest.raises(DataError, match="unknown run status 'done'"):
        write_run(tmp_path, config=config, result={"loss": 1.0}, status="done")
    with pytest.raises(DataError, match="holds numbers, text, lists and mappings, got object"):
        write_run(tmp_path, config=config, result={"loss": object()})
    assert not tmp_path.exists() or not folders_like(tmp_path)


def test_a_diverged_run_is_a_row_that_says_so(tmp_path):
    write_run(
        tmp_path, config=RunConfig().to_dict(), result={"params": 1, "tokens": 1, "loss": math.nan}, status="diverged"
    )
    row = load_runs(tmp_path).iloc[0]
    assert row["status"] == "diverged" and math.isnan(row["loss"])


def test_further_evaluations_are_added_once(tmp_path):
    folder = make_run(tmp_path)
    more = {"task_ids": ["a"], "samples": 5, "correct": [5]}
    path = add_evaluation(folder, "humaneval", more)
    assert path.name == "eval-humaneval.json" and add_evaluation(folder, "humaneval", more) == path
    assert load_counts(folder, evaluation="humaneval")["correct"].tolist() == [5]
    assert load_counts(folder)["correct"].tolist() == [3, 20]
    with pytest.raises(DataError, match="already holds other counts; give the new evaluation another name"):
        add_evaluation(folder, "humaneval", more | {"correct": [4]})
    with pytest.raises(DataError, match="may hold letters, digits"):
        add_evaluation(folder, "../x", more)
    with pytest.raises(DataError, match="no run at"):
        add_evaluation(tmp_path / "none", "a", more)


@settings(deadline=None, max_examples=50)
@given(st.floats(allow_nan=False), st.integers(-(2**60), 2**60), st.text(st.characters(codec="utf-8"), max_size=9))
def test_json_keeps_every_float(number, whole, text):
    value = {"a": number, "b": [whole, number], "c": "x" + text}
    assert loads(dumps(value)) == value


def test_json_keeps_nan_apart_from_null():
    back = loads(dumps({"a": math.nan, "b": None}))
    assert math.isnan(back["a"]) and back["b"] is None


# ---------------------------------------------------------------------- reading
def test_one_run_has_its_columns_as_attributes(tmp_path):
    run = Run.load(make_run(tmp_path, seed=5))
    assert (run.loss, run.rounds, run.seed, run.pass_at_1) == (1.25, 2, 5, 0.575)
    assert run.bits_per_byte is None, "a column that was not measured"
    assert run.config == RunConfig(params=3000, tokens=1000, seed=5)
    assert run.history()["round"].tolist() == [1, 2]
    assert run.counts()["task_id"].tolist() == ["micro/0", "micro/1"]
    assert pickle.loads(pickle.dumps(run)).row == dict(run.row)
    with pytest.raises(AttributeError, match="did you mean 'loss'"):
        _ = run.losss
    with pytest.raises(AttributeError):
        run.loss = 1.0


def test_rounds_carry_what_run_they_belong_to(tmp_path):
    make_run(tmp_path / "a", seed=1)
    make_run(tmp_path / "b", seed=2)
    frame = load_runs(tmp_path, rounds=True)
    assert len(frame) == 4 and frame["round"].tolist() == [1, 2, 1, 2]
    assert frame["run_id"].nunique() == 2 and set(frame["sweep"]) == {"a", "b"}
    assert load_runs(tmp_path, rounds=True, sweep="b")["seed"].tolist() == [2, 2]


def test_the_clients_of_a_round_are_those_that_trained(tmp_path):
    """A run has a column of that name too: how many there are."""
    config = RunConfig(params=3000, tokens=1000)
    rounds = [{"round": 1, "tokens": 512, "clients": [2, 6]}, {"round": 2, "tokens": 1024, "clients": [0]}]
    write_run(tmp_path, config=config.to_dict(), result={"params": 3105, "loss": 1.0}, rounds=rounds)
    frame = load_runs(tmp_path, rounds=True)
    assert frame.columns.is_unique and frame["clients"].tolist() == [[2, 6], [0]]
    assert load_runs(tmp_path)["clients"].tolist() == [config.clients]


def test_sweeps_are_found_by_name(tmp_path):
    make_run(tmp_path / "pilot", seed=1)
    make_run(tmp_path / "grid", seed=2)
    assert load_runs(tmp_path, sweep="grid")["seed"].tolist() == [2]
    with pytest.raises(DataError, match="no sweep 'gird'.*did you mean 'grid'"):
        load_runs(tmp_path, sweep="gird")


DAMAGE = {
    "truncated": ("run.json", lambda text: text[: len(text) // 2], "cannot be read as JSON"),
    "empty": ("run.json", lambda text: "", "cannot be read as JSON"),
    "a list": ("run.json", lambda text: "[1, 2]", "is not a run: it has no run_id"),
    "no result": ("run.json", lambda text: json.dumps({"schema": 1, "run_id": "a"}), "lacks one of config"),
    "newer": ("run.json", lambda text: text.replace(f'"schema": {SCHEMA}', '"schema": 99'), "install a newer scalefed"),
    "status": ("run.json", lambda text: text.replace("completed", "fine"), "has status 'fine'; allowed: completed"),
    "text loss": ("run.json", lambda text: text.replace("1.25", '"low"'), "loss must be a number, got 'low'"),
    "counts": ("eval.json", lambda text: text.replace("[3, 20]", "[3]"), "as many counts as task_ids"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_a_damaged_run_is_named_and_skipped(tmp_path, damage):
    file, change, message = DAMAGE[damage]
    make_run(tmp_path, seed=1)
    bad = make_run(tmp_path, seed=2)
    (bad / file).write_text(change((bad / file).read_text()))
    with pytest.warns(RunLogWarning, match=message) as caught:
        frame = load_runs(tmp_path)
    assert frame["seed"].tolist() == [1] and bad.name in str(caught[0].message)


def test_a_run_without_run_json_is_named_and_skipped(tmp_path):
    make_run(tmp_path, seed=1)
    bad = make_run(tmp_path, seed=2)
    (bad / "run.json").unlink()
    with pytest.warns(RunLogWarning, match="it has no run.json"):
        assert len(load_runs(tmp_path)) == 1


def test_truncated_rounds_are_named_by_line(tmp_path):
    make_run(tmp_path, seed=1)
    bad = make_run(tmp_path, seed=2)
    text = (bad / "rounds.jsonl").read_text()
    (bad / "rounds.jsonl").write_text(text[:-10])
    with pytest.warns(RunLogWarning, match=r"rounds.jsonl, line 2: not JSON .* perhaps cut off"):
        assert len(load_runs(tmp_path, rounds=True)) == 2
    assert len(load_runs(tmp_path)) == 2, "the row itself is whole"


def test_nothing_left_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no runs in .*make some with `scalefed sweep`"):
        load_runs(tmp_path)
    bad = make_run(tmp_path)
    (bad / "run.json").write_text("{")
    with pytest.warns(RunLogWarning), pytest.raises(DataError, match="none of the 1 runs in"):
        load_runs(tmp_path)


def test_a_version_0_run_still_loads(tmp_path):
    old = {
        "run_id": "old",
        "params": 5,
        "tokens": 7,
        "loss": 2.5,
        "clients": 8,
        "clients_per_round": 2,
        "diverged": True,
    }
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text(json.dumps(old))
    row = load_runs(tmp_path).iloc[0]
    assert (row["params"], row["loss"], row["clients"], row["status"]) == (5, 2.5, 8, "diverged")
    assert row["participation"] == 0.25 and row["local_steps"] == RunConfig().local_steps


def test_hidden_folders_are_not_runs(tmp_path):
    folder = make_run(tmp_path)
    folder.rename(tmp_path / f".{folder.name}.host-1-abc.tmp")
    with pytest.raises(DataError, match="no runs in"):
        load_runs(tmp_path)


# ---------------------------------------------------------------------- equal logs
def test_same_log_leaves_timing_out_and_nothing_else(tmp_path):
    make_run(tmp_path / "a", wall_s=1.0)
    make_run(tmp_path / "b", wall_s=9.0)
    other = make_run(tmp_path / "c", loss=1.5)
    assert same_log(tmp_path / "a", tmp_path / "b")
    assert log_differences(tmp_path / "a", tmp_path / "c") == [f"{other.name}: differs in loss"]
    rounds = next((tmp_path / "b").iterdir()) / "rounds.jsonl"
    rounds.write_text(rounds.read_text().replace("2.0", "2.5"))
    assert log_differences(tmp_path / "a", tmp_path / "b") == [f"{other.name}: differs in rounds.jsonl"]
    extra = make_run(tmp_path / "a", seed=9)
    assert f"{extra.name}: only in the first" in log_differences(tmp_path / "a", tmp_path / "c")


# ---------------------------------------------------------------------- tables
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".jsonl", ".jsonl.gz"])
def test_tables_of_every_kind_load_alike(tmp_path, suffix):
    frame = pd.DataFrame(
        {"N": [1000.0, 2000.0], "tokens": [10.0, 20.0], "loss": [0.1 + 0.2, 1 / 3], "note": ["a", "b"]}
    )
    path = tmp_path / f"runs{suffix}"
    if "csv" in suffix:
        frame.to_csv(path, index=False)
    elif "parquet" in suffix:
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    loaded = load_runs(path, columns={"params": "N"})
    assert loaded["params"].tolist() == [1000, 2000] and loaded["compute"].tolist() == [60_000, 240_000]
    exact = "jsonl" not in suffix
    assert loaded["loss"].tolist() == ([0.1 + 0.2, 1 / 3] if exact else pytest.approx([0.3, 1 / 3])) and loaded[
        "note"
    ].tolist() == ["a", "b"]


def test_a_frame_is_never_changed():
    frame = pd.DataFrame({"N": [1], "D": [2], "loss": ["3.5"]})
    before = frame.copy(deep=True)
    loaded = load_runs(frame, columns={"params": "N", "tokens": "D"})
    assert loaded["loss"].tolist() == [3.5]
    pd.testing.assert_frame_equal(frame, before)


BAD_TABLES = {
    "unknown column": ("N,D\n1,2\n", {}, "has no column of the run log, only N, D"),
    "text in a number": ("params,loss\n1,2\n2,low\n", {}, r"loss must be a number \(nats/token\), got 'low' in row 1"),
    "no rows": ("params,tokens,loss\n", {}, "has no rows; it needs one row a run"),
    "no such column": ("N,loss\n1,2\n", {"columns": {"params": "M"}}, "no column 'M' for params"),
    "not ours": ("N,loss\n1,2\n", {"columns": {"parms": "N"}}, "did you mean 'params'"),
    "rounds of a table": ("params,loss\n1,2\n", {"rounds": True}, "rounds are kept in run folders"),
    "empty file": ("", {}, "cannot be read as csv"),
    "ragged": ("params,loss\n1,2\n1,2,3\n", {}, "cannot be read as csv"),
}


@pytest.mark.parametrize("case", BAD_TABLES, ids=str)
def test_bad_tables_say_what_is_wrong(tmp_path, case):
    text, options, message = BAD_TABLES[case]
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_runs(path, **options)


def test_bad_sources_say_what_is_allowed(tmp_path):
    with pytest.raises(DataError, match="got an empty text"):
        load_runs("")
    with pytest.raises(DataError, match="nothing at .*give a folder of runs or a .csv"):
        load_runs(tmp_path / "none")
    (tmp_path / "runs.xlsx").write_text("x")
    with pytest.raises(DataError, match="cannot read runs.xlsx: allowed are run folders and .csv"):
        load_runs(tmp_path / "runs.xlsx")
    (tmp_path / "runs.parquet").write_text("not parquet")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load_runs(tmp_path / "runs.parquet")
    (tmp_path / "cut.jsonl").write_text('{"params": 1, "loss": 2}\n{"params": 1, "lo')
    with pytest.raises(DataError, match="cut.jsonl, line 2: not JSON .*perhaps cut off"):
        load_runs(tmp_path / "cut.jsonl")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="line 1: expected a JSON object"):
        load_runs(tmp_path / "list.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00broken")
    with pytest.raises(DataError, match="cannot be read after line 0"):
        load_runs(tmp_path / "cut.jsonl.gz")
    with pytest.raises(DataError, match="must be a path or a DataFrame, got list"):
        load_runs([1])


def test_nan_losses_stay_for_the_fit_to_judge():
    frame = load_runs(pd.DataFrame({"params": [1, 2], "tokens": [1, 2], "loss": ["nan", 2.0]}))
    assert math.isnan(frame["loss"][0]) and frame["loss"][1] == 2.0


def test_counts_from_a_table_are_checked():
    frame = pd.DataFrame({"run_id": "a", "task_id": ["p"], "samples": [20], "correct": [21]})
    with pytest.raises(DataError, match="correct must be between 0 and samples"):
        load_counts(frame)
    with pytest.raises(DataError, match="have no column 'samples'"):
        load_counts(frame.drop(columns="samples"))
    assert load_counts(frame.assign(correct=20))["correct"].tolist() == [20]


@pytest.mark.parametrize("names", [("n", "c"), ("num_samples", "num_correct"), ("samples", "correct")])
def test_counts_of_one_harness_need_no_run_and_no_names_of_problems(tmp_path, names):
    path = tmp_path / "some.counts.csv"
    path.write_text("\n".join([",".join(names), "20,0", "20,3", "10,10"]) + "\n")
    counts = load_counts(path)
    assert counts.to_dict("list") == {
        "run_id": ["some"] * 3, "task_id": ["1", "2", "3"], "samples": [20, 20, 10], "correct": [0, 3, 10]
    }  # fmt: skip
    wrong = {"20,.15": "a rate", "20,-1": "got -1", "2,3": "between 0 and samples"}
    wrong |= {"x,1": "samples must be a number", "20,1%": "correct must be a number"}
    for bad, answer in wrong.items():
        path.write_text(",".join(names) + f"\n20,1\n{bad}\n")
        with pytest.raises(DataError, match=answer):
            load_counts(path)
    frame = pd.DataFrame({"problem": ["a", "a"], "n": 20, "c": 1})
    with pytest.raises(DataError, match="'a' of run 'counts' stands twice"):
        load_counts(frame)
    assert load_counts(frame.assign(run_id=["x", "y"]))["run_id"].tolist() == ["x", "y"]
    assert load_counts(pd.DataFrame({"n": [1], "samples": [20], "correct": [2]}))["samples"].tolist() == [20]


# ---------------------------------------------------------------------- other people's logs
def test_flower_results_become_rounds():
    class Result:
        train_metrics_clientapp = {1: {"train_loss": 3.0, "num-examples": 10}, 2: {"train_loss": 2.0}}
        evaluate_metrics_clientapp = {1: {"loss": 2.9}}
        evaluate_metrics_serverapp = {0: {"loss": 4.0}, 2: {"loss": 1.9}}

    frame = import_rounds(Result())
    assert frame["round"].tolist() == [0, 1, 2]
    assert frame["train_loss"].tolist()[1:] == [3.0, 2.0] and frame["loss"].tolist()[::2] == [4.0, 1.9]
    assert frame["client_loss"][1] == 2.9 and frame["train_num-examples"][1] == 10


def test_round_logs_and_pfl_tables_become_rounds(tmp_path):
    lines = [
        {"kind": "start"},
        {"kind": "round", "round": 1, "wall_s": 0.5, "metrics": {"loss": 3.0}, "clients": [{"node": "1"}]},
        {"kind": "server_eval", "round": 1, "metrics": {"loss": 2.5}},
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    row = import_rounds(tmp_path / "log.jsonl").iloc[0]
    assert (row["round"], row["train_loss"], row["loss"], row["wall_s"]) == (1, 3.0, 2.5, 0.5)
    (tmp_path / "pfl.csv").write_text("central_iteration,Central val | loss\n0,3.5\n1,3.25\n")
    frame = import_rounds(tmp_path / "pfl.csv", columns={"loss": "Central val | loss"})
    assert frame["round"].tolist() == [0, 1] and frame["loss"].tolist() == [3.5, 3.25]
    with pytest.raises(DataError, match="no metric 'x'"):
        import_rounds(tmp_path / "pfl.csv", columns={"loss": "x"})
    with pytest.raises(DataError, match="no column of a round; did you mean 'loss'"):
        import_rounds(tmp_path / "pfl.csv", columns={"los": "Central val | loss"})
    (tmp_path / "none.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match="each record needs a round number"):
        import_rounds(tmp_path / "none.csv")


# ---------------------------------------------------------------------- provenance
def test_provenance_knows_commit_and_changes(tmp_path):
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    assert provenance(tmp_path)["commit"] is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    found = provenance(tmp_path)
    assert len(found["commit"]) == 40 and found["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert provenance(tmp_path)["dirty"] is True
    assert {"python", "torch", "numpy", "platform"} <= set(found) <= set(COLUMNS)


def test_the_run_log_needs_neither_torch_nor_pandas_to_import():
    code = (
        "import sys, scalefed.runs.log; print([m for m in ('torch', 'pandas', 'altair', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_of_the_first_learning_rate_rule_says_so(tmp_path):
    folder = make_run(tmp_path, seed=1)
    stored = json.loads((folder / "run.json").read_text())
    del stored["config"]["learning_rate_rule"]
    (folder / "run.json").write_text(json.dumps(stored | {"schema": 1}))
    assert load_runs(tmp_path)["learning_rate_rule"].tolist() == ["anew"]
    assert Run.load(folder).config.learning_rate_rule == "anew"


def test_every_round_of_the_committed_runs_is_read():
    runs = Path(__file__).parents[2] / "runs"
    for name in ("grid", "pilot", "rule", "gc-fed"):
        assert load_runs(runs / name, rounds=True)["run_id"].nunique() == len(load_runs(runs / name))
