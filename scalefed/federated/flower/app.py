"""How does a run become a Flower app on disk, and how does it go over several processes of this machine?

A written app holds every setting of its config in ``[tool.flwr.app.config]``, so that ``flwr run -c "rounds..."`` style
overrides work, and no dependencies: it runs in the environment that scalefed is installed in.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scalefed.config import RunConfig, cache_directory
from scalefed.errors import ConfigError, DataError, MissingExtraError

SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",  # no calls home
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # or every run builds an environment of its own
    "RAY_worker_niceness": "0",  # clients are the work, not a background job
    "RAY_worker_register_timeout_seconds": "300",  # a busy machine takes a while to import torch
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the config's device decides; also what Ray is going to do
}
"""Environment of Flower and Ray; what the user has set stays."""

_UNSET = "auto"  # a setting that follows from the others; TOML has no word for none


@dataclass(frozen=True)
class AppSettings:
    """What a Flower app is told.

    Attributes:
        config: the run.
        output: folder of the run log that the server app writes to.
        nodes: nodes to wait for before the first round.
        timeout_s: longest wait for nodes, and for the answers of a round.
    """

    config: RunConfig
    output: str
    nodes: int
    timeout_s: float


def to_flower_app(
    config: RunConfig,
    folder: str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    nodes: int = 2,
    timeout_s: float = 3600.0,
) -> Path:
    """Write a runnable Flower app; start it with ``flwr run <folder> <superlink> --stream``.

    The server app trains with :func:`scalefed.train`: the run lands in the run log at ``output``. The server keeps a
    checkpoint of every round in its cache directory: an app that is started again after its server was killed goes on
    after the last finished round, and ends with the same bits. What a lost node was working on is sent to another.

    Args:
        config: the run.
        folder: of the app, made if it is missing; its name must be letters, digits and hyphens, a letter first.
        output: folder of the run log, on the server's machine; ``<folder>/runs`` when None.
        nodes: nodes to wait for before the first round; more may join.
        timeout_s: longest wait for nodes, and for the answers of a round.

    Returns:
        The folder.

    Raises:
        ConfigError: Flower would refuse the folder's name, or a setting is out of range.
    """
    folder = Path(folder).resolve()
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,39}", folder.name):
        raise ConfigError(
            f"Flower takes app folders of letters, digits and hyphens, a letter first, at most 40 in all; "
            f"got {folder.name!r}"
        )
    if nodes < 1 or not timeout_s > 0:
        raise ConfigError(f"nodes must be at least 1 and timeout_s positive, got {nodes=}, {timeout_s=}")
    extras = {"output": str(Path(output or folder / "runs").resolve()), "nodes": nodes, "timeout_s": float(timeout_s)}
    settings = {name: _UNSET if value is None else value for name, value in config.items()} | extras
    lines = [f"{name} = {_toml(value)}" for name, value in settings.items()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(_PROJECT.format(settings="\n".join(lines)), encoding="utf-8")
    (folder / "scalefed_app.py").write_text(_APP, encoding="utf-8")
    return folder


def settings_of_app(run_config: Mapping[str, Any]) -> AppSettings:
    """The settings in a Flower run configuration.

    Raises:
        ConfigError: a key is unknown or missing, or a value is out of range.
    """
    values = {name: value for name, value in run_config.items() if value != _UNSET or name == "client_batching"}
    try:
        output, nodes, timeout_s = (values.pop(name) for name in ("output", "nodes", "timeout_s"))
    except KeyError as error:
        raise ConfigError(f"the run configuration has no {error}; write the app with to_flower_app") from None
    return AppSettings(RunConfig.from_dict(values), str(output), int(nodes), float(timeout_s))


# ---------------------------------------------------------------------- several processes of this machine
@dataclass(frozen=True)
class Loopback:
    """A SuperLink and its SuperNodes on this machine.

    Attributes:
        address: of the SuperLink.
        home: Flower's own folder, with the processes' logs.
        environment: for commands that talk to it.
    """

    address: str
    home: Path
    environment: dict[str, str]

    def run(self, app: str | os.PathLike[str], *, timeout_s: float = 3600.0) -> str:
        """Run an app to its end; returns what it said.

        Raises:
            DataError: the command failed. Flower's command also succeeds when the app dies: look for the run in the
                app's output folder.
        """
        command = [_executable("flwr"), "run", str(Path(app).resolve()), "loopback", "--stream"]
        done = subprocess.run(
            command, env=self.environment, cwd=self.home, timeout=timeout_s, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DataError(f"flwr run ended with {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
        return done.stdout + done.stderr


@contextlib.contextmanager
def loopback(*, nodes: int = 2, home: str | os.PathLike[str] | None = None) -> Iterator[Loopback]:
    """A SuperLink and SuperNodes as processes that talk over the loopback interface; they end with the block.

    Args:
        nodes: SuperNodes to start.
        home: Flower's folder (``FLWR_HOME``); a new one in the cache directory when None.

    Raises:
        MissingExtraError: Flower is not installed.
        DataError: a process did not come up.
    """
    require_flower()
    ports = _free_ports(nodes + 1)
    address = f"127.0.0.1:{ports[0]}"
    where = Path(home) if home is not None else cache_directory() / "flower" / f"loopback-{os.getpid()}-{ports[0]}"
    where.mkdir(parents=True, exist_ok=True)
    (where / "config.toml").write_text(
        f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\naddress = "{address}"\ninsecure = true\n'
    )
    environment = {**SWITCHES, **os.environ, "FLWR_HOME": str(where)} | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # it starts its own
    }
    commands = [
        [_executable("flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(ports[0]),
         "--disable-runtime-dependency-installation"],
        *([_executable("flower-supernode"), "--insecure", "--superlink", address, "--host", "127.0.0.1", "--port",
           str(port), "--node-config", f"partition-id={node} num-partitions={nodes}"]
          for node, port in enumerate(ports[1:])),
    ]  # fmt: skip
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for index, command in enumerate(commands):
            with (where / f"process-{index}.log").open("wb") as log:
                process = subprocess.Popen(
                    command, env=environment, cwd=where, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            processes.append(process)
            if index == 0:
                _await_port(ports[0], process, where / "process-0.log")
        yield Loopback(address, where, environment)
    finally:
        _end(processes[1:])
        _end(processes[:1])


def require_flower() -> None:
    """Check that Flower is there, without importing it.

    Raises:
        MissingExtraError: it is not installed.
    """
    if find_spec("flwr") is None:
        raise MissingExtraError("this needs Flower; install it with: pip install 'scalefed[flower]'")


# ---------------------------------------------------------------------- helpers
def _toml(value: Any) -> str:
    """A setting as TOML; JSON's strings are TOML's."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _executable(name: str) -> str:
    """A command of Flower, beside this interpreter or on the path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise MissingExtraError(f"no command {name}; install Flower with: pip install 'scalefed[flower]'")
    return found


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _await_port(port: int, process: "subprocess.Popen[bytes]", log: Path, *, seconds: float = 60.0) -> None:
    """Wait until a process listens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.1)
    raise DataError(f"Flower's SuperLink did not come up: {log.read_text(errors='replace')[-2000:]}")


def _end(processes: Sequence["subprocess.Popen[bytes]"], *, seconds: float = 10.0) -> None:
    """End processes of ours and what they started: politely and all at once, then for good."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


_APP = '''"""A federated run of scalefed as a Flower app; its settings are in pyproject.toml."""

import scalefed
from scalefed.federated.flower.engine import client_app as make_client_app
from scalefed.federated.flower.engine import server_app as make_server_app

client_app = make_client_app()
server_app = make_server_app(
    lambda config, output: scalefed.train(config, runs=output, engine="flower", checkpoint_seconds=0.0)  # every round
)
'''

_PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "scalefed-run"
version = "1.0.0"
description = "A federated run of scalefed as a Flower app"
license = "Apache-2.0"
dependencies = []  # it runs in the environment that scalefed is installed in

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "local"

[tool.flwr.app.components]
serverapp = "scalefed_app:server_app"
clientapp = "scalefed_app:client_app"

[tool.flwr.app.config]
{settings}
"""
