"""What is trained? A causal language model of a given size, or a pretrained one, with its weights in one flat vector.

Rungs of a ladder from 3 thousand to 10 million parameters (:class:`Decoder`), or a Hugging Face folder or gguf file,
whole or with LoRA adapters (:class:`Checkpoint`). :func:`build_model` makes what a config asks for.
"""

import logging
import math
from functools import lru_cache
from typing import Any

from scalefed.architecture import HEAD_WIDTH, Shape, ladder, shape_for
from scalefed.config import RunConfig
from scalefed.errors import ConfigError
from scalefed.models.checkpoint import Checkpoint, CheckpointTokenizer, load_checkpoint, load_tokenizer
from scalefed.models.decoder import NORM_EPS, Decoder, rotary_tables, rotate
from scalefed.models.layout import Entry, Layout, Model, Tensor, load_weights, save_weights
from scalefed.models.session import CheckpointSession
from scalefed.units import train_flops

__all__ = [
    "HEAD_WIDTH",
    "NORM_EPS",
    "Checkpoint",
    "CheckpointSession",
    "CheckpointTokenizer",
    "Decoder",
    "Entry",
    "Layout",
    "Model",
    "Shape",
    "Tensor",
    "build_model",
    "ladder",
    "load_weights",
    "model_flops",
    "rotary_tables",
    "rotate",
    "save_weights",
    "shape_for",
    "tokenizer",
]


logger = logging.getLogger(__name__)
FAR_OFF = 0.25
"""A rung further from the size asked for than this share of it is worth a warning."""


def build_model(config: RunConfig) -> Model:
    """The model a config asks for: its checkpoint, else the rung of the ladder nearest to ``params``.

    A rung more than 25% off is said in a warning of the log, once for each size.

    Raises:
        ConfigError: adapters are asked for and there is no checkpoint to adapt.
        DataError: the checkpoint cannot be found or read.
        MissingExtraError: the checkpoint needs a package that is not installed.
    """
    if config.checkpoint:
        return load_checkpoint(config)
    if config.lora_rank:
        raise ConfigError(
            f"lora_rank={config.lora_rank} adapts a pretrained model; give checkpoint= too, or set lora_rank=0"
        )
    shape = shape_for(config.params, config.vocab_size)
    if abs(shape.params / config.params - 1) > FAR_OFF:
        say_far_off(config.params, shape.params)
    return Decoder(shape, precision=config.precision)


@lru_cache(maxsize=1_000)
def say_far_off(asked: int, trained: int) -> None:
    others = [shape.params for shape in ladder(1) if shape.params != trained]
    second = min(others, key=lambda size: abs(math.log(size / asked)))
    logger.warning(
        "params=%s trains %s parameters, %+.0f%%: the nearest size there is; the next nearest has %s",
        f"{asked:,}", f"{trained:,}", 100 * (trained / asked - 1), f"{second:,}",
    )  # fmt: skip


def tokenizer(config: RunConfig) -> Any:
    """The tokenizer of a config's data: the checkpoint's own, bytes for real text, else the micro benchmark's BPE.

    An object with ``encode(text)``, ``encode_batch(texts)``, ``decode(ids)``, ``eos`` and ``vocab_size``.
    """
    if config.checkpoint:
        return load_tokenizer(config)
    from scalefed.data import micro
    from scalefed.data.tokenizer import ByteTokenizer

    if config.data == "python":
        return ByteTokenizer()
    return micro.tokenizer(config.vocab_size)


def model_flops(model: Model, tokens: int) -> float:
    """Training FLOPs of a model: 6 N a token when all of it is trained, (4 N + 2 N_trained) with adapters."""
    trained = None if model.params_trained == model.params_total else model.params_trained
    return float(train_flops(model.params, tokens, trained=trained))
