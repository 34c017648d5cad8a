"""What does participation cost, which mechanism explains it, and what was predicted before it was measured?

    python paper/study.py            the three tables

Facts for the paper, as strings: the frozen predictions beside the held-out runs (:mod:`score`), each mechanism of the
law taken out in turn, and the price of a setting at equal compute.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scalefed as sf
from scalefed.charts.theme import si

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "paper"))  # the scripts of the paper are no package
import freeze  # noqa: E402
import score  # noqa: E402

COMPUTE = 3e12
BASE: dict[str, float] = {"clients": 16, "clients_per_round": 1, "skew": 0.0, "local_steps": 25}
PRICED: tuple[tuple[str, dict[str, float]], ...] = (
    ("one client a round", {}),
    ("4 a round", {"clients_per_round": 4}),
    ("16 a round", {"clients_per_round": 16}),
    ("4 a round, 1 local step", {"clients_per_round": 4, "local_steps": 1}),
    ("4 a round, 100 local steps", {"clients_per_round": 4, "local_steps": 100}),
    ("16 a round, 1 local step", {"clients_per_round": 16, "local_steps": 1}),
    ("16 a round, 100 local steps", {"clients_per_round": 16, "local_steps": 100}),
    ("4 a round of 256", {"clients_per_round": 4, "clients": 256}),
    ("16 a round of 256", {"clients_per_round": 16, "clients": 256}),
    ("4 a round, Dirichlet 0.1", {"clients_per_round": 4, "skew": 0.65}),
    ("4 a round of 256, Dirichlet 0.1", {"clients_per_round": 4, "clients": 256, "skew": 0.65}),
    ("4 a round, 32k tokens a client", {"clients_per_round": 4, "unique_tokens": 16 * 32_768}),
    ("4 a round, 8k tokens a client", {"clients_per_round": 4, "unique_tokens": 16 * 8_192}),
    ("4 a round, 2k tokens a client", {"clients_per_round": 4, "unique_tokens": 16 * 2_048}),
)
"""Settings that are priced, each by what differs from one iid client of 16 a round, 25 local steps, text seen once."""
MEASURED = {"params": 23_200.0, "tokens": 16e6}
"""The size and length at which most settings were measured."""
REPEATED = {"params": 55_536.0, "tokens": 4e6}
"""The same where text comes round again."""
MECHANISMS: tuple[tuple[str, dict[str, float]], ...] = (
    ("nothing", {}),
    ("the population counts for nothing", {"k": 0.0}),
    ("local steps count for nothing", {"l": 0.0, "y": 0.0}),
    ("no averaging within a cohort", {"r": 0.0}),
    ("skew leaves the worth of size alone", {"h": 0.0}),
    ("skew leaves sequential steps alone", {"t": 0.0}),
    ("a repeated token is worth a fresh one", {"R": 1e4}),
    ("no overfitting", {"O": 1e-12, "w": 0.0, "x": 0.0, "y": 0.0, "z": 0.0, "v": 0.0}),
)
"""Mechanisms of the law, each with what takes it out."""
AXES = {"local_steps": "400 local steps", "clients": "1,024 clients", "skew": "Dirichlet 0.03",
        "own": "4k tokens a client", "params": "1M parameters"}  # fmt: skip


def facts() -> dict[str, Any]:
    """Everything the paper says of the study, as strings."""
    fit = sf.load_fit(ROOT / "fits/study.json")
    frozen = json.loads((ROOT / "fits/study.frozen.json").read_text(encoding="utf-8"))
    cells = score.cells(frozen, score.measured())
    return {
        "runs": str(len(fit.run_ids)),
        "held_out": f"{cells['seeds'].sum():.0f}",
        "cells": [_cell(row) for row in cells.to_dict("records")],
        "by_axis": _by_axis(frozen, cells),
        "sizes": _sizes(frozen),
        "mechanisms": mechanisms(freeze.known_runs(), cells),
        "price": price(fit),
        "given_away": given_away(fit),
        "error": _share(_errors(cells, next(iter(frozen["laws"]))).median()),
        "nearest": _share(_errors(cells, "nearest").median()),
        "line": _share(_errors(cells, "line").median()),
        "inside": _share(_inside(cells).mean()),
        "worst": _share(_errors(cells, next(iter(frozen["laws"]))).max()),
    }


# ---------------------------------------------------------------------- predicted, then measured
def _cell(row: Mapping[str, Any]) -> list[str]:
    law = "federated-data-constrained"
    setting = f"{AXES[row['axis']]}, {si(row['params'])}, {row['clients_per_round']:.0f} a round"
    if row["axis"] == "clients" and np.isfinite(row["concentration"]):
        setting += f", Dirichlet {row['concentration']:g}"
    spread = f" ± {row['standard_error']:.3f}" if row["seeds"] > 1 else ""
    return [setting, f"{row['seeds']:.0f}", f"{row['loss']:.3f}{spread}",
            f"{row[law]:.3f} ({row['low']:.3f} to {row['high']:.3f})", f"{row[law] / row['loss'] - 1:+.1%}",
            f"{row['nearest'] / row['loss'] - 1:+.1%}", f"{row['line'] / row['loss'] - 1:+.1%}",
            f"{100 * row['pass_at_1']:.1f}, {100 * row['pass_at_1_predicted']:.1f}",
            f"{100 * row['pass_at_10']:.0f}, {100 * row['pass_at_10_predicted']:.0f}"]  # fmt: skip


def _by_axis(frozen: Mapping[str, Any], cells: pd.DataFrame) -> list[list[str]]:
    names = {**{law: law for law in frozen["laws"]}, "nearest": "nearest smaller run", "line": "line through two"}
    axes = list(dict.fromkeys(cells["axis"]))
    rows = []
    for name, told in names.items():
        errors = _errors(cells, name)
        rows.append([told, *(_share(errors[cells["axis"] == axis].median()) for axis in axes), _share(errors.median())])
    return [["", *(AXES[axis] for axis in axes), "all"], *rows]


def _sizes(frozen: Mapping[str, Any]) -> list[list[str]]:
    table = score.best_sizes(frozen)
    if "measured" not in table:
        return []
    law = next(iter(frozen["laws"]))
    return [
        [f"{row['compute']:.1e}", f"{row['skew']:.2f}", f"{row['unique_tokens']:,.0f}", row["measured"], row[law]]
        for row in table.to_dict("records")
        if row["measured"]
    ]


def _errors(cells: pd.DataFrame, name: str) -> pd.Series:
    return (cells[name] / cells["loss"] - 1).abs()


def _inside(cells: pd.DataFrame) -> pd.Series:
    return (cells["loss"] >= cells["low"]) & (cells["loss"] <= cells["high"])


def _share(value: float) -> str:
    return f"{value:.1%}" if np.isfinite(value) else "-"


# ---------------------------------------------------------------------- mechanisms
def mechanisms(runs: pd.DataFrame, cells: pd.DataFrame) -> list[list[str]]:
    """Each mechanism taken out: error on the runs, rise of the objective, error on the held-out means."""
    rows, whole = [], np.nan
    for words, out in MECHANISMS:
        fixed = {**out, "E": score.FLOOR}
        fit = sf.fit(runs, law="federated-data-constrained", fixed=fixed, huber_delta="auto", scale_weight=0.5,
                     resamples=0, backtest=False)  # fmt: skip
        whole = fit.certificate.objective if not rows else whole
        error = (fit.predict(runs)["estimate"] / runs["loss"] - 1).abs().median()
        held = fit.predict(cells)["estimate"].to_numpy() / cells["loss"] - 1
        rows.append([words, _share(error), f"{fit.certificate.objective / whole:.2f}",
                     _share(held.abs().median()), _share(held.abs().max())])  # fmt: skip
    return rows


# ---------------------------------------------------------------------- price
def price(fit: sf.Fit) -> list[list[str]]:
    """Best size and loss at equal compute for each setting, beside what was measured at one size and length."""
    rows, cheapest = [], np.nan
    for words, changed in PRICED:
        setting = {**BASE, **changed}
        best = fit.optimal_size(compute=COMPUTE, **setting)
        cheapest = cheapest if rows else best.loss
        place = REPEATED if "unique_tokens" in setting else MEASURED
        found = _found(fit.runs, setting, place)
        there = {"unique_tokens": place["tokens"], **setting, **place}
        told = float(fit.predict(**there)["estimate"].iloc[0]) if len(found) else np.nan
        size = f"{si(best.params)} ({si(best.params_low)} to {si(best.params_high)})"
        loss = f"{best.loss:.3f} ({best.loss_low:.3f} to {best.loss_high:.3f})"
        here = [f"{found.mean():.3f}", f"{told:.3f}"] if len(found) else ["-", "-"]
        rows.append([words, size, loss, f"{best.loss / cheapest - 1:+.0%}", *here])
    return rows


def given_away(fit: sf.Fit) -> list[list[str]]:
    """How much loss three rules of thumb give away at equal compute.

    The central size is the best with one client a round; the average-compute rule (arXiv 2511.12188) takes the central
    size for the compute of one client: of the cohort's, or, in its own variable, of the population's.
    """
    rows = []
    for clients, cohort in ((16, 4), (16, 16), (256, 4), (256, 16)):
        setting = {**BASE, "clients": clients, "clients_per_round": cohort}
        best = fit.optimal_size(compute=COMPUTE, **setting)
        row = [f"{cohort} of {clients}", si(best.params)]
        for share in (1, cohort, clients):
            size = fit.optimal_size(compute=COMPUTE / share, **BASE).params
            tokens = COMPUTE / (6 * size)
            there = float(fit.predict(**setting, params=size, tokens=tokens, unique_tokens=tokens)["estimate"].iloc[0])
            row += [si(size), f"{there / best.loss - 1:+.1%}"]
        rows.append(row)
    return rows


def _found(runs: pd.DataFrame, setting: Mapping[str, float], place: Mapping[str, float]) -> pd.Series:
    """Measured losses of a setting at a size and length."""
    here = (runs["params"] == place["params"]) & (np.abs(runs["tokens"] / place["tokens"] - 1) < 0.05)
    here &= runs["weight_decay"] == 0.01
    for name in ("clients", "clients_per_round", "local_steps"):
        here &= runs[name] == setting[name]
    here &= (runs["skew"] - setting["skew"]).abs() < 0.05
    text = setting.get("unique_tokens")
    here &= (runs["unique_tokens"] / text - 1).abs() < 0.05 if text else runs["unique_tokens"] >= runs["tokens"]
    return runs.loc[here, "loss"]


if __name__ == "__main__":
    for name, value in facts().items():
        print(name, *(value if isinstance(value, list) else [value]), sep="\n  ")
