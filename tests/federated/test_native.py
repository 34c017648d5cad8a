"""Our own kernels: the same gradient, steps, rounds and failures as torch's, and what is said where they cannot be."""

import multiprocessing
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from federated_toys import Quadratic, Tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.config import RunConfig
from scalefed.errors import ConfigError, DataError
from scalefed.federated.client import clients_at_once, local_updates
from scalefed.federated.native import build, choose
from scalefed.federated.native.library import Step, what_is_wrong
from scalefed.federated.rounds import Round, initial_state, run_rounds
from scalefed.federated.state import ClientTask, ServerState
from scalefed.models import Decoder, Shape, shape_for
from scalefed.values import ALGORITHMS

VOCAB = 37  # no multiple of a vector's length, nor is the length of a sequence
DECODER = Decoder(shape_for(1_000, VOCAB))
TEXT = Tokens(batch=2, length=11, vocab=VOCAB)
HAS_COMPILER = any(map(shutil.which, build.COMPILERS))
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="compiles C")
each_level = pytest.mark.parametrize("level", build.levels())


def config(**changes: object) -> RunConfig:
    """Twenty rounds of a thousand parameters; a large epsilon, so that rounding does not turn into steps' signs."""
    base = {
        "params": 1_000, "vocab_size": VOCAB, "clients": 5, "clients_per_round": 3, "local_steps": 3, "batch_size": 2,
        "sequence_length": 11, "tokens": 20 * 3 * 3 * 22, "learning_rate": 0.01, "adam_epsilon": 1e-2,
        "server_epsilon": 0.1,
        "synthetic_tokens": 40, "generator_params": 1_000, "generator_steps": 2, "kernels": "native",
    }  # fmt: skip
    if changes.get("algorithm") == "central":
        base |= {"clients": 1, "clients_per_round": 1}
    return RunConfig(**{**base, **changes})


def train(chosen: RunConfig, state: ServerState | None = None) -> list[Round]:
    return list(run_rounds(chosen, DECODER, TEXT, state or initial_state(chosen, DECODER)))


def in_double(chosen: RunConfig) -> ServerState:
    first = initial_state(chosen, DECODER)
    doubled = {name: slot.double() for name, slot in first.slots.items()}
    return replace(first, weights=first.weights.double(), slots=doubled)


def code(level: str):
    found = build.library(level, what_is_wrong)
    assert not isinstance(found, build.Unavailable), found
    return found


def gradient(model: Decoder, weights: torch.Tensor, blocks: torch.Tensor) -> tuple[float, torch.Tensor]:
    """By torch, in double precision."""
    leaf = weights.double().requires_grad_()
    loss = model.loss(leaf, blocks)
    return loss.item(), torch.autograd.grad(loss, leaf)[0]


# ---------------------------------------------------------------------- the same numbers
shapes = st.builds(
    Shape,
    width=st.integers(1, 9).map(lambda eights: 8 * eights),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    hidden=st.integers(1, 9).map(lambda eights: 8 * eights),
    vocab=st.integers(2, 70),
)


@needs_compiler
@each_level
@settings(max_examples=25, deadline=None)
@given(shape=shapes, batch=st.integers(1, 5), length=st.integers(1, 150), seed=st.integers(0, 99))
def test_loss_and_gradient_are_torchs(level: str, shape: Shape, batch: int, length: int, seed: int) -> None:
    model, draw = Decoder(shape), torch.Generator().manual_seed(seed)
    weights = model.initial(seed) + 0.1 * torch.randn(model.layout.size, generator=draw)
    blocks = torch.randint(shape.vocab, (batch, length + 1), generator=draw)
    loss, found = Step(code(level), shape, batch=batch, length=length).gradient(weights, blocks)
    wanted_loss, wanted = gradient(model, weights, blocks)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert float(torch.linalg.vector_norm(found - wanted)) < 1e-5 * float(torch.linalg.vector_norm(wanted))


@needs_compiler
@each_level
@pytest.mark.parametrize("shape", [(1, 700), (300, 2), (9, 63)], ids=["long", "many", "uneven groups"])
def test_text_of_any_shape(level: str, shape: tuple[int, int]) -> None:
    blocks = torch.randint(VOCAB, (shape[0], shape[1] + 1), generator=torch.Generator().manual_seed(1))
    weights = DECODER.initial(3)
    loss, found = Step(code(level), DECODER.shape, batch=shape[0], length=shape[1]).gradient(weights, blocks)
    wanted_loss, wanted = gradient(DECODER, weights, blocks)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert float((found - wanted).norm()) < 1e-5 * float(wanted.norm())


