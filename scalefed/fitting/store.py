"""How is a kept fit read? Every part is checked, and the runs are compared with those that are there today."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalefed.allocation.column_tests import ColumnTest
from scalefed.allocation.extrapolation import Ranges, ranges_of
from scalefed.errors import DataError, RunLogWarning, ScalefedError
from scalefed.fitting.alternative import Alternative, rival_of
from scalefed.fitting.backtest import BackTest
from scalefed.fitting.data import hash_runs, prepare
from scalefed.fitting.record import FORMAT
from scalefed.fitting.result import Fit
from scalefed.fitting.status import Certificate, FitStatus
from scalefed.laws import LAWS, Law
from scalefed.runs.reading import read_text, shown, understanding

_TRIED = 50  # runs that a fit is asked of when it is read


def load_fit(path: "str | os.PathLike[str]") -> Fit:
    """Read a fit back and check that its runs have not changed, where they can be found.

    Raises:
        DataError: no such file, or it holds no fit.
    """
    content = _read(Path(path))
    with understanding(path, "fit and save again"):
        fit = _fit(content)
        _check(fit)
        _try(fit)
        _warn_if_changed(fit, Path(path))
    return fit


def is_fit(path: Path) -> bool:
    """Whether a .json file holds a fit, and not a table or another tool's record."""
    try:
        content = json.loads(read_text(path))
    except (DataError, ValueError, RecursionError):
        return True  # load_fit says what is wrong
    return isinstance(content, dict) and "law" in content


def _fit(content: Mapping[str, Any]) -> Fit:
    if content["status"] not in FitStatus.__members__:
        raise ValueError(f"a fit's status is one of {', '.join(FitStatus.__members__)}, got {content['status']!r:.40}")
    law = _law(content["law"])
    runs = pd.DataFrame(content["runs"])
    replicates = pd.DataFrame(content["replicates"], columns=list(law.free), dtype=float)
    return Fit(
        law=law,
        params=content["params"],
        covariance=replicates.cov(),
        status=FitStatus[content["status"]],
        message=content["message"],
        certificate=Certificate(**content["certificate"]),
        run_ids=tuple(content["run_ids"]),
        runs=runs,
        replicates=replicates,
        target=content["target"],
        huber_delta=content["huber_delta"],
        huber_above=content.get("huber_above", 1.0),
        scale_weight=content["scale_weight"],
        noise=content["noise"],
        noise_by_loss=(tuple(content["noise_by_loss"][0]), tuple(content["noise_by_loss"][1])),
        degrees_of_freedom=content["degrees_of_freedom"],
        backtest=_backtest(content["backtest"]),
        alternatives=tuple(_alternative(one, law) for one in content["alternatives"]),
        notes=tuple(content["notes"]),
        runs_hash=content["runs_hash"],
        source=content["source"],
        cluster=content["cluster"],
        columns=content.get("columns", {}),
        seed=content["seed"],
        column_tests=tuple(ColumnTest(column, params) for column, params in content.get("column_tests", {}).items()),
        ranges=_ranges(content["ranges"], content.get("bound", ())) if "ranges" in content else ranges_of(runs, law),
        link=_link(content["link"]),
    )


def _alternative(stored: Mapping[str, Any], fitted: Law) -> Alternative:
    law = rival_of(fitted) if stored["law"] is None else _law(stored["law"])
    if law is None:
        raise ValueError(f"the law {fitted.name!r} has no rival")
    replicates = pd.DataFrame(stored["replicates"], columns=list(law.free), dtype=float)
    return Alternative(**{**stored, "law": law, "replicates": replicates})


def _check(fit: Fit) -> None:
    """Refuse numbers that no fit has.

    Raises:
        ValueError: naming what is wrong.
    """
    if set(fit.params) != set(fit.law.parameters):
        raise ValueError(f"the law's parameters are {', '.join(fit.law.parameters)}, those stored {list(fit.params)}")
    values = {**fit.params, **{f"a replicate of {name}": fit.replicates[name] for name in fit.replicates.columns}}
    for name, numbers in values.items():
        array = np.asarray(numbers)
        low = 0.0 if name.removeprefix("a replicate of ") in fit.law.positive else -np.inf
        if array.dtype.kind not in "iuf" or not (np.isfinite(array) & (array >= low)).all():
            raise ValueError(f"{name} must be {'positive and ' if low == 0.0 else ''}finite")
    for name in ("source", "cluster"):
        if not isinstance(getattr(fit, name), (str, type(None))):
            raise ValueError(f"{name} must be a text, got {getattr(fit, name)!r:.40}")
    for name in ("noise", "huber_delta", "huber_above", "scale_weight"):
        number = getattr(fit, name)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not (number >= 0 or number != number):
            raise ValueError(f"{name} must be a number from 0 up, got {number!r:.40}")
    if not fit.degrees_of_freedom >= 1 or not len(fit.noise_by_loss[0]) == len(fit.noise_by_loss[1]) > 0:
        raise ValueError("degrees and noise_by_loss do not belong to a fit")


