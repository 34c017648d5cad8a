"""Commands that read runs: runs, fit, compare."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalefed.cli.help import add
from scalefed.cli.output import (
    bounds_from,
    columns_from,
    number,
    pairs_from,
    rows_of,
    say,
    tell,
    tell_frame,
    tell_json,
)
from scalefed.cli.progress import working

if TYPE_CHECKING:
    import pandas as pd

    from scalefed.fitting.fit import Fit
    from scalefed.laws import Law as LawType

Source = Annotated[
    Path, typer.Argument(help="A folder of runs, a .csv, .tsv, .parquet, .jsonl or .json table, or a tracker's store.")
]
FitOrRuns = Annotated[Path, typer.Argument(help="A saved fit (.json), or runs to fit.")]
Law = Annotated[str, typer.Option(help="A named law, a formula such as 'E + A/params^a', or auto: the best of a few.")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="What the file calls a column: params=N; may be repeated.")
]
Sweep = Annotated[str | None, typer.Option(help="Only the runs of this sweep.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="What is held fixed: clients=16 participation=0.25 skew=0 ..."),
]
Fix = Annotated[list[str] | None, typer.Option(help="Hold a parameter: E=0.2; may be repeated.")]
Target = Annotated[str, typer.Option(help="Column that the law explains.")]
HuberDelta = Annotated[str, typer.Option(help="Width of the Huber loss in log units, 'auto' or 'none'.")]
Covariates = Annotated[
    str | None, typer.Option(help="With --passk: what counts beside the loss, for example tokens,params,skew")
]
ScaleWeight = Annotated[
    float | None, typer.Option(help="Weight of a run grows as its scale to this power; by back-test if left out.")
]
Cluster = Annotated[
    str | None, typer.Option(help="Column whose equal values are checkpoints of one run, resampled together.")
]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.")]
Resamples = Annotated[int, typer.Option(min=0, help="Bootstrap replicates.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

SHOWN = ("run_id", "status", "params", "tokens", "compute", "clients_per_round", "clients", "concentration", "skew",
         "loss", "pass_at_1", "pass_at_10")  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    add(app, runs, "scalefed runs runs/pilot --sort loss --show run_id,params,loss,pass_at_1")
    add(
        app,
        fit,
        "scalefed fit runs/pilot --out fits/pilot.json",
        "scalefed fit mine.csv --law chinchilla --column params=N --column tokens=D",
    )
    add(
        app,
        compare,
        "scalefed compare runs/pilot --law chinchilla --law federated --holdout tokens",
        "scalefed compare runs/pilot --law chinchilla --law federated --holdout 0.2 --fix E=0.2009 --passk",
    )


def runs(
    source: Source = Path("runs"),
    sweep: Sweep = None,
    rounds: Annotated[bool, typer.Option("--rounds", help="One row a round.")] = False,
    show: Annotated[str | None, typer.Option(help="Columns to print, separated by commas; 'all' for all.")] = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort by.")] = None,
    column: Columns = None,
    out: Annotated[Path | None, typer.Option(help="Write all columns to a .csv, .parquet or .jsonl file.")] = None,
    as_json: Json = False,
) -> None:
    """List stored runs, one row each.

    With --rounds one row a round, also of another tool's log: Flower's History, a Trainer's state, TensorBoard, MLflow,
    or a table.
    """
    from scalefed.errors import ConfigError
    from scalefed.runs.log import load_runs, require

    if rounds and is_foreign(source):
        frame, show = _rounds_of(source, column), show or "all"
    else:
        frame = load_runs(source, rounds=rounds, columns=columns_from(column), sweep=sweep)
    if sort:
        frame = require(frame, [sort]).sort_values(sort, kind="stable")
    if out is not None:
        if not out.name.endswith((".csv", ".parquet", ".jsonl")):
            raise ConfigError(f"--out must end in .csv, .parquet or .jsonl, got {out.name!r}")
        _write_table(frame, out)
        say(f"{len(frame)} rows written to {out}")
        return
    if rounds and not show:
        names = ["run_id", "round", "tokens", "loss", "train_loss", "learning_rate", "update_norm"]
    else:
        names = (
            list(frame.columns) if show == "all" or (as_json and not show) else show.split(",") if show else list(SHOWN)
        )
    if show and show != "all":
        require(frame, names)
    tell_frame(rows_of(frame, names), as_json=as_json)


def fit(
    source: Source,
    law: Law = "auto",
    target: Target = "loss",
    huber_delta: HuberDelta = "auto",
    fix: Fix = None,
    bound: Annotated[
        list[str] | None, typer.Option(help="Keep a parameter within a=0.1:0.6, or a=0.1: at least; may be repeated.")
    ] = None,
    tie: Annotated[list[str] | None, typer.Option(help="One value for two: b=a; may be repeated.")] = None,
    huber_above: Annotated[
        float | None,
        typer.Option(help="That width for runs above the law, as a share: 0.1 where some were tuned too little."),
    ] = None,
    scale_weight: ScaleWeight = None,
    weights: Annotated[str | None, typer.Option(help="Column of how much a run counts, times its scale's.")] = None,
    standard_errors: Annotated[
        str | None, typer.Option(help="Column of the target's standard errors: a run weighs their inverse square.")
    ] = None,
    passk: Annotated[bool, typer.Option("--passk", help="Link loss to pass@k, from the runs' success counts.")] = False,
    covariates: Covariates = None,
    resamples: Resamples = 1000,
    intervals: Annotated[
        str, typer.Option(help="How replicates are made: auto, bootstrap, posterior (for few runs), and their kinds.")
    ] = "auto",
    seed: Seed = 0,
    cluster: Cluster = None,
    column: Columns = None,
    sweep: Sweep = None,
    out: Annotated[Path | None, typer.Option(help="Keep the fit in this .json file.")] = None,
    as_json: Json = False,
) -> None:
    """Fit a scaling law: parameters with intervals, and a status."""
    from scalefed.fitting.fit import fit as make
    from scalefed.runs.log import load_counts

    options: dict[str, Any] = {"law": law, "target": target, "resamples": resamples, "seed": seed}
    options |= {"cluster": cluster, "intervals": intervals}
    options["huber_delta"] = _width(huber_delta)
    options |= {"huber_above": huber_above, "weights": weights, "standard_errors": standard_errors}
    options |= {"scale_weight": scale_weight, "ties": pairs_from(tie, "--tie b=a"), "bounds": bounds_from(bound)}
    if held := pairs_from(fix, "--fix E=0.2"):
        options["fixed"] = {name: number(value) for name, value in held.items()}
    where: dict[str, Any] = {}
    if source.suffix == ".toml":
        source, asked, answer = _question(source)
        passk, covariates = bool(asked.pop("passk", passk)), asked.pop("covariates", covariates)
        where = asked.pop("where", {})
        options, out = options | asked, out or answer
    covariate_names = _covariate_names(covariates, passk=passk)
    frame, own = table_of(source, column, sweep)
    frame = _chosen(frame, where)
    with working("Fitting the law ..."):
        result = make(frame, **options, columns=own)
    result = replace(result, source=None if sweep or where else str(source), columns=columns_from(column) or {})
    if passk:
        result = result.with_link(load_counts(source), covariates=covariate_names)
    if out is not None:
        result.save(out)
        say(f"fit written to {out}")
    if as_json:
        tell_json(_fit_as_json(result))
    else:
        tell(str(result))


def compare(
    source: Source,
    law: Annotated[list[str] | None, typer.Option(help="A law to compare; may be repeated.")] = None,
    holdout: Annotated[
        str | None, typer.Option(help="Runs to hold out: a share, a column such as tokens, or 'tokens > 8e6'.")
    ] = None,
    passk: Annotated[bool, typer.Option("--passk", help="Predict pass@1 of the held-out runs too.")] = False,
    covariates: Covariates = None,
    settings: Annotated[
        str | None,
        typer.Option(help="Hold laws against the means of runs that agree in these columns: params,tokens_asked"),
    ] = None,
    target: Target = "loss",
    huber_delta: HuberDelta = "auto",
    fix: Fix = None,
    scale_weight: ScaleWeight = None,
    resamples: Resamples = 200,
    seed: Seed = 0,
    column: Columns = None,
    sweep: Sweep = None,
    as_json: Json = False,
) -> None:
    """Compare laws by how well they predict larger, unseen runs."""
    import warnings

    from scalefed.analysis.compare import compare as judge_laws
    from scalefed.errors import FitWarning
    from scalefed.fitting.fit import fit as make
    from scalefed.laws import as_law
    from scalefed.runs.log import load_counts

    frame, own = table_of(source, column, sweep)
    laws = [
        as_law(name, columns=list(own))
        for name in law or ("chinchilla", "average-compute", "federated", "federated-steps")
    ]
    options: dict[str, Any] = {} if holdout is None else {"holdout": number(holdout)}
    covariate_names = _covariate_names(covariates, passk=passk)
    if passk:
        options |= {"counts": load_counts(source), "covariates": covariate_names}
    if settings:
        options["settings"] = settings.split(",")
    asked: dict[str, Any] = {
        "target": target,
        "huber_delta": _width(huber_delta),
        "scale_weight": scale_weight,
        "resamples": resamples,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # the table has a status for every law
        with working("Fitting the laws ..."):
            fits = [
                make(frame, one, fixed=held, seed=seed, **asked)
                for one, held in zip(laws, _held(fix, laws), strict=True)
            ]
            table = judge_laws(*fits, **options)
    tell_frame(table, as_json=as_json, index="law")


# ---------------------------------------------------------------------- helpers
def _width(huber_delta: str) -> Any:
    return {"none": None, "auto": "auto"}.get(huber_delta.lower(), number(huber_delta))


def _held(fix: list[str] | None, laws: "Sequence[LawType]") -> list[dict[str, float]]:
    """Of the parameters to hold, those that each law has; one that no law has is a mistake."""
    from scalefed.errors import ConfigError, nearest

    held = {name: number(value) for name, value in pairs_from(fix, "--fix E=0.2").items()}
    known = {parameter for law in laws for parameter in law.parameters}
    for name in held:
        if name not in known:
            raise ConfigError(f"no law here has a parameter {name!r} to hold; {nearest(name, sorted(known))}")
    return [{name: value for name, value in held.items() if name in law.parameters} for law in laws]


def fit_of(source: Path, law: str, column: list[str] | None = None) -> "Fit":
    """The fit in a .json file, else a fit of the law to these runs."""
    from scalefed.fitting.fit import fit as make
    from scalefed.fitting.store import is_fit

    if source.suffix == ".json" and (column is None or is_fit(source)):
        return saved_fit(source)
    frame, own = table_of(source, column)
    with working("Fitting the law ..."):
        made = make(frame, law, columns=own)
    return replace(made, source=str(source), columns=columns_from(column) or {})


def table_of(source: Path, column: list[str] | None, sweep: str | None = None) -> "tuple[pd.DataFrame, dict[str, str]]":
    """The runs under our names, and the columns of a law of one's own, each under its name."""
    from scalefed.fitting.data import read_frame
    from scalefed.runs.log import load_runs
    from scalefed.runs.schema import COLUMNS

    names = columns_from(column)
    frame = load_runs(source, columns=names, sweep=sweep) if sweep else read_frame(source, names)[0]
    return frame, {name: name for name in names or {} if name not in COLUMNS}


