"""Which laws are there, and what do their parameters mean? The command ``laws``."""

import textwrap
from typing import Annotated

import typer

from scalefed.cli.help import add
from scalefed.cli.output import tell, tell_json


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add(app, laws, "scalefed laws", "scalefed laws --all", "scalefed laws federated", "scalefed laws E+A/params^a")


def laws(
    law: Annotated[str | None, typer.Argument(help="A named law, or a formula of your own to be checked.")] = None,
    all_laws: Annotated[bool, typer.Option("--all", help="Also those kept for comparison.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the laws to begin with, or explain one.

    An explanation has parameters, units and source; --all lists every named law.
    """
    from scalefed.laws import LAWS, RECOMMENDED, as_law

    if law is None:
        names = [*RECOMMENDED, *(name for name in LAWS if all_laws and name not in RECOMMENDED)]
        if as_json:
            tell_json([
                {"law": name, "formula": LAWS[name].formula, "recommended": name in RECOMMENDED} for name in names
            ])  # fmt: skip
            return
        wide = max(map(len, names))
        lines = [f"{name:<{wide}}  {LAWS[name].formula}" for name in names]
        if all_laws:
            lines.insert(len(RECOMMENDED), "kept for comparison:")
        else:
            lines.append(f"{len(LAWS) - len(RECOMMENDED)} more are kept for comparison: scalefed laws --all")
        tell("\n".join(lines))
        return
    chosen = as_law(law)
    rows = [
        {"parameter": name, "unit": chosen.units.get(name, ""), "meaning": chosen.meanings.get(name, "")}
        for name in chosen.parameters
    ]
    if as_json:
        tell_json({"law": chosen.name, "formula": chosen.formula, "columns": sorted(chosen.columns), "parameters": rows,
                   "source": chosen.source})  # fmt: skip
        return
    tell(chosen.formula if law == chosen.formula else f"{chosen.name}: {chosen.formula}")
    tell(f"columns of the run log: {', '.join(sorted(chosen.columns))}")
    wide = max(len(name) for name in chosen.parameters)
    for row in rows:
        words = ", ".join(word for word in (row["meaning"], row["unit"]) if word and word != "none")
        lines = textwrap.wrap(words, 94 - wide) or [""]
        tell(
            "\n".join(f"  {row['parameter'] if not i else '':<{wide}}  {line}".rstrip() for i, line in enumerate(lines))
        )
    if chosen.source:
        tell(textwrap.fill(f"source: {chosen.source}", 98, subsequent_indent="  "))
