"""One line around any Flower strategy keeps a run that is read and fitted like any other, dead runs included."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flower_grid import Grid, environment, flower_here

import scalefed as sf
from scalefed.errors import ConfigError, RunLogWarning
from scalefed.federated.flower import app as flower_app
from scalefed.runs.files import ALIVE
from scalefed.runs.importers.rounds import import_rounds

ROOT = Path(__file__).parents[2]
TRUTH = {"E": 1.0, "A": 30.0, "a": 0.35, "B": 60.0, "b": 0.3}


@pytest.fixture
def here(monkeypatch):
    flower_here(monkeypatch)


def adding(message, context):
    """A client that adds its partition to every weight."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

    part = context.node_config["partition-id"]
    metrics = {"loss": float(part), "num-examples": 7 + part}
    if message.metadata.message_type == "evaluate":
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
    arrays = {name: Array(array.numpy() * 1.1 + part / 3) for name, array in message.content["arrays"].items()}
    content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


def averaging(grid, runs, *, strategy=None, sizes=(3,), rounds=3, evaluate=None, **options):
    """Rounds of Flower's own FedAvg; ``runs`` None keeps no log."""
    from flwr.app import Array, ArrayRecord, MetricRecord
    from flwr.serverapp.strategy import FedAvg

    strategies = {"fraction_train": 0.5, "fraction_evaluate": 0.0, "min_available_nodes": 6} | (strategy or {})
    made = FedAvg(**strategies)
    if runs is not None:
        assert sf.log_flower(made, runs=runs, **options) is made
    names = ["embed.weight", *(f"w{i}" for i in range(len(sizes) - 1))] if len(sizes) > 1 else ["w"]
    arrays = ArrayRecord({name: Array(np.full(size, 0.1)) for name, size in zip(names, sizes, strict=True)})
    return made.start(
        grid=grid, initial_arrays=arrays, num_rounds=rounds,
        evaluate_fn=evaluate or (lambda number, arrays: MetricRecord({"loss": 2.0 / (1 + number), "accuracy": 0.5})),
    )  # fmt: skip


def records_of(folder):
    return [json.loads(line) for line in (folder / "flower.jsonl").read_text().splitlines()]


@pytest.mark.flower
def test_a_run_is_a_row_with_what_flower_knows(here, tmp_path) -> None:
    runs = tmp_path / "runs" / "mine"
    averaging(Grid(adding, 6), runs, sizes=(50, 100, 21), tokens_per_example=32, local_epochs=2, skew=0.1,
              settings={"learning_rate": 1e-3, "site": "two"})  # fmt: skip
    table = sf.load_runs(runs)
    row = table.iloc[0]
    assert len(table) == 1 and row["status"] == "completed" and row["maker"] == "flower"
    assert (row["params"], row["params_total"]) == (121, 171)
    assert (row["clients"], row["clients_per_round"], row["participation"]) == (6, 3, 0.5)
    assert (row["algorithm"], row["rounds"], row["sweep"]) == ("FedAvg", 3, "mine")
    assert (row["loss"], row["accuracy"], row["skew"], row["learning_rate"]) == (0.5, 0.5, 0.1, 1e-3)
    assert row["site"] == "two" and "vocab_size" not in table and "batch_size" not in table  # no default was made up
    told = records_of(runs / row["run_id"])
    examples = sum(client["num-examples"] for one in told if one["kind"] == "round" for client in one["clients"])
    assert row["examples"] == examples and row["tokens"] == examples * 64
    assert row["compute"] == 6.0 * row["params"] * row["tokens"]
    bytes_sent = sum(one["bytes_down"] + one["bytes_up"] for one in told if one["kind"] == "round")
    assert row["bytes_sent"] == bytes_sent > 2 * 3 * 3 * 171 * 8
    rounds = sf.load_runs(runs, rounds=True)
    assert rounds["round"].tolist() == [1, 2, 3] and rounds["loss"].tolist() == [1.0, 2 / 3, 0.5]
    assert rounds["tokens"].is_monotonic_increasing and rounds["participants"].tolist() == [3, 3, 3]
    assert sf.Run.load(runs / row["run_id"]).history()["train_loss"].notna().all()


