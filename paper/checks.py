"""What does the law of the grid hang on, and what does it leave?

    python paper/checks.py           generated/checks.json

Sensitivity to weights, floor, law and runs; residuals by every variable; sizes, budgets and runs held out; both ways of
counting compute; matched controls; what AdamW does to a centred gradient; runs of unclean trees. All as strings.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scalefed as sf
from scalefed.analysis.isoflop import isoflop_optima
from scalefed.charts.theme import power, si
from scalefed.errors import FitWarning
from scalefed.fitting.weights import effective_runs
from scalefed.laws import LAWS

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))  # the scripts of the paper are no package
import study  # noqa: E402
from writing import write_facts  # noqa: E402

COMPUTE = 3e12
COUNTS = (1, 4, 16)
SKEW = 0.65
"""About what Dirichlet 0.1 deals."""
SMALL = 60_000
"""Parameters; what is larger is held out by size."""
FIRST_FIT = "2026-11-27T02:48:00+00:00"
"""When the fit that the largest budget was to be held against was committed (322f4c6)."""
OFF, FAR = 0.06, 0.2
"""Errors of a run that are counted: six and twenty per cent."""
SETTING = ["params", "tokens_asked", "clients_per_round", "concentration"]
RATE = 0.01
"""Of the visit whose update is looked at."""
VARIABLES = {
    "params": "parameters",
    "tokens_asked": "tokens",
    "clients_per_round": "clients a round",
    "concentration": "Dirichlet",
}


def facts() -> dict[str, Any]:
    """Everything the paper says of its own law's weaknesses."""
    runs = sf.load_runs(ROOT / "runs/grid")
    fit = sf.load_fit(ROOT / "fits/grid.json")
    return {
        "sensitivity": sensitivity(runs, fit),
        "scatter": scatter(runs, fit),
        "residuals": residuals(runs, fit),
        "size": size_held_out(runs, fit),
        "frozen": frozen_then(runs, fit),
        "axes": axes(runs, fit),
        "skewed_sizes": skewed_sizes(fit),
        "asymptotics": asymptotics(fit),
        "skew_cost": skew_cost(runs),
        "controls": controls(runs),
        "hyperplane": hyperplane(),
        "population": population(),
        "unclean": unclean(),
    }


# ---------------------------------------------------------------------- the fit
def sensitivity(runs: pd.DataFrame, fit: sf.Fit) -> list[list[str]]:
    """Best sizes, exponents and errors under other weights, floors, laws and runs."""
    small, iid = runs["params"] < SMALL, runs["concentration"] == np.inf
    plain: dict[str, Any] = {"scale_weight": 1.0, "fixed": fit.law.fixed}
    choices: list[tuple[str, pd.DataFrame, str, dict[str, Any]]] = [
        ("as fitted", runs, fit.law.name, plain),
        ("all runs weigh alike", runs, fit.law.name, {**plain, "scale_weight": 0.0}),
        ("weights to the power one half", runs, fit.law.name, {**plain, "scale_weight": 0.5}),
        ("weights squared", runs, fit.law.name, {**plain, "scale_weight": 2.0}),
        ("floor fitted", runs, fit.law.name, {**plain, "fixed": None}),
        ("one discount (federated-capacity)", runs, "federated-capacity", plain),
        ("federated-coupled", runs, "federated-coupled", plain),
        (f"at most {si(runs.loc[small, 'params'].max())} parameters", runs[small], fit.law.name, plain),
        (
            "iid runs alone",
            runs[iid],
            fit.law.name,
            {**plain, "fixed": {**fit.law.fixed, **dict.fromkeys("srht", 0.0)}},
        ),
    ]
    rows = []
    for words, part, name, options in choices:
        other = sf.fit(part, name, huber_delta=fit.huber_delta, resamples=0, backtest=False, **options)
        best = [_size(other, count) for count in COUNTS]
        errors = np.abs(_errors(other, part))
        weigh = effective_runs(
            {c: part[c].to_numpy(float) for c in other.law.columns}, other.law, options["scale_weight"]
        )
        rows.append([words, str(len(part)), f"{weigh:.0f}", *map(si, best), f"{np.median(errors):.1%}",
                     f"{other.params['E']:.3f}"])  # fmt: skip
    return rows


