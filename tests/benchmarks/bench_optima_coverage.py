"""Do the intervals of optimal sizes and the bands of losses hold what was measured later, or larger?

Run from the repository root, with one thread for linear algebra:

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_optima_coverage.py [minima] [history] [decade] [budgets] [law=auto]

minima   public isoFLOP families (``../shared/data``): fitted on budgets up to a tenth, a fortieth and a hundred-and-
         sixtieth of the largest, the 95% interval of the optimal size against the measured minima of the budgets up to
         ten times beyond. A minimum is a parabola through the seven points nearest to the lowest in log size, with its
         jackknife error; runs whose compute is not quite that of the budget are brought there by a slope in compute.
history  the grid's own: fitted on runs up to 8M, 16M, 32M and 64M tokens, and up to 24k and 55k parameters, the 95%
         interval of the optimum at 3e12 FLOPs and 1, 4, 16 clients a round against the stored fit of all 349 runs.
decade   public sets: 90% bands of the losses one decade beyond the fitted runs.
budgets  the grid's held-out budgets (16M, 32M, 64M, 128M tokens, fitted on all smaller ones): median error, coverage
         and width of 90% bands.

``law=`` may be given more than once; without it, ``law=auto``. A name with ``:w`` sets ``scale_weight=w``.
"""

import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scalefed as sf
from scalefed.errors import ScalefedError

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
if not DATA.exists():
    DATA = ROOT.parents[1] / "shared" / "data"
KEYS = ["dataset", "hparams", "warmup", "decay", "param_count_rule", "loss_kind"]
CUTS = (10.0, 40.0, 160.0)
NEAREST = 7
CHINCHILLA = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)
FLOOR = 0.2009088590630866  # exact entropy of the grid's text, nats per token (fits/grid.toml)


# -- isoFLOP minima ----------------------------------------------------------------------------------------------------
def families() -> Iterator[tuple[str, pd.DataFrame]]:
    """Name and runs (params, tokens, loss, budget) of every public isoFLOP family."""
    porian = pd.read_parquet(DATA / "porian_isoflop.parquet")
    porian = porian[porian["tokens"] / porian["params"] > 1]
    for key, group in porian.groupby(KEYS):
        runs = group.rename(columns={"flops_budget": "budget"})[["params", "tokens", "loss", "budget"]]
        yield " ".join(map(str, key)), runs.astype(float).reset_index(drop=True)
    runs = pd.read_csv(DATA / "chinchilla_epoch245.csv")
    runs = runs[runs["used_in_published_fit"]].assign(budget=np.nan)
    for budget in CHINCHILLA:
        runs.loc[(runs["flops"] / budget).between(0.85, 1.18), "budget"] = budget
    yield "chinchilla", runs[["params", "tokens", "loss", "budget"]].reset_index(drop=True)


def vertex(log_params: np.ndarray, log_loss: np.ndarray, log_off: np.ndarray) -> float:
    """Log size of the parabola's minimum; NaN where it opens downwards."""
    columns = [np.ones_like(log_params), log_params, log_params**2]
    if np.ptp(log_off) > 1e-3:
        columns.append(log_off)
    found = np.linalg.lstsq(np.stack(columns, axis=1), log_loss, rcond=None)[0]
    return float(-found[1] / (2 * found[2])) if found[2] > 0 else np.nan


def minimum(runs: pd.DataFrame, budget: float) -> tuple[float, float] | None:
    """Log size of a budget's measured minimum and its jackknife error; None where it is not inside the sizes."""
    own = runs[runs["budget"] == budget].sort_values("params")
    x, y = np.log(own["params"].to_numpy()), np.log(own["loss"].to_numpy())
    off = np.log(own["params"].to_numpy() * own["tokens"].to_numpy() * 6 / budget)
    near = np.sort(np.argsort(np.abs(x - x[np.argmin(y)]), kind="stable")[:NEAREST])
    x, y, off = x[near], y[near], off[near]
    if len(x) < 5 or len(np.unique(x)) < 4:
        return None
    middle = x.mean()
    best = vertex(x - middle, y, off)
    others = np.array([vertex(np.delete(x, i) - middle, np.delete(y, i), np.delete(off, i)) for i in range(len(x))])
    if not np.isfinite(others).all() or not x[0] < best + middle < x[-1]:
        return None
    error = np.sqrt((len(x) - 1) / len(x) * np.sum((others - others.mean()) ** 2))
    return best + middle, float(error)


