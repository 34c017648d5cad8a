"""How do all charts look? One theme: fonts, colour-blind safe colours, and log axes with readable ticks."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt

FONT = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
CATEGORIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b8b8b")
"""Okabe and Ito's colours, told apart by every common kind of colour vision and on light or dark ground."""
_RAMP = ("#f0a030", "#e0663c", "#c8427c", "#8f4fb8", "#4155c0")
MAIN, MARK, QUIET = "#5468d4", "#e0663c", "#8b8b8b"
MAIN_DARK = "#8b9af0"
"""The colours of a chart with one line: the line, what is marked on it, and what stands aside."""
_SIZES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
LABELS = {
    "si": "replace(format(datum.value, '.3~s'), 'G', 'B')",
    "plain": "format(datum.value, '~g')",
    "power": "replace(format(datum.value, '.2~e'), '+', '')",
}
"""Vega expressions that write a tick: 24k, 0.4, or 1e15."""


def ramp(count: int) -> list[str]:
    """Colours for ``count`` ordered values, light and warm to dark and cool, lightness falling all the way.

    >>> ramp(2)
    ['#f0a030', '#4155c0']
    """
    if count == 1:
        return [_RAMP[-1]]
    stops = [tuple(int(color[i : i + 2], 16) for i in (1, 3, 5)) for color in _RAMP]
    colors = []
    for index in range(count):
        place = index / (count - 1) * (len(stops) - 1)
        low = min(int(place), len(stops) - 2)
        mixed = (a + (b - a) * (place - low) for a, b in zip(stops[low], stops[low + 1], strict=True))
        colors.append("#" + "".join(f"{round(value):02x}" for value in mixed))
    return colors


def colors(*, dark: bool = False) -> dict[str, Any]:
    """The theme's colours by what they are for, on light or dark ground.

    >>> colors()["main"] == MAIN, len(colors(dark=True)["ramp"])
    (True, 9)
    """
    ink, soft, grid = ("#e7e9ee", "#a4abb8", "#333a45") if dark else ("#1c2330", "#5b6472", "#e6e8ec")
    return {"ink": ink, "soft": soft, "grid": grid, "card": "#1a1f28" if dark else "#ffffff", "main": MAIN_DARK if dark
            else MAIN, "mark": MARK, "quiet": QUIET, "ramp": ramp(9), "categories": list(CATEGORIES)}  # fmt: skip


def config(*, dark: bool = False) -> dict[str, Any]:
    """The Vega-Lite config of the theme, for light or dark ground.

    >>> config()["background"], config(dark=True)["background"]
    ('white', None)
    """
    look = colors(dark=dark)
    ink, soft, grid = look["ink"], look["soft"], look["grid"]
    title = {"font": FONT, "fontSize": 14, "fontWeight": 600, "color": ink, "anchor": "start", "offset": 12,
             "subtitleFont": FONT, "subtitleFontSize": 12, "subtitleColor": soft, "subtitlePadding": 4}  # fmt: skip
    labels = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500,
              "labelColor": soft, "titleColor": ink}  # fmt: skip
    return {
        "background": None if dark else "white",
        "font": FONT,
        "padding": 8,
        "title": title,
        "axis": labels | {"gridColor": grid, "domainColor": soft, "tickColor": soft, "tickSize": 4, "titlePadding": 8,
                          "labelPadding": 4, "labelOverlap": True, "domain": False},
        "axisX": {"domain": True},
        "legend": labels | {"symbolSize": 70, "symbolStrokeWidth": 2.2, "titlePadding": 6, "rowPadding": 3,
                            "columnPadding": 14, "labelLimit": 220, "titleLimit": 240},
        "header": labels | {"labelFontWeight": 600, "labelColor": ink, "labelPadding": 6, "titlePadding": 4},
        "view": {"stroke": None},
        "range": {"category": list(CATEGORIES)},
        "line": {"strokeWidth": 2, "strokeCap": "round"},
        "rule": {"color": soft},
        "text": {"font": FONT, "color": ink, "fontSize": 11},
    }  # fmt: skip


# ---------------------------------------------------------------------- numbers in words
def si(value: float) -> str:
    """A count in at most three digits.

    >>> si(24_600), si(2e6), si(7e9), si(512)
    ('24.6k', '2M', '7B', '512')
    """
    for size, unit in _SIZES:
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def power(value: float) -> str:
    """A large number in scientific notation.

    >>> power(1e15), power(3.2e14)
    ('1e15', '3.2e14')
    """
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


_MANTISSAS: tuple[tuple[float, ...], ...] = (
    tuple(1 + i / 20 for i in range(180)),
    tuple(1 + i / 10 for i in range(90)),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
    (1, 2, 3, 4, 5, 6, 7, 8, 9),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 2, 3, 5),
    (1, 2, 5),
    (1, 3),
    (1,),
)


def log_ticks(low: float, high: float, *, most: int = 7) -> list[float]:
    """Round numbers from low to high, evenly spread in logarithms, at most about ``most``.

    >>> log_ticks(1e3, 1e6, most=5)
    [1000.0, 10000.0, 100000.0, 1000000.0]
    >>> log_ticks(0.4, 0.95, most=6)
    [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for mantissas in _MANTISSAS:
        ticks = [round(m * 10.0**e, 12 - min(0, e)) for e in range(first, last + 1) for m in mantissas]
        ticks = [tick for tick in ticks if low * 0.9999 <= tick <= high * 1.0001]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


# ---------------------------------------------------------------------- axes
def log_domain(values: Iterable[float], *, pad: float = 0.05) -> tuple[float, float]:
    """The range of positive values, widened by a share of its length in logarithms.

    >>> [round(end, 6) for end in log_domain([1.0, 100.0], pad=0.5)]
    [0.1, 1000.0]
    """
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    low, high = math.log(min(positive)), math.log(max(positive))
    room = max((high - low) * pad, 0.05 if pad else 0.0)
    return math.exp(low - room), math.exp(high + room)


def log_scale(domain: Sequence[float]) -> "alt.Scale":
    """A log scale over exactly this domain."""
    import altair as alt

    return alt.Scale(type="log", domain=list(domain), nice=False, clamp=False)


def log_axis(
    domain: Sequence[float], title: str | None, *, style: str = "si", most: int = 7, **options: Any
) -> "alt.Axis":
    """An axis with round, readable ticks on a log scale; style is ``si`` (24k), ``power`` (1e15) or ``plain``."""
    import altair as alt

    return alt.Axis(values=log_ticks(*domain, most=most), title=title, labelExpr=LABELS[style], **options)
