"""How do clients share text without sharing theirs? Each trains a small generator on its own data and shares samples.

Before the first round every client trains a small decoder and writes blocks of text with it; the server pools them, and
from then on a share of every client's batch comes from the pool, so that the clients' distributions draw together. With
a privacy budget the generators are trained by DP-SGD (:mod:`scalefed.federated.privacy`); what they write is then
private too. The training of the model itself is not: its updates travel as in FedAvg. The generators' compute is not
part of a run's ``compute``; it is about ``6 generator_params generator_steps`` times the tokens of a step, per client.

In every round a client may draw more blocks than it mixes in and leave out those that the broadcast model finds least
likely: ``synthetic_kept``, the share that stays.

Source: Li et al. 2022 (SDA-FL, arXiv 2206.05507), whose image generators become language models. Pseudo labels have no
counterpart, since text is its own label; the confidence threshold that renews them in every round has: the likelihood.
"""

import math
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows

from scalefed.config import RunConfig
from scalefed.errors import ConfigError
from scalefed.federated.client import local_updates
from scalefed.federated.privacy import private_training
from scalefed.federated.schedule import learning_rates
from scalefed.federated.state import ClientTask, ServerState
from scalefed.models import HEAD_WIDTH, NORM_EPS, Decoder, Model, Tensor, rotary_tables, rotate, shape_for
from scalefed.seeds import rng

END = 0  # ends a document in the ladder's tokenizer; a generated block starts after one
AT_ONCE = 16  # clients whose generators are in memory together


class ClientText(Protocol):
    """Where clients' batches come from."""

    def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
        """Token ids ``(steps, batch, length + 1)`` for a client that has trained ``visit`` times before."""
        ...


def shares_text(config: RunConfig) -> bool:
    """Whether the run uses a pool at all; with a share of 0 it is FedAvg."""
    return config.algorithm == "synthetic-sharing" and config.synthetic_share > 0


def with_pool(config: RunConfig, data: ClientText, state: ServerState) -> ServerState:
    """The state with the clients' synthetic blocks in its slot ``synthetic``: ``(blocks, length + 1)`` token ids.

    Args:
        config: sizes of the generators and of what they share.
        data: the clients' own text; a generator sees what the client trains on first.
        state: before the first round.

    Raises:
        ConfigError: the run starts from a checkpoint, whose tokens these generators do not know.
        MissingExtraError: a privacy budget is set and Opacus is not installed.
    """
    if config.checkpoint:
        raise ConfigError(
            f"synthetic-sharing trains its generators on the ladder's tokens, got checkpoint={config.checkpoint!r}; "
            "leave checkpoint empty"
        )
    blocks: list[Tensor] = []
    for first in range(0, config.clients, AT_ONCE):
        clients = range(first, min(first + AT_ONCE, config.clients))
        blocks += [write_blocks(generator_model(config), weights, config, client)
                   for client, weights in zip(clients, generators(config, data, clients), strict=True)]  # fmt: skip
    return replace(state, slots=state.slots | {"synthetic": torch.cat(blocks).to(torch.int32)})


def mixed(config: RunConfig, model: Model, state: ServerState, client: int, batches: np.ndarray) -> np.ndarray:
    """A copy of a client's batches with ``synthetic_share`` of its blocks replaced by blocks of the pool.

    Where the share is no whole number of blocks, the number is one of the two beside it, drawn so that the share holds
    in expectation: rounding would make a short round share nothing at all. Of the blocks drawn, the share
    ``synthetic_kept`` stays, those of the least loss under the weights that the round starts from.
    """
    pool = state.slots["synthetic"].cpu().numpy()
    draw = rng(config.seed, "synthetic-mix", state.round, client)
    blocks = np.array(batches, dtype=np.int64).reshape(-1, batches.shape[-1])
    whole, rest = divmod(round(config.synthetic_share * len(blocks), 9), 1.0)
    count = int(whole) + int(rng(config.seed, "synthetic-count", state.round, client).random() < rest)
    places = draw.choice(len(blocks), size=count, replace=False)
    drawn = pool[draw.integers(len(pool), size=math.ceil(round(count / config.synthetic_kept, 9)))]
    blocks[places] = drawn if len(drawn) == count else _likeliest(model, state.weights, drawn, count)
    return blocks.reshape(batches.shape)


