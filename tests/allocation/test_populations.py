"""The best number of clients, where each brings text of its own."""

import numpy as np
import pytest
from law_truths import TRUTHS

import scalefed as sf
from scalefed.allocation.populations import best_population
from scalefed.errors import ConfigError, FitError
from scalefed.laws import LAWS

LAW = LAWS["federated-data-constrained"]
TRUTH = {**TRUTHS["federated-data-constrained"], "O": 3.0, "k": 0.3}
RUNS = sf.simulate_runs(LAW, TRUTH, {
    "params": [1e7, 1e8], "tokens": [1e9, 1e10], "clients_per_round": [1, 4], "skew": [0.0], "local_steps": [25],
    "unique_tokens": [1e9], "clients": [4, 1024],
}).assign(batch_size=4, sequence_length=128)  # fmt: skip
WORDS = {"compute": 1e18, "clients_per_round": 4, "skew": 0.0, "unique_tokens_per_client": 1e6}


def test_it_is_the_best_of_all_populations() -> None:
    best, told = best_population(LAW, TRUTH, RUNS, WORDS)
    clients = np.arange(4.0, 1025.0)
    sizes = np.geomspace(1e6, 1e9, 400)[:, None]
    tokens = 1e18 / 6 / sizes
    columns = {"clients_per_round": 4.0, "skew": 0.0, "local_steps": 25.0, "clients": clients}
    loss = LAW.predict(TRUTH, {**columns, "params": sizes, "tokens": tokens, "unique_tokens": 1e6 * clients}).min(0)
    assert 4 < clients[np.argmin(loss)] < 1024
    assert loss[int(best) - 4] <= 1.001 * loss.min()
    assert f"clients = {best:g}" in told and "each token is read" in told


@pytest.mark.parametrize(
    ("law", "words", "error", "told"),
    [
        (LAWS["federated"], WORDS, FitError, "does not know clients or unique_tokens"),
        (LAW, {**WORDS, "clients_per_round": None}, ConfigError, "needs clients_per_round"),
        (LAW, {**WORDS, "unique_tokens_per_client": None}, ConfigError, "needs unique_tokens_per_client"),
        (LAW, {**WORDS, "unique_tokens": 1e9}, ConfigError, "not unique_tokens"),
        (LAW, {**WORDS, "clients_per_round": 2048}, FitError, "leaves no choice"),
    ],
)
def test_it_refuses_what_it_cannot_choose(law: sf.Law, words: dict, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        best_population(law, {p: TRUTH.get(p, 0.3) for p in law.parameters}, RUNS, words)
