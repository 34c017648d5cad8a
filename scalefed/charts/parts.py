"""What are charts made of? Panels that share their axes, log axes, one legend, tooltips."""

import json
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.charts.frames import SHORT, TINY, TITLES, mixtures
from scalefed.charts.theme import CATEGORIES, LABELS, config, log_axis, log_domain, log_scale, ramp, si

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

_TOLD = {  # column: (words, format)
    "run_id": ("Run", ""),
    "size_name": ("Parameters", ""),
    "params": ("Parameters", ".3~s"),
    "tokens": ("Tokens", ".3~s"),
    "compute": ("FLOPs", ".2~e"),
    "clients_per_round": ("Clients per round", ".3~r"),
    "mixture": ("Clients' data", ""),
    "round": ("Round", "d"),
    "loss": ("Loss", ".4f"),
    "train_loss": ("Training loss", ".4f"),
    "estimate": ("Fitted", ".4f"),
    "low": ("from", ".4f"),
    "high": ("to", ".4f"),
    "residual": ("Off by (%)", "+.2f"),
    "pass_at_1": ("pass@1", ".3f"),
    "pass_at_10": ("pass@10", ".3f"),
    "measure": ("Measure", ""),
    "law": ("Law", ""),
}

_NARROW = 125
"""Panels of fewer pixels have shorter headings."""
_LEAST, _GAP = 84, 20
"""Pixels of the narrowest panel that can be read, and between two."""


@dataclass(frozen=True)
class Panels:
    """How a chart is cut into panels, and how large each may be.

    Attributes:
        column: field of the panels from left to right, or None.
        row: field of the panels from top to bottom, or None.
        width: pixels of one panel.
        height: pixels of one panel.
        wrap: panels in a line.
    """

    column: str | None
    row: str | None
    width: int
    height: int
    wrap: int