@pytest.mark.flower
def test_runs_of_several_sizes_are_fitted_without_any_bridge(here, tmp_path) -> None:
    from flwr.app import MetricRecord

    for size in (100, 400, 1600, 6400):
        for rounds in (2, 4, 8):
            tokens = 6 * 16 * rounds * sum(7 + part for part in range(6)) / 6

            def evaluate(number, arrays, size=size, tokens=tokens):
                return MetricRecord({"loss": 1.0 + 30 * size**-0.35 + 60 * tokens**-0.3})

            averaging(Grid(adding, 6), tmp_path / "grid", strategy={"fraction_train": 1.0}, sizes=(size,),
                      rounds=rounds, tokens_per_example=16, evaluate=evaluate)  # fmt: skip
    runs = sf.load_runs(tmp_path / "grid")
    assert len(runs) == 12 and runs["run_id"].is_unique
    fit = sf.fit(tmp_path / "grid", "chinchilla", resamples=50)
    assert fit.status.name in ("CONVERGED", "BOUND_HIT") and fit.params["a"] == pytest.approx(0.35, abs=0.05)
    assert fit.optimal_size(compute=1e9).params > 0


@pytest.mark.flower
def test_a_seed_makes_flower_repeat(here, tmp_path) -> None:
    random.seed(1)
    state = random.getstate()
    runs = [averaging(Grid(adding, 6), tmp_path / str(k), seed=3).arrays["w"].numpy() for k in range(4)]
    assert all(np.array_equal(runs[0], other) for other in runs)
    assert random.getstate() == state  # the global stream is nobody's business here
    other = averaging(Grid(adding, 6), tmp_path / "other", seed=4).arrays["w"].numpy()
    assert not np.array_equal(runs[0], other)
    tables = [sf.load_runs(tmp_path / str(k)).drop(columns=["run_id", "sweep", "wall_s", "started"]) for k in range(2)]
    assert tables[0].equals(tables[1])


@pytest.mark.flower
def test_the_log_changes_nothing_without_a_seed(here, tmp_path) -> None:
    weights = []
    for folder in (None, tmp_path / "log"):
        random.seed(2)
        weights.append(averaging(Grid(adding, 6, seed=0), folder).arrays["w"].numpy())
    np.testing.assert_array_equal(*weights)


@pytest.mark.flower
def test_the_log_says_what_happened_in_every_round(here, tmp_path) -> None:
    averaging(Grid(adding, 6), tmp_path, strategy={"fraction_evaluate": 0.5}, seed=0, run_id="one")
    records = records_of(tmp_path / "one")
    kinds = ["start", "server_eval", "nodes", *(["sampled", "round", "client_eval", "server_eval"] * 3), "end"]
    assert [record["kind"] for record in records] == kinds
    assert records[0]["arrays"] == {"w": 3} and records[2]["connected"] == 6 and records[-1]["rounds"] == 3
    for record in (record for record in records if record["kind"] == "round"):
        assert len(set(record["sampled"])) == 3
        assert {client["node"] for client in record["clients"]} == set(record["sampled"])
        weights = [7 + client["node"] for client in record["clients"]]
        mean = sum(w * client["node"] for w, client in zip(weights, record["clients"], strict=True)) / sum(weights)
        assert record["metrics"]["loss"] == pytest.approx(mean)
        assert record["bytes_up"] == record["bytes_down"] > 3 * 24 and record["failed"] == 0
    frame = import_rounds(tmp_path / "one" / "flower.jsonl")
    assert frame["loss"].dropna().tolist() == [2.0, 1.0, 2 / 3, 0.5]
    row = sf.load_runs(tmp_path).iloc[0]
    assert row["loss"] == 0.5 and row["loss_client_mean"] == row["client_loss"] >= 0  # the server's comes first


@pytest.mark.flower
def test_failures_are_counted_with_their_reasons(here, tmp_path) -> None:
    def sometimes(message, context):
        if context.node_config["partition-id"] % 2:
            raise ArithmeticError("out of memory, say")
        return adding(message, context)

    averaging(Grid(sometimes, 6), tmp_path, strategy={"fraction_train": 1.0}, run_id="a", seed=0)
    told = [record for record in records_of(tmp_path / "a") if record["kind"] == "round"]
    assert [(one["failed"], one["reasons"]) for one in told] == [(3, ["out of memory, say"])] * 3
    row = sf.load_runs(tmp_path).iloc[0]
    assert (row["failed_clients"], row["participants_mean"], row["clients_per_round"]) == (9, 3, 6)


# ---------------------------------------------------------------------- runs that do not end, or not well
@pytest.mark.flower
def test_two_runs_never_merge(here, tmp_path) -> None:
    averaging(Grid(adding, 6), tmp_path, run_id="one")
    kept = (tmp_path / "one" / "run.json").read_bytes()
    with pytest.raises(ConfigError, match="is there already, and runs never merge"):
        averaging(Grid(adding, 6), tmp_path, run_id="one")
    averaging(Grid(adding, 6), tmp_path)
    averaging(Grid(adding, 6), tmp_path)
    assert (tmp_path / "one" / "run.json").read_bytes() == kept and len(sf.load_runs(tmp_path)) == 3


