"""What does a config train on? The model, the clients' text and the held-out text, made from the config alone."""

import math
import sysconfig
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scalefed.config import RunConfig
from scalefed.data import micro
from scalefed.data.corpus import ClientStreams, cut_rows, whole_rows
from scalefed.data.functions import check_source, functions, part
from scalefed.data.partitions import Partition, partition
from scalefed.data.sources import encode, python_source
from scalefed.errors import ConfigError, DataError
from scalefed.federated.native import Kernels, choose
from scalefed.federated.rounds import ClientData
from scalefed.models import HEAD_WIDTH, Decoder, build_model, tokenizer

DOCUMENT_TOKENS = 30  # of a micro document in a large vocabulary, about
FILE_TOKENS = 2_000  # of a Python file, about
ROOMY_BLOCKS = 8  # a client on average: when a deal fails with that many, more text is not what it lacks


@dataclass(frozen=True, kw_only=True)
class Writer:
    """What it takes to write text.

    Attributes:
        model: the model, without weights.
        tokenizer: turns prompts into ids and back.
        kernels: what computes a model of the ladder's losses and samples, and trains it.
    """

    model: Any
    tokenizer: Any
    kernels: Kernels = Kernels("eager")


@dataclass(frozen=True, kw_only=True)
class Task(Writer):
    """Everything a run needs besides its state.

    Attributes:
        data: the clients' batches.
        validation: rows of held-out text of the global mixture: whole documents where the text's entropy is known, else
            blocks of ``sequence_length``.
        sources: for each of these rows, the number of the family of each predicted token.
        own_text: rows of the clients' own text, as much as is held out, in rows of the same kind; own_sources: the
            families of their tokens.
        mixtures: ``(clients, families)`` tokens of each family at each client.
        bytes_per_token: of the held-out text.
        skew: difference of the clients' mixtures. skew_uncorrected: of their counts, chance included.
        unique_tokens: size of the training corpus.
        entropy_per_token: exact entropy of the text, nats; NaN where it is unknown.
        shape: the model's architecture, for the log.
        unseen: rows of text of sources that no client holds; none where there are no such sources.
        sources_told: what real text was read from, in the log's columns.
    """

    data: ClientData
    validation: list[NDArray[np.uint16]]
    sources: list[NDArray[np.uint16]]
    own_text: list[NDArray[np.uint16]]
    own_sources: list[NDArray[np.uint16]]
    mixtures: NDArray[np.float64]
    bytes_per_token: float
    skew: float
    skew_uncorrected: float
    unique_tokens: int
    entropy_per_token: float
    shape: dict[str, int]
    unseen: list[NDArray[np.uint16]] = field(default_factory=list)
    sources_told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Texts:
    """Training text, held-out text, its entropy in nats a token, text of other sources, and what the log says of it."""

    text: micro.Corpus
    held_out: micro.Corpus
    entropy: float = math.nan
    unseen: micro.Corpus | None = None
    told: dict[str, Any] = field(default_factory=dict)


def prepare(config: RunConfig) -> Task:
    """Build model, clients and held-out text; the same config gives the same everywhere.

    Raises:
        ConfigError: settings that do not go together, or a device or kernels that are not there. DataError: a client
            would hold no text.
    """
    _check_device(config)
    model = build_model(config)
    kernels = choose(model, config)  # refuses what is demanded and cannot be had, before the text is made
    words = tokenizer(config)
    texts, dealt, data = _clients_text(config, words)
    text, held_out = texts.text, texts.held_out
    validation, sources = _rows(config, held_out, words.eos)
    own_text, own_sources = _rows(config, _sample(text, len(held_out.tokens)), words.eos)
    return Task(
        model=model,
        data=data,
        validation=validation,
        sources=sources,
        own_text=own_text,
        own_sources=own_sources,
        mixtures=_by_family(text.families, held_out.families, dealt.histograms),
        bytes_per_token=float(held_out.text_bytes.sum() / len(held_out.tokens)),
        tokenizer=words,
        kernels=kernels,
        skew=dealt.skew,
        skew_uncorrected=dealt.skew_uncorrected,
        unique_tokens=len(text.tokens),
        entropy_per_token=texts.entropy,
        shape=shape_of(model),
        unseen=[] if texts.unseen is None else _rows(config, texts.unseen, words.eos)[0],
        sources_told=texts.told,
    )


def _clients_text(config: RunConfig, words: Any) -> tuple[_Texts, Partition, ClientStreams]:
    """The texts, the deal and the clients' streams.

    A corpus whose size is not given doubles until every client holds a block.
    """
    size, enough = config.corpus_tokens, ROOMY_BLOCKS * config.clients * (config.sequence_length + 1)
    while True:
        texts = _texts(config, words, size)
        try:
            return texts, *_dealt(config, texts.text)
        except (ConfigError, DataError):
            if config.unique_tokens or config.data == "python" or size > enough:
                raise
        size *= 2


def _dealt(config: RunConfig, text: micro.Corpus) -> tuple[Partition, ClientStreams]:
    """Who holds which documents, and the batches that come of it."""
    dealt = partition(
        text.families, clients=config.clients, concentration=config.concentration, scheme=config.partition,
        families_per_client=config.families_per_client, weights=np.diff(text.offsets), groups=text.families,
        minimum_weight=config.sequence_length + 1, seed=config.seed,
    )  # fmt: skip
    return dealt, ClientStreams(
        text.tokens, text.offsets, dealt.indices, length=config.sequence_length, batch_size=config.batch_size,
        visit_steps=config.local_steps, seed=config.seed,
    )  # fmt: skip


