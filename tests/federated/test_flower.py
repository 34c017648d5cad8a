"""Flower runs end with the same bits as native ones: on a grid in this process, in Ray, and over SuperNodes."""

import json
import math
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flower_grid import Grid, environment, flower_here
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.config import RunConfig
from scalefed.errors import ConfigError, DataError, MissingExtraError
from scalefed.federated import rounds
from scalefed.federated.flower import app as flower_app
from scalefed.federated.flower import engine as flower
from scalefed.federated.flower.app import settings_of_app, to_flower_app
from scalefed.models import build_model
from scalefed.values import ALGORITHMS

ROOT = Path(__file__).parents[2]
CONFIG = RunConfig(
    params=1_500, vocab_size=64, clients=4, clients_per_round=3, local_steps=2, batch_size=2, sequence_length=16,
    tokens=3 * 3 * 2 * 2 * 16, client_batching="loop", seed=5,
)  # fmt: skip


class Text:
    """Random tokens that depend on the client and its visit alone."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
        draw = np.random.default_rng((client, visit))
        return draw.integers(
            self.config.vocab_size, size=(steps, self.config.batch_size, self.config.sequence_length + 1)
        )


@pytest.fixture
def here(monkeypatch):
    """Flower ready to make messages in this process, and client data that takes no time to make."""
    flower_here(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its dependencies say of each other on import
        flower.flower_names()
    monkeypatch.setattr(flower, "task_of", lambda config: SimpleNamespace(model=build_model(config), data=Text(config)))


def native(config: RunConfig) -> list[rounds.Round]:
    model = build_model(config)
    return list(rounds.run_rounds(config, model, Text(config), rounds.initial_state(config, model)))


def over_grid(config: RunConfig, grid: Grid, *, state=None, nodes: int = 2, timeout_s: float = 60.0):
    model, done = build_model(config), []

    def run(given: RunConfig, output: str) -> None:
        assert (given, output) == (config, "somewhere")
        start = state or rounds.initial_state(config, model)
        done.extend(flower.run_rounds(config, model, Text(config), start))

    extras = {"output": "somewhere", "nodes": nodes, "timeout_s": timeout_s}
    kept = {name: value for name, value in config.items() if value is not None}
    flower.server_app(run)(grid, SimpleNamespace(run_config=kept | extras))
    return done


def same(mine: list[rounds.Round], theirs: list[rounds.Round]) -> bool:
    def vectors(one: rounds.Round) -> list[torch.Tensor]:
        memories = [m[name] for _, m in sorted(one.state.memory.items()) for name in sorted(m)]
        return [one.state.weights, *(one.state.slots[name] for name in sorted(one.state.slots)), *memories]

    return len(mine) == len(theirs) and all(
        a.record == b.record
        and a.state.visits == b.state.visits
        and all(torch.equal(x, y) for x, y in zip(vectors(a), vectors(b), strict=True))
        for a, b in zip(mine, theirs, strict=True)
    )


# ---------------------------------------------------------------------- the same bits
@pytest.mark.flower
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_ends_with_the_native_bits(here, algorithm: str) -> None:
    config = CONFIG.replace(generator_params=1_500, generator_steps=2, synthetic_tokens=64)
    if algorithm == "central":
        config = config.replace(clients=1, clients_per_round=1)
    config = config.replace(algorithm=algorithm)
    grid = Grid(flower.client_app(config), 4)
    assert same(over_grid(config, grid), native(config))


@pytest.mark.flower
@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.4, "stragglers": 0.5, "algorithm": "scaffold"},
        {"sampling": "bernoulli", "algorithm": "fednova", "inner_optimizer": "sgd"},
        {"clients_per_round": 1, "inner_state": "keep", "algorithm": "diloco"},
        {"precision": "bfloat16"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_participation_and_optimizers_end_with_the_native_bits(here, changes) -> None:
    config = CONFIG.replace(**changes)
    assert same(over_grid(config, Grid(flower.client_app(config), 2, seed=1)), native(config))


@pytest.mark.flower
def test_nodes_may_be_fewer_than_clients_or_come_late(here) -> None:
    expected = native(CONFIG)
    for nodes in (1, 3, 7):
        grid = Grid(flower.client_app(CONFIG), nodes, late=3)
        assert same(over_grid(CONFIG, grid, nodes=nodes), expected)
        assert len(set(grid.served)) == min(nodes, 3)


@pytest.mark.flower
def test_a_run_goes_on_from_any_state(here) -> None:
    config = CONFIG.replace(algorithm="scaffold", server_momentum=0.5)
    expected = native(config)
    for done in range(2):
        grid = Grid(flower.client_app(config), 4)
        assert same(over_grid(config, grid, state=expected[done].state), expected[done + 1 :])


@pytest.mark.flower
def test_the_client_app_reads_its_config_from_the_run(here) -> None:
    given = {name: value for name, value in CONFIG.items() if value is not None}
    given |= {"output": "x", "nodes": 2, "timeout_s": 1.0, "learning_rate": "auto"}
    assert same(over_grid(CONFIG, Grid(flower.client_app(), 2, run_config=given)), native(CONFIG))


@pytest.mark.flower
def test_bits_survive_flowers_records(here) -> None:
    tensors = {
        "plain": torch.tensor([math.pi, -0.0, math.inf, math.nan, 1e-42]),
        "half": torch.tensor([1.0, math.nan, 3e38]).to(torch.bfloat16),
        "ids": torch.tensor([[1, 2], [3, 4]], dtype=torch.int32),
        "nothing": torch.zeros(0),
    }
    back = flower.tensors_in(flower.record_of(tensors))
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].numpy(force=True).tobytes() == tensor.numpy().tobytes() if name != "half" else True
    assert torch.equal(back["half"].view(torch.int16), tensors["half"].view(torch.int16))


# ---------------------------------------------------------------------- trouble
class Failing:
    """A client app that fails for some clients."""

    def __init__(self, clients) -> None:
        self.clients, self.app = clients, flower.client_app(CONFIG)

    def __call__(self, message, context):
        if message.content["work"]["client"] in self.clients:
            raise ArithmeticError("out of memory, say")
        return self.app(message, context)


@pytest.mark.flower
def test_a_client_that_fails_is_left_out_and_said(here, caplog) -> None:
    config = CONFIG.replace(clients_per_round=4)
    done = over_grid(config, Grid(Failing({1}), 4))
    assert [one.record["participants"] for one in done] == [3, 3]
    assert done[-1].state.visits == (2, 0, 2, 2)
    assert "out of memory, say" in caplog.text


class Dying(Grid):
    """A node that is killed in the middle: from some message on the SuperLink answers for it, and it is not listed."""

    def __init__(self, *given, code: int, after: int, **named) -> None:
        super().__init__(*given, **named)
        self.code, self.after = code, after

    def _serve(self, message) -> str:
        from flwr.app import Error, Message

        name = super()._serve(message)
        dead = self.nodes[0].node_id if len(self.served) > self.after else None
        if message.metadata.dst_node_id == dead:
            self.answers[name] = Message(Error(code=self.code, reason="node unavailable"), reply_to=message)
        return name

    def get_nodes(self):
        nodes = super().get_nodes()
        return nodes if len(self.served) <= self.after else [one for one in nodes if one is not self.nodes[0]]


@pytest.mark.flower
@pytest.mark.parametrize("code", [3, 5, 8])
def test_what_a_killed_node_was_working_on_is_sent_to_another(here, caplog, code: int) -> None:
    config = CONFIG.replace(tokens=2 * CONFIG.tokens)
    grid = Dying(flower.client_app(config), 2, code=code, after=3)
    assert same(over_grid(config, grid, nodes=2), native(config))
    assert "was lost and is sent again: node unavailable" in caplog.text


@pytest.mark.flower
def test_a_task_that_is_lost_again_and_again_is_given_up(here) -> None:
    grid = Dying(flower.client_app(CONFIG), 1, code=8, after=0)
    grid.get_nodes = lambda: grid.nodes
    with pytest.raises(DataError, match="no client of round 1 answered: node unavailable"):
        over_grid(CONFIG, grid, nodes=1)
    assert len(grid.served) == 4 * len(rounds.cohort(CONFIG, 0))


@pytest.mark.flower
def test_a_coordinator_that_is_killed_goes_on_after_its_last_round(here, tmp_path, monkeypatch) -> None:
    """The written app keeps every round: started again, it asks for the rounds that are missing and no other."""
    from scalefed.experiment import train

    config = REAL.replace(tokens=5 * 256)
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "native"))
    expected = train(config, runs=tmp_path / "native").weights_hash
    monkeypatch.undo()
    flower_here(monkeypatch)
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))
    app = to_flower_app(config, tmp_path / "app", nodes=2)
    monkeypatch.syspath_prepend(app)
    import scalefed_app

    kept = {name: value for name, value in config.items() if value is not None}
    given = SimpleNamespace(run_config=kept | {"output": str(app / "runs"), "nodes": 2, "timeout_s": 60.0})

    class Killed(Grid):
        def push_messages(self, messages):
            if len(self.served) > 3:
                raise KeyboardInterrupt
            return super().push_messages(messages)

    with pytest.raises(KeyboardInterrupt):
        scalefed_app.server_app(Killed(flower.client_app(config), 2), given)
    grid = Grid(flower.client_app(config), 2)
    scalefed_app.server_app(grid, given)
    stored = json.loads((app / "runs" / config.run_id / "run.json").read_text())["result"]
    assert stored["weights_hash"] == expected
    assert len(grid.served) < stored["rounds"] * config.clients_per_round - 2


@pytest.mark.flower
def test_a_round_without_answers_is_an_error(here) -> None:
    with pytest.raises(DataError, match="no client of round 1 answered: out of memory, say"):
        over_grid(CONFIG, Grid(Failing({0, 1, 2, 3}), 4))


@pytest.mark.flower
def test_nodes_that_never_come_are_an_error(here) -> None:
    with pytest.raises(DataError, match="2 of 3 Flower nodes"):
        over_grid(CONFIG, Grid(flower.client_app(CONFIG), 2), nodes=3, timeout_s=0.2)


def test_without_flower_its_extra_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)
    flower.flower_names.cache_clear()
    model = build_model(CONFIG)
    with pytest.raises(MissingExtraError, match=r"scalefed\[flower\]"):
        next(flower.run_rounds(CONFIG, model, Text(CONFIG), rounds.initial_state(CONFIG, model)))
    with pytest.raises(MissingExtraError, match=r"scalefed\[flower\]"), flower_app.loopback(home=tmp_path):
        pass
    assert to_flower_app(CONFIG, tmp_path / "app").is_dir()  # writing needs no Flower


# ---------------------------------------------------------------------- the app on disk
@given(
    rate=st.none() | st.floats(1e-6, 1.0),
    concentration=st.just(math.inf) | st.floats(0.01, 100.0),
    algorithm=st.sampled_from([name for name in ALGORITHMS if name != "central"]),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=25)
def test_an_app_holds_every_setting(tmp_path_factory, rate, concentration, algorithm, seed) -> None:
    import tomllib

    config = CONFIG.replace(learning_rate=rate, concentration=concentration, algorithm=algorithm, seed=seed)
    folder = to_flower_app(config, tmp_path_factory.mktemp("x") / "my-App2", nodes=3, output="out")
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    read = settings_of_app(project["tool"]["flwr"]["app"]["config"])
    assert read == flower_app.AppSettings(config, str(Path("out").resolve()), 3, 3600.0)
    assert project["project"]["dependencies"] == []
    compile((folder / "scalefed_app.py").read_text(), "scalefed_app.py", "exec")


@pytest.mark.parametrize("name", ["1st", "under_score", "a" * 41, "dot.ted"])
def test_folders_that_flower_refuses_are_refused(tmp_path, name: str) -> None:
    with pytest.raises(ConfigError, match="letters, digits and hyphens"):
        to_flower_app(CONFIG, tmp_path / name)
    with pytest.raises(ConfigError, match="at least 1"):
        to_flower_app(CONFIG, tmp_path / "app", nodes=0)


def test_an_unknown_key_in_the_run_configuration_is_named(tmp_path) -> None:
    extras = {"output": "x", "nodes": 1, "timeout_s": 1.0}
    with pytest.raises(ConfigError, match="did you mean 'clients'"):
        settings_of_app(extras | {"client": 3})
    with pytest.raises(ConfigError, match="no 'nodes'"):
        settings_of_app({"output": "x"})


# ---------------------------------------------------------------------- the real thing
REAL = RunConfig(
    params=3_000, clients=4, clients_per_round=2, local_steps=2, batch_size=2, sequence_length=32, tokens=2 * 256,
    algorithm="scaffold", client_batching="loop", validation_tokens=2_048, unique_tokens=65_536, problems="none",
)  # fmt: skip
SIMULATE = """
import json, sys, torch
from scalefed.config import RunConfig
from scalefed.federated import rounds
from scalefed.federated.flower import engine as flower
from scalefed.federated.preparation import prepare

