"""How does a pretrained model write many completions at once? With a key/value cache whose rows move on their own.

A row that has finished is given to the next sample without waiting for the others, which a padded batch must.
"""

from collections.abc import Sequence
from typing import Any

import torch

from scalefed.errors import ConfigError, DataError
from scalefed.models.decoder import require_transformers
from scalefed.models.layout import Tensor


class CheckpointSession:
    """A ``transformers`` causal language model with a cache of rows, each at its own position.

    Read the prompts with :meth:`prefill`, copy them into rows with :meth:`assign`, then feed one token a row with
    :meth:`step`; :meth:`keep` forgets rows. A token takes ``4 x layers x heads x head width x 2`` bytes (46 kB for
    SmolLM2-135M), in every row times ``length`` and for every prompt token read.
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
        self._store: list[Tensor] = []
        self._cache = _RowCache(config, rows, length, module)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read all prompts into the store; returns the next-token logits ``(n, vocab)``.

        Raises:
            ConfigError: a prompt leaves no room for a new token.
        """
        transformers = require_transformers()
        if any(not 0 < len(prompt) < self.length for prompt in prompts):
            longest = max(len(prompt) for prompt in prompts)
            raise ConfigError(
                f"prompts must have 1 to {self.length - 1} tokens, the longest has {longest}; raise length"
            )
        self._store, first = [], []
        with torch.inference_mode():
            for prompt in prompts:
                cache = transformers.DynamicCache(config=self.module.config)
                tokens = torch.tensor([list(prompt)], device=self.module.device)
                output = self.module(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
                self._store.append(torch.stack([torch.cat([layer.keys, layer.values]) for layer in cache.layers]))
                first.append(output.logits[0, -1].float())
        return torch.stack(first)

    def assign(self, rows: Tensor, prompts: Tensor) -> None:
        """Copy stored prompts into rows of the cache: ``(n,)`` rows, ``(n,)`` indices of prompts."""
        for row, prompt in zip(rows.tolist(), prompts.tolist(), strict=True):
            stored = self._store[prompt]
            self._cache.data[:, :, row, :, : stored.shape[-2]] = stored

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows, so that the last samples do not pay for those already done."""
        self._cache.data = self._cache.data[:, :, rows.to(self._cache.data.device)]

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Feed one token a row at its position; returns next-token logits ``(rows, vocab)``.

        Args:
            tokens: ``(rows,)`` ids.
            positions: ``(rows,)`` where each stands, counted from 0; what a row holds beyond its position is not seen.
        """
        device = self.module.device
        with torch.inference_mode():
            reach = int(positions.max()) + 1
            seen = (torch.arange(reach) <= positions[:, None])[:, None, None].to(device)
            self._cache.positions, self._cache.reach = positions.to(device), reach
            output = self.module(
                tokens[:, None].to(device),
                attention_mask=seen,
                position_ids=positions[:, None].to(device),
                past_key_values=self._cache,
                use_cache=True,
            )
        logits: Tensor = output.logits[:, -1].float()
        return logits


class _RowCache:
    """What a ``transformers`` model asks of a cache, over one buffer ``(layers, 2, rows, heads, length, width)``."""

    is_compileable = False

    def __init__(self, config: Any, rows: int, length: int, module: Any) -> None:
        heads = config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 2, rows, heads, length, width)
        self.data = torch.zeros(shape, dtype=module.dtype, device=module.device)
        self.positions, self.reach = torch.zeros(rows, dtype=torch.long, device=module.device), 0

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
