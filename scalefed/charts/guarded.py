"""How does a chart that somebody saves or shows keep the text of a run log from running? It writes our own pages.

Altair writes a chart's text into a page's script as it is, so that a run id could end the script and begin another. The
charts that :func:`scalefed.chart` returns are Altair's in every other way.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from scalefed.charts.inert import chart_page, embedded


def guarded(drawn: Any) -> Any:
    """The same chart, an ``alt.Chart`` still, whose pages are inert: saved, turned into HTML or shown in a notebook."""
    kind: Any = type(drawn)
    object.__setattr__(drawn, "__class__", _guarded_class(kind))  # altair keeps what is set as data
    return drawn


class _Escaped(json.JSONEncoder):
    """JSON in which nothing can end a script."""

    def encode(self, o: Any) -> str:
        return embedded(o)


class _Guarded:
    """What is ours of a chart; the rest is Altair's."""

    def save(self, fp: Any, format: str | None = None, **options: Any) -> None:
        """As Altair's; a page is written by us and needs no network."""
        name = str(fp) if isinstance(fp, (str, Path)) else ""
        if (format or Path(name).suffix.removeprefix(".")) not in ("html", "htm"):
            super().save(fp, format=format, **options)  # type: ignore[misc]
        elif name:
            Path(name).write_text(chart_page(self), encoding="utf-8")
        else:
            fp.write(chart_page(self))

    def to_html(self, *_: Any, **__: Any) -> str:
        """The chart as one page that needs no network."""
        return chart_page(self)

    def _repr_mimebundle_(self, *arguments: Any, **options: Any) -> Any:
        import altair as alt

        if alt.renderers.active not in ("default", "html", "colab", "kaggle", "zeppelin", "olli"):
            return super()._repr_mimebundle_(*arguments, **options)  # type: ignore[misc]
        show: Any = alt.renderers.get()
        return show(self.to_dict(), json_kwds={"cls": _Escaped})  # type: ignore[attr-defined]


@cache
def _guarded_class(kind: Any) -> Any:
    return (
        kind if issubclass(kind, _Guarded) else type(kind.__name__, (_Guarded, kind), {"__module__": kind.__module__})
    )
