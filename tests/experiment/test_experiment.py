"""A run is made once, to the same bits however often it was stopped, and nothing is lost on the way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from scalefed.architecture import ladder
from scalefed.config import RunConfig
from scalefed.errors import CheckpointError, ConfigError, ScalefedError
from scalefed.experiment import evaluate, pilot, train, train_all
from scalefed.experiment.bundles import bundles, runs_at_once, train_together
from scalefed.experiment.checkpoints import checkpoint_path
from scalefed.runs.log import load_counts, load_runs, log_differences, same_log
from scalefed.sweeps import sweep

TINY = RunConfig(
    params=3_500, tokens=60_000, clients=4, clients_per_round=2, local_steps=5, concentration=0.3, problem_count=6,
    samples=2, validation_tokens=4_096, server_momentum=0.5,
)  # fmt: skip


class StopError(Exception):
    """Stands for a killed process in the middle of a run."""


def stop_after(rounds):
    def on_round(record):
        if record["round"] == rounds:
            raise StopError

    return on_round


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The tiny run, made without interruption."""
    folder = tmp_path_factory.mktemp("reference")
    before = os.environ.get("SCALEFED_CACHE")
    os.environ["SCALEFED_CACHE"] = str(folder / "cache")
    try:
        yield train(TINY, runs=folder / "runs")
    finally:
        os.environ.pop("SCALEFED_CACHE") if before is None else os.environ.__setitem__("SCALEFED_CACHE", before)


def test_a_run_holds_what_the_log_promises(reference):
    assert reference.status == "completed"
    assert reference.params == 3_504 and reference.tokens == TINY.rounds * TINY.tokens_per_round
    assert reference.compute == 6 * reference.params * reference.tokens
    assert 0 < reference.entropy_per_token < reference.loss < 7
    assert 0.2 < reference.skew < 1
    assert reference.bytes_sent == 2 * 4 * reference.params_trained * 2 * TINY.rounds
    history = reference.history()
    assert len(history) == TINY.rounds and history["tokens"].iloc[-1] == reference.tokens
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]
    counts = load_counts(reference.folder)
    assert len(counts) == 6 and (counts["samples"] == 2).all() and counts["correct"].between(0, 2).all()


def test_the_same_config_gives_the_same_log_and_is_not_made_twice(reference, tmp_path):
    again = train(TINY, runs=tmp_path / "runs")
    assert again.weights_hash == reference.weights_hash
    assert same_log(tmp_path / "runs", reference.folder.parent), log_differences(
        tmp_path / "runs", reference.folder.parent
    )
    written = (again.folder / "run.json").stat().st_mtime_ns
    assert train(TINY, runs=tmp_path / "runs", on_round=stop_after(1)).weights_hash == again.weights_hash
    assert (again.folder / "run.json").stat().st_mtime_ns == written


def test_a_stopped_run_goes_on_to_the_same_bits(reference, tmp_path):
    for stop in (1, 4, 5, TINY.rounds):
        with pytest.raises(StopError):
            train(TINY, runs=tmp_path / "runs", on_round=stop_after(stop), checkpoint_seconds=0)
    run = train(TINY, runs=tmp_path / "runs", checkpoint_seconds=0)
    assert same_log(run.folder, reference.folder), log_differences(run.folder, reference.folder)
    assert not checkpoint_path(TINY).exists()


def test_a_diverged_run_is_recorded_as_diverged(tmp_path):
    config = TINY.replace(learning_rate=1e30, clip_norm=float("inf"), inner_optimizer="sgd")
    run = train(config, runs=tmp_path / "runs")
    assert run.status == "diverged" and run.loss is None
    frame = load_runs(tmp_path / "runs")
    assert frame["status"].tolist() == ["diverged"] and frame["loss"].isna().all()


def test_more_clients_or_evaluations_change_no_other_draw(reference, tmp_path):
    watched = train(TINY.replace(evaluate_every=4), runs=tmp_path / "runs")
    assert watched.weights_hash == reference.weights_hash
    scored = watched.history().dropna(subset=["loss"])
    assert scored["round"].tolist() == [4, 8, 12] and scored["pass_at_1"].between(0, 1).all()


