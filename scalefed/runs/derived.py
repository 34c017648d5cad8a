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

Array = np.ndarray[Any, Any]

MICRO_FAMILIES, MICRO_DOCUMENT, MICRO_SPREAD = 16, 44.0, 0.545
"""Of the micro benchmark: families of problems, tokens of a document, and the coefficient of variation of these."""

_ARCHITECTURE = ("model_width", "model_layers", "model_heads", "sequence_length")
_USED = {
    *_ARCHITECTURE, "model_head_width", "model_vocab", "params", "params_trained", "tokens", "vocab_size", "checkpoint",
    "algorithm", "data", "partition", "concentration", "clients", "local_steps", "batch_size", "unique_tokens", "skew",
    "synthetic_share", "synthetic_kept", "synthetic_tokens", "synthetic_epsilon", "generator_params", "generator_steps",
    "participants_mean", "compute_exact", "local_epochs", "participation_realised", "skew_uncorrected",
}  # fmt: skip


def follow(row: Mapping[str, Any]) -> dict[str, float]:
    """The columns that follow from a row's others and are not among them; those that cannot be told are left out.

    Args:
        row: settings and results of one run.
    """
    found = follow_columns({name: _single(row[name]) for name in _USED if name in row}, 1)
    return {name: float(values[0]) for name, values in found.items()}


def follow_columns(columns: Mapping[str, Array], count: int) -> dict[str, Array]:
    """For many runs at once, the columns that follow from others: (count,) each, NaN for runs that cannot tell.

    What a run has already is not told again; a column that no run can tell is left out.

    Args:
        columns: (count,) each, by name.
        count: runs.
    """
    runs = _Columns(columns, count)
    with np.errstate(all="ignore"):  # what cannot be told divides by nothing
        found = _followed(runs)
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def _followed(runs: "_Columns") -> dict[str, Array]:
    visit = runs["local_steps"] * runs["batch_size"] * runs["sequence_length"]
    unique = runs["unique_tokens"]
    skew = _skews(runs)
    found = {
        "compute_exact": _flops(runs),
        "local_epochs": visit * runs["clients"] / np.where(unique > 0, unique, np.nan),
        "participation_realised": runs["participants_mean"] / runs["clients"],
    }
    found = {name: np.where(np.isfinite(runs[name]), np.nan, values) for name, values in found.items()}
    corrected = np.isfinite(skew) & ~np.isfinite(runs["skew_uncorrected"])
    found["skew"] = np.where(corrected, skew, np.nan)
    found["skew_uncorrected"] = np.where(corrected, runs["skew"], np.nan)
    return found


