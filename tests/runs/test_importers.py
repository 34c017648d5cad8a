"""Records of other tools, on files that the tools wrote: what a user writes, and what comes out."""

import json
import pickle
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.errors import DataError, RunLogWarning
from scalefed.runs.importers import tensorboard
from scalefed.runs.importers.rounds import import_rounds
from scalefed.runs.log import load_runs

settings.register_profile("quick", deadline=None, max_examples=60)
settings.load_profile("quick")

FILES = Path(__file__).parent / "fixtures"


def values(frame: pd.DataFrame, *names: str) -> list[list[float]]:
    return [[float(value) for value in frame[name]] for name in names]


# ---------------------------------------------------------------------- Flower
def history() -> dict:
    return json.loads((FILES / "flower_history.json").read_text())


@pytest.mark.parametrize("form", ["path", "dict", "object", "text keys"])
def test_a_flower_history_is_read_in_every_form(form):
    source = {"path": FILES / "flower_history.json", "dict": history(), "object": SimpleNamespace(**history())}.get(
        form
    )
    if source is None:
        source = {name: block for name, block in history().items() if not name.startswith("losses")}
        source["losses_centralized"] = [["0", 3.1], ["1", 2.7], ["2", 2.3], ["3", 1.9]]
    frame = import_rounds(source)
    assert frame["round"].tolist() == [0, 1, 2, 3] and frame["loss"].tolist() == [3.1, 2.7, 2.3, 1.9]
    assert frame["train_loss"].tolist()[1:] == pytest.approx([2.3, 2.1, 1.9])
    assert frame["accuracy"].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert frame["client_accuracy"].tolist()[1:] == pytest.approx([0.6, 0.7, 0.8])
    if form != "text keys":
        assert frame["client_loss"].tolist()[1:] == pytest.approx([2.1, 1.9, 1.7])


def test_what_flower_prints_is_read_from_a_file_and_from_a_text():
    text = (FILES / "flower_printed.log").read_text()
    whole = import_rounds(FILES / "flower_printed.log")
    assert whole["loss"].tolist() == [3.1, 2.7, 2.3, 1.9] and whole["client_eval_loss"].tolist()[1:] == [2.1, 1.9, 1.7]
    of_history = import_rounds(text[: text.index("Strategy execution")])
    assert of_history["client_loss"].tolist()[1:] == pytest.approx([2.1, 1.9, 1.7])
    assert of_history["train_perplexity"].tolist()[1:] == [8.5, 7.5, 6.5]
    old = "INFO flwr 2023-01-01 10:00:00,123 | app.py:229 | app_fit: losses_distributed [(1, 2.5), (2, 2.25)]"
    assert import_rounds(old + "\n")["client_loss"].tolist() == [2.5, 2.25]
    with pytest.raises(DataError, match="no rounds in the text"):
        import_rounds("a text\n" * 200)
    with pytest.raises(DataError, match="no rounds in the text"):
        import_rounds("x" * 10_000)


def test_a_pickle_is_refused_by_name(tmp_path):
    path = tmp_path / "history.pkl"
    path.write_bytes(pickle.dumps(history()))
    with pytest.raises(DataError, match=r"history.pkl is a pickle, which runs whatever code .* json.dump"):
        import_rounds(path)


@pytest.mark.parametrize("block", [[[1, 2, 3]], [1], "x", {"loss": 3}, 5, [["one", 2.0]], [[1.5, 2.0]], [[-1, 2.0]]])
def test_a_history_of_another_shape_is_refused(block):
    with pytest.raises(DataError):
        import_rounds({"losses_centralized": block})


@pytest.mark.flower
def test_flowers_own_objects_and_words(capfd):
    flwr_history = pytest.importorskip("flwr.server.history")
    from flwr.app import MetricRecord
    from flwr.serverapp.strategy import Result

    made = flwr_history.History()
    for number in range(3):
        made.add_loss_centralized(number, 3.0 - number)
        made.add_metrics_distributed_fit(number, {"train_loss": 4.0 - number})
    result = Result(evaluate_metrics_serverapp={n: MetricRecord({"loss": 3.0 - n}) for n in range(3)})
    for source in (made, str(made), result, str(result)):
        assert import_rounds(source)["loss"].tolist() == [3.0, 2.0, 1.0]
    assert import_rounds(str(made))["train_loss"].tolist() == [4.0, 3.0, 2.0]


