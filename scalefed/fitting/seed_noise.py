"""How much of the noise do seeds make, and how much is the law's lack of fit? Told by runs that repeat a setting."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scalefed.laws import Law
from scalefed.laws.parser import MAY_BE_ZERO

_FEWEST = 3  # degrees of freedom between seeds


@dataclass(frozen=True, slots=True)
class SeedNoise:
    """Two components of the variance of log residuals.

    Attributes:
        seeds: standard deviation between runs of one setting.
        lack_of_fit: standard deviation of what the law misses of the settings' means.
        settings: settings that several runs repeat.
    """

    seeds: float
    lack_of_fit: float
    settings: int


def seed_noise_of(
    runs: pd.DataFrame, law: Law, params: Mapping[str, float], target: str, weights: np.ndarray | None = None
) -> SeedNoise | None:
    """Seed noise and lack of fit, by a one-way analysis of variance of the log residuals; None without repeats.

    Settings are alike where the law's columns are; columns that are measured, such as skew, to a twentieth.

    Args:
        runs: the fitted runs.
        law: the law.
        params: its estimates.
        target: the column that it explains.
        weights: (n,) of the runs in the fit, or None for 1 each.

    Source: Fisher 1925 for the decomposition; the components by the method of moments.
    """
    columns = list(law.columns)
    if not columns or not {*columns, target} <= set(runs.columns) or len(runs) < 2:
        return None
    key = runs[columns].astype(float)
    measured = [name for name in columns if name in MAY_BE_ZERO]
    key[measured] = (20.0 * key[measured]).round()
    residuals = np.log(runs[target].to_numpy(float)) - np.log(law.predict(params, runs))
    labels = key.groupby(columns, sort=False).ngroup().to_numpy()
    sizes = np.bincount(labels)
    inner, between = len(runs) - len(sizes), len(sizes) - len(law.free)
    if inner < _FEWEST or between < 1:
        return None
    own = np.ones(len(runs)) if weights is None else weights
    share = np.bincount(labels, own) / sizes
    means = np.bincount(labels, residuals) / sizes
    spread = np.bincount(labels, (residuals - means[labels]) ** 2)
    seeds = float(np.sum(share * spread) / np.sum(share * (sizes - 1)))
    missed = float(np.sum(share * means**2) / np.sum(share) * len(sizes) / between)
    chance = float(np.sum(share * seeds / sizes) / np.sum(share))
    return SeedNoise(float(np.sqrt(seeds)), float(np.sqrt(max(missed - chance, 0.0))), int(np.sum(sizes > 1)))
