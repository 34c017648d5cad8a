"""What does the law advise? The best size over compute or clients per round, and what each size reaches on a budget."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.charts.frames import (
    HELD,
    TITLES,
    Shown,
    check_choice,
    interval,
    is_fit,
    shown,
    spread,
)
from scalefed.charts.parts import (
    Panels,
    assemble,
    color_by,
    same_axis,
    title,
    tooltips,
    x_log,
    y_log,
)
from scalefed.charts.theme import MAIN, MARK, QUIET, power, si
from scalefed.errors import ConfigError
from scalefed.runs.derived import flops_per_token
from scalefed.units import sampling_flops

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd


def optimum(
    fit: Any,
    *,
    x: str = "compute",
    values: Iterable[float] | None = None,
    compute: float | None = None,
    clients_per_round: Iterable[float] | None = None,
    clients: float | None = None,
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
    """The best model size against compute, one line a number of clients per round, or against clients per round.

    Args:
        fit: a fit whose law has an optimal size.
        x: ``compute`` or ``clients_per_round``.
        values: where on x; from the runs' range up to ten times its end when None.
        compute: with ``x="clients_per_round"``: the budget in FLOPs; the largest of the runs when None.
        clients_per_round: with ``x="compute"``: one line each; those of the runs when None.
        clients: clients that hold data.
        concentration: Dirichlet concentration, turned into skew by what the runs measured; or give ``skew``.
        skew: measured difference of the clients' mixtures, 0 to 1.
        local_steps: optimizer steps of a client in a round.
        batch_tokens: tokens of a client's step.
        unique_tokens: different tokens over all clients.
        sampled_tokens: tokens that the finished model will generate at 2 params FLOPs each, paid from the compute.
        flops: how compute is counted, in place of what the runs show: ``"6*params*tokens"``, or any sum of powers of
            params times tokens.
        columns: values of other columns that the law needs.
        width: pixels in all.
        headline: the title.

    Raises:
        FitError: the fit cannot determine an optimal size.
    """
    asked = locals().copy()
    setting = {name: asked[name] for name in HELD}
    check_choice("x", x, ("compute", "clients_per_round"))
    _need_fit(fit, "optimum")
    view = shown(fit, ["params", "tokens"])
    flops_spent = _spent(view)
    known = sorted(view.runs["clients_per_round"].unique()) if "clients_per_round" in view.runs else [1.0]
    lines = [float(count) for count in (clients_per_round or known)]
    if x == "clients_per_round":
        budget = float(compute or flops_spent.max())
        counts = [float(count) for count in (values or known)]
        frame = _optima(fit, [budget], counts, setting)
        return _over_clients(frame, budget, view, width, headline)
    budgets = (
        [float(value) for value in values]
        if values is not None
        else list(spread(flops_spent.min(), 10 * flops_spent.max(), 17))
    )
    frame = _optima(fit, budgets, lines, setting)
    return _over_compute(frame, float(flops_spent.max()), view, width, headline)


def budget(
    fit: Any,
    *,
    compute: float,
    clients: float | None = None,
    participation: float | None = None,
    clients_per_round: float | None = None,
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
    """What each model size would reach on one budget: the curve, its band, the best size with its interval.

    Args:
        fit: a fit whose law has an optimal size.
        compute: FLOPs of all clients.
        clients: clients that hold data.
        participation: share of them that trains in a round, in (0, 1]; or give ``clients_per_round``.
        clients_per_round: clients that train in a round.
        concentration: Dirichlet concentration, turned into skew by what the runs measured; or give ``skew``.
        skew: measured difference of the clients' mixtures, 0 to 1.
        local_steps: optimizer steps of a client in a round.
        batch_tokens: tokens of a client's step.
        unique_tokens: different tokens over all clients.
        sampled_tokens: tokens that the finished model will generate at 2 params FLOPs each, paid from the compute.
        flops: how compute is counted, in place of what the runs show: ``"6*params*tokens"``, or any sum of powers of
            params times tokens.
        columns: values of other columns that the law needs.
        width: pixels in all.
        headline: the title.

    Raises:
        FitError: the fit cannot determine an optimal size.
    """
    asked = locals().copy()
    import altair as alt
    import pandas as pd

    said = {name: asked[name] for name in ("compute", "participation", "clients_per_round", *HELD)}
    _need_fit(fit, "budget")
    view = shown(fit, ["params", "tokens"])
    best = fit.optimal_size(**said)
    size, low, high = interval(best, "params")
    line = _along(view, said, spread(min(low, size) / 12, max(high, size) * 12, 81))
    line = line.assign(part="line", y=line["estimate"])
    line = line.assign(y_low=line["low"].fillna(line["y"]), y_high=line["high"].fillna(line["y"]))
    told = si(size) if low == high else f"{si(size)} ({si(low)} to {si(high)})"
    at = _along(view, said, np.array([size]))["estimate"].iloc[0]
    mark = pd.DataFrame({"part": ["best"], "params": [size], "x_low": [low], "x_high": [high], "y": [at],
                         "measure": [told]})  # fmt: skip
    measured = pd.DataFrame({"part": "run", "params": view.runs["params"].unique()})
    frame = pd.concat([line, mark, measured], ignore_index=True)
    cut = Panels(None, None, max(width - 70, 200), 280, 1)
    reach = [float(line["y_low"].min()), min(float(line["y_high"].max()), 1.6 * at)]
    across = x_log("params", [*line["params"], *measured["params"]], width=cut.width)
    up = y_log("y", reach, height=cut.height, name=TITLES.get(view.target, view.target))
    base = alt.Chart().encode(x=across)
    curve = base.transform_filter(alt.datum.part == "line")
    chosen = base.transform_filter(alt.datum.part == "best")
    ink = alt.value(MAIN)
    layers = [
        chosen.mark_rect(opacity=0.14).encode(x=same_axis(across, "x_low"), x2="x_high:Q", color=alt.value(MARK)),
        curve.mark_area(opacity=0.16, clip=True).encode(y=same_axis(up, "y_low"), y2="y_high:Q", color=ink),
        curve.mark_line(clip=True).encode(
            y=up, color=ink, tooltip=tooltips(frame, ["params", "tokens", "estimate", "low", "high"])
        ),
        chosen.mark_rule(strokeWidth=1.5).encode(color=alt.value(MARK)),
        chosen.mark_point(shape="diamond", filled=True, size=120, opacity=1).encode(y=up, color=alt.value(MARK)),
        chosen.mark_text(fontWeight=600, fontSize=13).encode(y=alt.value(-8), text="measure:N"),  # above every curve
        base.transform_filter(alt.datum.part == "run")
        .mark_tick(thickness=2, size=10, yOffset=-5)
        .encode(y=alt.value(cut.height), color=alt.value(QUIET)),
    ]
    words = "Grey ticks: sizes measured"
    if low < high:
        ends = "Curve: predicted with its 90% band. Shaded: 95% interval of the best size"
        words = f"{ends}. Both given {best.given}. {words}"
    return assemble(
        layers,
        frame,
        cut,
        title=title(
            headline or f"What each size reaches with {power(compute)} FLOPs",
            [words, *_outside(best.extrapolation)],
            width=width,
        ),
    )


# ---------------------------------------------------------------------- helpers
def _spent(view: Shown) -> np.ndarray:
    """Training FLOPs of the runs, counted as they count it."""
    return np.asarray(flops_per_token(view.runs, "compute")(view.runs["params"]) * view.runs["tokens"], dtype=float)


def _need_fit(source: Any, kind: str) -> None:
    if not is_fit(source):
        raise ConfigError(
            f"the chart {kind!r} needs a fit, got {type(source).__name__}; make one with scalefed.fit(runs)"
        )


def _along(view: Shown, words: Mapping[str, Any], sizes: np.ndarray) -> "pd.DataFrame":
    """What runs of these sizes reach that spend the whole budget of a question; sizes too large for it are left out."""
    import pandas as pd

    from scalefed.allocation.defaults import question
    from scalefed.allocation.optimum import columns_of_runs

    law, runs = view.fit.law, view.fit.runs
    budget, setting, _ = question(law, runs, words)
    left = float(budget.compute) - sampling_flops(sizes, budget.sampled_tokens or 0.0)  # type: ignore[arg-type]
    sizes, left = sizes[left > 0], left[left > 0]
    tokens = left / setting.per_token(sizes)
    columns = {"params": sizes, "tokens": tokens} | columns_of_runs(law, setting, params=sizes, tokens=tokens)
    rows = pd.DataFrame({name: np.broadcast_to(value, sizes.shape) for name, value in columns.items()})
    bands = view.fit.predicted(rows)
    return rows.assign(**{name: np.asarray(bands[name], dtype=float) for name in ("estimate", "low", "high")})


def _optima(fit: Any, budgets: list[float], counts: list[float], setting: Mapping[str, Any]) -> "pd.DataFrame":
    """The best size for every budget and number of clients per round, with its interval."""
    import pandas as pd

    tables = []
    for count in counts:
        words: dict[str, Any] = {"clients_per_round": count} if "clients_per_round" in fit.law.columns else {}
        table = fit.optimal_sizes(compute=budgets, **setting, **words).assign(clients_per_round=count)
        tables.append(table)
    frame = pd.concat(tables, ignore_index=True)
    frame.attrs = {"outside": _outside(*(table.attrs.get("extrapolation", {}) for table in tables))}
    low, high = (frame[f"params_{end}"].fillna(frame["params"]) for end in ("low", "high"))
    return frame.assign(y=frame["params"], y_low=low, y_high=high)


def _outside(*answers: Mapping[str, float]) -> list[str]:
    """A line that says how far answers go beyond the runs in other columns than size and tokens; none where nowhere."""
    from scalefed.allocation.extrapolation import in_short

    names = dict.fromkeys(name for one in answers for name in one)
    told = in_short({name: max(one.get(name, 0.0) for one in answers) for name in names})
    return [told] if told else []


def _with_intervals(frame: "pd.DataFrame") -> bool:
    """Whether the best sizes have intervals: a fit without replicates gives none."""
    return bool(frame["params_low"].notna().any())


def _over_compute(
    frame: "pd.DataFrame", last: float, view: Shown, width: int, headline: str | None
) -> "alt.LayerChart | alt.FacetChart":
    import altair as alt
    import pandas as pd

    outside = frame.attrs["outside"]
    frame["group"] = frame["clients_per_round"].map(lambda count: f"{count:g}")
    frame["part"] = "line"
    cut = Panels(None, None, max(width - 70, 200), 320, 1)
    names = list(dict.fromkeys(frame["group"]))
    up = y_log(
        "y",
        [frame["y"].min() / 1.3, frame["y"].max() * 1.3],
        height=cut.height,
        style="si",
        name="Best " + TITLES["params"].lower(),
    )
    base = alt.Chart().encode(
        x=x_log("compute", frame["compute"], width=cut.width, style="power"),
        color=color_by("group", names, "Clients per round", width=width),
    )
    lines = base.transform_filter(alt.datum.part == "line")
    layers = [
        lines.mark_area(opacity=0.13, clip=True).encode(y=same_axis(up, "y_low"), y2="y_high:Q"),
        lines.mark_line(clip=True).encode(y=up, tooltip=tooltips(frame, ["compute", "clients_per_round", "params"])),
        base.transform_filter(alt.datum.part == "edge").mark_rule(strokeDash=[4, 4]).encode(color=alt.value(QUIET)),
    ]
    frame = pd.concat([frame, pd.DataFrame({"part": ["edge"], "compute": [last]})], ignore_index=True)
    words = "Right of the dashed line: more compute than any run had"
    if _with_intervals(frame):
        words = f"Bands: 95% intervals given {view.fit.given}. {words}"
    told = [*view.note(words), *outside]
    return assemble(layers, frame, cut, title=title(headline or "Best model size by compute", told, width=width))


def _over_clients(
    frame: "pd.DataFrame", budget: float, view: Shown, width: int, headline: str | None
) -> "alt.LayerChart | alt.FacetChart":
    import altair as alt

    cut = Panels(None, None, max(width - 70, 200), 300, 1)
    up = y_log(
        "y", [*frame["y_low"], *frame["y_high"]], height=cut.height, style="si", name="Best " + TITLES["params"].lower()
    )
    base = alt.Chart().encode(
        x=x_log("clients_per_round", frame["clients_per_round"], width=cut.width, doubling=True),
        color=alt.value(MAIN),
    )
    layers = [
        base.mark_rule(strokeWidth=2, opacity=0.6).encode(y=same_axis(up, "y_low"), y2="y_high:Q"),
        base.mark_line(strokeWidth=1.4, opacity=0.6).encode(y=up),
        base.mark_circle(size=80, opacity=1).encode(y=up, tooltip=tooltips(frame, ["clients_per_round", "params"])),
    ]
    words = f"At {power(budget)} FLOPs in all"
    if _with_intervals(frame):
        words = f"{words}. Bars: 95% intervals given {view.fit.given}"
    told = [words, *frame.attrs["outside"]]
    return assemble(
        layers, frame, cut, title=title(headline or "Best model size by clients per round", told, width=width)
    )