@pytest.mark.flower
def test_a_run_that_breaks_is_stored_as_failed_with_its_rounds(here, tmp_path) -> None:
    from flwr.app import MetricRecord

    def evaluate(number, arrays):
        if number == 2:
            raise RuntimeError("no space left on device")
        return MetricRecord({"loss": 2.0})

    with pytest.raises(RuntimeError, match="no space left"):
        averaging(Grid(adding, 6), tmp_path, evaluate=evaluate, run_id="x")
    row = sf.load_runs(tmp_path).iloc[0]
    assert (row["status"], row["rounds"]) == ("failed", 2) and not (tmp_path / "x" / ALIVE).exists()
    assert json.loads((tmp_path / "x" / "run.json").read_text())["provenance"]["error"].startswith(
        "RuntimeError: no sp"
    )
    assert len(sf.load_runs(tmp_path, rounds=True)) == 2


@pytest.mark.flower
def test_a_run_that_is_not_finite_has_diverged(here, tmp_path) -> None:
    from flwr.app import MetricRecord

    averaging(Grid(adding, 6), tmp_path, evaluate=lambda n, arrays: MetricRecord({"loss": float("nan" if n else "1")}))
    assert sf.load_runs(tmp_path).iloc[0]["status"] == "diverged"


KILLED = """
import sys, time
sys.path[:0] = {paths!r}
import pytest
from flower_grid import Grid, flower_here
from test_flower_log import adding, averaging
with pytest.MonkeyPatch.context() as patch:
    flower_here(patch)
    def evaluate(number, arrays):
        from flwr.app import MetricRecord
        if number == 2:
            print("now", flush=True)
            time.sleep(600)
        return MetricRecord({{"loss": 1.0}})
    averaging(Grid(adding, 6), {runs!r}, evaluate=evaluate, run_id="killed")
"""