def scatter(runs: pd.DataFrame, fit: sf.Fit) -> dict[str, str]:
    """How far the runs lie from the law where all weigh alike, and how many weigh as the fit weighs them."""
    errors = _errors(fit, runs)
    weigh = effective_runs({c: runs[c].to_numpy(float) for c in fit.law.columns}, fit.law, 1.0)
    return {
        "effective": f"{weigh:.0f}",
        "rms": f"{np.sqrt(np.mean(errors**2)):.0%}",
        "median": f"{np.median(np.abs(errors)):.1%}",
        "off": f"{np.mean(np.abs(errors) > OFF):.0%}",
        "far": f"{np.mean(np.abs(errors) > FAR):.0%}",
        "off_words": f"{OFF:.0%}",
        "far_words": f"{FAR:.0%}",
    }


def residuals(runs: pd.DataFrame, fit: sf.Fit) -> list[list[list[str]]]:
    """Predicted over measured by each value of each variable, unweighted: mean and root mean square, in two halves."""
    errors = pd.Series(_errors(fit, runs), index=runs.index)
    rows = []
    for column, words in VARIABLES.items():
        for value, index in runs.groupby(column).groups.items():
            own = errors.loc[index]
            told = "iid" if value == np.inf else si(float(value)) if value > 100 else f"{value:g}"  # type: ignore[arg-type,operator]
            rows.append([f"{words} {told}", str(len(own)), f"{own.mean():+.1%}", f"{np.sqrt((own**2).mean()):.1%}"])
    half = len(rows) // 2
    return [rows[:half], rows[half:]]


def size_held_out(runs: pd.DataFrame, fit: sf.Fit) -> dict[str, str]:
    """Larger models predicted from smaller ones."""
    small = runs["params"] < SMALL
    other = _refitted(runs[small], fit, resamples=200)
    return {
        "sizes": " and ".join(si(size) for size in np.sort(runs.loc[~small, "params"].unique())),
        "runs": str((~small).sum()),
        "fitted": si(runs.loc[small, "params"].max()),
        **_held(other, runs[~small]),
        "best": ", ".join(si(_size(other, count)) for count in COUNTS),
    }


def frozen_then(runs: pd.DataFrame, fit: sf.Fit) -> dict[str, str]:
    """The largest budget by the runs that were there when the law was committed, and without a law."""
    largest = runs["tokens_asked"].max()
    held = runs[runs["tokens_asked"] == largest]
    known = runs[(runs["started"] < FIRST_FIT) & (runs["tokens_asked"] < largest)]
    means = runs.groupby([*SETTING[:1], *SETTING[2:], "tokens_asked"])["loss"].mean().unstack("tokens_asked")
    means = means[means[largest].notna()]
    half, quarter = means[largest / 2], means[largest / 4]
    line = half**2 / quarter
    other = _refitted(known, fit, resamples=200)
    of_means = held.groupby(SETTING, as_index=False)[["loss", "tokens", "skew"]].mean()
    return {
        "known": str(len(known)),
        "unclean": str(int(held["dirty"].sum())),
        **_held(other, held),
        "means": f"{np.median(np.abs(_errors(other, of_means))):.1%}",
        "same": f"{np.median(np.abs(half / means[largest] - 1).dropna()):.1%}",
        "line": f"{np.median(np.abs(line / means[largest] - 1).dropna()):.1%}",
        "half": si(float(largest / 2)),
    }


def asymptotics(fit: sf.Fit) -> dict[str, str]:
    """Whether clients matter at scale: the steps term outlives the data term where d is below b."""
    draws = fit.replicates
    return {"steps_first": f"{(draws['d'] > draws['b']).mean():.0%}", "draws": f"{len(draws):,}"}


