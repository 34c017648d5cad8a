"""How does loss depend on size at equal compute? One curve a compute level, its lowest point marked."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.charts.frames import TITLES, Shown, is_fit, predicted, same_size, shown, spread
from scalefed.charts.parts import assemble, color_by, panels, size_names, title, tooltips, x_log, y_log
from scalefed.charts.theme import power
from scalefed.errors import DataError
from scalefed.runs.derived import flops_per_token

if TYPE_CHECKING:
    import altair as alt
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
) -> "alt.LayerChart | alt.FacetChart":
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
        seeds = points.encode(y=up.aggregate("mean"))
        layers.insert(0, seeds.mark_line(strokeWidth=1.2, opacity=0.5))
        words = "Points: runs of equal compute"
    return assemble(
        layers,
        frame,
        cut,
        title=title(headline or "Loss by model size at equal compute", view.note(words), width=width),
    )


# ---------------------------------------------------------------------- helpers
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
    if not fitted or 2 <= len(shared) <= 7:
        chosen = shared if len(shared) else groups
        return [float(value) for value in chosen[np.unique(np.linspace(0, len(chosen) - 1, 7).round().astype(int))]]
    low, high = np.quantile(spent, [0.1, 1.0])
    return [float(f"{value:.2g}") for value in spread(low, high, 5)]


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
