"""How often will a model solve these problems, given its loss?

The success rate of problem i under run r is a draw from a beta distribution whose mean and spread depend on one
covariate x of the run, its loss (fitted or measured) or any other number such as log params::

    mu(x) = ceiling / (1 + exp(slope (x - middle)))        mean="logistic", or
    mu(x) = ceiling exp(-exp(slope (x - middle)))          mean="power"
    nu(x) = exp(spread + spread_slope x)
    rate ~ Beta(mu nu, (1 - mu) nu)          correct ~ Binomial(samples, rate)
    pass@k(x) = 1 - B(mu nu, (1 - mu) nu + k) / B(mu nu, (1 - mu) nu)

What else of a run counts at equal loss are covariates: ``covariates=["tokens", "params", "skew"]`` adds a multiple of
the log of each (of skew as it is) to ``-slope (x - middle)``.

So pass@1, pass@10 and pass@100 come from one fit, by maximum likelihood on the counts themselves. For a loss, x is the
log of its excess over a floor where that is likelier: near the entropy of the text success rises much faster than along
the loss itself. Replacing the spread by a single rate, ``1 - (1 - mu)^k``, over-states pass@k (Jensen). Beyond the runs
the intervals also hold the curve's own error, as large as holding out the outermost runs at that end finds it.

Source: T2 scaling (arXiv 2604.01411, approach 2) for the logistic mean and the spread; PassUntil (arXiv 2310.03262)
for the power form; the likelihood instead of least squares on pass@k, and the intervals, are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from scalefed.downstream.curve import Covariates, Curve, failure
from scalefed.errors import DataError, FitError
from scalefed.seeds import quasi_random, rng

Array = NDArray[np.float64]

NAMES = ("middle", "slope", "ceiling", "spread", "spread_slope")


@dataclass(frozen=True, slots=True, repr=False)
class Link:
    """Mean and spread of per-problem success rates as functions of one covariate, with bootstrap replicates.

    Attributes:
        covariate: what x is, for printing ("loss" or, for instance, "log params").
        curve: the estimate.
        replicates: (b,) curves refitted on clustered reweightings of problems and runs.
        scatter: (runs, 2) how far single runs lie from the curve, in logit mean and log spread.
        discrepancy: (2, 2) below and above the runs' covariates, in logit mean and log spread: standard deviation of
            the curve's own error one span of the runs beyond them, from holding out the outermost runs at that end; 1
            where they are too few to hold any out.
        held_out: how many runs that is taken from: degrees of freedom (at least 2) of the Student's t it is drawn from.
        observed: lowest and highest covariate among the runs.
        runs, problems: how many went in.
        unconverged: replicates whose refit did not reach the tolerance (kept, and counted here).
        log_likelihood: at the estimate, without binomial coefficients.
        status: "ok", or what these counts cannot determine.
    """

    covariate: str
    curve: Curve
    replicates: Curve = field(repr=False)
    scatter: Array = field(repr=False)
    discrepancy: Array = field(repr=False)
    held_out: int
    observed: tuple[float, float]
    runs: int
    problems: int
    unconverged: int
    log_likelihood: float
    status: str
    seed: int = 0

    def __repr__(self) -> str:
        shape, floor = f"{self.runs} runs x {self.problems} problems, {self.curve.mean} mean", self.curve.floor
        axis = self.covariate if floor is None else f"log({self.covariate} - {floor:.4g})"
        others = f", {', '.join(self.curve.covariates.names)}" if self.curve.covariates else ""
        return f"<Link from {axis}{others} to pass@k: {shape}, {self.status}>"

    def predict(
        self,
        loss: ArrayLike,
        k: Sequence[int] | int = (1, 10, 100),
        *,
        covariates: Mapping[str, ArrayLike] | pd.DataFrame | None = None,
        level: float = 0.9,
        new_run: bool = True,
    ) -> pd.DataFrame:
        """Pass@k at a loss: columns loss, k, estimate, low, high.

        Args:
            loss: scalar or (n,) values of the covariate.
            k: samples a problem may take.
            covariates: the columns that this link looks at beside the covariate, numbers or (n,) each.
            level: coverage of the interval.
            new_run: True (default) for the interval of one new run measured on problems like these; False for the
                interval of the curve alone.

        >>> Link.from_json(EXAMPLE).predict(1.0, k=1, new_run=False).estimate.round(3).tolist()
        [0.4]
        """
        x, ks = np.atleast_1d(np.asarray(loss, float)), np.atleast_1d(np.asarray(k, float))
        if np.any(ks < 1) or not np.all(np.isfinite(x)):
            raise DataError(f"k must be at least 1 and {self.covariate} finite, got k={ks}, {self.covariate}={x}")
        estimate = pass_at_k(self.curve, x[:, None], ks, offset=self.curve.offset(covariates)[0][:, None])
        draws = self.draw(x, ks, covariates=covariates, new_run=new_run)
        tail = 50 * (1 - level)
        low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
        return pd.DataFrame(
            {
                self.covariate.replace(" ", "_"): np.repeat(x, len(ks)),
                "k": np.tile(ks.astype(int), len(x)),
                "estimate": estimate.ravel(),
                "low": np.minimum(low, estimate).ravel(),
                "high": np.maximum(high, estimate).ravel(),
            }
        )

    def draw(
        self,
        loss: ArrayLike,
        k: ArrayLike,
        *,
        covariates: Mapping[str, ArrayLike] | pd.DataFrame | None = None,
        new_run: bool = True,
    ) -> Array:
        """(b, n, len(k)) plausible values of pass@k, one a replicate; loss and covariates may be (n,) or (b, n)."""
        x = np.asarray(loss, float)
        x = np.broadcast_to(x, (len(self.replicates), x.shape[-1])) if x.ndim == 2 else x[None]
        model, single = self.shifts()
        error = self.discrepancy[(x > self.observed[1]).astype(int)] * self.beyond(x)[..., None]
        shift = model[:, :, None] * np.moveaxis(error, -1, 1)
        if new_run:
            shift = shift + single[:, :, None]
        offset = self.replicates.offset(covariates)[:, :, None]
        return pass_at_k(self.replicates, x[:, :, None], np.atleast_1d(np.asarray(k, float)), shift[..., None], offset)

    def shifts(self) -> tuple[Array, Array]:
        """What moves each replicate, in logit mean and log spread.

        Returns:
            (b, 2) in units of the curve's own error one span beyond the runs, and (b, 2) of one single run.
        """
        model = np.asarray(stdtrit(max(self.held_out, 2), quasi_random(len(self.replicates), 2)))
        stream = rng(self.seed, "link-scatter")
        single = self.scatter[stream.integers(len(self.scatter), size=len(model))]
        return model, np.asarray(single * stream.choice([-1.0, 1.0], size=(len(model), 1)))

    def beyond(self, loss: ArrayLike) -> Array:
        """How far beyond the runs the covariate lies on the curve's axis, in spans of the runs; 0 among them."""
        x, (low, high) = (
            self.curve.position(np.asarray(loss, dtype=float)),
            self.curve.position(np.array(self.observed)),
        )
        return np.asarray(np.maximum(np.maximum(x - high, low - x), 0.0) / max(high - low, 1e-300))

    def inverse(self, target: float, *, k: int = 1, covariates: Mapping[str, float] | None = None) -> float:
        """The covariate at which pass@k reaches ``target``, for a run with these columns beside it.

        Raises:
            FitError: if the curve never reaches it; the message gives the ceiling.
        """
        return float(inverse(self.curve.at(covariates), target, k)[0])

    def summary(self) -> pd.DataFrame:
        """One row a parameter of the formula in the module's docstring: estimate, std_error, low, high (95%)."""
        draws, estimate = self.replicates.parameters(), self.curve.parameters()[0]
        low, high = np.percentile(draws, [2.5, 97.5], axis=0)
        # a scale that ratios of replicates cannot blow up: half the distance between the 16th and 84th percentile
        std = np.subtract(*np.percentile(draws, [84.13, 15.87], axis=0)) / 2
        table = {"estimate": estimate, "std_error": std, "low": low, "high": high}
        names = (*NAMES, *(self.curve.covariates.names if self.curve.covariates else ()))
        return pd.DataFrame(table, index=pd.Index(names, name="parameter"))

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for a file; :meth:`from_json` reads them back."""
        return {
            "covariate": self.covariate,
            "center": self.curve.center,
            "scale": self.curve.scale,
            "mean": self.curve.mean,
            "floor": self.curve.floor,
            "covariates": dict(zip(*asdict(self.curve.covariates).values(), strict=True))
            if self.curve.covariates
            else {},
            "theta": self.curve.theta[0].tolist(),
            "replicates": self.replicates.theta.tolist(),
            "scatter": self.scatter.tolist(),
            "discrepancy": self.discrepancy.tolist(),
            "held_out": self.held_out,
            "observed": list(self.observed),
            "runs": self.runs,
            "problems": self.problems,
            "unconverged": self.unconverged,
            "log_likelihood": self.log_likelihood,
            "status": self.status,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Link":
        """The link that :meth:`to_json` wrote.

        Raises:
            DataError: if entries are missing.
        """
        try:
            center, scale, mean = float(data["center"]), float(data["scale"]), str(data["mean"])
            others: dict[str, float] = data.get("covariates", {})
            covariates = Covariates(tuple(others), tuple(others.values())) if others else None
            curve = Curve(center, scale, np.array([data["theta"]], float), mean, data.get("floor"), covariates)
            return cls(
                covariate=data["covariate"],
                curve=curve,
                replicates=replace(curve, theta=np.array(data["replicates"], float)),
                scatter=np.array(data["scatter"], float),
                discrepancy=np.broadcast_to(np.array(data.get("discrepancy", 0.0), float), (2, 2)),
                held_out=int(data.get("held_out", 0)),
                observed=_pair(data["observed"]),
                runs=int(data["runs"]),
                problems=int(data["problems"]),
                unconverged=int(data["unconverged"]),
                log_likelihood=float(data["log_likelihood"]),
                status=data["status"],
                seed=int(data["seed"]),
            )
        except KeyError as error:
            raise DataError(f"not a stored link: the entry {error} is missing; store one with Link.to_json") from error


def pass_at_k(curve: Curve, x: Array, k: Array, shift: Array | None = None, offset: Array | float = 0.0) -> Array:
    """Pass@k of a batch of curves at x, both broadcast; the formula of the module's docstring."""
    a, b = curve.shapes(x, shift, offset)
    return 1.0 - failure(a, b, k)