def minima(law: str, **options: Any) -> None:
    """Held-out isoFLOP minima up to ten times the fitted compute."""
    rows, start = [], time.process_time()
    for name, runs in families():
        compute = 6 * runs["params"] * runs["tokens"]
        top = runs["budget"].max()
        for cut in CUTS:
            last = runs["budget"][runs["budget"] <= top / cut * 1.01].max()
            near = compute <= last * 1.2
            if near.sum() < 15:
                continue
            try:
                found = sf.fit(runs[near][["params", "tokens", "loss"]], law, resamples=400, **options)
            except ScalefedError as error:
                found, why = None, str(error)
            for budget in sorted(b for b in runs["budget"].dropna().unique() if last < b <= 10.2 * last):
                measured = minimum(runs, budget)
                if measured is None:
                    continue
                row = {"family": name, "cut": cut, "budget": budget, "truth": np.exp(measured[0]), "se": measured[1]}
                try:
                    if found is None:
                        raise sf.FitError(why)
                    answer = found.optimal_size(compute=budget)
                    row |= {"size": answer.params, "low": answer.params_low, "high": answer.params_high}
                except ScalefedError as error:
                    row |= {"why": str(error)[:150]}
                rows.append(row)
    table = pd.DataFrame(rows)
    say(table, law, start)
    for cut, part in table.groupby("cut"):
        say(part, f"   cut {cut:g}", None)


def say(table: pd.DataFrame, label: str, start: float | None) -> None:
    """Share answered; coverage with and without the measurement's error; width; miss."""
    asked = len(table)
    table = table.dropna(subset=["size"]) if "size" in table else table.iloc[:0]
    miss = np.log(table["truth"] / table["size"])
    end = np.where(miss > 0, np.log(table["high"] / table["size"]), np.log(table["size"] / table["low"]))
    sure = np.abs(miss) <= end
    allowed = np.abs(miss) <= np.hypot(end, 1.96 * table["se"])
    width = np.median(table["high"] / table["low"]) if len(table) else np.nan
    clock = "" if start is None else f", {time.process_time() - start:.0f} s"
    print(f"{label:14s} {asked} minima, answered {len(table) / max(asked, 1):.3f}; covers {allowed.mean():.3f} "
          f"allowing the measurement's error, {sure.mean():.3f} without; upper/lower {width:.2f}, "
          f"median miss {np.expm1(np.abs(miss)).median():.1%}{clock}", flush=True)  # fmt: skip


# -- the grid's own history --------------------------------------------------------------------------------------------
def stored() -> pd.DataFrame:
    """The 349 runs of the stored fit."""
    full = sf.load_fit(ROOT / "fits" / "grid.json")
    runs = sf.load_runs(ROOT / "runs" / "grid")
    return runs[runs["run_id"].isin(full.run_ids)].reset_index(drop=True)


