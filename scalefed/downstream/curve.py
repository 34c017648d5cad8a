"""How do the mean and spread of success rates depend on a covariate? The curves that a link is made of.

Internal parameters are those of :mod:`scalefed.downstream.betabinomial`, whose docstring has the formulas.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, gammaln, logit

from scalefed.errors import DataError

Array = NDArray[np.float64]

PLAIN = 5  # parameters of the plain curve
LOG_SPREAD_LIMIT = 20.0  # natural log: beyond it a beta distribution is one point or two, to rounding
SMALLEST_SHAPE = 1e-30  # of a beta distribution: keeps log gamma finite
_LEAST_EXCESS = 1e-30  # nats; a loss at the floor has no logarithm


@dataclass(frozen=True, slots=True)
class Covariates:
    """Columns of a run that count beside its covariate: their logs, or ``skew`` as it is, less a centre each."""

    names: tuple[str, ...]
    centers: tuple[float, ...]

    @classmethod
    def of(cls, table: pd.DataFrame) -> "Covariates":
        """All columns of a table, centred at its means.

        Raises:
            DataError: a column is not positive, or the same in every row.
        """
        plain = cls(tuple(map(str, table.columns)), (0.0,) * table.shape[1])
        values = plain.features(table)
        for name, column in zip(plain.names, values.T, strict=True):
            if not np.ptp(column) > 0:
                raise DataError(f"{name} is the same in every run, so it tells nothing; leave it out of the covariates")
        return replace(plain, centers=tuple(map(float, values.mean(axis=0))))

    def features(self, columns: Mapping[str, ArrayLike] | pd.DataFrame) -> Array:
        """(..., q): the columns, broadcast by numpy's rules.

        Raises:
            DataError: a column is missing or not positive.
        """
        missing = [name for name in self.names if name not in columns]
        if missing:
            raise DataError(
                f"this link looks at {', '.join(self.names)} beside the loss; give {', '.join(missing)} too, for "
                f"example covariates={{'{missing[0]}': ...}}"
            )
        found = []
        for name, center in zip(self.names, self.centers, strict=True):
            values = np.asarray(columns[name], dtype=float)
            if not (np.isfinite(values) & ((values > 0) | ((name == "skew") & (values == 0)))).all():
                raise DataError(f"{name} must be positive and finite, got {np.ravel(values)[:3]}")
            found.append((values if name == "skew" else np.log(values)) - center)
        return np.stack(np.broadcast_arrays(*found), axis=-1)


@dataclass(frozen=True, slots=True)
class Curve:
    """A batch of mean and spread curves in one covariate.

    Attributes:
        center, scale: the covariate's position is standardised as z = (position - center) / scale.
        theta: (b, 5 + q) internal parameters, see the module's docstring.
        mean: "logistic" or "power".
        floor: the position is the covariate itself if None, else the log of its excess over this.
        covariates: the q columns that count beside the covariate, or None.
    """

    center: float
    scale: float
    theta: Array
    mean: str = "logistic"
    floor: float | None = None
    covariates: Covariates | None = None

    def __len__(self) -> int:
        return len(self.theta)

    def position(self, x: Array) -> Array:
        """Where the covariate lies on the curve's own axis; at or below the floor, far out at its end."""
        return position(x, self.floor)

    def offset(self, columns: Mapping[str, ArrayLike] | pd.DataFrame | None) -> Array:
        """What the columns add inside the mean's shape, one a curve and run: (b, n); zeros for a plain curve.

        Args:
            columns: (n,) each, or (b, n) where every curve has runs of its own.

        Raises:
            DataError: a column is missing or not positive.
        """
        if self.covariates is None:
            return np.zeros((len(self), 1))
        features = np.atleast_2d(self.covariates.features(columns if columns is not None else {}))
        return np.asarray((self.theta[:, None, PLAIN:] * features).sum(-1))

    def at(self, columns: Mapping[str, ArrayLike] | None) -> "Curve":
        """The plain curves of runs with these columns, one number each."""
        theta = self.theta[:, :PLAIN].copy()
        theta[:, 0] += self.offset(columns)[:, 0]
        return replace(self, theta=theta, covariates=None)

    def parameters(self) -> Array:
        """(b, 5 + q): middle, slope, ceiling, spread, spread_slope, as the link's formula has them, and d."""
        b0, b1, t, g0, g1 = self.theta[:, :PLAIN].T
        flat = np.where(b1 == 0, np.finfo(float).tiny, b1)
        middle = self.center - b0 * self.scale / flat
        columns = [middle, -b1 / self.scale, expit(t), g0 - g1 * self.center / self.scale, g1 / self.scale]
        return np.concatenate([np.stack(columns, axis=1), self.theta[:, PLAIN:]], axis=1)

    def shapes(self, x: Array, shift: Array | None = None, offset: Array | float = 0.0) -> tuple[Array, Array]:
        """The beta distribution's two parameters at x.

        Args:
            x: (..., n); broadcast against the batch, which is the first axis when there is more than one curve.
            shift: (b, 2, ...) added to the logit mean and the log spread, or None.
            offset: from :meth:`offset`, with as many axes as x.
        """
        z = (self.position(x) - self.center) / self.scale
        b0, b1, t, g0, g1 = (column.reshape((-1,) + (1,) * (z.ndim - 1)) for column in self.theta[:, :PLAIN].T)
        if len(self.theta) == 1:
            b0, b1, t, g0, g1 = (float(column.item()) for column in (b0, b1, t, g0, g1))
        mean, log_spread = expit(t) * mean_shape(self.mean, b0 + b1 * z + offset)[0], g0 + g1 * z
        if shift is not None:
            mean, log_spread = expit(logit(mean) + shift[:, 0]), log_spread + shift[:, 1]
        spread = np.exp(np.clip(log_spread, -LOG_SPREAD_LIMIT, LOG_SPREAD_LIMIT))
        tiny = SMALLEST_SHAPE
        return np.maximum(mean * spread, tiny), np.maximum((1 - mean) * spread, tiny)


def position(x: Array, floor: float | None) -> Array:
    """The covariate, or the log of its excess over a floor.

    >>> position(np.array([0.5, 0.1]), 0.25).round(2).tolist()
    [-1.39, -69.08]
    """
    x = np.asarray(x, float)
    return x if floor is None else np.log(np.maximum(x - floor, _LEAST_EXCESS))


def mean_shape(mean: str, s: Array) -> tuple[Array, Array, Array]:
    """The shape of the mean curve at s, with the first and second derivative of its logarithm, second as f''/f."""
    if mean == "logistic":
        sigma = expit(s)
        return sigma, 1 - sigma, (1 - sigma) * (1 - 2 * sigma)
    rate = np.exp(np.clip(-s, -300.0, 6.0))
    return np.exp(-rate), rate, rate * (rate - 1)


def failure(a: Array, b: Array, k: Array) -> Array:
    """E[(1 - rate)^k] for rate ~ Beta(a, b): the share of problems that k samples leave unsolved."""
    log_share: Array = _log_rise(b, k) - _log_rise(a + b, k)
    return np.exp(log_share)


def _log_rise(x: Array, k: Array) -> Array:
    """Log gamma(x + k) - log gamma(x); by Stirling's series where x is so large that the difference would cancel."""
    large = x > 1e4
    big = np.where(large, x, 1e4)
    series = (big - 0.5) * np.log1p(k / big) + k * np.log(big + k) - k + (1 / (big + k) - 1 / big) / 12
    small = np.where(large, 1.0, x)
    found: Array = np.where(large, series, gammaln(small + k) - gammaln(small))
    return found
