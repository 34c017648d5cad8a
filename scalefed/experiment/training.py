"""From a config to a stored run: prepare, train, evaluate, write the log. A run that is stored is never made twice."""

import logging
import math
import os
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from scalefed.config import RunConfig
from scalefed.data.problem import Problem
from scalefed.data.problems import load_problems
from scalefed.errors import DataError
from scalefed.evaluation.scoring import HeldOutLoss
from scalefed.experiment.checkpoints import (
    Progress,
    delete_checkpoint,
    load_checkpoint,
    run_lock,
    save_checkpoint,
    weights_hash,
    weights_path,
)
from scalefed.experiment.evaluation import (
    Counts,
    client_losses,
    count_passes,
    own_text_loss,
    score,
    unseen_sources_loss,
)
from scalefed.federated.native import choose
from scalefed.federated.preparation import Task, prepare, prepare_writer
from scalefed.federated.rounds import Round, initial_state, run_rounds
from scalefed.models import Tensor, load_weights, save_weights
from scalefed.passk import PassAtK
from scalefed.runs.derived import follow
from scalefed.runs.files import has_run
from scalefed.runs.log import Run, add_evaluation, provenance, read_run, write_run
from scalefed.units import train_flops

logger = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 20.0  # of work that a kill may cost; writing takes milliseconds
CHECKPOINT_SHARE = 0.05  # of a run's time, at most: thousands of clients that keep moments make large ones
KEPT_ROUNDS = 2_000
"""Most records of rounds in the log of a run: all 31,250 rounds of one local step at 16M tokens would be 14 MB."""


