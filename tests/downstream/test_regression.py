"""Classical regressions are an extra: reading, fitting and asking do without, and what needs it says so."""

import subprocess
import sys

import pandas as pd
import pytest

import scalefed as sf
from scalefed.analysis.hypothesis_tests import average_compute_test

OPTIMA = pd.DataFrame({"params": [1.0, 2, 3, 4], "compute": [1.0, 4, 9, 20], "clients_per_round": [1.0, 2, 2, 4]})


def test_what_needs_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels.api", None)
    with pytest.raises(sf.ScalefedError, match=r"pip install 'scalefed\[stats\]'"):
        average_compute_test(OPTIMA)


def test_a_fit_and_its_answers_do_without() -> None:
    code = """
import sys
for name in ("statsmodels", "statsmodels.api", "patsy"):
    sys.modules[name] = None
import numpy as np, scalefed as sf
truth = {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37}
grid = {"params": np.geomspace(1e7, 1e9, 5), "tokens": np.geomspace(1e9, 1e11, 5)}
runs = sf.simulate_runs("chinchilla", truth, grid, noise=0.003)
fits = [sf.fit(runs, law, resamples=20) for law in ("chinchilla", "coupled")]
print(fits[0], fits[0].optimal_size(compute=1e20), sf.compare(*fits))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
