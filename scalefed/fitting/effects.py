"""Does one setting matter, everything else equal? Runs that differ in nothing else are paired.

No law is assumed: the effect of a setting is the mean difference over pairs, with the interval of a paired t test,
which stays honest for the three or five seeds one can afford. What the pairs do not have in common with the question
(other sizes, other budgets) is not extrapolated.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from scalefed.errors import DataError, nearest
from scalefed.schema import COLUMNS

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
        runs: one row a run, as :func:`scalefed.runlog.load_runs` gives.
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
    for name in (factor, of, *([by] if by else [])):
        if name not in runs.columns:
            raise DataError(f"the runs have no column {name!r}; {nearest(name, runs.columns)}")
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
