"""What does a fitted law say? A :class:`Fit`: parameters, intervals, predictions, optimal size, saved and shown."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from scalefed.allocation import planning, region, sizes
from scalefed.allocation.column_tests import ColumnTest, loss_error
from scalefed.allocation.extrapolation import Ranges, look_at_table
from scalefed.allocation.mixture import mixed
from scalefed.allocation.repeats import passes_of
from scalefed.errors import ConfigError, FitWarning, check_level, refuses_old_words
from scalefed.fitting import profile
from scalefed.fitting.alternative import EDGE, RIVAL, Alternative, disagreement
from scalefed.fitting.backtest import BackTest, distance, model_error, size_error
from scalefed.fitting.data import read_frame
from scalefed.fitting.inputs import columns_for
from scalefed.fitting.record import write_fit
from scalefed.fitting.run_weights import RUN_WEIGHT
from scalefed.fitting.seed_noise import SeedNoise, seed_noise_of
from scalefed.fitting.status import Certificate, FitStatus, listed
from scalefed.fitting.weights import effective_runs, weights_for
from scalefed.laws import Law
from scalefed.typeset import Sheet, Typeset
from scalefed.units import grouped

if TYPE_CHECKING:
    from scalefed.downstream.link import Link

_CHUNK_DOUBLES = 2**22  # 32 MB of predictions at a time


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Typeset):
    """A law fitted to runs; made by :func:`fit`.

    Attributes:
        law: the law that was fitted (with parameters fixed that the runs could not inform).
        params: every parameter's estimate, fixed ones included.
        covariance: of the free parameters on their natural scale, from the replicates.
        status: the worst thing to say about the fit.
        message: full sentences: what the status means here, and which runs would help.
        certificate: the evidence (objective, Newton decrement, starts agreeing, replicates, bounds hit).
        run_ids: ids of the runs used.
        runs: the runs used.
        replicates: bootstrap replicates of the free parameters, one row each.
        target: the column that is explained.
        huber_delta: width of the Huber loss in log units.
        huber_above: its width for runs above the law, as a share of that.
        scale_weight: exponent of scale in the runs' weights.
        noise: standard deviation of log residuals, corrected for the fitted parameters.
        noise_by_loss: centres (log target) and noise of windows of similar runs.
        degrees: degrees of freedom behind the noise.
        backtest: what the law missed on its own largest runs.
        alternatives: other laws fitted to the same runs, with their weights: their disagreement is in every interval.
        notes: what was left out or fixed.
        runs_hash: hash of the numbers that were fitted.
        source: the path the runs came from, or None.
        cluster: the column whose equal values were resampled together, or None for ``run_id``.
        columns: our name -> the name in the runs as they were given.
        seed: of starts and bootstrap.
        ranges: what the runs had of every column that a question may name.
        column_tests: the law without the farthest runs of each column: beyond the runs its disagreement is in every
            interval.
        link: success counts against loss, for pass@k; see :meth:`with_link`.
    """

    law: Law
    params: dict[str, float]
    covariance: pd.DataFrame
    status: FitStatus
    message: str
    certificate: Certificate
    run_ids: tuple[str, ...]
    runs: pd.DataFrame
    replicates: pd.DataFrame
    target: str
    huber_delta: float
    scale_weight: float
    noise: float
    noise_by_loss: tuple[tuple[float, ...], tuple[float, ...]]
    degrees_of_freedom: int
    backtest: BackTest
    alternatives: tuple[Alternative, ...]
    notes: tuple[str, ...]
    runs_hash: str
    source: str | None
    cluster: str | None
    seed: int
    link: "Link | None" = field(default=None)
    columns: Mapping[str, str] = field(default_factory=dict)
    ranges: Ranges = field(default_factory=Ranges)
    column_tests: tuple[ColumnTest, ...] = ()
    huber_above: float = 1.0

    @property
    def holdout_error(self) -> float:
        """Median relative error on the largest runs when they are held out (0.02 is 2%); NaN if that cannot be done."""
        return self.backtest.error

    @property
    def weight(self) -> float:
        """The law's own share of the replicates behind an interval; what is left is its alternatives'."""
        return 1.0 - sum(one.weight for one in self.alternatives)

    @property
    def given(self) -> str:
        """The laws that intervals are conditional on, in words: its own, and those mixed into predictions and sizes."""
        return listed([self.law.name, *(_known_as(one.law, self.law) for one in self.alternatives if one.weight)])

    # -- what it says ------------------------------------------------------------------------------------------------
    def summary(self, *, level: float = 0.95) -> pd.DataFrame:
        """Every parameter with ``estimate, std_error, low, high``.

        Fixed parameters have no error; without replicates all but the estimates is NaN. The error of a parameter that
        only is positive, such as an amplitude, is that of its logarithm times the estimate (the delta method): a few
        replicates that are larger by powers of ten do not decide it.

        Args:
            level: coverage of the intervals.
        """
        check_level(level)
        rows = {}
        for name, value in self.params.items():
            if name in self.replicates.columns and len(self.replicates) > 1:
                sample = self.replicates[name].to_numpy()
                low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
                error = self._std_error(name, value, sample)
                rows[name] = (value, error, min(low, value), max(high, value))
            elif name in self.law.fixed:
                rows[name] = (value, 0.0, value, value)
            else:
                rows[name] = (value, np.nan, np.nan, np.nan)
        return pd.DataFrame.from_dict(rows, orient="index", columns=["estimate", "std_error", "low", "high"])

    def _std_error(self, name: str, value: float, sample: np.ndarray) -> float:
        if name in self.law.positive and value > 0 and (sample > 0).all():
            return float(value * np.log(sample).std(ddof=1))
        return float(sample.std(ddof=1))

    def predict(
        self, runs: Any = None, *, level: float = 0.9, parts: bool = False, **columns: ArrayLike
    ) -> pd.DataFrame:
        """The predicted target, with a band that a new run falls into with probability ``level``.

        The band holds three parts: parameters (bootstrap), noise of runs of similar loss, and beyond the measured
        params, tokens or scale the law's own error: as large as the back-test found it, and as a richer law disagrees;
        beyond them in another column as the law fitted without the farthest runs of that column disagrees.
        Columns outside the runs, and columns that the law does not have, are told in a :class:`FitWarning`.

        Args:
            runs: a DataFrame or mapping with the law's columns, under our names or those of the fitted runs; or give
                them by keyword.
            level: coverage of the band.
            parts: also return the standard deviations ``parameter``, ``noise`` and ``model`` (log units) and the
                ``distance`` beyond the runs in decades.
            columns: columns by keyword, numbers or arrays: ``fit.predict(params=1e9, tokens=2e10)``.

        Returns:
            ``estimate, low, high`` in the unit of the target, one row a run.

        Raises:
            DataError: a column is missing or not positive.
            FitError: the law needs a column of which the fitted runs had one other value only.
        """
        given = columns if runs is None else read_frame(runs)[0]
        found = self.predicted(runs, level=level, parts=parts, **columns)
        for note in look_at_table(self.law, self.ranges, given, columns, [test.column for test in self.column_tests]):
            warnings.warn(note, FitWarning, stacklevel=2)
        return self._with_repeats(found, runs, columns, given, level)

    def _with_repeats(
        self, found: pd.DataFrame, runs: Any, columns: Mapping[str, Any], given: Mapping[str, Any], level: float
    ) -> pd.DataFrame:
        """Bands that reach to text that teaches nothing when it is read again, for runs that read it more often."""
        often = passes_of(self.law, self.ranges, given)
        if often is None or "tokens" not in self.law.columns:
            return found
        laws = (self.law, *(one.law for one in self.alternatives))
        arrays = {c: x for law in laws for c, x in columns_for(law, runs, columns, self.columns)[0].items()}
        fewer = arrays["tokens"] / (often if np.size(often) == len(found) else np.max(often))
        once = self.predicted({**arrays, "tokens": fewer}, level=level)
        return found.assign(high=np.maximum(found["high"], once["high"].to_numpy()))

    def predicted(
        self, runs: Any = None, *, level: float = 0.9, parts: bool = False, **columns: ArrayLike
    ) -> pd.DataFrame:
        """What :meth:`predict` answers, without a word on what lies outside the runs: for those who tell it themselves.

        Args:
            runs: as :meth:`predict`.
            level: as :meth:`predict`.
            parts: as :meth:`predict`.
            columns: as :meth:`predict`.
        """
        check_level(level)
        laws = (self.law, *(one.law for one in self.alternatives))
        asked = [columns_for(law, runs, columns, self.columns) for law in laws]
        arrays, index = {c: x for one, _ in asked for c, x in one.items()}, asked[0][1]
        count = max((len(x) for x in arrays.values()), default=1)
        size = max(1, _CHUNK_DOUBLES // max(len(self.replicates), 1))
        pieces = [
            self._band({c: x[i : i + size] for c, x in arrays.items()}, min(size, count - i), level)
            for i in range(0, max(count, 1), size)
        ]
        kept = pieces[0] if parts else ("estimate", "low", "high")
        return pd.DataFrame({name: np.concatenate([piece[name] for piece in pieces]) for name in kept}, index=index)

    def _band(self, arrays: Mapping[str, np.ndarray], count: int, level: float) -> dict[str, np.ndarray]:
        from scipy.special import ndtri, stdtrit

        def rows(law: Law, values: Mapping[str, np.ndarray]) -> np.ndarray:
            return np.broadcast_to(law.predict(values, arrays), (len(next(iter(values.values()))), count))

        found = mixed(self, rows)
        estimate, sample = found[0], np.log(found[min(1, len(found) - 1) :])
        log = np.log(estimate)
        tail = (1 + level) / 2
        down, up = (np.maximum(np.abs(q - log), 0.0) for q in np.quantile(sample, [1 - tail, tail], axis=0))
        noise = np.interp(log, *self.noise_by_loss)
        beyond = np.broadcast_to(distance(self.backtest, arrays), count)
        apart = disagreement(self.law, self.params, self.alternatives, arrays) * np.minimum(beyond / EDGE, 1.0)
        sideways = loss_error(self.law, self.params, self.ranges, self.column_tests, arrays)
        model = np.hypot(np.hypot(model_error(self.backtest, arrays), apart), sideways)
        rest = (float(stdtrit(self.degrees_of_freedom, tail)) * noise) ** 2 + (float(ndtri(tail)) * model) ** 2
        return {
            "estimate": estimate,
            "low": estimate * np.exp(-np.sqrt(down**2 + rest)),
            "high": estimate * np.exp(np.sqrt(up**2 + rest)),
            "parameter": sample.std(axis=0),
            "noise": noise,
            "model": model,
            "distance": beyond,
        }

    # -- what to train -----------------------------------------------------------------------------------------------
    optimal_size = planning.optimal_size
    plan = planning.plan
    least_compute = planning.least_compute
    optimal_sizes = sizes.optimal_sizes
    region = region.region
    profile = profile.profile

    def size_error(self, params: ArrayLike, tokens: ArrayLike) -> np.ndarray:
        """Standard deviations of the log of best sizes beyond what the replicates show, (2, n): below and above them.

        Args:
            params: (n,) best sizes.
            tokens: (n,) their tokens.
        """
        sizes = {"params": np.atleast_1d(params), "tokens": np.atleast_1d(tokens)}
        if not set(self.backtest.scale) <= set(sizes):
            return np.zeros((2, 1))
        return size_error(self.backtest, sizes)

    @property
    def undetermined(self) -> str:
        """Why these runs cannot determine the law, with the runs that would help; empty where they can."""
        return self.message if self.status in (FitStatus.NOT_IDENTIFIED, FitStatus.NO_SPARE_RUN) else ""

    @property
    def loose(self) -> str:
        """Which parameters the runs leave loose, with the runs that would help; empty where they leave none so."""
        return self.message if self.status is FitStatus.LOOSE else ""

    @refuses_old_words
    def with_link(self, link: "Link | pd.DataFrame", *, covariates: Sequence[str] = ()) -> "Fit":
        """The same fit with a link from loss to pass@k, so that plans and optima tell pass@k too.

        Args:
            link: from :func:`fit_link`, or the success counts of the fitted runs (:func:`load_counts`), to which one is
                fitted.
            covariates: for counts, columns of the law that count beside the loss, such as tokens and skew: whether
                they do, :func:`scalefed.analysis.effects.at_equal_loss` tells.

        Raises:
            DataError: none of the runs has counts.
            ConfigError: a column that the law does not have, or columns with a link that is already made.
        """
        from scalefed.downstream.fit import link_runs

        if isinstance(link, pd.DataFrame):
            link = link_runs(self.law, self.runs, self.target, link, covariates=covariates, seed=self.seed)
        elif covariates:
            raise ConfigError("covariates go with success counts; a Link already has what it looks at")
        return replace(self, link=link)

    # -- kept and shown ----------------------------------------------------------------------------------------------
    def save(self, path: "str | PathLike[str]") -> Path:
        """Write the fit to a JSON file with the ids and a hash of its runs; :func:`load_fit` reads it back."""
        return write_fit(self, path)

    def equation(self) -> str:
        """The law's formula with the estimates put in."""
        import re

        words = {p: f"{v:.4g}" for p, v in self.params.items()}
        words |= {p: words[other] for p, other in self.law.ties.items()}
        return f"{self.target} = " + re.sub(
            r"(\^-)?([A-Za-z_]\w*)", lambda m: _raised(m[1] or "", words.get(m[2], m[2])), self.law.formula
        )

    def __repr__(self) -> str:
        return f"<Fit of {self.law.name!r} to {len(self.run_ids)} runs: {self.status.name.lower()}>"

    def __str__(self) -> str:
        table = self.summary().map(grouped).to_string()
        head = [f"{self.law.name}: {self.target} = {self.law.formula}", self.equation()]
        given = [f"95% intervals given {self.law.name}"] if len(self.replicates) > 1 else []
        lines = [*head, *given, table, *self._footer()]
        return "\n".join(lines)

    def sheet(self) -> Sheet:
        """One row a parameter, and how sure it all is."""
        rows = []
        for name, row in self.summary().iterrows():
            fixed = name in self.law.fixed
            error, low, high = ("", "", "") if fixed else map(_known, (row["std_error"], row["low"], row["high"]))
            rows.append((str(name), grouped(row["estimate"]), error, low, high, self.law.meanings.get(str(name), "")))
        head = ("parameter", "estimate", "std. error", "low", "high", "meaning")
        return Sheet(self.equation(), head, tuple(rows), tuple(self._footer()))

    def _footer(self) -> list[str]:
        test = self.backtest
        held = "the runs are too few or span too little to hold any out"
        if test.folds:
            held = f"held-out error {test.error:.2%} (the {test.held_out} largest runs held out)"
        return [
            f"{len(self.run_ids)} runs, {self._noise()}, {held}",
            f"status: {self.status.name.lower().replace('_', ' ')}. {self.message}",
            *self._laws(),
            *(f"{p} is {other}, by request" for p, other in self.law.ties.items()),
            *(f"note: {note}" for note in self.notes),
        ]

    def _noise(self) -> str:
        """The noise in words: how the runs weigh in it, and how much of it seeds make where they repeat a setting."""
        if np.isnan(self.noise):
            return "noise unknown"
        words = f"noise {self.noise:.2%}"
        by = [f"scale^{self.scale_weight:g}"] if self.scale_weight else []
        by += ["weights of their own"] if RUN_WEIGHT in self.runs else []
        if by:
            alike = effective_runs(self.runs, self.law, self.scale_weight)
            words += f" (runs weigh by {' and '.join(by)}, as good as {alike:.0f} alike)"
        if self.huber_above != 1.0:
            words += f"; runs above the law pull as far as {self.huber_above:g} of those below"
        if (found := self.seed_noise) is not None:
            words += f"; seeds of {found.settings} settings {found.seeds:.2%}, lack of fit {found.lack_of_fit:.2%}"
        return words

    @cached_property
    def seed_noise(self) -> SeedNoise | None:
        """Seed noise and lack of fit told apart, where several runs repeat a setting; else None."""
        weights = weights_for(self.runs, self.law, self.scale_weight)
        return seed_noise_of(self.runs, self.law, self.params, self.target, weights)

    def _laws(self) -> list[str]:
        """The other laws that are mixed into the intervals."""
        others = [
            f"{_known_as(one.law, self.law)} {one.weight:.0%}"
            + ("" if np.isnan(one.holdout_error) else f" (held-out error {one.holdout_error:.2%})")
            for one in self.alternatives
            if one.weight
        ]
        mix = f"intervals of predictions and sizes mix {self.law.name} {self.weight:.0%} with {', '.join(others)}"
        return [mix] if others else []


def _raised(sign: str, word: str) -> str:
    """A number in place of a parameter, after ``^-`` where it is subtracted from nothing: ``^--0.1`` is ``^0.1``."""
    return f"^{word[1:]}" if sign and word.startswith("-") else sign + word


def _known_as(other: Law, law: Law) -> str:
    """The name of a law that is mixed with another."""
    return f"a richer form of {law.name}" if other.name.startswith(RIVAL) else other.name


def _known(value: float) -> str:
    return "" if np.isnan(value) else grouped(value)
