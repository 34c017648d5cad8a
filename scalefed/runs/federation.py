"""What do a table's columns say that it does not hold? Cohort, share and population; compute, size and tokens; skew.

Any two of ``clients``, ``clients_per_round`` and ``participation`` give the third, and any two of ``params``,
``tokens`` and ``compute`` (6 params tokens). A Dirichlet concentration and a number of clients give the skew, by
simulating the partition.
"""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from scalefed.errors import RunLogWarning
from scalefed.seeds import rng
from scalefed.skew import dirichlet_shares, measured_skew
from scalefed.units import train_flops

if TYPE_CHECKING:
    import pandas as pd

LABELS = 10
"""Equally common labels of a partition that is simulated for a table: what image sets and benchmarks of topics have."""
_DRAWS = 64  # partitions: the mean skew of 4 clients is known to 0.01, of more clients better
_FEWEST = 2000  # clients and draws together, enough for the same where clients are many


def filled(frame: "pd.DataFrame", what: str) -> "pd.DataFrame":
    """The frame with columns, and blanks in them, filled in where others say what they must be.

    Args:
        frame: one row a run; it is changed.
        what: the table's name in a message.
    """
    six = float(train_flops(1, 1))
    _fill(frame, "clients_per_round", ("clients", "participation"), lambda k, p: np.maximum(1.0, np.round(k * p)))
    _fill(frame, "clients", ("clients_per_round", "participation"), lambda m, p: np.round(m / p))
    _fill(frame, "participation", ("clients_per_round", "clients"), lambda m, k: m / k)
    _fill(frame, "tokens", ("compute", "params"), lambda c, n: c / (six * n))
    _fill(frame, "params", ("compute", "tokens"), lambda c, d: c / (six * d))
    _fill(frame, "compute", ("params", "tokens"), lambda n, d: six * n * d)
    if _fill(frame, "skew", ("concentration", "clients"), np.vectorize(simulated_skew, otypes=[float])):
        warnings.warn(
            f"{what}: skew is simulated from concentration and clients, for {LABELS} equally common labels and one "
            "Dirichlet mixture a client; where you have your partition, give a column skew (sf.measured_skew)",
            RunLogWarning,
            stacklevel=4,
        )
    return frame


@lru_cache(maxsize=4096)
def simulated_skew(concentration: float, clients: float) -> float:
    """The mean skew of clients whose mixtures of :data:`LABELS` labels are drawn by a Dirichlet.

    Args:
        concentration: of the Dirichlet, each label's; infinity is iid.
        clients: how many.

    >>> simulated_skew(math.inf, 16), simulated_skew(0.1, 1)
    (0.0, 0.0)
    >>> [round(simulated_skew(c, 16), 2) for c in (0.01, 0.1, 1.0, 10.0)]
    [0.87, 0.73, 0.36, 0.12]
    """
    count = round(clients)
    if math.isinf(concentration) or count < 2:
        return 0.0
    draw, prior = rng(0, "simulated-skew"), np.full(LABELS, 1 / LABELS)
    draws = max(1, min(_DRAWS, _FEWEST // count))
    found = [
        measured_skew(dirichlet_shares(prior, clients=count, concentration=concentration, draw=draw))
        for _ in range(draws)
    ]
    return float(np.mean(found))


def _fill(
    frame: "pd.DataFrame", name: str, sources: tuple[str, str], formula: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> bool:
    """Fill a column's blanks by a formula of two others where both are known; whether any was filled."""
    if not set(sources) <= set(frame.columns):
        return False
    if any(frame[one].dtype.kind not in "iuf" for one in (*sources, name) if one in frame.columns):
        return False
    first, second = (frame[one].to_numpy(dtype=float, na_value=np.nan) for one in sources)
    old = frame[name].to_numpy(dtype=float, na_value=np.nan) if name in frame.columns else np.full(len(frame), np.nan)
    blank = np.isnan(old) & ~np.isnan(first) & ~np.isnan(second) & (first > 0) & (second > 0)
    if not blank.any():
        return False
    values = old.copy()
    values[blank] = formula(first[blank], second[blank])
    frame[name] = values
    return True