# ---------------------------------------------------------------------- trackers
SEARCHED = {"params": "params.n_params", "tokens": "params.tokens", "loss": "metrics.val_loss"}


@pytest.mark.parametrize("source", ["mlruns", "mlflow.db", "mlflow_search.csv"])
def test_mlflow_by_folder_database_and_search(source):
    frame = load_runs(FILES / source, columns=SEARCHED).sort_values("params")
    assert frame["params"].tolist() == [1e6, 2e6, 4e6] and frame["loss"].tolist() == [4.0, 3.9, 3.8]
    assert frame["status"].tolist() == ["FINISHED", "FINISHED", "FAILED"]
    assert frame["compute"].tolist() == [1.2e14, 2.4e14, 1.92e15]


def test_rounds_of_one_mlflow_run(tmp_path):
    run = next(path for path in (FILES / "mlruns").rglob("meta.yaml") if "run-2" in path.read_text()).parent
    frame = import_rounds(run, columns={"loss": "val_loss", "train_loss": "train/loss"})
    assert values(frame, "round", "loss", "train_loss") == [[0, 1, 2], [4.8, 4.3, 3.8], [5.1, 4.6, 4.1]]
    with pytest.raises(DataError, match="mlflow.db holds 3 runs; rounds are those of one"):
        import_rounds(FILES / "mlflow.db")
    path = tmp_path / "one.db"
    shutil.copy(FILES / "mlflow.db", path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE status = 'FINISHED'")
    connection.close()
    assert import_rounds(path, columns={"loss": "val_loss"})["loss"].tolist() == [4.8, 4.3, 3.8]


def test_a_damaged_run_of_mlflow_is_named_and_skipped(tmp_path):
    shutil.copytree(FILES / "mlruns", tmp_path / "mlruns")
    bad = next((tmp_path / "mlruns").rglob("val_loss"))
    bad.write_text("1 2\nhalf a li")
    with pytest.warns(RunLogWarning, match="skipped the run in .*val_loss, line 2: not 'timestamp value step'"):
        assert len(load_runs(tmp_path / "mlruns", columns=SEARCHED)) == 2
    (tmp_path / "x.db").write_bytes((FILES / "mlflow.db").read_bytes()[:5000])
    with pytest.raises(DataError, match="no MLflow database that can be read"):
        load_runs(tmp_path / "x.db")


def test_weights_and_biases_by_its_export_and_its_api():
    ours = {"params": "n_params", "loss": "final_loss", "learning_rate": "optimizer.lr"}
    frame = load_runs(FILES / "wandb_project.csv", columns=ours)
    assert frame.sort_values("run_id")["params"].tolist() == [1e6, 2e6, 4e6]
    assert frame["learning_rate"].tolist() == [0.001] * 3 and set(frame["run_id"]) == {"run-0", "run-1", "run-2"}
    table = pd.read_csv(FILES / "wandb_project.csv")
    runs = [
        SimpleNamespace(id=f"id{i}", name=name, state="crashed" if i else "finished", config=_dict(config),
                        summary=SimpleNamespace(_json_dict=_dict(summary)))
        for i, (name, config, summary) in enumerate(zip(table["name"], table["config"], table["summary"], strict=True))
    ]  # fmt: skip
    live = load_runs(runs, columns=ours)
    assert live["status"].tolist() == ["finished", "crashed", "crashed"]
    assert live["loss"].tolist() == frame["loss"].tolist() and live["run_id"].tolist() == ["id0", "id1", "id2"]
    rounds = import_rounds(FILES / "wandb_history.csv", columns={"loss": "val/loss", "round": "_step"})
    assert values(rounds, "round", "loss") == [[0, 100, 200], [5.1, 4.6, 4.1]]
    assert rounds["server_round"].tolist() == [0, 1, 2]


def _dict(text: str) -> dict:
    return json.loads(text.replace("'", '"'))


def test_an_internal_file_of_weights_and_biases_names_what_to_give(tmp_path):
    (tmp_path / "run-1.wandb").write_bytes(b":W&B")
    with pytest.raises(DataError, match=r"internal file of Weights & Biases; give the runs of its API"):
        load_runs(tmp_path / "run-1.wandb")


def test_tensorboard_by_file_folder_and_runs():
    names = {"loss": "val/loss", "train_loss": "train/loss"}
    for source in (FILES / "tensorboard" / "run-a", next((FILES / "tensorboard").rglob("events*"))):
        frame = import_rounds(source, columns=names)
        assert frame["round"].tolist() == [0, 1, 2, 3] and frame["train_loss"].tolist() == [5.0, 4.5, 4.0, 3.5]
        assert frame["loss"].dropna().tolist() == pytest.approx([4.7, 3.7])
    row = load_runs(FILES / "tensorboard", columns=names).iloc[0]
    assert (row["run_id"], row["train_loss"]) == ("run-a", 3.5) and row["loss"] == pytest.approx(3.7)


@given(st.binary(max_size=300), st.integers(0, 5600))
def test_any_bytes_are_scalars_or_a_data_error(tmp_path_factory, data, at):
    whole = next((FILES / "tensorboard").rglob("events*")).read_bytes()
    path = tmp_path_factory.mktemp("events") / "events.out.tfevents.1"
    for content in (data, whole[:at], whole[:at] + data + whole[at + len(data) :]):
        path.write_bytes(content)
        try:
            assert all(
                isinstance(value, (int, float)) for record in tensorboard.records_of(path) for value in record.values()
            )
        except DataError:
            pass


# ---------------------------------------------------------------------- trainers and harnesses
def test_a_trainers_state_as_rounds_and_as_a_run():
    for source in (FILES / "trainer", FILES / "trainer" / "trainer_state.json"):
        frame = import_rounds(source)
        assert frame["round"].tolist() == [2, 4, 6] and frame["tokens"].tolist() == [128, 256, 384]
        assert frame["loss"].tolist() == pytest.approx([3.9027, 3.9026, 3.9026], abs=1e-4)
        assert frame["train_loss"].tolist() == pytest.approx([3.9053, 3.8966, 3.9027], abs=1e-4)
        assert frame["train_loss_mean"].dropna().tolist() == pytest.approx([3.9016], abs=1e-4)
        row = load_runs(source).iloc[0]
        assert (row["tokens"], row["compute"], row["status"]) == (384, 7_630_848, "completed")
        assert row["params"] == 3312 and row["loss"] == pytest.approx(3.902576, abs=1e-6)


@pytest.mark.parametrize("form", ["list", "json", "jsonl", "state"])
def test_a_trainers_log_history_by_itself_has_the_loss_of_training(form, tmp_path):
    history = [
        {"loss": 2.0, "learning_rate": 1e-3, "step": 10},
        {"eval_loss": 1.9, "eval_runtime": 1.0, "step": 10},
        {"train_runtime": 3.0, "train_loss": 1.95, "step": 10},
    ]
    path = tmp_path / f"history.{form}"
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, history)))
    elif form == "json":
        path.write_text(json.dumps(history))
    source = {"list": history, "state": {"log_history": history}}.get(form, path)
    (row,) = import_rounds(source).to_dict("records")
    assert (row["round"], row["loss"], row["train_loss"], row["train_loss_mean"]) == (10, 1.9, 2.0, 1.95)