def _rounds_of(source: Path, column: list[str] | None) -> "pd.DataFrame":
    from scalefed.errors import DataError
    from scalefed.runs.importers.rounds import import_rounds

    try:
        return import_rounds(source, columns=columns_from(column))
    except DataError as error:
        raise DataError(f"rounds are kept in run folders, or in another tool's log: {error}") from error


def is_foreign(source: Path) -> bool:
    """Whether a source is no folder of runs of scalefed."""
    from scalefed.runs.log import run_folders

    return not source.is_dir() or next(iter(run_folders(source)), None) is None


def _question(path: Path) -> tuple[Path, dict[str, Any], Path]:
    """The runs, the options and the place of the answer that a question file names; paths are relative to it."""
    from scalefed.config import read_toml
    from scalefed.errors import ConfigError, nearest

    allowed = ("runs", "law", "target", "huber_delta", "huber_above", "scale_weight", "weights", "standard_errors",
               "fixed", "bounds", "ties", "resamples", "seed", "cluster", "passk", "covariates", "where")  # fmt: skip
    asked = read_toml(path)
    for name in asked:
        if name not in allowed:
            raise ConfigError(f"{path}: unknown key {name!r}; {nearest(name, allowed)}")
    if "runs" not in asked:
        raise ConfigError(f'{path} names no runs; add a line such as runs = "../runs/pilot"')
    return path.parent / asked.pop("runs"), asked, path.with_suffix(".json")


