"""What does a config train on? The model, the clients' text and the held-out text, made from the config alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefed.config import RunConfig
from scalefed.data import micro
from scalefed.data.corpus import ClientStreams, whole_rows
from scalefed.data.partitions import partition
from scalefed.errors import ConfigError
from scalefed.federated.rounds import ClientData
from scalefed.models import Decoder, build_model, tokenizer


@dataclass(frozen=True, kw_only=True)
class Writer:
    """What it takes to write text.

    Attributes:
        model: the model, without weights.
        tokenizer: turns prompts into ids and back.
    """

    model: Any
    tokenizer: Any


@dataclass(frozen=True, kw_only=True)
class Task(Writer):
    """Everything a run needs besides its state.

    Attributes:
        data: the clients' batches.
        validation: rows of held-out text of the global mixture, whole documents each.
        bytes_per_token: of the held-out text.
        skew: measured difference of the clients' mixtures.
        unique_tokens: size of the training corpus.
        entropy_per_token: exact entropy of the text, nats; NaN where it is unknown.
        shape: the model's architecture, for the log.
    """

    data: ClientData
    validation: list[NDArray[np.uint16]]
    bytes_per_token: float
    skew: float
    unique_tokens: int
    entropy_per_token: float
    shape: dict[str, int]


def prepare(config: RunConfig) -> Task:
    """Build model, clients and held-out text; the same config gives the same everywhere.

    Raises:
        ConfigError: settings that do not go together. DataError: a client would hold no text.
    """
    if config.data != "micro":
        raise ConfigError(f"data={config.data!r} needs a checkpoint; set checkpoint=... or data='micro'")
    model = build_model(config)
    text = micro.corpus(config.corpus_tokens, seed=config.data_seed)
    dealt = partition(
        text.families, clients=config.clients, concentration=config.concentration, scheme=config.partition,
        families_per_client=config.families_per_client, weights=np.diff(text.offsets), seed=config.seed,
    )  # fmt: skip
    data = ClientStreams(
        text.tokens, text.offsets, dealt.indices, length=config.sequence_length, batch_size=config.batch_size,
        visit_steps=config.local_steps, seed=config.seed,
    )  # fmt: skip
    words = tokenizer(config)
    held_out = micro.validation(config.validation_tokens, seed=config.data_seed)
    return Task(
        model=model,
        data=data,
        validation=whole_rows(held_out.tokens, held_out.offsets, length=config.sequence_length, start=words.eos),
        bytes_per_token=float(held_out.text_bytes.sum() / len(held_out.tokens)),
        tokenizer=words,
        skew=dealt.skew,
        unique_tokens=len(text.tokens),
        entropy_per_token=micro.entropy().nats_per_token,
        shape=_shape(model),
    )


def pretrained(config: RunConfig) -> Writer:
    """A pretrained model to sample from, without clients or text.

    Raises:
        DataError: the checkpoint cannot be found or read. MissingExtraError: it needs a package that is not installed.
    """
    return Writer(model=build_model(config), tokenizer=tokenizer(config))


def _shape(model: Any) -> dict[str, int]:
    if not isinstance(model, Decoder):
        return {}
    return {"model_width": model.shape.width, "model_layers": model.shape.layers, "model_heads": model.shape.heads}
