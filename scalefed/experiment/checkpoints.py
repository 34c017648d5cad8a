"""How does a killed run go on? Its last state lies in the cache directory, written atomically.

A checkpoint is everything the next round starts from (weights, the server's and the clients' vectors, visits) and the
records so far. No generator state is needed: every draw is keyed by seed, purpose, round and client.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scalefed.config import RunConfig, cache_directory
from scalefed.errors import CheckpointError
from scalefed.federated.client_memory import leave_memory
from scalefed.federated.server import ServerState
from scalefed.models import Tensor

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

logger = logging.getLogger(__name__)

LEAVE_AFTER = 2**24  # bytes of a checkpoint that may be in memory beside the run
MAPPED = 2**28  # bytes from which on a checkpoint, mostly of idle clients' moments, is mapped rather than read


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        state: what the next round starts from.
        records: of the rounds so far that are kept, and of the last one.
        participants: clients that answered, summed over all rounds.
        wall_s: seconds that the rounds took. cpu_s: of the processor.
    """

    state: ServerState
    records: tuple[dict[str, Any], ...] = ()
    participants: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0

    def take(self, state: ServerState, record: dict[str, Any], *, keep_last: bool) -> "Progress":
        """The progress after one more round.

        Args:
            state: after the round.
            record: of the round; its tokens and bytes are counted from the start of the run.
            keep_last: whether the record before it stays, or was kept only for being the last.
        """
        return replace(
            self,
            state=state,
            records=(*(self.records if keep_last else self.records[:-1]), record),
            participants=self.participants + record["participants"],
            wall_s=self.wall_s + record["wall_s"],
            cpu_s=self.cpu_s + record["cpu_s"],
        )


def checkpoint_path(config: RunConfig) -> Path:
    """Where the run's checkpoint lies."""
    return cache_directory() / "checkpoints" / f"{config.run_id}.pt"


def weights_path(config: RunConfig) -> Path:
    """Where the run's final weights lie."""
    return cache_directory() / "weights" / f"{config.run_id}.safetensors"


def save_checkpoint(config: RunConfig, progress: Progress) -> bool:
    """Write a checkpoint; False, with the last good one kept, when the disk refuses.

    The file is written beside the old one, flushed to disk, and renamed over it.
    """
    path = checkpoint_path(config)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    state = progress.state
    content = {
        "config": config.changed(),
        "weights": state.weights,
        "round": state.round,
        "slots": state.slots,
        "memory": state.memory,
        "visits": list(state.visits),
        "records": list(progress.records),
        "participants": progress.participants,
        "wall_s": progress.wall_s,
        "cpu_s": progress.cpu_s,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _Out(FileIO(temporary, "wb")) as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        logger.warning("could not write the checkpoint %s (%s); the last good one is kept", path, error)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True


def load_checkpoint(config: RunConfig) -> Progress | None:
    """The run's last checkpoint, or None when there is none.

    Raises:
        CheckpointError: it is damaged, or belongs to another config.
    """
    path = checkpoint_path(config)
    if not path.is_file():
        return None
    try:
        large = path.stat().st_size > MAPPED
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=large)
        theirs = content["config"]
        progress = Progress(
            ServerState(content["weights"], content["round"], content["slots"], content["memory"],
                        tuple(content["visits"])),
            tuple(content["records"]), _participants(content), content["wall_s"], content["cpu_s"],
        )  # fmt: skip
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({error}); delete it to start the run anew") from error
    if theirs != config.changed():
        differing = sorted(name for name in {**theirs, **config.changed()}
                           if theirs.get(name) != config.changed().get(name))  # fmt: skip
        raise CheckpointError(
            f"checkpoint {path} belongs to another config: {', '.join(differing)} differ; "
            "delete it, or train with the config it was made with"
        )
    return progress


def _participants(content: Mapping[str, Any]) -> int:
    """Clients that answered so far; a checkpoint that does not say it holds the records of all rounds."""
    return int(content.get("participants", sum(record["participants"] for record in content["records"])))


def delete_checkpoint(config: RunConfig) -> None:
    """Forget the run's checkpoint; the run is in the log now."""
    checkpoint_path(config).unlink(missing_ok=True)


class _Out(BufferedWriter):
    """A file to write to; what was read to be written leaves memory again, idle clients' moments above all."""

    since = 0

    def write(self, data: "ReadableBuffer") -> int:
        self.since += memoryview(data).nbytes
        if self.since > LEAVE_AFTER:
            leave_memory()
            self.since = 0
        return super().write(data)


@contextlib.contextmanager
def run_lock(config: RunConfig) -> Iterator[None]:
    """Hold the run, so that two processes never train it at once; the second waits, then finds it stored."""
    path = cache_directory() / "locks" / f"{config.run_id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def weights_hash(weights: Tensor) -> str:
    """A hash of the exact bits of a weight vector."""
    data = weights.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=16).hexdigest()
