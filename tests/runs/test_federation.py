"""What a table does not hold and its columns say: cohort, share, population; compute, size, tokens; skew."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.errors import FitWarning, RunLogWarning
from scalefed.fitting.fit import fit
from scalefed.runs.federation import simulated_skew
from scalefed.runs.log import load_runs
from scalefed.skew import expected_skew, measured_skew

settings.register_profile("quick", deadline=None, max_examples=40)
settings.load_profile("quick")

NAMES = {"params": "N", "tokens": "train_tokens", "clients": "n_clients", "participation": "frac_fit",
         "concentration": "dirichlet_alpha", "loss": "val_loss"}  # fmt: skip
TRUTH = {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37, "g": 0.4, "s": 1.2}


def table(noise: float = 0.003, *, skewed: bool = True) -> pd.DataFrame:
    """Federated runs as somebody else's CSV has them: no cohort, no skew."""
    draw = np.random.default_rng(0)
    rows = [
        (n, d, k, f, draw.choice([0.1, 1.0, math.inf]))
        for n in np.geomspace(1e6, 1e8, 5) for d in (1e8, 5e8, 2e9) for k, f in ((16, 0.25), (16, 1.0), (64, 0.125))
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["N", "train_tokens", "n_clients", "frac_fit", "dirichlet_alpha"])
    skew = np.array([simulated_skew(a, k) for a, k in zip(frame["dirichlet_alpha"], frame["n_clients"], strict=True)])
    skew = skew if skewed else np.zeros(len(frame))
    worth = frame["train_tokens"] / (frame["n_clients"] * frame["frac_fit"]) ** TRUTH["g"]
    loss = TRUTH["E"] + TRUTH["A"] / frame["N"] ** TRUTH["a"]
    loss += TRUTH["B"] * np.exp(TRUTH["s"] * skew) / worth ** TRUTH["b"]
    return frame.assign(val_loss=loss * np.exp(noise * draw.standard_normal(len(frame))))


@pytest.mark.parametrize("form", ["csv", "frame"])
def test_a_federated_table_of_ones_own_goes_through(tmp_path, form):
    source = table()
    if form == "csv":
        texts = source.assign(dirichlet_alpha=["iid" if math.isinf(a) else str(a) for a in source["dirichlet_alpha"]])
        source = tmp_path / "runs.csv"
        texts.to_csv(source, index=False)
    with pytest.warns(RunLogWarning, match="skew is simulated from concentration and clients, for 10 equally common"):
        found = fit(source, "federated", columns=NAMES, resamples=60)
    assert found.status.name == "CONVERGED" and found.params == pytest.approx(TRUTH, rel=0.2)
    best = found.optimal_size(compute=1e17, clients=16, participation=0.25, concentration=0.1)
    other = found.optimal_size(compute=1e17, clients=16, participation=0.25, concentration=math.inf)
    assert best.params < other.params and best.params_low < best.params < best.params_high


def test_a_table_without_skew_fits_the_laws_without_it():
    frame = table(skewed=False).drop(columns="dirichlet_alpha")
    names = {ours: theirs for ours, theirs in NAMES.items() if ours != "concentration"}
    with pytest.warns(FitWarning, match="the runs have no skew, so s cannot be fitted: fixed at 0"):
        found = fit(frame, "federated", columns=names, resamples=0, backtest=False)
    assert found.law.fixed == {"s": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        law = "E + A/params^a + B/(tokens/clients_per_round^g)^b"
        same = fit(frame, law, columns=names, resamples=0, backtest=False)
    assert same.params == pytest.approx({name: found.params[name] for name in same.params}, rel=1e-6)


@given(st.integers(1, 4096), st.data())
def test_any_two_of_cohort_share_and_population_give_the_third(clients, data):
    cohort = data.draw(st.integers(1, clients))
    whole = {"params": [1e6], "tokens": [1e8], "loss": [3.0], "clients": [clients], "clients_per_round": [cohort],
             "participation": [cohort / clients]}  # fmt: skip
    for name in ("clients", "clients_per_round", "participation"):
        frame = load_runs({key: values for key, values in whole.items() if key != name})
        assert frame[name].tolist() == pytest.approx(whole[name])


def test_size_tokens_and_compute_give_each_other():
    whole = {"params": [1e6, 2e6], "tokens": [2e8, 3e8], "compute": [1.2e15, 3.6e15], "loss": [3.0, 2.9]}
    for name in ("params", "tokens", "compute"):
        frame = load_runs({key: values for key, values in whole.items() if key != name})
        assert frame[name].tolist() == pytest.approx(whole[name])
    blank = load_runs(whole | {"tokens": [None, 3e8]})
    assert blank["tokens"].tolist() == pytest.approx(whole["tokens"])


def test_what_is_there_is_never_filled_over():
    frame = load_runs({"params": [1e6], "tokens": [1e8], "compute": [9e15], "loss": [3.0], "skew": [0.4],
                       "concentration": [0.1], "clients": [16], "clients_per_round": [4]})  # fmt: skip
    assert frame["compute"].tolist() == [9e15] and frame["skew"].tolist() == [0.4]


@pytest.mark.parametrize("concentration", [0.01, 0.1, 1.0, 10.0])
def test_the_simulated_skew_is_that_of_many_clients_where_there_are_many(concentration):
    prior = np.full(10, 0.1)
    wanted = expected_skew(prior, concentration=concentration)
    assert simulated_skew(concentration, 1000) == pytest.approx(wanted, abs=0.02)
    few = [
        measured_skew(np.random.default_rng(seed).dirichlet(np.full(10, concentration), size=16)) for seed in range(200)
    ]
    assert simulated_skew(concentration, 16) == pytest.approx(np.mean(few), abs=0.02)


def test_skew_falls_with_concentration_and_is_nothing_where_clients_are_alike():
    skews = [simulated_skew(c, 32) for c in (0.01, 0.1, 1.0, 10.0, 100.0, math.inf)]
    assert skews == sorted(skews, reverse=True) and skews[-1] == 0.0
    assert simulated_skew(0.1, 1) == 0.0 and simulated_skew(0.1, 10**6) == pytest.approx(
        simulated_skew(0.1, 3000), abs=0.02
    )
