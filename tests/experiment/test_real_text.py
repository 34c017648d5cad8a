"""The ladder on real Python: bytes, two held-out texts, natural clients, native steps, and what the log says of it."""

import json
import math

import pytest

pytest.importorskip("torch")

import torch

from scalefed.cli import main
from scalefed.config import RunConfig
from scalefed.errors import ConfigError
from scalefed.experiment import train
from scalefed.federated.client import ClientTask, local_updates
from scalefed.federated.native import choose
from scalefed.federated.preparation import prepare
from scalefed.models import build_model
from scalefed.runs.log import load_runs

TINY = RunConfig(
    data="python", data_root="python numpy", params=1_400, tokens=4_096, clients=2, clients_per_round=2, local_steps=4,
    batch_size=2, sequence_length=32, unique_tokens=40_000, validation_tokens=2_048, partition="natural",
)  # fmt: skip


def test_real_text_is_read_as_bytes_and_has_no_problems():
    assert (TINY.vocab_size, TINY.problems) == (257, "none")
    assert RunConfig(data="python", vocab_size=257, problems="none").run_id == RunConfig(data="python").run_id
    assert RunConfig(data="python", problems="humaneval").problems == "humaneval"
    assert RunConfig(data="python", checkpoint="smollm2-135m-instruct").problems == "micro"
    with pytest.raises(ConfigError, match="is read as bytes, so vocab_size is 257, got 600"):
        RunConfig(data="python", vocab_size=600)
    with pytest.raises(ConfigError, match="data_root='numpy' is what data='python' reads"):
        RunConfig(data_root="numpy")


def test_a_run_says_what_it_read(tmp_path):
    row = train(TINY, runs=tmp_path).row
    assert row["model_vocab"] == 257 and "pass_at_1" not in row and row["skew"] == 1.0
    assert row["bits_per_byte"] == pytest.approx(
        row["loss"] / math.log(2), rel=0.01
    )  # the ends of functions are no bytes
    stored = json.loads((tmp_path / TINY.run_id / "run.json").read_text())["result"]
    assert [text.split()[0] for text in stored["sources"]] == ["numpy", "python"] and stored["sources_unseen"] == []
    assert len(stored["loss_by_source"]) == 2
    assert "loss_unseen_sources" not in stored
    assert len(stored["text_hash"]) == 16 and stored["text_files"] > 1


def test_a_package_of_which_nothing_is_held_out_keeps_its_place(tmp_path):
    config = TINY.replace(validation_tokens=64)
    train(config, runs=tmp_path)
    stored = json.loads((tmp_path / config.run_id / "run.json").read_text())["result"]
    assert len(stored["loss_by_source"]) == len(stored["sources"]) == 2
    assert len(load_runs(tmp_path)) == 1


def test_packages_that_nobody_holds_are_scored(tmp_path):
    for name in range(12):
        (tmp_path / f"p{name}").mkdir()
        (tmp_path / f"p{name}" / "m.py").write_text(
            "\n".join(f"def f{i}(a):\n    return {name} + a * {i} - a * {'a' * 40}\n" for i in range(60))
        )
    config = TINY.replace(data_root=f"{tmp_path}/", unique_tokens=0, tokens=512, validation_tokens=512)
    row = train(config, runs=tmp_path / "runs").row
    assert 0 < row["loss_unseen_sources"] < 6 and row["epochs"] < 1


def test_our_kernels_take_the_steps_that_torch_takes_on_bytes():
    config = TINY.replace(kernels="native", params=14_000)
    try:
        choose(build_model(config), config)
    except ConfigError as error:
        pytest.skip(f"no compiler: {error}")
    task = prepare(config)
    start = task.model.initial(0)
    work = [ClientTask(0, torch.from_numpy(task.data.batches(0, visit=0, steps=4).astype("int64")))]
    ours, theirs = (
        local_updates(task.model, start, work, config.replace(kernels=kernels), learning_rates=[0.01] * 4)[0]
        for kernels in ("native", "eager")
    )
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    moved = theirs.weights - start
    assert float((ours.weights - theirs.weights).norm() / moved.norm()) < 1e-3


def test_a_dry_run_refuses_what_training_refuses(capsys, tmp_path):
    for words, told in (
        ("data_root=numppy", "did you mean 'numpy'"),
        ("partition=natural clients=40", "cannot fill 40"),
    ):
        asked = ["data=python", "data_root=python numpy", *words.split()]
        assert main(["sweep", *asked, "--dry-run"]) != 0
        refused = capsys.readouterr().err
        assert told in refused
        assert main(["train", *asked, "tokens=1000", "--runs", str(tmp_path)]) != 0
        assert told in capsys.readouterr().err
    assert main(["sweep", "data=python", "data_root=python numpy", "--dry-run"]) == 0
