"""What do the runs and the fitted law look like? Every kind of chart as a function that returns an Altair chart."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from scalefed.errors import ConfigError, nearest

KINDS: dict[str, str] = {
    "loss": "scalefed.charts.measured",
    "participation": "scalefed.charts.measured",
    "passk": "scalefed.charts.measured",
    "rounds": "scalefed.charts.measured",
    "isoflop": "scalefed.charts.planned",
    "optimum": "scalefed.charts.planned",
    "budget": "scalefed.charts.planned",
    "residuals": "scalefed.charts.checks",
    "comparison": "scalefed.charts.checks",
}
"""Every kind of chart and the module that draws it, in a function of that name."""


def chart(fit_or_runs: Any, kind: str = "loss", **options: Any) -> Any:
    """A chart of a fit or of runs; save it with ``.save("loss.png")`` (or .svg, .pdf, .html, .json).

    Args:
        fit_or_runs: a Fit, a DataFrame of runs, or anything that ``load_runs`` reads.
        kind: one of :data:`KINDS`.
        options: what that kind takes, such as ``width=`` in pixels and ``headline=``; see the function of that name.

    Returns:
        An ``alt.Chart`` (or one cut into panels) in the theme of :mod:`scalefed.charts.theme`; a page that it is saved
        to needs no network, and no text of the runs can run in it.

    Raises:
        ConfigError: an unknown kind or option.
        DataError: the runs lack a column that this kind needs, or none can be drawn.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of chart {kind!r}; {nearest(str(kind), KINDS)}")
    draw: Callable[..., Any] = getattr(importlib.import_module(KINDS[kind]), kind)
    parameters = inspect.signature(draw).parameters
    allowed = [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in options:
        if name not in allowed and not open_ended:
            raise ConfigError(f"the chart {kind!r} takes no {name!r}; {nearest(name, allowed)}")
    from scalefed.charts.guarded import guarded
    from scalefed.charts.theme import config

    drawn = draw(fit_or_runs, **options)
    drawn.config = _config(config())
    return guarded(drawn)


def _config(settings: dict[str, Any]) -> Any:
    import altair as alt

    return alt.Config(**settings)
