"""Would a law in which population and skew meet have foreseen the skewed clients of a large population?

    python paper/posthoc.py          generated/posthoc.json

After the fact: the held-out runs had been seen when these forms were written. Each is fitted to the runs that the
frozen prediction had, to all runs, and to all but one held-out axis, which it then predicts.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scalefed as sf
from scalefed.errors import FitWarning
from scalefed.laws import LAWS, Law

HERE = Path(__file__).parent
NAMED = LAWS["federated-data-constrained"]
_STEPS, _SIZE = "clients^k", "clients_per_round^(-r*skew^2)"
FORMS = {
    "as named": NAMED.formula,
    "steps: population to k + u skew^2": NAMED.formula.replace(_STEPS, "clients^(k + u*skew^2)"),
    "size: population to u skew^2": NAMED.formula.replace(_SIZE, f"{_SIZE}*clients^(u*skew^2)"),
}
HUBER_DELTA = 0.06
"""One threshold for all, so that objectives compare: what ``auto`` finds for the named law on all runs (.05996)."""
LARGE = 1000
"""Clients of the population that was held out."""


def main() -> None:
    """Fit, write, print."""
    import score  # noqa: PLC0415
    from writing import write_facts  # noqa: PLC0415

    frozen = json.loads((HERE.parent / "fits/study.frozen.json").read_text(encoding="utf-8"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        told = facts(score.cells(frozen, score.measured()))
    write_facts("posthoc", told)


def facts(cells: pd.DataFrame) -> dict[str, Any]:
    """Objective and errors of each form, as strings."""
    known, held = _runs()
    axis = np.array([_axis_of(run) for run in held.to_dict("records")])
    skewed = ((cells["clients"] > LARGE) & np.isfinite(cells["concentration"])).to_numpy()
    rows, first = [], np.nan
    exponents: dict[str, str] = {}
    for name, formula in FORMS.items():
        before, whole = _fit(known, formula), _fit(pd.concat([known, held], ignore_index=True), formula)
        first = whole.certificate.objective if not rows else first
        errors = _errors(before, cells)
        left = pd.Series(0.0, index=cells.index)
        for one in np.unique(axis):
            other = _fit(pd.concat([known, held[axis != one]], ignore_index=True), formula)
            here = (cells["axis"] == one).to_numpy()
            left[here] = _errors(other, cells[here])
        cells_told = [_percent(errors.abs().median()), _both(errors[skewed]), _percent(left.abs().median())]
        cells_told += [_both(left[skewed]), _both(_errors(whole, cells)[skewed])]
        rows.append([name, f"{whole.certificate.objective / first:.3f}", *cells_told])
        exponents[name] = f"{whole.params['u']:.2f}" if "u" in whole.params else ""
    return {"rows": rows, "u": exponents["steps: population to k + u skew^2"], "runs": str(len(known) + len(held))}


def _runs() -> tuple[pd.DataFrame, pd.DataFrame]:
    import freeze  # noqa: PLC0415

    known = freeze.known_runs()
    held = sf.load_runs(HERE.parent / "runs/holdout")
    return known, held.assign(own=held["unique_tokens"] / held["clients"])


def _axis_of(run: dict[str, Any]) -> str:
    import freeze  # noqa: PLC0415

    config = type("Config", (), {name: run[name] for name in ("local_steps", "clients", "params", "concentration")})
    return freeze.axis_of(config)  # type: ignore[arg-type]


def _fit(runs: pd.DataFrame, formula: str) -> sf.Fit:
    import score  # noqa: PLC0415

    law = Law.parse(formula, bounds=NAMED.bounds)
    return sf.fit(runs, law, fixed={"E": score.FLOOR}, huber_delta=HUBER_DELTA, scale_weight=0.5, resamples=0,
                  backtest=False)  # fmt: skip


def _errors(fit: sf.Fit, cells: pd.DataFrame) -> "pd.Series[float]":
    return pd.Series(fit.predict(cells)["estimate"].to_numpy() / cells["loss"].to_numpy() - 1, index=cells.index)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _both(errors: "pd.Series[float]") -> str:
    return ", ".join(f"{error:+.0%}" for error in errors)


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(HERE))  # the scripts of the paper are no package
    main()