def _chosen(frame: "pd.DataFrame", where: Mapping[str, Any]) -> "pd.DataFrame":
    """The runs whose columns have the values that a question file asks for, one or any of a list."""
    from scalefed.errors import DataError
    from scalefed.runs.log import require

    require(frame, list(where))
    for name, value in where.items():
        values = value if isinstance(value, list) else [value]
        kept = frame[frame[name].isin(values)]
        if not len(kept):
            seen = ", ".join(sorted({str(one) for one in frame[name].dropna()})[:8])
            raise DataError(f"where asks for {name} = {value!r}, which no run has; there are {seen or 'none'}")
        frame = kept
    return frame


def _covariate_names(given: str | Sequence[str] | None, *, passk: bool) -> tuple[str, ...]:
    """Columns that count beside the loss: words with commas from the shell, a list from a question file."""
    from scalefed.errors import ConfigError

    if given and not passk:
        raise ConfigError("--covariates says what the link of --passk looks at beside the loss; give --passk too")
    return tuple(given.split(",") if isinstance(given, str) else given or ())


def saved_fit(source: Path) -> "Fit":
    """The fit in a .json file.

    Raises:
        DataError: there is none; the message says how to make one.
    """
    from scalefed.errors import DataError
    from scalefed.fitting.fit import load_fit

    if not source.is_file():
        raise DataError(f"no fit at {source}; make one: scalefed fit <runs> --out {source}")
    return load_fit(source)


def _fit_as_json(result: "Fit") -> dict[str, Any]:
    return {
        "law": result.law.name,
        "formula": result.law.formula,
        "target": result.target,
        "status": result.status.name,
        "message": result.message,
        "runs": len(result.runs),
        "holdout_error": result.holdout_error,
        "params": result.summary().to_dict("index"),
    }


def _write_table(frame: Any, out: Path) -> None:
    if out.suffix == ".csv":
        frame.to_csv(out, index=False)
    elif out.suffix == ".parquet":
        frame.to_parquet(out, index=False)
    else:
        from scalefed.runs.jsontext import dumps

        out.write_text("".join(dumps(row) + "\n" for row in frame.to_dict("records")), encoding="utf-8")
