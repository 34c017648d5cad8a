"""Commands that store finished sweeps in little space: pack, unpack."""

from pathlib import Path
from typing import Annotated

import typer

from scalefed.cli.help import add
from scalefed.cli.output import say, tell, tell_json


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    add(app, pack, "scalefed pack runs/mine")
    add(app, unpack, "scalefed unpack runs/mine --into /tmp/mine")


def pack(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished sweep.")],
    keep_folders: Annotated[bool, typer.Option("--keep-folders", help="Leave the run folders in place too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Store a finished sweep as three Parquet files.

    Every run is read back and compared byte for byte before its folder goes.
    """
    from scalefed.runs.pack import pack as store

    done = store(folder, keep_folders=keep_folders)
    for name, reason in done.kept.items():
        say(f"left as it is: {name}: {reason}")
    if as_json:
        tell_json({"runs": done.runs, "kept": dict(done.kept), "bytes_before": done.bytes_before,
                   "bytes_after": done.bytes_after})  # fmt: skip
        return
    before, after = done.bytes_before / 1e6, done.bytes_after / 1e6
    tell(f"{done.runs} runs packed in {done.folder}: {before:.1f} MB became {after:.1f} MB")


def unpack(
    folder: Annotated[Path, typer.Argument(help="Folder of a packed sweep.")],
    into: Annotated[Path | None, typer.Option(help="Where the run folders go; beside the pack if left out.")] = None,
) -> None:
    """Write the run folders of a packed sweep again.

    The pack stays, and so does a folder that is there.
    """
    from scalefed.runs.pack import unpack as write

    tell(f"{len(write(folder, into=into))} runs in {into or folder}")
