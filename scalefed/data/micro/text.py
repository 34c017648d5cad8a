"""What does a drawn document look like, as text and as tokens?

A document is a function ``f`` whose docstring names the pipeline and whose body does it. Its text is a sequence of
pieces (header, phrases, end of docstring, code, return) that all begin and end where the tokenizer splits words, so
its tokens are the pieces' tokens, one after the other: a corpus is assembled by indexing, without running the BPE.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalefed.data.micro.grammar import CHUNK, DEEPEST, Draws, draw, grammar
from scalefed.data.micro.primitives import TYPES, table
from scalefed.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from scalefed.errors import ConfigError

SHIPPED_VOCABULARY = 512  # merges that the package carries, learnt once
TOKENIZER_DOCUMENTS = 16384  # that merges are learnt from; other numbers give other merges
ENTRY_POINT = "f"
CLOSE = '"""'


@dataclass(frozen=True, slots=True)
class Document:
    """One training document: its text, the index of its family and its number of steps."""

    text: str
    family: int
    depth: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents as one row of tokens, each followed by the end of document.

    Attributes:
        tokens: (t,) token ids.
        offsets: (n + 1,) document i is ``tokens[offsets[i]:offsets[i + 1]]``, its end included.
        families: (n,) family of each document.
        text_bytes: (n,) bytes of each document's text in UTF-8.
    """

    tokens: NDArray[np.uint16]
    offsets: NDArray[np.int64]
    families: NDArray[np.int16]
    text_bytes: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Pieces:
    """The tokens of every piece of text: piece i is ``tokens[starts[i]:starts[i] + lengths[i]]``.

    Ids come in blocks: headers by type, first phrases, later phrases and codes by variant, returns by type (with the
    end of document), and last the end of the docstring.
    """

    tokens: NDArray[np.uint16]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    text_bytes: NDArray[np.int64]
    first: int
    later: int
    code: int
    end: int
    close: int


def header(kind: int) -> str:
    """The text before the first phrase, for an input of type ``kind``."""
    return f'def {ENTRY_POINT}({TYPES[kind]}):\n    """'


def prompt_and_solution(variants: NDArray[np.int32]) -> tuple[str, str]:
    """The document of one pipeline (its variants, -1 past the end), cut after the docstring."""
    skills, model = table(), grammar()
    steps = [int(variant) for variant in variants if variant >= 0]
    phrases = ", ".join(skills.variants[step].phrase for step in steps)
    code = "".join(skills.variants[step].code for step in steps)
    closing = f"\n    return {TYPES[model.target[steps[-1]]]}\n"
    return header(int(model.source[steps[0]])) + phrases + CLOSE, code + closing


def documents(count: int, *, seed: int, start: int = 0) -> list[Document]:
    """Training documents ``start`` to ``start + count``; document i depends on (seed, i) only.

    Raises:
        ConfigError: a negative count or start.

    >>> documents(3, seed=0)[2] == documents(1, seed=0, start=2)[0]
    True
    """
    if count < 0 or start < 0:
        raise ConfigError(f"count and start must not be negative, got count={count}, start={start}")
    draws = draw(count, seed=seed, purpose="documents", start=start)
    return [
        Document("".join(prompt_and_solution(variants)), int(family), int(depth))
        for variants, family, depth in zip(draws.variants, draws.families, draws.depths, strict=True)
    ]


def corpus(tokens: int, *, seed: int) -> Corpus:
    """Training text of at least ``tokens`` tokens: the shortest run of whole documents; a longer one begins with it."""
    return _stream(tokens, seed, "documents")


def validation(tokens: int, *, seed: int) -> Corpus:
    """Text of the same distribution as :func:`corpus`, from an independent stream."""
    return _stream(tokens, seed, "validation")


def tokenizer(vocab_size: int = SHIPPED_VOCABULARY) -> Tokenizer:
    """The benchmark's byte-level BPE: shipped for 512 ids, trained on the spot (seconds) for other sizes.

    >>> tokenizer().vocab_size
    512
    """
    return _tokenizer(vocab_size)