def test_a_loss_beside_one_of_validation_is_that_of_training():
    table = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "val_loss": [2.1, 1.1]})
    with pytest.warns(RunLogWarning, match="loss is read as the training loss, as val_loss stands beside it"):
        found = import_rounds(table)
    assert found[["loss", "train_loss"]].to_numpy().tolist() == [[2.1, 2.0], [1.1, 1.0]]
    assert import_rounds(table, columns={"loss": "loss"})["loss"].tolist() == [2.0, 1.0]


def test_lightning_leaves_blanks_between():
    frame = import_rounds(FILES / "lightning_metrics.csv", columns={"loss": "val_loss"})
    assert frame["round"].tolist() == [3, 7, 11, 15, 19, 23]
    assert frame["loss"].dropna().tolist() == pytest.approx([0.354, 0.264, 0.198], abs=1e-3)
    assert frame["train_loss"].notna().all()


def test_lm_eval_results_are_one_row_a_model(tmp_path):
    frame = load_runs(FILES / "lm_eval").set_index("run_id")
    assert frame.loc["models/checkpoint-6", "params_total"] == 4592
    assert frame.loc["models/checkpoint-6", "toy/perplexity"] == pytest.approx(62.6727, abs=1e-4)
    results = {"results": {"humaneval": {"pass@1,create_test": 0.31}}, "n-shot": {}, "model_name": "mine"}
    (tmp_path / "results_1.json").write_text(json.dumps(results))
    row = load_runs(tmp_path / "results_1.json").iloc[0]
    assert row["pass_at_1"] == 0.31 and row["humaneval/pass@1 (create_test)"] == 0.31


