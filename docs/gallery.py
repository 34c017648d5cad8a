"""Every kind of chart, drawn from the committed runs, with the line that draws it: ``python docs/gallery.py``."""

from pathlib import Path

import scalefed as sf
from scalefed.charts import KINDS

HERE = Path(__file__).parent
HEAD = """# Gallery

Every kind of chart. Each is an Altair chart: `.save("chart.png")`, or `.svg`, `.pdf`, `.html`; in the shell
`scalefed chart fits/grid.json KIND --out chart.png`.

```py
fit, runs, pilot = sf.load_fit("fits/grid.json"), sf.load_runs("runs/grid"), sf.load_runs("runs/pilot", rounds=True)
```
"""
LINES = {
    "loss": 'sf.chart(fit, "loss")',
    "isoflop": 'sf.chart(fit, "isoflop")',
    "optimum": 'sf.chart(fit, "optimum")',
    "budget": 'sf.chart(fit, "budget", compute=3e13, clients_per_round=4)',
    "residuals": 'sf.chart(fit, "residuals")',
    "participation": 'sf.chart(runs, "participation")',
    "passk": 'sf.chart(runs, "passk")',
    "rounds": 'sf.chart(pilot, "rounds")',
    "comparison": """sf.chart(
    sf.compare(*(sf.fit(runs, law, resamples=20) for law in ("chinchilla", "federated")), holdout="tokens"),
    "comparison",
)""",
}
"""Kind of chart -> the line that draws it."""


def page() -> str:
    """The gallery's page."""
    parts = [HEAD]
    for kind in KINDS:
        parts.append(f"## {kind}\n\n```py\n{LINES[kind]}\n```\n\n![The chart {kind}](gallery/{kind}.png)\n")
    return "\n".join(parts)


def main() -> None:
    """Draw them all."""
    (HERE / "gallery").mkdir(exist_ok=True)
    names = {
        "sf": sf,
        "fit": sf.load_fit(HERE.parent / "fits" / "grid.json"),
        "runs": sf.load_runs(HERE.parent / "runs" / "grid"),
        "pilot": sf.load_runs(HERE.parent / "runs" / "pilot", rounds=True),
    }
    for kind in KINDS:
        eval(LINES[kind], names).save(HERE / "gallery" / f"{kind}.png")
    (HERE / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
