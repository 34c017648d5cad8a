"""Which runs should be made first, when nothing has been measured yet?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalefed.errors import ConfigError
from scalefed.units import train_flops

if TYPE_CHECKING:
    import pandas as pd

SPAN = 4.0  # sizes reach from the middle over this to the middle times this
FEWEST_PARAMS = 100  # of a model that learns anything
FEWEST_OF_SLICES = 6  # runs, three sizes each: below that a cohort's sizes are divided among the two budgets
SKEWED = 0.1  # a Dirichlet concentration as far from iid as federated papers usually go


def first_runs(
    *,
    compute: float,
    count: int = 10,
    clients_per_round: Sequence[int] = (1,),
    tokens_per_param: float = 20.0,
    budget_ratio: float = 16.0,
    concentration: float = SKEWED,
) -> "pd.DataFrame":
    """The design to begin with: what ten or so runs should be, so that they determine the best size.

    Two budgets a factor 16 apart, and at each of them sizes from a quarter to four times the middle. Where one cohort
    has at least six runs, each budget is an isoFLOP slice, whose minimum needs no law; where it has fewer, sizes and
    budgets alternate, and the other way round in the next cohort, so that neither goes with the clients. Where
    several clients train in a round one run is skewed: at the largest cohort, in the middle of the larger budget.

    Args:
        compute: FLOPs of all runs together, 6 x params x tokens.
        count: how many runs; at least three a cohort and one for skew, six for a single cohort.
        clients_per_round: the cohorts, each a whole number from 1.
        tokens_per_param: of the sizes in the middle: about where the best size is thought to be. The design reaches a
            factor 16 to both sides, so a rough guess does.
        budget_ratio: compute of a larger run over that of a smaller one; above 1.
        concentration: Dirichlet concentration of the skewed run.

    Returns:
        One row a run, the cheap ones first: ``params, tokens, clients_per_round, concentration, compute``.

    Raises:
        ConfigError: a number that is not positive, a cohort given twice, or too few runs for the cohorts.

    Source: ten runs of nine public families, two slices against random and spread designs, and of ``runs/grid``, three
    sizes at each cohort against corners; the factors by linearised designs of the laws.

    >>> first_runs(compute=1e18, count=6)[["params", "tokens"]].iloc[0].tolist()
    [3200000, 1020000000]
    """
    cohorts = _cohorts(clients_per_round)
    _check(compute=compute, budget_ratio=budget_ratio, tokens_per_param=tokens_per_param, concentration=concentration)
    if budget_ratio <= 1:
        raise ConfigError(f"budget_ratio must be above 1, got {budget_ratio!r}; 16 is usual")
    skewed = cohorts[-1] > 1
    fewest = FEWEST_OF_SLICES if len(cohorts) == 1 else 3 * len(cohorts)
    if int(count) != count or count < fewest + skewed:
        raise ConfigError(
            f"count must be a whole number from {fewest + skewed} for clients_per_round={cohorts}, got {count}"
        )
    shares = np.diff(np.linspace(0, count - skewed, len(cohorts) + 1).round().astype(int))
    places = [
        (clients, *place)
        for turn, (clients, share) in enumerate(zip(cohorts, shares, strict=True))
        for place in _places(int(share), turn)
    ]
    rows = [(clients, large, where, np.inf) for clients, large, where in places]
    rows += [(cohorts[-1], True, 0.0, concentration)] * skewed
    table = _table(rows, compute, tokens_per_param, budget_ratio)
    if (small := table.loc[table["params"].idxmin()])["params"] < FEWEST_PARAMS:
        raise ConfigError(
            f"{count} runs of {compute:g} FLOPs in all would train models of {small['params']:,.0f} parameters on "
            f"{small['tokens']:,.0f} tokens; raise compute or lower count"
        )
    return table


def _places(runs: int, turn: int) -> list[tuple[bool, float]]:
    """Whether each run of a cohort has the larger budget, and where between -1 and 1 its size is."""
    if runs < FEWEST_OF_SLICES:
        return [((i + turn) % 2 == 1, float(where)) for i, where in enumerate(np.linspace(-1, 1, runs))]
    small = runs // 2
    return [
        (large, float(where))
        for large, sizes in ((False, small), (True, runs - small))
        for where in np.linspace(-1, 1, sizes)
    ]


def _table(
    rows: Sequence[tuple[int, bool, float, float]], compute: float, ratio: float, apart: float
) -> "pd.DataFrame":
    import pandas as pd

    clients, large, where, concentration = map(np.asarray, zip(*rows, strict=True))
    weight = np.where(large, apart, 1.0)
    budget = compute * weight / weight.sum()
    params = _rounded(np.sqrt(budget / (6 * ratio)) * SPAN**where, digits=2)
    tokens = _rounded(budget / (6 * params), digits=3)
    table = pd.DataFrame(
        {
            "params": params,
            "tokens": tokens,
            "clients_per_round": clients,
            "concentration": concentration,
            "compute": train_flops(params, tokens),
        }
    )
    order = np.lexsort((params, concentration < np.inf, clients, large))
    return table.iloc[order].reset_index(drop=True)


def _rounded(values: np.ndarray, *, digits: int) -> np.ndarray:
    return np.array([max(1, round(float(f"{value:.{digits}g}"))) for value in values], dtype=np.int64)


def _cohorts(given: Any) -> list[int]:
    values: list[Any] = [given] if np.isscalar(given) else list(given)
    whole = all(not isinstance(value, (bool, str)) and value >= 1 and int(value) == value for value in values)
    if not values or not whole or len(set(values)) < len(values):
        raise ConfigError(
            f"clients_per_round must be different whole numbers from 1, got {given!r}; such as [1, 4, 16]"
        )
    return sorted(int(value) for value in values)


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if isinstance(value, str | bool) or not (np.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be a positive number, got {value!r}")
