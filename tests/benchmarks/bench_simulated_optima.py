"""Do intervals of optimal sizes cover where the truth is known, and are designs that cannot tell flagged?

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_simulated_optima.py [data sets] [out=FILE] [from=FIRST] [cell ...]
    python tests/benchmarks/bench_simulated_optima.py table FILE

Every cell draws runs from a law whose exponents vary a little from one data set to the next, fits them through
``sf.fit``, and asks for the best size at ten times the largest compute. Cells begin with what they show: ``own`` (the
fitted law is the truth), ``other`` (the truth is another named law; ``auto`` tries both), and ``flag`` (the runs cannot
tell what is asked, which must be refused or said in a note that names it). Each answer is appended to FILE as a line:
cell, data set, answered, held, upper over lower end, flagged.
"""

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scalefed as sf
from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.optimum import minimise
from scalefed.errors import ScalefedError
from scalefed.laws import LAWS

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.law_truths import TRUTHS

HEAD = ("cell", "set", "answered", "held", "width", "flagged")
CENTRE = {"a": 1e8, "b": 4e9}  # where a term keeps its size when its exponent changes
SPREAD = 0.1  # of the log of exponents, from one data set to the next
RESAMPLES = 300
SIZES, LENGTHS = np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 6.4e10, 6)
FEDERATED = {"clients_per_round": [1.0, 4.0, 16.0], "skew": [0.0, 0.5], "local_steps": [50.0]}


@dataclass(frozen=True)
class Cell:
    """One kind of data set.

    Attributes:
        truth: the law that draws the runs.
        law: the law that is fitted.
        noise: of log losses.
        grid: columns besides params and tokens.
        step: every so manieth size and length is kept.
        asked: of the best size, besides the compute.
        word: what a flag must name.
        thin: what is left of the runs.
    """

    truth: str
    law: str
    noise: float = 0.005
    grid: dict[str, list[float]] = field(default_factory=dict)
    step: int = 1
    asked: dict[str, float] = field(default_factory=dict)
    word: str = ""
    thin: Callable[[pd.DataFrame], pd.DataFrame] = lambda runs: runs


DIAGONAL = [0, 8, 16, 27, 35]  # as many runs as free parameters
ASKED = {"clients_per_round": 4.0, "skew": 0.0}
CELLS = {
    "own chinchilla": Cell("chinchilla", "chinchilla"),
    "own chinchilla, few": Cell("chinchilla", "chinchilla", step=2),
    "own chinchilla, noisy": Cell("chinchilla", "chinchilla", noise=0.01),
    "own chinchilla, auto": Cell("chinchilla", "auto"),
    "own coupled": Cell("coupled", "coupled"),
    "own coupled, auto": Cell("coupled", "auto"),
    "own federated": Cell("federated", "federated", grid=FEDERATED, step=2, asked=ASKED),
    "other coupled by chinchilla": Cell("coupled", "chinchilla"),
    "other chinchilla by coupled": Cell("chinchilla", "coupled"),
    "other steps by federated": Cell("federated-steps", "federated", grid=FEDERATED, step=2, asked=ASKED),
    "other steps by auto": Cell("federated-steps", "auto", grid=FEDERATED, step=2, asked=ASKED),
    "flag no spare run": Cell("chinchilla", "chinchilla", word="posterior", thin=lambda runs: runs.iloc[DIAGONAL]),
    "flag constant skew": Cell(
        "federated", "auto", grid={**FEDERATED, "skew": [0.5]}, step=2, asked={**ASKED, "skew": 0.9}, word="skew"
    ),
    "flag constant cohort": Cell(
        "federated", "auto", grid={**FEDERATED, "clients_per_round": [4.0]}, step=2,
        asked={"clients_per_round": 16.0, "skew": 0.0}, word="clients_per_round",
    ),
    "flag iid only": Cell(
        "federated", "auto", grid={**FEDERATED, "skew": [0.0]}, step=2, asked={**ASKED, "skew": 0.6}, word="skew"
    ),
}  # fmt: skip


def truth_of(name: str, generator: np.random.Generator) -> dict[str, float]:
    """The law's parameters with exponents of this data set's own."""
    values = dict(TRUTHS[name])
    for exponent, amplitude in (("a", "A"), ("b", "B")):
        before = values[exponent]
        values[exponent] *= float(np.exp(SPREAD * generator.standard_normal()))
        values[amplitude] *= float(CENTRE[exponent] ** (values[exponent] - before))
    return values


def one(cell: Cell, number: int) -> tuple[bool, bool, float, bool]:
    """Whether a data set was answered, its interval held the truth, how wide it was, and whether a flag was raised."""
    generator = np.random.default_rng([number, *map(ord, cell.truth + cell.law)])
    values = truth_of(cell.truth, generator)
    grid: dict[str, Any] = {"params": SIZES[:: cell.step], "tokens": LENGTHS[:: cell.step], **cell.grid}
    runs = cell.thin(sf.simulate_runs(cell.truth, values, grid, noise=cell.noise, seed=number))
    compute = 10 * float(runs["compute"].max())
    setting = Setting(**cell.asked, local_steps=50.0) if cell.grid else Setting()
    known = {name: np.array([value]) for name, value in values.items()}
    truth = float(minimise(LAWS[cell.truth], known, budget=Budget(compute=compute), setting=setting).params[0])
    try:
        fit = sf.fit(runs, cell.law, resamples=RESAMPLES, seed=number)
        best = fit.optimal_size(compute=compute, **cell.asked)
    except ScalefedError as error:
        return False, False, np.nan, cell.word in str(error)
    said = " ".join((*best.notes, *fit.notes))
    held = bool(best.params_low <= truth <= best.params_high)
    return True, held, best.params_high / best.params_low, bool(cell.word) and cell.word in said


def table(path: Path) -> None:
    """What the lines of a file say, one row a cell, and all of a kind together."""
    found = pd.read_csv(path, names=HEAD, sep=";")
    found["kind"] = found["cell"].str.split(" ", n=1).str[0]
    for by in ("cell", "kind"):
        rows = {
            name: {
                "sets": len(part),
                "answered": int(part["answered"].sum()),
                "held of answered": part.loc[part["answered"], "held"].mean(),
                "upper/lower": part["width"].median(),
                "refused or flagged": int((~part["answered"] | part["flagged"]).sum()),
            }
            for name, part in found.groupby(by, sort=False)
        }
        print(pd.DataFrame.from_dict(rows, orient="index").round(3).to_string())


def main(words: list[str]) -> None:
    """Draw, fit, ask and append; then the table."""
    if words[:1] == ["table"]:
        return table(Path(words[1]))
    options = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words if word in CELLS] or list(CELLS)
    count = next((int(word) for word in words if word.isdigit()), 200)
    path = Path(options.get("out", "simulated-optima.csv"))
    start = time.process_time()
    for number in range(int(options.get("from", 0)), count):
        for name in names:
            answer = one(CELLS[name], number)
            with path.open("a") as file:
                print(name, number, *answer, sep=";", file=file)
    print(f"{count} data sets a cell, {time.process_time() - start:.0f} s")
    return table(path)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
