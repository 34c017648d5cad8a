"""Does one setting matter, everything else equal? Runs that differ in nothing else are paired.

No law is assumed: the effect of a setting is the mean difference over pairs, with an interval from a bootstrap over the
pairs. What the pairs do not have in common with the question (other sizes, other budgets) is not extrapolated.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.errors import DataError, nearest
from scalefed.schema import COLUMNS
from scalefed.seeds import rng

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
    relative: bool | None = None,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> "pd.DataFrame":
    """Mean change of a result when one setting goes from its first value to each other one.

    Args:
        runs: one row a run, as :func:`scalefed.runlog.load_runs` gives.
        factor: the setting that differs within a pair, such as ``concentration`` or ``clients_per_round``.
        of: the result that is compared.
        by: another setting; one row for each of its values.
        relative: ratios instead of differences (``estimate`` 0.1 is 10% more); for losses when None.
        level: coverage of the interval.
        resamples: bootstrap draws over pairs.
        seed: of the draws.

    Returns:
        One row a change: ``from``, ``to``, ``by`` if given, ``pairs``, ``estimate``, ``low``, ``high``.

    Raises:
        DataError: a column is missing, or no two runs differ in the factor alone.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile interval).
    """
    for name in (factor, of, *([by] if by else [])):
        if name not in runs.columns:
            raise DataError(f"the runs have no column {name!r}; {nearest(name, runs.columns)}")
    ratio = of == "loss" if relative is None else relative
    table = runs.dropna(subset=[of])
    keys = [name for name in _settings(table, factor) if name != by]
    table = table.assign(**{name: table[name].astype(object).where(table[name].notna(), "rule") for name in keys})
    order = sorted(table[factor].unique(), reverse=factor == "concentration")
    rows = []
    for label, part in table.groupby(by, dropna=False) if by else [(None, table)]:
        wide = part.pivot_table(index=keys, columns=factor, values=of, aggfunc="mean", dropna=True)
        for value in order[1:]:
            if order[0] not in wide or value not in wide or not len(pairs := wide[[order[0], value]].dropna()):
                continue
            a, b = pairs[order[0]].to_numpy(), pairs[value].to_numpy()
            change = np.log(b / a) if ratio else b - a
            rows.append(
                {"from": order[0], "to": value}
                | ({by: label} if by else {})
                | _mean(change, ratio, level, resamples, seed)
            )
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


def _mean(change: Any, ratio: bool, level: float, resamples: int, seed: int) -> dict[str, float]:
    draws = rng(seed, "effects").choice(change, size=(resamples, len(change))).mean(axis=1)
    tail = 50 * (1 - level)
    ends = np.array([change.mean(), *np.percentile(draws, [tail, 100 - tail])])
    estimate, low, high = np.expm1(ends) if ratio else ends
    return {"pairs": len(change), "estimate": float(estimate), "low": float(low), "high": float(high)}
