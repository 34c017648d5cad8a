"""What are a law's terms made of when the solver evaluates them? Channels, sums of them, and nodes, one a term."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True)
class Channel:
    """One scalar a run that is affine in monomials of the parameters: ``offset + features @ monomials``.

    Attributes:
        keys: for every monomial the coordinates multiplied in it.
        features: (n, k), centred where the channel has an amplitude of its own.
        offset: (n,) or None.
        means: (k,) what centring subtracted.
        offset_mean: what centring subtracted from the offset.
        amplitude: coordinate of the channel's own amplitude, or None.
        relative: whether the amplitude is measured relative to the floor.
        turned: whether the amplitude is subtracted, as the c of ``exp(k*x - c)`` and the Q of ``1 + x/Q``.
        lifts: exponent channels of sums that the amplitude's term has as factors, each with the logarithm of the unit
            that the sum is measured in.
        constant: whether the features are the same in every run, as for the power of a sum.
    """

    keys: list[tuple[int, ...]]
    features: np.ndarray
    offset: np.ndarray | None
    means: np.ndarray
    offset_mean: float = 0.0
    amplitude: int | None = None
    relative: bool = False
    turned: bool = False
    lifts: list[tuple[int, float]] = field(default_factory=list)
    constant: bool = False


@dataclass(slots=True)
class Sum:
    """A polynomial: a channel, and towers, each a channel times the value of the product of nodes."""

    channel: int
    towers: list[tuple[int, list["Node"]]] = field(default_factory=list)


@dataclass(slots=True)
class Node:
    """Where a term's channels are (indices into the channel list).

    Attributes:
        log: the polynomial part of its logarithm; its channel is the term's leaf.
        repeats: exponent, decay, tokens and unique tokens of every product of effective tokens.
        groups: exponent and terms of every sum that is raised to a power.
        sign: -1 for a term that is subtracted.
    """

    log: Sum
    repeats: list[tuple[Sum, int, "Node", "Node"]] = field(default_factory=list)
    groups: list[tuple[Sum, list["Node"]]] = field(default_factory=list)
    sign: float = 1.0

    @property
    def leaf(self) -> int:
        """The channel of the term itself."""
        return self.log.channel

    @property
    def is_plain(self) -> bool:
        """Whether the term is one channel and added."""
        return not self.log.towers and not self.repeats and not self.groups and self.sign > 0
