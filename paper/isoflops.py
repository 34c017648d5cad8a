"""Loss against size at equal compute, measured and by the law, on both ways of counting compute.

    python paper/isoflops.py         generated/isoflop.svg and isoflop_exact.svg

A measured point is a size's mean loss over seeds, interpolated (in logs) between its token budgets to the tokens that
the compute buys; nothing is extrapolated. Diamonds are the lowest points of parabolas through these.
"""

from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd

import scalefed as sf
from scalefed.analysis.isoflop import isoflop_optima
from scalefed.charts.theme import config, power, ramp
from scalefed.runs.derived import flops_per_token

ROOT = Path(__file__).parent.parent
LEVELS = (3e11, 1e12, 3e12, 6e12)
COUNTS = (1, 4, 16)
AXES = {"compute": "isoflop", "compute_exact": "isoflop_exact"}


def main() -> None:
    """Draw both."""
    fit = sf.load_fit(ROOT / "fits/grid.json")
    runs = sf.load_runs(ROOT / "runs/grid")
    iid = runs[(runs["concentration"] == np.inf) & runs["clients_per_round"].isin(COUNTS)]
    for axis, name in AXES.items():
        chart(iid, fit, axis).save(str(ROOT / f"paper/generated/{name}.svg"))


def measured(runs: pd.DataFrame, axis: str, floor: float) -> pd.DataFrame:
    """Points: clients_per_round, params, compute, loss; sizes whose budgets do not hold the tokens are left out."""
    cost = flops_per_token(runs, axis)
    rows = []
    for (count, size), own in runs.groupby(["clients_per_round", "params"]):
        means = np.log(own.groupby("tokens")["loss"].mean() - floor)
        logs = np.log(means.index.to_numpy(float))
        for level in LEVELS:
            tokens = np.log(level / cost(size))
            if logs[0] - 0.01 <= tokens <= logs[-1] + 0.01:
                loss = floor + np.exp(np.interp(tokens, logs, means))
                rows.append({"clients_per_round": count, "params": size, "level": level, "loss": loss})
    return pd.DataFrame(rows).assign(part="measured")


def curves(fit: sf.Fit, points: pd.DataFrame, runs: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The law's loss over the sizes that a level has points of, and a little beyond."""
    cost = flops_per_token(runs, axis)
    rows = []
    for (count, level), own in points.groupby(["clients_per_round", "level"]):
        sizes = np.geomspace(own["params"].min() / 1.3, own["params"].max() * 1.3, 30)
        rows.append(pd.DataFrame({"clients_per_round": count, "params": sizes, "level": level}))
    table = pd.concat(rows, ignore_index=True).assign(skew=0.0, part="law")
    table["tokens"] = table["level"] / cost(table["params"])
    return table.assign(loss=fit.predict(table)["estimate"].to_numpy())


def chart(runs: pd.DataFrame, fit: sf.Fit, axis: str) -> alt.FacetChart:
    """One panel a cohort, one colour a level of compute."""
    floor = fit.params["E"]
    points = measured(runs, axis, floor)
    lowest = isoflop_optima(runs, LEVELS, axis=axis, floor=floor).rename(columns={axis: "level"}).dropna()
    table = pd.concat([points, curves(fit, points, runs, axis), lowest.assign(part="parabola")], ignore_index=True)
    table["FLOPs"] = table["level"].map(power)
    names = [power(level) for level in LEVELS]
    base = alt.Chart().encode(
        x=alt.X("params:Q", title="Parameters", scale=alt.Scale(type="log", nice=False),
                axis=alt.Axis(format="~s", values=[1e4, 1e5])),
        y=alt.Y("loss:Q", title="Held-out loss (nats per token)", scale=alt.Scale(type="log", nice=False),
                axis=alt.Axis(values=[0.25, 0.3, 0.4, 0.5, 0.7, 1, 1.4])),
        color=alt.Color("FLOPs:N", sort=names, scale=alt.Scale(domain=names, range=ramp(len(names))),
                        legend=alt.Legend(orient="top")),
    )  # fmt: skip
    layers = [
        base.transform_filter(alt.datum.part == "law").mark_line(strokeWidth=1.2, opacity=0.7, clip=True),
        base.transform_filter(alt.datum.part == "measured").mark_circle(size=36, opacity=1),
        base.transform_filter(alt.datum.part == "parabola").mark_point(shape="diamond", size=80, filled=False),
    ]
    panel = alt.layer(*layers, data=table).properties(width=130, height=190)
    panels: alt.FacetChart = panel.facet(alt.Facet("clients_per_round:O", title="Clients a round"), columns=3)
    return panels.configure(**config())  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
