"""What follows from a run's settings and architecture, so that it need not have been stored?

The same formulas fill these columns for a run that has just been made, for one that was stored before the column
existed, and for a table: ``compute_exact``, ``local_epochs``, ``participation_realised``, and ``skew`` corrected for
chance.
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.architecture import HEAD_WIDTH, shape_for
from scalefed.errors import ConfigError, DataError, nearest
from scalefed.skew import corrected_skew, dealing_noise
from scalefed.units import PRIVATE_BATCHES, Architecture, sampling_flops, train_flops

if TYPE_CHECKING:
    import pandas as pd

MICRO_FAMILIES, MICRO_DOCUMENT, MICRO_SPREAD = 16, 44.0, 0.545
"""Of the micro benchmark: families of problems, tokens of a document, and the coefficient of variation of these."""

DERIVED = ("compute_exact", "local_epochs", "participation_realised")
"""Columns that follow from others in every run, and say nothing that those do not."""

_ARCHITECTURE = ("model_width", "model_layers", "model_heads", "sequence_length")
_USED = {
    *_ARCHITECTURE, "model_head_width", "model_vocab", "params", "params_trained", "tokens", "vocab_size", "checkpoint",
    "algorithm", "data", "partition", "concentration", "clients", "local_steps", "batch_size", "unique_tokens", "skew",
    "synthetic_share", "synthetic_tokens", "synthetic_epsilon", "generator_params", "generator_steps",
    "participants_mean", "compute_exact", "local_epochs", "participation_realised", "skew_uncorrected",
}  # fmt: skip
_VISIT = ("local_steps", "batch_size", "sequence_length", "clients", "unique_tokens")


def follow(row: Mapping[str, Any]) -> dict[str, float]:
    """The columns that follow from a row's others and are not among them; those that cannot be told are left out.

    Args:
        row: settings and results of one run.
    """
    found: dict[str, float] = {}
    if not _has(row, "compute_exact") and (flops := compute_exact(row)) is not None:
        found["compute_exact"] = flops
    if not _has(row, "local_epochs") and _has(row, *_VISIT) and row["unique_tokens"] > 0:
        visit = row["local_steps"] * row["batch_size"] * row["sequence_length"]
        found["local_epochs"] = visit * row["clients"] / row["unique_tokens"]
    if not _has(row, "participation_realised") and _has(row, "participants_mean", "clients"):
        found["participation_realised"] = row["participants_mean"] / row["clients"]
    if not _has(row, "skew_uncorrected") and (known := _skew(row)) is not None:
        found |= {"skew": known, "skew_uncorrected": row["skew"]}
    return found


def with_derived(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The frame with the columns of :func:`follow` filled in, row by row, where they are missing."""
    names = [name for name in frame.columns if name in _USED]
    if not {"local_steps", "batch_size", "sequence_length"} <= set(names):  # no run of ours
        return frame
    found = [follow(row) for row in frame[names].to_dict("records")]
    for name in dict.fromkeys(key for row in found for key in row):
        values = [row.get(name, math.nan) for row in found]
        frame[name] = values if name not in frame else [
            new if math.isfinite(new) else old for new, old in zip(values, frame[name], strict=True)
        ]  # fmt: skip
    return frame


