"""How far off were the frozen predictions?

    python paper/score.py            every fits/*.frozen.json against the held-out runs that are there
    python paper/score.py NAME       fits/NAME.frozen.json

A cell is a setting; its seeds are averaged, and the prediction of a cell is the mean of those of its runs. A law's band
of a mean is made of the same parts as that of a run, the noise over the square root of the seeds.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scalefed as sf

sys.path.insert(0, str(Path(__file__).parent))  # the scripts of the paper are no package
import realtext  # noqa: E402

ROOT = Path(__file__).parent.parent
CELL = ["axis", "params", "clients", "clients_per_round", "concentration", "local_steps"]
FLOOR = 0.2009088590630866
"""The text's entropy, nats per token: ``scalefed.data.micro.entropy()``."""
Z90 = 1.6449
"""Standard normal quantile of a two-sided 90% band."""


def main(names: Sequence[str]) -> None:
    """Print the tables of each frozen prediction."""
    for name in names or [path.name.removesuffix(".frozen.json") for path in sorted(ROOT.glob("fits/*.frozen.json"))]:
        if name in realtext.SETS:
            realtext.score(realtext.SETS[name])
            continue
        frozen = json.loads((ROOT / "fits" / f"{name}.frozen.json").read_text(encoding="utf-8"))
        table = cells(frozen, measured(name if name == "crossed" else "holdout"))
        print(f"{name}: {table['seeds'].sum():.0f} of {len(frozen['cells'])} held-out runs are there\n")
        with pd.option_context("display.width", 200, "display.max_columns", 40):
            print(table.round(3).to_string(index=False), "\n")
            print(by_law(frozen, table).round(3).to_string(), "\n")
            if "optimal_sizes" in frozen:
                print(best_sizes(frozen).round(3).to_string(index=False))


def measured(sweep: str = "holdout") -> pd.DataFrame:
    """Every held-out run of a sweep that is stored."""
    folder = ROOT / "runs" / sweep
    found = sf.load_runs(folder) if any(folder.glob("*.parquet")) or any(folder.glob("*/run.json")) else pd.DataFrame()
    return found.set_index("run_id") if len(found) else found


def cells(frozen: Mapping[str, Any], runs: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: means of its seeds beside what was predicted for them."""
    rows = [{**cell, **_told(cell), **_found(runs.loc[cell["run_id"]])} for cell in frozen["cells"]
            if cell["run_id"] in runs.index]  # fmt: skip
    if not rows:
        return pd.DataFrame(columns=[*CELL, "seeds"])
    table = pd.DataFrame(rows).drop(columns=["laws", "run_id", "seed"])
    means = table.groupby(CELL, sort=False).mean(numeric_only=True)
    grouped = table.groupby(CELL, sort=False)["loss"]
    means["seeds"], means["standard_error"] = grouped.count(), grouped.std() / np.sqrt(grouped.count())
    first = next(iter(frozen["laws"]))
    shown = ["seeds", "skew", "tokens", "unique_tokens", "loss", "standard_error", first, "low", "high", "nearest",
             "line", "pass_at_1", "pass_at_1_predicted", "pass_at_10", "pass_at_10_predicted"]  # fmt: skip
    half = Z90 * np.sqrt(means["parameter"] ** 2 + means["model"] ** 2 + means["noise"] ** 2 / means["seeds"])
    means["low"], means["high"] = means[first] * np.exp(-half), means[first] * np.exp(half)
    rest = [column for column in means.columns if column in frozen["laws"] and column != first]
    return means[shown + rest].reset_index()


def by_law(frozen: Mapping[str, Any], table: pd.DataFrame) -> pd.DataFrame:
    """Relative error of the mean loss by axis, for each law and for what needs none."""
    if not len(table):
        return pd.DataFrame()
    errors = pd.DataFrame({name: (table[name] / table["loss"] - 1).abs()
                           for name in (*frozen["laws"], "nearest", "line")})  # fmt: skip
    found = errors.groupby(table["axis"], sort=False).median().T
    found["all"] = errors.median()
    inside = (table["loss"] >= table["low"]) & (table["loss"] <= table["high"])
    found.loc["inside the 90% band of the first"] = [*inside.groupby(table["axis"], sort=False).mean(), inside.mean()]
    return found


def best_sizes(frozen: Mapping[str, Any]) -> pd.DataFrame:
    """Measured minima of the held-out isoFLOP slices beside the sizes that were predicted."""
    folder = ROOT / "runs/isoflop"
    runs = sf.load_runs(folder) if any(folder.glob("*.parquet")) or any(folder.glob("*/run.json")) else None
    rows = []
    for question in frozen["optimal_sizes"]:
        row = {key: question[key] for key in ("compute", "clients", "clients_per_round", "skew", "unique_tokens")}
        if runs is not None:
            row["measured"] = _minimum(runs, question)
        for law, answer in question["laws"].items():
            row[law] = f"{answer['params']:,.0f} [{answer['low']:,.0f}, {answer['high']:,.0f}]"
        rows.append(row)
    return pd.DataFrame(rows)


def _minimum(runs: pd.DataFrame, question: Mapping[str, float]) -> str:
    """The minimum of the slice that asks this question, as text; empty where there is none."""
    same_text = np.abs(runs["unique_tokens"] / question["unique_tokens"] - 1) < 0.1
    alike = runs[(np.abs(runs["compute"] / question["compute"] - 1) < 0.1)
                 & np.where(runs["epochs"] > 1, same_text, runs["tokens"] <= question["unique_tokens"])
                 & (np.abs(runs["skew"] - question["skew"]) < 0.1)]  # fmt: skip
    if len(alike) < 3:
        return ""
    x, y = np.log(alike["params"].to_numpy()), np.log(alike["loss"].to_numpy())
    a, b, _ = np.polyfit(x, y, 2)
    return f"{np.exp(-b / (2 * a)):,.0f}" if a > 0 else "no minimum inside"


def _told(cell: Mapping[str, Any]) -> dict[str, float]:
    laws = cell["laws"]
    first = next(iter(laws.values()))
    passes = {f"{name}_predicted": first[name][0] for name in ("pass_at_1", "pass_at_10")}
    parts = {name: first[name] for name in ("parameter", "noise", "model")}
    return {**{law: told["estimate"] for law, told in laws.items()}, **passes, **parts}


def _found(run: pd.Series) -> dict[str, float]:
    return {name: float(run[name]) for name in ("loss", "pass_at_1", "pass_at_10", "skew")}


if __name__ == "__main__":
    main(sys.argv[1:])
