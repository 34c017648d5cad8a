"""What do the runs and the fitted law look like? Every kind of chart is a function that returns an Altair chart."""

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from scalefed.charts.frames import HELD
from scalefed.errors import ConfigError, nearest

if TYPE_CHECKING:
    import altair as alt

    from scalefed.charts.checks import comparison as comparison
    from scalefed.charts.checks import residuals as residuals
    from scalefed.charts.isoflop import isoflop as isoflop
    from scalefed.charts.measured import loss as loss
    from scalefed.charts.measured import participation as participation
    from scalefed.charts.measured import passk as passk
    from scalefed.charts.measured import rounds as rounds
    from scalefed.charts.planned import budget as budget
    from scalefed.charts.planned import optimum as optimum


class Kind(NamedTuple):
    """Where a kind of chart is drawn, in a function of its name.

    Attributes:
        module: that holds the function.
        options: what it takes beside ``width`` and ``headline``.
    """

    module: str
    options: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    "loss": Kind("scalefed.charts.measured", ("x",)),
    "participation": Kind("scalefed.charts.measured", ("y",)),
    "passk": Kind("scalefed.charts.measured", ("x",)),
    "rounds": Kind("scalefed.charts.measured", ("x", "y")),
    "isoflop": Kind("scalefed.charts.isoflop", ("computes", "axis")),
    "optimum": Kind("scalefed.charts.planned", ("x", "values", "compute", "clients_per_round", *HELD)),
    "budget": Kind("scalefed.charts.planned", ("compute", "participation", "clients_per_round", *HELD)),
    "residuals": Kind("scalefed.charts.checks", ("x",)),
    "comparison": Kind("scalefed.charts.checks"),
}
"""Every kind of chart."""


def chart(
    fit_or_runs: Any,
    kind: str = "loss",
    *,
    x: str | None = None,
    y: str | None = None,
    computes: Iterable[float] | None = None,
    axis: str | None = None,
    values: Iterable[float] | None = None,
    compute: float | None = None,
    clients: float | None = None,
    participation: float | None = None,
    clients_per_round: float | Iterable[float] | None = None,
    concentration: float | None = None,
    skew: float | None = None,
    local_steps: float | None = None,
    batch_tokens: float | None = None,
    unique_tokens: float | None = None,
    sampled_tokens: float | None = None,
    flops: str | None = None,
    columns: Mapping[str, float] | None = None,
    width: int = 680,
    headline: str | None = None,
) -> "alt.LayerChart | alt.FacetChart":
    """A chart of a fit or of runs; save it with ``.save("loss.png")`` (or .svg, .pdf, .html, .json).

    Every kind is a function of this module too, which says what it takes: ``charts.isoflop(fit, axis=...)``.

    Args:
        fit_or_runs: a Fit, a DataFrame of runs, or anything that ``load_runs`` reads; for ``comparison`` what
            ``compare`` returns.
        kind: one of :data:`KINDS`.
        x: what runs along x (loss, passk, residuals, optimum, rounds).
        y: what is measured (participation, rounds).
        computes: levels in FLOPs (isoflop).
        axis: how compute is counted (isoflop).
        values: where on x (optimum).
        compute: FLOPs of all clients (budget; optimum over clients per round).
        clients: clients that hold data (budget, optimum; so is all that follows).
        participation: share of them that trains in a round (budget).
        clients_per_round: clients that train in a round; for the optimum several, one line each.
        concentration: Dirichlet concentration of the clients' mixtures; or give ``skew``.
        skew: measured difference of the clients' mixtures, 0 to 1.
        local_steps: optimizer steps of a client in a round.
        batch_tokens: tokens of a client's step.
        unique_tokens: different tokens over all clients.
        sampled_tokens: tokens that the finished model will generate, paid from the compute.
        flops: how compute is counted, in place of what the runs show.
        columns: values of other columns that the law needs.
        width: pixels in all.
        headline: the title.

    Returns:
        The chart, cut into panels where settings vary, in the theme of :mod:`scalefed.charts.theme`; a page that it is
        saved to needs no network, and no text of the runs can run in it.

    Raises:
        ConfigError: an unknown kind, or an option that this kind does not take.
        DataError: the runs lack a column that this kind needs, or none can be drawn.
    """
    asked = locals().copy()
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of chart {kind!r}; {nearest(str(kind), KINDS)}")
    options = {
        name: value
        for name, value in asked.items()
        if value is not None and name not in ("fit_or_runs", "kind", "width", "headline")
    }
    check_options(kind, options)
    return _finished(kind)(fit_or_runs, **options, width=width, headline=headline)


def check_options(kind: str, names: Iterable[str]) -> None:
    """Refuse what a kind of chart does not take.

    Raises:
        ConfigError: naming the nearest option.
    """
    allowed = (*KINDS[kind].options, "width", "headline")
    for name in names:
        if name not in allowed:
            raise ConfigError(f"the chart {kind!r} takes no {name!r}; {nearest(name, allowed)}")


def _finished(kind: str) -> "Callable[..., alt.LayerChart | alt.FacetChart]":
    """The function of a kind, whose charts have the theme and in whose pages no text of the runs can run."""
    import altair as alt

    from scalefed.charts.guarded import guarded
    from scalefed.charts.theme import config

    draw = getattr(importlib.import_module(KINDS[kind].module), kind)

    @functools.wraps(draw)
    def finished(*args: Any, **options: Any) -> Any:
        drawn = draw(*args, **options)
        drawn.config = alt.Config(**config())
        return guarded(drawn)

    return finished


def __getattr__(name: str) -> Any:
    """The function of a kind of chart, imported when it is first asked for."""
    if name not in KINDS:
        raise AttributeError(f"module 'scalefed.charts' has no attribute {name!r}")
    return _finished(name)
