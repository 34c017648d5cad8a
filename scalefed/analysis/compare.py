"""Which law should be believed? Error on held-out larger runs, information criteria, and weights for a blend."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scalefed.downstream.alternatives import rates
from scalefed.downstream.fit import link_runs
from scalefed.errors import ConfigError, DataError, check_level, refuses_old_words
from scalefed.fitting.holdout import Prediction, predict_held, split
from scalefed.fitting.result import Fit
from scalefed.fitting.solver import Solver
from scalefed.fitting.stacking import Blend, stack


@refuses_old_words
def compare(
    *fits: Fit,
    holdout: Any = None,
    level: float = 0.9,
    counts: pd.DataFrame | None = None,
    covariates: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> pd.DataFrame:
    """One row a fit: how well each law, refitted without the held-out runs, predicts them.

    All laws are fitted to the same runs and predict the same runs, each with its own huber_delta, scale_weight and
    fixed parameters.

    Args:
        fits: two fits or more of the same target.
        holdout: which runs to hold out: None for the largest decade of scale (params x tokens), or the largest fifth
            where a decade is too much; a share in (0, 1) of the largest runs; the name of a column, of which values
            within 2% of the largest are held out (``"tokens"`` for the largest budget); a condition such as
            ``"compute >= 1e13"``; a mask or a function of the runs that gives one; or the held-out runs themselves.
        level: coverage of the bands whose hits are counted.
        counts: success counts by run and problem (``run_id, task_id, samples, correct``, from :func:`load_counts`);
            then each law's predicted losses are also turned into pass@1, by a link fitted to the training runs.
        covariates: columns that this link looks at beside the loss, of those that each law has.
        settings: columns in which runs agree that differ by chance alone, such as ``["params", "tokens_asked",
            "clients_per_round", "concentration"]`` for several seeds; then the laws are also held against the
            geometric means of such runs.

    Returns:
        Index: names of the laws. ``holdout_error`` (median absolute relative error), ``holdout_rms``,
        ``holdout_bias`` (positive where runs are worse than predicted), ``coverage`` (share of held-out runs inside
        their band) and ``width`` (median, relative), ``held_out`` (runs), ``parameters``, ``aic`` and ``bic`` (all
        runs, Huber likelihood), ``weight`` (share of each law in the best blend of their out-of-sample predictions),
        ``status`` (of the fit) and ``training_status`` (of the law without the held-out runs). With settings also
        ``mean_error`` (median absolute relative error for their means) and ``means`` (how many). With counts also
        ``pass_at_1_error`` (median absolute, as a share of problems) and ``pass_at_1_coverage``.

    Raises:
        ConfigError: fewer than two fits, of different targets, a holdout that cannot be understood, or a column for
            settings that the runs do not have.
        DataError: the fits share no runs, or holding out leaves too few.
    """
    check_level(level)
    if len(fits) < 2 or not all(isinstance(f, Fit) for f in fits):
        raise ConfigError(f"compare needs at least two fits, got {len(fits)}: compare(fit(...), fit(...))")
    if len({f.target for f in fits}) > 1:
        raise ConfigError(f"the fits explain different columns: {', '.join(sorted({f.target for f in fits}))}")
    runs = _shared_runs(fits)
    columns, least = _columns(fits), max(len(f.law.free) for f in fits) + 2
    train, held = split(runs, holdout, needed=columns, least=least)
    rows = {}
    for label, f in zip(_labels(fits), fits, strict=True):
        found = predict_held(f, train, held, level=level)
        rows[label] = _row(f, runs, found)
        if settings:
            means = found.errors_of_means(settings)
            rows[label] |= {"mean_error": float(np.median(np.abs(means))), "means": len(means)}
        if counts is not None:
            rows[label] |= _passes(f, found, train, held, counts, covariates)
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["weight"] = stack(fits, runs, train, held, columns=columns, least=least)
    return table


def _row(f: Fit, runs: pd.DataFrame, found: Prediction) -> dict[str, Any]:
    nll = _negative_log_likelihood(f, runs)
    size = len(f.law.free) + 1
    return {
        "holdout_error": float(np.median(np.abs(found.errors))),
        "holdout_rms": float(np.sqrt(np.mean(found.errors**2))),
        "holdout_bias": float(np.mean(found.errors)),
        "coverage": found.coverage,
        "width": found.width,
        "held_out": len(found.runs),
        "parameters": len(f.law.free),
        "aic": 2.0 * nll + 2.0 * size,
        "bic": 2.0 * nll + np.log(len(runs)) * size,
        "weight": 0.0,
        "status": f.status.name.lower(),
        "training_status": found.fit.status.name.lower(),
    }


def _passes(
    f: Fit, found: Prediction, train: pd.DataFrame, held: pd.DataFrame, counts: pd.DataFrame, covariates: Sequence[str]
) -> dict[str, float]:
    """Pass@1 of the held-out runs from their predicted losses, with the losses' own uncertainty in the band."""
    covariates = [name for name in covariates if name in f.law.columns]
    link = link_runs(f.law, train, f.target, counts, covariates=covariates, resamples=200, seed=f.seed)
    if "run_id" not in held.columns:
        raise DataError("the held-out runs need run_id, which says whose success counts these are")
    rows = np.flatnonzero(held.loc[found.runs.index, "run_id"].isin(counts["run_id"]))
    if not len(rows):
        raise DataError("none of the held-out runs has success counts; load_counts reads those of a folder of runs")
    band, others = found.band.iloc[rows], found.runs.iloc[rows]
    centre = np.log(band["estimate"].to_numpy(dtype=float))
    ends = np.log(band[["low", "high"]].to_numpy(dtype=float))
    shares = (np.arange(len(link.replicates)) + 0.5) / len(link.replicates)
    draws = np.exp(centre + _spread(shares, found.level)[:, None] * np.nan_to_num(ends[:, 1] - ends[:, 0]) / 2)
    passes, tail = link.draw(draws, 1, covariates=others)[:, :, 0], (1 - found.level) / 2
    low, high = np.quantile(passes, [tail, 1 - tail], axis=0)
    estimate = link.predict(np.exp(centre), 1, covariates=others)["estimate"].to_numpy(dtype=float)
    ids = held.loc[found.runs.index[rows], "run_id"]
    observed = rates(counts[counts["run_id"].isin(ids)], [1])[1].loc[list(ids)].to_numpy(dtype=float)
    return {
        "pass_at_1_error": float(np.median(np.abs(observed - estimate))),
        "pass_at_1_coverage": float(np.mean((low <= observed) & (observed <= high))),
    }


