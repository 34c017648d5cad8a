"""Do the forms of this library hold on runs that others have published?

    python paper/published.py                 DiLoCo's tables; what was said of repeated text stays as it is
    python paper/published.py CONTOURS.csv    repeated text too: the runs of Muennighoff et al. 2023, one a row, with
                                              params, tokens, epochs, unique_tokens and loss (not part of this project)

Both write ``generated/published.json``, from which ``published.typ`` prints. DiLoCo's losses stand in ``published/``.
"""

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from writing import write_facts

import scalefed as sf
from scalefed.errors import FitWarning
from scalefed.laws import Law

HERE = Path(__file__).parent
TARGET = HERE / "generated/published.json"
LEAST_SQUARES = 1.0
"""A Huber threshold above every error of log loss: least squares of logs."""
TOKENS_PER_PARAM = 20
"""Of every run in DiLoCo's tables (its section 3.1)."""
BILLION = 1e9

FORMS = {
    "A N^a M^b": "A * clients_per_round^g / params^a",
    "A N^a M^b + C": "E + A * clients_per_round^g / params^a",
    "A N^(a + bM) + C": "E + A / params^(a + g*clients_per_round)",
    "A N^a + B M^b + C": "E + A/params^a + B*clients_per_round^b",
    "federated-steps, no data term": "E + A/params^a + G/(tokens/clients_per_round)^c",
    "federated, iid": "E + A/params^a + B/(tokens/clients_per_round^g)^b",
}
"""DiLoCo's own forms (its section 6.5), then ours. Where tokens are 20 params, a data term is a second size term."""
HELD_OUT = ((1.3, (2.4,)), (2.4, (4.0, 10.0)))
"""Billions of parameters: the largest size fitted, and the sizes predicted from it."""

R_TOKENS, R_PARAMS = 15.387756, 5.309743
MUENNIGHOFF = {"A": np.exp(6.255414), "B": np.exp(7.3049974), "E": np.exp(0.6254804), "a": 0.3526596}
"""Fitted constants of Muennighoff et al. 2023 (arXiv 2305.16264), appendix A; both exponents are the same."""
OWN_PARAMS = (MUENNIGHOFF["A"] / MUENNIGHOFF["B"]) ** (1 / MUENNIGHOFF["a"])
"""Parameters that a different token can feed, by those constants: the best size for the text seen once."""
DIVERGED = 7.0
"""Nats a token; runs above have diverged."""
LARGE = 1.2e9
MANY = 20
"""Held out: runs of more parameters, runs of more passes."""
PASSES = ((1.01, "1"), (4.5, "to 4"), (20, "4 to 20"), (100, "20 to 100"), (np.inf, "more"))
"""Upper ends of the groups of passes that are told apart."""
_OVERFITTING = "O*(params/10000)^w*(tokens/unique_tokens)^x/(unique_tokens/10000)^v"
REPEATS = {
    "chinchilla": "E + A/params^a + B/tokens^b",
    "data-constrained": "E + A/params^a + B/repeats(tokens, unique_tokens, R)^b",
    "theirs, refitted": f"E + A/repeats(params, {OWN_PARAMS:.6f}*unique_tokens, P)^a"
    " + B/repeats(tokens, unique_tokens, R)^b",
    "chinchilla and overfitting": f"E + A/params^a + B/tokens^b + {_OVERFITTING}",
    "repeats and overfitting": f"E + A/params^a + B/repeats(tokens, unique_tokens, R)^b + {_OVERFITTING}",
}
"""Laws of text that comes round again: the last two add the overfitting term of ``federated-data-constrained``."""
_DECAY: dict[str, tuple[float | None, float | None]] = {"R": (0.05, 1e4), "P": (0.05, 1e4)}


def main(words: Sequence[str]) -> None:
    """Write what is said of published runs, and print it."""
    if len(words) > 1:
        raise SystemExit(f"got {' '.join(words)}; allowed: nothing, or one table of runs")
    told = write(Path(words[0]) if words else None)
    for group, facts in told.items():
        print(group)
        for name, value in facts.items():
            print(f"  {name}", *(value if isinstance(value, list) else [value]), sep="\n    ")