def _check_device(config: RunConfig) -> None:
    try:
        torch.zeros(1, device=config.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device={config.device!r} cannot be used here ({str(error).splitlines()[0]}); allowed: cpu, and cuda or "
            "cuda:0 with a GPU and a build of torch for it"
        ) from error


def _rows(
    config: RunConfig, text: micro.Corpus, start: int
) -> tuple[list[NDArray[np.uint16]], list[NDArray[np.uint16]]]:
    """What loss is measured on, and the family of every predicted token.

    Of real files, whose entropy is unknown and of which one in a row would take all memory, blocks spread evenly over
    everything that was held out, as many as ``validation_tokens`` asks for.
    """
    families = np.repeat(text.families.astype(np.uint16), np.diff(text.offsets))
    length = config.sequence_length
    if config.data == "python":
        rows, labels = (
            cut_rows(one, length=length, start=first) for one, first in ((text.tokens, start), (families, 0))
        )
        count = math.ceil(config.validation_tokens / length)
        some = slice(None, None, max(1, len(rows) // count))
        rows, labels = rows[some][:count], labels[some][:count]
    else:
        rows, labels = (
            whole_rows(one, text.offsets, length=length, start=at) for one, at in ((text.tokens, start), (families, 0))
        )
    return rows, [label[1:] for label in labels]


def _sample(text: micro.Corpus, tokens: int) -> micro.Corpus:
    """Documents spread evenly over a text, about as many tokens of it as are asked for."""
    documents = len(text.families)
    count = min(documents, max(1, round(documents * tokens / len(text.tokens))))
    return part(text, np.linspace(0, documents - 1, count).astype(np.int64))


def _by_family(
    trained: NDArray[np.int16], held_out: NDArray[np.int16], histograms: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A partition's table with one column for every family number that occurs, dealt or held out."""
    table = np.zeros((len(histograms), 1 + max(int(trained.max()), int(held_out.max()))))
    table[:, np.unique(trained)] = histograms
    return table


def _texts(config: RunConfig, words: Any, size: int) -> _Texts:
    """Training text of ``size`` tokens, and what it is judged on."""
    if config.data == "python":
        return _files(config, words) if config.checkpoint else _functions(config, size)
    if not config.checkpoint:
        text = micro.corpus(size, seed=config.data_seed)
        held_out = micro.validation(config.validation_tokens, seed=config.data_seed)
        return _Texts(text, held_out, micro.entropy().nats_per_token)
    documents = micro.documents(size // DOCUMENT_TOKENS, seed=config.data_seed)
    families = np.array([document.family for document in documents], dtype=np.int16)
    made = encode([document.text for document in documents], words, groups=families)
    text, held_out = _held_out(made, config.validation_tokens)
    return _Texts(text, held_out, micro.entropy().nats_per_document * len(documents) / len(made.tokens))


def _functions(config: RunConfig, size: int) -> _Texts:
    """Functions of packages as bytes; natural clients hold whole packages."""
    check_source(config.data_root, partition=config.partition, clients=config.clients)
    found = functions(
        config.data_root, size=size, held_out=config.validation_tokens, exact=config.unique_tokens > 0,
        seed=config.data_seed,
    )  # fmt: skip
    told = {
        "sources": [str(one) for one in found.packages],
        "sources_unseen": [str(one) for one in found.unseen_packages],
        "text_files": found.files,
        "text_hash": found.hash,
    }
    return _Texts(found.text, found.held_out, unseen=found.unseen if len(found.unseen.tokens) else None, told=told)


def _files(config: RunConfig, words: Any) -> _Texts:
    """Files of Python's standard library or of a folder, natural clients by package, in the checkpoint's tokens.

    Installed packages are left out, so that another machine with the same Python has the same text.
    """
    files = max(10 * config.clients, config.corpus_tokens // FILE_TOKENS)
    found = python_source(config.data_root or sysconfig.get_path("stdlib"), max_files=files)
    return _Texts(*_held_out(encode(found.texts, words, groups=found.groups), math.inf))


def _held_out(text: micro.Corpus, wanted: float) -> tuple[micro.Corpus, micro.Corpus]:
    """Every tenth document is spared, and as many of these are held out as give the tokens wanted."""
    number = np.arange(len(text.families))
    spared = number[number % 10 == 0]
    sizes = np.cumsum(np.diff(text.offsets)[spared])
    return part(text, number[number % 10 > 0]), part(text, spared[: 1 + int((sizes < wanted).sum())])


def prepare_writer(config: RunConfig) -> Writer:
    """The model and tokenizer of a config alone, to sample from, without clients or text.

    Raises:
        DataError: the checkpoint cannot be found or read. MissingExtraError: it needs a package that is not installed.
    """
    _check_device(config)
    model = build_model(config)
    wanted = config.replace(kernels="auto") if config.kernels == "native" else config  # demanded for training alone
    return Writer(model=model, tokenizer=tokenizer(config), kernels=choose(model, wanted))


def shape_of(model: Any) -> dict[str, int]:
    """The architecture in the run log's columns; of a checkpoint only what its configuration says."""
    if isinstance(model, Decoder):
        shape = model.shape
        return {"model_width": shape.width, "model_layers": shape.layers, "model_heads": shape.heads,
                "model_head_width": HEAD_WIDTH, "model_vocab": shape.vocab}  # fmt: skip
    found = model.module.config
    width, heads = getattr(found, "hidden_size", None), getattr(found, "num_attention_heads", None)
    layers, vocab = getattr(found, "num_hidden_layers", None), getattr(found, "vocab_size", None)
    if not (width and heads and layers and vocab):
        return {}
    return {"model_width": width, "model_layers": layers, "model_heads": heads, "model_vocab": vocab,
            "model_head_width": getattr(found, "head_dim", None) or width // heads}  # fmt: skip
