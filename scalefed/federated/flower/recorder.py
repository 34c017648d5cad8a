"""What files does a Flower run leave, as of its last record? A folder of the run log, whole at every moment.

``<runs>/<run_id>/`` has ``flower.jsonl`` (all that happened, as it happened), ``rounds.jsonl`` and ``run.json``, which
says "running" from the start and is replaced after every round. While the server app lives a file ``alive`` is touched
every few seconds; a run that says it is running and has none of late is told as "lost".
"""

import contextlib
import datetime
import logging
import math
import numbers
import os
import re
import threading
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalefed.errors import ConfigError, RunLogWarning
from scalefed.runs.files import ALIVE, ROUNDS, RUN, provenance, write_file
from scalefed.runs.jsontext import dumps
from scalefed.runs.schema import COLUMNS, ROUND_COLUMNS, SCHEMA, Column

EMBEDDINGS = ("embed", "wte", "wpe", "lm_head")
"""Parts of the names of arrays that ``params``, which counts no embeddings, leaves out."""
_TOUCH_S = 5.0  # between signs of life; a run without one for minutes was killed
_TOKENS = ("num-tokens", "num_tokens", "tokens")
_LOSSES = ("loss", "eval_loss", "val_loss", "test_loss", "eval-loss", "val-loss", "test-loss")

logger = logging.getLogger("flwr")  # where a Flower app's own words go


