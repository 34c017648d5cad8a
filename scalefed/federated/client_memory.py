"""Where do the vectors of clients that do not train lie? In a file where they are many, so that memory serves a cohort.

Adam's moments take 8 bytes a weight and client: 2 GB for 10,000 clients of 14,000 parameters. Beyond ``IN_MEMORY`` they
are tensors like any other whose bytes are pages of an unlinked temporary file in the cache directory; they come to
memory when they are read. A vector's place is taken again once nobody holds it, and the file goes with its last one.
"""

import logging
import mmap
import os
import tempfile
import weakref
from functools import cache

import numpy as np
import torch

from scalefed.config import cache_directory
from scalefed.models import Tensor

logger = logging.getLogger(__name__)

IN_MEMORY = 64 * 2**20  # bytes of all clients' vectors together that a run keeps in memory
CHUNK = 64 * 2**20  # bytes by which the file grows, at least one vector


class _Chunk:
    """A piece of file with room for vectors of one size, mapped into memory."""

    def __init__(self, size: int) -> None:
        self.size, count = size, max(1, CHUNK // size)
        folder = cache_directory() / "moments"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a signal when a page is written
                os.posix_fallocate(file.fileno(), 0, count * size)
            else:
                os.ftruncate(file.fileno(), count * size)
            self.map = mmap.mmap(file.fileno(), count * size)
        self.count, self.free = count, list(range(count))

    def put(self, vector: Tensor) -> Tensor:
        """The vector in a free place; the place is free again when nothing refers to the tensor's bytes."""
        place = self.free.pop()
        held = np.frombuffer(self.map, dtype=np.uint8, count=self.size, offset=place * self.size)
        weakref.finalize(held, self.free.append, place).atexit = False
        tensor = torch.from_numpy(held).view(vector.dtype)
        return tensor.copy_(vector)


class _Store:
    """The chunks of one process; those without vectors are dropped."""

    def __init__(self) -> None:
        self.chunks: list[_Chunk] = []

    def put(self, vector: Tensor) -> Tensor:
        size = vector.numel() * vector.element_size()
        self.chunks = [chunk for chunk in self.chunks if len(chunk.free) < chunk.count]
        chunk = next((chunk for chunk in self.chunks if chunk.size == size and chunk.free), None)
        if chunk is None:
            chunk = _Chunk(size)
            self.chunks.append(chunk)
        return chunk.put(vector)


@cache
def store_of(process: int) -> _Store:
    """A process that was forked must not write into its parent's file."""
    return _Store()


def at_rest(memories: dict[int, dict[str, Tensor]], clients: int) -> dict[int, dict[str, Tensor]]:
    """The memories of clients that have trained, to keep until they train again.

    Args:
        memories: of some clients, by name.
        clients: how many there are in all, and so how much memory theirs may come to take.
    """
    bytes_each = max((sum(map(_bytes, memory.values())) for memory in memories.values()), default=0)
    if bytes_each * clients <= IN_MEMORY:
        return memories
    store = store_of(os.getpid())
    try:
        return {
            client: {name: store.put(vector) if vector.dim() else vector for name, vector in memory.items()}
            for client, memory in memories.items()
        }
    except OSError as error:
        say_once(str(error))
        return memories
    finally:
        leave_memory()


def leave_memory() -> None:
    """Vectors at rest that were read or written go from memory; they stay in the file, and in the system's cache."""
    for chunk in store_of(os.getpid()).chunks:
        chunk.map.madvise(mmap.MADV_DONTNEED)


def _bytes(vector: Tensor) -> int:
    return vector.numel() * vector.element_size()


@cache
def say_once(error: str) -> None:
    """Warn once a process that the cache directory takes no more."""
    logger.warning("clients' moments stay in memory: the cache directory takes no more (%s); set SCALEFED_CACHE", error)
