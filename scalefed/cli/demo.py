"""The main job in one command: pilot runs on this machine, the law, the optimal size, charts and a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalefed.cli.help import add
from scalefed.cli.output import folder, say, tell, tell_json
from scalefed.cli.progress import SweepMeter

if TYPE_CHECKING:
    from scalefed.allocation.optimum import Optimum
    from scalefed.fitting.fit import Fit

CHARTS: dict[str, dict[str, Any]] = {
    "loss": {},
    "isoflop": {},
    "optimum": {},
    "participation": {},
    "passk": {},
    "residuals": {},
}

_NEXT = 4  # runs that are proposed: few enough to be made one after the other


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add(app, demo, "scalefed demo --out scalefed-demo")


def demo(
    pilot_compute: Annotated[
        float | None, typer.Option(help="FLOPs of all pilot runs together; what takes minutes if left out.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for runs, fit, charts and page.")] = Path("scalefed-demo"),
    compute: Annotated[
        float | None,
        typer.Option(help="The budget of the question in FLOPs; ten times the largest pilot run's if left out."),
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Clients of the question.")] = 16,
    participation: Annotated[float, typer.Option(help="Share of them that trains in a round, in (0, 1].")] = 0.25,
    law: Annotated[str, typer.Option(help="The law to fit.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Do it all: pilot runs, law, optimal size, charts and a page."""
    from scalefed.allocation.cost import spent
    from scalefed.errors import ConfigError, FitError

    if not 0 < participation <= 1:
        raise ConfigError(f"participation must be in (0, 1], got {participation:g}; for example 0.25")
    if round(clients * participation) < 1:
        raise ConfigError(f"participation {participation:g} of {clients} clients is less than one client per round")
    runs = _pilot(pilot_compute, out / "runs", workers)
    fitted = _fit(runs, law, out / "fit.json")
    budget = compute or float(f"{10 * spent(fitted.runs).max():.1g}")
    question: dict[str, Any] = {"compute": budget, "clients": clients, "participation": participation}
    page, pilot_spent = _page(fitted, question, out), float(spent(fitted.runs).sum())
    try:
        answer = fitted.optimal_size(**question)
    except FitError as error:
        raise FitError(
            f"{error} What was measured is on {page}; a longer demo may tell: --pilot-compute {3 * pilot_spent:.1g}"
        ) from None
    if as_json:
        tell_json({"question": question, "answer": answer.to_dict(), "page": page})
        return
    _answer(answer, question)
    _narrowing(fitted, answer, question, float(f"{pilot_spent:.1g}"), out)
    tell(f"\nThe page: {page}")


# ---------------------------------------------------------------------- steps
def _pilot(compute: float | None, runs: Path, workers: int | None) -> Path:
    from scalefed.experiment import pilot, train_all

    configs = pilot() if compute is None else pilot(compute)
    say(f"{len(configs)} pilot runs, the same on every machine. A stopped demo goes on where it was.")
    meter = SweepMeter(len(configs))
    train_all(configs, runs=folder(runs), workers=workers, on_progress=meter)
    meter.close()
    return runs


def _fit(runs: Path, law: str, target: Path) -> "Fit":
    """The law fitted to the pilot runs, with its floor held at the text's entropy, which is known exactly."""
    from scalefed.fitting.fit import fit
    from scalefed.laws import as_law
    from scalefed.runs.log import load_runs

    frame, floor, fixed = load_runs(runs), "E" if law == "auto" else as_law(law).floor, {}
    if floor and "entropy_per_token" in frame and frame["entropy_per_token"].nunique() == 1:
        fixed[floor] = float(frame["entropy_per_token"].iloc[0])
        say(f"Fitting the law, its floor {floor} held at the text's exact entropy, {fixed[floor]:.4f} nats/token ...")
    else:
        say("Fitting the law ...")
    fitted = fit(frame, law, fixed=fixed)
    fitted.save(target)
    return fitted


def _page(fitted: "Fit", question: dict[str, Any], out: Path) -> Path:
    """Charts as PNG and JSON, and the page."""
    from scalefed.charts import chart
    from scalefed.cli.chart import save_chart
    from scalefed.errors import DataError, FitError
    from scalefed.report.page import write_report

    say("Drawing ...")
    for kind, options in (CHARTS | {"budget": question}).items():
        try:
            drawn = chart(fitted, kind, **options)
        except (DataError, FitError) as error:  # a pilot too short for this one
            say(f"warning: no chart {kind!r}: {error}")
            continue
        for suffix in (".png", ".json"):
            save_chart(drawn, out / "charts" / f"{kind}{suffix}")
    return write_report(fitted, out=out / "index.html", question=question, saved_as=str(out / "fit.json"))


def _answer(answer: "Optimum", question: dict[str, Any]) -> None:
    from scalefed.charts.theme import power, si

    count = round(question["clients"] * question["participation"])
    size, low, high = si(answer.params), si(answer.params_low), si(answer.params_high)
    tell(f"\nWith {power(question['compute'])} FLOPs and {count} of {question['clients']} clients in each round:")
    tell(f"train {size} parameters ({answer.level:.0%} interval {low} to {high}) on {si(answer.tokens)} tokens in all.")
    tell(f"Predicted loss {answer.loss:.3f} nats/token ({answer.loss_low:.3f} to {answer.loss_high:.3f}).")
    for note in answer.notes:
        tell(f"Note: {note}.")


def _narrowing(fitted: "Fit", answer: "Optimum", question: dict[str, Any], compute: float, out: Path) -> None:
    """What as much compute as the pilot runs took would tell, spent on the runs that tell most."""
    from scalefed.allocation.design import next_runs
    from scalefed.charts.theme import power

    asked = {name: value for name, value in question.items() if name != "compute"}
    runs = next_runs(fitted, compute=compute, count=_NEXT, at=question["compute"], **asked)
    now = answer.params_high / answer.params_low
    narrower = now ** float(runs["expected_width"].iloc[-1] / runs["width_now"].iloc[-1])
    words = " ".join(f"{name}={value}" for name, value in asked.items())
    more = f"{len(runs)} more runs that cost as much again should leave a factor of {narrower:.2g}"
    tell(f"The interval spans a factor of {now:.2g}; {more}:")
    budgets = f"--compute {power(compute)} --count {_NEXT} --at {power(question['compute'])}"
    tell(f"scalefed next {out / 'fit.json'} {budgets} {words}")
