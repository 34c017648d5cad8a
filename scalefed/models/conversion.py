"""How do the quantized weights of gguf files become a Hugging Face folder? One tensor at a time.

Reading them all at once takes several times the memory of the result; here it is one tensor, and large embeddings go
some rows at a time. Names and the order of rows follow the tables of ``transformers``.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from scalefed.errors import DataError, MissingExtraError
from scalefed.models.decoder import require_transformers

PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")
"""Architectures each of whose tensors is one of the result; others are read whole by ``transformers``."""

_ROWS = 2**22  # values of an embedding that are dequantized at once: 16 MB
_EMBEDDINGS = ("token_embd.weight", "output.weight")  # rows stand by themselves
_TYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}  # safetensors' names and bytes of a value


def convert(sources: Sequence[Path], folder: Path, *, precision: str = "float32", sha256: str = "") -> None:
    """Write model and tokenizer of a gguf file, or of all its parts, as a Hugging Face folder.

    Args:
        sources: the file, or its parts in order; the first holds the model's settings.
        folder: where to write; it is there already.
        precision: ``float32`` or ``bfloat16``: how weights are stored.
        sha256: of the sources, kept beside the weights as where they came from.

    Raises:
        DataError: the weights do not fit the model that the file describes, or several parts of an architecture that
            can only be read whole.
        MissingExtraError: ``gguf`` or ``transformers`` is not installed.
    """
    transformers = require_transformers()
    if not transformers.utils.is_gguf_available():
        raise MissingExtraError("reading a .gguf file needs gguf; install it with: pip install 'scalefed[hf]'")
    config = _convert_weights(sources, folder / "model.safetensors", precision, sha256)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what is written is no longer quantized
    config.save_pretrained(folder)
    # the reader of the weights is gone before the tokenizer, which takes as much memory again
    tokenizer = transformers.AutoTokenizer.from_pretrained(sources[0].parent, **_where(sources))
    tokenizer.save_pretrained(folder)


def _where(sources: Sequence[Path]) -> dict[str, Any]:
    """How ``transformers`` is told of a gguf file."""
    return {"gguf_file": sources[0].name, "local_files_only": True}


def _convert_weights(sources: Sequence[Path], target: Path, precision: str, sha256: str) -> Any:
    """Write the weights; the model's configuration."""
    from gguf import GGUFReader

    transformers = require_transformers()
    readers = [GGUFReader(source) for source in sources]
    about = {"format": "pt", "quantization": _quantization(readers[0]), "sha256": sha256}
    config = transformers.AutoConfig.from_pretrained(sources[0].parent, **_where(sources))
    if _architecture(readers[0]) in PLAIN:
        config.tie_word_embeddings = all(tensor.name != "output.weight" for tensor in _tensors(readers))
        config.dtype = precision
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        with target.open("wb") as file:
            _write(file, readers, model, precision, about)
        config.architectures = [type(model).__name__]
    elif len(sources) > 1:
        raise DataError(f"{sources[0].name} is one of {len(sources)} parts; join them with llama-gguf-split --merge")
    else:
        from safetensors.torch import save_model

        model = transformers.AutoModelForCausalLM.from_pretrained(
            sources[0].parent, dtype=getattr(torch, precision), **_where(sources)
        )
        config = model.config
        save_model(model, str(target), metadata=about)
    return config


def weights_of(folder: Path) -> str:
    """What is known of a folder's weights, in words: their quantization and where they came from, or nothing."""
    from safetensors import safe_open

    file = folder / "model.safetensors"
    if not file.is_file():
        return ""
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata() or {}
    if "quantization" not in about:
        return ""
    return f"{about['quantization']}, sha256 {about['sha256']}"


def _write(file: BinaryIO, readers: Sequence[Any], model: Any, precision: str, about: dict[str, str]) -> None:
    """All tensors as one safetensors file: a header that says where each will be, then each in turn."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    architecture = _architecture(readers[0])
    kind: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    processor = kind(config=model.config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tensors = [tensor for tensor in _tensors(readers) if tensor.name in names]
    lacking = set(shapes) - {names[tensor.name] for tensor in tensors} - _tied(model)
    if lacking:
        raise DataError(f"the gguf file lacks weights of its model: {', '.join(sorted(lacking)[:3])}")
    word, width = _TYPES[precision]
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for tensor in tensors:
        name = names[tensor.name]
        begin, end = end, end + width * math.prod(shapes[name])
        header[name] = {"dtype": word, "shape": shapes[name], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        count = 0
        for values in _values(tensor, processor):
            count += values.size
            _append(file, values, precision)
        if count != math.prod(shapes[names[tensor.name]]):
            raise DataError(f"{tensor.name} has {count:,} values, the model wants {shapes[names[tensor.name]]}")


def _values(tensor: Any, processor: Any) -> Iterator[np.ndarray]:
    """A tensor's values in the order of ``transformers``, in pieces that follow each other."""
    from gguf import dequantize

    if tensor.name not in _EMBEDDINGS:
        yield processor.process(weights=dequantize(tensor.data, tensor.tensor_type), name=tensor.name).weights
        return
    rows = max(1, _ROWS * len(tensor.data) // tensor.n_elements)
    for first in range(0, len(tensor.data), rows):
        yield dequantize(tensor.data[first : first + rows], tensor.tensor_type)


def _append(file: BinaryIO, values: np.ndarray, precision: str) -> None:
    plain = np.ascontiguousarray(values, dtype=np.float32)
    if precision == "bfloat16":
        plain = torch.tensor(plain, dtype=torch.bfloat16).view(torch.int16).numpy()
    file.write(plain.tobytes())


def _tensors(readers: Sequence[Any]) -> list[Any]:
    return [tensor for reader in readers for tensor in reader.tensors]


def _tied(model: Any) -> set[str]:
    """Weights that are others under a second name."""
    return set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()


def _architecture(reader: Any) -> str:
    return str(reader.fields["general.architecture"].contents())


def _quantization(reader: Any) -> str:
    """As llama.cpp names it, such as Q4_K_M."""
    from gguf import LlamaFileType

    field = reader.fields.get("general.file_type")
    try:
        return LlamaFileType(field.contents()).name.removeprefix("MOSTLY_")
    except (AttributeError, ValueError):
        return "unknown quantization"
