"""Which numbers must travel with a page so that it can answer questions on its own?

The law as its terms, its parameters with all replicates, the other laws that widen its bands, the noise, the range of
the runs, the link to pass@k, and what the runs settle of a question: what :mod:`scalefed.allocation.planning` looks at.
The scripts beside this module compute the same answers from them.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from scalefed.allocation.answers import ALIKE, WIDEST
from scalefed.allocation.cost import PowerSum, cost_of
from scalefed.allocation.defaults import columns_and_texts
from scalefed.allocation.defaults import question as settle
from scalefed.allocation.extrapolation import LINEAR, LINEAR_SLACK, PHRASES, column_of, look, most_passes, ranges_behind
from scalefed.allocation.mixture import shares, values_of
from scalefed.allocation.program import ROUND_COLUMNS
from scalefed.downstream.link import Link
from scalefed.errors import FitError
from scalefed.fitting.alternative import EDGE
from scalefed.fitting.backtest import DRIFTS, NEAR, BackTest, aside_of
from scalefed.fitting.result import Fit
from scalefed.laws import Law
from scalefed.units import train_flops

LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
"""Coverages of intervals that a page offers."""
_DIGITS = 8  # of parameters: sizes to 1e-6, far below the 0.5% that a page may be off
_KNOWN = ("clients", "clients_per_round", "skew", "local_steps", "batch_tokens", "unique_tokens")


def planner_numbers(fit: Fit, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the planner of a page computes with, as plain numbers, lists and words.

    Args:
        fit: a fit.
        asked: the question that the page opens with, as ``fit.optimal_size`` takes it.

    Raises:
        FitError: the runs do not settle what the question leaves out.
    """
    from scipy.special import ndtri

    budget, setting, notes = settle(fit.law, fit.runs, asked)
    given = {name: float(value) for name in _KNOWN if (value := getattr(setting, name)) is not None}
    assumed = {name: note for note in notes if (name := note.split(" = ")[0]) in _KNOWN}
    degrees = fit.degrees_of_freedom
    laws = [
        _law(one.law, {name: _short(series[rows]) for name, series in values_of(one).items()})
        for one, rows in shares(fit)
    ]
    return {
        "law": {
            **laws[0],
            "name": fit.law.name,
            "in_rounds": bool(ROUND_COLUMNS & set(fit.law.columns)),
        },
        "mixed": laws[1:],
        "alternatives": _alternatives(fit),
        "column_tests": [
            {"column": test.column, **_law(fit.law, {name: _short([value]) for name, value in test.params.items()})}
            for test in fit.column_tests
        ],
        "noise": {"at": list(fit.noise_by_loss[0]), "size": list(fit.noise_by_loss[1])},
        "reach": {
            "scale": list(fit.backtest.scale),
            "ends": [[fit.backtest.low, fit.backtest.high], *map(list, fit.backtest.ranges)],
            "errors": list(fit.backtest.errors),
            "drift": _drift(fit.backtest),
            "near": NEAR,
        },
        "scores": _short(ndtri((np.arange(count) + 0.5) / count)) if (count := len(fit.replicates)) else [],
        "quantiles": {f"{level:g}": _tails(level, degrees) for level in LEVELS},
        "setting": {
            "given": given,
            "cost": _power(setting.per_token),
            "total": None if setting.total is None else _power(setting.total),
            "bytes_per_value": setting.bytes_per_value,
            "trained_share": setting.trained_share,
            "vocab": setting.vocab,
            "width_per_layer": setting.width_per_layer,
        },
        "assumed": assumed,
        "notes": [note for note in notes if note not in assumed.values()],
        "measured": measured(fit.runs),
        "ranges": _ranges(fit),
        "texts": list(look(fit.law, ranges_behind(fit), columns_and_texts(fit.law, fit.runs, asked)[1], ())[0]),
        "seen_passes": most_passes(ranges_behind(fit)),
        "smallest_compute": _computes(fit.runs)[0],
        "largest_compute": largest_compute(fit.runs),
        "exact": _exact(fit.runs),
        "link": None if fit.link is None else _link(fit.link),
        "level": 0.95,
        "given": fit.given,
        "widest": WIDEST,
    }


def measured(runs: pd.DataFrame) -> dict[str, list[float]]:
    """The smallest and the largest params and tokens of the runs."""
    found = {}
    for name in ("params", "tokens"):
        if name in runs and len(runs):
            values = runs[name].to_numpy(dtype=np.float64)
            found[name] = [float(np.nanmin(values)), float(np.nanmax(values))]
    return found


