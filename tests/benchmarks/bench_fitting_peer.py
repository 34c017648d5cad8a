"""How do predictions one decade out compare with those of simple-scaling-laws 0.2.0, on the same public runs?

Run from the repository root; the peer needs Python 3.12 and lives in an environment of its own, whose Python is named
by a variable:

    PEER_PYTHON=.../bin/python OMP_NUM_THREADS=1 python tests/benchmarks/bench_fitting_peer.py [how many sets]

Both fit the coupled law ``E + (A/N^a + B/D^b)^c`` to the runs at a tenth of the largest compute or less, with 200
replicates, and predict the others with a nominal 90% band for a new run. Times are processor seconds of the fit and
the prediction, taken in turn, set by set, without interpreter start and imports.
"""

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from bench_fitting import DATA, public_sets

from scalefed.fitting.fit import fit

PEER = """
import json, sys, time, warnings
import polars as pl
from simple_scaling_laws import fit
warnings.simplefilter("ignore")
work = json.load(sys.stdin)
names = [f"run-{i}" for i in range(len(work["n"]))]
table = pl.DataFrame({"training_run_id": names, "test_set_id": ["t"] * len(names), "model_size__n": work["n"],
                      "dataset_size__d": work["d"], "test_loss__ce": work["y"]})
far = pl.Series(work["far"])
start = time.process_time()
model = fit(table.filter(~far), law="skaling-joint-power", n_draws=200, seed=0)
ahead = model.predict(table.filter(far).select("model_size__n", "dataset_size__d"), kind="new-run",
                      quantiles=[0.05, 0.5, 0.95])
seconds = time.process_time() - start
band = ahead.select("test_loss__ce__median", "test_loss__ce__q050", "test_loss__ce__q950").to_numpy()
json.dump({"band": band.tolist(), "seconds": seconds}, sys.stdout)
"""


def main(most: int) -> None:
    """Every public set that both can fit, one after the other."""
    python = os.environ.get("PEER_PYTHON", "")
    if not Path(python).is_file():
        print("  (PEER_PYTHON names no Python with simple-scaling-laws 0.2.0: left out)")
        return
    sets = public_sets() if (DATA / "porian_isoflop.parquet").exists() else {}
    if not sets:
        print("  (../shared/data is not here: nothing to predict)")
        return
    ours, theirs = [], []
    for name, runs in list(sets.items())[:most]:
        compute = runs["params"] * runs["tokens"]
        far = (compute > compute.max() / 10).to_numpy()
        work = {"n": runs["params"].tolist(), "d": runs["tokens"].tolist(), "y": runs["loss"].tolist(),
                "far": far.tolist()}  # fmt: skip
        done = subprocess.run([python, "-c", PEER], input=json.dumps(work), capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"  {name}: the peer failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        start = time.process_time()
        band = fit(runs[~far], "coupled", scale_weight=0.5, resamples=200).predict(runs[far])
        seconds = time.process_time() - start
        ours.append(score(band.to_numpy(), runs.loc[far, "loss"].to_numpy()) + (seconds,))
        answer = json.loads(done.stdout)
        theirs.append(score(np.array(answer["band"]), runs.loc[far, "loss"].to_numpy()) + (answer["seconds"],))
    for name, rows in (("scalefed, coupled, scale_weight 0.5", ours), ("simple-scaling-laws, coupled", theirs)):
        covered, width, error, seconds = np.array(rows).T
        print(f"{name:30s} {len(rows)} sets: coverage {covered.mean():.3f} (least {covered.min():.2f}), median width "
              f"{np.median(width):.1%}, error {np.median(error):.2%} median {error.mean():.2%} mean, "
              f"{np.median(seconds):.2f} CPU s a set with 200 replicates")  # fmt: skip


def score(band: np.ndarray, loss: np.ndarray) -> tuple[float, float, float]:
    """Coverage, median width and median error of (estimate, low, high)."""
    estimate, low, high = band.T
    inside = float(np.mean((low <= loss) & (loss <= high)))
    return inside, float(np.median((high - low) / estimate)), float(np.median(np.abs(loss / estimate - 1)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
