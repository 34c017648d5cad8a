"""What goes into a chart? Runs that can be drawn, names for their settings, and the lines of a fit through them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.errors import ConfigError, DataError
from scalefed.runs.derived import flops_per_token
from scalefed.runs.log import COLUMNS, load_runs, require

if TYPE_CHECKING:
    import pandas as pd

TITLES: Mapping[str, str] = {
    "params": "Model size (non-embedding parameters)",
    "tokens": "Training tokens, all clients",
    "compute": "Training compute, all clients (FLOPs)",
    "clients_per_round": "Clients per round",
    "loss": "Held-out loss (nats per token)",
    "bits_per_byte": "Held-out loss (bits per byte)",
    "train_loss": "Training loss (nats per token)",
    "pass_at_1": "pass@1",
    "pass_at_10": "pass@10",
    "round": "Round",
    "rounds": "Rounds",
    "skew": "Measured skew (0 iid, 1 disjoint)",
    "participation": "Participation (share of clients per round)",
    "local_steps": "Local steps",
    "bytes_sent": "Bytes on the wire, all clients",
    "wall_s": "Wall-clock time (s)",
}
SHORT: Mapping[str, str] = {
    "params": "Model size (parameters)",
    "tokens": "Training tokens",
    "compute": "Compute (FLOPs)",
}
TINY: Mapping[str, str] = {"params": "Parameters", "tokens": "Tokens", "compute": "FLOPs"}
"""Titles for narrow panels, and for very narrow ones."""
HELD = (
    "clients", "concentration", "skew", "local_steps", "batch_tokens", "unique_tokens", "sampled_tokens", "flops",
    "columns",
)  # fmt: skip
"""What charts of an advice hold fixed beside clients per round, as ``fit.optimal_size`` takes it."""
# sizes nearer than 5% are one; more than nine colours cannot be told apart, seven can
_SAME_SIZE, _MOST_SIZES, _BINS = 0.05, 9, 7
_MOST_ROWS = 2500
"""A chart of more runs than this draws every n-th of them, and says so."""


@dataclass(frozen=True)
class Shown:
    """What a chart draws.

    Attributes:
        runs: completed runs with finite values, and the helper columns ``size`` and ``mixture`` where they can be made.
        fit: the fit behind the lines, or None when only runs were given.
        left_out: how many runs were not completed or had no value.
        every: one run in so many is drawn.
    """

    runs: "pd.DataFrame"
    fit: Any
    left_out: int
    every: int = 1

    @property
    def target(self) -> str:
        """The column that the fit explains; ``loss`` without a fit."""
        return str(getattr(self.fit, "target", "loss")) if self.fit is not None else "loss"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the fit's law needs."""
        return tuple(self.fit.law.columns) if self.fit is not None else ()

    def note(self, text: str) -> list[str]:
        """A subtitle, with a word on what was left out."""
        extra = f"; {self.left_out} diverged or unmeasured left out" if self.left_out else ""
        extra += f"; one run in {self.every} is drawn" if self.every > 1 else ""
        return [f"{text}{extra}"] if text or extra else []


def is_fit(source: Any) -> bool:
    """Whether this is a fit: it predicts, and knows its law and its runs."""
    return all(hasattr(source, name) for name in ("predict", "law", "runs"))


def shown(source: Any, needed: Iterable[str]) -> Shown:
    """Runs or a fit, ready to draw.

    Args:
        source: a Fit, a DataFrame, or anything that :func:`scalefed.runs.log.load_runs` reads.
        needed: columns that must be there; rows without a finite value in them are left out and counted.

    Raises:
        DataError: a column is missing, or no row is left.
    """
    needed = list(needed)
    fit = source if is_fit(source) else None
    frame = load_runs(fit.runs if fit is not None else source)
    require(frame, needed, "the runs")
    total = len(frame)
    if "status" in frame:
        frame = frame[frame["status"].fillna("completed") == "completed"]
    numeric = [name for name in needed if name in COLUMNS and COLUMNS[name].dtype in ("int", "float")]
    finite = np.isfinite(frame[numeric].to_numpy(dtype=float, na_value=np.nan)).all(axis=1)
    frame = frame[finite]
    if frame.empty:
        raise DataError(
            f"no run can be drawn: of {total} none is completed with a finite {', '.join(numeric) or 'value'}"
        )
    complete = len(frame)
    every = math.ceil(complete / _MOST_ROWS)
    frame = frame.iloc[::every].copy()
    if "params" in frame:
        frame["size"] = same_size(frame["params"].to_numpy(dtype=float))
    if "concentration" in frame or "skew" in frame:
        frame["mixture"] = mixture(frame)
    return Shown(frame, fit, total - complete, every)


