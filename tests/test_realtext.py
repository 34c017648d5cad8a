"""The law that real text was predicted with is the named one, and the frozen file is what it gives."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalefed.laws import LAWS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "paper"))
import realtext  # noqa: E402


def test_at_the_level_of_procedural_text_it_is_the_law_itself():
    params = realtext.SETS["python"].prediction()["law_params"]
    law = LAWS["federated-data-constrained"]
    cells = pd.DataFrame({
        "params": [24_000.0, 152_000.0], "tokens": [2e6, 8e6], "clients": 16.0, "clients_per_round": [1.0, 4.0],
        "local_steps": 25.0, "unique_tokens": 33_554_432.0, "skew": [0.0, 0.6],
    })  # fmt: skip
    level = (params["E"], 1.0, 1.0, params["c"], params["f"], 0.6)
    wanted = law.predict(params, {name: cells[name].to_numpy() for name in law.columns})
    assert realtext.predicted(params, level, cells.assign(natural=[0, 1])) == pytest.approx(
        np.squeeze(wanted), rel=1e-6
    )


@pytest.mark.parametrize("name", realtext.SETS)
def test_the_frozen_losses_follow_from_the_frozen_level(name: str):
    frozen = realtext.SETS[name].prediction()
    cells = pd.DataFrame(frozen["cells"])
    cells["natural"] = cells["arm"] == realtext.ARMS[2]
    carried = {"cohort": frozen["law_params"]["f"], "skew": frozen["skew"]["alike"]}  # not told in the first file
    for law, told in frozen["laws"].items():
        level = [{**carried, **told}[part] for part in realtext.PARTS]
        found = realtext.predicted(frozen["law_params"], level, cells)
        assert found == pytest.approx([cell["laws"][law]["loss"] for cell in frozen["cells"]], rel=1e-9)


def test_runs_of_other_text_are_not_scored():
    held_out = realtext.SETS["python"]
    runs = held_out.stored().assign(text_hash="other")
    with pytest.raises(SystemExit, match="other text"):
        realtext.measured(held_out.prediction(), runs, "shape")


def test_what_the_paper_prints_is_in_bits_a_byte():
    held_out = realtext.SETS["python"]
    runs, told = held_out.stored(), realtext.facts(held_out)
    assert float(told["cells"][0][4]) == pytest.approx(runs["loss"].max() / np.log(2), rel=0.2)
    assert told["floors"]["shape"] == f"{held_out.prediction()['laws']['shape']['floor'] / np.log(2):.2f}"


def test_the_stored_facts_are_those_of_the_runs():
    stored = json.loads((ROOT / "paper/generated/realtext.json").read_text(encoding="utf-8"))
    assert stored == {name: realtext.facts(held_out) for name, held_out in realtext.SETS.items()}
