"""What does the law advise? Loss over size at equal compute, and the best size over compute or clients per round."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.charts.frames import (
    TITLES,
    Shown,
    ask,
    check_choice,
    interval,
    is_fit,
    predicted,
    same_size,
    shown,
    spread,
)
from scalefed.charts.parts import (
    Panels,
    assemble,
    color_by,
    panels,
    same_axis,
    size_names,
    title,
    tooltips,
    x_log,
    y_log,
)
from scalefed.charts.theme import MAIN, MARK, QUIET, power, si
from scalefed.errors import ConfigError, DataError
from scalefed.runs.derived import flops_per_token

if TYPE_CHECKING:
    import pandas as pd

_AXES = {"compute": "Training compute (FLOPs)", "compute_exact": "Training compute, exact count (FLOPs)"}
_NEAR = 0.13
"""Runs within this of a level, in log compute, are drawn with it."""


def isoflop(
    source: Any,
    *,
    computes: Iterable[float] | None = None,
    axis: str = "compute",
    width: int = 680,
    headline: str | None = None,
) -> Any:
    """Loss against model size at equal compute: one curve a compute level, its lowest point marked.

    Args:
        source: runs with params, tokens and loss, or a fit: then curves are drawn, and runs near a level as points.
        computes: the levels in FLOPs; chosen from the runs when None.
        axis: how compute is counted: ``compute`` (6 x params x tokens), or ``compute_exact`` as the runs have it.
        width: pixels in all.
        headline: the title.

    Raises:
        DataError: without a fit, fewer than three runs share a level; the runs have no ``compute_exact``.
    """
    import altair as alt
    import pandas as pd

    target = str(getattr(source, "target", "loss")) if is_fit(source) else "loss"
    view = shown(source, ["params", "tokens", target])
    runs = view.runs.assign(y=view.runs[target], part="run")
    cost = flops_per_token(runs, axis)
    runs["compute"] = cost(runs["params"]) * runs["tokens"] if axis == "compute" else runs[axis]
    size_names(runs)
    chosen = levels(runs["compute"], computes, fitted=view.fit is not None)
    runs = _near(runs, chosen)
    if view.fit is None and runs.groupby("group")["size"].nunique().max() < 3:
        raise DataError("no compute level has runs of three sizes; give a fit, or make runs at equal params x tokens")
    cut = panels(view.runs, column="clients_per_round", row="mixture", width=width)
    frame = runs
    if view.fit is not None:
        frame = pd.concat([runs, _curves(view, chosen, cost, [name for name in (cut.column, cut.row) if name])])
    frame = frame.reset_index(drop=True)
    names = [power(level) for level in chosen]
    base = alt.Chart().encode(
        x=x_log("params", frame["params"], width=cut.width),
        color=color_by("group", names, _AXES[axis], width=width),
    )
    reach = runs["y"].tolist() + frame.loc[frame["part"] == "best", "y"].tolist()
    up = y_log("y", [*reach, max(reach) * 1.1], height=cut.height, name=TITLES.get(target, target))
    points = base.transform_filter(alt.datum.part == "run").encode(y=up)
    layers = [
        points.mark_circle(size=40, opacity=1).encode(
            tooltip=tooltips(frame, ["run_id", "size_name", "tokens", "loss"])
        )
    ]
    if view.fit is not None:
        curve = base.transform_filter(alt.datum.part == "line").encode(y=up)
        best = base.transform_filter(alt.datum.part == "best").encode(y=up)
        layers.insert(0, curve.mark_line(strokeWidth=1.8, clip=True, interpolate="monotone"))
        layers.append(
            best.mark_point(
                shape="diamond", size=90, filled=True, stroke="white", strokeWidth=1, opacity=1, clip=True
            ).encode(tooltip=tooltips(frame, ["params", "tokens", "compute", "estimate"]))
        )
        words = "Curves: fitted law. Diamonds: best size. Points: runs within 13% of a level"
    else:
        layers.insert(0, points.mark_line(strokeWidth=1.2, opacity=0.5))
        words = "Points: runs of equal compute"
    return assemble(
        layers,
        frame,
        cut,
        title=title(headline or "Loss by model size at equal compute", view.note(words), width=width),
    )


def optimum(
    fit: Any,
    *,
    x: str = "compute",
    values: Iterable[float] | None = None,
    compute: float | None = None,
    clients_per_round: Iterable[float] | None = None,
    width: int = 680,
    headline: str | None = None,
    **setting: Any,
) -> Any:
    """The best model size against compute, one line a number of clients per round, or against clients per round.

    Args:
        fit: a fit whose law has an optimal size.
        x: ``compute`` or ``clients_per_round``.
        values: where on x; from the runs' range up to ten times its end when None.
        compute: with ``x="clients_per_round"``: the budget in FLOPs; the largest of the runs when None.
        clients_per_round: with ``x="compute"``: one line each; those of the runs when None.
        width: pixels in all.
        headline: the title.
        setting: what else is held fixed, as ``fit.optimal_size`` takes it (clients, skew, local_steps ...).

    Raises:
        FitError: the fit cannot determine an optimal size.
    """
    check_choice("x", x, ("compute", "clients_per_round"))
    _need_fit(fit, "optimum")
    view = shown(fit, ["params", "tokens"])
    spent = 6.0 * view.runs["params"] * view.runs["tokens"]
    known = sorted(view.runs["clients_per_round"].unique()) if "clients_per_round" in view.runs else [1.0]
    lines = [float(count) for count in (clients_per_round or known)]
    setting = _setting(view, setting)
    if x == "clients_per_round":
        budget = float(compute or spent.max())
        counts = [float(count) for count in (values or known)]
        frame = _optima(fit, [budget], counts, setting)
        return _over_clients(frame, budget, view, width, headline)
    budgets = (
        [float(value) for value in values] if values is not None else list(spread(spent.min(), 10 * spent.max(), 17))
    )
    frame = _optima(fit, budgets, lines, setting)
    return _over_compute(frame, float(spent.max()), view, width, headline)


def budget(fit: Any, *, compute: float, width: int = 680, headline: str | None = None, **setting: Any) -> Any:
    """What each model size would reach on one budget: the curve, its band, the best size with its interval.

    Args:
        fit: a fit whose law has an optimal size.
        compute: FLOPs of all clients.
        width: pixels in all.
        headline: the title.
        setting: what else is held fixed, as ``fit.optimal_size`` takes it (clients, participation, skew ...).

    Raises:
        FitError: the fit cannot determine an optimal size.
    """
    import altair as alt
    import pandas as pd

    _need_fit(fit, "budget")
    view = shown(fit, ["params", "tokens"])
    setting = _setting(view, setting)
    best = ask(fit, {"compute": compute, **setting})
    size, low, high = interval(best, "params")
    rows = pd.DataFrame({"params": spread(min(low, size) / 12, max(high, size) * 12, 81), "compute": float(compute)})
    for name, value in _columns(setting).items():
        rows[name] = value
    line = predicted(view, rows).assign(part="line", y=lambda frame: frame["estimate"])
    line = line.assign(y_low=line["low"].fillna(line["y"]), y_high=line["high"].fillna(line["y"]))
    told = si(size) if low == high else f"{si(size)} ({si(low)} to {si(high)})"
    at = predicted(view, rows.iloc[:1].assign(params=size))["estimate"].iloc[0]
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
        chosen.mark_text(fontWeight=600, fontSize=13, align="left", dx=8).encode(y=alt.value(14), text="measure:N"),
        base.transform_filter(alt.datum.part == "run")
        .mark_tick(thickness=2, size=10, yOffset=-5)
        .encode(y=alt.value(cut.height), color=alt.value(QUIET)),
    ]
    words = "Grey ticks: sizes measured"
    if low < high:
        words = f"Curve: predicted with its 90% band. Shaded: 95% interval of the best size. {words}"
    return assemble(
        layers,
        frame,
        cut,
        title=title(headline or f"What each size reaches with {power(compute)} FLOPs", [words], width=width),
    )


# ---------------------------------------------------------------------- helpers
def _need_fit(source: Any, kind: str) -> None:
    if not is_fit(source):
        raise ConfigError(
            f"the chart {kind!r} needs a fit, got {type(source).__name__}; make one with scalefed.fit(runs)"
        )


def levels(spent: Iterable[float], computes: Iterable[float] | None = None, *, fitted: bool = True) -> list[float]:
    """Compute levels: those given, those that at least three runs share, or five spread over the runs.

    Args:
        spent: FLOPs of the runs.
        computes: the levels wanted, if any.
        fitted: whether a law draws curves, so that levels may lie between the runs.
    """
    spent = np.asarray(list(spent), dtype=float)
    if computes is not None:
        return sorted(float(value) for value in computes)
    groups, counts = np.unique(same_size(spent), return_counts=True)
    shared = groups[counts >= 3]
    if not fitted or 3 <= len(shared) <= 7:
        chosen = shared if len(shared) else groups
        return [float(value) for value in chosen[np.unique(np.linspace(0, len(chosen) - 1, 7).round().astype(int))]]
    low, high = np.quantile(spent, [0.1, 1.0])
    return [float(f"{value:.1g}") for value in spread(low, high, 5)]


def _near(runs: "pd.DataFrame", levels: list[float]) -> "pd.DataFrame":
    """The runs that lie near a level, with its name as ``group``."""
    away = np.abs(np.log(runs["compute"].to_numpy(dtype=float))[:, None] - np.log(levels)[None, :])
    nearest = away.argmin(axis=1)
    runs = runs.assign(group=[power(levels[index]) for index in nearest])
    return runs[away.min(axis=1) < _NEAR]


def _curves(view: Shown, levels: list[float], cost: Callable[[Any], Any], cuts: list[str]) -> "pd.DataFrame":
    """Points of the law's curves (``line``) and their lowest points (``best``), for every level and panel."""
    import pandas as pd

    names = [
        name
        for name in ("clients_per_round", "mixture", "skew", "concentration", "local_steps", "clients")
        if name in view.runs
    ]
    sizes = spread(view.runs["params"].min() / 3, view.runs["params"].max() * 3, 31)
    rows = []
    for _, group in view.runs.groupby(cuts, sort=False) if cuts else [((), view.runs)]:
        held = {name: group[name].iloc[0] if name == "mixture" else float(group[name].median()) for name in names}
        rows += [pd.DataFrame({"params": sizes, "level": level, "group": power(level)} | held) for level in levels]
    asked = pd.concat(rows, ignore_index=True)
    lines = predicted(view, asked.assign(tokens=asked["level"] / cost(asked["params"]))).assign(part="line")
    lines["compute"] = lines["level"]
    lines["y"] = lines["estimate"]
    lowest = lines["y"].to_numpy().reshape(-1, len(sizes)).argmin(axis=1)
    inside = (lowest > 0) & (lowest < len(sizes) - 1)
    places = (np.arange(len(lowest)) * len(sizes) + lowest)[inside]
    return pd.concat([lines, _lowest(lines, cost, places).assign(part="best")], ignore_index=True)


