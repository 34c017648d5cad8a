"""Commands that draw: chart into a file, report into a page."""

from pathlib import Path
from typing import Annotated, Any

import typer

from scalefed.cli.fit import Columns, FitOrRuns, Json, Law, Settings, Sweep, fit_of, saved_fit, table_of
from scalefed.cli.help import add
from scalefed.cli.output import choice, options_from, tell, tell_json
from scalefed.cli.progress import working


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    add(
        app,
        chart,
        "scalefed chart runs/pilot participation y=pass_at_1 --out participation.svg",
        "scalefed chart fits/pilot.json budget compute=1e15 clients_per_round=4 --out budget.png",
    )
    add(app, report, "scalefed report fits/pilot.json --compute 1e15 clients=16 participation=0.25 --out pilot.html")


def chart(
    source: FitOrRuns,
    kind: Annotated[
        str, typer.Argument(help="loss, isoflop, optimum, budget, residuals, participation, passk, rounds.")
    ],
    options: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="What the chart takes.")] = None,
    out: Annotated[Path | None, typer.Option(help="A .png, .svg, .pdf, .html or .json file.")] = None,
    sweep: Sweep = None,
    column: Columns = None,
    as_json: Json = False,
) -> None:
    """Draw a chart of a fit or of runs into a file."""
    from scalefed.charts import KINDS, check_options
    from scalefed.charts import chart as draw

    choice("kind of chart", kind, KINDS)
    target = out or Path(f"{kind}.png")
    choice("kind of file", target.suffix, (".png", ".svg", ".pdf", ".html", ".json"))
    what: Any = source
    if source.suffix == ".json":
        what = saved_fit(source)
    elif kind != "rounds":
        what, _ = table_of(source, column, sweep)
    said = options_from(options or [])
    check_options(kind, said)
    with working("Drawing ..."):
        drawn = draw(what, kind, **said)
        save_chart(drawn, target)
    if as_json:
        tell_json({"kind": kind, "file": target, "chart": drawn.to_dict()})
    else:
        tell(str(target))


def report(
    source: FitOrRuns,
    settings: Settings = None,
    compute: Annotated[float | None, typer.Option(help="The budget of the question, in FLOPs of all clients.")] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Its title.")] = None,
    law: Law = "auto",
    column: Columns = None,
    as_json: Json = False,
) -> None:
    """Write one offline page: answer, sliders, charts, runs.

    Without --compute it asks for ten times the compute of the largest run.
    """
    from scalefed.errors import ConfigError
    from scalefed.report.page import write_report
    from scalefed.report.question import told

    question = options_from(settings or [])
    if compute is None and question:
        raise ConfigError(f"give --compute with {' '.join(settings or [])}; for example --compute 1e15")
    asked = None if compute is None else question | {"compute": compute}
    found = fit_of(source, law, column)
    saved = str(source) if source.suffix == ".json" else None
    page = write_report(found, out=out, question=asked, title=title, saved_as=saved)
    if as_json:
        tell_json({"page": page} | told(found, asked))
    else:
        tell(str(page))


# ---------------------------------------------------------------------- helpers
def save_chart(drawn: Any, target: Path) -> None:
    """A chart as a file; pictures at twice the resolution of the screen, pages with their script inside."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".png":
        drawn.save(str(target), scale_factor=2)
    else:
        drawn.save(str(target))
