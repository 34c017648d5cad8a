"""What is written down about a round? One line of ``rounds.jsonl``, in the run log's columns."""

from collections.abc import Sequence
from typing import Any

import torch

from scalefed.config import RunConfig
from scalefed.federated.algorithms import vectors_sent
from scalefed.federated.native import choose
from scalefed.federated.schedule import learning_rate
from scalefed.federated.state import ClientUpdate, ServerState
from scalefed.models import Model
from scalefed.units import FLOAT32_BYTES


def round_record(
    config: RunConfig,
    model: Model,
    before: ServerState,
    after: ServerState,
    sampled: Sequence[int],
    updates: Sequence[ClientUpdate],
    *,
    extra_bytes: int = 0,
) -> dict[str, Any]:
    """One line of ``rounds.jsonl`` (:data:`scalefed.runs.schema.ROUND_COLUMNS`); tokens and bytes are this round alone.

    Args:
        config: the settings.
        model: gives the size of what travels.
        before: state at the start of the round.
        after: state at its end.
        sampled: clients that were drawn, and received the model.
        updates: of those that answered, finite or not.
        extra_bytes: sent beside the usual vectors, such as synthetic text.
    """
    usable = [update for update in updates if update.finite]
    kernels = choose(model, config, dtype=after.weights.dtype)
    trained = sum(update.tokens for update in usable)
    return {
        "round": after.round,
        "tokens": sum(update.tokens for update in updates),
        "train_loss": sum(update.loss * update.tokens for update in usable) / max(trained, 1),
        "learning_rate": learning_rate(config, before.round, 0),
        **_geometry(before, after, usable),
        "clients": list(sampled),
        "participants": len(updates),
        "left_out": [update.client for update in updates if not update.finite],
        "repeats": sum(before.visits[update.client] > 0 for update in updates),
        "client_losses": [update.loss for update in updates],
        "client_tokens": [update.tokens for update in updates],
        "bytes_sent": bytes_of_round(config, model, down=len(sampled), up=len(updates)) + extra_bytes,
        "kernels_used": str(kernels),
        "kernels_version": kernels.version,
    }


def bytes_of_round(config: RunConfig, model: Model, *, down: int, up: int) -> int:
    """Bytes on the wire: the model goes down to all clients drawn and comes up from those that answer.

    Args:
        config: names the algorithm; SCAFFOLD sends its controls too, ``local`` and ``central`` send nothing.
        model: gives the number of values in a vector.
        down: clients that receive.
        up: clients that answer.
    """
    return vectors_sent(config) * model.params_trained * FLOAT32_BYTES * (down + up)


def _geometry(before: ServerState, after: ServerState, updates: Sequence[ClientUpdate]) -> dict[str, Any]:
    """Norms of the updates, and how far the clients disagree: distance from and cosine with their mean.

    Under ``local`` an update is taken from the mean of the clients' weights, since each starts elsewhere.
    """
    norm = torch.linalg.vector_norm
    record: dict[str, Any] = {"update_norm": float(norm(after.weights - before.weights))}
    if not updates:
        return record
    mean, change = torch.zeros_like(before.weights), torch.empty_like(before.weights)
    for update in updates:
        mean.add_(torch.sub(update.weights, before.weights, out=change), alpha=1 / len(updates))
    size = float(norm(mean))
    if size == 0:
        return record
    norms, distances, products = [], [], []
    for update in updates:
        torch.sub(update.weights, before.weights, out=change)  # again, rather than kept for every client
        norms.append(float(norm(change)))
        products.append(float(change @ mean))
        distances.append(float(norm(change.sub_(mean))))
    cosines = [product / (own * size) for product, own in zip(products, norms, strict=True) if own > 0]
    return record | {
        "client_norm": sum(norms) / len(norms),
        "client_drift": sum(distances) / len(distances) / size,
        "cosine": sum(cosines) / len(cosines),
    }
