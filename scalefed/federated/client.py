"""What does a client do in a round? It starts from the server's weights and takes local steps on its own data.

``local_updates`` is a pure function of what it is given. Clients of equal shape are trained as one batched model where
that is faster (few tokens a step, small models) and one after the other otherwise. Which clients share a batch does not
change what comes out: every client's arithmetic is its own. Our own kernels train one client after the other
(:mod:`scalefed.federated.native`).
"""

from collections.abc import Callable, Sequence
from functools import cache
from weakref import WeakKeyDictionary

import torch

from scalefed.config import RunConfig
from scalefed.federated.client_optimizer import InnerOptimizer, inner_memory
from scalefed.federated.cuda_graph import Recording, can_record
from scalefed.federated.native import choose, train_clients
from scalefed.federated.state import ClientTask, ClientUpdate, Correction
from scalefed.models import Decoder, Model, Tensor

__all__ = [
    "ClientTask",
    "ClientUpdate",
    "Correction",
    "InnerOptimizer",
    "clients_at_once",
    "keeps_inner_state",
    "local_updates",
]

BATCHED_TOKENS = 2_048  # in a step of all clients of a batch together; much more falls out of the cache
KEPT_BYTES = 31 * 2**20  # just below the largest block that the C library's allocator learns from
BATCHED_CLIENTS = (4, 16)  # least and most clients of a full batch
BATCHED_MAX_TOKENS = 512  # in one client's step
BATCHED_MAX_PARAMS = 200_000  # above, a client's own products fill a core
BATCHED_MAX_WORK = 42_000_000  # tokens of one client's step times trained parameters; beyond, arithmetic is what costs

GPU_TOKENS = 65_536  # in a step of all clients of a batch together
GPU_VALUES = 2**27  # weights of all clients of a batch together

_compiled: WeakKeyDictionary[Model, Callable[[Tensor, Tensor], Tensor]] = WeakKeyDictionary()
_recorded: WeakKeyDictionary[Model, dict[object, Recording]] = WeakKeyDictionary()


def local_updates(
    model: Model,
    start: Tensor,
    tasks: Sequence[ClientTask],
    config: RunConfig,
    *,
    learning_rates: Sequence[float],
) -> list[ClientUpdate]:
    """Train every task's client; updates come back in the order of the tasks.

    Args:
        model: stateless model.
        start: the server's weights ``(P,)``, for tasks that bring no start of their own.
        tasks: one for each client.
        config: optimizer settings.
        learning_rates: one for each local step.

    Raises:
        ConfigError: kernels are demanded that cannot be had.
    """
    _keep_freed_memory()
    kernels = choose(model, config, dtype=start.dtype)
    if isinstance(model, Decoder) and kernels.code is not None:
        keep = keeps_inner_state(config)
        return train_clients(kernels, model, start, tasks, config, rates=learning_rates, keep=keep)
    updates: dict[int, ClientUpdate] = {}
    for group in groups_of(model, tasks, config):
        members = [tasks[index] for index in group]
        updates.update(zip(group, _train(model, start, members, config, learning_rates), strict=True))
    return [updates[index] for index in range(len(tasks))]


def clients_at_once(model: Model, batches: Tensor, config: RunConfig) -> int:
    """How many clients with such batches ``(steps, batch, length + 1)`` share a full batch; 1 where it does not pay."""
    return 1 if choose(model, config).code is not None else group_size(model, ClientTask(0, batches), config)


def keeps_inner_state(config: RunConfig) -> bool:
    """Whether a client's optimizer goes on from its last round: as set, and always where clients train alone."""
    return config.inner_state == "keep" or config.algorithm in ("local", "central")


# ---------------------------------------------------------------------- who trains together
def groups_of(model: Model, tasks: Sequence[ClientTask], config: RunConfig) -> list[list[int]]:
    """Positions of the tasks that are trained as one batched model; most steps first within a group."""
    kinds: dict[object, list[int]] = {}
    for index, task in enumerate(tasks):
        kinds.setdefault((task.batches.shape[1:], task.correction.kind), []).append(index)
    groups = []
    for members in kinds.values():
        members = sorted(members, key=lambda index: -tasks[index].steps)
        size = group_size(model, tasks[members[0]], config)
        groups += [members[first : first + size] for first in range(0, len(members), size)]
    return groups


