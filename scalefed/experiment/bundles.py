"""Which runs of a sweep train at once, and how? Runs that differ in their draws alone, as one batched model.

A client of few tokens a step costs more beside its arithmetic than in it. Runs whose own clients do not fill a batch
are therefore advanced together, a round of each at a time. That changes no bit of any of them, which is tried before it
is done; on a GPU, where kernels depend on how much they are given, they stay equal up to rounding. A bundle only
trains: every member leaves the checkpoint of its last round, from which it is evaluated and stored on its own, as if it
had been stopped there; a killed bundle goes on from its members' checkpoints.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import ceil
from typing import Any

import torch

from scalefed.config import RunConfig
from scalefed.experiment.checkpoints import Progress, load_checkpoint, run_lock, save_checkpoint
from scalefed.experiment.training import CHECKPOINT_SECONDS, Member, one_thread, stored, train_members
from scalefed.federated.batched_runs import Job, run_many
from scalefed.federated.client import clients_at_once
from scalefed.federated.preparation import prepare
from scalefed.federated.rounds import initial_state
from scalefed.models import Model, Tensor, build_model

FREE = ("seed", "concentration")
"""Settings in which the runs of a bundle may differ: they change neither the shape nor the length of a step."""


def bundles(configs: Sequence[RunConfig], *, workers: int) -> list[tuple[RunConfig, ...]]:
    """The configs in groups that are trained together, in the order of each group's first.

    Args:
        configs: runs to make.
        workers: processes to share them; a kind of run is spread over all of them before its bundles grow.
    """
    kinds: dict[str, list[RunConfig]] = {}
    for config in configs:
        kinds.setdefault(config.replace(**dict.fromkeys(FREE, 1)).run_id, []).append(config)
    made: list[tuple[RunConfig, ...]] = []
    for alike in kinds.values():
        size = min(ceil(len(alike) / workers), runs_at_once(alike[0])) if len(alike) > 1 else 1
        made += [tuple(alike[first : first + size]) for first in range(0, len(alike), size)]
    place = {config.run_id: index for index, config in enumerate(configs)}
    return sorted(made, key=lambda bundle: place[bundle[0].run_id])


def runs_at_once(config: RunConfig) -> int:
    """How many runs like this one to train together: 1 where it would not pay, or would change a bit."""
    on_gpu = config.device != "cpu"
    if config.checkpoint or (config.kernels == "compiled" and not on_gpu):
        return 1
    model = build_model(config)
    step = torch.zeros(1, config.batch_size, config.sequence_length + 1, dtype=torch.int64)
    size = clients_at_once(model, step, config) // config.clients_per_round
    with one_thread(config):
        return size if size > 1 and (on_gpu or _equal_bits(model, step)) else 1


def train_together(
    configs: Sequence[RunConfig],
    *,
    runs: str | os.PathLike[str] = "runs",
    on_round: Callable[[dict[str, Any]], None] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Train runs of a bundle to their last rounds and leave their checkpoints; those that are stored are left alone.

    A run that diverges keeps its last checkpoint, from which it diverges again when it is made alone.

    Args:
        configs: one bundle of :func:`bundles`.
        runs: folder of the run log.
        on_round: called after every round of every run with its record.
        checkpoint_seconds: time between checkpoints; more where they are so large that they would slow the runs.

    Raises:
        ConfigError: settings that do not go together. CheckpointError: a checkpoint that is damaged.
    """
    with one_thread(configs[0]), ExitStack() as locks:
        for config in sorted(configs, key=lambda config: config.run_id):
            locks.enter_context(run_lock(config))
        members = [_member(config) for config in configs if not stored(runs, config)]
        jobs = [Job(one.config, one.task.model, one.task.data, one.progress.state) for one in members]
        train_members(members, run_many(jobs), on_round, checkpoint_seconds)
        for one in members:
            if not one.diverged:
                save_checkpoint(one.config, one.progress)


def _member(config: RunConfig) -> Member:
    task = prepare(config)
    return Member(config, task, load_checkpoint(config) or Progress(initial_state(config, task.model)))


def _equal_bits(model: Model, step: Tensor) -> bool:
    """Whether two clients at once have the gradients they have alone: so with all but the narrowest models."""
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(model.layout.entries[0].shape[0], (2, *step.shape[1:]), generator=draw)
    weights = torch.stack([model.initial(seed) for seed in range(2)])
    alone = [_gradient(model, own, block) for own, block in zip(weights, blocks, strict=True)]
    return torch.equal(_gradient(model, weights, blocks), torch.stack(alone))


def _gradient(model: Model, weights: Tensor, blocks: Tensor) -> Tensor:
    leaf = weights.detach().requires_grad_()
    return torch.autograd.grad(model.loss(leaf, blocks).sum(), leaf)[0]