def with_derived(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The frame with the columns of :func:`follow` filled in where they are missing."""
    names = [name for name in frame.columns if name in _USED]
    if not {"local_steps", "batch_size", "sequence_length"} <= set(names):  # no run of ours
        return frame
    for name, values in follow_columns({name: frame[name].to_numpy() for name in names}, len(frame)).items():
        told = np.isfinite(values)
        frame[name] = values if name not in frame else np.where(told, values, frame[name])
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

    Args:
        row: settings and results of one run.
    """
    others = {name: value for name, value in row.items() if name != "compute_exact"}
    return follow(others).get("compute_exact")


class _Columns:
    """Columns of many runs, asked as numbers or as they are."""

    def __init__(self, columns: Mapping[str, Array], count: int) -> None:
        self.columns = columns
        self.count = count

    def __getitem__(self, name: str) -> Array:
        """(count,) as numbers; NaN for what is none or not finite, and for a column that there is not."""
        values = self.columns.get(name)
        if values is None or values.dtype.kind not in "iufO":
            return np.full(self.count, np.nan)
        if values.dtype.kind == "O":
            values = np.array([value if _finite(value) else math.nan for value in values])
        return np.asarray(np.where(np.isfinite(values), values, np.nan))

    def are(self, name: str, *words: Any) -> Array:
        """(count,) whether the column is one of these."""
        values = self.columns.get(name)
        if values is None:
            return np.full(self.count, None in words)
        return np.asarray(np.logical_or.reduce([np.broadcast_to(values == word, self.count) for word in words]))

    def rows(self, chosen: Array) -> list[dict[str, Any]]:
        """The chosen runs as dicts."""
        found = []
        for row in np.flatnonzero(chosen):
            values = {name: column[row] for name, column in self.columns.items()}
            found.append({name: v.item() if isinstance(v, np.generic) else v for name, v in values.items()})
        return found


def _single(value: Any) -> Array:
    """One value as an array (1,)."""
    array = np.empty(1, dtype=object)
    array[0] = value
    return array


def _flops(runs: _Columns) -> Array:
    """Training FLOPs with output layer and attention counted, synthetic text included; NaN if unknown.

    A generator of synthetic text is trained on ``generator_steps`` batches a client, with a privacy budget on batches
    that are expected to be ``PRIVATE_BATCHES`` times as large, and writes ``synthetic_tokens``. Where only the
    likeliest blocks are kept, all that are drawn are scored by the model, at a third of the cost of training on them.
    Evaluation is no part.
    """
    width, layers, heads, length = (runs[name] for name in _ARCHITECTURE)
    vocab, own_vocab, head_width = runs["vocab_size"], runs["model_vocab"], runs["model_head_width"]
    vocab = np.where(np.isfinite(own_vocab), own_vocab, np.where(vocab == 0, np.nan, vocab))
    ours = runs.are("checkpoint", None, "")
    head_width = np.where(np.isfinite(head_width), head_width, np.where(ours, HEAD_WIDTH, np.nan))
    model = Architecture(width, layers, heads * head_width, vocab, length)
    params, tokens, trained = runs["params"], runs["tokens"], runs["params_trained"]
    flops = np.where(
        trained < params,  # adapters
        train_flops(params, tokens, model=model, trained=trained),
        train_flops(params, tokens, model=model),
    )
    shared = runs.are("algorithm", "synthetic-sharing") & (runs["synthetic_share"] > 0)
    kept = runs["synthetic_kept"]
    scored = flops / 3 * np.where(kept < 1, runs["synthetic_share"] / kept, 0.0)
    flops[shared] += scored[shared] + [_synthetic_flops(row) for row in runs.rows(shared)]
    return np.asarray(flops)


def _synthetic_flops(row: Mapping[str, Any]) -> float:
    """Of a run that shares synthetic text, to make its pool: every client trains a generator and writes."""
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


def _skews(runs: _Columns) -> Array:
    """The corrected skew of runs that stored that of their counts; NaN where their partition cannot be told.

    Clients that are iid by construction have none. Documents that are dealt by a Dirichlet's mixtures are rounded.
    """
    known = np.isfinite(runs["skew"]) & (runs["clients"] >= 2)
    mixed = runs.are("partition", "dirichlet")
    alike = runs.are("partition", "iid", "quantity") | (mixed & runs.are("concentration", math.inf))
    documents = runs["unique_tokens"] / (MICRO_DOCUMENT * runs["clients"])
    dealt = known & ~alike & mixed & runs.are("data", "micro") & runs.are("checkpoint", None, "") & (documents > 0)
    found = np.where(known & alike, 0.0, np.nan)
    chance = {
        count: dealing_noise(labels=MICRO_FAMILIES, documents=count, spread=MICRO_SPREAD)
        for count in np.unique(documents[dealt]).tolist()
    }
    pairs = zip(runs["skew"][dealt].tolist(), documents[dealt].tolist(), strict=True)
    found[dealt] = [corrected_skew(skew, chance[count]) for skew, count in pairs]
    return found


def _has(row: Mapping[str, Any], *names: str) -> bool:
    return all(_finite(row.get(name)) for name in names)


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
