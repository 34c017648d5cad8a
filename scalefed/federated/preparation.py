"""What does a config train on? The model, the clients' text and the held-out text, made from the config alone."""

import math
import sysconfig
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scalefed.config import RunConfig
from scalefed.data import micro
from scalefed.data.corpus import ClientStreams, cut_rows, gather, whole_rows
from scalefed.data.partitions import partition
from scalefed.data.sources import encode, python_source
from scalefed.errors import ConfigError
from scalefed.federated.rounds import ClientData
from scalefed.models import Decoder, build_model, tokenizer

DOCUMENT_TOKENS = 30  # of a micro document in a large vocabulary, about
FILE_TOKENS = 2_000  # of a Python file, about


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
        validation: rows of held-out text of the global mixture: whole documents where the text's entropy is known, else
            blocks of ``sequence_length``.
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
        ConfigError: settings that do not go together, or a device that is not there. DataError: a client would hold no
            text.
    """
    _check_device(config)
    words = tokenizer(config)
    text, held_out, entropy = _texts(config, words)
    dealt = partition(
        text.families, clients=config.clients, concentration=config.concentration, scheme=config.partition,
        families_per_client=config.families_per_client, weights=np.diff(text.offsets), groups=text.families,
        seed=config.seed,
    )  # fmt: skip
    data = ClientStreams(
        text.tokens, text.offsets, dealt.indices, length=config.sequence_length, batch_size=config.batch_size,
        visit_steps=config.local_steps, seed=config.seed,
    )  # fmt: skip
    model = build_model(config)
    return Task(
        model=model,
        data=data,
        validation=_rows(config, held_out, words.eos),
        bytes_per_token=float(held_out.text_bytes.sum() / len(held_out.tokens)),
        tokenizer=words,
        skew=dealt.skew,
        unique_tokens=len(text.tokens),
        entropy_per_token=entropy,
        shape=_shape(model),
    )


def _check_device(config: RunConfig) -> None:
    try:
        torch.zeros(1, device=config.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={config.device!r} cannot be used here ({str(error).splitlines()[0]}); allowed: cpu, and cuda or "
            "cuda:0 with a GPU and a build of torch for it"
        ) from error


def _rows(config: RunConfig, held_out: micro.Corpus, start: int) -> list[NDArray[np.uint16]]:
    """What held-out loss is measured on.

    Of real files, whose entropy is unknown and of which one in a row would take all memory, blocks spread evenly over
    everything that was held out, as many as ``validation_tokens`` asks for.
    """
    if config.data == "python":
        rows = cut_rows(held_out.tokens, length=config.sequence_length, start=start)
        count = math.ceil(config.validation_tokens / config.sequence_length)
        return rows[:: max(1, len(rows) // count)][:count]
    return whole_rows(held_out.tokens, held_out.offsets, length=config.sequence_length, start=start)


def _texts(config: RunConfig, words: Any) -> tuple[micro.Corpus, micro.Corpus, float]:
    """Training text, held-out text, and the entropy per token where it is known."""
    if config.data == "python":
        return *_python(config, words), math.nan
    if not config.checkpoint:
        text = micro.corpus(config.corpus_tokens, seed=config.data_seed)
        held_out = micro.validation(config.validation_tokens, seed=config.data_seed)
        return text, held_out, micro.entropy().nats_per_token
    documents = micro.documents(config.corpus_tokens // DOCUMENT_TOKENS, seed=config.data_seed)
    families = np.array([document.family for document in documents], dtype=np.int16)
    made = encode([document.text for document in documents], words, groups=families)
    text, held_out = _held_out(made, config.validation_tokens)
    return text, held_out, micro.entropy().nats_per_document * len(documents) / len(made.tokens)


def _python(config: RunConfig, words: Any) -> tuple[micro.Corpus, micro.Corpus]:
    """Python's standard library, natural clients by top-level module, in the checkpoint's tokens.

    Installed packages are left out, so that another machine with the same Python has the same text.
    """
    if not config.checkpoint:
        raise ConfigError("data='python' needs a pretrained model; set checkpoint=smollm2-135m-instruct or data=micro")
    files = max(10 * config.clients, config.corpus_tokens // FILE_TOKENS)
    found = python_source(sysconfig.get_path("stdlib"), max_files=files)
    return _held_out(encode(found.texts, words, groups=found.groups), math.inf)


def _held_out(text: micro.Corpus, wanted: float) -> tuple[micro.Corpus, micro.Corpus]:
    """Every tenth document is spared, and as many of these are held out as give the tokens wanted."""
    number = np.arange(len(text.families))
    spared = number[number % 10 == 0]
    sizes = np.cumsum(np.diff(text.offsets)[spared])
    return _some(text, number[number % 10 > 0]), _some(text, spared[: 1 + int((sizes < wanted).sum())])


def _some(text: micro.Corpus, documents: NDArray[np.int64]) -> micro.Corpus:
    sizes = np.diff(text.offsets)[documents]
    return micro.Corpus(
        tokens=gather(text.tokens, text.offsets, documents),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        families=text.families[documents],
        text_bytes=text.text_bytes[documents],
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
