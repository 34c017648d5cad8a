"""How does help look? Plain text: every argument with its words, and examples as they are typed; the rest is Typer's.

With rich, Typer takes 0.28 s of CPU for ``scalefed --help`` in place of 0.15 s; with and without it, it drops the words
of arguments.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import click
import typer
from typer.core import TyperCommand


class Command(TyperCommand):
    """A command whose arguments are explained."""

    words: ClassVar[Mapping[str, str]] = {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write arguments, then options."""
        params = self.get_params(ctx)
        arguments = [param for param in params if isinstance(param, click.Argument)]
        _write(formatter, "Arguments", _records(arguments, ctx, self.words))
        _write(formatter, "Options", _records([param for param in params if param not in arguments], ctx, {}))


def add(app: typer.Typer, function: Callable[..., None], *examples: str, name: str | None = None) -> None:
    """Add a command whose help is the function's docstring with these examples below it."""
    lines = "\n".join(f"  {example}" for example in examples)
    text = f"{inspect.getdoc(function)}\n\n\b\nExample:\n{lines}"  # \b keeps the lines as they are
    words = {}
    for argument, hint in typing.get_type_hints(function, include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, typer.models.ArgumentInfo):
                words[argument] = extra.help or ""
    app.command(name=name, help=text, cls=type("Command", (Command,), {"words": words}))(function)


# ---------------------------------------------------------------------- helpers
def _records(params: Any, ctx: click.Context, words: Mapping[str, str]) -> list[tuple[str, str]]:
    rows = []
    for param in params:
        record = param.get_help_record(ctx)
        if record is not None:
            name, text = record
            text = text.replace("\\[", "[")  # brackets that Typer escapes for a library that is not used here
            said = words.get(param.name or "", "")
            rows.append((name, text if said in text else f"{said}  {text}".strip()))
    return rows


def _write(formatter: click.HelpFormatter, heading: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(heading):
            formatter.write_dl(rows)
