"""How are many runs made on a cluster? Ray hands bundles of runs to its nodes, and each comes home as files.

A node needs scalefed and its own disk, nothing that is shared. It makes its runs in the very process that makes them on
one machine (:mod:`scalefed.experiment.worker`), so they end with the same bits. What a node that dies had in work is
made again on another; what has come home is in the log, and is not made again.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scalefed.config import RunConfig
from scalefed.errors import ConfigError, MissingExtraError, ScalefedError

RETRIES = 3
"""How often a bundle is made again because its node or its process was lost."""
SWITCHES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no calls home
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the config's device decides
    "RAY_worker_niceness": "0",  # runs are the work, not a background job
    "RAY_worker_register_timeout_seconds": "300",  # a busy machine takes a while
}
"""Environment of a cluster that is started here; what the user has set stays."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Of a process that makes runs, here and on a node: one core each."""

Made = dict[str, dict[str, str] | str]
"""Run id -> the files of its folder, or what went wrong, in words."""


class ProcessLostError(ScalefedError):
    """The process that made a bundle ended before it was done; Ray then makes the bundle again."""


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[int]:
    """A connection to a Ray cluster, and how many cores it has.

    Args:
        address: of a node (``"10.0.0.1:6379"``); None takes the cluster that runs on this machine, or starts one.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: no cluster answers there.
    """
    if find_spec("ray") is None:
        raise MissingExtraError("sweeps on a cluster need Ray; install it with: pip install 'scalefed[ray]'")
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    ray: Any = import_module("ray")
    mine = not ray.is_initialized()
    try:
        if mine:
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address!r}; start one with: ray start --head ({error})"
        ) from None
    try:
        yield int(ray.cluster_resources().get("CPU", 0)) or 1
    finally:
        if mine:
            ray.shutdown()


def made_on_cluster(bundles: Sequence[tuple[RunConfig, ...]]) -> Iterator[tuple[tuple[RunConfig, ...], Made]]:
    """Each bundle with what became of it, as they come home; call it within :func:`connected`."""
    ray: Any = import_module("ray")
    remote = ray.remote(max_retries=RETRIES, retry_exceptions=[ProcessLostError], scheduling_strategy="SPREAD")(make)
    waiting = {}
    for bundle in bundles:
        gpus = 1 if bundle[0].device.startswith("cuda") else 0
        task = remote.options(num_cpus=1, num_gpus=gpus).remote([config.changed() for config in bundle])
        waiting[task] = bundle
    while waiting:
        (task,), _ = ray.wait(list(waiting), num_returns=1)
        bundle = waiting.pop(task)
        try:
            made = ray.get(task)
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            made = dict.fromkeys((config.run_id for config in bundle), lines[-1] if lines else type(error).__name__)
        yield bundle, made


def make(bundle: list[dict[str, Any]]) -> Made:
    """Make a bundle on this node.

    Raises:
        ProcessLostError: its process was killed.
    """
    with tempfile.TemporaryDirectory(prefix="scalefed-") as folder:
        command = [sys.executable, "-m", "scalefed.experiment.worker", folder]
        process = subprocess.run(
            command, input=json.dumps(bundle) + "\n", stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT
        )
        made: Made = {}
        for event in map(json.loads, process.stdout.splitlines()):
            if event["event"] == "stored":
                files = sorted((Path(folder) / event["run_id"]).iterdir())
                made[event["run_id"]] = {path.name: path.read_text(encoding="utf-8") for path in files}
            elif event["event"] == "failed":
                made[event["run_id"]] = event["message"]
    if len(made) < len(bundle):
        raise ProcessLostError(f"the process of {len(bundle) - len(made)} runs ended with code {process.returncode}")
    return made
