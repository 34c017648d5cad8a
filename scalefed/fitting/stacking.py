"""How should the predictions of several laws be blended? Stacked weights from what each misses out of sample."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from scalefed.errors import check_level
from scalefed.fitting.backtest import decades, scale_columns
from scalefed.fitting.holdout import missed
from scalefed.fitting.result import Fit
from scalefed.fitting.weights import stacking_weights

_CUTS = (0.25, 0.5, 0.75, 1.0)  # decades below the largest run, at which laws are compared


def stack(
    fits: tuple[Fit, ...],
    runs: pd.DataFrame,
    train: pd.DataFrame,
    held: pd.DataFrame,
    *,
    columns: tuple[str, ...],
    least: int,
) -> np.ndarray:
    """Weights, at least 0 and summing to 1, with the least squared error of blended out-of-sample predictions.

    Args:
        fits: the laws, as fitted.
        runs: the runs they share.
        train: runs to fit in one hold-out; other hold-outs are made by scale.
        held: runs to predict in it.
        columns: the laws' columns, from which the scale is taken.
        least: fewest runs that may be fitted.
    """
    scale = decades(runs, scale_columns(runs, columns))
    folds = [(train, held)]
    for cut in _CUTS:
        top = scale > scale.max() - cut
        if 0 < top.sum() and (~top).sum() >= max(least, len(runs) // 2):
            folds.append((runs[~top], runs[top]))
    errors = []
    for inside, outside in folds:
        found = np.stack([missed(f, inside, outside) for f in fits], axis=1)
        errors.append(found / np.sqrt(len(found)))
    return stacking_weights(np.concatenate(errors))


@dataclass(frozen=True, eq=False)
class Blend:
    """Several fits with weights; predicts their weighted mean.

    Attributes:
        fits: the fits.
        weights: one each, at least 0, summing to 1.
    """

    fits: tuple[Fit, ...]
    weights: tuple[float, ...]

    def predict(self, runs: Any = None, *, level: float = 0.9, **columns: ArrayLike) -> pd.DataFrame:
        """The blended prediction with a band: each fit's own band and their disagreement.

        Args:
            runs: as for :meth:`Fit.predict`.
            level: coverage of the band.
            columns: as for :meth:`Fit.predict`.
        """
        check_level(level)
        tables = [np.log(f.predict(runs, level=level, parts=False, **columns)) for f in self.fits]
        w = np.array(self.weights)[:, None]
        logs = {c: np.stack([t[c].to_numpy() for t in tables]) for c in ("estimate", "low", "high")}
        centre = (w * logs["estimate"]).sum(axis=0)
        apart = (w * (logs["estimate"] - centre) ** 2).sum(axis=0)
        down = np.sqrt((w * (logs["estimate"] - logs["low"]) ** 2).sum(axis=0) + apart)
        up = np.sqrt((w * (logs["high"] - logs["estimate"]) ** 2).sum(axis=0) + apart)
        table = {"estimate": centre, "low": centre - down, "high": centre + up}
        return np.exp(pd.DataFrame(table, index=tables[0].index))
