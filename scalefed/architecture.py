"""Which shapes does a model trained from scratch come in? The rungs of a ladder, by one dial, and what counts in each.

Nothing here needs torch: a planner asks for the nearest rung and its true cost without making a model.
"""

import math
from dataclasses import dataclass, replace

from scalefed.errors import ConfigError
from scalefed.units import Architecture, train_flops  # noqa: F401 - the examples use it

HEAD_WIDTH = 24  # small enough for one head at 3,500 params, wide enough for rotary positions; the ladder hangs on it


@dataclass(frozen=True)
class Shape:
    """The architecture of one rung of the ladder."""

    width: int
    layers: int
    heads: int
    hidden: int
    vocab: int

    @classmethod
    def of_width(cls, width: int, vocab: int) -> "Shape":
        """One dial fixes all: depth grows slowly with width, head width stays 24, the gated MLP is 8/3 wide."""
        layers = 1 if width < 24 else 2 + width // 64
        return cls(width, layers, max(1, round(width / HEAD_WIDTH)), 8 * round(width / 3), vocab)

    @property
    def params(self) -> int:
        """Non-embedding parameters."""
        attention = 4 * self.width * self.heads * HEAD_WIDTH
        return self.layers * (attention + 3 * self.width * self.hidden + 2 * self.width) + self.width

    @property
    def params_total(self) -> int:
        """All parameters; input and output embedding are one matrix."""
        return self.params + self.vocab * self.width

    def at(self, context: int) -> Architecture:
        """What the exact count of FLOPs needs, for sequences of ``context`` tokens.

        >>> round(train_flops(3_504, 1, model=shape_for(3_504, 512).at(128)) / train_flops(3_504, 1), 2)
        4.21
        """
        return Architecture(self.width, self.layers, self.heads * HEAD_WIDTH, self.vocab, context)


def ladder(vocab: int, *, between: bool = True) -> list[Shape]:
    """The shapes that sizes are rounded to, smallest first: one a width, and one where two lie furthest apart.

    Depth comes in whole layers, so that widths 16 and 24 have 3,504 and 13,944 parameters. The rung between them, width
    16 with two layers, is half way in logs, and so is its loss above the entropy of the text (0.686, 0.486 and 0.340
    nats a token after 3M tokens; one layer of width 24 has as many parameters, and 0.401: a kink in the ladder).

    Args:
        vocab: number of tokens.
        between: whether that rung is among them.

    >>> [shape.params for shape in ladder(512)][:4]
    [1368, 3504, 6992, 13944]
    """
    rungs = [Shape.of_width(width, vocab) for width in range(8, 601, 8)]
    if between:
        rungs.insert(2, replace(rungs[1], layers=2))
    return rungs


def shape_for(params: int, vocab: int, *, between: bool = True) -> Shape:
    """The rung of the :func:`ladder` whose non-embedding count is nearest to ``params`` (in logs).

    Raises:
        ConfigError: outside 1e3 to 3e7 parameters.

    >>> shape_for(24_000, 512).params
    23200
    """
    if not 1_000 <= params <= 30_000_000:
        raise ConfigError(
            f"params must be between 1,000 and 30,000,000 for the ladder, got {params:,}; give a checkpoint"
        )
    return min(ladder(vocab, between=between), key=lambda shape: abs(math.log(shape.params / params)))
