"""How far can the law be trusted? What it misses run by run, and which law predicts larger runs best."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.charts.frames import TITLES, check_choice, is_fit, shown
from scalefed.charts.parts import Panels, assemble, color_by, same_axis, size_names, title, tooltips, x_log
from scalefed.charts.theme import MAIN, QUIET
from scalefed.errors import ConfigError
from scalefed.runs.log import require

if TYPE_CHECKING:
    import altair as alt


def residuals(
    fit: Any, *, x: str = "params", width: int = 680, headline: str | None = None
) -> "alt.LayerChart | alt.FacetChart":
    """By how many percent each run lies above or below the law, one colour a number of clients per round.

    Args:
        fit: a fit.
        x: ``params``, ``tokens``, ``compute``, ``clients_per_round``, ``skew`` or ``estimate`` (the fitted value).
        width: pixels in all.
        headline: the title.
    """
    import altair as alt
    import pandas as pd

    check_choice("x", x, ("params", "tokens", "compute", "clients_per_round", "skew", "estimate"))
    if not is_fit(fit):
        raise ConfigError(
            f"the chart 'residuals' needs a fit, got {type(fit).__name__}; make one with scalefed.fit(runs)"
        )
    target = str(getattr(fit, "target", "loss"))
    view = shown(fit, [target, *({x} - {"estimate"})])
    frame = view.runs
    frame["estimate"] = np.asarray(fit.predicted(frame)["estimate"], dtype=float)
    frame["residual"] = 100.0 * (frame[target] / frame["estimate"] - 1.0)
    if "size" in frame:
        size_names(frame)
    usual = float(np.sqrt(np.mean(frame["residual"] ** 2)))
    counts = frame["clients_per_round"].map(lambda count: f"{count:g}") if "clients_per_round" in frame else "all"
    frame["group"] = counts
    names = sorted(frame["group"].unique(), key=float) if "clients_per_round" in frame else ["all"]
    cut = Panels(None, None, max(width - 70, 200), 260, 1)
    far = float(np.abs(frame["residual"]).max()) * 1.15 or 1.0
    axis = alt.Axis(title="Measured above the law (%)", tickCount=5)
    up = alt.Y("residual:Q", scale=alt.Scale(domain=[-far, far], nice=True), axis=axis)
    style = {"compute": "power", "estimate": "plain", "skew": "plain"}.get(x, "si")
    if x == "skew":
        across: Any = alt.X("skew:Q", title=TITLES["skew"])
    else:
        across = x_log(
            x,
            frame[x],
            width=cut.width,
            style=style,
            name=TITLES.get(x, "Fitted value"),
            doubling=x == "clients_per_round",
        )
    runs = alt.Chart().transform_filter(alt.datum.part == "run")
    usual_range = alt.Chart().transform_filter(alt.datum.part == "usual")
    told = ["run_id", "size_name", "tokens", "clients_per_round", "mixture", "loss", "estimate", "residual"]
    color = color_by("group", names, "Clients per round", width=width)
    layers = [
        usual_range.mark_rect(opacity=0.1, color=QUIET).encode(y=same_axis(up, "y_low"), y2="y_high:Q"),
        usual_range.mark_rule(strokeWidth=1.2).encode(y=up),
        runs.mark_circle(size=52, opacity=0.9).encode(x=across, y=up, color=color, tooltip=tooltips(frame, told)),
    ]
    usual_row = pd.DataFrame({"part": ["usual"], "residual": [0.0], "y_low": [-usual], "y_high": [usual]})
    frame = pd.concat([frame.assign(part="run"), usual_row], ignore_index=True)
    words = f"Grey: root mean square, {usual:.2g}%"
    return assemble(
        layers, frame, cut, title=title(headline or "What the law misses, run by run", view.note(words), width=width)
    )


def comparison(table: Any, *, width: int = 680, headline: str | None = None) -> "alt.LayerChart | alt.FacetChart":
    """Which law predicts larger runs best: the error on held-out runs, one row a law, best first.

    Args:
        table: what ``compare`` returns, with ``holdout_error`` and the law's name as a column ``law`` or the index.
        width: pixels in all.
        headline: the title.
    """
    import altair as alt
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        raise ConfigError(f"the chart 'comparison' needs what compare(...) returns, got {type(table).__name__}")
    frame: pd.DataFrame = table.copy()
    if "law" not in frame:
        frame["law"] = frame.index.astype(str)
    frame = require(frame, ["holdout_error"], "the comparison").dropna(subset=["holdout_error"])
    frame = frame.sort_values("holdout_error").assign(y=100.0 * frame["holdout_error"])
    frame["measure"] = frame["y"].map(lambda value: f"{value:.2g}%")
    cut = Panels(None, None, max(width - 170, 160), 26 * max(len(frame), 2), 1)
    up = alt.Y(
        "law:N", sort=frame["law"].tolist(), title=None, axis=alt.Axis(labelFontSize=12, labelLimit=150, ticks=False)
    )
    far = float(frame["y"].max()) * 1.18
    across = alt.X(
        "y:Q", title="Error on held-out larger runs (%)", scale=alt.Scale(domain=[0, far if math.isfinite(far) else 1])
    )
    base = alt.Chart().encode(x=across, y=up, color=alt.value(MAIN))
    layers = [
        base.mark_bar(height=3, opacity=0.35),
        base.mark_circle(size=90, opacity=1).encode(tooltip=tooltips(frame, ["law", "measure"])),
        base.mark_text(align="left", dx=9).encode(text="measure:N"),
    ]
    return assemble(layers, frame, cut, title=title(headline or "Which law predicts larger runs", width=width))
