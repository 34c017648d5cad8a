"""Write a prediction of the held-out runs, before any of them is run.

    python paper/freeze.py NAME      fits/NAME.frozen.json

For each held-out run (``runs/holdout/sweep.toml``): the loss by each law with what its error is made of, pass@1 and
pass@10 through the link that goes with it, and what needs no law: the loss of the nearest smaller run, and the line
through the two nearest along the axis that is held out. For each held-out question (``runs/isoflop/sweep.toml``): the
best size. Skew is that of the clients' text as it will be dealt, which is known without training.

``python paper/blind.py`` holds the runs to it, ``python paper/score.py`` says how far off it was.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scalefed as sf
from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.optimum import minimise, stack
from scalefed.federated.preparation import prepare
from scalefed.models import build_model

ROOT = Path(__file__).parent.parent
FOLDERS = ("grid", "rule", "steps", "population", "repeats", "slices")
FLOOR = 0.2009088590630866
"""The text's entropy, nats per token: ``scalefed.data.micro.entropy()``."""
COVARIATES = ("tokens", "params", "skew", "clients_per_round")
RECIPE = {"algorithm": "fedavg", "inner_optimizer": "adamw", "inner_state": "keep", "learning_rate_scale": 1.0}
AXES = ("local_steps", "clients", "skew", "own", "params")
QUANTILES = (0.05, 0.95)
RESAMPLES = 300
SKEW_OF_A_DECADE = 3.0
"""In search of the nearest run, a skew of 1/3 counts as much as a factor of e in a size or a number."""

LAWS: dict[str, dict[str, Any]] = {
    "federated-data-constrained": {"scale_weight": 0.5, "fixed": {"E": FLOOR}},
    "federated-data-constrained, floor free": {"scale_weight": 0.5},
    "federated-capacity-steps": {"scale_weight": 1.0, "fixed": {"E": FLOOR}},
    "chinchilla": {"scale_weight": 1.0, "fixed": {"E": FLOOR}},
}
"""The first is ours; the others show what it adds. Its weight was chosen by predicting the largest local steps,
population, size and skew of these runs from the others (``runs/LOG.md``)."""


def main(name: str) -> None:
    """Fit, predict, write."""
    runs, counts = known_runs(), pd.concat([sf.load_counts(ROOT / "runs" / f) for f in FOLDERS], ignore_index=True)
    cells = held_out(sf.load_sweep(ROOT / "runs/holdout/sweep.toml"))
    questions = pd.DataFrame(asked(sf.load_sweep(ROOT / "runs/isoflop/sweep.toml")))
    told, cells_by_law, sizes_by_law = {}, {}, {}
    for label, options in LAWS.items():
        law = label.split(",")[0]
        fit = sf.fit(runs, law=law, huber_delta="auto", resamples=RESAMPLES, **options)
        columns = [column for column in COVARIATES if column in fit.law.columns]
        fit = fit.with_link(counts[counts["run_id"].isin(fit.run_ids)], covariates=columns)
        told[label] = {"law": law, "formula": fit.law.formula, **options, "huber_delta": fit.huber_delta,
                       "params": fit.params, "status": fit.status.name, "message": fit.message,
                       "holdout_error": fit.holdout_error}  # fmt: skip
        cells_by_law[label] = predicted(fit, cells, columns)
        sizes_by_law[label] = best_sizes(fit, questions)
    baselines = [{"nearest": nearest(runs, cell), "line": line(runs, cell)} for _, cell in cells.iterrows()]
    frozen = {
        "commit": commit(),
        "version": sf.__version__,
        "runs": {folder: int(number) for folder, number in runs["folder"].value_counts().sort_index().items()},
        "runs_hash": sf.fit(runs, law="chinchilla", resamples=0, backtest=False).runs_hash,
        "laws": told,
        "cells": [
            {**cell, "laws": {label: rows[i] for label, rows in cells_by_law.items()}, **baselines[i]}
            for i, cell in enumerate(cells.to_dict("records"))
        ],
        "optimal_sizes": [
            {**question, "laws": {label: rows[i] for label, rows in sizes_by_law.items()}}
            for i, question in enumerate(questions.to_dict("records"))
        ],
    }
    path = ROOT / "fits" / f"{name}.frozen.json"
    path.write_text(json.dumps(frozen, indent=1, default=float) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(cells)} runs and {len(questions)} sizes predicted from {len(runs)} runs")


