"""What does a model write? Batched sampling with a key/value cache; finished rows make room for waiting ones.

Every sample has its own stream of uniform numbers, one for each new token, turned into a token by inverting the
cumulative distribution: what is drawn does not depend on the batch, its order, or how many samples are asked for.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows

from scalefed.errors import ConfigError
from scalefed.evaluation.token_sampling import draw
from scalefed.models import HEAD_WIDTH, NORM_EPS, Decoder, Tensor, rotary_tables, rotate
from scalefed.seeds import rng

COMPACT = 0.75  # the cache shrinks when this share of its rows is left


class Session(Protocol):
    """A model with a cache of rows, each at its own position."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Take the prompts that rows will be given; they may be read now or when the first row asks for them."""
        ...

    def assign(self, rows: Tensor, prompts: Tensor) -> Tensor:
        """Let rows of the cache go on from prompts; returns their next-token logits ``(n, vocab)``."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows of the cache."""
        ...

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Feed one token a row at its position; returns next-token logits ``(rows, vocab)``."""
        ...


class Draw(Protocol):
    """What chooses tokens, see :func:`scalefed.evaluation.token_sampling.draw`."""

    def __call__(self, logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float) -> Tensor:
        """One token a row: ``(n, vocab), (n,) -> (n,)``."""
        ...


@dataclass(frozen=True)
class Completion:
    """One sample.

    Attributes:
        prompt: index of its prompt.
        sample: which sample of that prompt, from 0.
        tokens: new token ids, without the end token.
        finished: False when it ran into the length limit.
    """

    prompt: int
    sample: int
    tokens: tuple[int, ...]
    finished: bool


def sample(
    session: Session,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    end: int | Collection[int],
    max_new_tokens: int,
    temperature: float = 0.8,
    top_p: float = 1.0,
    rows: int = 256,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    stopped: Callable[[Sequence[int]], bool] | None = None,
    on_prompt: Callable[[list[Completion]], None] | None = None,
    draw: Draw = draw,
) -> list[Completion]:
    """Draw ``samples`` completions for every prompt, ordered by prompt and sample.

    Args:
        session: a model with a cache of at least ``rows`` rows.
        prompts: token ids of each prompt, none empty.
        samples: completions a prompt; with ``temperature=0`` all are the greedy one.
        end: the token that ends a completion, or all that do.
        max_new_tokens: length limit of a completion.
        temperature: divides the logits; 0 is greedy.
        top_p: smallest set of tokens with this probability is kept.
        rows: completions written at once.
        seed: of the draws.
        numbers: what keys each prompt's draws; its place in ``prompts`` when None.
        stopped: asked after every new token whether the tokens so far are enough, such as :func:`stop_at`.
        on_prompt: given a prompt's completions as soon as all of them are written.
        draw: what turns logits and uniform numbers into tokens.

    Raises:
        ConfigError: no prompts, an empty prompt, or settings out of range.
    """
    if not prompts or any(not prompt for prompt in prompts):
        raise ConfigError("sampling needs at least one prompt, and no prompt may be empty")
    if temperature < 0 or not 0 < top_p <= 1 or samples < 1 or max_new_tokens < 1:
        raise ConfigError(
            f"sampling needs temperature >= 0, 0 < top_p <= 1, samples >= 1 and max_new_tokens >= 1; "
            f"got {temperature=}, {top_p=}, {samples=}, {max_new_tokens=}"
        )
    with torch.inference_mode():
        session.prefill(prompts)
        jobs = [(number, one) for number in numbers or range(len(prompts)) for one in range(samples)]
        uniforms = np.stack([rng(seed, "sampling", *job).random(max_new_tokens) for job in jobs])
        ends = [end] if isinstance(end, int) else list(end)
        desk = _Desk(session, prompts, samples, ends, temperature, top_p, uniforms, stopped, on_prompt, draw)
        return desk.run(min(rows, len(prompts) * samples))


def stop_at(stops: Sequence[str], decode: Callable[[Sequence[int]], str]) -> Callable[[Sequence[int]], bool]:
    """Whether the text of some tokens holds a stop sequence; cut it off with :func:`before_stop`."""
    longest = max(map(len, stops))

    def stopped(tokens: Sequence[int]) -> bool:
        recent = decode(tokens[-longest - 1 :])  # a token is at least one character of the text, or part of one
        return any(stop in recent for stop in stops)

    return stopped


def before_stop(text: str, stops: Sequence[str]) -> str:
    r"""The text up to the first stop sequence.

    >>> before_stop("    return 1\ndef g():", ["\nclass", "\ndef"])
    '    return 1'
    """
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


class _Desk:
    """Hands waiting samples to free rows until all are written."""

    def __init__(
        self,
        session: Session,
        prompts: Sequence[Sequence[int]],
        samples: int,
        ends: Sequence[int],
        temperature: float,
        top_p: float,
        uniforms: np.ndarray,
        stopped: Callable[[Sequence[int]], bool] | None,
        on_prompt: Callable[[list[Completion]], None] | None,
        draw: Draw,
    ) -> None:
        self.on_prompt, self.draw = on_prompt, draw
        self.session, self.samples, self.ends = session, samples, np.asarray(ends)
        self.temperature, self.top_p, self.stopped = temperature, top_p, stopped
        self.lengths = torch.tensor([len(prompt) for prompt in prompts])
        jobs, self.limit = uniforms.shape
        self.uniforms = torch.from_numpy(uniforms)
        self.written = np.full((jobs, self.limit), -1, dtype=np.int64)
        self.count = np.zeros(jobs, dtype=np.int64)
        self.ended = np.zeros(jobs, dtype=bool)
        self.unwritten = np.full(len(prompts), samples)

    def run(self, rows: int) -> list[Completion]:
        total = len(self.written)
        job = torch.full((rows,), -1, dtype=torch.long)
        token, position = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.long)
        waiting = 0
        while True:
            while waiting < total and bool((free := torch.nonzero(job < 0).flatten()).numel()):
                take = free[: total - waiting]
                fresh = torch.arange(waiting, waiting + len(take))
                waiting += len(take)
                prompt = fresh // self.samples
                first = self.session.assign(take, prompt)
                job[take], position[take] = fresh, self.lengths[prompt]
                token[take] = self._choose(first, fresh, torch.zeros(len(take), dtype=torch.long))
                self._note(job, token, take)
            active = torch.nonzero(job >= 0).flatten()
            if not active.numel():
                break
            if len(active) <= COMPACT * len(job) and waiting == total:
                self.session.keep(active)
                job, token, position = job[active], token[active], position[active]
                active = torch.arange(len(job))
            logits = self.session.step(token, position)
            steps = torch.from_numpy(self.count[job.numpy()])
            position[active] += 1
            token = self._choose(logits, job, steps)
            self._note(job, token, active)
        return [self._completion(index) for index in range(total)]

    def _completion(self, index: int) -> Completion:
        tokens = tuple(self.written[index, : self.count[index]].tolist())
        return Completion(index // self.samples, index % self.samples, tokens, bool(self.ended[index]))

    def _choose(self, logits: Tensor, jobs: Tensor, steps: Tensor) -> Tensor:
        """Each row's next token, from the uniform number of its own sample and step."""
        uniforms = self.uniforms[jobs, steps.clamp(max=self.limit - 1)]
        return self.draw(logits, uniforms, temperature=self.temperature, top_p=self.top_p)

    def _note(self, job: Tensor, token: Tensor, rows: Tensor) -> None:
        """Record the rows' tokens, and free the rows that ended or ran out of room."""
        jobs, tokens = job[rows].numpy(), token[rows].numpy()
        over = (tokens[:, None] == self.ends).any(axis=1)
        self.ended[jobs[over]] = True
        going = jobs[~over]
        self.written[going, self.count[going]] = tokens[~over]
        self.count[going] += 1
        if self.stopped is not None:
            for index in np.flatnonzero(~over):
                over[index] = self.stopped(self.written[jobs[index], : self.count[jobs[index]]].tolist())
            self.ended[jobs[over]] = True
        over |= self.count[jobs] >= self.limit
        job[rows[torch.from_numpy(over)]] = -1
        for prompt in jobs[over] // self.samples:
            self.unwritten[prompt] -= 1
            if self.on_prompt is not None and not self.unwritten[prompt]:
                self.on_prompt([self._completion(prompt * self.samples + one) for one in range(self.samples)])


