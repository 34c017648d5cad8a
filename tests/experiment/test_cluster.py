"""Sweeps on a Ray cluster: the same log as on one machine, also where a node is killed at work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scalefed.config import RunConfig
from scalefed.errors import ConfigError, MissingExtraError
from scalefed.experiment import cluster, train_all
from scalefed.runs.log import log_differences, same_log

TINY = RunConfig(params=3_000, tokens=20_000, clients=4, clients_per_round=2, problem_count=4, samples=1)
SWEEP = "TINY, params=[3_000, 6_000], local_steps=[5, 25]"
TWO_NODES = f"""
import sys, threading
from ray.cluster_utils import Cluster
from scalefed.config import RunConfig
from scalefed.experiment import train_all
from scalefed.sweeps import sweep

TINY = RunConfig(**{TINY.changed()!r})
nodes = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1}})
second = nodes.add_node(num_cpus=1)
seen = []

def killing(progress):
    seen.append(progress.done)
    if len(seen) == 2:
        nodes.remove_node(second, allow_graceful=False)

train_all(sweep({SWEEP}), runs=sys.argv[1], engine="ray", address=nodes.address, on_progress=killing)
nodes.shutdown()
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))


def test_a_bundle_comes_home_as_files_or_as_words():
    made = cluster.make([TINY.changed(), TINY.replace(device="warp:9").changed()])
    assert {"run.json", "rounds.jsonl", "eval.json"} <= made[TINY.run_id].keys()
    assert "device='warp:9' cannot be used here" in made[TINY.replace(device="warp:9").run_id]


def test_a_process_that_is_lost_is_told_from_a_run_that_fails(monkeypatch):
    monkeypatch.setattr(cluster.sys, "executable", "/bin/false")
    with pytest.raises(cluster.ProcessLostError, match="1 runs ended with code"):
        cluster.make([TINY.changed()])


def test_without_ray_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'scalefed\[ray\]'"):
        train_all([TINY], runs=tmp_path, engine="ray")


@pytest.mark.parametrize("words", [{"engine": "rya"}, {"address": "10.0.0.1:6379"}, {"engine": "ray", "workers": 2}])
def test_words_that_contradict_are_refused(words, tmp_path):
    with pytest.raises(ConfigError, match=r"engine must be native \(with workers\) or ray \(with address\)"):
        train_all([TINY], runs=tmp_path, **words)


@pytest.mark.slow
def test_two_nodes_make_the_log_of_one_machine_though_one_is_killed_at_work(tmp_path):
    from scalefed.sweeps import sweep

    environment = os.environ | cluster.SWITCHES | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "ignore", "-c", TWO_NODES, str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    train_all(sweep(TINY, params=[3_000, 6_000], local_steps=[5, 25]), runs=tmp_path / "one", workers=2)
    assert same_log(tmp_path / "one", tmp_path / "two"), log_differences(tmp_path / "one", tmp_path / "two")
