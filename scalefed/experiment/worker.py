"""The child process of a sweep: bundles of configs come in as JSON lines, events go out as JSON lines."""

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any

from scalefed.config import RunConfig
from scalefed.errors import ScalefedError
from scalefed.experiment.bundles import train_together
from scalefed.experiment.training import train

TELL_SECONDS = 1.0  # between two words on progress: as often as a person looks


def main(runs: str) -> None:
    """Train one bundle after the other until standard input ends."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else may write between the events
    parent = os.getppid()
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    for line in sys.stdin:
        configs = [RunConfig.from_dict(one) for one in json.loads(line)]
        told = time.monotonic()

        def on_round(record: dict[str, Any]) -> None:
            nonlocal told
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                _tell(events, {"event": "round", "rounds": record["round"]})

        if len(configs) > 1:
            with contextlib.suppress(
                ScalefedError, OSError
            ):  # each is then made alone, and the one at fault says so itself
                train_together(configs, runs=runs, on_round=on_round)
        for config in configs:
            try:
                train(config, runs=runs, on_round=on_round)
            except (ScalefedError, OSError) as error:  # a full disk or a folder that may not be written is no crash
                _tell(events, {"event": "failed", "run_id": config.run_id, "message": str(error)})
            else:
                _tell(events, {"event": "stored", "run_id": config.run_id})


def _tell(events: Any, event: dict[str, Any]) -> None:
    try:
        events.write(json.dumps(event) + "\n")
    except BrokenPipeError:  # the sweep was killed: what is stored is stored, and nobody is there to be told
        os._exit(1)


def _end_with_parent(parent: int) -> None:
    """A sweep killed with -9 cannot end its workers, so they watch for it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