@needs_compiler
@each_level
def test_numbers_too_small_to_count_are_zero_here_and_nowhere_else(level: str) -> None:
    """Products with numbers below 1.2e-38, such as a sure model's chances, take up to sixty times as long."""
    tensors = DECODER.layout.unflatten(DECODER.initial(0))
    weights = DECODER.layout.flatten(
        {name: one * (1e-37 if name.endswith("down") else 1) for name, one in tensors.items()}
    )
    blocks = torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))
    _, found = Step(code(level), DECODER.shape, batch=2, length=11).gradient(weights, blocks)
    reached = DECODER.layout.unflatten(found)["layers.0.gate_up"]
    wanted = DECODER.layout.unflatten(gradient(DECODER, weights, blocks)[1])["layers.0.gate_up"]
    assert 0 < float(wanted.abs().max()) < torch.finfo(torch.float32).smallest_normal
    assert not bool(reached.any())
    assert float(np.float32(1e-39) * np.float32(0.5)) > 0  # the caller's mode is as it was


@needs_compiler
@each_level
def test_attention_does_not_look_ahead(level: str) -> None:
    """A token changed in the last place changes no loss before it: two losses differ by that of one prediction."""
    step = Step(code(level), DECODER.shape, batch=1, length=20)
    one = Step(code(level), DECODER.shape, batch=1, length=19)
    blocks = torch.randint(VOCAB, (1, 21), generator=torch.Generator().manual_seed(2))
    weights = DECODER.initial(0)
    before, _ = one.gradient(weights, blocks[:, :20])
    for token in (3, 30):
        blocks[0, -1] = token
        whole, _ = step.gradient(weights, blocks)
        logits = DECODER.logits(weights, blocks[:, :-1])[0, -1]
        assert 20 * whole - 19 * before == pytest.approx(-float(torch.log_softmax(logits, -1)[token]), abs=1e-4)


@needs_compiler
@each_level
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"weight_decay": 0.0}, {"weight_decay": 0.3}, {"clip_norm": 0.05}, {"clip_norm": float("inf")},
        {"inner_optimizer": "sgd"}, {"inner_optimizer": "sgd", "inner_momentum": 0.9, "clip_norm": 0.1},
        {"beta1": 0.5, "beta2": 0.999, "inner_state": "reset"},
    ],
    ids=str,
)  # fmt: skip
def test_steps_are_those_of_the_clients_optimizer(level: str, changes: dict, monkeypatch) -> None:
    monkeypatch.setenv(build.LEVEL_VARIABLE, level)
    check_within_rounding(config(tokens=4 * 3 * 3 * 22, **changes))


@needs_compiler
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_twenty_rounds_of_every_algorithm_agree_with_torch(algorithm: str) -> None:
    check_within_rounding(config(algorithm=algorithm, stragglers=0.4, proximal=0.3))


@needs_compiler
def test_centring_of_vectors_and_of_chosen_tensors() -> None:
    for changes in ({"centralised_vectors": "keep"}, {"centralised_target": ""}):
        check_within_rounding(config(algorithm="gc-fed", **changes))


def check_within_rounding(chosen: RunConfig) -> None:
    """Not further from double precision than a few times torch's own single precision."""
    eager = chosen.replace(kernels="eager")
    exact, single, native = train(eager, in_double(chosen)), train(eager), train(chosen)
    moved = float((exact[-1].state.weights - initial_state(chosen, DECODER).weights).norm())
    errors = [float((run[-1].state.weights - exact[-1].state.weights).norm()) / moved for run in (single, native)]
    assert moved > 0.001 and errors[1] < 5 * errors[0] + 1e-5, errors
    for one, two in zip(native, exact, strict=True):
        assert one.record["train_loss"] == pytest.approx(two.record["train_loss"], rel=1e-4)
        assert one.record["client_tokens"] == two.record["client_tokens"]
        assert one.record["bytes_sent"] == two.record["bytes_sent"]
        assert one.state.memory.keys() == two.state.memory.keys()
        for client, memory in one.state.memory.items():
            assert memory.keys() == two.state.memory[client].keys()
    assert (
        native[-1].record["kernels_used"] == f"native {build.level()}" and single[-1].record["kernels_used"] == "eager"
    )


# ---------------------------------------------------------------------- bits
@needs_compiler
@each_level
def test_bits_do_not_depend_on_who_else_trains_or_how_often(level: str, monkeypatch) -> None:
    monkeypatch.setenv(build.LEVEL_VARIABLE, level)
    chosen, start = config(), DECODER.initial(0)
    tasks = [ClientTask(k, torch.from_numpy(TEXT.batches(k, visit=0, steps=3))) for k in range(5)]
    rates = [0.01] * 3
    together = local_updates(DECODER, start, tasks, chosen, learning_rates=rates)
    for task, update in zip(tasks, together, strict=True):
        (alone,) = local_updates(Decoder(DECODER.shape), start, [task], chosen, learning_rates=rates)
        assert torch.equal(alone.weights, update.weights) and alone.loss == update.loss
    assert torch.equal(start, DECODER.initial(0))


@needs_compiler
def test_a_run_stopped_in_the_middle_ends_with_the_same_bits() -> None:
    whole = train(config())
    rest = train(config(), whole[9].state)
    assert torch.equal(rest[-1].state.weights, whole[-1].state.weights) and len(rest) == 10


