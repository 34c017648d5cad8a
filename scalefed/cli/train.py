"""Commands that make runs: train, sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scalefed.cli.help import add
from scalefed.cli.output import config_from, configs_from, folder, tell, tell_json
from scalefed.cli.progress import Meter, SweepMeter

if TYPE_CHECKING:
    from scalefed.config import RunConfig

Words = Annotated[
    list[str] | None, typer.Argument(metavar="[FILE.toml] [KEY=VALUE]...", help="Settings: a file, words, or both.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    add(app, train, "scalefed train params=24_000 tokens=2e6 clients=16 clients_per_round=4")
    add(app, sweep, "scalefed sweep params=3_000,12_000,48_000 clients_per_round=1,4 tokens=1e6,4e6 --runs runs/mine")


def train(
    words: Words = None,
    runs: Annotated[Path, typer.Option(help="Folder of the run log.")] = Path("runs"),
    engine: Annotated[str, typer.Option(help="native, or flower for Flower's simulation.")] = "native",
    as_json: Json = False,
) -> None:
    """Train one federated run; a stored run is not made again."""
    config = config_from(words or [])
    from scalefed.experiment import train as make

    folder(runs)
    meter = Meter(f"{config.run_id}", total=config.rounds)
    run = make(
        config, runs=runs, engine=engine, on_round=lambda record: meter.step(int(record["round"]), _loss(record))
    )
    meter.close()
    if as_json:
        tell_json(dict(run.row))
        return
    tell(f"{run.run_id}: {run.status}, loss {_fixed(run.loss)} nats/token, pass@1 {_fixed(run.pass_at_1)}")
    tell(f"stored in {run.folder}")


def sweep(
    words: Words = None,
    runs: Annotated[Path, typer.Option(help="Folder for these runs.")] = Path("runs/sweep"),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core if left out.")] = None,
    engine: Annotated[str, typer.Option(help="native: this machine's cores; ray: those of a Ray cluster.")] = "native",
    address: Annotated[
        str | None, typer.Option(help="A node of the Ray cluster; this machine's, or a new one, if left out.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Train all combinations of settings; resumes where it stopped.

    Commas make an axis; a sweep file holds [base] and [[grid]] tables.
    """
    configs, text = configs_from(words or [])
    if dry_run:
        _check_texts(configs)
        _list(configs, as_json)
        return
    from scalefed.experiment import train_all

    _remember(text, folder(runs))
    with_progress = SweepMeter(len(configs))
    stored = train_all(configs, runs=runs, workers=workers, engine=engine, address=address, on_progress=with_progress)
    with_progress.close()
    if as_json:
        tell_json([dict(run.row) for run in stored])
        return
    diverged = sum(run.status == "diverged" for run in stored)
    tell(f"{len(stored)} runs in {runs}" + (f", {diverged} of them diverged" if diverged else ""))


# ---------------------------------------------------------------------- helpers
def _loss(record: dict[str, Any]) -> str:
    value = record.get("loss", record.get("train_loss"))
    return "" if value is None else f"loss {value:.3f}"


def _fixed(value: float | None) -> str:
    return "not measured" if value is None or value != value else f"{value:.4f}"


def _check_texts(configs: "list[RunConfig]") -> None:
    """Refuse packages that are not here, as training would."""
    asked = {(c.data_root, c.partition, c.clients) for c in configs if c.data == "python" and not c.checkpoint}
    if asked:
        from scalefed.data.functions import check_source
    for root, partition, clients in sorted(asked):
        check_source(root, partition=partition, clients=clients)


def _list(configs: "list[RunConfig]", as_json: bool) -> None:
    if as_json:
        tell_json([{"run_id": config.run_id} | config.to_dict() for config in configs])
        return
    for config in configs:
        tell(config.run_id)
    total = sum(config.compute for config in configs)
    tell(f"{len(configs)} runs, {total:.3g} FLOPs in all")


def _remember(text: str, runs: Path) -> None:
    """Keep what was asked beside the runs, so that the same sweep can be made again."""
    target = runs / "sweep.toml"
    if not target.exists():
        target.write_text(text, encoding="utf-8")