@pytest.mark.flower
def test_a_killed_run_is_running_while_it_lives_and_lost_after(tmp_path) -> None:
    pytest.importorskip("flwr")
    paths = [str(ROOT), str(ROOT / "tests" / "helpers"), str(Path(__file__).parent)]
    code = KILLED.format(paths=paths, runs=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "now"
    deadline = time.monotonic() + 20
    while not (tmp_path / "killed" / ALIVE).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sf.load_runs(tmp_path).iloc[0]["status"] == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    old = time.time() - 300
    os.utime(tmp_path / "killed" / ALIVE, (old, old))  # as it looks five minutes later
    row = sf.load_runs(tmp_path).iloc[0]
    assert (row["status"], row["rounds"], row["loss"]) == ("lost", 2, 1.0)
    assert len(sf.load_runs(tmp_path, rounds=True)) == 1
    with pytest.raises(sf.ScalefedError, match="status lost"):
        sf.fit(tmp_path, "chinchilla", resamples=0)


@pytest.mark.flower
def test_a_start_that_would_wait_without_end_is_warned_of(here, tmp_path, caplog) -> None:
    grid = Grid(adding, 6, late=2)  # one node at first, all of them a little later
    with pytest.warns(RunLogWarning, match=r"until 6 nodes are there \(min_available_nodes=6\); 1 is connected now"):
        averaging(grid, tmp_path, rounds=1)
    strategy = waiting(min_train_nodes=40)
    log = sf.log_flower(strategy, runs=tmp_path, run_id="waits")
    told = "until 40 nodes are there .min_train_nodes=40.; 6 are connected"
    with pytest.warns(RunLogWarning, match=told), pytest.raises(InterruptedError):
        log.start(grid=Grid(adding, 6), initial_arrays={}, num_rounds=1)
    assert "Flower waits without end until 40 nodes" in caplog.text
    assert json.loads((tmp_path / "waits" / "run.json").read_text())["status"] == "failed"


def waiting(**options):
    """A strategy that somebody stops while it waits."""
    from flwr.serverapp.strategy import FedAvg

    class Stopped(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            assert len(grid.get_node_ids()) == 6
            raise InterruptedError

    return Stopped(**options)


def test_mistakes_say_what_is_allowed(tmp_path) -> None:
    class Strategy:
        weighted_by_key = "n"

        def nothing(self, *args):
            return None

        start = configure_train = aggregate_train = configure_evaluate = aggregate_evaluate = nothing

    with pytest.raises(ConfigError, match="object has no start; give a strategy"):
        sf.log_flower(object(), runs=tmp_path)
    with pytest.raises(ConfigError, match="tokens_per_example must be a positive number, got 0"):
        sf.log_flower(Strategy(), runs=tmp_path, tokens_per_example=0)
    with pytest.raises(ConfigError, match="skew must be from 0 to 1, got 3"):
        sf.log_flower(Strategy(), runs=tmp_path, skew=3)
    with pytest.raises(ConfigError, match="a run_id may hold letters"):
        sf.log_flower(Strategy(), runs=tmp_path, run_id="../x")
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------------- the real thing
APP = '''"""A small Flower app of one's own; the line that scalefed adds is marked."""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client_app = ClientApp()


@client_app.train()
def train(message, context):
    weights = message.content["arrays"]["w"].numpy()
    found = {"arrays": ArrayRecord({"w": Array(weights * 0.9)}),
             "metrics": MetricRecord({"loss": float(np.abs(weights).mean()), "num-examples": 8})}
    return Message(RecordDict(found), reply_to=message)


@client_app.evaluate()
def evaluate(message, context):
    weights = message.content["arrays"]["w"].numpy()
    metrics = MetricRecord({"eval_loss": 1 + float(np.abs(weights).mean()), "num-examples": 4})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


server_app = ServerApp()


@server_app.main()
def main(grid, context):
    strategy = FedAvg(fraction_train=1.0, min_available_nodes=2)
    import scalefed as sf; strategy = sf.log_flower(strategy, runs=RUNS, tokens_per_example=32)  # the one line
    strategy.start(grid=grid, initial_arrays=ArrayRecord({"w": Array(np.ones(64))}), num_rounds=3)
'''
PROJECT = """[project]
name = "own"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "local"

[tool.flwr.app.components]
serverapp = "own_app:server_app"
clientapp = "own_app:client_app"

[tool.flwr.app.config]
"""
SIMULATE = """
from flwr.simulation import run_simulation
from own_app import client_app, server_app

if __name__ == "__main__":
    run_simulation(server_app=server_app, client_app=client_app, num_supernodes=2,
                   backend_config={"client_resources": {"num_cpus": 1},
                                   "init_args": {"num_cpus": 1, "include_dashboard": False, "log_to_driver": False}})
"""


def own_app(folder: Path, runs: Path) -> Path:
    folder.mkdir()
    (folder / "own_app.py").write_text(APP.replace("RUNS", repr(str(runs))))
    (folder / "pyproject.toml").write_text(PROJECT)
    return folder


def check(runs: Path) -> None:
    row = sf.load_runs(runs).iloc[0]
    assert (row["status"], row["params"], row["clients"], row["clients_per_round"]) == ("completed", 64, 2, 2)
    assert (row["rounds"], row["tokens"], row["examples"]) == (3, 3 * 2 * 8 * 32, 48)
    assert row["loss"] == pytest.approx(1 + 0.9**3) and row["bytes_sent"] > 3 * 2 * 2 * 64 * 8
    assert sf.chart(sf.load_runs(runs, rounds=True), "rounds") is not None


@pytest.mark.flower
@pytest.mark.slow
def test_one_line_in_an_app_under_flowers_own_simulation(tmp_path) -> None:
    pytest.importorskip("ray")
    app = own_app(tmp_path / "app", tmp_path / "runs")
    (app / "simulate.py").write_text(SIMULATE)
    switches = {**flower_app.SWITCHES, **environment(tmp_path)}
    done = subprocess.run([sys.executable, "simulate.py"], env=switches, cwd=app, capture_output=True, text=True,
                          timeout=600, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "scalefed: this run is kept in" in done.stdout + done.stderr
    check(tmp_path / "runs")


@pytest.mark.flower
@pytest.mark.slow
def test_one_line_in_an_app_over_a_superlink_and_two_supernodes(tmp_path, monkeypatch) -> None:
    pytest.importorskip("flwr")
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    app = own_app(tmp_path / "app", tmp_path / "runs")
    with flower_app.loopback(nodes=2, home=tmp_path / "flower") as link:
        said = link.run(app, timeout_s=600.0)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(
            json.loads(file.read_text())["status"] == "completed" for file in (tmp_path / "runs").glob("*/run.json")
        ):
            time.sleep(0.2)
    assert (tmp_path / "runs").is_dir(), said[-3000:]
    check(tmp_path / "runs")
