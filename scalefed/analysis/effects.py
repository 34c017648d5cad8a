"""Does one setting matter, everything else equal? Runs that differ in nothing else are paired.

No law is assumed: the effect of a setting is the mean difference over pairs, with the interval of a paired t test,
which stays honest for the three or five seeds one can afford. What the pairs do not have in common with the question
(other sizes, other budgets) is not extrapolated.

And does a setting matter beside the loss: of runs with equal loss, which solve more problems?
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtr, stdtrit

from scalefed.downstream.regression import statsmodels
from scalefed.errors import DataError
from scalefed.runs.log import require
from scalefed.runs.schema import COLUMNS
from scalefed.units import grouped

if TYPE_CHECKING:
    import pandas as pd

FOLLOWS = {"clients_per_round": ("server_momentum", "learning_rate"), "params": ("learning_rate",)}
"""Settings that a sweep's rule may change together with another one."""


def paired_effects(
    runs: "pd.DataFrame",
    factor: str,
    *,
    of: str = "loss",
    by: str | None = None,
    start: object = None,
    follows: Sequence[str] = (),
    relative: bool | None = None,
    level: float = 0.95,
) -> "pd.DataFrame":
    """Mean change of a result when one setting goes from its starting value to each other one.

    Args:
        runs: one row a run, as :func:`scalefed.runs.log.load_runs` gives.
        factor: the setting that differs within a pair, such as ``concentration`` or ``clients_per_round``.
        of: the result that is compared.
        by: another setting; one row for each of its values.
        start: value of the factor to compare with; the first in order when None (iid for ``concentration``).
        follows: settings that may differ within a pair because they come with the factor.
        relative: ratios instead of differences (``estimate`` 0.1 is 10% more); for losses when None.
        level: coverage of the interval.

    Returns:
        One row a change: ``from``, ``to``, ``by`` if given, ``pairs``, ``estimate``, ``low``, ``high``; the interval of
        a single pair is not known, and NaN.

    Raises:
        DataError: a column is missing, the start is no value of the factor, or no two runs differ in the factor alone.

    Source: Student 1908 (the interval of a mean of paired differences).
    """
    require(runs, [factor, of, *([by] if by else [])], "the runs")
    ratio = of == "loss" if relative is None else relative
    table = runs.dropna(subset=[of])
    keys = [name for name in _settings(table, factor) if name not in (by, *follows)]
    table = table.assign(**{name: table[name].astype(object).where(table[name].notna(), "rule") for name in keys})
    order = sorted(table[factor].unique(), reverse=factor == "concentration")
    if start is not None and start not in order:
        raise DataError(f"no run has {factor} = {start!r}; there are {', '.join(map(str, order))}")
    first = order[0] if start is None else start
    rows = []
    for label, part in table.groupby(by, dropna=False) if by else [(None, table)]:
        wide = part.pivot_table(index=keys, columns=factor, values=of, aggfunc="mean", dropna=True)
        for value in order:
            if value == first or not {first, value} <= set(wide) or not len(pairs := wide[[first, value]].dropna()):
                continue
            a, b = pairs[first].to_numpy(), pairs[value].to_numpy()
            change = np.log(b / a) if ratio else b - a
            rows.append({"from": first, "to": value} | ({by: label} if by else {}) | _mean(change, ratio, level))
    if not rows:
        raise DataError(f"no two runs differ in {factor} alone; make such runs, or compare along another setting")
    import pandas as pd

    return pd.DataFrame(rows)


def _settings(table: "pd.DataFrame", factor: str) -> list[str]:
    """The settings that a pair must share: all that vary in the table, asked-for sizes instead of those trained."""
    results = {"params": "params_asked", "tokens": "tokens_asked"}
    names: list[str] = [results[name] if results.get(name) in table else name for name in ("params", "tokens")]
    names += [name for name, column in COLUMNS.items() if column.kind == "setting" and name in table]
    left_out = {factor, results.get(factor), "unique_tokens", *FOLLOWS.get(factor, ())}
    return [name for name in dict.fromkeys(names) if name not in left_out and table[name].nunique(dropna=False) > 1]


