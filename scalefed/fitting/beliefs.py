"""What is believed of a law before its runs are seen? Weak statements about its optimum, each in one line.

They are stated in the terms of :mod:`scalefed.fitting.optimum_terms`, as normal distributions on a scale on which
several orders of magnitude are open: a fit whose runs say anything is ruled by them, and one whose runs do not is wide.
Exponents are never held: what is borrowed from other families, where that is asked for, is the slope alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scalefed.fitting.optimum_terms import OptimumTerms

BORROWED = "the slope of the best size (0.50 with a standard deviation of 0.07 among nine public families, here 0.11)"

_LOSS_SD = 1.0  # of its logarithm: a factor of seven to both sides
_WEAK: Mapping[str, tuple[float, float]] = {
    "tokens_per_param": (float(np.log(20.0)), 1.5),  # log: 1 to 400 at two standard deviations
    "slope": (0.0, 0.8),  # logit of d log best params / d log compute: 0.17 to 0.83
    "frontier": (float(np.log(0.17)), 0.7),  # log of the exponent by which the excess loss falls with compute
    "coupling": (0.0, 0.7),  # log c: 0.25 to 4
    "floor_share": (0.5, 1.5),  # logit of the floor's share of the loss: 0.08 to 0.97
    "share": (0.0, 1.5),  # logit of a further term's share of its kind
    "ratio": (0.0, 0.5),  # log of its exponent over the first one's
    "side": (-1.0, 1.5),  # log of a term without params and tokens over the others
    "discount": (0.5, 0.5),  # of tokens by clients: 0 pooled, 1 average compute
    "effect": (0.5, 1.5),  # of a column from 0 to 1 on the log of a term in the middle
    "exponent": (0.0, 0.5),  # any other parameter in an exponent
    "noise": (float(np.log(0.005)), 1.0),  # log of the standard deviation of log losses: 0.07% to 4%
}
_BORROWED_SLOPE = (0.0, 1.5 * 0.07 / 0.25)  # logit; five or more families, widened by a half as they need to cover


@dataclass(frozen=True, slots=True)
class Beliefs:
    """Independent normal distributions of a law's optimum terms and, last, of the noise.

    Attributes:
        mean, sd: (k + 1,).
    """

    mean: np.ndarray
    sd: np.ndarray

    def log_density(self, phi: np.ndarray) -> np.ndarray:
        """(v,) up to a constant, for terms (v, k + 1)."""
        return np.asarray(-0.5 * (((phi - self.mean) / self.sd) ** 2).sum(axis=1))

    def draw(self, generator: np.random.Generator, size: int) -> np.ndarray:
        """(size, k + 1) terms as likely as they are believed to be."""
        return np.asarray(self.mean + self.sd * generator.standard_normal((size, len(self.mean))))


def beliefs(terms: OptimumTerms, log_loss: float, *, borrowed: bool = False) -> Beliefs:
    """The weak beliefs of a law.

    Args:
        terms: the law by its optimum.
        log_loss: about where the losses lie, less a floor that is known; a factor of seven to both sides is open.
        borrowed: whether the slope is taken from other families, half as wide again as they differ.
    """
    table = {**_WEAK, "loss": (log_loss, _LOSS_SD)} | ({"slope": _BORROWED_SLOPE} if borrowed else {})
    pairs = [table[role] for role in (*terms.roles, "noise")]
    mean, sd = map(np.array, zip(*pairs, strict=True))
    return Beliefs(mean, sd)
