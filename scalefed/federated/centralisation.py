"""What is gradient centralisation? Of every output's row of a tensor, the mean over the other axes is taken away.

Source: Seo et al. 2025 (GC-Fed, arXiv 2503.13180) and its reference code; Yong et al. 2020 (arXiv 2004.01461) for the
operator.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from scalefed.config import RunConfig
from scalefed.errors import ConfigError
from scalefed.models import Entry, Layout, Tensor


@dataclass(frozen=True)
class Centring:
    """Which pieces of a flat vector are centred.

    Attributes:
        pieces: of each centred tensor, its start, its stop and its number of rows (one for a vector).
    """

    pieces: tuple[tuple[int, int, int], ...]

    def __call__(self, flat: Tensor) -> Tensor:
        """A copy of ``(..., P)`` with every piece's rows centred: ``P(g) = g - mean(g, all axes but the first)``.

        Linear and idempotent; it works on gradients, updates and means alike.
        """
        centred = flat.clone()
        for start, stop, rows in self.pieces:
            piece = centred[..., start:stop].view(*flat.shape[:-1], rows, -1)
            piece -= piece.mean(-1, keepdim=True)
        return centred


def centring(entries: Iterable[Entry], *, vectors: str = "mean") -> Centring:
    """A centring of the given tensors.

    A matrix ``(out, in)`` loses the mean of each output's row; tensors with more axes likewise. For vectors (norm
    scales, biases) the published code takes the mean of the whole vector away, because PyTorch reduces over all axes
    when it is given none; Yong et al. leave them alone.

    Args:
        entries: the tensors to centre.
        vectors: ``mean``, as the published code does, or ``keep``.

    >>> from scalefed.models import Layout
    >>> import torch
    >>> layout = Layout({"matrix": (2, 2), "scale": (2,)})
    >>> centring(layout)(torch.tensor([1.0, 3.0, 0.0, 4.0, 1.0, 2.0])).tolist()
    [-1.0, 1.0, -2.0, 2.0, -0.5, 0.5]
    """
    pieces = []
    for entry in entries:
        if len(entry.shape) > 1:
            pieces.append((entry.start, entry.stop, entry.shape[0]))
        elif vectors == "mean":
            pieces.append((entry.start, entry.stop, 1))
    return Centring(tuple(pieces))


def everywhere(config: RunConfig, layout: Layout) -> Centring:
    """Centring of all tensors: at the clients of ``gc-local``, at the server of ``gc-global`` and ``gc-fed``."""
    return centring(layout, vectors=config.centralised_vectors)


def at_clients(config: RunConfig, layout: Layout) -> Centring:
    """Centring at the clients of ``gc-fed``.

    With a ``centralised_target``, all tensors but those whose name holds it: the classifier, which here is the tied
    ``embedding``. (The published code also leaves out the last tensor of its list; there that is the classifier's bias,
    which the target names anyway, and these models have none.) With an empty target, the first ``centralised_share`` of
    the tensors, rounded down, in the order of the forward pass; a tied embedding counts as the output layer, so last.

    Raises:
        ConfigError: no tensor has the target in its name.
    """
    entries = list(layout)
    target = config.centralised_target
    if target:
        chosen = [entry for entry in entries if target not in entry.name]
        if len(chosen) == len(entries):
            raise ConfigError(
                f"centralised_target={target!r} names no tensor; the tensors are {', '.join(e.name for e in entries)}; "
                "set centralised_target='' to leave out the last tensors instead"
            )
        return centring(chosen, vectors=config.centralised_vectors)
    ordered = sorted(entries, key=lambda entry: entry.name == "embedding")
    count = int(config.centralised_share * len(ordered))
    return centring(ordered[:count], vectors=config.centralised_vectors)
