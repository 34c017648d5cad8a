"""The ladder of decoders: same arithmetic as transformers' Llama, one flat vector, one pass for many clients."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.config import RunConfig
from scalefed.errors import ConfigError, DataError
from scalefed.models import (
    HEAD_WIDTH,
    Decoder,
    Layout,
    Shape,
    build_model,
    ladder,
    load_weights,
    model_flops,
    save_weights,
    say_far_off,
    shape_for,
)
from scalefed.models.losses import client_losses
from scalefed.runs.log import read_run, run_folders

VOCAB = 512
LADDER = ladder(VOCAB)


def tokens(*shape: int, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def small(params: int = 12_000) -> Decoder:
    return Decoder(shape_for(params, VOCAB))


def gradient(model: Decoder, weights: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    leaf = weights.clone().requires_grad_()
    (result,) = torch.autograd.grad(model.loss(leaf, blocks).sum(), leaf)
    return result


# ---------------------------------------------------------------------- the ladder
def test_ladder_grows_from_a_few_thousand_to_ten_million() -> None:
    sizes = [shape.params for shape in LADDER]
    assert sizes == sorted(set(sizes))
    assert sizes[0] < 3_000
    assert sizes[-1] > 10_000_000


@given(target=st.floats(math.log(3e3), math.log(1e7)))
@settings(deadline=None, max_examples=50)
def test_every_size_has_a_near_rung(target: float) -> None:
    """Depth grows in whole layers, so rungs are up to a factor 2.1 apart."""
    distance = abs(math.log(shape_for(round(math.exp(target)), VOCAB).params) - target)
    assert distance < 0.38


def test_the_rung_between_takes_only_what_was_far_from_its_neighbours() -> None:
    """Whatever was within 25% of a rung before there was one between still trains that rung."""
    for params in range(1_000, 60_000, 7):
        before, now = shape_for(params, VOCAB, between=False), shape_for(params, VOCAB)
        assert now == before or (now.params == 6_992 and abs(before.params / params - 1) > 0.25)
    assert shape_for(7_000, VOCAB) == Shape(width=16, layers=2, heads=1, hidden=40, vocab=VOCAB)


def test_stored_runs_keep_their_shapes() -> None:
    stored = [read_run(folder) for folder in run_folders(Path(__file__).parents[2] / "runs")]
    ours = [run for run in stored if not run["config"]["checkpoint"]]
    assert len(ours) > 60
    for run in ours:
        shape = shape_for(run["config"]["params"], run["config"]["vocab_size"])
        assert shape.params == run["result"]["params"], run["run_id"]
        assert shape.params_total == run["result"]["params_total"], run["run_id"]


def test_a_size_far_off_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    say_far_off.cache_clear()
    for params in (14_000, 18_500, 18_500, 1_000):
        build_model(RunConfig(params=params))
    assert [record.getMessage() for record in caplog.records] == [
        "params=18,500 trains 23,200 parameters, +25%: the nearest size there is; the next nearest has 13,944",
        "params=1,000 trains 1,368 parameters, +37%: the nearest size there is; the next nearest has 3,504",
    ]


def test_head_width_is_constant_over_the_ladder() -> None:
    for shape in LADDER:
        decoder = Decoder(shape)
        qkv = next(entry for entry in decoder.layout if entry.name == "layers.0.qkv")
        assert qkv.shape == (3 * shape.heads * HEAD_WIDTH, shape.width)


@pytest.mark.parametrize("shape", LADDER[::9], ids=lambda shape: str(shape.params))
def test_counts_are_sums_over_the_layout(shape: Shape) -> None:
    model = Decoder(shape)
    sizes = {entry.name: math.prod(entry.shape) for entry in model.layout}
    assert model.params_total == model.params_trained == sum(sizes.values()) == model.layout.size
    assert model.params == model.params_total - sizes["embedding"] == shape.params
    assert model.initial(0).shape == (model.params_total,)
    assert model_flops(model, 10) == 60 * model.params


def test_counts_by_hand() -> None:
    shape = Shape(width=24, layers=2, heads=1, hidden=64, vocab=100)
    block = 4 * 24 * 24 + 3 * 24 * 64 + 2 * 24
    assert (shape.params, shape.params_total) == (2 * block + 24, 2 * block + 24 + 2400)


@pytest.mark.parametrize("params", [999, 30_000_001])
def test_sizes_off_the_ladder_are_refused(params: int) -> None:
    with pytest.raises(ConfigError, match="between 1,000 and 30,000,000"):
        shape_for(params, VOCAB)


# ---------------------------------------------------------------------- weights
def test_initial_weights_depend_on_the_seed_alone() -> None:
    model = small()
    torch.manual_seed(1)
    first = model.initial(7)
    torch.manual_seed(2)
    assert torch.equal(first, model.initial(7))
    assert not torch.equal(first, model.initial(8))


def test_an_untrained_model_knows_nothing() -> None:
    model = small()
    assert float(model.loss(model.initial(0), tokens(8, 65))) == pytest.approx(math.log(VOCAB), abs=0.05)


def test_decay_spares_norm_scales() -> None:
    model = small()
    mask = model.layout.unflatten(model.decay_mask)
    assert {name for name, values in mask.items() if not values.any()} == {
        entry.name for entry in model.layout if entry.name.endswith("norm")
    }
    assert all(values.all() for name, values in mask.items() if not name.endswith("norm"))


@given(
    shapes=st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5),
    lead=st.lists(st.integers(1, 3), max_size=1),
)
@settings(deadline=None, max_examples=50)
def test_flatten_undoes_unflatten(shapes: list[list[int]], lead: list[int]) -> None:
    layout = Layout({f"t{i}": tuple(shape) for i, shape in enumerate(shapes)})
    flat = torch.arange(float(math.prod(lead) * layout.size)).view([*lead, layout.size])
    named = layout.unflatten(flat)
    assert [tuple(named[f"t{i}"].shape) for i in range(len(shapes))] == [(*lead, *shape) for shape in shapes]
    if lead:
        assert torch.equal(torch.cat([t.reshape(*lead, -1) for t in named.values()], dim=-1), flat)
    else:
        assert torch.equal(layout.flatten(named), flat)


def test_weights_survive_the_disk(tmp_path) -> None:
    model = small()
    weights = model.initial(3)
    path = tmp_path / "new" / "weights.safetensors"
    save_weights(path, model.layout, weights)
    save_weights(path, model.layout, weights.requires_grad_())
    assert torch.equal(load_weights(path, model.layout), weights)
    assert [file.name for file in path.parent.iterdir()] == ["weights.safetensors"]


def test_unusable_weights_are_refused(tmp_path) -> None:
    model, path = small(), tmp_path / "weights.safetensors"
    with pytest.raises(DataError, match="no weights at"):
        load_weights(path, model.layout)
    save_weights(path, model.layout, model.initial(0))
    with pytest.raises(DataError, match="another model"):
        load_weights(path, small(60_000).layout)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="damaged"):
        load_weights(path, model.layout)


# ---------------------------------------------------------------------- many clients at once
@pytest.mark.parametrize("params", [3_000, 24_000, 60_000])
def test_clients_at_once_equal_clients_in_turn(params: int) -> None:
    model = small(params)
    weights = torch.stack([model.initial(seed) for seed in range(3)])
    blocks = torch.stack([tokens(2, 33, seed=seed) for seed in range(3)])
    together = model.loss(weights, blocks)
    in_turn = torch.stack([model.loss(w, b) for w, b in zip(weights, blocks, strict=True)])
    torch.testing.assert_close(together, in_turn, rtol=1e-6, atol=1e-6)
    expected = torch.stack([gradient(model, w, b) for w, b in zip(weights, blocks, strict=True)])
    torch.testing.assert_close(gradient(model, weights, blocks), expected, rtol=1e-4, atol=1e-6)
    logits = torch.stack([model.logits(w, b).flatten(0, 1) for w, b in zip(weights, blocks, strict=True)])
    torch.testing.assert_close(model.logits(weights, blocks), logits, rtol=1e-5, atol=1e-5)


def test_losses_in_one_piece_of_memory_are_those_of_autograd_to_the_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 40, 17, generator=draw)
    targets = torch.randint(17, (3, 40), generator=draw)
    plain, ours = (logits.clone().requires_grad_() for _ in range(2))
    alone = [torch.nn.functional.cross_entropy(*own) for own in zip(plain, targets, strict=True)]
    expected = torch.stack(alone)
    losses = client_losses(ours.clone(), targets)
    assert torch.equal(losses, expected)
    share = torch.tensor([1.0, 1.0, 0.5])
    for loss, leaf in ((losses, ours), (expected, plain)):
        (leaf.grad,) = torch.autograd.grad((loss * share).sum(), leaf)
    assert torch.equal(ours.grad, plain.grad)


def test_no_token_sees_the_future() -> None:
    model = small()
    before = tokens(1, 16)
    after = before.clone()
    after[0, 10:] = (after[0, 10:] + 1) % VOCAB
    weights = model.initial(0)
    torch.testing.assert_close(model.logits(weights, before)[0, :10], model.logits(weights, after)[0, :10])


# ---------------------------------------------------------------------- the same network in transformers
@pytest.mark.parametrize("params", [3_000, 24_000, 150_000, 1_000_000])
def test_hugging_face_export_gives_equal_logits(params: int) -> None:
    pytest.importorskip("transformers")
    model = small(params)
    weights = model.initial(1) + 0.1 * torch.randn(model.params_total, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    expected_draw = torch.rand(1)
    torch.manual_seed(5)
    exported = model.to_hugging_face(weights)
    assert torch.equal(torch.rand(1), expected_draw)  # the export moves nobody's random stream
    inputs = tokens(2, 40)
    with torch.inference_mode():
        theirs, ours = exported(inputs).logits, model.logits(weights, inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in exported.parameters()) == model.params_total


@pytest.mark.parametrize("params", [12_000, 60_000])
def test_gradients_equal_those_of_transformers(params: int) -> None:
    pytest.importorskip("transformers")
    model = small(params)
    weights = model.initial(1)
    blocks = tokens(3, 25)
    exported = model.to_hugging_face(weights).requires_grad_(True)
    logits = exported(blocks[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten()).backward()
    theirs = {name: p.grad for name, p in exported.named_parameters()}
    expected = {"embedding": theirs["model.embed_tokens.weight"], "norm": theirs["model.norm.weight"]}
    for layer in range(model.shape.layers):
        name = f"model.layers.{layer}."
        expected |= {
            f"layers.{layer}.attention_norm": theirs[name + "input_layernorm.weight"],
            f"layers.{layer}.qkv": torch.cat([theirs[f"{name}self_attn.{x}_proj.weight"] for x in "qkv"]),
            f"layers.{layer}.out": theirs[name + "self_attn.o_proj.weight"],
            f"layers.{layer}.mlp_norm": theirs[name + "post_attention_layernorm.weight"],
            f"layers.{layer}.gate_up": torch.cat([theirs[f"{name}mlp.{x}_proj.weight"] for x in ("gate", "up")]),
            f"layers.{layer}.down": theirs[name + "mlp.down_proj.weight"],
        }
    torch.testing.assert_close(gradient(model, weights, blocks), model.layout.flatten(expected), rtol=1e-3, atol=1e-6)


# ---------------------------------------------------------------------- what a config asks for
def test_bfloat16_keeps_weights_and_losses_in_float32() -> None:
    config = RunConfig(params=12_000)
    exact, fast = build_model(config), build_model(config.replace(precision="bfloat16"))
    weights, blocks = exact.initial(0), tokens(4, 33)
    loss = fast.loss(weights, blocks)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(exact.loss(weights, blocks)), rel=5e-3)
    change = gradient(fast, weights, blocks)
    assert change.dtype == torch.float32
    assert float(torch.cosine_similarity(change, gradient(exact, weights, blocks), dim=0)) > 0.99
    together = fast.loss(torch.stack([weights] * 2), torch.stack([blocks] * 2))
    torch.testing.assert_close(together, loss.expand(2), rtol=1e-2, atol=1e-2)


def test_adapters_need_a_model_to_adapt() -> None:
    with pytest.raises(ConfigError, match="give checkpoint="):
        build_model(RunConfig(lora_rank=4))