def panels(frame: "pd.DataFrame", *, column: str, row: str, width: int) -> Panels:
    """Panels for those fields that vary, as many in a line as stay readable at this total width in pixels."""
    across = frame[column].nunique() if column in frame else 1
    down = frame[row].nunique() if row in frame else 1
    if across == 1 and down > 1:
        column, row, across, down = row, column, down, 1
    room = max(width - 64, 200)
    if across > down > 1 and room // across < _LEAST + _GAP:  # a narrow chart has its fewer panels side by side
        column, row, across, down = row, column, down, across
    wrap = max(1, min(across, room // 150))
    wrap = across if down > 1 else math.ceil(across / math.ceil(across / wrap))  # lines of equal length
    each = max(room // wrap - _GAP, _LEAST if down > 1 else 130) if across > 1 else room
    height = 300 if across * down == 1 else 220 if down == 1 and across <= wrap else 170
    return Panels(column if across > 1 else None, row if down > 1 else None, each, height, wrap)


def assemble(
    layers: Sequence["alt.Chart"], frame: "pd.DataFrame", cut: Panels, *, title: "alt.TitleParams"
) -> "alt.LayerChart | alt.FacetChart":
    """The layers over one frame, cut into panels, with title and size, in the theme."""
    import altair as alt

    slim = _slim(frame, layers, [name for name in (cut.column, cut.row) if name])
    if cut.column and cut.row:
        slim = _every_panel(slim, cut.column, cut.row)
    chart: Any = alt.layer(*layers, data=slim).properties(width=cut.width, height=cut.height)
    if cut.column and cut.row:
        chart = chart.facet(
            column=alt.Column(f"{cut.column}:N", header=_header(cut.column, cut.width), sort=_order(frame, cut.column)),
            row=alt.Row(f"{cut.row}:N", header=_header(cut.row), sort=_order(frame, cut.row)),
            spacing=_GAP,
        )
    elif cut.column:
        facet = alt.Facet(f"{cut.column}:N", header=_header(cut.column, cut.width), sort=_order(frame, cut.column))
        chart = chart.facet(facet, columns=cut.wrap, spacing=_GAP)
        if frame[cut.column].nunique() > cut.wrap:
            chart = chart.resolve_axis(x="independent")
    chart = chart.properties(title=title)
    chart.config = alt.Config(**config())
    return chart  # type: ignore[no-any-return]


def _every_panel(frame: "pd.DataFrame", column: str, row: str) -> "pd.DataFrame":
    """The frame with an empty row for each panel that has none: Vega-Lite would put later panels in its place."""
    import pandas as pd

    there = set(zip(frame[column], frame[row], strict=True))
    gaps = [(a, b) for a in frame[column].unique() for b in frame[row].unique() if (a, b) not in there]
    if not gaps:
        return frame
    fill = frame.iloc[[0] * len(gaps)].copy()
    numbers = [name for name in fill.select_dtypes("number").columns if name not in (column, row)]
    fill[numbers] = fill[numbers].astype(float) * float("nan")
    fill[column], fill[row] = [a for a, _ in gaps], [b for _, b in gaps]
    return pd.concat([frame, fill], ignore_index=True)


def title(text: str, subtitle: Sequence[str] = (), *, width: int = 680) -> "alt.TitleParams":
    """A chart's title with its subtitle, both broken into lines that fit a chart of this width in pixels."""
    import altair as alt

    lines = textwrap.wrap(text, max(20, width // 8))
    below = [line for part in subtitle for line in textwrap.wrap(part, max(24, width // 6))]
    return alt.TitleParams(lines, subtitle=below) if below else alt.TitleParams(lines)


def x_log(
    field: str,
    values: Iterable[float],
    *,
    width: int,
    style: str = "si",
    name: str | None = None,
    doubling: bool = False,
) -> "alt.X":
    """A log x axis over these values, with as many ticks as a panel of this width can hold.

    Args:
        field: column of the frame.
        values: what the axis must hold.
        width: pixels of the panel.
        style: how ticks are written: ``si``, ``power`` or ``plain``.
        name: title of the axis.
        doubling: ticks at 1, 2, 4, 8 ... for counts of clients.
    """
    import altair as alt

    if name is None:
        name = (TINY if width < 170 else SHORT if width < 280 else TITLES).get(field) or TITLES.get(field, field)
    domain = log_domain(values)
    if doubling:
        ticks = [2**power for power in range(20) if domain[0] <= 2**power <= domain[1]]
        axis = alt.Axis(values=ticks, title=name, labelExpr=LABELS["plain"])
    else:
        axis = log_axis(domain, name, style=style, most=max(2, width // (72 if style == "power" else 52)))
    return alt.X(f"{field}:Q", scale=log_scale(domain), axis=axis)


def y_log(
    field: str, values: Iterable[float], *, height: int, style: str = "plain", name: str | None = None
) -> "alt.Y":
    """A log y axis over these values."""
    import altair as alt

    domain = log_domain(values)
    axis = log_axis(domain, TITLES.get(field, field) if name is None else name, style=style, most=max(3, height // 38))
    return alt.Y(f"{field}:Q", scale=log_scale(domain), axis=axis)


def y_share(field: str, values: Iterable[float], *, name: str) -> "alt.Y":
    """A linear y axis for shares, from 0 to a round number above the largest, with every tick written in full."""
    import altair as alt

    ticks = share_ticks(max(values, default=1.0))
    scale = alt.Scale(domain=[0, ticks[-1]])
    return alt.Y(f"{field}:Q", scale=scale, axis=alt.Axis(title=name, values=ticks, format="~g"))


def share_ticks(top: float) -> list[float]:
    """Four to eight round numbers from 0 to the first at or above a share.

    >>> share_ticks(0.33), share_ticks(0.004), share_ticks(1.0)[-1]
    ([0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35], [0.0, 0.001, 0.002, 0.003, 0.004], 1.0)
    """
    top = min(top if top > 0 else 0.1, 1.0)
    ten = 10.0 ** math.floor(math.log10(top))
    step = next(step for part in (0.1, 0.2, 0.5, 1.0, 2.0) if top / (step := part * ten) <= 7.001)
    return [round(i * step, 10) for i in range(math.ceil(top / step - 1e-9) + 1)]


def color_by(field: str, values: Sequence[Any], name: str, *, width: int, ordered: bool = True) -> "alt.Color":
    """Colours with a legend above the chart that fits its width; one value needs no legend."""
    import altair as alt

    colors = ramp(len(values)) if ordered or len(values) > len(CATEGORIES) else list(CATEGORIES[: len(values)])
    legend = alt.Legend(
        title=name, orient="top", direction="horizontal", columns=max(2, (width - 20) // 92), symbolType="circle",
        symbolOpacity=1, offset=6,
    )  # fmt: skip
    return alt.Color(
        f"{field}:N", scale=alt.Scale(domain=list(values), range=colors), sort=list(values),
        legend=legend if len(values) > 1 else None,
    )  # fmt: skip


def size_names(frame: "pd.DataFrame") -> list[str]:
    """Add ``size_name`` to the frame and list the names, small to large."""
    frame["size_name"] = frame["size"].map(si)
    return [si(value) for value in sorted(frame["size"].unique())]


def tooltips(frame: "pd.DataFrame", names: Iterable[str]) -> list[Any]:
    """What a point says when it is pointed at, for those columns that are there."""
    import altair as alt

    told = []
    for name in names:
        if name in frame and name in _TOLD:
            words, style = _TOLD[name]
            told.append(
                alt.Tooltip(f"{name}:Q", title=words, format=style) if style else alt.Tooltip(f"{name}:N", title=words)
            )
    return told


def same_axis(channel: Any, field: str) -> Any:
    """The channel with another field: same scale, same axis."""
    copy = channel.copy(deep=True)
    copy.shorthand = f"{field}:Q"
    return copy


# ---------------------------------------------------------------------- helpers
def _header(field: str, width: int = 200) -> "alt.Header":
    """The words above or beside a panel of this width in pixels."""
    import altair as alt

    tail = " per round" if width >= _NARROW else " a round"
    words = {
        "clients_per_round": f"datum.value + (datum.value == 1 ? ' client{tail}' : ' clients{tail}')",
        "size_name": "datum.value + ' parameters'",
    }
    return alt.Header(title=None, labelExpr=words.get(field, "datum.value"))


def _slim(frame: "pd.DataFrame", layers: Sequence["alt.Chart"], cuts: Sequence[str]) -> "pd.DataFrame":
    """Only the columns that the layers draw, numbers to six digits, and no infinities (JSON has none)."""
    text = " ".join(json.dumps(layer.to_dict(validate=False)) for layer in layers)
    used = {*re.findall(r'"field": "(\w+)"', text), *re.findall(r"datum\.(\w+)", text), *cuts}
    slim = frame[[name for name in frame.columns if name in used]].copy()
    for name in slim.columns:
        if slim[name].dtype.kind == "f":
            finite = slim[name].where(np.isfinite(slim[name]))
            slim[name] = [value if value != value else float(f"{value:.6g}") for value in finite]
    return slim


def _order(frame: "pd.DataFrame", field: str) -> list[Any]:
    known = frame.dropna(subset=[field])
    if field == "mixture" and ({"concentration", "skew"} & set(known.columns)):
        return mixtures(known)
    if field == "size_name":
        return [si(value) for value in sorted(known["size"].dropna().unique())]
    return sorted(known[field].unique().tolist())
