"""How does a pretrained model write many completions at once? With a key/value cache whose rows move on their own.

A row that has finished is given to the next sample without waiting for the others, which a padded batch must.
"""

import contextlib
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from scalefed.errors import ConfigError, DataError
from scalefed.models.decoder import require_transformers
from scalefed.models.layout import Tensor

CACHE = 3 * 2**27  # bytes that keys and values may take in any case: .4 GB


class CheckpointSession:
    """A ``transformers`` causal language model with a cache of rows, each at its own position.

    Give the prompts to :meth:`prefill`, rows to prompts with :meth:`assign`, then feed one token a row with
    :meth:`step`; :meth:`keep` forgets rows. A token that a row has reached takes :func:`token_bytes`; a prompt is read
    when the first row asks for it.
    """

    def __init__(self, module: Any, *, rows: int, length: int) -> None:
        """Room for ``rows`` completions of at most ``length`` tokens, prompt included.

        Args:
            module: a plain ``transformers`` model with full causal attention in every layer.
            rows: completions written at once.
            length: most tokens of a completion, prompt included.

        Raises:
            ConfigError: ``length`` is more than the model's positions.
            DataError: the model has layers other than full attention (sliding windows, recurrent layers).
        """
        config = module.config
        uniform = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
        kinds = set(getattr(config, "layer_types", None) or [uniform])
        if kinds != {"full_attention"}:
            raise DataError(
                f"sampling knows full attention only, this model has {sorted(kinds)}; use another checkpoint"
            )
        longest = getattr(config, "max_position_embeddings", None)
        if longest and length > longest:
            raise ConfigError(f"length={length} is more than the model's {longest} positions; lower it")
        self.module, self.length = module, length
        self._prompts: Sequence[Sequence[int]] = ()
        self._read: _Prompt | None = None
        self._cache = RowCache(config, rows, length, module)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Take the prompts; none is read yet.

        Raises:
            ConfigError: a prompt leaves no room for a new token.
        """
        if any(not 0 < len(prompt) < self.length for prompt in prompts):
            longest = max(len(prompt) for prompt in prompts)
            raise ConfigError(
                f"prompts must have 1 to {self.length - 1} tokens, the longest has {longest}; raise length"
            )
        self._prompts, self._read = prompts, None

    def assign(self, rows: Tensor, prompts: Tensor) -> Tensor:
        """Let rows go on from prompts: ``(n,)`` rows, ``(n,)`` indices; returns next-token logits ``(n, vocab)``."""
        first = []
        for row, number in zip(rows.tolist(), prompts.tolist(), strict=True):
            if self._read is None or self._read.number != number:  # rows of one prompt follow each other
                self._read = self._reading(number)
            self._cache.fill(row, self._read.layers)
            first.append(self._read.first)
        return torch.stack(first)

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these, in ascending order, so that the last samples do not pay for those already done."""
        self._cache.keep(rows.tolist())

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Feed one token a row at its position; returns next-token logits ``(rows, vocab)``.

        Args:
            tokens: ``(rows,)`` ids.
            positions: ``(rows,)`` where each stands, counted from 0; what a row holds beyond its position is not seen.
        """
        device = self.module.device
        with torch.inference_mode():
            reach = self._cache.next(positions)
            seen = (torch.arange(reach) <= positions[:, None])[:, None, None].to(device)
            output = self.module(
                tokens[:, None].to(device),
                attention_mask=seen,
                position_ids=positions[:, None].to(device),
                past_key_values=self._cache,
                use_cache=True,
            )
        logits: Tensor = output.logits[:, -1].float()
        return logits

    def _reading(self, number: int) -> "_Prompt":
        transformers = require_transformers()
        with torch.inference_mode():
            cache = transformers.DynamicCache(config=self.module.config)
            tokens = torch.tensor([list(self._prompts[number])], device=self.module.device)
            output = self.module(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            layers = [torch.cat([layer.keys, layer.values]) for layer in cache.layers]
            return _Prompt(number, layers, output.logits[0, -1].float())


@dataclass(frozen=True)
class _Prompt:
    """A prompt that was read: its keys and values ``(2, heads, tokens, width)`` a layer, and the logits behind it."""

    number: int
    layers: list[Tensor]
    first: Tensor


def token_bytes(module: Any) -> int:
    """What one token of one row takes in the cache, bytes: 23 kB for SmolLM2-135M in bfloat16, 46 kB in float32."""
    layers, heads, width = _shape(module.config)
    return 2 * layers * heads * width * int(module.dtype.itemsize)


def affordable_rows(module: Any, length: int) -> int:
    """How many rows of ``length`` tokens take no more than the model's weights, or .4 GB; at least one."""
    weights = sum(weight.numel() * weight.dtype.itemsize for weight in module.parameters())
    return int(max(1, max(CACHE, weights) // (token_bytes(module) * length)))


def _shape(config: Any) -> tuple[int, int, int]:
    """Layers, heads of keys and values, and their width."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, config.num_key_value_heads, width


class RowCache:
    """What a ``transformers`` model asks of a cache, over one buffer ``(layers, 2, rows, heads, length, width)``.

    On a CPU the buffer is memory that the system hands out page by page as it is written, zero until then: what no row
    has reached takes none.
    """

    is_compileable = False

    def __init__(self, config: Any, rows: int, length: int, module: Any) -> None:
        layers, heads, width = _shape(config)
        self.data = _zeros((layers, 2, rows, heads, length, width), module.dtype, module.device)
        self.positions, self.reach = torch.zeros(rows, dtype=torch.long, device=module.device), 0

    def fill(self, row: int, stored: Sequence[Tensor]) -> None:
        """Put a prompt into a row."""
        for layer, own in zip(self.data, stored, strict=True):
            layer[:, row, :, : own.shape[-2]] = own

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, which are in ascending order: each moves down in place, into one that is free."""
        for place, row in enumerate(rows):
            if place != row:
                self.data[:, :, place, :, : self.reach] = self.data[:, :, row, :, : self.reach]
        self.data = self.data[:, :, : len(rows)]

    def next(self, positions: Tensor) -> int:
        """Say where the next token of each row stands; returns how far the rows reach."""
        self.positions, self.reach = positions.to(self.data.device), int(positions.max()) + 1
        return self.reach

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one token a row; returns all that is kept, up to the furthest position."""
        stored = self.data[layer]
        rows = torch.arange(len(keys), device=keys.device)
        stored[0][rows, :, self.positions] = keys[:, :, 0]
        stored[1][rows, :, self.positions] = values[:, :, 0]
        return stored[0][:, :, : self.reach], stored[1][:, :, : self.reach]

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens kept before this step, at most."""
        del layer
        return max(0, self.reach - 1)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU in pages of their own, which are in memory once they are written."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, size, **private)  # private: what is read before it is written takes nothing either
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
