"""How do clients train with our kernels? One after the other, each all its local steps, with no Python in between."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch

from scalefed.config import RunConfig
from scalefed.federated.client_optimizer import inner_memory
from scalefed.federated.native.choice import Kernels
from scalefed.federated.native.library import Step, Visit, rates_table
from scalefed.federated.state import ClientTask, ClientUpdate
from scalefed.models import Decoder, Tensor

_steps: WeakKeyDictionary[Decoder, Step] = WeakKeyDictionary()


def train_clients(
    kernels: Kernels,
    model: Decoder,
    start: Tensor,
    tasks: Sequence[ClientTask],
    config: RunConfig,
    *,
    rates: Sequence[float],
    keep: bool,
) -> list[ClientUpdate]:
    """Every task's client trained, in the order of the tasks; a client's bits do not depend on the others.

    Args:
        kernels: native ones, from :func:`~scalefed.federated.native.choose`.
        model: the decoder.
        start: ``(P,)`` weights of tasks that bring no start of their own; float32.
        tasks: one for each client.
        config: optimizer settings.
        rates: learning rate of each local step.
        keep: whether clients' optimizers go on from their last rounds.

    Raises:
        DataError: a token id that the model does not have.
    """
    decay = config.weight_decay * model.decay_mask if config.weight_decay else None
    updates = []
    for task in tasks:
        own = start if task.start is None else task.start
        updates.append(_train(_step(kernels, model, task), own, decay, task, config, tuple(rates), keep))
    return updates


def _step(kernels: Kernels, model: Decoder, task: ClientTask) -> Step:
    """The model's step on text of the task's shape; the last of each model is kept for its next round."""
    _, batch, length = task.batches.shape
    step = _steps.get(model)
    if step is None or (step.code, step.batch, step.length) != (kernels.code, batch, length - 1):
        assert kernels.code is not None
        step = _steps[model] = Step(kernels.code, model.shape, batch=batch, length=length - 1)
    return step


def _train(
    step: Step, start: Tensor, decay: Tensor | None, task: ClientTask, config: RunConfig,
    rates: tuple[float, ...], keep: bool,
) -> ClientUpdate:  # fmt: skip
    kept = inner_memory(task.memory) if keep else {}
    before = int(kept.get("inner_steps", 0))
    correction, adam = task.correction, config.inner_optimizer == "adamw"
    visit = Visit(
        weights=start.clone(),
        first=_moment(kept, "inner_first", start) if adam or config.inner_momentum else None,
        second=_moment(kept, "inner_second", start) if adam else None,
        decay=decay,
        shift=None if correction.shift is None else correction.shift.contiguous(),
        origin=start.contiguous(),
        pull=correction.pull,
        pieces=() if correction.centring is None else correction.centring.pieces,
        total=torch.zeros_like(start) if correction.keep_gradient else None,
    )
    table = rates_table(rates[: task.steps], before, config.beta1, config.beta2)
    loss = step.train(visit, task.batches[: len(table)].contiguous(), table, config)
    memory: dict[str, Tensor] = {}
    if keep:
        memory["inner_steps"] = torch.tensor(before + task.steps)
        for name, moment in (("inner_first", visit.first), ("inner_second", visit.second)):
            if moment is not None:
                memory[name] = moment
    return ClientUpdate(
        task.client, visit.weights, task.steps, task.steps * task.step_tokens, loss / task.steps, memory,
        gradient=None if visit.total is None else visit.total / task.steps,
    )  # fmt: skip


def _moment(kept: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    return kept[name].clone() if name in kept else torch.zeros_like(like)