def _lowest(lines: "pd.DataFrame", cost: Callable[[Any], Any], places: np.ndarray) -> "pd.DataFrame":
    """The lowest points of curves, between the points drawn: the vertex of the parabola through three of them."""
    best = lines.iloc[places].copy()
    x, y = np.log(lines["params"].to_numpy()), lines["y"].to_numpy()
    before, after = y[places - 1] - y[places], y[places + 1] - y[places]
    shift = 0.5 * (before - after) / (before + after)
    best["params"] = np.exp(x[places] + shift * (x[places + 1] - x[places]))
    best["y"] = y[places] + 0.5 * shift * (after - before) / 2
    best["tokens"] = best["compute"] / cost(best["params"])
    return best


def _setting(view: Shown, setting: Mapping[str, Any]) -> dict[str, Any]:
    """The setting with what the law needs filled in: iid clients, and the median of the runs for the rest."""
    filled = dict(setting)
    if "skew" in view.columns and not {"skew", "concentration"} & set(filled):
        filled["skew"] = 0.0
    for name in ("local_steps", "clients"):
        if name in view.columns and name not in filled and name in view.runs:
            filled[name] = float(view.runs[name].median())
    return filled


def _columns(setting: Mapping[str, Any]) -> dict[str, float]:
    """A setting as columns that the law may need."""
    columns = {name: float(value) for name, value in setting.items() if isinstance(value, (int, float))}
    if "clients_per_round" not in columns and {"clients", "participation"} <= set(columns):
        columns["clients_per_round"] = max(1.0, round(columns["clients"] * columns["participation"]))
    return columns