def known_runs() -> pd.DataFrame:
    """The runs of the study's recipe, with the folder each lies in and the text that a client of it holds."""
    parts = [sf.load_runs(ROOT / "runs" / folder).assign(folder=folder) for folder in FOLDERS]
    runs = pd.concat(parts, ignore_index=True).drop_duplicates("run_id")
    for column, value in RECIPE.items():
        runs = runs[runs[column] == value]
    return runs.assign(own=runs["unique_tokens"] / runs["clients"]).reset_index(drop=True)


def held_out(configs: Sequence[sf.RunConfig]) -> pd.DataFrame:
    """One row a run that is to be predicted: the columns of the laws, the axis that is held out, id and seed."""
    rows = []
    dealt: dict[tuple[Any, ...], tuple[float, float]] = {}
    sizes: dict[int, float] = {}
    for config in configs:
        text = (config.clients, config.concentration, config.corpus_tokens, config.seed)
        if text not in dealt:
            task = prepare(config)
            dealt[text] = (task.skew, float(task.unique_tokens))
        skew, unique = dealt[text]
        if config.params not in sizes:
            sizes[config.params] = float(build_model(config).params)
        rows.append({
            "run_id": config.run_id, "axis": axis_of(config), "seed": config.seed, "params": sizes[config.params],
            "tokens": float(config.rounds * config.tokens_per_round),
            "clients": float(config.clients),
            "clients_per_round": float(config.clients_per_round), "concentration": float(config.concentration),
            "local_steps": float(config.local_steps), "skew": skew, "unique_tokens": unique,
            "own": unique / config.clients,
        })  # fmt: skip
    return pd.DataFrame(rows)


def axis_of(config: sf.RunConfig) -> str:
    """What a held-out run has that no known run has."""
    if config.local_steps > 100:
        return "local_steps"
    if config.clients > 256:
        return "clients"
    if config.params > 400_000:
        return "params"
    return "skew" if config.concentration < 0.1 else "own"


def asked(configs: Sequence[sf.RunConfig]) -> list[dict[str, float]]:
    """The questions whose answers the isoFLOP runs measure, one a setting, and those that are asked most."""
    found: dict[tuple[float, ...], dict[str, float]] = {}
    for config in configs:
        key = (
            config.clients,
            config.clients_per_round,
            config.concentration,
            config.corpus_tokens * (config.unique_tokens > 0),
        )
        if key not in found:
            task = prepare(config)
            found[key] = {"compute": config.compute, "clients": config.clients,
                          "clients_per_round": config.clients_per_round, "skew": task.skew,
                          "local_steps": config.local_steps, "unique_tokens": float(task.unique_tokens)}  # fmt: skip
    return [*found.values(), *(
        {"compute": 3e12, "clients": clients, "clients_per_round": cohort, "skew": skew, "local_steps": 25,
         "unique_tokens": 2.0**26}
        for clients, cohort, skew in ((16, 1, 0.0), (16, 4, 0.0), (16, 16, 0.0), (16, 4, 0.65), (1024, 4, 0.0))
    )]  # fmt: skip