def train(
    config: RunConfig,
    *,
    runs: str | os.PathLike[str] = "runs",
    on_round: Callable[[dict[str, Any]], None] | None = None,
    engine: str = "native",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Run:
    """Train one run and store it as ``<runs>/<run_id>/``, or return it if it is stored already.

    A run that was stopped goes on from its last checkpoint, to the same bits as if it had not been.

    Args:
        config: the settings.
        runs: folder of the run log.
        on_round: called after every round with its record.
        engine: ``native``, or ``flower`` for Flower's simulation of the same config.
        checkpoint_seconds: time between checkpoints; more where they are so large that they would slow the run.

    Raises:
        ConfigError: settings that do not go together. CheckpointError: a checkpoint that is damaged.
    """
    folder = Path(runs) / config.run_id
    if has_run(folder):
        return Run.load(folder)
    with one_thread(config), run_lock(config):
        if not has_run(folder):
            _train_and_store(config, Path(runs), on_round, engine, checkpoint_seconds)
    return Run.load(folder)


def evaluate(
    run: Run, *, problems: str | None = None, samples: int = 20, k: tuple[int, ...] = (1, 10), seed: int = 0
) -> PassAtK:
    """pass@k of a stored run, from new samples of its weights in the cache; no training is needed for a larger k.

    The counts, and the loss of every canonical solution, are added to the run's folder under a name made of the problem
    set, the samples and the seed (:func:`evaluation_name`).

    Args:
        run: a stored run.
        problems: ``micro``, ``humaneval``, or a JSONL file; the run's own problem set when None.
        samples: programs drawn for each problem.
        k: attempts; those above ``samples`` are left out.
        seed: of the draws.

    Raises:
        DataError: the weights are not in the cache.
    """
    config = run.config
    task = prepare_writer(config)
    weights = load_weights(weights_path(config), task.model.layout).to(config.device)
    chosen = problems or config.problems
    with one_thread(config):
        counts = count_passes(task, weights, problem_set(chosen, config), config, samples=samples, seed=seed)
    add_evaluation(run.folder, evaluation_name(chosen, samples, seed), counts.to_dict())
    return counts.pass_at_k(k)


def evaluation_name(problems: str, samples: int, seed: int) -> str:
    """What the counts of :func:`evaluate` are stored under, for ``load_counts(..., evaluation=)``.

    >>> evaluation_name("humaneval", 20, 0)
    'humaneval-n20-s0'
    """
    return f"{Path(problems).stem}-n{samples}-s{seed}"


def problem_set(name: str, config: RunConfig) -> list[Problem]:
    """The problems of a name that a run of these settings is given, at most ``problem_count`` of them."""
    return load_problems(name, count=config.problem_count, seed=config.data_seed)


# ---------------------------------------------------------------------- one run
@dataclass
class Member:
    """A run under way, alone or among others that train at once.

    Attributes:
        config: its settings.
        task: model and data.
        progress: where it stands.
        diverged: whether its last round did.
    """

    config: RunConfig
    task: Task
    progress: Progress
    diverged: bool = False

    def take(self, done: Round, wall_s: float, cpu_s: float) -> dict[str, Any]:
        """Put a finished round and its seconds on the record, scored where the config asks for it; the record."""
        config, before = self.config, self.progress
        record = _cumulative(before.records, done.record) | {"wall_s": wall_s, "cpu_s": cpu_s}
        if config.evaluate_every and done.state.round % config.evaluate_every == 0 and not done.diverged:
            record |= _scores_of_round(config, self.task, done)
        keep_last = not before.records or is_kept(config, before.records[-1]["round"])
        self.progress = before.take(done.state, record, keep_last=keep_last)
        self.diverged = done.diverged
        return record


def _train_and_store(
    config: RunConfig, runs: Path, on_round: Callable[[dict[str, Any]], None] | None, engine: str, every: float
) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    task = prepare(config)
    member = Member(config, task, load_checkpoint(config) or Progress(initial_state(config, task.model)))
    rounds = _engine(engine)(config, task.model, task.data, member.progress.state)
    train_members([member], ({0: done} for done in rounds), on_round, every)
    progress, diverged = member.progress, member.diverged
    clock = time.perf_counter()
    final = None if diverged else _final_scores(config, task, progress.state.weights)
    evaluate_s = time.perf_counter() - clock
    result = _result(config, task, progress, final) | _timing(progress, evaluate_s)
    if final is not None:
        save_weights(weights_path(config), task.model.layout, progress.state.weights)
    write_run(
        runs, config=config.to_dict(), run_id=config.run_id, status="diverged" if diverged else "completed",
        result=result, rounds=progress.records,
        evaluation=final.counts.to_dict() if final is not None and final.counts is not None else None,
        provenance=provenance() | {"started": started, "device_name": _device_name(config),
                                   **_kernels(config, task, progress)},
    )  # fmt: skip
    delete_checkpoint(config)


def train_members(
    members: Sequence[Member],
    rounds: Iterable[dict[int, Round]],
    on_round: Callable[[dict[str, Any]], None] | None,
    every: float,
) -> None:
    """Take in the rounds of one run, or of several that train at once, with checkpoints; the members are changed.

    The time of rounds that were advanced together is divided evenly among their runs.

    Args:
        members: the runs.
        rounds: for every step, the finished rounds by the member's position.
        on_round: called after every round with its record.
        every: seconds between checkpoints.
    """
    wall, cpu, saved = time.perf_counter(), time.process_time(), time.perf_counter()
    pause = every
    for finished in rounds:
        wall_s, cpu_s = ((now - then) / len(finished) for now, then in
                         ((time.perf_counter(), wall), (time.process_time(), cpu)))  # fmt: skip
        for position, done in finished.items():
            record = members[position].take(done, wall_s, cpu_s)
            if on_round is not None:
                on_round(record)
        wall, cpu = time.perf_counter(), time.process_time()
        if wall - saved > pause:
            for one in members:
                if 0 < one.progress.state.round < one.config.rounds and not one.diverged:
                    save_checkpoint(one.config, one.progress)
            saved = time.perf_counter()
            pause = max(every, (saved - wall) / CHECKPOINT_SHARE) if every else 0.0


def _engine(name: str) -> Callable[..., Any]:
    if name == "native":
        return run_rounds
    if name == "flower":
        from scalefed.federated.flower.engine import run_rounds as flower_rounds

        return flower_rounds
    raise DataError(f"unknown engine {name!r}; allowed: native, flower")


@dataclass(frozen=True)
class _Final:
    """The scores of the final weights."""

    loss: HeldOutLoss
    own_text: float
    unseen: float | None
    counts: Counts | None
    passed: PassAtK | None


def _final_scores(config: RunConfig, task: Task, weights: Tensor) -> _Final:
    weights = weights.to(config.device)
    loss, own_text, unseen = score(task, weights), own_text_loss(task, weights), unseen_sources_loss(task, weights)
    if config.problems == "none":
        return _Final(loss, own_text, unseen, None, None)
    counts = count_passes(
        task, weights, problem_set(config.problems, config), config, samples=config.samples, seed=config.seed
    )
    return _Final(loss, own_text, unseen, counts, counts.pass_at_k())


def _scores_of_round(config: RunConfig, task: Task, done: Round) -> dict[str, Any]:
    final = _final_scores(config, task, done.state.weights)
    scores: dict[str, Any] = {"loss": final.loss.loss, "loss_own_text": final.own_text}
    if final.counts is not None and final.passed is not None:
        scores |= {"gold_loss": final.counts.gold_loss}
        scores |= {f"pass_at_{k}": final.passed[k].estimate for k in final.passed.k}
    return scores


def is_kept(config: RunConfig, round_number: int) -> bool:
    """Whether the record of a round stays in the log: at most 2,000 do, spread evenly; the last always does.

    Of rounds that are evaluated every one stays, or every n-th where these alone are more; of the others, as many as
    there is room for.

    Args:
        config: gives the rounds, and how often they are evaluated.
        round_number: counted from 1.
    """
    every = config.evaluate_every
    evaluated = config.rounds // every if every else 0
    if every and round_number % every == 0:
        return (round_number // every) % math.ceil(evaluated / KEPT_ROUNDS) == 0
    room = KEPT_ROUNDS - 1 - min(evaluated, KEPT_ROUNDS - 1)
    return room > 0 and round_number % math.ceil(config.rounds / room) == 0


def _cumulative(records: tuple[dict[str, Any], ...], record: dict[str, Any]) -> dict[str, Any]:
    """The record with tokens and bytes counted from the start of the run."""
    if not records:
        return record
    return record | {name: records[-1][name] + record[name] for name in ("tokens", "bytes_sent")}


def _of_each_source(losses: Sequence[float], result: Mapping[str, Any]) -> list[float]:
    """A loss for every package that is named beside it, NaN for those of which nothing is held out."""
    return [*losses, *[math.nan] * (len(result.get("sources", ())) - len(losses))]


def _result(config: RunConfig, task: Task, progress: Progress, final: _Final | None) -> dict[str, Any]:
    """What came out, in the run log's columns."""
    last, model = progress.records[-1], task.model
    spent = int(last["tokens"])
    result: dict[str, Any] = {
        "params": model.params, "params_asked": config.params, "params_total": model.params_total,
        "params_trained": model.params_trained, "tokens": spent, "tokens_asked": config.tokens,
        "tokens_per_param": spent / model.params,
        "compute": train_flops(model.params, spent, trained=_trained(task)), "participation": config.participation,
        "skew": task.skew, "skew_uncorrected": task.skew_uncorrected, "rounds": progress.state.round,
        "rounds_kept": len(progress.records), "bytes_sent": last["bytes_sent"],
        "bytes_per_client": last["bytes_sent"] / config.clients, "train_loss": last["train_loss"],
        "update_norm": last["update_norm"], "client_drift": last.get("client_drift"),
        "participants_mean": progress.participants / progress.state.round,
        "unique_tokens": task.unique_tokens, "epochs": spent / task.unique_tokens,
        "loss": None, "entropy_per_token": task.entropy_per_token, "weights_hash": weights_hash(progress.state.weights),
        **task.shape, **task.sources_told,
    }  # fmt: skip
    result |= follow(config.to_dict() | result)
    if final is not None:
        result |= {"loss": final.loss.loss, "loss_std_error": final.loss.std_error,
                   "bits_per_byte": final.loss.bits_per_byte,
                   "loss_by_source": _of_each_source(final.loss.by_source, result),
                   "loss_own_text": final.own_text, "loss_gap": final.loss.loss - final.own_text,
                   **({} if final.unseen is None else {"loss_unseen_sources": final.unseen}),
                   "gold_loss": None if final.counts is None else final.counts.gold_loss,
                   **client_losses(task, final.loss.by_source)}  # fmt: skip
        for rate in final.passed or ():
            name = f"pass_at_{rate.k}"
            result |= {name: rate.estimate, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return result


def _trained(task: Task) -> int | None:
    return None if task.model.params_trained >= task.model.params else task.model.params_trained


def peak_memory_mb() -> float:
    """MB of the largest resident memory of this program; what ``getrusage`` says is that of its parent too."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):  # another system
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _timing(progress: Progress, evaluate_s: float) -> dict[str, Any]:
    tokens = progress.records[-1]["tokens"]
    return {
        "wall_s": progress.wall_s, "cpu_s": progress.cpu_s, "evaluate_s": evaluate_s,
        "peak_memory_mb": peak_memory_mb(),
        "tokens_per_s": tokens / progress.wall_s if progress.wall_s else math.inf,
    }  # fmt: skip


def _kernels(config: RunConfig, task: Task, progress: Progress) -> dict[str, str]:
    """What trained, by the records of all rounds kept, and why it was not our own."""
    records = progress.records
    used = dict.fromkeys(record.get("kernels_used", "eager") for record in records)
    versions = dict.fromkeys(record["kernels_version"] for record in records if record.get("kernels_version"))
    return {"kernels_used": ", ".join(used), "kernels_version": ", ".join(versions),
            "kernels_reason": choose(task.model, config).reason}  # fmt: skip


def _device_name(config: RunConfig) -> str:
    return torch.cuda.get_device_name() if config.device.startswith("cuda") else "cpu"


class one_thread:  # noqa: N801 - used like a function
    """Small models are fastest on one thread, and equal bits need a fixed number of them."""

    def __init__(self, config: RunConfig) -> None:
        self.wanted = 1 if config.params < 3_000_000 and not config.checkpoint else torch.get_num_threads()

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(self.wanted)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def stored(runs: str | os.PathLike[str], config: RunConfig) -> bool:
    """Whether the run is in the log already, and readable."""
    folder = Path(runs) / config.run_id
    if not has_run(folder):
        return False
    try:
        read_run(folder)
    except DataError:
        return False
    return True
