"""Which runs are held out, and how well does a law fitted to the others predict them?"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalefed.errors import ConfigError, DataError, FitWarning, nearest
from scalefed.fitting.backtest import decades, scale_columns
from scalefed.fitting.data import prepare, read_frame
from scalefed.fitting.fit import fit
from scalefed.fitting.initialisation import global_fit
from scalefed.fitting.result import Fit
from scalefed.fitting.weights import problem_of

_TOP_SHARE = 0.2  # held out where runs have no common largest budget
_MOST_HELD = 0.4  # a law needs most of its runs
_SAME_BUDGET = 0.02  # relative: rounding of tokens to whole rounds changes a budget by less
_REPLICATES = 200  # enough for the ends of a 95% interval; more than that changes its third digit
_CONDITION = re.compile(r"\s*(\w+)\s*(>=|>)\s*([-+0-9.eE]+)\s*")


def split(
    runs: pd.DataFrame, holdout: Any, *, needed: tuple[str, ...], least: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and held-out runs.

    Args:
        runs: all runs.
        holdout: see :func:`compare.compare`.
        needed: columns of the laws, from which the scale is taken.
        least: fewest training runs.

    Raises:
        ConfigError: a holdout that cannot be understood.
        DataError: nothing is held out or too little is left.
    """
    if isinstance(holdout, pd.DataFrame):
        train = runs[~runs["run_id"].isin(holdout["run_id"])] if {"run_id"} <= set(runs) & set(holdout) else runs
        held = holdout
    else:
        top = _named(runs, holdout) if isinstance(holdout, str) else _chosen(runs, holdout, needed)
        train, held = runs[~top], runs[top]
    if len(held) == 0 or len(train) < least:
        raise DataError(
            f"holding out leaves {len(train)} of {len(runs)} runs to fit and {len(held)} to predict; the laws need at "
            f"least {least} and 1: hold out fewer, for example holdout=0.1, or give more runs"
        )
    return train, held


def _named(runs: pd.DataFrame, holdout: str) -> np.ndarray:
    """Rows at the largest value of a column, or beyond a number: ``"tokens"`` or ``"compute >= 1e13"``."""
    condition = _CONDITION.fullmatch(holdout)
    name = condition.group(1) if condition else holdout
    if name not in runs.columns or not pd.api.types.is_numeric_dtype(runs[name]):
        raise ConfigError(
            f"holdout {holdout!r} is no column of numbers among the runs and no condition such as 'compute >= 1e13'; "
            f"{nearest(name, map(str, runs.columns))}"
        )
    values = runs[name].to_numpy(dtype=float)
    if condition is None:
        top = float(np.nanmax(values))
        return np.asarray(values >= top - _SAME_BUDGET * abs(top))
    try:
        limit = float(condition.group(3))
    except ValueError:
        raise ConfigError(f"holdout {holdout!r} compares {name} with something that is no number") from None
    return np.asarray(values >= limit if condition.group(2) == ">=" else values > limit)


def _chosen(runs: pd.DataFrame, holdout: Any, needed: tuple[str, ...]) -> np.ndarray:
    """Rows that a mask or a function of the runs marks, or the largest by scale."""
    found = holdout(runs) if callable(holdout) else holdout
    if not isinstance(found, (np.ndarray, pd.Series, list)):
        return _largest(runs, holdout, needed)
    mask = np.asarray(found)
    if mask.shape != (len(runs),) or mask.dtype != np.bool_:
        raise ConfigError(f"holdout as a mask needs one True or False for each of {len(runs)} runs, got {mask.shape}")
    return mask


def _largest(runs: pd.DataFrame, holdout: Any, needed: tuple[str, ...]) -> np.ndarray:
    scale = decades(runs, scale_columns(runs, needed))
    if holdout is None:
        top = scale > scale.max() - 1.0
        if 0 < top.sum() <= _MOST_HELD * len(runs):
            return np.asarray(top)
        holdout = _TOP_SHARE
    if isinstance(holdout, bool) or not isinstance(holdout, (int, float)) or not 0.0 < holdout < 1.0:
        raise ConfigError(
            "holdout must be None, a share in (0, 1), a column's name, a condition such as 'compute >= 1e13', a mask, "
            f"a function of the runs or a DataFrame of runs, got {holdout!r}"
        )
    count = max(1, round(holdout * len(runs)))
    return np.asarray(scale >= np.sort(scale)[-count])


