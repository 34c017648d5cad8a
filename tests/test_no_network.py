"""Nothing is fetched without being asked: every process of a user's journey runs with all ways to the network shut."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHUT = """
import sys
def shut(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect"):
        raise OSError(f"the network was asked: {event} {arguments}")
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        raise OSError(f"the network was asked: {event} {arguments[1]}")
sys.addaudithook(shut)
"""
READ = """
import numpy as np, pandas as pd, scalefed as sf
params, tokens = np.repeat(np.geomspace(1e6, 1e8, 5), 5), np.tile(np.geomspace(1e8, 1e10, 5), 5)
runs = pd.DataFrame({"params": params, "tokens": tokens})
runs["loss"] = 1.8 + 480 / params**0.35 + 2100 / tokens**0.37 + 0.001 * np.sin(np.arange(25))
fit = sf.fit(runs, law="chinchilla", resamples=20)
fit.save("fit.json")
sf.load_fit("fit.json").optimal_size(compute=1e18)
sf.chart(fit, "loss").save("chart.html")
sf.write_report(fit, out="report.html")
"""
MAKE = """
import scalefed as sf
config = sf.RunConfig(params=3_500, tokens=30_000, clients=4, clients_per_round=2, local_steps=5, problem_count=4,
                      samples=2, validation_tokens=4_096)
print(sf.train(config, runs="runs").loss)
"""


def offline(folder: Path, code: str) -> subprocess.CompletedProcess:
    """Run code where any question to the network is an error, in its children too."""
    (folder / "shut").mkdir(exist_ok=True)
    (folder / "shut" / "sitecustomize.py").write_text(SHUT)
    path = {"PYTHONPATH": f"{folder / 'shut'}:{ROOT}", "SCALEFED_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=os.environ | path, capture_output=True, text=True, timeout=300
    )


def test_the_lock_holds(tmp_path):
    done = offline(tmp_path, "import socket; socket.create_connection(('127.0.0.1', 9), 1)")
    assert done.returncode == 1 and "the network was asked" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("code", [READ, MAKE], ids=["read", "make"])
def test_nobody_asks_the_network(tmp_path, code):
    done = offline(tmp_path, code)
    assert done.returncode == 0 and "the network was asked" not in done.stderr, done.stderr[-2000:]


@pytest.mark.slow
def test_judging_asks_nobody(tmp_path):
    record = {"task_id": "HumanEval/53", "completion": "    return x + y\n"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(record) + "\n")
    done = offline(
        tmp_path,
        "from scalefed.cli import main; import sys; sys.argv[1:] = ['evaluate', 'samples.jsonl', '--k', '1']; main()",
    )
    assert done.returncode == 0 and "the network was asked" not in done.stderr, done.stderr[-2000:]