# ---------------------------------------------------------------------- sizes
def axes(runs: pd.DataFrame, fit: sf.Fit) -> dict[str, Any]:
    """Best sizes where compute is 6 N D, and where everything is counted; measured ones beside."""
    other = _refitted(runs, fit, resamples=0)
    iid = runs[runs["concentration"] == np.inf]
    rows = []
    for axis, words in (("compute", "6 N D"), ("compute_exact", "counted")):
        measured = isoflop_optima(iid, COMPUTE, axis=axis, floor=fit.params["E"]).set_index("clients_per_round")
        for count in COUNTS:
            best = other.plan(**{axis: COMPUTE}, clients=16, clients_per_round=count, skew=0)
            size = measured["params"].get(count, np.nan)
            rows.append([words, str(count), si(best.params), si(size) if np.isfinite(size) else "-", si(best.tokens),
                         f"{best.loss:.3f}"])  # fmt: skip
    ratio = (runs["compute_exact"] / runs["compute"]).groupby(runs["params"]).mean()
    return {"rows": rows, "compute": power(COMPUTE), "most": f"{ratio.max():.1f}", "least": f"{ratio.min():.2f}",
            "smallest": si(ratio.index.min()), "largest": si(ratio.index.max())}  # fmt: skip


def skewed_sizes(fit: sf.Fit) -> str:
    """Best sizes with skewed clients."""
    best = [fit.optimal_size(compute=COMPUTE, clients=16, clients_per_round=m, skew=SKEW).params for m in (1, 4)]
    return " and ".join(map(si, best))


def population() -> dict[str, Any]:
    """The three corollaries in the number of clients: best size and loss at equal compute, by the law of the study."""
    fit = sf.load_fit(ROOT / "fits/study.json")
    counts = (16, 64, 256, 1024)
    rows, sizes = [], {}
    for cohort in (4, 16):
        for clients in counts:
            best = fit.optimal_size(compute=COMPUTE, clients=clients, clients_per_round=cohort, skew=0, local_steps=25)
            sizes[cohort, clients] = best.params
            size = f"{si(best.params)} ({si(best.params_low)} to {si(best.params_high)})"
            loss = f"{best.loss:.3f} ({best.loss_low:.3f} to {best.loss_high:.3f})"
            rows.append([str(cohort), f"{clients:,}", size, loss])
    slope = np.polyfit(np.log(counts), [np.log(sizes[4, k]) for k in counts], 1)[0]
    budgets = (COMPUTE, 10 * COMPUTE)
    grown = [
        fit.optimal_size(compute=c, clients=16, clients_per_round=4, skew=0, local_steps=25).params for c in budgets
    ]
    away = study.given_away(fit)
    worst = [max(float(row[cell].rstrip("%")) for row in away) for cell in (3, 5, 7)]
    told = {name: f"{value:.3g}%" for name, value in zip(("central", "cohort", "all"), worst, strict=True)}
    return {"rows": rows, "q": f"{-slope:.2f}", "p": f"{np.log10(grown[1] / grown[0]):.2f}", **told}


# ---------------------------------------------------------------------- skew, controls
def skew_cost(runs: pd.DataFrame) -> dict[str, Any]:
    """Rise of the loss from iid to the most skewed clients in fixed cells, by budget."""
    skewed = runs["concentration"].min()
    means = np.log(runs[runs["concentration"].isin([skewed, np.inf])].groupby(SETTING)["loss"].mean()).unstack(
        "concentration"
    )
    cost = np.expm1(means[skewed] - means[np.inf]).unstack("tokens_asked").dropna(thresh=4)
    cost = cost.loc[:, cost.notna().any()]
    heads = ["parameters", "a round", *(si(float(tokens)) for tokens in cost.columns)]
    rows = [[si(float(size)), f"{count:g}", *(f"{value:+.0%}" if np.isfinite(value) else "" for value in row)]
            for (size, count), row in zip(cost.index, cost.to_numpy(), strict=True)]  # fmt: skip
    return {"heads": heads, "rows": rows}


