"""Does the law of the procedural text say anything about real Python? Predicted first, then measured.

    python paper/realtext.py freeze python-32M    fits/python-32M.frozen.json, once, before any run of runs/python-32M
    python paper/realtext.py facts                paper/generated/realtext.json, what the paper prints
    python paper/score.py python-32M              the held-out runs that are there beside what was predicted

There are two sets of held-out runs (:data:`SETS`), each frozen before it was run: ``python``, and ``python-32M`` when
the first had been measured.

What carries over from ``fits/study.json`` without change: the discount of the cohort, the factor of skew and the
exponents. What is fitted to real text: the floor and one factor each on the terms of size and of data, from the runs
of ``runs/python-central``, one client a round of alike ones, at sizes and budgets that are not held out. The outer
power is carried over too in the first law, "shape", and fitted in the second, "discount", where a cohort is still
worth as many tokens as on procedural text. For the second set the runs of the first calibrate too, and there is a
third law, "price", that has the exponent of the cohort and the skew of natural clients fitted to real text besides,
from runs of four clients as well as of one. Of the calibration the runs of two layers and two million bytes or more
count (:data:`LEAST`): before, a model of bytes has not begun to use more than the last byte or two, and its loss lies
on a plateau that no law here has. Huber's loss on logarithms; bands from the law's replicates, each with its level
fitted to a resample of the calibration runs, and from what the calibration leaves unexplained. The calibration does
not tell the floor: each law has its own, and ratios of excess loss, predicted and measured, are over that one.

Natural clients hold whole packages, so the measured skew of their packages is 1, which no run of the procedural text
has. What packages have in common does not show there. So the skew of the *text* is measured, on four-byte strings with
chance taken away, for both kinds of text; natural clients are predicted at the skew of procedural text that is as
skewed on that scale (first), and at 1 (second).
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import least_squares
from writing import write_facts

import scalefed as sf
from scalefed.charts.theme import si

ROOT = Path(__file__).parent.parent
LEAST = {"model_layers": 2, "tokens_asked": 2_000_000}
TOLERANCE = 0.02  # Huber's width on logarithms: about what one seed differs from the next
DRAWS, QUANTILES = 300, (0.05, 0.95)
GRAM, BINS, SAMPLE = 4, 2**20, 500_000  # bytes of a string, places to count strings in, bytes of a client's text
CONCENTRATIONS = (np.inf, 1.0, 0.3, 0.1, 0.03)
ARMS = ("one", "four alike", "four natural")
WITHIN = 0.1  # of the excess ratio: the goal
BITS = 1 / np.log(2)  # a nat; logs and frozen files are in nats a byte, what is printed is in bits a byte
ASKED = ("params", "tokens", "clients_per_round", "clients", "local_steps", "unique_tokens", "natural")
"""What the law asks of a run."""
Runs = pd.DataFrame | Mapping[str, np.ndarray]
PARTS = ("floor", "size", "data", "power", "cohort", "skew")
"""A level: loss without end, factors of the terms of size and of data, outer power, exponent of the cohort, skew of
natural clients."""


class Free(NamedTuple):
    """What of a level is fitted to real text besides floor and factors, and carried over where it is not."""

    power: bool
    clients: bool
    """The exponent of the cohort and the skew of natural clients."""


LAWS = {"shape": Free(False, False), "discount": Free(True, False), "price": Free(True, True)}


class HeldOut(NamedTuple):
    """Runs that were predicted before they were made: sweep, the sweeps that calibrated, the laws."""

    name: str
    calibration: tuple[str, ...]
    laws: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return ROOT / "runs" / self.name

    @property
    def frozen(self) -> Path:
        return ROOT / "fits" / f"{self.name}.frozen.json"

    def prediction(self) -> dict[str, Any]:
        """The frozen file."""
        return dict(json.loads(self.frozen.read_text(encoding="utf-8")))

    def stored(self) -> pd.DataFrame:
        """The runs that are there."""
        there = any(self.folder.glob("*.parquet")) or any(self.folder.glob("*/run.json"))
        return sf.load_runs(self.folder) if there else pd.DataFrame(columns=["run_id"])


SETS = {
    one.name: one for one in (
        HeldOut("python", ("python-central",), ("shape", "discount")),
        HeldOut("python-32M", ("python-central", "python"), ("shape", "discount", "price")),
    )
}  # fmt: skip


# ---------------------------------------------------------------------- before
def freeze(held_out: HeldOut) -> None:
    """Fit the level, predict every cell of the sweep, write."""
    fit = sf.load_fit(ROOT / "fits/study.json")
    configs = sf.load_sweep(held_out.folder / "sweep.toml")
    skew = text_skew(configs[0])
    runs = calibration(held_out)
    used = runs[np.logical_and.reduce([runs[name] >= least for name, least in LEAST.items()])]
    cells = pd.DataFrame([cell_of(config) for config in configs])
    frozen = {
        "commit": subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        ).stdout.strip(),
        "method": " ".join(" ".join(str(__doc__).split("\n\n")[3:5]).split()),
        "law": fit.law.formula,
        "law_params": fit.params,
        "calibration": [
            {"run_id": row["run_id"], "params": row["params"], "tokens": row["tokens"], "arm": row["arm"],
             "loss": row["loss"], "used": row["run_id"] in set(used["run_id"])} for row in runs.to_dict("records")
        ],
        "text_hash": runs["text_hash"].iloc[0],
        "skew": skew,
    }  # fmt: skip
    baselines = [{"nearest": nearest(own, cell), "line": line(own, cell)}
                 for _, cell in cells.iterrows() for own in [like(runs, cell)]]  # fmt: skip
    rows = [{**cell, **others, "laws": {}} for cell, others in zip(cells.to_dict("records"), baselines, strict=True)]
    frozen |= {"laws": {}, "cells": rows, "ratios": {}}
    for name in held_out.laws:
        free = LAWS[name]
        known = used if free.clients else used[used["arm"] == ARMS[0]]
        level = fitted_level(fit.params, known, free, skew["alike"])
        samples = resampled(fit, known, free, skew["alike"])
        left = np.log(predicted(fit.params, level, known) / known["loss"])
        noise = float(np.sqrt((left**2).sum() / (len(known) - 3 - free.power - 2 * free.clients)))
        frozen["laws"][name] = dict(zip(PARTS, level, strict=True)) | {
            "runs": len(known), "noise": noise,
            "floor_90": np.quantile([one[1][0] for one in samples], QUANTILES).tolist()}  # fmt: skip
        told = predicted_cells(fit.params, level, samples, noise, cells)
        for row, one in zip(rows, told, strict=True):
            row["laws"][name] = one
        frozen["ratios"][name] = predicted_ratios(fit.params, level, samples, cells)
    held_out.frozen.write_text(json.dumps(frozen, indent=1, default=float) + "\n", encoding="utf-8")
    print(json.dumps({name: frozen[name] for name in ("laws", "skew")}, default=float))
    for name in held_out.laws:
        print(pd.DataFrame([{**row, **row["laws"][name]} for row in rows]).drop(columns=["run_id", "laws"]).to_string())
        print(pd.DataFrame(frozen["ratios"][name]).to_string())


def calibration(held_out: HeldOut) -> pd.DataFrame:
    """The runs that a set is predicted from, with their arm."""
    runs = pd.concat([sf.load_runs(ROOT / "runs" / name) for name in held_out.calibration], ignore_index=True)
    if runs["text_hash"].nunique() != 1:
        raise SystemExit(f"{held_out.name}: calibration runs of different text: {set(runs['text_hash'])}")
    arms = [arm_of(*row) for row in runs[["partition", "clients_per_round"]].itertuples(index=False)]
    return runs.assign(arm=arms, natural=[float(arm == ARMS[2]) for arm in arms])


def arm_of(partition: str, cohort: float) -> str:
    """Which arm a run belongs to."""
    return ARMS[2] if partition == "natural" else ARMS[int(cohort > 1)]


def cell_of(config: sf.RunConfig) -> dict[str, Any]:
    """What the law asks of a run, and which arm it belongs to."""
    from scalefed.models import build_model

    arm = arm_of(config.partition, config.clients_per_round)
    numbers = {
        "params": build_model(config).params,
        "tokens": config.rounds * config.tokens_per_round,
        "tokens_asked": config.tokens,
        "clients_per_round": config.clients_per_round,
        "clients": config.clients,
        "local_steps": config.local_steps,
        "unique_tokens": config.unique_tokens,
    }
    told = {name: float(value) for name, value in numbers.items()}
    return {"run_id": config.run_id, "arm": arm, "seed": config.seed, "natural": float(arm == ARMS[2]), **told}


def excess(law: Mapping[str, float], level: Sequence[float], runs: Runs) -> Any:
    """Loss above the floor by the law of fits/study.json, with the factors and the powers of a level."""
    size, tokens, cohort = runs["params"], runs["tokens"], runs["clients_per_round"]
    square = np.asarray(level[5] * runs["natural"]) ** 2
    of_size = law["A"] * np.exp(law["s"] * square) * cohort ** (-law["r"] * square)
    of_size = of_size / size ** (law["a"] - law["h"] * square)
    drift = cohort ** (level[4] + law["l"] * np.log(runs["local_steps"]))
    of_data = law["B"] / tokens ** law["b"]  # no text comes round again
    of_data = of_data + law["G"] * np.exp(law["t"] * square) * runs["clients"] ** law["k"] * drift / tokens ** law["d"]
    own = runs["unique_tokens"] / (10_000 * runs["clients"])
    repeated = law["O"] * (size / 10_000) ** law["w"] * (tokens / runs["unique_tokens"]) ** law["x"]
    repeated = repeated * runs["local_steps"] ** law["y"] / (cohort ** law["z"] * own ** law["v"])
    return np.asarray((level[1] * of_size + level[2] * of_data + repeated) ** level[3])


def predicted(law: Mapping[str, float], level: Sequence[float], runs: Runs) -> Any:
    """The loss of each run."""
    return level[0] + excess(law, level, runs)


def fitted_level(law: Mapping[str, float], runs: pd.DataFrame, free: Free, alike: float) -> tuple[float, ...]:
    """The level (:data:`PARTS`) under which the law is nearest to the calibration runs."""

    def level(x: np.ndarray) -> np.ndarray:
        return np.append(np.exp(x[:4]), x[4:])

    def errors(x: np.ndarray) -> np.ndarray:
        return np.asarray(np.log(predicted(law, level(x), known) / known["loss"]))

    known = {name: runs[name].to_numpy(dtype=float) for name in (*ASKED, "loss")}
    power, cohort = float(np.log(law["c"])), law["f"]
    low = [np.log(0.05), *np.log([0.01, 0.01]), np.log(0.2) if free.power else power - 1e-9]
    high = [np.log(0.95 * runs["loss"].min()), *np.log([1_000, 1_000]), power + 1e-9]
    low += [-1.0, 0.0] if free.clients else [cohort - 1e-9, alike - 1e-9]
    high += [1.5, 1.0] if free.clients else [cohort + 1e-9, alike + 1e-9]
    powers = np.log([0.6, 1.5]) if free.power else [power]
    floors = np.minimum(np.log([0.3, 1.3]), high[0] - 0.01)
    starts = [[floor, 0.0, 0.0, one, cohort, alike] for floor in floors for one in powers]
    found = [least_squares(errors, start, loss="soft_l1", f_scale=TOLERANCE, bounds=(low, high)) for start in starts]
    return tuple(level(min(found, key=lambda one: one.cost).x).tolist())


def resampled(
    fit: sf.Fit, runs: pd.DataFrame, free: Free, alike: float
) -> list[tuple[dict[str, float], tuple[float, ...]]]:
    """Replicates of the law, each with its level on a resample of the calibration runs with at least five of them."""
    draw, found = np.random.default_rng(0), []
    for law in fit.replicates.to_dict("records")[:DRAWS]:
        rows = draw.integers(len(runs), size=len(runs))
        while len(set(rows)) < min(5, len(runs)):
            rows = draw.integers(len(runs), size=len(runs))
        whole = {**fit.params, **{str(name): float(value) for name, value in law.items()}}
        found.append((whole, fitted_level(whole, runs.iloc[rows], free, alike)))
    return found


def predicted_cells(
    law: Mapping[str, float], level: Sequence[float], samples: Sequence[Any], noise: float, cells: pd.DataFrame
) -> list[dict[str, Any]]:
    """Loss and 90% band of every run, also for natural clients of skew 1."""
    normal = np.random.default_rng(1).standard_normal((len(samples), 1))
    told = {}
    for name, last in (("", ()), ("_at_1", (1.0,))):
        told["loss" + name] = predicted(law, at(level, last), cells)
        draws = np.stack([predicted(one, at(where, last), cells) for one, where in samples]) * np.exp(noise * normal)
        told["low" + name], told["high" + name] = np.quantile(draws, QUANTILES, axis=0)
    return pd.DataFrame(told).to_dict("records")


def at(level: Sequence[float], last: Sequence[float]) -> tuple[float, ...]:
    """A level with other last parts."""
    return (*level[: len(level) - len(last)], *last)


def predicted_ratios(
    law: Mapping[str, float], level: Sequence[float], samples: Sequence[Any], cells: pd.DataFrame
) -> list[dict[str, Any]]:
    """Excess over the floor of four clients a round over that of one, for every size and budget."""
    rows = []
    for (size, tokens), group in cells.groupby(["params", "tokens_asked"], sort=False):
        one = group[group["arm"] == ARMS[0]].head(1)
        for arm, lasts in ((ARMS[1], {"": ()}), (ARMS[2], {"": (), "_at_1": (1.0,)})):
            four, row = group[group["arm"] == arm].head(1), {"params": size, "tokens_asked": tokens, "arm": arm}
            for name, last in lasts.items():
                both = [(excess(w, at(where, last), four), excess(w, where, one))
                        for w, where in [(law, level), *samples]]  # fmt: skip
                ratio = [float(a.item() / b.item()) for a, b in both]
                low, high = np.quantile(ratio[1:], QUANTILES)
                row |= {f"ratio{name}": ratio[0], f"ratio_low{name}": low, f"ratio_high{name}": high}
            rows.append(row)
    return rows


def like(runs: pd.DataFrame, cell: pd.Series) -> pd.DataFrame:
    """Means over the seeds of the calibration runs of a cell's arm, of those with one client where it has none."""
    own = runs[runs["arm"] == cell["arm"]]
    own = own if len(own) else runs[runs["arm"] == ARMS[0]]
    return own.groupby(["params", "tokens"])["loss"].mean().reset_index()


