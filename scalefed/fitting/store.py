"""How is a fit kept? One JSON file with the law, the estimates, the replicates, and the ids and hash of the runs."""

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalefed.errors import DataError, RunLogWarning, ScalefedError
from scalefed.fitting.backtest import BackTest
from scalefed.fitting.data import hash_runs, prepare
from scalefed.fitting.status import Certificate, FitStatus
from scalefed.laws import LAWS, Law
from scalefed.runs.reading import read_text, shown, understanding

FORMAT = 1
_KEPT_RUNS = 20_000
_PLAIN = (
    "target", "params", "message", "huber_delta", "seed", "source", "cluster", "runs_hash", "alternative", "noise",
    "degrees_of_freedom", "scale_weight",
)  # fmt: skip
"""Fields that JSON holds as they are."""


def write(values: Mapping[str, Any], path: "str | os.PathLike[str]") -> Path:
    """Write a fit's fields to a JSON file, whole or not at all; folders are made as needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(encode(values), indent=1, allow_nan=True)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def read(path: "str | os.PathLike[str]") -> dict[str, Any]:
    """The fields of a stored fit, checked; runs that have changed since are warned about, where they can be found.

    Raises:
        DataError: no such file, or it holds no fit.
    """
    content = _read(Path(path))
    with understanding(path, "fit and save again"):
        values = decode(content)
        _check(values)
    _warn_if_changed(values, Path(path))
    return values


def encode(values: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a fit needs to answer again, as plain numbers and words."""
    law, runs, replicates = values["law"], values["runs"], values["replicates"]
    kept = runs if len(runs) <= _KEPT_RUNS else runs.iloc[:0]
    return {
        "format": FORMAT,
        "law": {
            "name": law.name,
            "formula": law.formula,
            "fixed": dict(law.fixed),
            "ties": dict(law.ties),
            "bounds": {p: list(v) for p, v in law.bounds.items()},
            "extra_columns": list(law.extra_columns),
        },
        **{name: values[name] for name in _PLAIN},
        "status": values["status"].name,
        "notes": list(values["notes"]),
        "certificate": asdict(values["certificate"]),
        "columns": dict(values["columns"]),
        "run_ids": list(values["run_ids"]),
        "backtest": asdict(values["backtest"]),
        "noise_by_loss": [list(x) for x in values["noise_by_loss"]],
        "link": None if values["link"] is None else values["link"].to_json(),
        "replicates": {p: [float(f"{x:.12g}") for x in replicates[p]] for p in replicates.columns},
        "runs": {str(c): [_plain(x) for x in kept[c]] for c in kept.columns if _is_short(kept[c])},
    }


def decode(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a fit from what :func:`encode` made of them."""
    if content["status"] not in FitStatus.__members__:
        raise ValueError(f"a fit's status is one of {', '.join(FitStatus.__members__)}, got {content['status']!r:.40}")
    law = _law(content["law"])
    replicates = pd.DataFrame(content["replicates"], columns=list(law.free), dtype=float)
    centres, noise = content["noise_by_loss"]
    return {
        **{name: content[name] for name in _PLAIN},
        "law": law,
        "covariance": replicates.cov(),
        "status": FitStatus[content["status"]],
        "certificate": Certificate(**content["certificate"]),
        "run_ids": tuple(content["run_ids"]),
        "runs": pd.DataFrame(content["runs"]),
        "replicates": replicates,
        "noise_by_loss": (tuple(centres), tuple(noise)),
        "backtest": _backtest(content["backtest"]),
        "notes": tuple(content["notes"]),
        "columns": content.get("columns", {}),
        "link": _link(content["link"]),
    }


def is_fit(path: Path) -> bool:
    """Whether a .json file holds a fit, and not a table or another tool's record."""
    try:
        content = json.loads(read_text(path))
    except (DataError, ValueError, RecursionError):
        return True  # load_fit says what is wrong
    return isinstance(content, dict) and "law" in content


def _check(values: Mapping[str, Any]) -> None:
    """Refuse numbers that no fit has.

    Raises:
        ValueError: naming what is wrong.
    """
    law, params, replicates = values["law"], values["params"], values["replicates"]
    if set(params) != set(law.parameters):
        raise ValueError(f"the law's parameters are {', '.join(law.parameters)}, those stored {list(params)}")
    told = {**params, **{f"a replicate of {name}": replicates[name] for name in replicates.columns}}
    for name, numbers in told.items():
        array = np.asarray(numbers)
        low = 0.0 if name.removeprefix("a replicate of ") in law.positive else -np.inf
        if array.dtype.kind not in "iuf" or not (np.isfinite(array) & (array >= low)).all():
            raise ValueError(f"{name} must be {'positive and ' if low == 0.0 else ''}finite")
    for name in ("noise", "huber_delta", "scale_weight"):
        number = values[name]
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not (number >= 0 or number != number):
            raise ValueError(f"{name} must be a number from 0 up, got {number!r:.40}")
    centres, noise = values["noise_by_loss"]
    if not values["degrees_of_freedom"] >= 1 or not len(centres) == len(noise) > 0:
        raise ValueError("degrees_of_freedom and noise_by_loss do not belong to a fit")


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


def _backtest(stored: Mapping[str, Any]) -> BackTest:
    ranges = tuple((low, high) for low, high in stored.get("ranges", ()))
    return BackTest(
        **{**stored, "scale": tuple(stored["scale"]), "ranges": ranges, "aside": tuple(stored.get("aside", ()))}
    )


def _link(stored: Mapping[str, Any] | None) -> Any:
    if stored is None:
        return None
    from scalefed.downstream.link import Link

    return Link.from_json(stored)


def _warn_if_changed(values: Mapping[str, Any], path: Path) -> None:
    """Compare with the runs on disk: the path that was fitted, as given or next to the fit's own folder."""
    if values["source"] is None:
        return
    law, target, source = values["law"], values["target"], values["source"]
    places = [Path(source), path.parent / source, path.parent.parent / source]
    found = next((p for p in places if p.exists()), None)
    if found is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = prepare(found, law, target=target, columns=values["columns"], cluster=values["cluster"], warn=False)
        same = hash_runs(data.frame, law.columns, target) == values["runs_hash"]
        what = f"{len(values['run_ids'])} runs were fitted, {data.n} are there now"
    except ScalefedError as error:
        same, what = False, f"they can no longer be read: {error}"
    if not same:
        warnings.warn(
            f"the runs in {found} have changed since {path.name} was fitted ({what}); fit again",
            RunLogWarning,
            stacklevel=4,
        )


def _is_short(column: pd.Series) -> bool:
    return column.dtype.kind in "iufb" or column.map(lambda x: isinstance(x, (str, int, float)) or x is None).all()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return float(f"{value:.15g}") if isinstance(value, float) else value