def write(contours: Path | None = None) -> dict[str, Any]:
    """DiLoCo's part made anew, the part on repeated text too where its runs are given."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # the tables say what cannot be identified
        stored = json.loads(TARGET.read_text(encoding="utf-8")) if TARGET.exists() else {}
        told = {**stored, "diloco": diloco()}
        if contours:
            told["repeats"] = repeats(pd.read_csv(contours))
    write_facts("published", told, show=False)
    return told


# ---------------------------------------------------------------------- DiLoCo
def diloco() -> dict[str, Any]:
    """Error of each form at the sizes it was not fitted to."""
    runs = pd.read_csv(HERE / "published/diloco.csv", comment="#")
    runs["tokens"] = TOKENS_PER_PARAM * runs["params"]
    printed = pd.read_csv(HERE / "published/diloco_residuals.csv", comment="#").set_index("form")["residual"]
    rows, loose = [], []
    for name, formula in FORMS.items():
        cells, statuses = _by_size(runs, formula, LEAST_SQUARES)
        robust, _ = _by_size(runs, formula, "auto")
        if "NOT_IDENTIFIED" in statuses:
            loose.append(name)
        both = [f"{cell} ({other})" for cell, other in zip(cells, robust, strict=True)]
        rows.append([name, *both, f"{printed[name]:.2%}" if name in printed else "-"])
    sizes = [f"{size:g}B" for _, held in HELD_OUT for size in held]
    heads = ["form", "fitted sizes", *sizes, f"printed, {sizes[0]}"]
    return {"runs": str(len(runs)), "heads": heads, "rows": rows, "loose": " and ".join(loose)}


def _by_size(runs: pd.DataFrame, formula: str, delta: float | str) -> tuple[list[str], list[str]]:
    """Mean absolute error of log loss: on the sizes fitted, then at each size held out."""
    inside, outside, statuses = "", [], []
    for largest, sizes in HELD_OUT:
        known = runs[runs["params"] <= largest * BILLION]
        fit = sf.fit(known, Law.parse(formula), huber_delta=delta, resamples=0, backtest=False)
        statuses.append(fit.status.name)
        inside = _mean_error(fit, known)
        outside += [_mean_error(fit, runs[runs["params"] == size * BILLION]) for size in sizes]
    return [inside, *outside], statuses


def _mean_error(fit: sf.Fit, runs: pd.DataFrame) -> str:
    return f"{np.abs(_errors(fit.predict(runs)['estimate'], runs)).mean():.2%}"


def _errors(told: Any, runs: pd.DataFrame) -> "np.ndarray[Any, Any]":
    return np.log(np.asarray(told) / runs["loss"].to_numpy())


# ---------------------------------------------------------------------- text that comes round again
def repeats(runs: pd.DataFrame) -> dict[str, Any]:
    """Error of each law by passes, and at the sizes and passes it was not fitted to."""
    whole = len(runs)
    runs = runs[runs["loss"] < DIVERGED].reset_index(drop=True)
    constants = _errors(published_law(runs), runs)
    large, many = runs["params"] > LARGE, runs["epochs"] > MANY
    rows = [
        ["theirs, as published", *_by_passes(constants, runs), *(_median(constants[held]) for held in (large, many))]
    ]
    told: dict[str, Mapping[str, float]] = {}
    for name, formula in REPEATS.items():
        law = Law.parse(formula)
        law = Law.parse(formula, bounds={key: ends for key, ends in _DECAY.items() if key in law.parameters})
        fit, *halves = (
            sf.fit(known, law, huber_delta="auto", resamples=0, backtest=False)
            for known in (runs, runs[~large], runs[~many])
        )
        told[name] = fit.params
        held = [
            _median(_errors(half.predict(runs[out])["estimate"], runs[out]))
            for half, out in zip(halves, (large, many), strict=True)
        ]
        rows.append([name, *_by_passes(_errors(fit.predict(runs)["estimate"], runs), runs), *held])
    best = told["repeats and overfitting"]
    return {
        "runs": str(len(runs)),
        "diverged": str(whole - len(runs)),
        "heads": ["", *(f"{words} ({count})" for (_, words), count in zip(PASSES, _counts(runs), strict=True)),
                  f"over {LARGE / BILLION:g}B", f"over {MANY} passes"],
        "rows": rows,
        "bias": f"{np.median(constants):+.1%}",
        "R": f"{told['data-constrained']['R']:.0f}",
        "at_bound": f"{best['R']:,.0f}",
        "w": f"{best['w']:.2f}",
        "x": f"{best['x']:.2f}",
        "v": f"{best['v']:.2f}",
    }  # fmt: skip


def published_law(runs: pd.DataFrame) -> "np.ndarray[Any, Any]":
    """Loss by the published constants: parameters beyond those that the text can feed are worth less too."""
    told = MUENNIGHOFF["E"] * np.ones(len(runs))
    for size, column, fresh, decay in (
        ("A", "params", OWN_PARAMS * runs["unique_tokens"], R_PARAMS),
        ("B", "tokens", runs["unique_tokens"], R_TOKENS),
    ):
        first = np.minimum(runs[column], fresh)
        worth = first * (1 + decay * (1 - np.exp(-(runs[column] / first - 1) / decay)))
        told += MUENNIGHOFF[size] / worth.to_numpy() ** MUENNIGHOFF["a"]
    return told


def _by_passes(errors: "np.ndarray[Any, Any]", runs: pd.DataFrame) -> list[str]:
    return [_median(errors[_groups(runs) == group]) for group in range(len(PASSES))]


def _counts(runs: pd.DataFrame) -> list[int]:
    return np.bincount(_groups(runs), minlength=len(PASSES)).tolist()


def _groups(runs: pd.DataFrame) -> "np.ndarray[Any, Any]":
    return np.searchsorted([end for end, _ in PASSES], runs["epochs"].to_numpy())


def _median(errors: Any) -> str:
    return f"{np.median(np.abs(errors)):.1%}"


if __name__ == "__main__":
    main(sys.argv[1:])
