"""Commands that ask: optimum (a size, a plan, a sweep, the least compute), next and, before any fit, first."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from scalefed.cli.fit import Columns, FitOrRuns, Json, Law, Settings, fit_of
from scalefed.cli.help import add
from scalefed.cli.output import number, options_from, tell, tell_frame, tell_json


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    add(
        app,
        optimum,
        "scalefed optimum fits/pilot.json --compute 1e15 clients=16 participation=0.25",
        "scalefed optimum fits/pilot.json --compute 1e13,1e14,1e15 clients_per_round=4",
        "scalefed optimum fits/pilot.json bytes_per_client=2e9 memory=8e9 clients=16 participation=0.25",
        "scalefed optimum fits/pilot.json --loss 0.4 clients=16 participation=0.25",
    )
    add(app, next_, "scalefed next fits/pilot.json --compute 2e13 --count 6 clients_per_round=4", name="next")
    add(
        app,
        first,
        "scalefed first --compute 1e18",
        "scalefed first --compute 1e13 --count 10 clients_per_round=1,4,16 tokens_per_param=100",
    )


def optimum(
    source: FitOrRuns,
    settings: Settings = None,
    compute: Annotated[
        str | None, typer.Option(help="Training FLOPs of all clients; several, separated by commas, make a table.")
    ] = None,
    loss: Annotated[float | None, typer.Option(help="Instead: the least compute that reaches this loss.")] = None,
    passes: Annotated[
        float | None, typer.Option("--pass", help="Instead: the least compute that solves this share of problems.")
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Samples a problem may take, for --pass.")] = 1,
    law: Law = "auto",
    level: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    column: Columns = None,
    as_json: Json = False,
) -> None:
    """Say which model size to train on a budget, with its interval.

    Other limits are given as KEY=VALUE beside or instead of --compute: compute_per_client, bytes_sent,
    bytes_per_client, memory, seconds with flops_per_second and bandwidth, rounds, tokens, params,
    unique_tokens_per_client, and sampled_tokens (answers to be paid from the compute). Any other setting of a run, such
    as inner_state=reset or data=micro, is held against the runs.
    """
    from scalefed.allocation.defaults import LIMITS, SETTING
    from scalefed.errors import ConfigError

    limits = LIMITS if loss is None and passes is None else [name for name in LIMITS if name != "compute"]
    words = _words(settings, (*limits, *SETTING))
    budgets = _budgets(compute)
    if (len(budgets) > 0) + (loss is not None) + (passes is not None) > 1:
        raise ConfigError("give --compute, --loss or --pass, one of them")
    if not budgets and loss is None and passes is None and not _limits(words):
        raise ConfigError("give --compute, another limit such as bytes_per_client=2e9, or a goal: --loss or --pass")
    found = fit_of(source, law, column)
    question = {**words, "level": level}
    if len(budgets) > 1:
        _tell_table(found.optimal_sizes(compute=budgets, **question), as_json=as_json)
        return
    answer = _answer(found, question, budgets, loss, passes, k)
    if as_json:
        tell_json(answer.to_dict())
    else:
        tell(repr(answer))


def next_(
    source: FitOrRuns,
    settings: Settings = None,
    compute: Annotated[float, typer.Option(help="FLOPs for all new runs together.")] = ...,  # type: ignore[assignment]
    count: Annotated[int, typer.Option(min=1, help="At most how many runs.")] = 8,
    at: Annotated[
        float | None,
        typer.Option(help="The budget whose best size is wanted; ten times the largest run's if left out."),
    ] = None,
    law: Law = "auto",
    column: Columns = None,
    as_json: Json = False,
) -> None:
    """Choose the next runs that narrow the optimal size most."""
    from scalefed.allocation.defaults import OF_NEXT_RUNS
    from scalefed.allocation.design import next_runs

    words = _words(settings, OF_NEXT_RUNS)
    table = next_runs(fit_of(source, law, column), compute=compute, count=count, at=at, **words)
    tell_frame(table, as_json=as_json)


def first(
    settings: Settings = None,
    compute: Annotated[float, typer.Option(help="FLOPs for all runs together.")] = ...,  # type: ignore[assignment]
    count: Annotated[int, typer.Option(min=1, help="How many runs.")] = 10,
    as_json: Json = False,
) -> None:
    """Say which runs to make when nothing has been measured yet.

    As KEY=VALUE: clients_per_round (several, separated by commas), tokens_per_param (where the best size is thought to
    be; 20 if left out) and concentration (of the one skewed run).
    """
    from scalefed.allocation.defaults import check_words
    from scalefed.beginning import first_runs

    words = options_from(settings or [])
    check_words(words, ("clients_per_round", "tokens_per_param", "concentration"))
    if "clients_per_round" in words:
        words["clients_per_round"] = [number(part) for part in str(words["clients_per_round"]).split(",")]
    tell_frame(first_runs(compute=compute, count=count, **words), as_json=as_json)


# ---------------------------------------------------------------------- helpers
def _answer(
    found: Any, question: dict[str, Any], budgets: list[float], loss: float | None, passes: float | None, k: int
) -> Any:
    if loss is not None:
        return found.least_compute(loss=loss, **question)
    if passes is not None:
        return found.least_compute(pass_at_k=passes, k=k, **question)
    if budgets:
        question["compute"] = budgets[0]
    return found.plan(**question)


def _words(settings: list[str] | None, allowed: Sequence[str]) -> dict[str, Any]:
    """Limits and settings as they were written, each one of those allowed."""
    from scalefed.allocation.defaults import check_words

    words = options_from(settings or [])
    others = {name: words.pop(name) for name in list(words) if name not in allowed and _is_setting(name)}
    check_words(words, allowed)
    return {**words, "columns": others} if others else words


def _is_setting(name: str) -> bool:
    """Whether the run log has a setting of this name, which a question may hold against the runs."""
    from scalefed.runs.schema import COLUMNS

    return name in COLUMNS and COLUMNS[name].kind == "setting"


def _tell_table(table: Any, *, as_json: bool) -> None:
    """A table of budgets, and below it what to keep in mind."""
    notes = list(table.attrs["notes"])
    if as_json:
        tell_json([{**row, "notes": notes} for row in table.to_dict("records")])
        return
    tell_frame(table, as_json=False)
    for note in notes:
        tell(f"note: {note}")


def _limits(words: dict[str, Any]) -> list[str]:
    """The limits among the words, besides compute."""
    from scalefed.allocation.budgets import Budget

    return [name for name in words if name in Budget.__slots__ and name not in ("compute", "sampled_tokens")]


def _budgets(compute: str | None) -> list[float]:
    from scalefed.errors import ConfigError

    values = [] if compute is None else [number(part) for part in compute.split(",")]
    for value in values:
        if isinstance(value, str):
            raise ConfigError(f"--compute wants FLOPs such as 1e15, or several separated by commas, got {compute!r}")
    return [float(value) for value in values]
