"""What does a config train on? The model, the clients' text and the held-out text, made from the config alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalefed.config import RunConfig
from scalefed.data import micro
from scalefed.data.corpus import ClientStreams, blocks
from scalefed.data.partitions import partition
from scalefed.errors import ConfigError
from scalefed.federated.rounds import ClientData
from scalefed.models import Decoder, build_model


@dataclass(frozen=True)
class Task:
    """Everything a run needs besides its state.

    Attributes:
        model: the model, without weights.
        data: the clients' batches.
        validation: (n, length + 1) blocks of held-out text of the global mixture.
        bytes_per_token: of the held-out text.
        tokenizer: turns prompts into ids and back.
        skew: measured difference of the clients' mixtures.
        unique_tokens: size of the training corpus.
        entropy_per_token: exact entropy of the text, nats; NaN where it is unknown.
        shape: the model's architecture, for the log.
    """

    model: Any
    data: ClientData
    validation: NDArray[np.uint16]
    bytes_per_token: float
    tokenizer: Any
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
    held_out = micro.validation(config.validation_tokens, seed=config.data_seed)
    return Task(
        model=model,
        data=data,
        validation=blocks(held_out.tokens, config.sequence_length),
        bytes_per_token=float(held_out.text_bytes.sum() / len(held_out.tokens)),
        tokenizer=micro.tokenizer(config.vocab_size),
        skew=dealt.skew,
        unique_tokens=len(text.tokens),
        entropy_per_token=micro.entropy().nats_per_token,
        shape=_shape(model),
    )


def _shape(model: Any) -> dict[str, int]:
    if not isinstance(model, Decoder):
        return {}
    return {"model_width": model.shape.width, "model_layers": model.shape.layers, "model_heads": model.shape.heads}
