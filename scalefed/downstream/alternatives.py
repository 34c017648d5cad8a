"""How do other ways of predicting pass@k from a run's covariate compare with the link?

Five forms, each fitted to the same runs and asked for runs held out:

* ``passuntil``: log(-log pass@k) a line in the covariate, one line for each k.
* ``sigmoid``: pass@k a logistic curve in the covariate, one for each k, by least squares on pass@k.
* ``k-power``: -log pass@k a power law in k whose size and exponent are lines in the covariate (all k at once).
* ``gold-power``: -log pass@k an offset plus a power of the covariate, one for each k, by least squares on -log pass@k;
  the covariate, positive, is the loss of the canonical solutions or another.
* ``glm``: binomial regression of the counts (statsmodels), pass@k = 1 - (1 - p)^k, no spread between problems.

Source: PassUntil, Hu et al. 2024 (arXiv 2310.03262); Schaeffer et al. 2025 (arXiv 2502.17578) for the power law in k;
Schaeffer et al. 2026 (arXiv 2509.24012) for the power of the gold solutions' -log probability, there per problem;
McCullagh and Nelder 1989 for the regression.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import expit, logit

from scalefed.downstream.betabinomial import check_counts
from scalefed.downstream.fit import fit_link
from scalefed.downstream.regression import statsmodels
from scalefed.errors import DataError
from scalefed.passk import pass_at_k

Array = NDArray[np.float64]
Form = Callable[[pd.DataFrame, Array, Array, Array, Array], Array]

_POWERS = (0.5, 1.0, 2.0)  # where the exponent of gold-power is begun; the published ones lie between
_CLIP = 1e-9  # a share of 0 or 1 has no finite logit; this is far below one success in any table


def compare_forms(
    counts: pd.DataFrame,
    losses: Mapping[str, float] | pd.Series,
    *,
    holdout: Sequence[str],
    k: Sequence[int] = (1, 10, 100),
    covariate: str = "loss",
    resamples: int = 400,
    seed: int = 0,
) -> pd.DataFrame:
    """Predict pass@k of held-out runs by the link and by every other form, fitted to the remaining runs.

    Args:
        counts: run_id, task_id, samples, correct.
        losses: the covariate by run_id.
        holdout: runs to predict.
        k: attempts; the number of samples of every run must reach the largest.
        covariate: its name, for messages.
        resamples: replicates behind the link's intervals.
        seed: of the link's replicates.

    Returns:
        One row a form, run and k: form, run_id, k, estimate, observed, relative_error, and low and high (nan for
        forms without an interval).

    Raises:
        DataError: impossible counts, or an unknown run in ``holdout``.
    """
    check_counts(counts)
    unknown = sorted(set(holdout) - set(counts["run_id"]))
    if unknown:
        raise DataError(f"holdout names runs without counts: {unknown}; runs: {sorted(counts['run_id'].unique())}")
    x, ks = pd.Series(dict(losses), dtype=float), np.array(k, dtype=float)
    training = counts[~counts["run_id"].isin(holdout)]
    seen, unseen = sorted(training["run_id"].unique()), list(holdout)
    observed = rates(counts, k)
    link = fit_link(training, x, covariate=covariate, resamples=resamples, seed=seed)
    linked = link.predict(x.loc[unseen].to_numpy(float), list(k))
    parts = [_rows("link", unseen, k, linked["estimate"].to_numpy(float), linked)]
    at, new = x.loc[seen].to_numpy(float), x.loc[unseen].to_numpy(float)
    for name, form in FORMS.items():
        estimate = form(training, at, new, observed.loc[seen].to_numpy(float), ks)
        parts.append(_rows(name, unseen, k, estimate.ravel(), None))
    table = pd.concat(parts, ignore_index=True)
    table["observed"] = [float(observed.loc[run, kk]) for run, kk in zip(table["run_id"], table["k"], strict=True)]
    table["relative_error"] = table["estimate"] / table["observed"] - 1
    return table


def rates(counts: pd.DataFrame, k: Sequence[int]) -> pd.DataFrame:
    """Mean unbiased pass@k: one row a run, one column a k.

    >>> table = pd.DataFrame({"run_id": "a", "task_id": [0, 1], "samples": 2, "correct": [1, 0]})
    >>> rates(table, [1, 2]).loc["a"].tolist()
    [0.25, 0.5]
    """
    parts = {
        run: [float(pass_at_k(part["samples"].to_numpy(), part["correct"].to_numpy(), kk).mean()) for kk in k]
        for run, part in counts.groupby("run_id")
    }
    return pd.DataFrame.from_dict(parts, orient="index", columns=list(k))


def _rows(form: str, runs: Sequence[str], k: Sequence[int], estimate: Array, ends: pd.DataFrame | None) -> pd.DataFrame:
    table = pd.DataFrame({"form": form, "run_id": np.repeat(runs, len(k)), "k": np.tile(k, len(runs))})
    table["estimate"] = estimate
    for name in ("low", "high"):
        table[name] = np.nan if ends is None else ends[name].to_numpy(float)
    return table


def _passuntil(counts: pd.DataFrame, x: Array, new: Array, observed: Array, k: Array) -> Array:
    del counts, k
    y = np.log(-np.log(np.clip(observed, _CLIP, 1 - _CLIP)))
    slope, level = np.polyfit(x, y, 1)
    found: Array = np.exp(-np.exp(slope * new[:, None] + level))
    return found


def _sigmoid(counts: pd.DataFrame, x: Array, new: Array, observed: Array, k: Array) -> Array:
    del counts, k
    center, scale = x.mean(), x.std()
    estimates = np.empty((len(new), observed.shape[1]))
    for j, rate in enumerate(observed.T):
        slope, level = np.polyfit((x - center) / scale, logit(np.clip(rate, _CLIP, 1 - _CLIP)), 1)
        size = max(float(rate.max()), _CLIP)

        def residual(t: Array, rate: Array = rate, size: float = size) -> Array:
            return np.asarray((expit(t[0] + t[1] * (x - center) / scale) - rate) / size, dtype=np.float64)

        best = least_squares(residual, [level, slope], xtol=1e-14, ftol=1e-14, gtol=1e-14).x
        estimates[:, j] = expit(best[0] + best[1] * (new - center) / scale)
    return estimates


def _k_power(counts: pd.DataFrame, x: Array, new: Array, observed: Array, k: Array) -> Array:
    del counts
    y = np.log(-np.log(np.clip(observed, _CLIP, 1 - _CLIP)))
    log_k = np.log(k)

    def features(at: Array) -> Array:
        wide, many = np.repeat(at, len(k)), np.tile(log_k, len(at))
        return np.stack([np.ones_like(wide), wide, many, wide * many], axis=1)

    weights = np.linalg.lstsq(features(x), y.ravel(), rcond=None)[0]
    found: Array = np.exp(-np.exp(features(new) @ weights)).reshape(len(new), len(k))
    return found


def _gold_power(counts: pd.DataFrame, x: Array, new: Array, observed: Array, k: Array) -> Array:
    del counts, k
    if (x <= 0).any():
        return np.full((len(new), observed.shape[1]), np.nan)
    center = float(np.exp(np.log(x).mean()))
    columns = []
    for rate in observed.T:
        seen = rate > 0  # -log of nothing is no number
        at, y = x[seen] / center, -np.log(rate[seen])

        def residual(t: Array, at: Array = at, y: Array = y) -> Array:
            return np.asarray(t[0] + t[1] * at ** t[2] - y, dtype=np.float64)

        starts = [[0.0, float(y.mean()), power] for power in _POWERS]
        fits = [least_squares(residual, start, bounds=([0, 0, 0], np.inf)) for start in starts]
        offset, size, power = min(fits, key=lambda one: float(one.cost)).x
        columns.append(np.exp(-(offset + size * (np.maximum(new, 0) / center) ** power)))
    return np.stack(columns, axis=1)


def _glm(counts: pd.DataFrame, x: Array, new: Array, observed: Array, k: Array) -> Array:
    sm = statsmodels()

    del observed
    total = counts.groupby("run_id")[["samples", "correct"]].sum().sort_index()
    solved, tried = total["correct"].to_numpy(float), total["samples"].to_numpy(float)
    center = x.mean()
    design = sm.add_constant(x - center)
    fitted = sm.GLM(np.stack([solved, tried - solved], axis=1), design, family=sm.families.Binomial()).fit()
    rate = np.asarray(fitted.predict(sm.add_constant(new - center, has_constant="add")), dtype=np.float64)
    return np.asarray(-np.expm1(k * np.log1p(-rate[:, None])), dtype=np.float64)


FORMS: Mapping[str, Form] = {"passuntil": _passuntil, "sigmoid": _sigmoid, "k-power": _k_power,
         "gold-power": _gold_power, "glm": _glm}  # fmt: skip
"""The forms that the link is compared with."""
