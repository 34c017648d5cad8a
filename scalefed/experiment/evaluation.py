"""How good is a trained model? Held-out loss, and pass@k from programs that are sampled and really run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from scalefed.config import RunConfig
from scalefed.data.problems import Problem
from scalefed.evaluation.judge import judge
from scalefed.evaluation.sampling import DecoderSession, sample
from scalefed.evaluation.scoring import HeldOutLoss, held_out_loss
from scalefed.federated.preparation import Task
from scalefed.models import Decoder, Tensor
from scalefed.passk import PassAtK, estimate


@dataclass(frozen=True)
class Counts:
    """How many of a problem's samples passed, for every problem.

    Attributes:
        task_ids: names of the problems.
        samples: drawn for each.
        correct: passed, for each.
        settings: how they were drawn and judged.
    """

    task_ids: tuple[str, ...]
    samples: int
    correct: tuple[int, ...]
    settings: dict[str, Any]

    def pass_at_k(self, k: Sequence[int] = (1, 10)) -> PassAtK:
        """Unbiased pass@k with intervals, for the k that the samples allow."""
        return estimate(self.samples, list(self.correct), [one for one in k if one <= self.samples])

    def to_dict(self) -> dict[str, Any]:
        """The content of ``eval.json``."""
        return {
            "task_ids": list(self.task_ids),
            "samples": self.samples,
            "correct": list(self.correct),
            **self.settings,
        }


def score(task: Task, weights: Tensor) -> HeldOutLoss:
    """Held-out loss on the global mixture."""
    return held_out_loss(task.model, weights, task.validation, bytes_per_token=task.bytes_per_token)


def count_passes(
    task: Task, weights: Tensor, problems: Sequence[Problem], config: RunConfig, *, samples: int, seed: int
) -> Counts:
    """Sample programs for every problem, run them, and count what passes.

    The prompt ends where a training-time token ends; a completion runs to the end of document. Its length is limited
    to twice the longest canonical solution.
    """
    if not isinstance(task.model, Decoder):
        raise TypeError(f"sampling needs a Decoder, got {type(task.model).__name__}")
    prompts = [task.tokenizer.encode(problem.prompt) for problem in problems]
    longest = max(len(task.tokenizer.encode(problem.canonical_solution)) for problem in problems)
    limit, rows = 2 * longest, 512
    session = DecoderSession(task.model, weights, rows=rows, length=max(map(len, prompts)) + limit)
    completions = sample(
        session, prompts, samples=samples, end=task.tokenizer.eos, max_new_tokens=limit,
        temperature=config.temperature, top_p=config.top_p, rows=rows, seed=seed,
    )  # fmt: skip
    texts = [(problems[c.prompt].task_id, task.tokenizer.decode(c.tokens)) for c in completions]
    verdicts = judge(problems, texts, workers=1)
    correct = [0] * len(problems)
    for completion, verdict in zip(completions, verdicts, strict=True):
        correct[completion.prompt] += verdict.passed
    settings = {"temperature": config.temperature, "top_p": config.top_p, "max_new_tokens": limit, "seed": seed,
                "level": verdicts[0].level}  # fmt: skip
    return Counts(tuple(problem.task_id for problem in problems), samples, tuple(correct), settings)


def text_of(task: Task, weights: Tensor, prompt: str, *, max_new_tokens: int = 128) -> str:
    """The greedy continuation of one prompt, for looking at."""
    if not isinstance(task.model, Decoder):
        raise TypeError(f"sampling needs a Decoder, got {type(task.model).__name__}")
    ids = task.tokenizer.encode(prompt)
    session = DecoderSession(task.model, weights, rows=1, length=len(ids) + max_new_tokens)
    with torch.inference_mode():
        (done,) = sample(
            session, [ids], samples=1, end=task.tokenizer.eos, max_new_tokens=max_new_tokens, temperature=0
        )
    return str(task.tokenizer.decode(done.tokens))