def history(law: str, **options: Any) -> None:
    """Nested fits of the grid against the stored fit of all runs."""
    full, runs = sf.load_fit(ROOT / "fits" / "grid.json"), stored()
    fixed = {"E": FLOOR}
    cuts = [(f"tokens <= {t / 1e6:g}M", runs["tokens"] <= 1.1 * t) for t in (8e6, 16e6, 32e6, 64e6)]
    cuts += [(f"params <= {n / 1e3:g}k", runs["params"] <= 1.1 * n) for n in (24e3, 55e3)]
    held = 0
    for label, keep in cuts:
        start = time.process_time()
        found = sf.fit(runs[keep], law, fixed=fixed, resamples=400, **options)
        words = []
        for side in (1, 4, 16):
            truth = full.optimal_size(compute=3e12, clients_per_round=side, skew=0.0).params
            try:
                a = found.optimal_size(compute=3e12, clients_per_round=side, skew=0.0)
                inside = a.params_low <= truth <= a.params_high
                size, low, high, known = (x / 1e3 for x in (a.params, a.params_low, a.params_high, truth))
                words.append(f"{size:.0f}k [{low:.0f}, {high:.0f}] {'holds' if inside else 'MISSES'} {known:.0f}k")
            except ScalefedError as error:
                inside = False
                words.append(f"refused: {str(error)[:80]}")
            held += inside
        print(f"{law} {label:16s} {int(keep.sum()):3d} runs, {found.law.name:26s} " + "; ".join(words)
              + f"; {time.process_time() - start:.1f} s", flush=True)  # fmt: skip
    print(f"{law}: {held} of {3 * len(cuts)} hold")


# -- bands -------------------------------------------------------------------------------------------------------------
def decade(law: str, **options: Any) -> None:
    """Fit at a tenth of the largest compute or less, predict the rest: nominal 90% bands."""
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_fitting

    bench_fitting.DATA = DATA
    rows, start = [], time.process_time()
    for runs in bench_fitting.public_sets().values():
        compute = runs["params"] * runs["tokens"]
        far = compute > compute.max() / 10
        band = sf.fit(runs[~far], law, resamples=200, **options).predict(runs[far])
        rows.append(scores(band, runs.loc[far, "loss"]))
    covered, widths, errors = np.array(rows).T
    print(f"{law:10s} coverage {covered.mean():.3f} (least {covered.min():.2f}), median width {np.median(widths):.1%}, "
          f"error {np.median(errors):.2%} median {errors.mean():.2%} mean, {len(rows)} sets, "
          f"{time.process_time() - start:.0f} s", flush=True)  # fmt: skip


def scores(band: pd.DataFrame, loss: pd.Series) -> tuple[float, float, float]:
    """Coverage, median relative width, median absolute relative error."""
    inside = (band["low"] <= loss) & (loss <= band["high"])
    width = ((band["high"] - band["low"]) / band["estimate"]).median()
    return float(inside.mean()), float(width), float((loss / band["estimate"] - 1).abs().median())


def budgets(law: str, **options: Any) -> None:
    """The grid's held-out budgets, fitted on the smaller ones."""
    runs = stored()
    for tokens in (16e6, 32e6, 64e6, 128e6):
        near, far = runs["tokens"] < 0.9 * tokens, (runs["tokens"] / tokens).between(0.9, 1.1)
        start = time.process_time()
        found = sf.fit(runs[near], law, fixed={"E": FLOOR}, resamples=200, **options)
        covered, width, error = scores(found.predict(runs[far]), runs.loc[far, "loss"])
        print(f"{law:28s} {tokens / 1e6:4g}M: {int(far.sum())} runs, median error {error:.2%}, coverage {covered:.3f}, "
              f"width {width:.1%}; {found.law.name}, {time.process_time() - start:.1f} s", flush=True)  # fmt: skip


SECTIONS = {"minima": minima, "history": history, "decade": decade, "budgets": budgets}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if not DATA.exists():
        print("(../shared/data is not here: only history and budgets can be shown)")
    chosen = [word for word in sys.argv[1:] if word in SECTIONS] or list(SECTIONS)
    for section in chosen:
        print(f"== {section}: {(SECTIONS[section].__doc__ or '').splitlines()[0]}", flush=True)
        for word in [w.partition("=")[2] for w in sys.argv[1:] if w.startswith("law=")] or ["auto"]:
            name, _, weight = word.partition(":")
            SECTIONS[section](name, **({"scale_weight": float(weight)} if weight else {}))