class Recorder:
    """Takes what a strategy's log tells, and keeps the run's files as of the last record."""

    def __init__(
        self,
        strategy: Any,
        runs: Path,
        run_id: str | None,
        told: Mapping[str, Any],
        embeddings: tuple[str, ...],
        tokens_an_example: float,
    ) -> None:
        """A recorder that has not begun.

        Args:
            strategy: whose run it is.
            runs: folder of the run log.
            run_id: name of the run; None for one by strategy and time.
            told: columns that the user gave.
            embeddings: parts of the names of arrays that ``params`` leaves out.
            tokens_an_example: tokens that a client trains on for each of its examples.

        Raises:
            ConfigError: the name is none, or the run is there already.
        """
        self.strategy, self.runs, self.name, self.told = strategy, runs, run_id, dict(told)
        self.embeddings, self.tokens_an_example = embeddings, tokens_an_example
        acts = (self._nodes, self._sampled, self._round, self._client_eval, self._server_eval, self._end, self._failed)
        self._acts = {act.__name__.removeprefix("_"): act for act in acts}
        if run_id is not None:
            _check_name(run_id)
            _refuse_old(runs / run_id)

    # ------------------------------------------------------------------ records
    def take(self, record: dict[str, Any]) -> None:
        """One record of the strategy's log."""
        kind = record["kind"]
        if kind == "start":
            self._begin(record)
        with (self.folder / "flower.jsonl").open("a", encoding="utf-8") as file:
            file.write(dumps(record) + "\n")
        if (act := self._acts.get(kind)) is not None:
            act(record)
        self._keep()

    def _begin(self, record: Mapping[str, Any]) -> None:
        now = datetime.datetime.now(datetime.UTC)
        made = f"{type(self.strategy).__name__.lower()}-{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        self.folder = self.runs / (self.name or made)
        _refuse_old(self.folder)
        self.folder.mkdir(parents=True)
        self.status, self.error, self.clock = "running", None, time.perf_counter()
        self.nodes = 0
        self.cohorts: list[int] = []
        self.participants: list[int] = []
        self.sums = {"examples": 0.0, "tokens": 0.0, "bytes_sent": 0, "failed": 0}
        self.last: dict[str, Any] = {}
        self.open: dict[str, Any] | None = None
        self.rounds = 0
        self.sizes = dict(record["arrays"])
        self.made = provenance(os.getcwd()) | {"started": now.isoformat(timespec="seconds"), "maker": "flower"}
        (self.folder / ROUNDS).touch()
        self.stop = threading.Event()
        threading.Thread(target=_live, args=(self.folder / ALIVE, self.stop), daemon=True).start()
        logger.info("scalefed: this run is kept in %s", self.folder)

    def _nodes(self, record: Mapping[str, Any]) -> None:
        connected = int(record["connected"])
        if not self.cohorts and self.nodes == 0:
            self._warn_of_waiting(connected)
        self.nodes = max(self.nodes, connected)

    def _sampled(self, record: Mapping[str, Any]) -> None:
        self._close()
        self.cohorts.append(int(record["asked"]))

    def _round(self, record: Mapping[str, Any]) -> None:
        clients = record["clients"]
        examples = [_number(client.get(self._weight)) for client in clients]
        tokens = [
            next((_number(client[name]) for name in _TOKENS if name in client), count * self.tokens_an_example)
            for client, count in zip(clients, examples, strict=True)
        ]
        self.sums["examples"] += sum(examples)
        self.sums["tokens"] += sum(tokens)
        self.sums["bytes_sent"] += record["bytes_down"] + record["bytes_up"]
        self.sums["failed"] += record["failed"]
        self.participants.append(len(clients))
        self.rounds = int(record["round"])
        self.open = {
            "round": self.rounds, "tokens": round(self.sums["tokens"]), "bytes_sent": int(self.sums["bytes_sent"]),
            "clients": list(record["sampled"]), "participants": len(clients), "wall_s": record["wall_s"],
            "client_tokens": [round(count) for count in tokens],
        }  # fmt: skip
        self._metrics(record["metrics"], "train_")

    def _client_eval(self, record: Mapping[str, Any]) -> None:
        self._metrics(record["metrics"], "client_")

    def _server_eval(self, record: Mapping[str, Any]) -> None:
        self._metrics(record["metrics"], "")

    def _end(self, record: Mapping[str, Any]) -> None:
        loss = self._loss()
        self._finish("completed" if loss is None or math.isfinite(loss) else "diverged")

    def _failed(self, record: Mapping[str, Any]) -> None:
        self.error = record["error"]
        self._finish("failed")

    # ------------------------------------------------------------------ what follows from them
    @property
    def _weight(self) -> str:
        """The metric that says how many examples are behind a reply."""
        return str(getattr(self.strategy, "weighted_by_key", "num-examples"))

    def _metrics(self, metrics: Mapping[str, Any], prefix: str) -> None:
        """Numbers of a round under their names; those of clients with a prefix, as ``import_rounds`` has them."""
        for name, value in metrics.items():
            if name == self._weight or not isinstance(value, numbers.Real):
                continue
            own = name if name.startswith(prefix) else prefix + name
            column = {f"{prefix}{loss}": f"{prefix}loss" for loss in _LOSSES}.get(own, own).replace("-", "_")
            if column in ("round", "tokens", "wall_s", "status", "run_id") or own in self.told:
                continue
            self.last[column] = float(value)
            if self.open is not None:
                self.open[column] = float(value)

    def _loss(self) -> float | None:
        """The last loss on held-out data: the server's, else the mean of the clients'."""
        return next((self.last[name] for name in ("loss", "client_loss") if name in self.last), None)

    def _close(self) -> None:
        """The open round is complete: a line of ``rounds.jsonl``."""
        if self.open is None:
            return
        if "loss" not in self.open and "client_loss" in self.open:
            self.open["loss"] = self.open["client_loss"]
        record = _possible(self.open, ROUND_COLUMNS, infinite=True)
        with (self.folder / ROUNDS).open("a", encoding="utf-8") as file:
            file.write(dumps(record) + "\n")
        self.open = None

    def _finish(self, status: str) -> None:
        self._close()
        self.status = status
        self.stop.set()
        with contextlib.suppress(FileNotFoundError):
            (self.folder / ALIVE).unlink()

    def _row(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Settings and results as of now."""
        settings = {name: value for name, value in self.told.items() if _is_setting(name) and name != "params"}
        settings |= {"algorithm": type(self.strategy).__name__, "clients": self.told.get("clients", self.nodes or None)}
        if self.cohorts:
            settings["clients_per_round"] = round(sum(self.cohorts) / len(self.cohorts))
            settings["clients"] = max(settings["clients"] or 0, settings["clients_per_round"])
        whole = sum(self.sizes.values())
        seen = sum(n for name, n in self.sizes.items() if not any(part in name.lower() for part in self.embeddings))
        params = self.told.get("params", seen or whole)
        result = {name: value for name, value in self.told.items() if not _is_setting(name)}
        result |= {"params": params, "params_total": max(whole, params), "tokens": round(self.sums["tokens"])}
        result |= {"params_trained": min(whole, params)} if whole < params else {}
        result |= {"examples": round(self.sums["examples"]), "failed_clients": int(self.sums["failed"])}
        result |= {"rounds": self.rounds, "rounds_kept": self.rounds, "bytes_sent": int(self.sums["bytes_sent"])}
        result["wall_s"] = time.perf_counter() - self.clock
        if self.participants:
            result["participants_mean"] = sum(self.participants) / len(self.participants)
        if settings.get("clients"):
            result["bytes_per_client"] = self.sums["bytes_sent"] / settings["clients"]
        result |= self.last | ({"loss": loss} if (loss := self._loss()) is not None else {})
        if "client_loss" in self.last:
            result["loss_client_mean"] = self.last["client_loss"]
        return settings, _possible(result, COLUMNS, infinite=self.status == "diverged")

    def _keep(self) -> None:
        """Replace ``run.json``, whole or not at all."""
        settings, result = self._row()
        made = self.made | ({"error": self.error} if self.error else {})
        run = {"schema": SCHEMA, "run_id": self.folder.name, "status": self.status, "config": settings,
               "result": result, "provenance": made}  # fmt: skip
        temporary = self.folder / f".{RUN}.tmp"
        write_file(temporary, dumps(run, indent=1) + "\n")
        os.replace(temporary, self.folder / RUN)

    def _warn_of_waiting(self, connected: int) -> None:
        """Say so before Flower waits for nodes without end."""
        wanted = {
            name: int(value)
            for name in ("min_available_nodes", "min_train_nodes", "min_evaluate_nodes")
            if isinstance(value := getattr(self.strategy, name, None), int) and value > connected
        }
        if wanted:
            name, most = max(wanted.items(), key=lambda pair: pair[1])
            words = (
                f"Flower waits without end until {most} nodes are there ({name}={most}); {connected} "
                f"{'is' if connected == 1 else 'are'} connected now: start more, or lower {name}"
            )
            logger.warning("scalefed: %s", words)
            warnings.warn(words, RunLogWarning, stacklevel=2)


# ---------------------------------------------------------------------- helpers
def _live(path: Path, stop: threading.Event) -> None:
    """Touch a file every few seconds until told to stop, or until its folder is gone."""
    while not stop.is_set():
        try:
            path.touch()
        except OSError:
            return
        stop.wait(_TOUCH_S)
    with contextlib.suppress(OSError):
        path.unlink()


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"a run_id may hold letters, digits, '.', '_' and '-', got {name!r}")


def _refuse_old(folder: Path) -> None:
    if folder.exists():
        raise ConfigError(f"the run {folder} is there already, and runs never merge; give another run_id, or none")


def _is_setting(name: str) -> bool:
    return name in COLUMNS and COLUMNS[name].kind == "setting"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, numbers.Real) and math.isfinite(value) else 0.0


def _possible(record: Mapping[str, Any], columns: Mapping[str, Column], *, infinite: bool) -> dict[str, Any]:
    """What the log can hold: no accuracy of 54.8 under the name of a share, and what is finite of a good run."""

    def fits(name: str, value: Any) -> bool:
        if isinstance(value, float) and not math.isfinite(value):
            return infinite
        return name not in columns or columns[name].fault(value) is None

    return {name: value for name, value in record.items() if fits(name, value)}