def same_size(values: np.ndarray) -> np.ndarray:
    """Values that differ by less than 5% as one, their geometric mean; more than nine of them in seven equal steps.

    >>> same_size(np.array([100.0, 102.0, 200.0])).round(1).tolist()
    [101.0, 101.0, 200.0]
    """
    order = np.argsort(values, kind="stable")
    logs = np.log(values[order])
    group = np.concatenate([[0], np.cumsum(np.diff(logs) > _SAME_SIZE)])
    if group[-1] >= _MOST_SIZES:
        steps = np.linspace(logs[0], logs[-1], _BINS + 1)[1:-1]
        group = np.unique(np.searchsorted(steps, logs), return_inverse=True)[1]
    means = np.exp(np.bincount(group, logs) / np.bincount(group))
    result = np.empty_like(values)
    result[order] = means[group]
    return result


def mixture(frame: "pd.DataFrame") -> "pd.Series[Any]":
    """How the clients' data differ, in words: by concentration where it is known, else by rounded skew."""
    if "concentration" in frame:
        return frame["concentration"].map(
            lambda value: "iid" if value is None or not math.isfinite(value) else f"Dirichlet {value:g}"
        )
    return frame["skew"].map(lambda value: "iid" if value < 0.02 else f"skew {round(float(value), 1):g}")


def mixtures(frame: "pd.DataFrame") -> list[str]:
    """The mixtures of the frame, iid first, then by growing difference."""

    def difference(name: str) -> float:
        number = float(name.split()[-1])
        return -number if name.startswith("Dirichlet") else number

    names = list(frame["mixture"].dropna().unique())
    return [name for name in names if name == "iid"] + sorted((n for n in names if n != "iid"), key=difference)


def predicted(view: Shown, rows: "pd.DataFrame") -> "pd.DataFrame":
    """Rows with the fit's ``estimate, low, high`` beside them.

    Of ``tokens`` and ``compute`` the one that is missing follows from ``params``, as the runs count compute; ``rounds``
    follow from tokens as in the runs; any other column that the law needs is held at its median over the runs.
    """
    rows = rows.reset_index(drop=True).copy()
    cost = flops_per_token(view.runs, "compute")(rows["params"])
    if "tokens" not in rows:
        rows["tokens"] = rows["compute"] / cost
    rows["compute"] = cost * rows["tokens"]
    for name in view.columns:
        if name in rows:
            continue
        per_round = (
            view.runs["tokens"] / (view.runs["rounds"] * view.runs["clients_per_round"]) if name == "rounds" else None
        )
        if per_round is not None and "clients_per_round" in rows:
            rows[name] = (rows["tokens"] / (per_round.median() * rows["clients_per_round"])).clip(lower=1.0)
        else:
            rows[name] = float(view.runs[name].median())
    bands = view.fit.predicted(rows)
    for name in ("estimate", "low", "high"):
        rows[name] = np.asarray(bands[name], dtype=float)
    return rows


def spread(low: float, high: float, count: int = 60) -> np.ndarray:
    """Points from low to high, evenly spaced in logarithms."""
    return np.geomspace(low, high, count)


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """The value, if it is one of those allowed.

    Raises:
        ConfigError: it is not.
    """
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")
    return value


def interval(result: Any, name: str) -> tuple[float, float, float]:
    """Estimate, low and high of one quantity of an optimum; all three the same where the fit has no replicates."""
    value, low, high = (float(getattr(result, name + end)) for end in ("", "_low", "_high"))
    return (value, low, high) if np.isfinite(low) else (value, value, value)
