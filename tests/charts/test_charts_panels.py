"""A panel shows the runs that its heading names, also when some combinations have no runs."""

import numpy as np
import pandas as pd

import scalefed as sf


def test_every_combination_has_a_panel_so_that_none_moves_into_another():
    rows = [(1, np.inf, 0.0), (2, np.inf, 0.0), (2, 0.1, 0.7), (4, 0.1, 0.7)]  # no skewed run of one client
    frame = pd.DataFrame(
        [{"params": p, "tokens": t, "clients": 16, "clients_per_round": m, "concentration": c, "skew": s,
          "loss": 1e3 / p} for p in (1000, 2000) for t in (1e6, 2e6) for m, c, s in rows]
    )  # fmt: skip
    spec = sf.chart(frame, "loss").to_dict()
    column, row = (spec["facet"][side]["field"] for side in ("column", "row"))
    (data,) = spec["datasets"].values()
    there = {(line[column], line[row]) for line in data}
    assert len(there) == 3 * 2
    filled = [line for line in data if line.get("tokens") is None]
    assert len(filled) == 2 and all(value is None for line in filled for value in (line["tokens"], line["y"]))
