"""How do several runs train at once? Their clients share one batched model wherever their shapes agree.

Seeds, clients, mixtures, participation, algorithms and server settings may all differ; what must agree for two runs to
share a batch is the shape of the model, the optimizer of the clients and the learning rates of the round. The weights
of a run do not depend on which other runs it is advanced with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from scalefed.config import RunConfig
from scalefed.federated.client import keeps_inner_state, local_updates
from scalefed.federated.rounds import ClientData, Plan, Round, finish_round, plan_round
from scalefed.federated.state import ClientTask, ClientUpdate, ServerState
from scalefed.models import Model

_SHARED = ("inner_optimizer", "inner_momentum", "weight_decay", "beta1", "beta2", "adam_epsilon", "clip_norm",
           "client_batching", "kernels", "precision", "device", "checkpoint")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Job:
    """A run under way: what its next round needs."""

    config: RunConfig
    model: Model
    data: ClientData
    state: ServerState


def run_many(jobs: Sequence[Job]) -> Iterator[dict[int, Round]]:
    """Advance all runs to the ends of their token budgets, one round of each at a time; those behind catch up first.

    Args:
        jobs: the runs; each starts from its state.

    Yields:
        For every step, the finished round of each run still under way, by its position in ``jobs``. A run that
        diverged is not advanced any more.
    """
    live = {position: job for position, job in enumerate(jobs) if job.state.round < job.config.rounds}
    while live:
        behind = min(job.state.round for job in live.values())
        chosen = {position: job for position, job in live.items() if job.state.round == behind}
        rounds = dict(zip(chosen, advance(list(chosen.values())), strict=True))
        yield rounds
        for position, done in rounds.items():
            job = live.pop(position)
            if not done.diverged and done.state.round < job.config.rounds:
                live[position] = replace(job, state=done.state)


def advance(jobs: Sequence[Job]) -> list[Round]:
    """One round of every run, in the order given."""
    plans = [plan_round(job.config, job.model, job.data, job.state) for job in jobs]
    bundles: dict[object, list[int]] = {}
    for position, (job, plan) in enumerate(zip(jobs, plans, strict=True)):
        bundles.setdefault(_kind(job, plan), []).append(position)
    updates: dict[int, list[ClientUpdate]] = {}
    for positions in bundles.values():
        job, rates = jobs[positions[0]], plans[positions[0]].rates
        tasks = [task for position in positions for task in _own_starts(plans[position])]
        done = iter(local_updates(job.model, job.state.weights, tasks, job.config, learning_rates=rates))
        for position in positions:
            updates[position] = [next(done) for _ in plans[position].tasks]
    return [
        finish_round(job.config, job.model, plan, updates[position])
        for position, (job, plan) in enumerate(zip(jobs, plans, strict=True))
    ]


def _own_starts(plan: Plan) -> list[ClientTask]:
    """The tasks of a run, each with its start written into it."""
    return [replace(task, start=plan.state.weights if task.start is None else task.start) for task in plan.tasks]


def _kind(job: Job, plan: Plan) -> object:
    """Runs of one kind can share a batch; a model that cannot be batched is of its own kind."""
    model = job.model if not job.model.batched else (type(job.model), job.model.layout.entries)
    settings = tuple(getattr(job.config, name) for name in _SHARED)
    return model, settings, keeps_inner_state(job.config), plan.rates
