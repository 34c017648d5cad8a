"""How does our decoder read and write with our kernels? Losses of given text, and a session that samples programs.

Keys and values lie in pages of 16 positions that are taken as they are filled, and all samples of a prompt share the
prompt's: memory follows what is written, not how long it might become.
"""

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from scalefed.errors import ConfigError, DataError
from scalefed.federated.native.library import ShapeRecord, address
from scalefed.models import HEAD_WIDTH, Decoder, Model, Tensor, rotary_tables

PAGE, CHUNK = 16, 64  # positions of a page, and pages that are made at once, as in reading.h

Ints = NDArray[np.int64]


class _ReaderRecord(ctypes.Structure):
    """The record ``Reader`` of reading.h, field by field."""

    _fields_ = [
        ("shape", ShapeRecord),
        *((name, ctypes.c_long) for name in ("length", "width")),
        *((name, ctypes.c_void_p) for name in ("weights", "cosine", "sine", "chunks", "room")),
    ]


class Reader:
    """A decoder with weights, packed for reading; one thread at a time."""

    def __init__(self, code: ctypes.CDLL, model: Decoder, weights: Tensor, *, length: int) -> None:
        """Room for texts of at most ``length`` tokens.

        Args:
            code: the loaded library.
            model: gives the shape.
            weights: ``(P,)`` float32; not changed, and kept.
            length: most tokens of a text.
        """
        code.room_to_read.restype = ctypes.c_long
        self.code, self.shape, self.length = code, model.shape, length
        shape = ShapeRecord.of(model.shape)
        tables = rotary_tables(torch.arange(-(-length // 8) * 8), torch.empty(0, dtype=torch.float32))
        self._kept = (
            weights.contiguous(),
            *(table.contiguous() for table in tables),
            torch.empty(code.room_to_read(ctypes.byref(shape), ctypes.c_long(length))),
        )
        own, cosine, sine, room = self._kept
        self.record = _ReaderRecord(
            shape=shape, length=length, weights=address(own, model.layout.size), cosine=cosine.data_ptr(),
            sine=sine.data_ptr(), room=room.data_ptr(),
        )  # fmt: skip
        code.open_reader(ctypes.byref(self.record))

    def token_losses(self, texts: Sequence[Sequence[int] | np.ndarray]) -> list[NDArray[np.float32]]:
        """Loss of every token but the first of each text, nats.

        Raises:
            DataError: a token id that the model does not have.
        """
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        tokens, offsets = self._joined([texts[place] for place in order])
        losses = np.empty(len(tokens) - len(texts), dtype=np.float32)
        self._call("token_losses", len(texts), tokens, offsets, losses)
        found: list[NDArray[np.float32]] = [losses] * len(texts)
        for number, place in enumerate(order):
            found[place] = losses[offsets[number] - number : offsets[number + 1] - number - 1]
        return found

    def _joined(self, texts: Sequence[Sequence[int] | np.ndarray]) -> tuple[Ints, Ints]:
        """Texts end to end, and where each begins."""
        offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        tokens = np.concatenate([np.asarray(text, dtype=np.int64) for text in texts])
        if tokens.min() < 0 or tokens.max() >= self.shape.vocab:
            raise DataError(f"token ids must be 0 to {self.shape.vocab - 1}, got {tokens.min()} to {tokens.max()}")
        return tokens, offsets

    def _call(self, name: str, *values: "int | float | np.ndarray | Tensor") -> None:
        given: list[object] = []
        for value in values:
            if isinstance(value, int):
                given.append(ctypes.c_long(value))
            elif isinstance(value, float):
                given.append(ctypes.c_float(value))
            else:
                place = value.ctypes.data if isinstance(value, np.ndarray) else value.data_ptr()
                given.append(ctypes.c_void_p(place))
        getattr(self.code, name)(ctypes.byref(self.record), *given)


class NativeSession(Reader):
    """A :class:`scalefed.evaluation.sampling.Session`: rows of text, each at its own position."""

    def __init__(self, code: ctypes.CDLL, model: Decoder, weights: Tensor, *, rows: int, length: int) -> None:
        """Room for ``rows`` completions of at most ``length`` tokens, prompt included; see :class:`Reader`."""
        super().__init__(code, model, weights, length=length)
        self.record.width = -(-length // PAGE) + 1
        self.chunks: list[Tensor] = []
        self._free: list[int] = []
        self._table = np.zeros((rows, self.record.width), dtype=np.int64)
        self._prompt = np.zeros(rows, dtype=np.int64)  # tokens of each row's prompt
        self._own = np.zeros(rows, dtype=np.int64)  # pages that a row has filled beside its prompt's

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read all prompts.

        Raises:
            ConfigError: a prompt leaves no room for a new token. DataError: a token id that the model does not have.
        """
        if any(not 0 < len(prompt) < self.length for prompt in prompts):
            raise ConfigError(f"prompts must have 1 to {self.length - 1} tokens; raise length")
        tokens, offsets = self._joined(prompts)
        self._lengths = np.diff(offsets)
        self._pages = np.zeros((len(prompts), self.record.width), dtype=np.int64)
        for place, length in enumerate(self._lengths):
            count = -(-int(length) // PAGE)
            self._pages[place, :count] = self._take(count)
        self._first = torch.empty(len(prompts), self.shape.vocab)
        self._call("read_prompts", len(prompts), tokens, offsets, self._pages, self._first)

    def assign(self, rows: Tensor, prompts: Tensor) -> Tensor:
        """Let rows go on from prompts: ``(n,)`` rows, ``(n,)`` indices of prompts; their next-token logits."""
        mine, theirs = rows.numpy(), prompts.numpy()
        self._forget(mine)
        self._table[mine], self._prompt[mine] = self._pages[theirs], self._lengths[theirs]
        return self._first[prompts]

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows."""
        kept = rows.numpy()
        self._forget(np.setdiff1d(np.arange(len(self._own)), kept))
        self._table, self._prompt, self._own = self._table[kept], self._prompt[kept], self._own[kept]

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Feed one token a row at its position; returns next-token logits ``(rows, vocab)``."""
        at = positions.numpy().astype(np.int64)
        full = np.flatnonzero(at - self._prompt >= PAGE * self._own)
        places = -(-self._prompt[full] // PAGE) + self._own[full]
        self._table[full, places] = self._take(len(full))
        self._own[full] += 1
        logits = torch.empty(len(tokens), self.shape.vocab)
        self._call("write_tokens", len(tokens), tokens.contiguous(), at, self._prompt, self._table, logits)
        return logits

    def draw(self, logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> Tensor:
        """As :func:`scalefed.evaluation.token_sampling.draw`, for ``top_p=1`` and a temperature above 0."""
        assert top_p == 1 and temperature > 0
        tokens = torch.empty(len(logits), dtype=torch.int64)
        self._call("draw_tokens", len(logits), logits.contiguous(), uniforms.double().contiguous(), temperature, tokens)
        return tokens

    def _forget(self, rows: NDArray[np.int64]) -> None:
        """Give the rows' own pages back."""
        for row in rows[self._own[rows] > 0]:
            first = -(-int(self._prompt[row]) // PAGE)
            self._free.extend(self._table[row, first : first + self._own[row]].tolist())
        self._own[rows] = 0

    def _take(self, count: int) -> list[int]:
        while len(self._free) < count:
            self._grow()
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return taken

    def _grow(self) -> None:
        before, shape = len(self.chunks), self.shape
        self.chunks.append(torch.zeros(CHUNK, shape.layers, shape.heads, 2, HEAD_WIDTH, PAGE))
        self._addresses = np.array([chunk.data_ptr() for chunk in self.chunks], dtype=np.uint64)
        self.record.chunks = self._addresses.ctypes.data
        self._free.extend(range(before * CHUNK, (before + 1) * CHUNK))


def native_losses(code: ctypes.CDLL) -> Callable[[Model, Tensor, Sequence[np.ndarray]], Tensor]:
    """What :func:`scalefed.evaluation.scoring.held_out_loss` takes as ``token_losses``, by our kernels."""

    def token_losses(model: Model, weights: Tensor, rows: Sequence[np.ndarray]) -> Tensor:
        assert isinstance(model, Decoder)
        longest = max(map(len, rows))
        found = Reader(code, model, weights, length=longest).token_losses(rows)
        losses = torch.zeros(len(rows), longest - 1)
        for place, own in enumerate(found):
            losses[place, : len(own)] = torch.from_numpy(own)
        return losses

    return token_losses
