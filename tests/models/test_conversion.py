"""gguf files, one or several, become the folder that transformers would make of them, one tensor at a time."""

import hashlib

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from scalefed.errors import DataError  # noqa: E402
from scalefed.models import files  # noqa: E402
from scalefed.models.conversion import weights_of  # noqa: E402

WIDTH, HIDDEN, HEADS, KEYS, LAYERS = 64, 96, 4, 2, 2
WORDS = ["<end>", "<|im_start|>", "a", "b", "ab", "Ġ", "Ċ", "c"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))


def tensors(arch: str, seed: int = 0) -> dict[str, tuple[np.ndarray, gguf.GGMLQuantizationType]]:
    """A tiny network's weights, those with 32 values a row quantized."""
    random = np.random.default_rng(seed)
    kinds = gguf.GGMLQuantizationType
    shapes = {"token_embd.weight": (len(WORDS), WIDTH), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        rows = {"attn_q": WIDTH, "attn_k": WIDTH * KEYS // HEADS, "attn_v": WIDTH * KEYS // HEADS, "attn_output": WIDTH}
        rows |= {"ffn_gate": HIDDEN, "ffn_up": HIDDEN}
        shapes |= {f"blk.{layer}.{name}.weight": (count, WIDTH) for name, count in rows.items()}
        shapes |= {f"blk.{layer}.ffn_down.weight": (WIDTH, HIDDEN), f"blk.{layer}.attn_norm.weight": (WIDTH,)}
        shapes[f"blk.{layer}.ffn_norm.weight"] = (WIDTH,)
        if arch == "qwen2":
            shapes |= {f"blk.{layer}.{name}.bias": (rows[name],) for name in ("attn_q", "attn_k", "attn_v")}
    found = {}
    for name, shape in shapes.items():
        kind = kinds.Q8_0 if len(shape) == 2 else kinds.F32
        found[name] = (gguf.quantize(random.standard_normal(shape).astype(np.float32), kind), kind)
    return found


def write(path, arch: str, some, *, about: bool = True) -> None:
    writer = gguf.GGUFWriter(path, arch)
    if about:
        writer.add_context_length(128)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(LAYERS)
        writer.add_feed_forward_length(HIDDEN)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KEYS)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(10_000.0)
        writer.add_vocab_size(len(WORDS))
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(WORDS)
        writer.add_token_types([3, 3, *[1] * (len(WORDS) - 2)])
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}")
    for name, (values, kind) in some.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_the_weights_are_those_that_transformers_reads(tmp_path, arch):
    write(tmp_path / "tiny.gguf", arch, tensors(arch))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    folder = files.checkpoint_folder(str(tmp_path / "tiny.gguf"))
    ours = transformers.AutoModelForCausalLM.from_pretrained(folder)
    expected, found = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys() and ours.dtype == torch.float32
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    words = torch.tensor([[2, 3, 4, 7]])
    with torch.inference_mode():
        torch.testing.assert_close(ours(words).logits, theirs(words).logits, rtol=0, atol=0)
    digest = hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest()
    assert weights_of(folder) == f"Q8_0, sha256 {digest}"
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template


def test_bfloat16_is_half_as_large_and_rounded_once(tmp_path):
    write(tmp_path / "tiny.gguf", "llama", tensors("llama"))
    full, half = (files.checkpoint_folder(str(tmp_path / "tiny.gguf"), precision=p) for p in ("float32", "bfloat16"))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (full, half)]
    assert full != half and sizes[1] < 0.6 * sizes[0]
    pair = [transformers.AutoModelForCausalLM.from_pretrained(one, dtype="auto").state_dict() for one in (full, half)]
    assert all(torch.equal(pair[0][name].bfloat16(), pair[1][name]) for name in pair[0])


def test_parts_are_one_model(tmp_path):
    every = list(tensors("llama").items())
    write(tmp_path / "whole.gguf", "llama", dict(every))
    write(tmp_path / "tiny-00001-of-00002.gguf", "llama", dict(every[:5]))
    write(tmp_path / "tiny-00002-of-00002.gguf", "llama", dict(every[5:]), about=False)
    whole, parts = (files.checkpoint_folder(str(tmp_path / f)) for f in ("whole.gguf", "tiny-00001-of-00002.gguf"))
    pair = [transformers.AutoModelForCausalLM.from_pretrained(one).state_dict() for one in (whole, parts)]
    assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])
    (tmp_path / "tiny-00002-of-00002.gguf").unlink()
    with pytest.raises(DataError, match=r"lacks tiny-00002-of-00002\.gguf; put all 2 parts into one folder"):
        files.checkpoint_folder(str(tmp_path / "tiny-00001-of-00002.gguf"))


def test_a_file_without_a_layer_is_refused(tmp_path):
    some = tensors("llama")
    del some["blk.1.ffn_up.weight"]
    write(tmp_path / "tiny.gguf", "llama", some)
    with pytest.raises(DataError, match=r"lacks weights of its model: model\.layers\.1\.mlp\.up_proj\.weight"):
        files.checkpoint_folder(str(tmp_path / "tiny.gguf"))


def test_packaged_parts_are_joined_and_checked(tmp_path, monkeypatch):
    write(tmp_path / "tiny.gguf", "llama", tensors("llama"))
    data = (tmp_path / "tiny.gguf").read_bytes()
    for number, piece in enumerate((data[:1000], data[1000:]), 1):
        (tmp_path / f"tiny_{number}").mkdir()
        (tmp_path / f"tiny_{number}/part{number}.bin").write_bytes(piece)
        info = tmp_path / f"tiny_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-{number}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"tiny_{number}/part{number}.bin,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    packaged = files.Packaged(("tiny-1", "tiny-2"), ("part1.bin", "part2.bin"), hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(files.PACKAGED, "tiny", packaged)
    folder = files.checkpoint_folder("Somebody/Tiny")
    assert folder == files.checkpoint_folder("tiny")
    assert files.is_hub_name("Somebody/Tiny") and not files.is_hub_name("runs/tiny-x")
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not list(folder.glob("*.gguf"))
    (tmp_path / "tiny_2/part2.bin").write_bytes(data[1000:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match="is pinned; install their packages again"):
        files.checkpoint_folder("tiny")
