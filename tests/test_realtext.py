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
    params = json.loads(realtext.FROZEN.read_text(encoding="utf-8"))["law_params"]
    law = LAWS["federated-data-constrained"]
    cells = pd.DataFrame({
        "params": [24_000.0, 152_000.0], "tokens": [2e6, 8e6], "clients": 16.0, "clients_per_round": [1.0, 4.0],
        "local_steps": 25.0, "unique_tokens": 33_554_432.0, "skew": [0.0, 0.6],
    })  # fmt: skip
    level = (params["E"], 1.0, 1.0, params["c"])
    wanted = law.predict(params, {name: cells[name].to_numpy() for name in law.columns})
    assert realtext.predicted(params, level, cells, cells["skew"]) == pytest.approx(np.squeeze(wanted), rel=1e-6)


def test_the_frozen_losses_follow_from_the_frozen_level():
    frozen = json.loads(realtext.FROZEN.read_text(encoding="utf-8"))
    cells = pd.DataFrame(frozen["cells"])
    skew = frozen["skew"]["alike"] * (cells["arm"] == realtext.ARMS[2])
    for name, law in frozen["laws"].items():
        level = [law[part] for part in ("floor", "size", "data", "power")]
        found = realtext.predicted(frozen["law_params"], level, cells, skew)
        assert found == pytest.approx([cell["laws"][name]["loss"] for cell in frozen["cells"]], rel=1e-9)