def main():
    torch.set_num_threads(1)
    config = RunConfig.from_dict(json.loads(sys.argv[1]))
    task = prepare(config)
    begin = lambda: rounds.initial_state(config, task.model)
    found = [list(rounds.run_rounds(config, task.model, task.data, begin()))]
    for workers in map(int, sys.argv[2:]):
        found.append(list(flower.run_rounds(config, task.model, task.data, begin(), workers=workers)))
    first = flower.run_rounds(config, task.model, task.data, begin(), workers=1)
    found.append([next(first)])  # and a run that is given up after a round ends its processes
    first.close()
    for done in found[1:]:
        for a, b in zip(found[0], done):
            assert torch.equal(a.state.weights, b.state.weights) and a.record == b.record, (a.record, b.record)
    print("rounds", *map(len, found))

if __name__ == "__main__":
    main()
"""


@pytest.mark.flower
@pytest.mark.slow
def test_a_ray_simulation_ends_with_the_native_bits(tmp_path) -> None:
    """On one worker and on two; in a process of its own, since Ray leaves threads and warnings behind."""
    pytest.importorskip("ray")
    (tmp_path / "simulate.py").write_text(SIMULATE)
    changed = json.dumps(REAL.changed())
    done = subprocess.run(
        [sys.executable, str(tmp_path / "simulate.py"), changed, "1", "2"], env=environment(tmp_path), cwd=tmp_path,
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "rounds 2 2 2 1"


@pytest.mark.flower
@pytest.mark.slow
def test_two_supernodes_end_with_the_native_bits(tmp_path, monkeypatch) -> None:
    """A written app over a SuperLink and two SuperNodes: the run log's hash is that of a native run."""
    pytest.importorskip("flwr")
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    from scalefed.experiment import train

    before = train(REAL, runs=tmp_path / "native")
    app = to_flower_app(REAL, tmp_path / "app", nodes=2, timeout_s=300.0)
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "other-cache"))
    with flower_app.loopback(nodes=2, home=tmp_path / "flower") as link:
        said = link.run(app, timeout_s=600.0)
        deadline = time.monotonic() + 60
        while not (app / "runs" / REAL.run_id / "run.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.2)
    stored = app / "runs" / REAL.run_id / "run.json"
    assert stored.is_file(), said[-3000:]
    assert json.loads(stored.read_text())["result"]["weights_hash"] == before.weights_hash
