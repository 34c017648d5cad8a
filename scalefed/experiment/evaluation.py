"""How good is a trained model? Held-out loss, loss of the canonical solutions, and pass@k of programs really run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalefed.config import RunConfig
from scalefed.data.problem import Problem
from scalefed.evaluation.judge import judge
from scalefed.evaluation.prompts import (
    PROMPT_RULE,
    completion_of,
    likeliest,
    prompt_ids,
    rules_for,
    solution_ids,
    stops_of,
)
from scalefed.evaluation.sampling import Completion, DecoderSession, Session, before_stop, sample, stop_at
from scalefed.evaluation.scoring import HeldOutLoss, TokenLosses, held_out_loss, mixture_losses, solution_losses
from scalefed.evaluation.token_sampling import draw
from scalefed.federated.native import NativeSession, native_losses
from scalefed.federated.preparation import Task, Writer
from scalefed.models import Checkpoint, Decoder, Tensor
from scalefed.models.session import affordable_rows
from scalefed.passk import PassAtK, estimate_pass_at_k

LOGITS = 2**25  # scored at once: 128 MiB in float32, where a large vocabulary would otherwise take gigabytes
TORCH_ROWS, NATIVE_ROWS = 512, 64  # completions at once: torch has fewer calls, our rows' keys stay in the cache
CHECKPOINT_ROWS = 64  # of a pretrained model, whose keys take 46 kB a token at 135M parameters


@dataclass(frozen=True)
class Counts:
    """How many of a problem's samples passed, for every problem.

    Attributes:
        task_ids: names of the problems.
        samples: drawn for each.
        correct: passed, for each.
        settings: how they were drawn and judged.
        gold_losses: loss of each problem's canonical solution given its prompt, nats per token; empty if not measured.
        notes: what a reader of the numbers should know, as sentences.
    """

    task_ids: tuple[str, ...]
    samples: int
    correct: tuple[int, ...]
    settings: dict[str, Any]
    gold_losses: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def gold_loss(self) -> float | None:
        """Mean loss of the canonical solutions over the problems that have one, nats per token; None if none has."""
        known = [loss for loss in self.gold_losses if math.isfinite(loss)]
        return sum(known) / len(known) if known else None

    def pass_at_k(self, k: Sequence[int] = (1, 10)) -> PassAtK:
        """Unbiased pass@k with intervals, for the k that the samples allow."""
        return estimate_pass_at_k(self.samples, list(self.correct), [one for one in k if one <= self.samples])

    def to_dict(self) -> dict[str, Any]:
        """The content of ``eval.json``."""
        return {
            "task_ids": list(self.task_ids),
            "samples": self.samples,
            "correct": list(self.correct),
            **({"gold_losses": list(self.gold_losses)} if self.gold_losses else {}),
            **self.settings,
        }


def score(task: Task, weights: Tensor) -> HeldOutLoss:
    """Held-out loss on the global mixture, and of each family."""
    return held_out_loss(
        task.model, weights, task.validation, bytes_per_token=task.bytes_per_token, batch_tokens=_at_once(task),
        sources=task.sources, token_losses=_token_losses(task),
    )  # fmt: skip


def own_text_loss(task: Task, weights: Tensor) -> float:
    """Loss on a sample of the clients' own text, nats per token, its families in the shares that are held out."""
    found = held_out_loss(
        task.model, weights, task.own_text, bytes_per_token=task.bytes_per_token, batch_tokens=_at_once(task),
        sources=task.own_sources, token_losses=_token_losses(task),
    )  # fmt: skip
    shares = np.bincount(np.concatenate(task.sources), minlength=len(found.by_source))[None, : len(found.by_source)]
    return float(mixture_losses(found.by_source, shares)[0])


def unseen_sources_loss(task: Task, weights: Tensor) -> float | None:
    """Loss on text of sources that no client holds, nats per token; None where nothing is kept apart."""
    if not task.unseen:
        return None
    return held_out_loss(
        task.model, weights, task.unseen, bytes_per_token=task.bytes_per_token, batch_tokens=_at_once(task),
        token_losses=_token_losses(task),
    ).loss  # fmt: skip


def client_losses(task: Task, by_source: Sequence[float]) -> dict[str, float]:
    """Mean and 90th percentile over clients of the loss on each client's own mixture, in the run log's columns."""
    columns = task.mixtures.shape[1]
    losses = mixture_losses([*by_source, *[float("nan")] * columns][:columns], task.mixtures)
    losses = losses[np.isfinite(losses)]
    if not len(losses):
        return {}
    return {"loss_client_mean": float(losses.mean()), "loss_client_p90": float(np.quantile(losses, 0.9))}


def likelier_rule(task: Writer, weights: Tensor, problems: Sequence[Problem]) -> str:
    """The one of the rules that the model allows under which the canonical solutions are likelier."""
    return likeliest({rule: gold_losses(task, weights, problems, rule=rule) for rule in rules_for(task.tokenizer)})


def gold_losses(task: Writer, weights: Tensor, problems: Sequence[Problem], *, rule: str = "stripped") -> list[float]:
    """Loss of every problem's canonical solution given its prompt, nats per token of the solution.

    Prompt and solution meet as :func:`~scalefed.evaluation.prompts.solution_ids` says. The end of the document is not
    counted, since pretrained models do not write one.
    """
    pairs = [solution_ids(task.tokenizer, problem, rule) for problem in problems]
    prompts, solutions = zip(*pairs, strict=True)
    return solution_losses(
        task.model, weights, prompts, solutions, batch_tokens=_at_once(task), token_losses=_token_losses(task)
    )


