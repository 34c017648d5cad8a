"""Which law should be believed? Error on held-out larger runs, information criteria, and weights for a blend."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalefed.errors import ConfigError, DataError
from scalefed.fitting.backtest import decades, scale_columns
from scalefed.fitting.data import prepare, read_frame
from scalefed.fitting.fitted import Fit, check_level
from scalefed.fitting.problem import Problem
from scalefed.fitting.result import weights_for
from scalefed.fitting.solver import Solver
from scalefed.fitting.starts import global_fit

_CUTS = (0.25, 0.5, 0.75, 1.0)
_TOP_SHARE = 0.2
_MOST_HELD = 0.4
_SUM_TO_ONE = 1e3
_TOWARDS_EQUAL = 0.5


def compare(*fits: Fit, holdout: Any = None) -> pd.DataFrame:
    """One row a fit: how well each law, refitted without the held-out runs, predicts them.

    All laws are fitted to the same runs and predict the same runs, each with its own robustness and focus.

    Args:
        fits: two fits or more of the same target.
        holdout: which runs to hold out: None for the largest decade of scale (params x tokens), or the largest fifth
            where a decade is too much; a share in (0, 1) of the largest runs; the name of a column, whose largest
            value is held out (``"tokens"`` for the largest budget); or the held-out runs themselves.

    Returns:
        Index: names of the laws. ``holdout_error`` (median absolute relative error), ``holdout_rms``,
        ``holdout_bias`` (positive where runs are worse than predicted), ``held_out`` (runs), ``parameters``, ``aic``
        and ``bic`` (all runs, Huber likelihood), ``weight`` (share of each law in the best blend of their
        out-of-sample predictions), ``status``.

    Raises:
        ConfigError: fewer than two fits, of different targets, or a holdout that cannot be understood.
        DataError: the fits share no runs, or holding out leaves too few.
    """
    if len(fits) < 2 or not all(isinstance(f, Fit) for f in fits):
        raise ConfigError(f"compare needs at least two fits, got {len(fits)}: compare(fit(...), fit(...))")
    if len({f.target for f in fits}) > 1:
        raise ConfigError(f"the fits explain different columns: {', '.join(sorted({f.target for f in fits}))}")
    runs = _shared_runs(fits)
    most = max(len(f.law.free) for f in fits)
    train, held = split(runs, holdout, needed=_columns(fits), least=most + 2)
    rows = {}
    for label, f in zip(_labels(fits), fits, strict=True):
        missed = _missed(f, train, held)
        nll = _negative_log_likelihood(f, runs)
        size = len(f.law.free) + 1
        rows[label] = {
            "holdout_error": float(np.median(np.abs(np.expm1(missed)))),
            "holdout_rms": float(np.sqrt(np.mean(np.expm1(missed) ** 2))),
            "holdout_bias": float(np.mean(np.expm1(missed))),
            "held_out": len(held),
            "parameters": len(f.law.free),
            "aic": 2.0 * nll + 2.0 * size,
            "bic": 2.0 * nll + np.log(len(runs)) * size,
            "weight": 0.0,
            "status": f.status.name.lower(),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["weight"] = _stacking(fits, runs, train, held, least=most + 2)
    return table


def split(
    runs: pd.DataFrame, holdout: Any, *, needed: tuple[str, ...], least: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and held-out runs.

    Args:
        runs: all runs.
        holdout: see :func:`compare`.
        needed: columns of the laws, from which the scale is taken.
        least: fewest training runs.

    Raises:
        ConfigError: a holdout that cannot be understood.
        DataError: nothing is held out or too little is left.
    """
    if isinstance(holdout, pd.DataFrame):
        train = runs[~runs["run_id"].isin(holdout["run_id"])] if {"run_id"} <= set(runs) & set(holdout) else runs
        held = holdout
    elif isinstance(holdout, str):
        if holdout not in runs.columns:
            raise ConfigError(f"holdout {holdout!r} is no column of the runs; give a column such as 'tokens'")
        top = runs[holdout] == runs[holdout].max()
        train, held = runs[~top], runs[top]
    else:
        top = _largest(runs, holdout, needed)
        train, held = runs[~top], runs[top]
    if len(held) == 0 or len(train) < least:
        raise DataError(
            f"holding out leaves {len(train)} of {len(runs)} runs to fit and {len(held)} to predict; the laws need at "
            f"least {least} and 1: hold out fewer, for example holdout=0.1, or give more runs"
        )
    return train, held