def _mean(change: Any, ratio: bool, level: float) -> dict[str, float]:
    count, mean = len(change), change.mean()
    error = change.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    reach = stdtrit(count - 1, (1 + level) / 2) * error if count > 1 else np.nan
    ends = np.array([mean, mean - reach, mean + reach])
    estimate, low, high = np.expm1(ends) if ratio else ends
    return {"pairs": count, "estimate": float(estimate), "low": float(low), "high": float(high)}


def at_equal_loss(
    runs: "pd.DataFrame",
    counts: "pd.DataFrame",
    *,
    columns: Sequence[str] = ("params", "tokens", "clients_per_round", "skew"),
    target: str = "loss",
    floor: float = 0.0,
    level: float = 0.95,
) -> "pd.DataFrame":
    """Odds of passing among runs of equal loss: by how much do they change with size, tokens, clients or skew?

    A logistic regression of the success counts on a cubic in the log of the loss above its floor, beside which the
    columns enter linearly (as log10; ``skew`` as it is). If the loss told all, every ratio would be 1.

    Args:
        runs: one row a run with ``run_id``, the columns and the target.
        counts: successes, as :func:`scalefed.runs.log.load_counts` gives.
        columns: settings; ``skew`` from 0 to 1, all others positive.
        target: the loss.
        floor: what it cannot go below, in its unit.
        level: coverage of the intervals.

    Returns:
        One row a column: ``odds_ratio`` of ten times as much (of skew 1 against 0), ``low``, ``high``, ``p_value``.
        Errors are those of a jackknife over settings: runs equal in all columns but skew may be correlated.

    Raises:
        DataError: a column is missing, never varies or is not positive, a loss is at or below the floor, no run has
            counts, or there are fewer than three settings for every coefficient.

    Source: McCullagh and Nelder 1989, chapter 4, by statsmodels; Bell and McCaffrey 2002 for the jackknife.
    """
    import pandas as pd

    sm = statsmodels()

    require(runs, ["run_id", target, *columns], "the runs")
    solved = counts.groupby("run_id")[["correct", "samples"]].sum()
    paired = runs[["run_id", target, *columns]].set_index("run_id").join(solved.add_prefix("of_"), how="inner")
    if not len(paired):
        raise DataError("none of the runs has success counts; load_counts reads those of a folder of runs")
    above = paired[target].to_numpy(dtype=float) - floor
    if not (above > 0).all():
        raise DataError(
            f"{(~(above > 0)).sum()} of {len(paired)} runs have no {target} above the floor {grouped(floor, 6)}"
        )
    x = np.log(above) - np.log(above).mean()
    beside = {name: _regressor(name, paired[name].to_numpy(dtype=float)) for name in columns}
    full = pd.DataFrame(beside, index=paired.index).assign(x=x, squared=x**2, cubed=x**3, one=1.0)
    settings = [name for name in columns if name != "skew"] or [target]
    groups = paired.groupby(settings, sort=False).ngroup().to_numpy()
    count, needed = int(groups.max()) + 1, 3 * full.shape[1]
    if count < needed:
        raise DataError(
            f"{count} different settings are too few for {full.shape[1]} coefficients, needed are {needed}; give fewer "
            "columns or more runs"
        )
    passed = np.stack([paired["of_correct"], paired["of_samples"] - paired["of_correct"]], axis=1)
    matrix, family = full.to_numpy(), sm.families.Binomial()
    best = sm.GLM(passed, matrix, family=family).fit().params
    without = [
        sm.GLM(passed[groups != one], matrix[groups != one], family=family).fit(start_params=best).params
        for one in range(count)
    ]
    error = np.sqrt((count - 1) / count * ((np.stack(without) - best) ** 2).sum(0))[: len(columns)]
    own = best[: len(columns)]
    reach = stdtrit(count - 1, (1 + level) / 2) * error
    table = {"odds_ratio": np.exp(own), "low": np.exp(own - reach), "high": np.exp(own + reach)}
    p_value = 2 * stdtr(count - 1, -np.abs(own / error))
    return pd.DataFrame(table | {"p_value": p_value}, index=pd.Index(columns, name="setting"))


def _regressor(name: str, values: "np.ndarray") -> "np.ndarray":
    if name != "skew" and not (values > 0).all():
        raise DataError(f"{name} must be positive in every run, the least is {grouped(values.min(), 6)}")
    if not np.ptp(values) > 0:
        raise DataError(f"{name} is {grouped(values[0], 6)} in every run; leave it out of columns")
    return values if name == "skew" else np.log10(values)