# ---------------------------------------------------------------------- any table
SPARSE = "round,train_loss,loss,lr\n1,2.5,,0.1\n1,,2.4,\n2,2.1,,0.1\n2,,2.0,\n"


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "frame", "records"])
def test_blanks_never_erase_a_number(tmp_path, kind):
    (tmp_path / "m.csv").write_text(SPARSE)
    frame = pd.read_csv(tmp_path / "m.csv")
    records = json.loads(frame.to_json(orient="records"))
    path = tmp_path / f"m.{kind}"
    source = {"frame": frame, "records": records}.get(kind, path)
    if kind == "tsv":
        path.write_text(SPARSE.replace(",", "\t"))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "json":
        path.write_text(json.dumps(records))
    elif kind == "parquet":
        frame.to_parquet(path)
    found = import_rounds(source)
    assert values(found, "round", "train_loss", "loss", "lr") == [[1, 2], [2.5, 2.1], [2.4, 2.0], [0.1, 0.1]]


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc"), st.floats(0.1, 9)), min_size=1, max_size=20),
    st.randoms(),
)
def test_scattered_cells_come_together_in_any_order(cells, random):
    wanted = {(number, name): value for number, name, value in cells}
    records = [{"round": number, name: value, "other": None} for (number, name), value in wanted.items()]
    random.shuffle(records)
    frame = import_rounds(records).set_index("round")
    assert all(frame.loc[number, name] == value for (number, name), value in wanted.items())
    assert frame.notna().sum().sum() == len(wanted)


def test_rows_that_contradict_each_other_are_an_error():
    rows = [{"round": 1, "loss": 2.0}, {"round": 1, "loss": 4.0}]
    with pytest.raises(DataError, match=r"2 rows for round 1 differ in loss: 2.0 and 4.0; aggregate them first, or"):
        import_rounds(rows)
    assert import_rounds([rows[0], rows[0]])["loss"].tolist() == [2.0]
    timed = [{"round": 1, "loss": 2.0, "timestamp": 1.0}, {"round": 1, "lr": 0.1, "timestamp": 2.0}]
    assert import_rounds(timed)["timestamp"].tolist() == [2.0]


CLIENTS = [
    {"round": 1, "client": 3, "loss": 2.0, "tokens": 300}, {"round": 1, "client": 5, "loss": 4.0, "tokens": 100},
    {"round": 2, "client": 1, "loss": 1.0, "tokens": 100}, {"round": 2, "client": 7, "loss": 3.0, "tokens": 100},
]  # fmt: skip