def nearest(runs: pd.DataFrame, cell: pd.Series) -> float:
    """The loss of the nearest calibration run of at most this compute."""
    smaller = runs[runs["params"] * runs["tokens"] <= 1.05 * cell["params"] * cell["tokens"]]
    away = sum(np.abs(np.log(smaller[name] / cell[name])) for name in ("params", "tokens"))
    return float(smaller.loc[away.idxmin(), "loss"])


def line(runs: pd.DataFrame, cell: pd.Series) -> float:
    """The line, in logarithms, through the two budgets nearest to the cell's at the nearest size that is not larger."""
    size = runs.loc[runs["params"] <= 1.05 * cell["params"], "params"].max()
    same = runs[runs["params"] == size]
    away = np.abs(np.log(same["tokens"] / cell["tokens"]))
    two = same.loc[away.nsmallest(2).index].sort_values("tokens")
    x, y = np.log(two["tokens"].to_numpy()), np.log(two["loss"].to_numpy())
    return float(np.exp(y[1] + (np.log(cell["tokens"]) - x[1]) * (y[1] - y[0]) / (x[1] - x[0])))


# ---------------------------------------------------------------------- skew of the text itself
def text_skew(config: sf.RunConfig) -> dict[str, Any]:
    """How skewed natural clients are on their text, and the skew of procedural text that is as skewed on it."""
    from scalefed.data import micro
    from scalefed.data.functions import functions
    from scalefed.skew import corrected_skew

    text = micro.corpus(2**22, seed=0)
    schemes = [{"concentration": value} for value in CONCENTRATIONS] + [{"scheme": "natural"}]
    known = [_skews(text, _micro_bytes, scheme) for scheme in schemes]
    real = functions(config.data_root, size=config.unique_tokens, held_out=config.validation_tokens, exact=True, seed=0)
    chance, natural = (_skews(real.text, _real_bytes, scheme)[1] for scheme in ({}, {"scheme": "natural"}))
    corrected = [corrected_skew(one, known[0][1]) for _, one in known]
    own = corrected_skew(natural, chance)
    return {
        "of_packages": 1.0,
        "of_text": own,
        "alike": float(np.interp(own, corrected, [one for one, _ in known])),
        "procedural": [[one, text] for (one, _), text in zip(known, corrected, strict=True)],
    }


