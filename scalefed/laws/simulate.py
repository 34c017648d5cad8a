"""What would runs look like if a law were true? Draws run logs from a law, for tests, demos and power analysis."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scalefed.errors import ConfigError
from scalefed.laws import Law, as_law
from scalefed.seeds import rng
from scalefed.units import train_flops


def simulate_runs(
    law: "Law | str",
    parameters: Mapping[str, float],
    grid: "Mapping[str, Any] | pd.DataFrame",
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Runs drawn from a known law.

    Args:
        law: a Law, a name in ``LAWS``, or a formula.
        parameters: a value for every free parameter.
        grid: column -> values, crossed with each other; or a DataFrame with one row a run, taken as it is.
        noise: standard deviation of the log loss (0.01 is one percent).
        seed: of the noise.

    Returns:
        One row a run: ``run_id``, the grid's columns, ``compute`` (6 params tokens, FLOPs) and ``loss``.

    Raises:
        ConfigError: an unknown or missing parameter, or a negative noise.
        DataError: a column of the law is missing in the grid.

    >>> runs = simulate_runs("chinchilla", {"E": 1, "A": 8, "a": 0.5, "B": 0.1, "b": 0.5},
    ...                      {"params": [4.0, 16.0], "tokens": [1.0]})
    >>> runs["loss"].round(6).tolist()
    [5.1, 3.1]
    """
    law = as_law(law)
    unknown = [p for p in parameters if p not in law.parameters]
    missing = [p for p in law.free if p not in parameters]
    if unknown or missing:
        problem = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
        raise ConfigError(f"parameters of {law.name!r} are {', '.join(law.free)}; {problem}")
    if not noise >= 0:
        raise ConfigError(f"noise must be at least 0 (standard deviation of the log loss), got {noise!r}")
    if isinstance(grid, pd.DataFrame):
        frame = grid.reset_index(drop=True).copy()
    else:
        names = list(grid)
        levels = [np.atleast_1d(np.asarray(grid[name])).tolist() for name in names]
        frame = pd.DataFrame(list(itertools.product(*levels)), columns=names)
    columns = {str(c): frame[c].to_numpy(dtype=float) for c in law.columns if c in frame.columns}
    loss = np.broadcast_to(law.predict({p: parameters[p] for p in law.free}, columns), len(frame))
    frame["loss"] = loss * np.exp(noise * rng(seed, "simulated-noise").standard_normal(len(frame)))
    if {"params", "tokens"} <= set(frame.columns) and "compute" not in frame.columns:
        frame["compute"] = train_flops(frame["params"], frame["tokens"])
    if "run_id" not in frame.columns:
        frame.insert(0, "run_id", [f"simulated-{i:05d}" for i in range(len(frame))])
    return frame