class DecoderSession:
    """A :class:`~scalefed.models.Decoder` with a key/value cache."""

    def __init__(self, model: Decoder, weights: Tensor, *, rows: int, length: int) -> None:
        """Room for ``rows`` completions of at most ``length`` tokens, prompt included."""
        self.model, self.w = model, model.layout.unflatten(weights)
        shape = model.shape
        self.cache = weights.new_zeros(shape.layers, 2, rows, shape.heads, length, HEAD_WIDTH)
        self.cos, self.sin = rotary_tables(torch.arange(length), weights)
        self.store = self.first = weights.new_zeros(0)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read all prompts into the store."""
        longest = max(len(prompt) for prompt in prompts)
        tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        last = torch.tensor([len(prompt) - 1 for prompt in prompts])
        shape, device = self.model.shape, self.cache.device
        x = F.embedding(tokens.to(device), self.w["embedding"])
        kept = []
        for layer in range(shape.layers):
            q, k, v = self._heads(layer, x, self.cos[:longest], self.sin[:longest])
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            kept.append(torch.stack([k, v]))
            x = self._finish(layer, x, mixed)
        self.store, self.first = torch.stack(kept), self._head(x[torch.arange(len(prompts)), last])

    def assign(self, rows: Tensor, prompts: Tensor) -> Tensor:
        """Copy stored prompts into rows of the cache; returns their next-token logits ``(n, vocab)``."""
        self.cache[:, :, rows, :, : self.store.shape[-2]] = self.store[:, :, prompts]
        return self.first[prompts]

    def keep(self, rows: Tensor) -> None:
        """Forget all other rows, so that the last samples do not pay for those already done."""
        self.cache = self.cache[:, :, rows]

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Feed one token a row at its position; returns next-token logits ``(rows, vocab)``."""
        device, rows = self.cache.device, torch.arange(len(tokens))
        x = F.embedding(tokens.to(device), self.w["embedding"])[:, None]
        cos, sin = self.cos[positions][:, None, None], self.sin[positions][:, None, None]
        reach = int(positions.max()) + 1
        seen = (torch.arange(reach) <= positions[:, None])[:, None, None].to(device)
        for layer in range(self.model.shape.layers):
            q, k, v = self._heads(layer, x, cos, sin)
            keys, values = self.cache[layer, 0, : len(tokens)], self.cache[layer, 1, : len(tokens)]
            keys[rows, :, positions], values[rows, :, positions] = k[:, :, 0], v[:, :, 0]
            mixed = F.scaled_dot_product_attention(q, keys[:, :, :reach], values[:, :, :reach], attn_mask=seen)
            x = self._finish(layer, x, mixed)
        return self._head(x[:, 0])

    def _heads(self, layer: int, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        name = f"layers.{layer}."
        qkv = F.linear(self._norm(x, name + "attention_norm"), self.w[name + "qkv"])
        q, k, v = qkv.view(*x.shape[:2], 3, self.model.shape.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _finish(self, layer: int, x: Tensor, mixed: Tensor) -> Tensor:
        name = f"layers.{layer}."
        x = x + F.linear(mixed.transpose(1, 2).reshape(*x.shape[:2], -1), self.w[name + "out"])
        gate, up = F.linear(self._norm(x, name + "mlp_norm"), self.w[name + "gate_up"]).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.w[name + "down"])

    def _head(self, x: Tensor) -> Tensor:
        return F.linear(self._norm(x, "norm"), self.w["embedding"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.w[name], NORM_EPS)