def _skews(text: Any, decode: Any, scheme: Mapping[str, Any]) -> tuple[float, float]:
    """Measured skew of sixteen clients by family and by the strings in their text."""
    from scalefed.data.corpus import gather
    from scalefed.data.partitions import partition
    from scalefed.skew import measured_skew

    dealt = partition(text.families, clients=16, weights=np.diff(text.offsets), groups=text.families, seed=0, **scheme)
    draw, counts = np.random.default_rng(0), []
    for mine in dealt.indices:
        some = draw.permutation(mine)
        some = some[: 1 + int(np.searchsorted(np.cumsum(text.text_bytes[some]), SAMPLE))]
        counts.append(_strings(decode(gather(text.tokens, text.offsets, some))[:SAMPLE]))
    return dealt.skew, measured_skew(np.stack(counts))


def _strings(raw: np.ndarray) -> np.ndarray:
    """How often each string of four bytes occurs, in 2^20 places that some strings share."""
    code = np.zeros(len(raw) - GRAM + 1, dtype=np.uint64)
    for i in range(GRAM):
        code = (code << np.uint64(8)) + raw[i : len(raw) - GRAM + 1 + i].astype(np.uint64)
    mixed = (code * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(44)
    return np.bincount(mixed.astype(np.int64), minlength=BINS)


def _micro_bytes(tokens: np.ndarray) -> np.ndarray:
    from scalefed.data import micro

    return np.frombuffer(micro.tokenizer(512).decode(tokens.tolist()).encode(), dtype=np.uint8)


def _real_bytes(tokens: np.ndarray) -> np.ndarray:
    return np.where(tokens == 0, ord("\n"), tokens - 1).astype(np.uint8)


# ---------------------------------------------------------------------- after
def measured(frozen: Mapping[str, Any], runs: pd.DataFrame, law: str) -> pd.DataFrame:
    """One row a cell that was measured, in bits a byte: mean loss of its seeds beside what a law predicted."""
    if not set(runs["text_hash"]) <= {frozen["text_hash"]}:
        raise SystemExit(f"held-out runs of other text than {frozen['text_hash']}: {set(runs['text_hash'])}")
    cells = pd.DataFrame([{**cell, **cell["laws"][law]} for cell in frozen["cells"]]).drop(columns="laws")
    found = runs[["run_id", "loss", "loss_unseen_sources"]].rename(columns={"loss": "measured"})
    cells = cells.merge(found, on="run_id")
    keys = ["params", "tokens_asked", "arm"]
    names = ["measured", "loss", "low", "high", "loss_at_1", "nearest", "line", "loss_unseen_sources"]
    table = cells.groupby(keys, sort=False)[names].mean() * BITS
    table["seeds"] = cells.groupby(keys, sort=False)["seed"].count()
    return table.reset_index()


def ratios(frozen: Mapping[str, Any], table: pd.DataFrame, law: str) -> pd.DataFrame:
    """Excess of four clients over one, measured (over the law's frozen floor) beside predicted."""
    floor, rows = frozen["laws"][law]["floor"] * BITS, []
    known = table.set_index(["params", "tokens_asked", "arm"])["measured"]
    for row in frozen["ratios"][law]:
        one, four = (known.get((row["params"], row["tokens_asked"], arm)) for arm in (ARMS[0], row["arm"]))
        if one is not None and four is not None:
            rows.append({**row, "measured": (four - floor) / (one - floor), "loss_ratio": four / one})
    found = pd.DataFrame(rows)
    return found.assign(within=(found["ratio"] / found["measured"] - 1).abs() <= WITHIN) if rows else found


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Median relative error of the mean loss by arm, and the share of means inside the 90% band."""
    errors = pd.DataFrame({name: (table[name] / table["measured"] - 1).abs()
                           for name in ("loss", "loss_at_1", "nearest", "line")})  # fmt: skip
    inside = (table["measured"] >= table["low"]) & (table["measured"] <= table["high"])
    found = errors.groupby(table["arm"], sort=False).median()
    found["inside"] = inside.groupby(table["arm"], sort=False).mean()
    found["cells"] = table.groupby("arm", sort=False).size()
    found.loc["all"] = [*errors.median(), inside.mean(), len(table)]
    return found


def facts(held_out: HeldOut) -> dict[str, Any]:
    """What the paper says of a set of held-out runs, as the strings it prints; losses in bits a byte."""
    frozen, runs = held_out.prediction(), held_out.stored()
    tables = {law: measured(frozen, runs, law) for law in held_out.laws}
    first = next(iter(tables.values()))
    cells = [
        [si(row["params"]), si(row["tokens_asked"]), row["arm"], f"{row['seeds']:.0f}", f"{row['measured']:.3f}",
         f"{row['loss_unseen_sources']:.3f}",
         *(f"{table['loss'][i]:.2f} [{table['low'][i]:.2f}, {table['high'][i]:.2f}]" for table in tables.values()),
         f"{row['nearest']:.2f}", f"{row['line']:.2f}"]
        for i, row in enumerate(first.to_dict("records"))
    ]  # fmt: skip
    found = {law: ratios(frozen, table, law) for law, table in tables.items()}
    return {
        "runs": str(len(runs)), "held_out": str(len(frozen["cells"])), "cells": cells,
        "packages": str(len(runs["sources"].iloc[0]) + len(runs["sources_unseen"].iloc[0])),
        "calibration": str(sum(run["used"] for run in frozen["calibration"])),
        "floors": {law: f"{BITS * frozen['laws'][law]['floor']:.2f}" for law in held_out.laws},
        "alike": f"{frozen['skew']['alike']:.2f}",
        "errors": [[law, *map("{:.1%}".format, summary(table).loc["all", ["loss", "inside", "nearest", "line"]])]
                   for law, table in tables.items()],
        "ratios": [
            [law, si(row["params"]), si(row["tokens_asked"]), row["arm"], f"{row['measured']:.2f}",
             f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]", "yes" if row["within"] else "no"]
            for law, rows in found.items() for row in rows.to_dict("records")
        ],
        "within": {law: f"{rows['within'].sum():.0f} of {len(rows)}" for law, rows in found.items()},
    }  # fmt: skip


def main() -> None:
    """Write what the paper prints."""
    write_facts("realtext", {name: facts(one) for name, one in SETS.items() if len(one.stored())}, show=False)


def score(held_out: HeldOut) -> None:
    """Print the tables, losses in bits a byte."""
    frozen, runs = held_out.prediction(), held_out.stored()
    print(f"{held_out.name}: {len(runs)} of {len(frozen['cells'])} held-out runs are there\n")
    if runs.empty:
        return
    with pd.option_context("display.width", 200, "display.max_columns", 40):
        for law in held_out.laws:
            table = measured(frozen, runs, law)
            print(f"{law}: floor {BITS * frozen['laws'][law]['floor']:.3f}\n{table.round(3).to_string(index=False)}\n")
            print(summary(table).round(3).to_string(), "\n")
            print(ratios(frozen, table, law).round(3).to_string(index=False), "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["facts"]:
            main()
        case ["freeze", name] if name in SETS:
            freeze(SETS[name])
        case _:
            raise SystemExit(f"usage: python paper/realtext.py facts | freeze NAME, a NAME of {', '.join(SETS)}")
