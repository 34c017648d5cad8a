"""How does text reach a client's optimizer? Documents become per-client streams of token blocks.

A client's documents are shuffled anew in every epoch, put end to end, and cut into blocks. Which blocks a visit sees is
a pure function of (seed, client, visit), so clients keep no state between rounds.

A block may begin inside a document, whose docstring the model then never sees. So a loss over blocks stays above the
exact entropy of the text; :func:`whole_rows` is what held-out loss is measured on where that entropy is known, and
:func:`cut_rows` where it is not.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scalefed.errors import DataError
from scalefed.seeds import rng


def blocks(tokens: NDArray[np.uint16], length: int) -> NDArray[np.uint16]:
    """Cut a row of tokens into blocks of ``length + 1`` that overlap by one: ``(n, length + 1)``, a view.

    >>> blocks(np.arange(8, dtype=np.uint16), 3).tolist()
    [[0, 1, 2, 3], [3, 4, 5, 6]]
    """
    if len(tokens) <= length:
        return np.empty((0, length + 1), dtype=tokens.dtype)
    return np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length]


def whole_rows(
    tokens: NDArray[np.uint16], offsets: NDArray[np.int64], *, length: int, start: int
) -> list[NDArray[np.uint16]]:
    """Rows of whole documents for scoring: each begins with ``start`` and holds as many documents as fit.

    A block cut anywhere would ask for the rest of a document whose beginning it does not show, and no model could then
    reach the entropy of the text. A document longer than ``length`` gets a row of its own.

    Args:
        tokens: (t,) ids of all documents, each with its end.
        offsets: (n + 1,) where documents begin.
        length: tokens predicted in a row, unless one document has more.
        start: the id before the first document of a row, the end of a document.

    >>> rows = whole_rows(np.arange(1, 8, dtype=np.uint16), np.array([0, 2, 4, 7]), length=4, start=0)
    >>> [row.tolist() for row in rows]
    [[0, 1, 2, 3, 4], [0, 5, 6, 7]]
    """
    rows, first = [], 0
    for document in range(1, len(offsets)):
        if offsets[document] - offsets[first] > length and document - 1 > first:
            rows.append((first, document - 1))
            first = document - 1
    rows.append((first, len(offsets) - 1))
    head = np.array([start], dtype=tokens.dtype)
    return [np.concatenate([head, tokens[offsets[a] : offsets[b]]]) for a, b in rows if b > a]


def cut_rows(tokens: NDArray[np.uint16], *, length: int, start: int) -> list[NDArray[np.uint16]]:
    """Rows of at most ``length`` predicted tokens for scoring text of any length; every token is predicted once.

    For text whose entropy nobody knows, such as real files, of which one may be longer than memory allows a row to be.

    Args:
        tokens: (t,) ids of all documents end to end.
        length: tokens predicted in a row; the last may have fewer.
        start: the id before the first token, the end of a document.

    >>> [row.tolist() for row in cut_rows(np.arange(1, 6, dtype=np.uint16), length=3, start=0)]
    [[0, 1, 2, 3], [3, 4, 5]]
    """
    whole = np.concatenate([np.array([start], dtype=tokens.dtype), tokens])
    return [whole[first : first + length + 1] for first in range(0, len(tokens), length)]


KEPT_VISITS = 4  # of an epoch; of a shorter one most visits begin the next, and thousands of clients hold short ones


class ClientStreams:
    """The token streams of all clients."""

    def __init__(
        self,
        tokens: NDArray[np.uint16],
        offsets: NDArray[np.int64],
        indices: Sequence[NDArray[np.int64]],
        *,
        length: int,
        batch_size: int,
        visit_steps: int,
        seed: int,
    ) -> None:
        """Streams over documents ``tokens[offsets[i]:offsets[i + 1]]``, dealt to clients by ``indices``.

        Args:
            tokens: (t,) ids of all documents, each with its end.
            offsets: (n + 1,) where documents begin.
            indices: for each client, its documents.
            length: tokens predicted in a block.
            batch_size: blocks in a step.
            visit_steps: steps a full visit takes; a straggler's visit skips what it does not reach.
            seed: of the shuffles.

        Raises:
            DataError: a client holds less than one block.
        """
        self._tokens, self._offsets, self._indices = tokens, offsets, tuple(indices)
        self._length, self._batch, self._visit_steps, self._seed = length, batch_size, visit_steps, seed
        sizes = np.diff(offsets)
        self._counts = [(int(sizes[mine].sum()) - 1) // length for mine in self._indices]
        for client, count in enumerate(self._counts):
            if count < 1:
                raise DataError(
                    f"client {client} holds {len(self._indices[client])} documents, less than one block of {length} "
                    "tokens; use fewer clients or more unique_tokens"
                )
        self._arranged: dict[int, tuple[int, NDArray[np.uint16]]] = {}

    def batches(self, client: int, *, visit: int, steps: int) -> NDArray[np.uint16]:
        """Token ids ``(steps, batch, length + 1)`` for a client that has trained ``visit`` times before."""
        first = visit * self._visit_steps * self._batch
        wanted = np.arange(first, first + steps * self._batch)
        epochs, places = np.divmod(wanted, self._counts[client])
        rows = np.empty((len(wanted), self._length + 1), dtype=self._tokens.dtype)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._epoch(client, int(epoch))[places[epochs == epoch]]
        return rows.reshape(steps, self._batch, self._length + 1)

    def _epoch(self, client: int, epoch: int) -> NDArray[np.uint16]:
        """All blocks of one epoch; the last one arranged is kept for each client that comes back to it often."""
        if client in self._arranged and self._arranged[client][0] == epoch:
            return self._arranged[client][1]
        order = rng(self._seed, "batches", client, epoch).permutation(self._indices[client])
        arranged = blocks(gather(self._tokens, self._offsets, order), self._length)
        if len(arranged) >= KEPT_VISITS * self._visit_steps * self._batch:
            self._arranged[client] = (epoch, arranged)
        return arranged


def gather(tokens: NDArray[np.uint16], offsets: NDArray[np.int64], documents: NDArray[np.int64]) -> NDArray[np.uint16]:
    """The chosen documents end to end.

    >>> gather(np.array([5, 6, 7], dtype=np.uint16), np.array([0, 1, 3]), np.array([1, 0])).tolist()
    [6, 7, 5]
    """
    sizes = offsets[documents + 1] - offsets[documents]
    ends = np.cumsum(sizes)
    index = np.arange(ends[-1] if len(ends) else 0) + np.repeat(offsets[documents] - (ends - sizes), sizes)
    return np.asarray(tokens[index])