def controls(runs: pd.DataFrame) -> list[list[str]]:
    """One client with the batch of four or sixteen, at the best rate tried, beside as many clients at equal tokens."""
    batches = sf.load_runs(ROOT / "runs/controls")
    rows = []
    for (size, batch), part in batches.groupby(["params", "batch_size"]):
        cohort = round(float(batch) / runs["batch_size"].iloc[0])  # type: ignore[arg-type]
        alike = (runs["params"] == size) & (runs["concentration"] == np.inf)
        alike &= np.abs(runs["tokens"] / part["tokens"].iloc[0] - 1) < 0.05
        best = part.loc[part["loss"].idxmin()]
        losses = [runs.loc[alike & (runs["clients_per_round"] == count), "loss"].mean() for count in (1, cohort)]
        rows.append([si(float(size)), str(cohort), *(f"{loss:.3f}" for loss in losses), f"{best['loss']:.3f}",  # type: ignore[arg-type]
                     ", ".join(f"{rate:g}" for rate in sorted(part["learning_rate_scale"]))])  # fmt: skip
    return rows


def hyperplane() -> dict[str, str]:
    """How much of the length of one visit's update lies off the hyperplane of the centred gradients it was made of."""
    import torch  # noqa: PLC0415

    from scalefed.federated.centralisation import everywhere  # noqa: PLC0415
    from scalefed.federated.client import local_updates  # noqa: PLC0415
    from scalefed.federated.preparation import prepare  # noqa: PLC0415
    from scalefed.federated.state import ClientTask, Correction  # noqa: PLC0415
    from scalefed.models import build_model  # noqa: PLC0415

    shares = {}
    for optimizer in ("sgd", "adamw"):
        config = sf.RunConfig(params=14_000, tokens=200_000, clients=16, clients_per_round=4, algorithm="gc-local",
                              inner_optimizer=optimizer, inner_momentum=0.9 if optimizer == "sgd" else 0.0,
                              centralised_vectors="keep")  # fmt: skip
        model, task = build_model(config), prepare(config)
        centre = everywhere(config, model.layout)
        start = model.initial(seed=0)
        batches = torch.from_numpy(task.data.batches(0, visit=0, steps=config.local_steps).astype(np.int64))
        work = ClientTask(0, batches, correction=Correction(centring=centre))
        (update,) = local_updates(model, start, [work], config, learning_rates=[RATE] * config.local_steps)
        moved = update.weights - start
        shares[optimizer] = f"{float((moved - centre(moved)).norm() / moved.norm()):.1%}"
    return shares


def unclean() -> dict[str, Any]:
    """Runs from trees with changes that no commit holds: marked ``dirty`` in the log, not made again."""
    counts = {}
    for path in sorted(ROOT.glob("runs/*/runs.parquet")):
        counts[path.parent.name] = int((sf.load_runs(path.parent)["dirty"] == True).sum())  # noqa: E712  it may be missing
    kept = {name: count for name, count in counts.items() if count}
    return {
        "total": str(sum(kept.values())),
        "sweeps": ", ".join(f"{count} of runs/{name}" for name, count in kept.items()),
    }


# ---------------------------------------------------------------------- parts
def _refitted(runs: pd.DataFrame, fit: sf.Fit, *, resamples: int) -> sf.Fit:
    return sf.fit(runs, LAWS[fit.law.name], fixed=fit.law.fixed, scale_weight=1.0, huber_delta=fit.huber_delta,
                  resamples=resamples, backtest=False)  # fmt: skip


def _held(fit: sf.Fit, held: pd.DataFrame) -> dict[str, str]:
    bands = fit.predict(held, level=0.9)
    errors = bands["estimate"].to_numpy() / held["loss"].to_numpy() - 1
    inside = (held["loss"].to_numpy() >= bands["low"].to_numpy()) & (
        held["loss"].to_numpy() <= bands["high"].to_numpy()
    )
    return {
        "error": f"{np.median(np.abs(errors)):.1%}",
        "bias": f"{np.median(errors):+.1%}",
        "inside": f"{inside.mean():.0%}",
    }


def _errors(fit: sf.Fit, runs: pd.DataFrame) -> "np.ndarray[Any, Any]":
    return fit.predict(runs)["estimate"].to_numpy() / runs["loss"].to_numpy() - 1


def _size(fit: sf.Fit, count: float) -> float:
    setting = {"clients_per_round": count, **({"skew": 0.0} if "skew" in fit.law.columns else {})}
    return float(fit.optimal_size(compute=COMPUTE, clients=16, **setting).params)


def main() -> None:
    """Write everything and print it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        told = facts()
    write_facts("checks", told)


if __name__ == "__main__":
    main()
