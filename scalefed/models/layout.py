"""How do named tensors become one flat vector, in memory and on disk; and what is a model to the federated loop?

A model is a stateless object; weights go in and come out as one float tensor, ``(P,)`` for one client or ``(m, P)`` for
``m`` clients trained at once. Everything federated (means, momenta, control variates, bytes) is then plain vector
arithmetic.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from scalefed.errors import DataError

Tensor = torch.Tensor


class Entry(NamedTuple):
    """One named tensor inside the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Layout:
    """Names and shapes of the tensors that make up a flat weight vector."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Lay the tensors out one after the other, in the order given."""
        entries, start = [], 0
        for name, shape in shapes.items():
            stop = start + math.prod(shape)
            entries.append(Entry(name, shape, start, stop))
            start = stop
        self.entries = tuple(entries)
        self.size = start

    def __iter__(self) -> Iterator[Entry]:
        """The entries in order."""
        return iter(self.entries)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat vector ``(..., P)`` as named tensors ``(..., *shape)``."""
        lead = flat.shape[:-1]
        pieces = torch.split(flat, [entry.stop - entry.start for entry in self.entries], dim=-1)  # type: ignore[no-untyped-call]
        return {e.name: piece.view((*lead, *e.shape)) for e, piece in zip(self.entries, pieces, strict=True)}

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """The flat vector ``(P,)`` of named tensors."""
        return torch.cat([tensors[entry.name].reshape(-1) for entry in self.entries])

    def decay_mask(self) -> Tensor:
        """One where weight decay applies (matrices), zero for norm scales and biases: ``(P,)``."""
        return torch.cat([torch.full((e.stop - e.start,), float(len(e.shape) > 1)) for e in self.entries])


class Model(Protocol):
    """What the federated loop, the scorer and the sampler need of a model; every weight vector is flat.

    Attributes:
        layout: names and shapes of what is trained and travels.
        params: non-embedding parameters, adapters included.
        params_total: all parameters, adapters included.
        params_trained: length of the flat vector.
        batched: whether ``loss`` takes the weights of many clients at once.
    """

    layout: Layout
    params: int
    params_total: int
    params_trained: int
    batched: bool

    @property
    def decay_mask(self) -> Tensor:
        """One where weight decay applies: ``(P,)``."""
        ...

    def initial(self, seed: int) -> Tensor:
        """Starting weights ``(P,)``."""
        ...

    def loss(self, weights: Tensor, blocks: Tensor) -> Tensor:
        """Mean loss in nats per token: ``(P,), (b, t+1) -> ()`` or ``(m, P), (m, b, t+1) -> (m,)``."""
        ...

    def logits(self, weights: Tensor, tokens: Tensor) -> Tensor:
        """Next-token logits: ``(P,), (b, t) -> (b, t, vocab)``."""
        ...

    def to_hugging_face(self, weights: Tensor) -> Any:
        """The same network as a plain ``transformers`` model."""
        ...


def save_weights(path: Path, layout: Layout, weights: Tensor) -> None:
    """Write named tensors as safetensors, through a temporary file."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{id(weights)}")
    try:
        named = layout.unflatten(weights.detach().cpu())
        save_file({name: tensor.contiguous().clone() for name, tensor in named.items()}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(path: Path, layout: Layout) -> Tensor:
    """Read weights written by :func:`save_weights` as a flat vector ``(P,)``.

    Raises:
        DataError: the file is missing or damaged, or holds another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise DataError(f"no weights at {path}; they live in the cache directory: train the run again to make them")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path} is damaged ({error}); delete it and train the run again") from error
    if {name: tuple(t.shape) for name, t in tensors.items()} != {e.name: e.shape for e in layout}:
        raise DataError(f"{path} holds the weights of another model; train the run again")
    return layout.flatten(tensors)
