"""How does text from a run log stand in a page so that it can never run? Escaped JSON, and a policy that names scripts.

Two locks: data stand in a page as JSON in which nothing can end or begin an element, and a content security policy
allows exactly the scripts that the package wrote, by their hashes, no other address, and no ``eval``.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from typing import Any

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def embedded(value: Any) -> str:
    r"""JSON that may stand inside a ``<script>``.

    Raises:
        ValueError: a number is not finite.

    >>> print(embedded({"id": "</script>"}))
    {"id":"\u003c/script\u003e"}
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # in ASCII, so that half a letter can be written
    for letter, written in _UNSAFE.items():
        text = text.replace(letter, written)
    return text


def policy(scripts: Sequence[str]) -> str:
    """The content of a ``Content-Security-Policy`` under which only these inline scripts run and nothing is fetched.

    Styles may stand in the page; pictures may be made by it (a chart that is saved).

    >>> policy(["let a = 1"])[:45]
    "default-src 'none'; script-src 'sha256-LAfYd7"
    """
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )


def chart_page(drawn: Any, *, title: str = "scalefed chart") -> str:
    """A chart as one page that needs no network and in which nothing of the data can run.

    Args:
        drawn: an Altair chart.
        title: of the page.
    """
    library, data = _vega(), embedded(drawn.to_dict())
    start = (
        'vegaEmbed("#chart", JSON.parse(document.getElementById("data").textContent), '
        '{ast: true, renderer: "svg", mode: "vega-lite", actions: {export: true, source: false, compiled: false, '
        "editor: false}});"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy([library, start]))}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>#chart svg {{ max-width: 100%; height: auto; }}</style>\n"
        f'</head>\n<body>\n<div id="chart"></div>\n<script type="application/json" id="data">{data}</script>\n'
        f"<script>{library}</script>\n<script>{start}</script>\n</body>\n</html>\n"
    )


def _vega() -> str:
    """Vega, Vega-Lite and their embedding as one script."""
    import altair as alt
    import vl_convert

    version = alt.SCHEMA_VERSION.removeprefix("v").rsplit(".", 1)[0]
    known = vl_convert.get_vegalite_versions()
    found = version if version in known else known[-1]
    script = str(vl_convert.javascript_bundle("window.vegaEmbed=vegaEmbed;", vl_version=found))
    return script.replace("</script", "<\\/script")
