"""Runs of every algorithm that are killed at random moments end with the log, to the bit, of runs left alone."""

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from scalefed.config import RunConfig
from scalefed.values import ALGORITHMS

pytestmark = pytest.mark.slow
KILLS = 20


def configs(algorithms: tuple[str, ...] = ALGORITHMS) -> list[RunConfig]:
    """Six rounds of three thousand parameters, with everything on that a checkpoint must carry."""
    base = RunConfig(
        params=3_500, clients=4, clients_per_round=2, local_steps=3, batch_size=2, sequence_length=32,
        tokens=8 * 2 * 3 * 64, unique_tokens=40_000, validation_tokens=2_048, problems="none", stragglers=0.3,
        dropout=0.2, inner_state="keep", generator_params=1_000, generator_steps=5, synthetic_tokens=256,
    )  # fmt: skip
    alone = {"clients": 1, "clients_per_round": 1}
    return [base.replace(algorithm=name, **(alone if name == "central" else {})) for name in algorithms]


def make_runs(folder: str, cache: str) -> None:
    """In a process of its own: all runs, with a checkpoint after every round."""
    os.environ["SCALEFED_CACHE"] = cache
    from scalefed.experiment import train

    for config in configs():
        train(config, runs=folder, checkpoint_seconds=0.0)


def traces(*folders: Path) -> dict[str, int]:
    """Every file of a checkpoint or a stored run, and when it was written."""
    return {str(path): path.stat().st_mtime_ns for folder in folders if folder.exists()
            for path in list(folder.glob("*.pt")) + list(folder.glob("*/run.json"))}  # fmt: skip


def test_every_algorithm_survives_twenty_kills(tmp_path: Path) -> None:
    from scalefed.runs.log import log_differences, same_log

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scalefed.experiment"])
    alone = context.Process(target=make_runs, args=(str(tmp_path / "alone"), str(tmp_path / "cache-alone")))
    alone.start()
    alone.join()
    assert alone.exitcode == 0

    runs, cache = tmp_path / "killed", tmp_path / "cache-killed"
    checkpoints, dice, half_way = cache / "checkpoints", random.Random(3), 0
    for _ in range(KILLS):
        process = context.Process(target=make_runs, args=(str(runs), str(cache)))
        before = traces(checkpoints, runs)
        process.start()
        while process.is_alive() and traces(checkpoints, runs) == before:
            time.sleep(0.002)
        time.sleep(dice.expovariate(8.0))
        process.kill()
        process.join()
        half_way += any(checkpoints.glob("*.pt"))
    last = context.Process(target=make_runs, args=(str(runs), str(cache)))
    last.start()
    last.join()
    assert last.exitcode == 0
    assert half_way >= 3  # kills that left a run between two rounds
    assert same_log(tmp_path / "alone", runs), log_differences(tmp_path / "alone", runs)
    hashes = {path.parent.name for path in runs.glob("*/run.json")}
    assert len(hashes) == len(ALGORITHMS)


def test_one_and_two_workers_give_the_same_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scalefed.experiment import train_all
    from scalefed.runs.log import log_differences, same_log

    wanted = configs(("fedavg", "scaffold", "feddyn", "fedvarp", "gc-fed", "fedadam", "diloco"))
    for workers in (1, 2):
        monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / f"cache-{workers}"))
        made = train_all(wanted, runs=tmp_path / str(workers), workers=workers)
        assert len({run.weights_hash for run in made}) == len(wanted)
    assert same_log(tmp_path / "1", tmp_path / "2"), log_differences(tmp_path / "1", tmp_path / "2")


def test_logging_and_evaluations_change_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bare loop, nothing written or scored, against a stored run that is evaluated along the way."""
    from scalefed.experiment import train
    from scalefed.experiment.checkpoints import weights_hash
    from scalefed.federated.preparation import prepare
    from scalefed.federated.rounds import initial_state, run_rounds

    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))
    for config in configs():
        task = prepare(config)
        state = initial_state(config, task.model)
        for done in run_rounds(config, task.model, task.data, state):
            state = done.state
        records: list[dict] = []
        run = train(config.replace(evaluate_every=3), runs=tmp_path / "runs", on_round=records.append)
        assert run.weights_hash == weights_hash(state.weights), config.algorithm
        assert len(records) == config.rounds and "loss" in records[2]