def prepare_held(frame: pd.DataFrame, columns: tuple[str, ...], target: str) -> pd.DataFrame:
    """Held-out runs with everything that is needed to score a prediction.

    Raises:
        DataError: a column is missing, or no run is left.
    """
    missing = [c for c in (*columns, target) if c not in frame.columns]
    if missing:
        raise DataError(f"the held-out runs have no column {', '.join(missing)}")
    kept = frame[[*columns, target]].astype(float)
    kept = kept[np.isfinite(kept).all(axis=1) & (kept[target] > 0)]
    if not len(kept):
        raise DataError(f"none of the {len(frame)} held-out runs has a positive {target} and all of the law's columns")
    return kept


def missed(f: Fit, train: pd.DataFrame, held: pd.DataFrame) -> np.ndarray:
    """Log errors on the held-out runs of the law refitted to the training runs, without intervals."""
    data = prepare(train, f.law, target=f.target, warn=False)
    problem = problem_of(data.frame, data.law, data.target, f.scale_weight, f.huber_above)
    best = global_fit(problem, delta=f.huber_delta, seed=f.seed)
    values = dict(zip(problem.names, problem.to_values(best.theta[None])[0], strict=True))
    frame, _ = read_frame(held)
    test = prepare_held(frame, data.law.columns, f.target)
    return np.asarray(np.log(test[f.target].to_numpy(float)) - np.log(data.law.predict(values, test)))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a law that never saw the held-out runs says of them.

    Attributes:
        runs: the held-out runs that could be predicted, with all their columns.
        errors: (n,) relative, positive where runs are worse than predicted.
        band: ``estimate, low, high``, one row a held-out run; NaN ends where the fit has no replicates.
        level: nominal coverage of the band.
        fit: the law fitted to the training runs.
    """

    runs: pd.DataFrame
    errors: np.ndarray
    band: pd.DataFrame
    level: float
    fit: Fit

    @property
    def coverage(self) -> float:
        """Share of the held-out runs inside the band; NaN without replicates."""
        if self.band["low"].isna().any():
            return float("nan")
        seen = self.runs[self.fit.target].to_numpy(dtype=float)
        return float(np.mean((self.band["low"] <= seen) & (seen <= self.band["high"])))

    def errors_of_means(self, columns: Sequence[str]) -> np.ndarray:
        """Relative errors for the geometric means of runs that agree in some columns, one a group.

        A law predicts what such runs reach in the middle; the scatter of a single run is no fault of it.

        Raises:
            ConfigError: a column that the runs do not have.
        """
        for name in columns:
            if name not in self.runs.columns:
                raise ConfigError(f"the runs have no column {name!r}; {nearest(name, map(str, self.runs.columns))}")
        logs = pd.Series(np.log1p(self.errors), index=self.runs.index)
        groups = [self.runs[name] for name in columns]
        return np.asarray(np.expm1(logs.groupby(groups, dropna=False).mean()), dtype=float)

    @property
    def width(self) -> float:
        """Median width of the band relative to the prediction."""
        return float(((self.band["high"] - self.band["low"]) / self.band["estimate"]).median())


def predict_held(f: Fit, train: pd.DataFrame, held: pd.DataFrame, *, level: float = 0.9) -> Prediction:
    """Fit the law of ``f`` anew, in the same way, to the training runs, and predict the held-out ones.

    Args:
        f: a fit; its law (with what is fixed in it), huber_delta and scale_weight are used.
        train: runs to fit.
        held: runs to predict.
        level: coverage of the band.

    Raises:
        DataError: a column is missing, or no run is left.
    """
    resamples = min(len(f.replicates), _REPLICATES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        own = fit(
            train,
            f.law,
            target=f.target,
            huber_delta=f.huber_delta if np.isfinite(f.huber_delta) else None,
            huber_above=f.huber_above,
            scale_weight=f.scale_weight,
            resamples=resamples,
            seed=f.seed,
            cluster=f.cluster,
        )
    frame, _ = read_frame(held)
    test = prepare_held(frame, f.law.columns, f.target)
    band = own.predicted(test, level=level)
    if resamples < 2:
        band[["low", "high"]] = np.nan
    errors = test[f.target].to_numpy(dtype=float) / band["estimate"].to_numpy(dtype=float) - 1.0
    return Prediction(frame.loc[test.index], errors, band, level, own)
