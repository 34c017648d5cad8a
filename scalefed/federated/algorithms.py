"""What does each algorithm ask of its clients? A correction of their gradients before a round, a memory after it.

What the server does is in :mod:`scalefed.federated.server`. The rest of a round is the same for all algorithms:

=================  ===========================================  ==================================================
algorithm          client                                       server
=================  ===========================================  ==================================================
fedavg             plain steps                                  weighted mean; Nesterov momentum if asked for
fedprox            pull ``mu (w - w0)``                          as fedavg
fedavgm            plain                                        heavy ball 0.9
fedadam            plain                                        Adam on the mean update
fedyogi            plain                                        Yogi on the mean update
fedadagrad         plain                                        Adagrad on the mean update
scaffold           shift ``c - c_k``                            mean; mean change of the controls
fednova            plain                                        mean of updates per unit of local progress
feddyn             shift ``-lambda_k``, pull ``alpha (w - w0)``   mean minus the sum of past drifts
fedvarp            plain                                        mean, with what all clients sent last
diloco             plain AdamW, state kept by ``inner_state``   Nesterov 0.7 / 0.9
gc-local           all gradients centred                        plain mean
gc-global          plain                                        centred mean
gc-fed             gradients centred but for the classifier     centred mean
synthetic-sharing  plain, with shared synthetic text mixed in   as fedavg
local              goes on from its own weights                 nothing is averaged
central            plain, one client that holds everything      takes over that client's weights
=================  ===========================================  ==================================================
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from scalefed.config import RunConfig
from scalefed.federated.centralisation import at_clients, everywhere
from scalefed.federated.state import PLAIN, ClientTask, ClientUpdate, Correction, ServerState
from scalefed.models import Layout, Tensor

Memory = dict[str, Tensor]


def client_task(config: RunConfig, layout: Layout, state: ServerState, client: int, batches: Tensor) -> ClientTask:
    """What one client does in this round: its data, where it starts, and how its gradients are changed.

    Args:
        config: names the algorithm.
        layout: of the flat weights.
        state: the server's state; of it, a client sees ``weights``, what :func:`broadcast` names, and its own memory.
        client: its index.
        batches: ``(steps, batch, length + 1)`` token ids.
    """
    memory = state.memory.get(client, {})
    start = memory.get("weights", state.slots["initial"]) if config.algorithm == "local" else None
    correct = _CORRECTIONS.get(config.algorithm)
    correction = correct(config, layout, state, memory) if correct else PLAIN
    return ClientTask(client, batches, memory, start, correction)


def conclude(config: RunConfig, state: ServerState, task: ClientTask, update: ClientUpdate) -> ClientUpdate:
    """The update with what the algorithm adds to the client's memory and to what is sent."""
    finish = _CONCLUSIONS.get(config.algorithm)
    return finish(config, state, task, update) if finish else update


def first_slots(config: RunConfig, weights: Tensor) -> dict[str, Tensor]:
    """The server's own vectors before round 0."""
    if config.algorithm == "scaffold":
        return {"control": torch.zeros_like(weights)}
    return {"initial": weights.clone()} if config.algorithm == "local" else {}


def broadcast(config: RunConfig) -> tuple[str, ...]:
    """Names of the server's vectors that travel to the clients beside the weights."""
    return ("control",) if config.algorithm == "scaffold" else ()


def vectors_sent(config: RunConfig) -> int:
    """Weight-sized vectors on the wire for one client and round, down or up; down and up are equal in number."""
    if config.algorithm in ("local", "central"):
        return 0
    return 1 + len(broadcast(config))


# ---------------------------------------------------------------------- corrections
def _fedprox(config: RunConfig, layout: Layout, state: ServerState, memory: Memory) -> Correction:
    """Gradient of ``mu/2 |w - w0|^2``. Source: Li et al. 2020 (FedProx, arXiv 1812.06127), equation 2."""
    return Correction(pull=config.proximal)


def _scaffold(config: RunConfig, layout: Layout, state: ServerState, memory: Memory) -> Correction:
    """``g - c_k + c``. Source: Karimireddy et al. 2020 (SCAFFOLD, arXiv 1910.06378), algorithm 1."""
    control = state.slots["control"]
    own = memory.get("control")
    return Correction(shift=control if own is None else control - own, keep_gradient=True)


def _feddyn(config: RunConfig, layout: Layout, state: ServerState, memory: Memory) -> Correction:
    """Gradient of ``-<lambda_k, w> + alpha/2 |w - w0|^2``. Source: Acar et al. 2021 (arXiv 2111.04263), algorithm 1."""
    dual = memory.get("dual")
    shift = torch.zeros_like(state.weights) if dual is None else -dual
    return Correction(shift=shift, pull=config.dynamic_regularization)


def _gc_local(config: RunConfig, layout: Layout, state: ServerState, memory: Memory) -> Correction:
    return Correction(centring=everywhere(config, layout))


def _gc_fed(config: RunConfig, layout: Layout, state: ServerState, memory: Memory) -> Correction:
    return Correction(centring=at_clients(config, layout))


_CORRECTIONS: dict[str, Callable[[RunConfig, Layout, ServerState, Memory], Correction]] = {
    "fedprox": _fedprox, "scaffold": _scaffold, "feddyn": _feddyn, "gc-local": _gc_local, "gc-fed": _gc_fed,
}  # fmt: skip


# ---------------------------------------------------------------------- after the local steps
def _remember_control(config: RunConfig, state: ServerState, task: ClientTask, update: ClientUpdate) -> ClientUpdate:
    """The new control is the mean of the client's own gradients along its path; its change is sent.

    With plain SGD of constant rate ``eta`` this equals option II, ``c_k - c + (w0 - w) / (steps eta)``, term by term,
    and unlike that formula it stays an average of gradients under AdamW, clipping or a falling rate.
    """
    assert update.gradient is not None
    before = task.memory.get("control", torch.zeros_like(update.gradient))
    return replace(update, memory=update.memory | {"control": update.gradient},
                   sent={"control": update.gradient - before})  # fmt: skip


def _remember_dual(config: RunConfig, state: ServerState, task: ClientTask, update: ClientUpdate) -> ClientUpdate:
    """``lambda_k <- lambda_k - alpha (w - w0)``."""
    before = task.memory.get("dual", torch.zeros_like(update.weights))
    dual = before - config.dynamic_regularization * (update.weights - state.weights)
    return replace(update, memory=update.memory | {"dual": dual})


def _remember_update(config: RunConfig, state: ServerState, task: ClientTask, update: ClientUpdate) -> ClientUpdate:
    """The last update of every client, which FedVARP's server keeps; nothing more is sent."""
    return replace(update, memory=update.memory | {"update": update.weights - state.weights})


def _remember_weights(config: RunConfig, state: ServerState, task: ClientTask, update: ClientUpdate) -> ClientUpdate:
    return replace(update, memory=update.memory | {"weights": update.weights.clone()})


_CONCLUSIONS: dict[str, Callable[[RunConfig, ServerState, ClientTask, ClientUpdate], ClientUpdate]] = {
    "scaffold": _remember_control, "feddyn": _remember_dual, "fedvarp": _remember_update,
    "local": _remember_weights,
}  # fmt: skip