@pytest.mark.parametrize("weight", ["tokens", "num_examples", "num-examples", "n_samples"])
@pytest.mark.parametrize("client", ["client", "Client_ID", "cid", "partition-id"])
def test_rows_of_clients_become_weighted_means(weight, client):
    names = {"tokens": weight, "client": client}
    rows = [{names.get(key, key): value for key, value in row.items()} for row in CLIENTS]
    frame = import_rounds(rows[::-1])
    assert frame["loss"].tolist() == [2.5, 2.0] and frame["participants"].tolist() == [2, 2]
    if weight == "tokens":
        assert frame["tokens"].tolist() == [400, 600], "so far"
        assert sorted(frame["client_tokens"][0]) == [100, 300]


def test_the_servers_row_among_those_of_clients_keeps_its_names():
    frame = import_rounds([*CLIENTS, {"round": 1, "loss": 2.2}, {"round": 2, "loss": 1.8}])
    assert frame["loss"].tolist() == [2.2, 1.8] and frame["client_loss"].tolist() == [2.5, 2.0]


def test_clients_without_weights_weigh_alike_and_it_is_said():
    rows = [{key: value for key, value in row.items() if key != "tokens"} for row in CLIENTS]
    with pytest.warns(RunLogWarning, match="clients' rows weigh alike"):
        assert import_rounds(rows)["loss"].tolist() == [3.0, 2.0]
    named = import_rounds([row | {"seen": row["tokens"], "tokens": 1} for row in CLIENTS], columns={"tokens": "seen"})
    assert named["loss"].tolist() == [2.5, 2.0]


@pytest.mark.parametrize("name", ["round", "Round", "server_round", "round_number", "Step", "_step", "step", "epoch"])
def test_the_rounds_name_is_found_or_given(name):
    rows = [{name: number, "Loss": 5.0 - number} for number in range(3)]
    assert import_rounds(rows)["loss"].tolist() == [5.0, 4.0, 3.0]
    given = [{"when": number, "x": 5.0 - number} for number in range(3)]
    assert import_rounds(given, columns={"round": "when", "loss": "x"})["loss"].tolist() == [5.0, 4.0, 3.0]


BAD = {
    "no round": ([{"a": 1}], None, 'no rounds in the list: .* name yours by columns={"round": "..."}; it has a'),
    "half a round": ([{"round": 1.5, "loss": 1}], None, "a round must be a whole number from 0 up, got 1.5"),
    "text": ([{"round": "first", "loss": 1}], None, "a round must be a whole number from 0 up, got 'first'"),
    "percent": ([{"round": 1, "pass_at_1": 64.6}], None, "pass_at_1 must be from 0 to 1, got 64.6"),
    "no number": ([{"round": 1, "loss": "low"}], None, "loss must be a number"),
    "unknown": ([{"round": 1, "loss": 1}], {"loss": "x"}, "no metric 'x'"),
    "not ours": ([{"round": 1, "x": 1}], {"los": "x"}, "no column of a round; did you mean 'loss'"),
    "a number": (5, None, "got int"),
    "nothing": ([], None, "no rows|no rounds"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(case):
    source, columns, message = BAD[case]
    with pytest.raises(DataError, match=message):
        import_rounds(source, columns=columns)


@pytest.mark.parametrize("text", ["a;b\n", "params;tokens;loss\n1e6;2e7;3.5\n"])
def test_semicolons_and_tabs_part_columns_too(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    if "loss" in text:
        assert load_runs(path)["loss"].tolist() == [3.5]
        path = tmp_path / "t.tsv"
        path.write_text(text.replace(";", "\t"))
        assert load_runs(path)["tokens"].tolist() == [2e7]
    else:
        with pytest.raises(DataError):
            load_runs(path)


@pytest.mark.parametrize("source", [[{"params": 1e6, "tokens": 2e7, "loss": 3.5}], {"params": [1e6], "loss": [3.5]}])
def test_tables_may_be_objects(source, tmp_path):
    assert load_runs(source)["loss"].tolist() == [3.5]
    (tmp_path / "t.json").write_text(json.dumps(source))
    assert load_runs(tmp_path / "t.json")["params"].tolist() == [1e6]
    assert np.isfinite(load_runs(source)["params"]).all()