# ---------------------------------------------------------------------- predictions
def predicted(fit: sf.Fit, cells: pd.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Loss with its 90% band and the parts of its error, pass@1 and pass@10 with theirs, a row a cell."""
    bands = fit.predict(cells, level=0.9, parts=True)
    assert fit.link is not None  # noqa: S101  the caller gave it one
    spread = np.sqrt(bands["parameter"] ** 2 + bands["noise"] ** 2 + bands["model"] ** 2).to_numpy()
    draws = len(fit.link.replicates)
    normal = np.random.default_rng(0).standard_normal((draws, 1))
    loss = bands["estimate"].to_numpy() * np.exp(normal * spread)
    beside = cells[list(columns)].reset_index(drop=True) if columns else None
    passes = fit.link.draw(loss, [1, 10], covariates=beside)
    middle = fit.link.predict(bands["estimate"].to_numpy(), [1, 10], covariates=beside)["estimate"].to_numpy()
    low, high = np.quantile(passes, QUANTILES, axis=0)
    rows = []
    for i, band in enumerate(bands.to_dict("records")):
        ks = {f"pass_at_{k}": [middle[2 * i + j], low[i, j], high[i, j]] for j, k in enumerate((1, 10))}
        rows.append({**band, **ks})
    return rows


def best_sizes(fit: sf.Fit, questions: pd.DataFrame) -> list[dict[str, float]]:
    """The best size of each question, 95% interval over replicates, and the loss there.

    Asked of the planner itself, for :meth:`Fit.optimal_size` refuses where it deems a law loose, and a frozen
    prediction is to be held to what was measured either way.
    """
    rows = []
    for question in questions.to_dict("records"):
        setting = Setting(**{k: v for k, v in question.items() if k != "compute"},
                          batch_tokens=512.0)  # fmt: skip
        values = stack(fit.law, fit.params, {name: fit.replicates[name].to_numpy() for name in fit.law.free})
        found = minimise(fit.law, values, budget=Budget(compute=question["compute"]), setting=setting)
        low, high = np.quantile(found.params[1:], [0.025, 0.975])
        rows.append({"params": found.params[0], "low": low, "high": high, "loss": found.loss[0]})
    return rows


# ---------------------------------------------------------------------- without a law
def nearest(runs: pd.DataFrame, cell: pd.Series) -> float:
    """The loss of the nearest run of at most this compute (mean over the seeds of its setting)."""
    smaller = runs[runs["params"] * runs["tokens"] <= 1.05 * cell["params"] * cell["tokens"]]
    settings = _settings(smaller)
    return float(settings.iloc[int(np.argmin(_distance(settings, cell)))]["loss"])


def line(runs: pd.DataFrame, cell: pd.Series) -> float:
    """The line, in log loss and log of the held-out axis (skew as it is), through the two nearest settings along it."""
    axis = str(cell["axis"])
    settings = _settings(runs)
    moved = {axis, "own"} if axis == "clients" else {axis}
    others = [column for column in (*AXES, "tokens", "clients_per_round") if column not in moved]
    alike = settings.assign(away=_distance(settings, cell, others), beyond=_along(settings, cell, axis).abs())
    best = alike.head(0)
    for away in np.sort(alike["away"].unique()):
        near = alike[alike["away"] < away + 0.2]
        best = near.loc[near.groupby(_rounded(near[axis]))["away"].idxmin()].sort_values("beyond").head(2)
        if len(best) == 2:
            break
    if len(best) < 2:
        return float("nan")
    x, y = _along(best, cell, axis).to_numpy(), np.log(best["loss"].to_numpy())
    return float(np.exp(y[0] - x[0] * (y[1] - y[0]) / (x[1] - x[0])))


def _settings(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean loss and skew of each setting, over its seeds."""
    keys = ["params", "tokens_asked", "clients", "clients_per_round", "concentration", "local_steps", "own_rounded"]
    table = runs.assign(own_rounded=_rounded(runs["own"]))
    return table.groupby(keys, as_index=False)[["loss", "skew", "own", "tokens"]].mean()


def _rounded(values: pd.Series) -> pd.Series:
    """To a tenth in the logarithm: what is the same up to the end of a document."""
    return (np.log(values.clip(lower=1e-3)) * 10).round()


def _along(settings: pd.DataFrame, cell: pd.Series, axis: str) -> pd.Series:
    return settings[axis] - cell[axis] if axis == "skew" else np.log(settings[axis] / cell[axis])


def _distance(settings: pd.DataFrame, cell: pd.Series, columns: Sequence[str] | None = None) -> np.ndarray:
    total = np.zeros(len(settings))
    for column in columns or (*AXES, "tokens", "clients_per_round"):
        scale = SKEW_OF_A_DECADE if column == "skew" else 1.0
        total += np.abs(scale * _along(settings, cell, column).to_numpy())
    return total


def commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main(sys.argv[1])
