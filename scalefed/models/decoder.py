"""What is trained from scratch: a lean causal decoder of a given size, one rung of a ladder.

One forward pass serves one client ``(P,)`` and ``m`` clients at once ``(m, P)``.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows

from scalefed.architecture import HEAD_WIDTH, Shape
from scalefed.errors import MissingExtraError
from scalefed.models.layout import Layout, Tensor
from scalefed.models.losses import client_losses
from scalefed.seeds import stream_seed

NORM_EPS = 1e-5  # Llama's (Touvron et al. 2023), as transformers writes it
ROPE_BASE = 10_000.0  # Su et al. 2021 (arXiv 2104.09864)


class Decoder:
    """A decoder in the Llama form: RMSNorm, rotary positions, gated MLP, tied embedding, no biases.

    Exportable to ``transformers`` with equal logits (:meth:`to_hugging_face`).
    """

    batched = True

    def __init__(self, shape: Shape, *, precision: str = "float32") -> None:
        """A decoder of the given shape; it holds no weights.

        Args:
            shape: from :func:`shape_for`.
            precision: ``bfloat16`` runs matrix products in bfloat16 (autocast); weights, norms and losses stay float32.
        """
        self.shape, self.precision = shape, precision
        d, inner = shape.width, shape.heads * HEAD_WIDTH
        shapes: dict[str, tuple[int, ...]] = {"embedding": (shape.vocab, d)}
        for layer in range(shape.layers):
            shapes |= {
                f"layers.{layer}.attention_norm": (d,),
                f"layers.{layer}.qkv": (3 * inner, d),
                f"layers.{layer}.out": (d, inner),
                f"layers.{layer}.mlp_norm": (d,),
                f"layers.{layer}.gate_up": (2 * shape.hidden, d),
                f"layers.{layer}.down": (d, shape.hidden),
            }
        self.layout = Layout(shapes | {"norm": (d,)})
        self.params = shape.params
        self.params_total = self.params_trained = self.layout.size
        self._tables: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def initial(self, seed: int) -> Tensor:
        """Starting weights ``(P,)``: normal with deviation 1/sqrt(fan in), residual outputs scaled by depth.

        Source: Radford et al. 2019 (GPT-2), section 2.3, for the depth scaling.
        """
        generator = torch.Generator().manual_seed(stream_seed(seed, "weights") >> 1)
        pieces = []
        for entry in self.layout:
            if entry.name.endswith("norm"):
                pieces.append(torch.ones(entry.shape))
                continue
            scale = 0.02 if entry.name == "embedding" else entry.shape[-1] ** -0.5
            if entry.name.endswith(("out", "down")):
                scale /= math.sqrt(2 * self.shape.layers)
            pieces.append(torch.randn(entry.shape, generator=generator) * scale)
        return torch.cat([piece.reshape(-1) for piece in pieces])

    def loss(self, weights: Tensor, blocks: Tensor) -> Tensor:
        """Mean loss in nats per token: ``(P,), (b, t+1) -> ()`` or ``(m, P), (m, b, t+1) -> (m,)``."""
        inputs, targets = blocks[..., :-1], blocks[..., 1:]
        logits = self.logits(weights, inputs)
        if self.precision != "float32":
            logits = logits.float()
        if weights.dim() == 1:
            return F.cross_entropy(logits.flatten(0, -2), targets.reshape(-1))
        return client_losses(logits, targets.flatten(1))

    def logits(self, weights: Tensor, tokens: Tensor) -> Tensor:
        """Next-token logits: ``(P,), (b, t) -> (b, t, vocab)`` or ``(m, P), (m, b, t) -> (m, b*t, vocab)``."""
        w = self.layout.unflatten(weights)
        rows, length = tokens.numel() // tokens.shape[-1], tokens.shape[-1]
        with self._autocast(weights.device):
            x = _embed(w["embedding"], tokens)
            cos, sin = self._rotary(length, x)
            for layer in range(self.shape.layers):
                x = self._block(w, f"layers.{layer}.", x, rows, length, cos, sin)
            x = _project(_normalize(x, w["norm"]), w["embedding"])
        return x.view(*tokens.shape, -1) if weights.dim() == 1 else x

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def _block(
        self, w: dict[str, Tensor], name: str, x: Tensor, rows: int, length: int, cos: Tensor, sin: Tensor
    ) -> Tensor:
        heads = self.shape.heads
        qkv = _project(_normalize(x, w[name + "attention_norm"]), w[name + "qkv"])
        q, k, v = qkv.view(rows, length, 3, heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(*x.shape[:-1], heads * HEAD_WIDTH)
        x = x + _project(mixed, w[name + "out"])
        gate, up = _project(_normalize(x, w[name + "mlp_norm"]), w[name + "gate_up"]).chunk(2, dim=-1)
        return x + _project(F.silu(gate) * up, w[name + "down"])

    def _rotary(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine tables ``(length, head width)``."""
        key = (length, like.device, like.dtype)
        if key not in self._tables:
            self._tables[key] = rotary_tables(torch.arange(length), like)
        return self._tables[key]

    @cached_property
    def decay_mask(self) -> Tensor:
        """One where weight decay applies (matrices), zero for norm scales: ``(P,)``."""
        return self.layout.decay_mask()

    # ------------------------------------------------------------------ export
    def to_hugging_face(self, weights: Tensor) -> Any:
        """The same network as a ``transformers.MistralForCausalLM`` without a sliding window.

        Mistral's form is Llama's; its config also takes a width that is no multiple of the number of heads.

        Raises:
            MissingExtraError: transformers is not installed.
        """
        transformers = require_transformers()
        shape = self.shape
        config = transformers.MistralConfig(
            vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=shape.hidden,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
            head_dim=HEAD_WIDTH, rms_norm_eps=NORM_EPS, tie_word_embeddings=True, max_position_embeddings=2048,
            sliding_window=None, rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
            bos_token_id=None, eos_token_id=0,
        )  # fmt: skip
        with torch.random.fork_rng():  # its random initial weights are overwritten and must not move anybody's stream
            model = transformers.MistralForCausalLM(config)
        state = self._hugging_face_state(weights)
        model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
        model.tie_weights()
        return model.to(weights.device).eval()

    def _hugging_face_state(self, weights: Tensor) -> dict[str, Tensor]:
        w = self.layout.unflatten(weights.detach())
        state = {"model.embed_tokens.weight": w["embedding"], "model.norm.weight": w["norm"]}
        for layer in range(self.shape.layers):
            mine, theirs = f"layers.{layer}.", f"model.layers.{layer}."
            q, k, v = w[mine + "qkv"].chunk(3)
            gate, up = w[mine + "gate_up"].chunk(2)
            state |= {
                theirs + "input_layernorm.weight": w[mine + "attention_norm"],
                theirs + "post_attention_layernorm.weight": w[mine + "mlp_norm"],
                theirs + "self_attn.q_proj.weight": q,
                theirs + "self_attn.k_proj.weight": k,
                theirs + "self_attn.v_proj.weight": v,
                theirs + "self_attn.o_proj.weight": w[mine + "out"],
                theirs + "mlp.gate_proj.weight": gate,
                theirs + "mlp.up_proj.weight": up,
                theirs + "mlp.down_proj.weight": w[mine + "down"],
            }
        return state