@lru_cache(maxsize=4)
def _tokenizer(vocab_size: int) -> Tokenizer:
    if vocab_size == SHIPPED_VOCABULARY:
        with resources.as_file(resources.files(__package__).joinpath("tokenizer.json")) as path:
            return load_tokenizer(Path(path))
    return make_tokenizer(vocab_size)


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """Train the benchmark's tokenizer anew; for 512 ids it equals the shipped one."""
    texts = [document.text for document in documents(TOKENIZER_DOCUMENTS, seed=0)]
    return train_tokenizer(texts, vocab_size=vocab_size)


@lru_cache(maxsize=1)
def pieces() -> Pieces:
    """The tokens of every piece, encoded once."""
    skills, bpe = table(), tokenizer()
    kinds, variants = range(len(TYPES)), skills.variants
    texts = [header(kind) for kind in kinds]
    texts += [variant.phrase for variant in variants]
    texts += [", " + variant.phrase for variant in variants]
    texts += [variant.code for variant in variants]
    texts += [f"\n    return {name}\n" for name in TYPES]
    ends = range(len(texts) - len(TYPES), len(texts))
    ids = bpe.encode_batch([*texts, CLOSE])
    ids = [row + [bpe.eos] if i in ends else row for i, row in enumerate(ids)]
    lengths = np.array([len(row) for row in ids])
    return Pieces(
        tokens=np.concatenate([np.array(row, np.uint16) for row in ids]),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        text_bytes=np.array([len(text.encode()) for text in [*texts, CLOSE]]),
        first=len(TYPES),
        later=len(TYPES) + len(variants),
        code=len(TYPES) + 2 * len(variants),
        end=len(TYPES) + 3 * len(variants),
        close=len(texts),
    )


def encode_draws(draws: Draws) -> Corpus:
    """The tokens of drawn documents, in order."""
    model, table_of = grammar(), pieces()
    count = len(draws.families)
    there = draws.variants >= 0
    grid = np.full((count, 2 * DEEPEST + 3), -1, dtype=np.int64)
    last = draws.variants[np.arange(count), draws.depths - 1]
    grid[:, 0] = model.source[draws.variants[:, 0]]
    grid[:, 1] = table_of.first + draws.variants[:, 0]
    grid[:, 2 : DEEPEST + 1] = np.where(there[:, 1:], table_of.later + draws.variants[:, 1:], -1)
    grid[:, DEEPEST + 1] = table_of.close
    grid[:, DEEPEST + 2 : -1] = np.where(there, table_of.code + draws.variants, -1)
    grid[:, -1] = table_of.end + model.target[last]
    used = grid >= 0
    sequence = grid[used]
    lengths = table_of.lengths[sequence]
    before = np.cumsum(lengths) - lengths
    index = np.repeat(table_of.starts[sequence] - before, lengths) + np.arange(lengths.sum())
    sizes = np.where(used, table_of.lengths[grid], 0).sum(axis=1)
    return Corpus(
        tokens=table_of.tokens[index],
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        families=draws.families,
        text_bytes=np.where(used, table_of.text_bytes[grid], 0).sum(axis=1).astype(np.int32),
    )


@lru_cache(maxsize=2)  # runs of a bundle share their text; nobody writes into it
def _stream(tokens: int, seed: int, purpose: str) -> Corpus:
    if tokens < 1:
        raise ConfigError(f"tokens must be at least 1, got {tokens}")
    longest = CHUNK * (2 * DEEPEST + 3) * int(pieces().lengths.max())  # tokens of a chunk of documents, at most
    row, have = np.empty(tokens + longest, dtype=np.uint16), 0
    parts: list[Corpus] = []
    while have < tokens:
        part = encode_draws(draw(CHUNK, seed=seed, purpose=purpose, start=CHUNK * len(parts)))
        row[have : have + len(part.tokens)] = part.tokens
        have += len(part.tokens)
        parts.append(replace(part, tokens=row[:0]))
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    keep = int(np.searchsorted(np.cumsum(sizes), tokens)) + 1
    offsets = np.concatenate([[0], np.cumsum(sizes[:keep])]).astype(np.int64)
    return Corpus(
        tokens=row[: offsets[-1]],
        offsets=offsets,
        families=np.concatenate([part.families for part in parts])[:keep],
        text_bytes=np.concatenate([part.text_bytes for part in parts])[:keep],
    )