def inverse(curve: Curve, target: float, k: int = 1) -> Array:
    """(b,) the covariate at which each curve's pass@k reaches the target, by bisection; nan where it never does.

    Raises:
        FitError: if the first curve does not cross the target.
    """
    axis, span = replace(curve, floor=None), 60.0 * curve.scale
    ends = np.array([curve.center - span, curve.center + span])
    values = pass_at_k(axis, np.broadcast_to(ends, (len(curve), 2)), np.array(float(k)))
    crosses = (values.max(1) > target) & (values.min(1) < target)
    if not 0 < target < 1 or not crosses[0]:
        raise FitError(
            f"pass@{k} = {target} is out of reach of this link: its ceiling is {values[0].max():.3g}; ask for less"
        )
    rising = values[:, 1] > values[:, 0]
    low, high = np.full(len(curve), ends[0]), np.full(len(curve), ends[1])
    for _ in range(70):
        middle = (low + high) / 2
        above = pass_at_k(axis, middle[:, None], np.array(float(k)))[:, 0] > target
        go_down = above == rising
        low, high = np.where(go_down, low, middle), np.where(go_down, middle, high)
    found = (low + high) / 2 if curve.floor is None else curve.floor + np.exp((low + high) / 2)
    return np.asarray(np.where(crosses, found, np.nan))


def _pair(values: Sequence[float]) -> tuple[float, float]:
    return float(values[0]), float(values[1])


EXAMPLE: dict[str, Any] = {
    "covariate": "loss",
    "center": 1.0,
    "scale": 0.5,
    "mean": "logistic",
    "theta": [0.0, -2.0, 1.3862943611198906, 1.0, 0.0],
    "replicates": [[0.0, -2.0, 1.3862943611198906, 1.0, 0.0]],
    "scatter": [[0.0, 0.0]],
    "discrepancy": [[0.0, 0.0], [0.0, 0.0]],
    "held_out": 0,
    "observed": [0.5, 2.0],
    "runs": 3,
    "problems": 164,
    "unconverged": 0,
    "log_likelihood": 0.0,
    "status": "ok",
    "seed": 0,
}