# ---------------------------------------------------------------------- pieces; each takes one client or m at once
def rotary_tables(positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine for rotary positions: ``(n,) -> (n, head width)`` twice.

    Source: Su et al. 2021 (arXiv 2104.09864), in the half-split form of Llama.
    """
    frequency = ROPE_BASE ** (-torch.arange(0, HEAD_WIDTH, 2, dtype=torch.float32) / HEAD_WIDTH)
    angle = positions.to(torch.float32)[..., None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos().to(like.device, like.dtype), angle.sin().to(like.device, like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of each head by the position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _embed(table: Tensor, tokens: Tensor) -> Tensor:
    if table.dim() == 2:
        return F.embedding(tokens, table)
    clients, vocab, width = table.shape
    offset = torch.arange(clients, device=tokens.device).view(-1, 1, 1) * vocab
    return F.embedding((tokens + offset).view(clients, -1), table.reshape(clients * vocab, width))


def _project(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight) if weight.dim() == 2 else torch.bmm(x, weight.mT)


def _normalize(x: Tensor, scale: Tensor) -> Tensor:
    if scale.dim() == 1:
        return F.rms_norm(x, scale.shape, scale, NORM_EPS)
    return F.rms_norm(x, scale.shape[-1:], None, NORM_EPS) * scale[:, None]


def require_transformers() -> Any:
    """The package transformers.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("this needs transformers; install it with: pip install 'scalefed[hf]'") from error
    return transformers