def _likeliest(model: Model, weights: Tensor, blocks: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` blocks of the least loss, in the order in which they were drawn."""
    tokens = torch.from_numpy(blocks.astype(np.int64)).to(weights.device)
    with torch.no_grad():
        losses = [float(model.loss(weights, tokens[place : place + 1])) for place in range(len(tokens))]
    return blocks[np.sort(np.argsort(losses, kind="stable")[:count])]


def pool_bytes(config: RunConfig, state: ServerState) -> int:
    """Bytes to build the pool: every client sends its blocks and receives everybody's; two bytes a token if enough."""
    token = 2 if config.vocab_size <= 65_536 else 4
    return token * state.slots["synthetic"].numel() * (1 + config.clients)


# ---------------------------------------------------------------------- generators
def generator_model(config: RunConfig) -> Decoder:
    """The small decoder that writes a client's synthetic text, of a rung that runs were made with from the first."""
    return Decoder(shape_for(config.generator_params, config.vocab_size, between=False))


def generators(config: RunConfig, data: ClientText, clients: range) -> list[Tensor]:
    """Trained generator weights ``(P,)`` for some clients; with a privacy budget, by DP-SGD."""
    recipe = _recipe(config)
    model = generator_model(config)
    start = model.initial(config.seed)
    batches = {client: data.batches(client, visit=0, steps=config.generator_steps) for client in clients}
    if math.isfinite(config.synthetic_epsilon):
        return [private_training(model, start, batches[client], recipe, client=client) for client in clients]
    tasks = [
        ClientTask(client, torch.from_numpy(np.ascontiguousarray(one, dtype=np.int64)))
        for client, one in batches.items()
    ]
    updates = local_updates(model, start, tasks, recipe, learning_rates=learning_rates(recipe, 0))
    return [update.weights for update in updates]


def _recipe(config: RunConfig) -> RunConfig:
    """Settings of the generators' training: AdamW over one schedule, whatever trains the model itself."""
    return config.replace(
        algorithm="fedavg", params=config.generator_params, clients_per_round=1, local_steps=config.generator_steps,
        tokens=config.batch_size * config.sequence_length * config.generator_steps, learning_rate=None,
        learning_rate_rule="anew", learning_rate_scale=1.0, inner_optimizer="adamw", inner_state="reset",
        server_learning_rate=None, server_momentum=None,
    )  # fmt: skip


def write_blocks(model: Decoder, weights: Tensor, config: RunConfig, client: int) -> Tensor:
    """Blocks ``(blocks, length + 1)`` of a client's generator, sampled at temperature 1 from the end of a document."""
    length = config.sequence_length
    rows = math.ceil(config.synthetic_tokens / length)
    uniforms = torch.from_numpy(rng(config.seed, "synthetic-text", client).random((rows, length))).to(weights.device)
    w, shape = model.layout.unflatten(weights.detach()), model.shape
    cache = weights.new_zeros(shape.layers, 2, rows, shape.heads, length, HEAD_WIDTH)
    tables = rotary_tables(torch.arange(length), weights)
    tokens = torch.full((rows, length + 1), END, dtype=torch.long, device=weights.device)
    with torch.inference_mode():
        for position in range(length):
            logits = _next_logits(w, shape.layers, cache, tables, tokens[:, position], position)
            chances = torch.softmax(logits.double(), dim=-1).cumsum(-1)
            drawn = torch.searchsorted(chances, uniforms[:, position, None] * chances[:, -1:], right=True)
            tokens[:, position + 1] = drawn.flatten().clamp(max=shape.vocab - 1)
    return tokens


def _next_logits(
    w: dict[str, Tensor], layers: int, cache: Tensor, tables: tuple[Tensor, Tensor], tokens: Tensor, position: int
) -> Tensor:
    """Logits ``(rows, vocab)`` after one more token in every row, all rows at the same position."""
    cos, sin = tables[0][position], tables[1][position]
    x = F.embedding(tokens, w["embedding"])
    for layer in range(layers):
        name = f"layers.{layer}."
        qkv = F.linear(_normalize(x, w[name + "attention_norm"]), w[name + "qkv"])
        q, k, v = qkv.view(len(x), 3, -1, HEAD_WIDTH).unbind(1)
        cache[layer, 0, :, :, position], cache[layer, 1, :, :, position] = rotate(k, cos, sin), v
        keys, values = cache[layer, :, :, :, : position + 1]
        seen = F.scaled_dot_product_attention(rotate(q, cos, sin)[:, :, None], keys, values)
        x = x + F.linear(seen.flatten(1), w[name + "out"])
        gate, up = F.linear(_normalize(x, w[name + "mlp_norm"]), w[name + "gate_up"]).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, w[name + "down"])
    return F.linear(_normalize(x, w["norm"]), w["embedding"])


def _normalize(x: Tensor, scale: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], scale, NORM_EPS)