def _try(fit: Fit) -> None:
    """Ask the fit of its own runs: what cannot answer that is damaged."""
    if len(fit.runs) and set(fit.law.columns) <= set(fit.runs.columns):
        few = fit.runs.iloc[:: max(1, len(fit.runs) // _TRIED)]
        band = fit.predicted(few).to_numpy(dtype=float)
        open_ended = np.isnan(fit.noise) & np.isnan(band)
        wrong = ~((np.isfinite(band) & (band > 0)) | open_ended).all(axis=1) | ~np.isfinite(band[:, 0])
        if wrong.any():
            raise ValueError(f"it predicts {band[wrong][0].tolist()} for a run of its own")
    str(fit), fit.summary()


def _read(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise DataError(f"no fit at {shown(path)}; make one with fit.save({shown(path)!r})")
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a saved fit ({error}); save the fit again") from error
    if not isinstance(content, dict) or "law" not in content or "replicates" not in content:
        raise DataError(f"{path} is JSON but not a saved fit; files made by fit.save(...) are")
    if content.get("format") != FORMAT:
        raise DataError(f"{path} has format {content.get('format')!r}, this version reads {FORMAT}; fit and save again")
    return content


def _law(stored: Mapping[str, Any]) -> Law:
    named = LAWS.get(stored["name"])
    if named is None or named.formula != stored["formula"]:
        named = Law.parse(stored["formula"], name=stored["name"], columns=stored["extra_columns"])
    bounds = {p: (low, high) for p, (low, high) in stored["bounds"].items() if p not in stored["fixed"]}
    return named.with_(ties=stored["ties"]).with_(fixed=stored["fixed"], bounds=bounds)


def _ranges(stored: Mapping[str, Any], bound: Sequence[str]) -> Ranges:
    words = {name: tuple(values) for name, values in stored.items() if isinstance(values[0], str)}
    numbers = {name: (float(ends[0]), float(ends[1])) for name, ends in stored.items() if name not in words}
    return Ranges(numbers, words, tuple(bound))


def _backtest(stored: Mapping[str, Any]) -> BackTest:
    ranges = tuple((low, high) for low, high in stored.get("ranges", ()))
    return BackTest(
        **{
            **stored,
            "scale": tuple(stored["scale"]),
            "ranges": ranges,
            "aside": tuple(stored.get("aside", ())),
            **_drift(stored),
        }
    )


def _drift(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The drift of best sizes, down and up and aside; older fits hold one number for all of it."""
    if "drift" not in stored:
        return {}
    drift = stored["drift"]
    if isinstance(drift, (int, float)):
        return {"drift": (float(drift), float(drift)), "drift_aside": float(drift)}
    return {"drift": (float(drift[0]), float(drift[1]))}


def _link(stored: Mapping[str, Any] | None) -> Any:
    if stored is None:
        return None
    from scalefed.downstream.link import Link

    return Link.from_json(stored)


def _warn_if_changed(fit: Fit, path: Path) -> None:
    """Compare with the runs on disk: the path that was fitted, as given or next to the fit's own folder."""
    if fit.source is None:
        return
    places = [Path(fit.source), path.parent / fit.source, path.parent.parent / fit.source]
    found = next((p for p in places if p.exists()), None)
    if found is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = prepare(found, fit.law, target=fit.target, columns=fit.columns, cluster=fit.cluster, warn=False)
        same = hash_runs(data.frame, fit.law.columns, fit.target) == fit.runs_hash
        what = f"{len(fit.run_ids)} runs were fitted, {data.n} are there now"
    except ScalefedError as error:
        same, what = False, f"they can no longer be read: {error}"
    if not same:
        warnings.warn(
            f"the runs in {found} have changed since {path.name} was fitted ({what}); fit again",
            RunLogWarning,
            stacklevel=4,
        )