@needs_compiler
def test_what_is_not_a_number_is_noticed() -> None:
    wild = config(learning_rate=1e30, clip_norm=float("inf"), inner_optimizer="sgd")
    rounds = train(wild)
    assert rounds[-1].diverged and len(rounds) < wild.rounds
    poisoned = initial_state(config(), DECODER)
    poisoned.weights[5] = float("nan")
    (first,) = train(config(), poisoned)
    assert first.diverged and len(first.record["left_out"]) == first.record["participants"]


@needs_compiler
def test_a_token_that_the_model_lacks_is_refused() -> None:
    for token in (-1, VOCAB):
        batches = torch.zeros(1, 2, 12, dtype=torch.int64)
        batches[0, 1, 3] = token
        with pytest.raises(DataError, match=f"must be 0 to {VOCAB - 1}"):
            local_updates(DECODER, DECODER.initial(0), [ClientTask(0, batches)], config(), learning_rates=[0.1])


# ---------------------------------------------------------------------- which kernels, and what is said
def test_kernels_that_chose_themselves_do_not_change_a_runs_name() -> None:
    names = {how: RunConfig(kernels=how).run_id for how in ("auto", "eager", "native", "compiled")}
    assert RunConfig().run_id == names["auto"] == names["eager"] == "fedavg-24k-2M-4of16-iid-s0-1365e67ccb"
    assert len(set(names.values())) == 3


@needs_compiler
def test_our_own_are_taken_where_they_serve_and_torchs_by_name_elsewhere() -> None:
    auto = config(kernels="auto")
    assert choose(DECODER, auto).name == "native" and clients_at_once(DECODER, torch.zeros(1, 2, 12), auto) == 1
    assert clients_at_once(DECODER, torch.zeros(1, 2, 12), config(kernels="eager")) > 1
    half = Decoder(DECODER.shape, precision="bfloat16")
    for reason, kernels in {
        "precision bfloat16": choose(half, auto),
        "weights in float64": choose(DECODER, auto, dtype=torch.float64),
        "device cuda": choose(DECODER, auto.replace(device="cuda")),
        "not the ladder's decoder": choose(Quadratic(), auto),
        "a pretrained model": choose(Quadratic(), auto.replace(checkpoint="some")),
    }.items():
        assert (kernels.name, kernels.reason, kernels.code) == ("eager", reason, None)
        assert str(kernels) == "eager"
    with pytest.raises(ConfigError, match="precision bfloat16"):
        choose(half, config())


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache, and a process that has compiled nothing yet."""
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path))
    build.library.cache_clear()
    yield monkeypatch
    build.library.cache_clear()


def test_without_a_compiler_torch_trains_and_one_line_says_so(fresh, caplog) -> None:
    fresh.setenv("CC", "no-such-compiler")
    with caplog.at_level("WARNING"):
        kernels = [choose(DECODER, config(kernels="auto")) for _ in range(3)]
    assert kernels[0].name == "eager" and kernels[0].reason == "no C compiler"
    assert len(caplog.records) <= 1 and "\n" not in caplog.text.strip()
    with pytest.raises(ConfigError, match=r"cannot be had: no C compiler; .*no-such-compiler"):
        choose(DECODER, config())


@needs_compiler
def test_a_compiler_that_fails_or_gets_the_numbers_wrong_trains_nothing(fresh, tmp_path) -> None:
    compiler = next(filter(shutil.which, build.COMPILERS))
    for flags, reason in (("--no-such-flag", "the C compiler failed"), ("-Dlogf=sinf", "the compiled step is wrong")):
        build.library.cache_clear()
        fresh.setenv("CC", f"{compiler} {flags}")
        assert choose(DECODER, config(kernels="auto")).reason == reason
        with pytest.raises(ConfigError, match=reason):
            choose(DECODER, config())
    assert not list(tmp_path.rglob("*.so"))


def test_a_level_that_the_machine_lacks_is_refused(monkeypatch) -> None:
    monkeypatch.setenv(build.LEVEL_VARIABLE, "x86-64-v9")
    with pytest.raises(ConfigError, match="x86-64-v9.*no level that this machine runs"):
        build.level()


def compile_and_train(cache: str) -> list[float]:
    os.environ["SCALEFED_CACHE"] = cache
    build.library.cache_clear()
    assert choose(DECODER, config()).name == "native"
    return train(config(tokens=1))[-1].state.weights[:50].tolist()


@needs_compiler
@pytest.mark.slow
def test_processes_that_start_at_once_compile_once_and_get_the_same_bits(tmp_path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        made = pool.map(compile_and_train, [str(tmp_path)] * 3)
    assert made[0] == made[1] == made[2]
    assert len(list(tmp_path.rglob("*.so"))) == 1 and not list(tmp_path.rglob("step.c"))
