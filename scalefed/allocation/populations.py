"""How many clients should bring their text, where the planner may choose?

More clients are more different text, and each is drawn more seldom: a law with ``clients`` and ``unique_tokens`` has a
best population in between. It is looked for among the populations that the runs span, at the law's own estimate.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scalefed.allocation import optimum
from scalefed.allocation.defaults import question
from scalefed.errors import ConfigError, FitError
from scalefed.laws import Law
from scalefed.units import grouped

_CANDIDATES = 49  # populations on a logarithmic mesh: a tenth apart over two decades
_AS_GOOD = 1.01  # a loss within 1% of the best is below what two seeds differ by


def best_population(
    law: Law, params: Mapping[str, float], runs: pd.DataFrame, words: Mapping[str, Any]
) -> tuple[float, str]:
    """The population with the least loss, and in words which others are as good.

    Args:
        law: with the columns clients and unique_tokens.
        params: its estimates.
        runs: those that were fitted; their largest population is the largest that is looked at.
        words: the question, with ``unique_tokens_per_client`` and ``clients_per_round``.

    Raises:
        ConfigError: the question lacks one of the two, or says how much text there is in all.
        FitError: the law does not know population or text, or the runs all had one population.
    """
    if missing := [name for name in ("clients", "unique_tokens") if name not in law.columns]:
        raise FitError(f"the law {law.name!r} does not know {' or '.join(missing)}, so it has no best number of "
                       "clients; fit one such as 'federated-data-constrained', or give clients=...")  # fmt: skip
    for name in ("unique_tokens_per_client", "clients_per_round"):
        if words.get(name) is None:
            raise ConfigError(f"clients='free' needs {name}=...: each client brings its own text to a cohort")
    if words.get("unique_tokens") is not None:
        raise ConfigError("give unique_tokens_per_client, not unique_tokens, where the number of clients is free")
    least, most = float(words["clients_per_round"]), float(runs["clients"].max())
    if not runs["clients"].min() < most or least >= most:
        had = f"{grouped(runs['clients'].min(), 6)} to {grouped(most, 6)}"
        raise FitError(
            f"these runs had {had} clients, which leaves no choice at {grouped(least, 6)} a round; give clients=..."
        )
    candidates = np.unique(np.geomspace(least, most, _CANDIDATES).round())
    budget, setting, _ = question(law, runs, {**words, "clients": candidates})
    found = optimum.minimise(law, params, budget=budget, setting=setting)
    loss, passes = found.loss, found.tokens / (candidates * float(words["unique_tokens_per_client"]))
    best, alike = int(np.argmin(loss)), candidates[loss <= _AS_GOOD * loss.min()]
    at_end = " (the most that these runs had)" if best == len(candidates) - 1 else ""
    bests = f"clients = {grouped(candidates[best], 6)}: the best population from {grouped(least, 6)} to"
    return float(candidates[best]), (
        f"{bests} {grouped(most, 6)}{at_end}; from {grouped(alike[0], 6)} to {grouped(alike[-1], 6)} the loss is "
        f"within 1%; each token is read {grouped(passes[best], 3)} times"
    )
