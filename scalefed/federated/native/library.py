"""What does the C library take and give? Its records as ctypes, and the calls as functions of tensors."""

import ctypes
import math
import mmap
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from scalefed.config import RunConfig
from scalefed.errors import DataError
from scalefed.models import Decoder, Shape, Tensor, rotary_tables, shape_for

CLOSE = 1e-4
"""Largest relative error of a gradient that rounding explains, beside torch's; 1e-6 is usual."""
STEPS_A_CALL = 32  # so that a user's interrupt is heard between calls


class ShapeRecord(ctypes.Structure):
    """The record ``Shape`` of decoder.h."""

    _fields_ = [(name, ctypes.c_long) for name in ("vocab", "width", "layers", "heads", "hidden")]

    @classmethod
    def of(cls, shape: Shape) -> "ShapeRecord":
        """The record of a decoder's shape."""
        return cls(shape.vocab, shape.width, shape.layers, shape.heads, shape.hidden)


class _Visit(ctypes.Structure):
    """The record ``Visit`` of step.c, field by field."""

    _fields_ = [
        ("shape", ShapeRecord),
        *((name, ctypes.c_long) for name in ("batch", "length", "params", "adam", "centred")),
        *((name, ctypes.c_float) for name in ("beta1", "beta2", "epsilon", "clip", "momentum", "pull")),
        *(
            (name, ctypes.c_void_p)
            for name in ("cosine", "sine", "decay", "shift", "origin", "pieces", "weights", "first", "second",
                         "gradient", "total", "room")
        ),
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What a client trains with, changed in place: float32 vectors ``(P,)`` on the processor, each of its own memory.

    Attributes:
        weights: of the client.
        first: AdamW's first moment, or SGD's momentum; None for plain SGD.
        second: AdamW's second moment; None for SGD.
        decay: weight decay of each weight; None for none.
        shift: added to every gradient; None for nothing.
        pull: strength of the spring back to ``origin``.
        pieces: start, stop and rows of each centred piece of the gradient.
        total: the sum of the unchanged gradients is added to it; None where it is not wanted.
    """

    weights: Tensor
    first: Tensor | None = None
    second: Tensor | None = None
    decay: Tensor | None = None
    shift: Tensor | None = None
    origin: Tensor | None = None
    pull: float = 0.0
    pieces: Sequence[tuple[int, int, int]] = ()
    total: Tensor | None = None


class Step:
    """The step of a decoder on text of one shape; its working memory serves one client at a time."""

    def __init__(self, code: ctypes.CDLL, shape: Shape, *, batch: int, length: int) -> None:
        """Room for activations and gradient.

        Args:
            code: the loaded library.
            shape: of the decoder.
            batch: sequences in a step.
            length: tokens predicted in a sequence.
        """
        code.room_for.restype = ctypes.c_long
        code.train.restype = code.gradient_of.restype = ctypes.c_double
        self.code, self.batch, self.length = code, batch, length
        self.vocab, self.size = shape.vocab, shape.params_total
        self._shape = ShapeRecord.of(shape)
        room = code.room_for(ctypes.byref(self._shape), ctypes.c_long(batch), ctypes.c_long(length))
        tables = rotary_tables(torch.arange(-(-length // 8) * 8), torch.empty(0, dtype=torch.float32))
        self._cosine, self._sine = (table.contiguous() for table in tables)
        self._room, self._gradient = _scratch(room), torch.empty(self.size)
        self._busy = threading.Lock()

    def train(self, visit: Visit, batches: Tensor, rates: Tensor, config: RunConfig) -> float:
        """Local steps; returns the sum of their losses, nats per token each.

        Args:
            visit: whose vectors are changed.
            batches: ``(steps, batch, length + 1)`` token ids.
            rates: ``(steps, 3)`` float32: the learning rate, the same over ``1 - beta1^t``, and ``1 / (1 - beta2^t)``.
            config: gives the optimizer's constants.

        Raises:
            DataError: a token id that the model does not have.
        """
        self._check(batches)
        pieces = torch.tensor(list(visit.pieces), dtype=torch.int64)
        batches, rates, loss = batches.contiguous(), rates.contiguous(), 0.0
        with self._busy:
            record = self._record(visit, pieces, config)
            for first in range(0, len(batches), STEPS_A_CALL):
                some = batches[first : first + STEPS_A_CALL]
                loss += self.code.train(
                    ctypes.byref(record), ctypes.c_long(len(some)), ctypes.c_void_p(some.data_ptr()),
                    ctypes.c_void_p(rates[first:].data_ptr()),
                )  # fmt: skip
        return loss

    def gradient(self, weights: Tensor, blocks: Tensor) -> tuple[float, Tensor]:
        """Loss in nats per token, and its gradient ``(P,)``, of ``(batch, length + 1)`` token ids."""
        self._check(blocks)
        own, none = blocks.contiguous(), torch.empty(0, dtype=torch.int64)
        with self._busy:
            record = self._record(Visit(weights=weights), none, RunConfig())
            loss = self.code.gradient_of(ctypes.byref(record), ctypes.c_void_p(own.data_ptr()))
            return loss, self._gradient.clone()

    def _check(self, batches: Tensor) -> None:
        low, high = torch.aminmax(batches)
        if int(low) < 0 or int(high) >= self.vocab:
            raise DataError(
                f"token ids must be 0 to {self.vocab - 1}, got {int(low)} to {int(high)}; "
                "train with the vocabulary that the text was made with"
            )

    def _record(self, visit: Visit, pieces: Tensor, config: RunConfig) -> _Visit:
        vectors = {
            name: address(getattr(visit, name), self.size)
            for name in ("weights", "first", "second", "decay", "shift", "origin", "total")
        }
        return _Visit(
            shape=self._shape, batch=self.batch, length=self.length, params=self.size,
            adam=visit.second is not None, centred=len(pieces), beta1=config.beta1, beta2=config.beta2,
            epsilon=config.adam_epsilon, clip=config.clip_norm, momentum=config.inner_momentum, pull=visit.pull,
            cosine=self._cosine.data_ptr(), sine=self._sine.data_ptr(), gradient=self._gradient.data_ptr(),
            room=self._room.data_ptr(), pieces=pieces.data_ptr(), **vectors,
        )  # fmt: skip


def _scratch(floats: int) -> Tensor:
    """Uninitialised float32 memory in large pages where the system has them: it is read all over in every step."""
    memory = mmap.mmap(-1, 4 * floats)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32)


def address(vector: Tensor | None, size: int) -> int | None:
    """Where a flat float32 vector lies; None for none."""
    if vector is None:
        return None
    if vector.shape != (size,) or vector.dtype != torch.float32 or not vector.is_contiguous():
        raise ValueError(f"the step takes float32 vectors of {size} values, got {vector.dtype} {tuple(vector.shape)}")
    return vector.data_ptr()


def what_is_wrong(code: ctypes.CDLL) -> str:
    """How the library's loss or gradient differs from torch's, in words; nothing where they agree up to rounding.

    Two layers, two heads, a vocabulary and a length that are no multiple of a vector's.
    """
    model = Decoder(shape_for(55_000, 42))
    weights = model.initial(0)
    blocks = torch.randint(42, (3, 12), generator=torch.Generator().manual_seed(0))
    leaf = weights.clone().requires_grad_()
    loss = model.loss(leaf, blocks)
    (wanted,) = torch.autograd.grad(loss, leaf)
    found, gradient = Step(code, model.shape, batch=3, length=11).gradient(weights, blocks)
    error = float(torch.linalg.vector_norm(gradient - wanted) / torch.linalg.vector_norm(wanted))
    off = abs(found - loss.item()) / loss.item()
    if math.isfinite(found) and error < CLOSE and off < CLOSE:
        return ""
    return f"its loss is {off:.1g} from torch's and its gradient {error:.1g}, relatively"


def rates_table(rates: tuple[float, ...], before: int, beta1: float, beta2: float) -> Tensor:
    """What :meth:`Step.train` takes as ``rates``, for a client that has taken ``before`` steps already."""
    steps = range(before + 1, before + 1 + len(rates))
    rows = [[rate, rate / (1 - beta1**t), 1 / (1 - beta2**t)] for t, rate in zip(steps, rates, strict=True)]
    return torch.tensor(rows, dtype=torch.float32)