def group_size(model: Model, task: ClientTask, config: RunConfig) -> int:
    """How many clients to train at once, by what was measured to pay (``tests/benchmarks/bench_training.py``)."""
    if config.client_batching == "loop" or not model.batched:
        return 1
    if config.device != "cpu":
        return max(1, min(GPU_TOKENS // task.step_tokens, GPU_VALUES // model.params_trained))
    small = task.step_tokens <= BATCHED_MAX_TOKENS and model.params_trained <= BATCHED_MAX_PARAMS
    if config.client_batching == "auto" and not (small and task.step_tokens * model.params_trained <= BATCHED_MAX_WORK):
        return 1
    least, most = BATCHED_CLIENTS
    return min(most, max(least, BATCHED_TOKENS // task.step_tokens))


# ---------------------------------------------------------------------- training
@cache
def _keep_freed_memory() -> None:
    """Let the C library keep what a step frees for the next step, instead of giving it back to the system every time.

    glibc raises both of its thresholds, of blocks mapped on their own and of free memory given back, when a larger
    mapped block is freed. A whole run has usually done so while it made its text; a process that only trains has not,
    and then takes more than a hundred page faults a step and client at 128 tokens. The block is never touched, so it
    costs nothing; other allocators pay no heed.

    Source: mallopt(3), M_MMAP_THRESHOLD: the dynamic threshold.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)


def _train(
    model: Model, start: Tensor, tasks: Sequence[ClientTask], config: RunConfig, rates: Sequence[float]
) -> list[ClientUpdate]:
    """Local steps of one client ``(P,)``, or of several at once ``(m, P)``; those with fewer steps stop earlier."""
    starts = [start if task.start is None else task.start for task in tasks]
    if model.batched and can_record(config, tasks):
        return _replay(model, torch.stack(starts), tasks, config, rates)
    single, home = len(tasks) == 1, start.device
    origin = (starts[0] if single else torch.stack(starts)).to(config.device)
    weights = origin.clone()
    keep = keeps_inner_state(config)
    kept = [inner_memory(task.memory) for task in tasks] if keep else ()
    optimizer = InnerOptimizer(config, weights, model.decay_mask.to(weights.device), kept=kept)
    change = _combined([task.correction for task in tasks], origin)
    loss_of = _loss_function(model, config)
    total = torch.zeros(weights.shape[:-1], device=weights.device)
    gradients = torch.zeros_like(weights) if tasks[0].correction.keep_gradient else None
    for step, rate in zip(range(tasks[0].steps), rates, strict=False):
        active = sum(task.steps > step for task in tasks)
        moving = weights if single else weights[:active]
        leaf = moving.detach().requires_grad_()
        blocks = tasks[0].batches[step] if single else torch.stack([task.batches[step] for task in tasks[:active]])
        loss = loss_of(leaf, blocks.to(weights.device))
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        with torch.no_grad():
            (total if single else total[:active]).add_(loss.detach())
            if gradients is not None:
                (gradients if single else gradients[:active]).add_(gradient)
            optimizer.step(moving, gradient if change is None else change(gradient, moving), rate)
    memory = [optimizer.memory(index, task.steps, home=home) if keep else {} for index, task in enumerate(tasks)]
    return _updates(tasks, weights.to(home), total.to(home), None if gradients is None else gradients.to(home), memory)


def _replay(
    model: Model, starts: Tensor, tasks: Sequence[ClientTask], config: RunConfig, rates: Sequence[float]
) -> list[ClientUpdate]:
    """The same local steps on a GPU, where a step is recorded once for all rounds."""
    keep = keeps_inner_state(config)
    kept = [inner_memory(task.memory) if keep else {} for task in tasks]
    settings = tuple(getattr(config, name) for name in ("beta1", "beta2", "adam_epsilon", "weight_decay", "clip_norm"))
    kind = (len(tasks), tasks[0].batches.shape, tasks[0].correction.centring, config.kernels, config.device, settings)
    known = _recorded.setdefault(model, {})
    if kind not in known:
        known[kind] = Recording(config, _loss_function(model, config), model.decay_mask, starts, tasks)
    nothing = torch.zeros_like(starts[0])
    moments = [torch.stack([one.get(name, nothing) for one in kept]) for name in ("inner_first", "inner_second")]
    taken = [int(one.get("inner_steps", 0)) for one in kept]
    done = known[kind].run(starts, moments, taken, tasks, rates)
    memory = [
        {
            "inner_steps": torch.tensor(before + task.steps),
            "inner_first": done.first[index].clone(),
            "inner_second": done.second[index].clone(),
        }
        if keep
        else {}
        for index, (task, before) in enumerate(zip(tasks, taken, strict=True))
    ]
    return _updates(tasks, done.weights, done.total, None, memory)


def _updates(
    tasks: Sequence[ClientTask],
    weights: Tensor,
    total: Tensor,
    gradients: Tensor | None,
    memory: Sequence[dict[str, Tensor]],
) -> list[ClientUpdate]:
    steps = tasks[0].steps if total.dim() == 0 else torch.tensor([task.steps for task in tasks], device=total.device)
    losses = (total / steps).reshape(-1).tolist()
    updates = []
    for index, task in enumerate(tasks):
        own = weights[index] if weights.dim() == 2 else weights
        gradient = None
        if gradients is not None:
            gradient = (gradients[index] if gradients.dim() == 2 else gradients) / task.steps
        updates.append(
            ClientUpdate(
                task.client,
                own,
                task.steps,
                task.steps * task.step_tokens,
                losses[index],
                memory[index],
                gradient=gradient,
            )  # fmt: skip
        )
    return updates


def _combined(corrections: Sequence[Correction], origin: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The corrections of all clients of a batch as one function of ``(gradient, weights)``; None for no change."""
    first = corrections[0]
    shift = None
    if first.shift is not None:
        shifts = [one.shift for one in corrections if one.shift is not None]
        shift = (shifts[0] if origin.dim() == 1 else torch.stack(shifts)).to(origin.device)
    if shift is None and not first.pull and first.centring is None:
        return None

    def change(gradient: Tensor, weights: Tensor) -> Tensor:
        active = slice(None) if origin.dim() == 1 else slice(len(weights))
        if shift is not None:
            gradient = gradient + shift[active]
        if first.pull:
            gradient = gradient.add(weights - origin[active], alpha=first.pull)
        return gradient if first.centring is None else first.centring(gradient)

    return change


def _loss_function(model: Model, config: RunConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """The model's loss, compiled once per model where the config asks for it."""
    if config.kernels != "compiled":
        return model.loss
    if model not in _compiled:
        _compiled[model] = torch.compile(model.loss, dynamic=False if config.device != "cpu" else None)
    return _compiled[model]
