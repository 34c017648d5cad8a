"""Vectors of idle clients in a file: the same bits, their places used again, nothing of it seen from outside."""

import gc
import os
import re
from pathlib import Path

import pytest
import torch
from federated_toys import Tokens

from scalefed.config import RunConfig
from scalefed.experiment import checkpoints
from scalefed.experiment.training import train
from scalefed.federated import client_memory
from scalefed.federated.client_memory import at_rest
from scalefed.federated.rounds import initial_state, run_rounds
from scalefed.models import Decoder, shape_for

VOCAB = 37
DECODER = Decoder(shape_for(1_000, VOCAB))
TEXT = Tokens(batch=2, length=11, vocab=VOCAB)


@pytest.fixture
def in_files(monkeypatch):
    """Every run's vectors go to files, with room for ten vectors each."""
    gc.collect()
    client_memory.store_of.cache_clear()
    monkeypatch.setattr(client_memory, "IN_MEMORY", 0)
    monkeypatch.setattr(client_memory, "CHUNK", 10 * 4 * DECODER.layout.size)
    yield client_memory.store_of(os.getpid())
    client_memory.store_of.cache_clear()


def config(**changes: object) -> RunConfig:
    base = {"params": 1_000, "vocab_size": VOCAB, "clients": 9, "clients_per_round": 3, "local_steps": 2,
            "batch_size": 2, "sequence_length": 11, "tokens": 12 * 3 * 2 * 22, "server_epsilon": 0.1}  # fmt: skip
    return RunConfig(**{**base, **changes})


def rounds(chosen: RunConfig):
    return list(run_rounds(chosen, DECODER, TEXT, initial_state(chosen, DECODER)))


@pytest.mark.parametrize("changes", [{}, {"kernels": "eager"}, {"algorithm": "scaffold"}, {"algorithm": "feddyn"},
                                     {"algorithm": "local"}, {"inner_optimizer": "sgd", "inner_momentum": 0.9}],
                         ids=str)  # fmt: skip
def test_a_run_has_the_same_bits_and_every_state_stays_as_it_was(changes, monkeypatch, request) -> None:
    wanted = rounds(config(**changes))
    request.getfixturevalue("in_files")
    found = rounds(config(**changes))
    for one, two in zip(found, wanted, strict=True):  # all of them, after all rounds: nothing was written over
        assert torch.equal(one.state.weights, two.state.weights) and one.record == two.record
        assert one.state.memory.keys() == two.state.memory.keys() != set()
        for client, vectors in two.state.memory.items():
            assert vectors.keys() == one.state.memory[client].keys()
            assert all(torch.equal(one.state.memory[client][name], vector) for name, vector in vectors.items())


def test_places_are_used_again_and_files_go_with_their_last_vector(in_files) -> None:
    for client in range(100):
        kept = at_rest({client: {"inner_first": torch.full((DECODER.layout.size,), float(client))}}, 100)
    assert len(in_files.chunks) == 1 and kept[99]["inner_first"].unique().tolist() == [99.0]
    many = [at_rest({client: {"inner_first": torch.full((DECODER.layout.size,), float(client))}}, 100)
            for client in range(45)]  # fmt: skip
    assert 5 <= len(in_files.chunks) <= 6
    part = many[7][7]["inner_first"][3:9]  # a view alone keeps a place
    del many, kept
    at_rest({0: {"inner_first": torch.ones(DECODER.layout.size)}}, 100)
    assert len(in_files.chunks) <= 2 and part.tolist() == [7.0] * 6


def test_few_clients_stay_in_memory() -> None:
    memory = {0: {"inner_first": torch.ones(1_000), "inner_steps": torch.tensor(3)}}
    assert at_rest(memory, 16) is memory and at_rest({}, 10**9) == {}
    assert at_rest(memory, 10**6) is not memory and at_rest(memory, 10**6)[0]["inner_steps"] == 3


def mapped_memory() -> int:
    """Bytes of files that are mapped and in memory, of those that were made for idle clients."""
    maps = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    return sum(1024 * int(re.search(r"Rss:\s+(\d+)", one)[1]) for one in maps if "/moments/" in one)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's account of memory")
def test_what_rests_is_not_in_memory(in_files) -> None:
    kept = at_rest({client: {"inner_first": torch.ones(2**18)} for client in range(30)}, 100)
    assert mapped_memory() == 0
    assert sum(float(memory["inner_first"].sum()) for memory in kept.values()) == 30 * 2**18 == mapped_memory() / 4
    client_memory.leave_memory()
    assert mapped_memory() == 0


def test_a_full_disk_keeps_vectors_in_memory_and_says_so(in_files, monkeypatch, caplog) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    client_memory.say_once.cache_clear()
    monkeypatch.setattr(client_memory.mmap, "mmap", full)
    memory = {0: {"inner_first": torch.ones(DECODER.layout.size)}}
    with caplog.at_level("WARNING"):
        assert at_rest(memory, 100) is memory and at_rest(memory, 100) is memory
    assert len(caplog.records) == 1 and "No space left" in caplog.text and "SCALEFED_CACHE" in caplog.text


def test_a_forked_process_writes_into_a_file_of_its_own(in_files) -> None:
    mine = at_rest({0: {"inner_first": torch.ones(DECODER.layout.size)}}, 100)
    if (child := os.fork()) == 0:
        at_rest({client: {"inner_first": torch.zeros(DECODER.layout.size)} for client in range(3)}, 100)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert mine[0]["inner_first"].min() == 1


def test_a_stopped_run_goes_on_from_moments_in_files(in_files, monkeypatch, tmp_path) -> None:
    """Moments come from a checkpoint that is mapped, and the next checkpoint takes its place."""
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoints, "MAPPED", 0)
    monkeypatch.setattr(checkpoints, "LEAVE_AFTER", 0)
    tiny = RunConfig(params=1_000, tokens=60_000, clients=8, clients_per_round=3, local_steps=2, problems="none",
                     validation_tokens=2_048, kernels="eager")  # fmt: skip
    whole = train(tiny, runs=tmp_path / "whole")

    def stop(record: dict) -> None:
        if record["round"] in (4, 9):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(tiny, runs=tmp_path / "parts", on_round=stop, checkpoint_seconds=0)
    parts = train(tiny, runs=tmp_path / "parts", checkpoint_seconds=0)
    assert parts.weights_hash == whole.weights_hash
