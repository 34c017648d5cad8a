"""A packed sweep is the same log in less space: byte for byte back, read alike, nothing lost on the way."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scalefed.cli import main
from scalefed.errors import DataError, RunLogWarning
from scalefed.runs import packed
from scalefed.runs.bulk import PlainRuns
from scalefed.runs.columnar import decode, encode, misfits, with_repeats, without_repeats
from scalefed.runs.files import add_evaluation, read_evaluation, write_run
from scalefed.runs.folders import places
from scalefed.runs.log import Run, load_counts, load_runs, log_differences
from scalefed.runs.pack import pack, unpack
from scalefed.runs.packed import is_packed, open_pack

ROOT = Path(__file__).parents[2]


def make(folder, number, **result):
    write_run(
        folder,
        run_id=f"run-{number}",
        config={
            "params": 100 + number,
            "tokens": 1000,
            "clients": 4,
            "clients_per_round": 2,
            "concentration": float("inf"),
        },
        result={"params": 96, "tokens": 1024, "loss": 2.5 - 0.1 * number, "skew": 0.0} | result,
        rounds=[
            {
                "round": r,
                "tokens": 512 * r,
                "train_loss": 3.0 / r,
                "clients": [0, r],
                "left_out": [],
                "client_losses": [0.1, 0.2],
            }
            for r in (1, 2)
        ],
        evaluation={"task_ids": ["a", "b"], "samples": 3, "correct": [number % 4, 1]},
        provenance={"commit": None, "dirty": False},
    )


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "sweep"
    for number in range(3):
        make(folder, number)
    shutil.copytree(folder, tmp_path / "before")
    return folder


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix.startswith(".json")
    }


def test_a_packed_sweep_reads_as_its_folders(sweep, tmp_path):
    before = tmp_path / "before"
    done = pack(sweep)
    assert done.runs == 3 and not done.kept and not list(sweep.glob("run-*"))
    assert log_differences(before, sweep) == []
    assert load_runs(sweep).drop(columns="sweep").equals(load_runs(before).drop(columns="sweep"))
    assert (
        load_runs(sweep, rounds=True).drop(columns="sweep").equals(load_runs(before, rounds=True).drop(columns="sweep"))
    )
    assert load_counts(sweep).equals(load_counts(before))
    run = Run.load(sweep / "run-1")
    assert run.loss == 2.4 and run.config.params == 101 and len(run.history()) == 2 and len(run.counts()) == 2


def edit(folder, name, old, new):
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


ODD = {
    "loss that cannot be": ("run.json", '"loss": 2.4', '"loss": -2.4'),
    "loss of another type": ("run.json", '"loss": 2.4', '"loss": "2.4"'),
    "no loss": ("run.json", '"loss": 2.4', '"loss": null'),
    "fewer columns": ("run.json", '"loss": 2.4,', ""),
    "older schema": ("run.json", '"schema": 2', '"schema": 1'),
    "newer schema": ("run.json", '"schema": 2', '"schema": 9'),
    "unknown status": ("run.json", '"completed"', '"done"'),
    "diverged": ("run.json", '"completed"', '"diverged"'),
    "more clients a round than clients": ("run.json", '"clients_per_round": 2', '"clients_per_round": 9'),
    "clients not said": ("run.json", '"clients": 4,', ""),
    "column of another program": ("run.json", '"loss": 2.4', '"loss": 2.4, "mood": "good"'),
    "round twice": ("rounds.jsonl", '"round": 2', '"round": 1'),
    "round without a number": ("rounds.jsonl", '"round": 2', '"round": null'),
    "clients that are no list": ("rounds.jsonl", "[0, 2]", "2"),
    "more solved than tried": ("eval.json", "[1, 1]", "[9, 1]"),
    "problem twice": ("eval.json", '["a", "b"]', '["a", "a"]'),
    "a count missing": ("eval.json", "[1, 1]", "[1]"),
    "no samples": ("eval.json", '"samples": 3', '"samples": 0'),
    "gold losses": ("eval.json", '"samples": 3', '"gold_losses": [0.5, 0.25], "samples": 3'),
    "too few gold losses": ("eval.json", '"samples": 3', '"gold_losses": [0.5], "samples": 3'),
    "its own pass@1": ("eval.json", '"samples": 3', '"pass_at_1": 0.5, "samples": 3'),
    "pass@1 in percent": ("eval.json", '"samples": 3', '"pass_at_1": 50, "samples": 3'),
}


def told(load):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = load()
    words = [str(one.message).split(": ", 1)[1] for one in caught if one.category is RunLogWarning]
    order = ["run_id", *(name for name in ("round", "task_id") if name in frame)]
    frame = frame.drop(columns="sweep", errors="ignore").sort_values(order, ignore_index=True)
    return frame, sorted(text.replace("/before/", "/sweep/") for text in words)


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_run_is_read_and_told_alike_packed_and_not(sweep, tmp_path, odd):
    name, old, new = ODD[odd]
    for folder in (sweep, tmp_path / "before"):
        edit(folder / "run-1", name, old, new)
    pack(sweep)
    for load in (load_runs, lambda folder: load_runs(folder, rounds=True), load_counts):
        packed_frame, packed_words = told(lambda load=load: load(sweep))
        frame, words = told(lambda load=load: load(tmp_path / "before"))
        pd.testing.assert_frame_equal(packed_frame, frame, check_like=True)
        assert packed_words == words


def test_every_committed_run_is_read_by_columns():
    sweeps = [place.folder for place in places(ROOT / "runs") if place.packed]
    assert sweeps
    for folder in sweeps:
        assert PlainRuns.of(open_pack(folder)).with_plain_rounds().plain.all(), folder


def test_unpacking_gives_the_same_bytes(sweep, tmp_path):
    pack(sweep)
    unpack(sweep, into=tmp_path / "after")
    assert contents(tmp_path / "after") == contents(tmp_path / "before")


def test_runs_of_later_join_the_pack_and_runs_in_both_are_one(sweep):
    pack(sweep, keep_folders=True)
    assert len(load_runs(sweep)) == 3
    make(sweep, 7)
    assert len(load_runs(sweep)) == 4
    assert pack(sweep).runs == 4 and len(load_runs(sweep)) == 4


def test_a_packed_run_is_not_made_again_and_takes_evaluations(sweep):
    pack(sweep)
    make(sweep, 1, loss=9.9)
    assert Run.load(sweep / "run-1").loss == 2.4 and not (sweep / "run-1").exists()
    add_evaluation(sweep / "run-1", "more", {"task_ids": ["c"], "samples": 5, "correct": [2]})
    assert pack(sweep).runs == 3 and not (sweep / "run-1").exists()
    assert read_evaluation(sweep / "run-1", "more")["correct"] == [2]
    with pytest.raises(DataError, match="already holds other counts"):
        add_evaluation(sweep / "run-1", "more", {"task_ids": ["c"], "samples": 5, "correct": [3]})


def test_what_the_columns_cannot_hold_is_kept_as_text(sweep, tmp_path):
    odd = sweep / "run-2" / "rounds.jsonl"
    odd.write_text(odd.read_text().replace("3.0", '"three"') + '{"round":   3}\n')
    shutil.copytree(sweep, tmp_path / "odd")
    pack(sweep)
    unpack(sweep, into=tmp_path / "after")
    assert contents(tmp_path / "after") == contents(tmp_path / "odd")


@pytest.mark.parametrize("name", ["../away", "/tmp/away", ".hidden", ""])
def test_a_pack_that_names_another_place_writes_nothing(sweep, tmp_path, monkeypatch, name):
    pack(sweep)
    monkeypatch.setattr(packed.Pack, "run_ids", property(lambda self: [name]))
    monkeypatch.setattr(packed.Pack, "files", lambda self, run_id: {"run.json": "{}"})
    with pytest.raises(DataError, match="is no name of a run or its file"):
        unpack(sweep, into=tmp_path / "into")
    assert not list((tmp_path / "into").iterdir())


def test_folders_that_cannot_be_packed_stay_and_say_why(sweep, capsys):
    (sweep / "run-0" / "samples.jsonl").write_text("{}")
    (sweep / "run-1" / "run.json").write_text("{")
    assert main(["pack", str(sweep)]) == 0
    told = capsys.readouterr()
    assert "1 runs packed" in told.out and "also holds samples.jsonl" in told.err and "run-1: it is damaged" in told.err
    assert (sweep / "run-0").is_dir() and (sweep / "run-1").is_dir()


def test_a_packed_run_that_differs_from_its_folder_is_not_overwritten(sweep):
    pack(sweep, keep_folders=True)
    path = sweep / "run-1" / "run.json"
    path.write_text(path.read_text().replace("2.4", "2.3"))
    with pytest.raises(DataError, match="run-1 and the packed run of that name differ"):
        pack(sweep)
    assert path.exists()


def test_a_damaged_pack_is_named_and_hides_no_run_beside_it(sweep):
    pack(sweep)
    table = sweep / "runs.parquet"
    table.write_bytes(table.read_bytes()[:-40])
    make(sweep, 5)
    with pytest.warns(RunLogWarning, match="runs.parquet cannot be read"):
        assert list(load_runs(sweep)["run_id"]) == ["run-5"]
    with pytest.raises(DataError, match="cannot be read"):
        pack(sweep)


def rewritten(path, change):
    pq.write_table(change(pq.read_table(path)), path)


def words(column):
    return pa.array([str(value) for value in column.to_pylist()])


@pytest.mark.parametrize("schema", [0, 1])
def test_runs_of_an_older_schema_read_alike_as_folders_and_packed(sweep, tmp_path, schema):
    for number in range(3):
        path = sweep / f"run-{number}" / "run.json"
        run = json.loads(path.read_text())
        older = run | {"schema": 1}
        if schema == 0:  # one flat row
            older = {"schema": 0, "run_id": run["run_id"], **run["config"], **run["result"], "diverged": number == 1}
        path.write_text(json.dumps(older))
    runs, rounds = load_runs(sweep), load_runs(sweep, rounds=True)
    assert runs["loss"].tolist() == load_runs(tmp_path / "before")["loss"].tolist()
    assert runs["learning_rate_rule"].tolist() == ["anew"] * 3
    assert runs["status"].tolist() == ["completed", "diverged" if schema == 0 else "completed", "completed"]
    assert pack(sweep).runs == 3
    pd.testing.assert_frame_equal(load_runs(sweep), runs)
    pd.testing.assert_frame_equal(load_runs(sweep, rounds=True), rounds)


def test_a_number_of_clients_that_no_column_holds_is_named_in_a_folder_and_in_a_pack(sweep, tmp_path):
    edit(sweep / "run-1", "run.json", '"clients": 4', '"clients": 1e26')
    with pytest.warns(RunLogWarning, match=r"skipped the run in .*run-1.*clients must be a number below 2\^63"):
        left = load_runs(sweep)
    assert list(left["run_id"]) == ["run-0", "run-2"] and set(left["clients"]) == {4}
    shutil.copytree(tmp_path / "before", tmp_path / "packed")
    pack(tmp_path / "packed")
    many = pa.array([4.0, 1e26, 4.0])
    place = pq.read_schema(tmp_path / "packed" / "runs.parquet").names.index("config.clients")
    rewritten(tmp_path / "packed" / "runs.parquet", lambda table: table.set_column(place, "config.clients", many))
    with pytest.warns(RunLogWarning, match=r"skipped the run in .*run-1.*clients must be a number below 2\^63"):
        assert load_runs(tmp_path / "packed")["clients"].tolist() == [4, 4]


COUNTS_DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "away": lambda path: path.unlink(),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a loop": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "no samples": lambda path: rewritten(path, lambda table: table.drop_columns("samples")),
    "no names": lambda path: rewritten(path, lambda table: table.drop_columns("pack_id")),
    "words for counts": lambda path: rewritten(
        path, lambda table: table.drop_columns("samples").append_column("samples", words(table["samples"]))
    ),
}


@pytest.mark.parametrize("damage", COUNTS_DAMAGE)
@pytest.mark.parametrize("schema", [1, 2])  # read alone, and by columns
def test_damaged_counts_of_a_pack_are_named_and_its_runs_kept(sweep, tmp_path, damage, schema):
    for number in range(3):
        edit(sweep / f"run-{number}", "run.json", '"schema": 2', f'"schema": {schema}')
        edit(sweep / f"run-{number}", "eval.json", '"samples": 3', '"pass_at_1": 0.5, "samples": 3')
    whole = load_runs(sweep)
    pack(sweep)
    COUNTS_DAMAGE[damage](sweep / "counts.parquet")
    with pytest.warns(RunLogWarning, match=r"left out the counts of the runs in .*counts.parquet"):
        frame = load_runs(sweep)
    pd.testing.assert_frame_equal(frame, whole.drop(columns="pass_at_1"))
    with pytest.warns(RunLogWarning, match="left out the counts"):
        assert len(load_runs(sweep, rounds=True)) == 6
    with pytest.warns(RunLogWarning, match="counts.parquet"), pytest.raises(DataError, match="evaluate them first"):
        load_counts(sweep)
    with pytest.raises(DataError, match="counts.parquet"):
        read_evaluation(sweep / "run-1")
    with pytest.warns(RunLogWarning, match="left out the counts"):
        assert Run.load(sweep / "run-1").loss == 2.4
    for change in (pack, unpack):  # what is lost is not made final
        with pytest.raises(DataError, match="counts.parquet"):
            change(sweep)


ROUNDS_DAMAGE = {
    **{name: COUNTS_DAMAGE[name] for name in ("cut", "empty", "away", "a pipe", "a loop", "no names")},
    "a page": lambda path: path.write_bytes(b"PAR1" + path.read_bytes()[4:40][::-1] + path.read_bytes()[40:]),
}


@pytest.mark.parametrize("damage", ROUNDS_DAMAGE)
@pytest.mark.parametrize("schema", [1, 2])  # read alone, and by columns
def test_damaged_rounds_of_a_pack_are_named_and_its_runs_and_counts_kept(sweep, damage, schema):
    for number in range(3):
        edit(sweep / f"run-{number}", "run.json", '"schema": 2', f'"schema": {schema}')
    whole, counts = load_runs(sweep), load_counts(sweep)
    pack(sweep)
    ROUNDS_DAMAGE[damage](sweep / "rounds.parquet")
    with pytest.warns(RunLogWarning, match=r"left out the rounds of the runs in .*rounds.parquet"):
        pd.testing.assert_frame_equal(load_runs(sweep), whole)
    with pytest.warns(RunLogWarning, match="left out the rounds"):
        pd.testing.assert_frame_equal(load_counts(sweep), counts)
    with pytest.warns(RunLogWarning, match="rounds.parquet"), pytest.raises(DataError, match="none of the 3 runs"):
        load_runs(sweep, rounds=True)
    run = Run.load(sweep / "run-1")
    assert run.loss == 2.4 and len(run.counts()) == 2
    with pytest.raises(DataError, match="rounds.parquet"):
        run.history()
    for change in (pack, unpack):  # what is lost is not made final
        with pytest.raises(DataError, match="rounds.parquet"):
            change(sweep)
    make(sweep, 5)
    with pytest.warns(RunLogWarning, match="left out the rounds"):
        assert set(load_runs(sweep, rounds=True)["run_id"]) == {"run-5"}


def test_counts_beside_damaged_counts_are_read(sweep):
    pack(sweep)
    (sweep / "counts.parquet").unlink()
    make(sweep, 5)
    with pytest.warns(RunLogWarning, match="left out the counts"):
        assert set(load_counts(sweep)["run_id"]) == {"run-5"}


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5])
def test_packing_killed_at_any_step_loses_nothing(sweep, tmp_path, calls):
    program = (
        "import os, signal, sys, shutil; import scalefed.runs.pack as p\n"
        "left = [int(sys.argv[2])]\n"
        "def counted(function):\n"
        "    def call(*a, **k):\n"
        "        left[0] -= 1\n"
        "        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return function(*a, **k)\n"
        "    return call\n"
        "p.os.replace = counted(os.replace); p.shutil.rmtree = counted(shutil.rmtree)\n"
        "p.pack(sys.argv[1])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, str(sweep), str(calls)], env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert log_differences(tmp_path / "before", sweep) == []
    assert pack(sweep).runs == 3 and is_packed(sweep)
    assert log_differences(tmp_path / "before", sweep) == []


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers(), max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.text(max_size=3), values, max_size=4), max_size=5))
def test_records_that_fit_come_back_equal(records):
    odd = misfits(records)
    kept = [record for position, record in enumerate(records) if position not in odd]
    again = list(decode(encode(kept)))
    assert repr(again) == repr(kept)


doubles = st.none() | st.sampled_from([0.0, -0.0, 1.0, math.nan])
repeating_rows = st.fixed_dictionaries(
    {"a": doubles, "b": doubles, "c": doubles, "each": st.none() | st.lists(doubles, max_size=2)}
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(repeating_rows, max_size=4))
@example([{"a": 0.0, "b": -0.0, "c": None, "each": [0.0]}])
@example([{"a": 1.0, "b": 1.0, "c": 1.0, "each": [1.0]}, {"a": None, "b": 0.0, "c": 1.0, "each": None}])
def test_numbers_left_out_come_back_bit_for_bit(rows):
    types = [(name, pa.float64()) for name in "abc"] + [("each", pa.list_(pa.float64()))]
    table = pa.Table.from_pylist(rows, schema=pa.schema(types))
    again = with_repeats(without_repeats(table))
    assert repr(again.to_pylist()) == repr(table.to_pylist())


def test_a_number_that_stands_twice_is_written_once(tmp_path):
    losses = [[3.0], [2.0, 1.0], [1.0]]
    rounds = [{"round": r, "train_loss": sum(each) / len(each), "client_losses": each} for r, each in enumerate(losses)]
    write_run(tmp_path / "sweep", run_id="run", config={}, result={"loss": 1.0}, rounds=rounds)
    pack(tmp_path / "sweep")
    written = pq.ParquetFile(tmp_path / "sweep" / "rounds.parquet").read()
    assert json.loads(written.schema.metadata[b"same_as"]) == {"train_loss": "client_losses"}
    assert written["train_loss"].to_pylist() == [None, 1.5, None]
    assert open_pack(tmp_path / "sweep").rounds["train_loss"].to_pylist() == [3.0, 1.5, 1.0]
