"""What of a fit is kept? The law, the estimates, the replicates, and the ids and hash of the runs, as one JSON file."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scalefed.fitting.alternative import RIVAL, Alternative
from scalefed.laws import Law
from scalefed.runs.schema import COLUMNS

if TYPE_CHECKING:
    from scalefed.fitting.result import Fit

FORMAT = 2  # of the stored file; raised when what is in it changes meaning
_KEPT_RUNS = 20_000  # a file of more would be tens of megabytes; ids and hash stay
_ORIGIN = ("commit", "torch", "device_name")


def write_fit(fit: "Fit", path: "str | os.PathLike[str]") -> Path:
    """Write a fit to a JSON file, whole or not at all; folders are made as needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = _lines(to_json(fit))
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def to_json(fit: "Fit") -> dict[str, Any]:
    """Everything that a fit needs to answer again, as plain numbers and words."""
    kept = fit.runs if len(fit.runs) <= _KEPT_RUNS else fit.runs.iloc[:0]
    return {
        "format": FORMAT,
        "law": _law_to_json(fit.law),
        "target": fit.target,
        "params": fit.params,
        "status": fit.status.name,
        "message": fit.message,
        "notes": list(fit.notes),
        "certificate": asdict(fit.certificate),
        "huber_delta": fit.huber_delta,
        **({"huber_above": fit.huber_above} if fit.huber_above != 1.0 else {}),
        "seed": fit.seed,
        "source": fit.source,
        "cluster": fit.cluster,
        "columns": dict(fit.columns),
        "runs_hash": fit.runs_hash,
        "run_ids": list(fit.run_ids),
        "ranges": {
            **{name: list(ends) for name, ends in fit.ranges.numbers.items()},
            **{name: list(values) for name, values in fit.ranges.words.items()},
        },
        "bound": list(fit.ranges.bound),
        "column_tests": {test.column: dict(test.params) for test in fit.column_tests},
        "backtest": asdict(fit.backtest),
        "alternatives": [_alternative_to_json(one) for one in fit.alternatives],
        "noise": fit.noise,
        "noise_by_loss": [list(x) for x in fit.noise_by_loss],
        "degrees_of_freedom": fit.degrees_of_freedom,
        "scale_weight": fit.scale_weight,
        "link": None if fit.link is None else fit.link.to_json(),
        "replicates": _replicates_to_json(fit.replicates),
        "runs": {str(c): _column(kept[c]) for c in kept.columns if _is_needed(kept[c], fit)},
    }


def _lines(value: Any, margin: str = "") -> str:
    """JSON with one line an array."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, allow_nan=True)
    inner = (f"{margin} {json.dumps(name)}: {_lines(one, margin + ' ')}" for name, one in value.items())
    return "{\n" + ",\n".join(inner) + f"\n{margin}}}"


def _column(values: pd.Series) -> Any:
    """The values of a column of the runs; one value where all are the same."""
    plain = [_plain(x) for x in values]
    return plain[0] if len(plain) > 1 and all(x == plain[0] for x in plain) else plain


def _is_needed(column: pd.Series, fit: "Fit") -> bool:
    """Whether an answer or a page may need the column: of time and machine only what a page tells, and no mappings."""
    name = str(column.name)
    timing = name in COLUMNS and COLUMNS[name].kind == "timing" and name not in (*_ORIGIN, fit.cluster)
    return not timing and _is_short(column)


def _law_to_json(law: Law) -> dict[str, Any]:
    return {
        "name": law.name,
        "formula": law.formula,
        "fixed": dict(law.fixed),
        "ties": dict(law.ties),
        "bounds": {p: list(v) for p, v in law.bounds.items()},
        "extra_columns": list(law.extra_columns),
    }


def _replicates_to_json(replicates: pd.DataFrame) -> dict[str, list[float]]:
    return {p: [float(f"{x:.12g}") for x in replicates[p]] for p in replicates.columns}


def _alternative_to_json(one: Alternative) -> dict[str, Any]:
    """A rival follows from the fitted law and is kept by its parameters alone."""
    return {
        "law": None if one.law.name.startswith(RIVAL) else _law_to_json(one.law),
        "params": one.params,
        "replicates": _replicates_to_json(one.replicates),
        "weight": one.weight,
        "holdout_error": one.holdout_error,
        "widens": one.widens,
    }


def _is_short(column: pd.Series) -> bool:
    return column.dtype.kind in "iufb" or column.map(lambda x: isinstance(x, (str, int, float)) or x is None).all()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return float(f"{value:.15g}") if isinstance(value, float) else value
