"""How does text become token ids? A byte-level BPE that takes any text and ends documents with one special id."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scalefed.errors import ConfigError, DataError

END = "<|end|>"
ENCODED_AT_ONCE = 1_024  # texts; the backend's records of them take a hundred times the room of their ids
SMALLEST_VOCABULARY = 257  # the 256 bytes and the end of a document


class Tokenizer:
    """A byte-level BPE; id 0 ends a document and no text encodes to it.

    Attributes:
        vocab_size: number of ids.
        eos: the id that ends a document.
    """

    def __init__(self, backend: Any) -> None:
        backend.encode_special_tokens = True
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size()
        eos = backend.token_to_id(END)
        if eos is None:
            raise DataError(f"the tokenizer has no {END!r} token; make it with train_tokenizer")
        self.eos: int = eos

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without the end of document."""
        ids: list[int] = self._backend.encode(text).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts at once, without ends of documents."""
        return [
            encoding.ids
            for first in range(0, len(texts), ENCODED_AT_ONCE)
            for encoding in self._backend.encode_batch(list(texts[first : first + ENCODED_AT_ONCE]))
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; ends of documents are left out, broken characters become U+FFFD."""
        text: str = self._backend.decode([int(i) for i in ids])
        return text

    def to_json(self) -> str:
        """The tokenizer in the Hugging Face ``tokenizer.json`` format."""
        text: str = self._backend.to_str(pretty=False)
        return text


class ByteTokenizer:
    """Bytes as they are: byte b is id b + 1, and id 0 ends a document.

    Attributes:
        vocab_size: 257, the bytes and the end of a document.
        eos: the id that ends a document.

    >>> ByteTokenizer().decode(ByteTokenizer().encode("é"))
    'é'
    """

    vocab_size = SMALLEST_VOCABULARY
    eos = 0

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without the end of document."""
        return [byte + 1 for byte in text.encode()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, without ends of documents."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; ends of documents are left out, broken characters become U+FFFD."""
        return bytes(int(i) - 1 for i in ids if int(i)).decode(errors="replace")


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 512) -> Tokenizer:
    """A byte-level BPE trained on texts; the same texts give the same tokenizer.

    Words are split off before merging by GPT-2's rule, so a token never crosses the border between a word, its
    punctuation and a line break.

    Args:
        texts: what to train on.
        vocab_size: number of ids, at least 257; fewer when the texts offer fewer merges.

    Raises:
        ConfigError: the vocabulary cannot hold the 256 bytes and the end of a document.

    >>> tokenizer = train_tokenizer(["ab ab ab"], vocab_size=260)
    >>> tokenizer.decode(tokenizer.encode("cab"))
    'cab'
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"vocab_size must be at least {SMALLEST_VOCABULARY} (256 bytes and one end), got {vocab_size}"
        )
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a ``tokenizer.json`` file.

    Raises:
        DataError: no such file, or not a tokenizer with an end of document.
    """
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exception for malformed files
        raise DataError(f"cannot read a tokenizer from {str(path)!r}: {error}") from error
    return Tokenizer(backend)