def _spread(shares: np.ndarray, level: float) -> np.ndarray:
    """Normal quantiles of shares, in units of half a band of that level, in an order that has no trend."""
    from scipy.special import ndtri

    golden = np.argsort((np.arange(len(shares)) * 0.6180339887498949) % 1.0)
    return np.asarray(ndtri(shares)[golden] / ndtri((1 + level) / 2))


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
        if names.count(label) > 1 and f.scale_weight:
            label += f" (scale_weight {f.scale_weight:g})"
        labels.append(label if label not in labels else f"{label} #{i + 1}")
    return labels


def _negative_log_likelihood(f: Fit, runs: pd.DataFrame) -> float:
    """Under the density exp(-huber(r)/s)/Z(s), its scale s at the maximum; Gauss and Laplace are its ends.

    Args:
        f: the fit; its parameters are taken as they are.
        runs: the runs that all fits share.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import erf

    r = np.log(runs[f.target].to_numpy(float)) - np.log(f.law.predict(f.params, runs))
    if not np.isfinite(f.huber_delta):
        return float(0.5 * len(r) * (np.log(2 * np.pi * max(float(np.mean(r**2)), 1e-300)) + 1.0))
    widths = np.array([f.huber_delta, f.huber_delta * f.huber_above])  # below the law and above it
    total = float(Solver.huber(r, *widths).sum())

    def value(log_scale: float) -> float:
        s = np.exp(log_scale)
        middle = np.sqrt(2 * np.pi * s) * erf(widths / np.sqrt(2 * s))
        tails = 2 * s / widths * np.exp(-(widths**2) / (2 * s))
        return float(total / s + len(r) * np.log(np.mean(middle + tails)))

    centre = np.log(max(total / len(r), 1e-300))
    return float(minimize_scalar(value, bounds=(centre - 10.0, centre + 10.0), method="bounded").fun)


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