def _optima(fit: Any, budgets: list[float], counts: list[float], setting: Mapping[str, Any]) -> "pd.DataFrame":
    """The best size for every budget and number of clients per round, with its interval."""
    import pandas as pd

    from scalefed.allocation.planning import optimal_sizes

    tables = []
    for count in counts:
        words: dict[str, Any] = {"clients_per_round": count} if "clients_per_round" in fit.law.columns else {}
        table = optimal_sizes(fit, compute=budgets, **setting, **words).assign(clients_per_round=count)
        tables.append(table)
    frame = pd.concat(tables, ignore_index=True)
    low, high = (frame[f"params_{end}"].fillna(frame["params"]) for end in ("low", "high"))
    return frame.assign(y=frame["params"], y_low=low, y_high=high)


def _with_intervals(frame: "pd.DataFrame") -> bool:
    """Whether the best sizes have intervals: a fit without replicates gives none."""
    return bool(frame["params_low"].notna().any())


def _over_compute(frame: "pd.DataFrame", last: float, view: Shown, width: int, headline: str | None) -> Any:
    import altair as alt
    import pandas as pd

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
        words = f"Bands: 95% intervals. {words}"
    return assemble(
        layers, frame, cut, title=title(headline or "Best model size by compute", view.note(words), width=width)
    )


def _over_clients(frame: "pd.DataFrame", budget: float, view: Shown, width: int, headline: str | None) -> Any:
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
    words = f"At {power(budget)} FLOPs in all" + (". Bars: 95% intervals" if _with_intervals(frame) else "")
    return assemble(
        layers, frame, cut, title=title(headline or "Best model size by clients per round", [words], width=width)
    )
