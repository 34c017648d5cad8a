"""The command line: one command per public function, and the only place that prints.

Every command reads its words, calls one function of the library and prints what comes back. Mistakes end with a
message on the error stream and exit code 2, never with a traceback.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Typer 0.20 imports names that click 9 will drop
    import typer

from scalefed.cli import chart, demo, evaluate, fit, laws, optimum, pack, train
from scalefed.cli.output import say, tell
from scalefed.cli.speech import in_shell

STOPPED = 130
"""Exit code after Ctrl-C."""

app = typer.Typer(
    name="scalefed",
    help="Which model size should you train on this federated budget? Make runs, fit a law, ask it.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
demo.register(app)
train.register(app)
evaluate.register(app)
fit.register(app)
chart.register(app)
optimum.register(app)
laws.register(app)
pack.register(app)


def _version(asked: bool) -> None:
    if asked:
        from scalefed import __version__

        tell(f"scalefed {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Which model size should you train on this federated budget? Make runs, fit a law, ask it."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake, 130 when interrupted.

    Args:
        words: the command line without the program's name; that of this process when None.
    """
    from scalefed.errors import ScalefedError

    with warnings.catch_warnings():
        _show_warnings()
        try:
            app(args=None if words is None else list(words), prog_name="scalefed", standalone_mode=True)
        except SystemExit as stop:
            if stop.code == STOPPED:  # Typer ends so on Ctrl-C, without a word
                say("stopped; what is stored stays, and the same command goes on from there")
            return stop.code if isinstance(stop.code, int) else 2
        except ScalefedError as error:
            say(f"error: {in_shell(str(error))}")
            return 2
        except BrokenPipeError:  # the reader, such as head, has gone
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            where = f" {error.filename}" if error.filename else ""
            say(f"error: cannot use{where}: {error.strerror or error}; check the path and its permissions")
            return 2
    return 0


def _show_warnings() -> None:
    """Our own warnings as one line each, everybody else's not at all."""
    from scalefed.errors import FitWarning, RunLogWarning

    def show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        say(f"warning: {in_shell(str(message))}")

    warnings.simplefilter("ignore")
    for category in (RunLogWarning, FitWarning):
        warnings.simplefilter("default", category)
    warnings.showwarning = show