def test_evaluating_again_adds_counts_and_overwrites_nothing(tmp_path):
    run = train(TINY, runs=tmp_path / "runs")
    first = (run.folder / "eval.json").read_bytes()
    result = evaluate(run, samples=3, k=(1, 3), seed=5)
    assert result.k == (1, 3) and result.samples_min == result.samples_max == 3
    assert (run.folder / "eval.json").read_bytes() == first
    assert load_counts(run.folder, evaluation="micro-n3-s5")["samples"].eq(3).all()


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    with pytest.raises(StopError):
        train(TINY, runs=tmp_path / "runs", on_round=stop_after(3), checkpoint_seconds=0)
    other = TINY.replace(seed=1)
    checkpoint_path(TINY).rename(checkpoint_path(other))
    with pytest.raises(CheckpointError, match="another config: seed differ"):
        train(other, runs=tmp_path / "runs")
    checkpoint_path(other).write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match="damaged"):
        train(other, runs=tmp_path / "runs")


def test_a_full_disk_keeps_the_last_good_checkpoint(reference, tmp_path, monkeypatch, caplog):
    with pytest.raises(StopError):
        train(TINY, runs=tmp_path / "runs", on_round=stop_after(3), checkpoint_seconds=0)
    good = checkpoint_path(TINY).read_bytes()

    def full(content, file):
        file.write(b"some bytes")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StopError):
        train(TINY, runs=tmp_path / "runs", on_round=stop_after(6), checkpoint_seconds=0)
    assert checkpoint_path(TINY).read_bytes() == good and "last good one is kept" in caplog.text
    assert [path.name for path in checkpoint_path(TINY).parent.iterdir()] == [checkpoint_path(TINY).name]
    monkeypatch.undo()
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))
    assert train(TINY, runs=tmp_path / "runs").weights_hash == reference.weights_hash


def test_workers_change_nothing_and_report_progress(reference, tmp_path):
    configs = sweep(TINY, seed=[0, 1, 2])
    seen = []
    runs = train_all(configs, runs=tmp_path / "runs", workers=2, on_progress=seen.append)
    assert [run.run_id for run in runs] == [config.run_id for config in configs]
    assert runs[0].weights_hash == reference.weights_hash
    assert seen[-1].done == seen[-1].total == 3 and not seen[-1].running
    assert all(a.done <= b.done for a, b in zip(seen, seen[1:], strict=False))
    again = train_all(configs, runs=tmp_path / "runs", workers=2)
    assert [run.weights_hash for run in again] == [run.weights_hash for run in runs]


ALIKE = sweep(
    TINY.replace(clients_per_round=1, batch_size=1, tokens=6 * 5 * 128, problems="none", kernels="eager"),
    seed=[0, 1],
    concentration=[0.3, 0.5],
)


def test_bundles_hold_runs_alike_and_leave_no_worker_idle():
    assert runs_at_once(ALIKE[0]) == 16 and runs_at_once(ALIKE[0].replace(clients_per_round=4)) == 4
    longer = ALIKE[0].replace(tokens=60_000)
    made = bundles([longer, *ALIKE], workers=2)
    assert [len(bundle) for bundle in made] == [1, 2, 2] and made[0] == (longer,)
    assert [config for bundle in made for config in bundle] == [longer, *ALIKE]
    for changes in ({"client_batching": "loop"}, {"batch_size": 8}, {"kernels": "compiled"}, {"params": 300_000}):
        assert runs_at_once(ALIKE[0].replace(**changes)) == 1
    on_gpu = ALIKE[0].replace(device="cuda", kernels="compiled")  # 65,536 tokens a step
    assert runs_at_once(on_gpu) == 512 and runs_at_once(on_gpu.replace(clients_per_round=4)) == 128


def test_a_bundle_stopped_anywhere_ends_with_the_logs_of_its_runs_alone(tmp_path, monkeypatch):
    diverging = ALIKE[0].replace(learning_rate=1e30, clip_norm=float("inf"), inner_optimizer="sgd")
    wanted = [*ALIKE, diverging]
    for config in wanted:
        train(config, runs=tmp_path / "alone")
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "other"))
    for stop in (2, 4):
        with pytest.raises(StopError):
            train_together(wanted, runs=tmp_path / "together", on_round=stop_after(stop), checkpoint_seconds=0)
    train(ALIKE[1], runs=tmp_path / "together")  # one is stored before the others go on
    train_together(wanted, runs=tmp_path / "together", checkpoint_seconds=0)
    for config in wanted:
        made = train(config, runs=tmp_path / "together")
        assert made.cpu_s > 0 and not checkpoint_path(config).exists()
    assert same_log(tmp_path / "alone", tmp_path / "together"), log_differences(
        tmp_path / "alone", tmp_path / "together"
    )