def _token_losses(task: Writer) -> TokenLosses | None:
    """Our own kernels where the task has them."""
    return None if task.kernels.code is None else native_losses(task.kernels.code)


def _at_once(task: Writer) -> int:
    return int(min(8192, LOGITS // task.tokenizer.vocab_size))


def count_passes(
    task: Writer,
    weights: Tensor,
    problems: Sequence[Problem],
    config: RunConfig,
    *,
    samples: int,
    seed: int,
    max_new_tokens: int | None = None,
    workers: int | None = 1,
) -> Counts:
    """Sample programs for every problem, run them, and count what passes; and score the canonical solutions.

    The prompt loses its final line break, so that it ends where a training-time token ends; a completion runs to the
    end of document or to a stop sequence.

    Args:
        task: model and tokenizer.
        weights: ``(P,)``.
        problems: what to solve.
        config: temperature and top_p.
        samples: programs for each problem.
        seed: of the draws.
        max_new_tokens: length limit of a completion; twice the longest canonical solution when None.
        workers: processes that judge; all cores when None.
    """
    max_new_tokens = max_new_tokens or solution_room(task, problems)
    written = write_programs(task, weights, problems, config, samples=samples, seed=seed, max_new_tokens=max_new_tokens)
    verdicts = judge(problems, written, workers=workers)
    place = {problem.task_id: index for index, problem in enumerate(problems)}
    correct = [0] * len(problems)
    for (task_id, _), verdict in zip(written, verdicts, strict=True):
        correct[place[task_id]] += verdict.passed
    settings: dict[str, Any] = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "level": verdicts[0].level,
    }
    if _stops(task):
        settings |= {"stops": list(_stops(task)), "prompt_rule": PROMPT_RULE}
    gold = tuple(gold_losses(task, weights, problems))
    return Counts(tuple(problem.task_id for problem in problems), samples, tuple(correct), settings, gold)


def write_programs(
    task: Writer,
    weights: Tensor,
    problems: Sequence[Problem],
    config: RunConfig,
    *,
    samples: int,
    seed: int,
    max_new_tokens: int,
    rows: int | None = None,
    temperature: float | None = None,
    numbers: Sequence[int] | None = None,
    rule: str = "stripped",
    on_problem: Callable[[str, list[str], int, int], None] | None = None,
) -> list[tuple[str, str]]:
    """Completions as (task_id, text), ordered by problem and sample; arguments as :func:`count_passes`.

    ``temperature`` may be given to be 0 (greedy); ``numbers`` are the problems' places in their set, which key the
    draws; ``rule`` is one of ``PROMPT_RULES``; ``on_problem`` is given a problem's task_id and texts, the tokens of its
    prompt and those of its completions, as soon as all of them are written; ``rows`` are written at once, by default as
    many as are fastest, and fewer where a pretrained model's keys and values would take more memory than its weights.
    """
    prompts = [prompt_ids(task.tokenizer, problem, rule) for problem in problems]
    stops, decode = _stops(task, rule), task.tokenizer.decode
    rows = min(rows or _rows(task), samples * len(problems))

    def text(completion: Completion) -> str:
        return completion_of(before_stop(decode(completion.tokens), stops), problems[completion.prompt], rule)

    def tell(written: list[Completion]) -> None:
        if on_problem is not None:
            number, new = written[0].prompt, sum(len(one.tokens) for one in written)
            on_problem(problems[number].task_id, [text(one) for one in written], len(prompts[number]), new)

    length = max(map(len, prompts)) + max_new_tokens
    if isinstance(task.model, Checkpoint):
        rows = min(rows, affordable_rows(task.model.module, length))
    session = _session(task, weights, rows=rows, length=length)
    temperature = config.temperature if temperature is None else temperature
    ours = session.draw if isinstance(session, NativeSession) and config.top_p == 1 and temperature > 0 else draw
    completions = sample(
        session,
        prompts,
        samples=samples,
        end=getattr(task.tokenizer, "ends", task.tokenizer.eos),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=config.top_p,
        rows=rows,
        seed=seed,
        numbers=numbers,
        stopped=stop_at(stops, decode) if stops else None,
        on_prompt=tell,
        draw=ours,
    )
    return [(problems[one.prompt].task_id, text(one)) for one in completions]


def solution_room(task: Writer, problems: Sequence[Problem]) -> int:
    """Twice the tokens of the longest canonical solution: room enough for any sensible completion."""
    return 2 * max(len(task.tokenizer.encode(problem.canonical_solution)) for problem in problems)


def _rows(task: Writer) -> int:
    """Completions at once."""
    if not isinstance(task.model, Decoder):
        return CHECKPOINT_ROWS
    return TORCH_ROWS if task.kernels.code is None else NATIVE_ROWS


def _stops(task: Writer, rule: str = "stripped") -> tuple[str, ...]:
    """Where a pretrained model's completion ends; our own models end their documents."""
    return () if isinstance(task.model, Decoder) else stops_of(rule)


def _session(task: Writer, weights: Tensor, *, rows: int, length: int) -> Session:
    if isinstance(task.model, Decoder):
        if task.kernels.code is not None:
            return NativeSession(task.kernels.code, task.model, weights, rows=rows, length=length)
        return DecoderSession(task.model, weights, rows=rows, length=length)
    session: Session = task.model.session(weights, rows=rows, length=length)
    return session