def as_stored(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The frame with the skew that the runs stored in ``skew``, for hashes that outlive a better correction of it."""
    if "skew" not in frame or "skew_uncorrected" not in frame:
        return frame
    return frame.assign(skew=frame["skew_uncorrected"].fillna(frame["skew"])).drop(columns="skew_uncorrected")


AXES = ("compute", "compute_exact")
"""What "equal compute" may mean: 6 N D, or all that is spent."""


def flops_per_token(runs: "pd.DataFrame", axis: str) -> Callable[[Any], Any]:
    """Training FLOPs of one token as a function of params: 6 N, or what the runs spent, between and beyond their sizes.

    Args:
        runs: with params, tokens and, for the axis ``compute_exact``, that column; a column ``compute`` of their own,
            which is not 6 N D, counts on the axis ``compute``.
        axis: one of :data:`AXES`.

    Raises:
        ConfigError: another axis. DataError: the runs do not have the column.
    """
    if axis not in AXES:
        raise ConfigError(f"unknown compute axis {axis!r}; {nearest(str(axis), AXES)}")
    if axis == "compute" and (axis not in runs or _is_plain(runs)):
        return lambda params: train_flops(params, 1.0)
    if axis not in runs:
        raise DataError(
            "the runs have no compute_exact, and not the architecture it follows from (model_width, model_layers, "
            "model_heads, vocab_size, sequence_length); add the column, or take the axis 'compute'"
        )
    known = (runs[axis] / runs["tokens"]).groupby(runs["params"]).median()
    known = known[np.isfinite(known) & (known > 0)]
    if known.empty:
        raise DataError("no run has a positive compute_exact and tokens; take the axis 'compute'")
    sizes, costs = np.log(known.index.to_numpy(dtype=float)), np.log(known.to_numpy(dtype=float))

    def cost(params: Any) -> Any:
        at = np.log(np.asarray(params, dtype=float))
        found = np.interp(at, sizes, costs)
        if len(sizes) > 1:
            for end, step, beyond in ((0, 1, at < sizes[0]), (-1, -2, at > sizes[-1])):
                slope = (costs[end] - costs[step]) / (sizes[end] - sizes[step])
                found = np.where(beyond, costs[end] + slope * (at - sizes[end]), found)
        flops = np.exp(found)
        return float(flops) if flops.ndim == 0 else flops

    return cost


def _is_plain(runs: "pd.DataFrame") -> bool:
    """Whether the runs' compute is 6 N D, to the three digits that tables are rounded to."""
    ratio = (runs["compute"] / train_flops(runs["params"], runs["tokens"])).dropna()
    return bool((np.abs(ratio - 1) < 0.01).all())


def compute_exact(row: Mapping[str, Any]) -> float | None:
    """Training FLOPs of a run with output layer and attention counted, synthetic text included; None if unknown.

    A generator of synthetic text is trained on ``generator_steps`` batches a client, with a privacy budget on batches
    that are expected to be ``PRIVATE_BATCHES`` times as large, and writes ``synthetic_tokens``. Evaluation is no part.

    Args:
        row: settings and results of one run.
    """
    if not _has(row, "params", "tokens", *_ARCHITECTURE):
        return None
    vocab = row["model_vocab"] if _has(row, "model_vocab") else row.get("vocab_size")
    ours = not row.get("checkpoint")
    head_width = row["model_head_width"] if _has(row, "model_head_width") else HEAD_WIDTH if ours else None
    if not vocab or not head_width:
        return None
    trained = row.get("params_trained")
    adapters = trained is not None and _finite(trained) and trained < row["params"]
    model = Architecture(
        row["model_width"], row["model_layers"], row["model_heads"] * head_width, vocab, row["sequence_length"]
    )
    flops = train_flops(row["params"], row["tokens"], model=model, trained=trained if adapters else None)
    return float(flops) + _synthetic_flops(row)


def _synthetic_flops(row: Mapping[str, Any]) -> float:
    """To make the pool of shared synthetic text: every client trains a generator and writes with it."""
    if row.get("algorithm") != "synthetic-sharing" or not row.get("synthetic_share"):
        return 0.0
    length, batch, steps = row["sequence_length"], row["batch_size"], row["generator_steps"]
    shape = shape_for(row["generator_params"], row["vocab_size"], between=False)
    model, blocks = shape.at(length), batch
    if math.isfinite(row["synthetic_epsilon"]):
        blocks = min(PRIVATE_BATCHES * batch, batch * steps)
        if _has(row, "unique_tokens", "clients") and row["unique_tokens"] > 0:
            blocks = min(blocks, max(1, row["unique_tokens"] // (row["clients"] * length)))
    written = math.ceil(row["synthetic_tokens"] / length) * length
    train = train_flops(shape.params, steps * blocks * length, model=model)
    return float(row["clients"] * (train + sampling_flops(shape.params, written, model=model)))


def _skew(row: Mapping[str, Any]) -> float | None:
    """The corrected skew of a run that stored that of its counts; None where its partition cannot be told.

    Clients that are iid by construction have none. Documents that are dealt by a Dirichlet's mixtures are rounded.
    """
    if not _has(row, "skew", "clients") or row["clients"] < 2:
        return None
    scheme, concentration = row.get("partition"), row.get("concentration")
    if scheme in ("iid", "quantity") or (scheme == "dirichlet" and concentration == math.inf):
        return 0.0
    if scheme != "dirichlet" or row.get("data") != "micro" or row.get("checkpoint") or not _has(row, "unique_tokens"):
        return None
    documents = row["unique_tokens"] / (MICRO_DOCUMENT * row["clients"])
    if documents <= 0:
        return None
    chance = dealing_noise(labels=MICRO_FAMILIES, documents=documents, spread=MICRO_SPREAD)
    return corrected_skew(row["skew"], chance)


def _has(row: Mapping[str, Any], *names: str) -> bool:
    return all(_finite(row.get(name)) for name in names)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