def _largest(runs: pd.DataFrame, holdout: Any, needed: tuple[str, ...]) -> np.ndarray:
    scale = decades(runs, scale_columns(runs, needed))
    if holdout is None:
        top = scale > scale.max() - 1.0
        if 0 < top.sum() <= _MOST_HELD * len(runs):
            return np.asarray(top)
        holdout = _TOP_SHARE
    if isinstance(holdout, bool) or not isinstance(holdout, (int, float)) or not 0.0 < holdout < 1.0:
        raise ConfigError(
            f"holdout must be None, a share in (0, 1), a column's name or a DataFrame of runs, got {holdout!r}"
        )
    count = max(1, round(holdout * len(runs)))
    return np.asarray(scale >= np.sort(scale)[-count])


def _shared_runs(fits: tuple[Fit, ...]) -> pd.DataFrame:
    first = fits[0].runs
    if all(len(f.runs) == len(first) and f.run_ids == fits[0].run_ids for f in fits):
        wide = max((f.runs for f in fits), key=lambda r: r.shape[1])
        return wide.reset_index(drop=True)
    shared = set(fits[0].run_ids).intersection(*(f.run_ids for f in fits[1:]))
    if not shared or "run_id" not in first.columns:
        raise DataError("the fits share no runs; fit all laws to the same runs, then compare")
    return first[first["run_id"].astype(str).isin(shared)].reset_index(drop=True)


def _columns(fits: tuple[Fit, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c for f in fits for c in f.law.columns))


def _labels(fits: tuple[Fit, ...]) -> list[str]:
    names = [f.law.name for f in fits]
    labels = []
    for i, f in enumerate(fits):
        label = names[i]
        if names.count(label) > 1 and f.focus:
            label += f" (focus {f.focus:g})"
        labels.append(label if label not in labels else f"{label} #{i + 1}")
    return labels


def _missed(f: Fit, train: pd.DataFrame, held: pd.DataFrame) -> np.ndarray:
    """Log errors on the held-out runs of the law refitted to the training runs."""
    data = prepare(train, f.law, target=f.target, warn=False)
    problem = Problem(data.law, data.columns, np.log(data.target), weights_for(data.columns, data.law, f.focus))
    best = global_fit(problem, delta=f.robust, seed=f.seed)
    values = dict(zip(problem.names, problem.to_values(best.theta[None])[0], strict=True))
    frame, _ = read_frame(held)
    test = prepare_held(frame, data.law.columns, f.target)
    return np.asarray(np.log(test[f.target].to_numpy(float)) - np.log(data.law.predict(values, test)))


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


