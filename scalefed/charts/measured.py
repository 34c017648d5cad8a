"""What was measured? Loss and pass@k of runs, as points with their intervals, and the fitted lines through them."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.charts.frames import TITLES, Shown, check_choice, is_fit, mixtures, predicted, same_size, shown, spread
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
    y_share,
)
from scalefed.charts.theme import CATEGORIES, si
from scalefed.errors import DataError
from scalefed.runs.log import require

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

_TOLD = ("run_id", "size_name", "tokens", "compute", "clients_per_round", "mixture", "loss", "estimate", "pass_at_1")
_SIZES = "Model size (parameters)"
_BUDGETS = "Training tokens, all clients"
_DATA = "Clients' data"
_MOST_ROUNDS = 4000  # points; a page of more takes seconds to open


def loss(
    source: Any, *, x: str | None = None, width: int = 680, headline: str | None = None
) -> "alt.LayerChart | alt.FacetChart":
    """Loss against tokens, compute or size, panels by clients per round and the clients' data.

    One colour is a model size; against size, a token budget.

    Args:
        source: runs with params, tokens and loss, or a fit: then its lines with their 90% bands are drawn too.
        x: ``tokens``, ``compute`` or ``params``; when None, tokens, or params if all runs have the same tokens.
        width: pixels in all.
        headline: the title.
    """
    view = shown(source, ["params", "tokens", _target(source)])
    budgets = same_size(view.runs["tokens"].to_numpy(dtype=float))
    if x is None:
        x = "tokens" if len(set(budgets)) > 1 or view.runs["size"].nunique() == 1 else "params"
    check_choice("x", x, ("tokens", "compute", "params"))
    names, shade, legend = size_names(view.runs), "size_name", _SIZES
    if x == "params":
        view.runs["budget_name"], shade, legend = [si(budget) for budget in budgets], "budget_name", _BUDGETS
        names = [si(budget) for budget in sorted(set(budgets))]
    cut = panels(view.runs, column="clients_per_round", row="mixture", width=width)
    frame = _with_lines(view, x=x, color=shade, cut=cut)
    layers = _layers(
        frame,
        across=x_log(x, frame[x], width=cut.width, style="power" if x == "compute" else "si"),
        up=y_log("y", _reach(frame), height=cut.height, name=TITLES.get(view.target, view.target)),
        color=color_by(shade, names, legend, width=width),
        fitted=view.fit is not None,
    )
    words = {"tokens": "training tokens and model size", "compute": "training compute and model size"}
    told = f"{names[0]} tokens each" if x == "params" and len(names) == 1 else ""
    return assemble(
        layers,
        frame,
        cut,
        title=title(headline or f"Held-out loss by {words.get(x, 'model size')}", _key(view, told), width=width),
    )


def participation(
    source: Any, *, y: str = "loss", width: int = 680, headline: str | None = None
) -> "alt.LayerChart | alt.FacetChart":
    """Loss or pass@1 against clients per round at equal total tokens, one colour a mixture of the clients' data.

    Panels are model sizes; of several token budgets the one with most runs is drawn.

    Args:
        source: runs with params, tokens, clients_per_round and ``y``, or a fit: then its lines are drawn too.
        y: ``loss``, ``pass_at_1`` or ``pass_at_10``.
        width: pixels in all.
        headline: the title.
    """
    check_choice("y", y, ("loss", "pass_at_1", "pass_at_10"))
    view = shown(source, ["params", "tokens", "clients_per_round", y])
    budget, view = _largest_budget(view)
    if view.runs["clients_per_round"].nunique() < 2:
        raise DataError(
            f"all runs of {si(budget)} tokens have the same clients_per_round; run a sweep over it to see its effect"
        )
    size_names(view.runs)
    if "mixture" not in view.runs:
        view.runs["mixture"] = "all clients alike"
    cut = panels(view.runs, column="size_name", row="", width=width)
    frame = _with_lines(view, x="clients_per_round", color="mixture", cut=cut, y=y)
    up = (
        y_log("y", _reach(frame), height=cut.height, name=TITLES[y])
        if y == "loss"
        else y_share("y", _reach(frame), name=TITLES[y])
    )
    names = mixtures(view.runs) if "concentration" in view.runs or "skew" in view.runs else ["all clients alike"]
    layers = _layers(
        frame,
        across=x_log("clients_per_round", frame["clients_per_round"], width=cut.width, doubling=True),
        up=up,
        color=color_by("mixture", names, _DATA, width=width, ordered=False),
        fitted=view.fit is not None and y == view.target,
    )
    words = f"{si(budget)} tokens in all"
    return assemble(
        layers,
        frame,
        cut,
        title=title(
            headline or f"{'Held-out loss' if y == 'loss' else TITLES[y]} by clients per round at equal total compute",
            _key(view, words),
            width=width,
        ),
    )


def passk(
    source: Any, *, x: str = "loss", width: int = 680, headline: str | None = None
) -> "alt.LayerChart | alt.FacetChart":
    """pass@1 and pass@10 with their intervals, against loss, size, tokens or compute.

    Args:
        source: runs with pass_at_1 and, if measured, pass_at_10.
        x: ``loss``, ``params``, ``tokens`` or ``compute``.
        width: pixels in all.
        headline: the title.
    """
    import altair as alt
    import pandas as pd

    check_choice("x", x, ("loss", "params", "tokens", "compute"))
    view = shown(source, [x, "pass_at_1"])
    runs = view.runs
    if "size" in runs:
        size_names(runs)
    ks = [k for k in (1, 10) if f"pass_at_{k}" in runs and runs[f"pass_at_{k}"].notna().any()]
    parts = []
    for k in ks:
        part = runs.assign(measure=f"pass@{k}", y=runs[f"pass_at_{k}"])
        for end in ("low", "high"):
            name = f"pass_at_{k}_{end}"
            part[f"y_{end}"] = runs[name] if name in runs else math.nan
        parts.append(part)
    frame = pd.concat(parts, ignore_index=True)
    cut = Panels(None, None, max(width - 70, 200), 300, 1)
    names = [f"pass@{k}" for k in ks]
    legend = alt.Legend(title=None, orient="top", offset=4, symbolOpacity=1, symbolType="circle")
    color = alt.Color("measure:N", scale=alt.Scale(domain=names, range=list(CATEGORIES[: len(names)])), legend=legend)
    across = x_log(x, frame[x], width=cut.width, style={"loss": "plain", "compute": "power"}.get(x, "si"))
    tops = frame[["y", "y_high"]].to_numpy(dtype=float).ravel()
    up = y_share("y", tops[np.isfinite(tops)].tolist(), name="Share of problems solved")
    base = alt.Chart().encode(x=across, y=up, color=color)
    layers = [
        base.mark_rule(opacity=0.45, strokeWidth=1.2).encode(y=alt.Y("y_low:Q"), y2="y_high:Q"),
        base.mark_circle(size=46, opacity=0.95).encode(tooltip=tooltips(frame, [*_TOLD, "measure"])),
    ]
    words = "Points: runs with 95% intervals over problems"
    return assemble(
        layers, frame, cut, title=title(headline or f"pass@k by {_plain(x)}", view.note(words), width=width)
    )


def rounds(
    source: Any, *, x: str | None = None, y: str | None = None, width: int = 680, headline: str | None = None
) -> "alt.LayerChart | alt.FacetChart":
    """How loss fell while runs were trained: one line a run.

    Args:
        source: a folder of runs or a packed sweep, a fit that knows where its runs lie, or a frame with one row a round
            (``load_runs(..., rounds=True)`` or ``run.history()``).
        x: ``tokens`` so far or ``round``; tokens where they are known.
        y: ``loss``, ``train_loss``, ``pass_at_1`` or another measured column of a round; the loss held out where a run
            was measured on its way, else the training loss.
        width: pixels in all.
        headline: the title.

    Raises:
        DataError: there are no rounds behind the source, or none of its runs was measured twice.
    """
    import altair as alt

    frame = _rounds_of(source)
    x = check_choice("x", x or ("tokens" if "tokens" in frame else "round"), ("tokens", "round"))
    frame = frame.assign(run_id=frame.get("run_id", "run"))
    y, frame = _on_the_way(frame, x, y)
    runs = frame["run_id"].nunique()
    many = runs > len(CATEGORIES)
    total, frame = len(frame), _thinned(frame, runs)
    color: Any = alt.Color("run_id:N", legend=None if many else alt.Legend(title=None, orient="top", columns=2))
    if "params" in frame and frame["params"].nunique() > 1:
        frame["size"] = same_size(frame["params"].to_numpy(dtype=float))
        color = color_by("size_name", size_names(frame), _SIZES, width=width)
    cut = Panels(None, None, max(width - 70, 200), 300, 1)
    layer = (
        alt.Chart()
        .mark_line(opacity=0.5 if many else 0.9, strokeWidth=1.0 if many else 1.8)
        .encode(
            x=x_log(x, frame[x], width=cut.width, style="si"),
            y=y_log(y, frame[y], height=cut.height),
            color=color,
            detail="run_id:N",
            tooltip=tooltips(frame, ["run_id", "round", "tokens", y]),
        )
    )
    notes = [f"{len(frame):,} of {total:,} rounds are drawn"] if len(frame) < total else []
    words = f"{TITLES.get(y, y).split(' (')[0]} while training"
    return assemble([layer], frame, cut, title=title(headline or words, notes, width=width))


def _rounds_of(source: Any) -> "pd.DataFrame":
    """One row a round, of whatever has rounds behind it."""
    import pandas as pd

    from scalefed.runs.log import load_runs

    if is_fit(source):
        place = getattr(source, "source", None)
        if place is None or not os.path.exists(place):
            raise DataError("a fit keeps no rounds; give the folder of its runs")
        found = load_runs(place, rounds=True)
        return found[found["run_id"].isin(source.run_ids)] if "run_id" in found else found
    if not isinstance(source, pd.DataFrame):
        return load_runs(source, rounds=True)
    if "round" not in source and ("run_id" not in source or source["run_id"].is_unique):
        raise DataError("these are runs, one row each; for rounds give their folder, or load_runs(folder, rounds=True)")
    return source


def _thinned(frame: "pd.DataFrame", runs: int) -> "pd.DataFrame":
    """At most so many rounds as a page can hold, evenly on a log axis; the last of each run stays."""
    if len(frame) <= _MOST_ROUNDS:
        return frame.copy()
    groups = frame.groupby("run_id")
    place, count = np.log1p(groups.cumcount()), np.log(groups["run_id"].transform("size"))
    step = np.ceil(_MOST_ROUNDS / runs * place / count.clip(lower=1e-9))
    return frame[~frame.assign(step=step).duplicated(["run_id", "step"], keep="last")].copy()


def _on_the_way(frame: "pd.DataFrame", x: str, y: str | None) -> "tuple[str, pd.DataFrame]":
    """What is drawn, and its rounds: a run that was measured at its end only is a point and no line."""
    known = [name for name in ((y,) if y else ("loss", "train_loss")) if name in frame]
    require(frame, [x, *(known or [y or "loss"])], "the rounds")
    for name in known:
        kept = frame[(frame[x] > 0) & frame[name].notna()]
        if kept["run_id"].duplicated().any():
            return name, kept
    raise DataError(
        f"no run has a {' or '.join(known)} in two of its rounds; "
        f"{'draw y=train_loss, or train' if y == 'loss' and 'train_loss' in frame else 'train'} with evaluate_every=1"
    )


# ---------------------------------------------------------------------- helpers
def _target(source: Any) -> str:
    return str(getattr(source, "target", "loss")) if is_fit(source) else "loss"


def _key(view: Shown, first: str = "") -> list[str]:
    lines = "Points: runs"
    if view.fit is not None:
        lines = f"Lines: fitted law with its 90% band given {view.fit.given}. {lines}"
    return view.note(f"{first}. {lines}" if first else lines)


def _plain(column: str) -> str:
    return {"params": "model size", "tokens": "training tokens", "compute": "training compute"}.get(column, column)


def _largest_budget(view: Shown) -> tuple[float, Shown]:
    """The runs of the token budget with most runs (the larger of equals)."""
    budgets = same_size(view.runs["tokens"].to_numpy(dtype=float))
    values, counts = np.unique(budgets, return_counts=True)
    budget = max(zip(counts.tolist(), values.tolist(), strict=True))[1]
    return budget, replace(view, runs=view.runs[budgets == budget].copy())


def _with_lines(view: Shown, *, x: str, color: str, cut: Panels, y: str | None = None) -> "pd.DataFrame":
    """Runs (``part`` = run) and, if there is a fit, points of its lines (``part`` = line), in one frame.

    ``y`` holds the measured value or the line, ``y_low`` and ``y_high`` the run's 95% interval or the line's band.
    """
    import pandas as pd

    y = y or view.target
    runs = view.runs.assign(part="run", y=view.runs[y])
    error = f"{y}_std_error"
    for end, sign in (("low", -1.96), ("high", 1.96)):
        if f"{y}_{end}" in runs:
            runs[f"y_{end}"] = runs[f"{y}_{end}"]
        elif error in runs:
            runs[f"y_{end}"] = runs["y"] + sign * runs[error]
        else:
            runs[f"y_{end}"] = math.nan
    keys = [
        name
        for name in dict.fromkeys([color, cut.column, cut.row, *_group(view)])
        if name and name != x and name in runs and (name, x) != ("size_name", "params")
    ]
    runs["group"] = runs.groupby(keys, dropna=False).ngroup() if keys else 0
    if view.fit is None or y != view.target:
        return runs
    low, high = float(runs[x].min()), float(runs[x].max())
    lines = []
    for _, group in runs.groupby("group", sort=False):
        row = {name: group[name].iloc[0] for name in [*keys, "group"]}
        held = {
            name: float(group[name].median()) for name in view.columns if name in group and name not in (x, "rounds")
        }
        for name in ("params", "clients_per_round", "tokens"):
            if name in group and name != x:
                held[name] = float(group[name].median())
        if x == "compute":
            held.pop("tokens", None)
        points = spread(low, high, 17)
        lines.append(pd.DataFrame({x: points} | held | {k: v for k, v in row.items() if k not in held}))
    drawn = predicted(view, pd.concat(lines, ignore_index=True))
    drawn = drawn.assign(part="line", y=drawn["estimate"], y_low=drawn["low"], y_high=drawn["high"])
    runs["estimate"] = np.asarray(view.fit.predicted(view.runs)["estimate"], dtype=float)
    return pd.concat([runs, drawn], ignore_index=True)


def _group(view: Shown) -> list[str]:
    """Settings by which runs belong to one line."""
    names = ("size_name", "clients_per_round", "mixture", "local_steps", "algorithm")
    return [name for name in names if name in view.runs and view.runs[name].nunique() > 1]


def _layers(frame: "pd.DataFrame", *, across: Any, up: Any, color: Any, fitted: bool) -> Sequence["alt.Chart"]:
    """Band, line, interval and point over the frame of :func:`_with_lines`.

    Without a fit, runs of the same size are joined; sizes that were put together into steps are not.
    """
    import altair as alt

    base = alt.Chart().encode(x=across, color=color)
    run, line = alt.datum.part == "run", alt.datum.part == "line"
    points = base.transform_filter(run)
    drawn: list[Any] = []
    if fitted:
        of_line = base.transform_filter(line).encode(detail="group:N")
        drawn.append(
            of_line.mark_area(opacity=0.11, clip=True, interpolate="monotone")
            .encode(y=up, y2="y_high:Q")
            .encode(y=same_axis(up, "y_low"))
        )
        drawn.append(of_line.mark_line(strokeWidth=1.8, clip=True, interpolate="monotone").encode(y=up))
    elif (
        "params" not in frame
        or "budget_name" in frame
        or frame.groupby("size")["params"].agg(lambda p: p.max() / p.min()).max() < 1.2
    ):
        drawn.append(points.mark_line(strokeWidth=1.2, opacity=0.5).encode(y=_mean(up), detail="group:N"))
    if frame.loc[frame["part"] == "run", "y_low"].notna().any():
        drawn.append(points.mark_rule(strokeWidth=1.2, opacity=0.6).encode(y=same_axis(up, "y_low"), y2="y_high:Q"))
    drawn.append(points.mark_circle(size=40, opacity=1).encode(y=up, tooltip=tooltips(frame, _TOLD)))
    return drawn


def _mean(channel: Any) -> Any:
    """The channel averaged over runs at the same place (seeds)."""
    copy = channel.copy(deep=True)
    copy.shorthand = f"mean({copy.shorthand.split(':')[0]}):Q"
    return copy


def _reach(frame: "pd.DataFrame") -> list[float]:
    """The values that the y axis must hold: points, their intervals, and lines without the far ends of bands."""
    values: list[float] = frame["y"].to_list()
    ends = frame.loc[frame["part"] == "run", ["y_low", "y_high"]].to_numpy(dtype=float).ravel()
    return values + [float(value) for value in ends if math.isfinite(value)]