def _ranges(fit: Fit) -> dict[str, dict[str, Any]]:
    """What the runs had of every column that a page may ask, and how a number of it reads."""
    ranges, found = ranges_behind(fit), {}
    for name in (*PHRASES, "trained_share", *fit.law.columns):
        column = column_of(name, ranges, fit.law, [test.column for test in fit.column_tests])
        told = {
            end: value if math.isfinite(value) else None for end, value in (("low", column.low), ("high", column.high))
        }
        found[name] = {**asdict(column), **told, "linear": column.linear, "constant": column.constant,
                       "slack": LINEAR_SLACK if name in LINEAR else 0.0, "phrases": column.phrases}  # fmt: skip
    return found


def largest_compute(runs: pd.DataFrame) -> float:
    """FLOPs of the largest run, 6 N D; a billion where the runs do not say."""
    return _computes(runs)[1]


def _computes(runs: pd.DataFrame) -> tuple[float, float]:
    size = next((name for name in ("params", "params_total") if name in runs), None)
    if size is None or "tokens" not in runs:
        return 1e9, 1e9
    spent = train_flops(runs[size].to_numpy(dtype=float), runs["tokens"].to_numpy(dtype=float))
    return float(np.nanmin(spent)), float(np.nanmax(spent))


# ---------------------------------------------------------------------- parts
def _law(law: Law, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "terms": [asdict(term) for term in law.bound_terms],
        "positive": sorted(law.positive),
        "columns": list(law.columns),
        "free": list(law.free) or list(law.parameters),
        "fixed": dict(law.fixed),
        "values": dict(values),
    }


def _alternatives(fit: Fit) -> list[dict[str, Any]]:
    """The laws whose disagreement widens the band, each with its weight in the variance."""
    return [
        {
            **_law(one.law, {name: [float(one.params[name])] for name in one.law.free}),
            "weight": one.widens**2,
            "edge": EDGE,
        }
        for one in fit.alternatives
        if one.widens
    ]


def _drift(test: BackTest) -> list[list[float]]:
    """Of the best size, down and up: as the scale of the runs grew, and as params and tokens did."""
    if not np.isfinite(test.drift).all():
        return [[0.0, 0.0], [0.0, 0.0]]
    return [[DRIFTS * one for one in sides] for sides in (test.drift, (aside_of(test),) * 2)]


def _tails(level: float, degrees: float) -> dict[str, float]:
    """How many standard deviations hold this share: of noise that was estimated, and of a normal distribution."""
    from scipy.special import ndtri, stdtrit

    return {"t": float(stdtrit(degrees, (1 + level) / 2)), "normal": float(ndtri((1 + level) / 2))}


def _power(power: PowerSum) -> dict[str, list[float]]:
    return {"coefficients": list(power.coefficients), "exponents": list(power.exponents)}


def _exact(runs: pd.DataFrame) -> dict[str, Any] | None:
    if "compute_exact" not in runs:
        return None
    try:
        return {**_power(cost_of(runs, "compute_exact").per_token), "alike": ALIKE}
    except FitError:
        return None


def _link(link: Link) -> dict[str, Any]:
    model, single = link.shifts()
    covariates = link.curve.covariates
    names, centers = (covariates.names, covariates.centers) if covariates else ((), ())
    return {
        "center": link.curve.center,
        "scale": link.curve.scale,
        "mean": link.curve.mean,
        "floor": link.curve.floor,
        "covariates": [{"name": name, "center": center} for name, center in zip(names, centers, strict=True)],
        "theta": link.curve.theta[0].tolist(),
        "replicates": [_short(row) for row in link.replicates.theta],
        "discrepancy": link.discrepancy.tolist(),
        "observed": list(link.observed),
        "model": [_short(row) for row in model],
        "single": [_short(row) for row in single],
    }


def _short(values: Any) -> list[float]:
    """Numbers to as many digits as the answers need; JSON has no NaN, so none may be there.

    >>> _short([1 / 3])
    [0.33333333]
    """
    rounded = [float(f"{value:.{_DIGITS}g}") for value in values]
    if not all(map(math.isfinite, rounded)):
        raise FitError("a parameter's replicate is not finite; fit again")
    return rounded