def test_a_sweep_makes_bundles_by_itself(tmp_path):
    seen = []
    made = train_all(ALIKE, runs=tmp_path / "together", workers=1, on_progress=seen.append)
    assert [run.run_id for run in made] == [config.run_id for config in ALIKE]
    assert sorted(seen[0].running) == sorted(config.run_id for config in ALIKE)
    assert [step.done for step in seen if step.done] == [1, 2, 3, 4] and seen[-1].running == ()
    alone = train(ALIKE[3].replace(problem_count=7), runs=tmp_path / "alone")
    assert alone.weights_hash == made[3].weights_hash


def test_a_run_that_cannot_be_made_is_named_and_the_rest_is_stored(tmp_path):
    broken = TINY.replace(clients=4_000, clients_per_round=1, unique_tokens=262_144)
    with pytest.raises(ScalefedError, match="1 of 2 runs failed") as error:
        train_all([TINY, broken], runs=tmp_path / "runs", workers=1)
    assert broken.run_id in str(error.value) and "less than one block" in str(error.value)
    assert load_runs(tmp_path / "runs")["run_id"].tolist() == [TINY.run_id]


def test_a_run_log_that_cannot_be_written_is_told_and_is_no_crash(tmp_path, capfd):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(ScalefedError, match=r"1 of 1 runs failed.*(File exists|Not a directory)"):
        train_all([TINY], runs=tmp_path / "runs", workers=1)
    assert "Traceback" not in capfd.readouterr().err


def test_bad_calls_are_refused():
    with pytest.raises(ConfigError, match="at least one config"):
        train_all([])
    with pytest.raises(ConfigError, match="at least 1e[+]11 FLOPs in all, got 5"):
        pilot(5)


def test_the_pilot_has_two_slices_at_each_cohort_and_one_skewed_run():
    configs = pilot()
    assert len({config.run_id for config in configs}) == len(configs) >= 15
    assert {config.clients_per_round for config in configs} == {1, 4}
    assert [config.clients_per_round for config in configs if config.concentration < 1] == [4]
    assert min(config.params for config in configs) >= 3_500
    small, *_, large = sorted(config.compute for config in configs)
    assert 4 < large / small < 8


def test_the_pilot_is_the_same_on_every_machine_and_of_sizes_there_are(recwarn):
    assert [config.run_id for config in pilot()] == [config.run_id for config in pilot()]
    assert {config.params for config in pilot()} <= {shape.params for shape in ladder(512)} and not recwarn


SWEEP = """
import sys
from pathlib import Path
from scalefed.experiment import train_all
from scalefed.sweeps import load_sweep
train_all(load_sweep(sys.argv[1]), runs=sys.argv[2], workers=2)
"""


@pytest.mark.slow
def test_a_sweep_killed_ten_times_ends_with_the_log_of_one_left_alone(tmp_path):
    lines = [f"{name} = {json.dumps(value)}" for name, value in TINY.replace(concentration=0.5).changed().items()]
    (tmp_path / "sweep.toml").write_text(
        "[base]\n" + "\n".join(lines) + "\n[[grid]]\nseed = [0, 1]\ntokens = [60000, 150000]\n"
    )

    def start(name):
        environment = os.environ | {"SCALEFED_CACHE": str(tmp_path / f"cache-{name}"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SWEEP, str(tmp_path / "sweep.toml"), str(tmp_path / name)]
        return subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2])

    assert start("alone").wait(timeout=300) == 0
    dice = random.Random(7)
    for _ in range(10):
        process = start("killed")
        time.sleep(dice.uniform(1.0, 9.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1.5)  # its workers notice within a second
    assert start("killed").wait(timeout=300) == 0
    assert same_log(tmp_path / "alone", tmp_path / "killed"), log_differences(tmp_path / "alone", tmp_path / "killed")


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device='warp:9' cannot be used here"):
        train(RunConfig(device="warp:9"), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