def _negative_log_likelihood(f: Fit, runs: pd.DataFrame) -> float:
    """Under the density exp(-huber(r)/s)/Z(s), its scale s at the maximum; Gauss and Laplace are its ends.

    Args:
        f: the fit; its parameters are taken as they are.
        runs: the runs that all fits share.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import erf

    r = np.log(runs[f.target].to_numpy(float)) - np.log(f.law.predict(f.params, runs))
    if not np.isfinite(f.robust):
        return float(0.5 * len(r) * (np.log(2 * np.pi * max(float(np.mean(r**2)), 1e-300)) + 1.0))
    delta = f.robust
    total = float(Solver.huber(r, delta).sum())

    def value(log_scale: float) -> float:
        s = np.exp(log_scale)
        middle = np.sqrt(2 * np.pi * s) * erf(delta / np.sqrt(2 * s))
        tails = 2 * s / delta * np.exp(-(delta**2) / (2 * s))
        return float(total / s + len(r) * np.log(middle + tails))

    centre = np.log(max(total / len(r), 1e-300))
    return float(minimize_scalar(value, bounds=(centre - 10.0, centre + 10.0), method="bounded").fun)


# -- blends ----------------------------------------------------------------------------------------------------------
def _stacking(
    fits: tuple[Fit, ...], runs: pd.DataFrame, train: pd.DataFrame, held: pd.DataFrame, *, least: int
) -> np.ndarray:
    """Weights, at least 0 and summing to 1, with the least squared error of blended out-of-sample predictions."""
    scale = decades(runs, scale_columns(runs, _columns(fits)))
    folds = [(train, held)]
    for cut in _CUTS:
        top = scale > scale.max() - cut
        if 0 < top.sum() and (~top).sum() >= max(least, len(runs) // 2):
            folds.append((runs[~top], runs[top]))
    errors = []
    for inside, outside in folds:
        missed = np.stack([_missed(f, inside, outside) for f in fits], axis=1)
        errors.append(missed / np.sqrt(len(missed)))
    return stacking_weights(np.concatenate(errors))


def stacking_weights(errors: np.ndarray) -> np.ndarray:
    """Weights on the simplex that make the blended error smallest, drawn a little towards equal weights.

    Args:
        errors: (points, laws) out-of-sample errors.

    Source: Breiman 1996, stacked regressions.

    >>> stacking_weights(np.array([[1.0, -1.0], [1.0, -1.0]])).round(3).tolist()
    [0.5, 0.5]
    """
    from scipy.optimize import nnls

    laws = errors.shape[1]
    size = np.sqrt(np.sum(errors**2, axis=0).min()) + 1e-300
    ridge = _TOWARDS_EQUAL * size * np.eye(laws)
    matrix = np.concatenate([errors, ridge, _SUM_TO_ONE * size * np.ones((1, laws))])
    target = np.concatenate([np.zeros(len(errors)), ridge.sum(axis=1) / laws, [_SUM_TO_ONE * size]])
    weights, _ = nnls(matrix / size, target / size)
    return np.asarray(weights / weights.sum())


@dataclass(frozen=True, eq=False)
class Blend:
    """Several fits with weights; predicts their weighted mean.

    Attributes:
        fits: the fits.
        weights: one each, at least 0, summing to 1.
    """

    fits: tuple[Fit, ...]
    weights: tuple[float, ...]

    def predict(self, runs: Any = None, *, level: float = 0.9, **columns: Any) -> pd.DataFrame:
        """The blended prediction with a band: each fit's own band and their disagreement.

        Args:
            runs: as for :meth:`Fit.predict`.
            level: coverage of the band.
            columns: as for :meth:`Fit.predict`.
        """
        check_level(level)
        tables = [np.log(f.predict(runs, level=level, **columns)) for f in self.fits]
        w = np.array(self.weights)[:, None]
        logs = {c: np.stack([t[c].to_numpy() for t in tables]) for c in ("estimate", "low", "high")}
        centre = (w * logs["estimate"]).sum(axis=0)
        apart = (w * (logs["estimate"] - centre) ** 2).sum(axis=0)
        down = np.sqrt((w * (logs["estimate"] - logs["low"]) ** 2).sum(axis=0) + apart)
        up = np.sqrt((w * (logs["high"] - logs["estimate"]) ** 2).sum(axis=0) + apart)
        table = {"estimate": centre, "low": centre - down, "high": centre + up}
        return np.exp(pd.DataFrame(table, index=tables[0].index))


def blend(*fits: Fit, weights: Any = None, holdout: Any = None) -> Blend:
    """Fits blended for prediction; by default with the weights that :func:`compare` finds.

    Args:
        fits: two fits or more of the same target.
        weights: one each, at least 0; None to stack.
        holdout: as for :func:`compare`.

    Raises:
        ConfigError: weights of the wrong number or sign.
    """
    if weights is None:
        weights = compare(*fits, holdout=holdout)["weight"].to_numpy()
    values = np.asarray(weights, dtype=float)
    if values.shape != (len(fits),) or (values < 0).any() or not values.sum() > 0:
        raise ConfigError(f"weights must be {len(fits)} numbers of at least 0, not all 0, got {weights!r}")
    return Blend(tuple(fits), tuple(map(float, values / values.sum())))
