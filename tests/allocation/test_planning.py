"""Plans from a fit: what is filled in from the runs, what is refused, and how intervals and pass@k come along."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fit_stub import Fitted

from scalefed.allocation import planning, sizes
from scalefed.allocation.attempts import optimal_size_with_attempts
from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.defaults import check_words, question, skew_of
from scalefed.allocation.optimum import minimise
from scalefed.allocation.region import region
from scalefed.downstream.link import EXAMPLE, Link
from scalefed.errors import ConfigError, FitError
from scalefed.fitting.fit import fit
from scalefed.laws import LAWS
from scalefed.laws.simulate import simulate_runs

VALUES = {"E": 0.35, "A": 6.0, "a": 0.34, "B": 200.0, "b": 0.42, "g": 0.5, "s": 1.2}


def runs() -> pd.DataFrame:
    rows = []
    for params in (1e4, 5e4, 2e5):
        for tokens in (1e6, 4e6, 1.6e7):
            for side in (1, 4, 16):
                for concentration, skew in ((np.inf, 0.02), (0.3, 0.4), (0.1, 0.6)):
                    row: dict[str, Any] = {"params": params, "tokens": tokens, "clients_per_round": side, "clients": 16}
                    row |= {"concentration": concentration, "skew": skew, "local_steps": 25, "batch_size": 4}
                    row |= {"sequence_length": 128, "rounds": tokens / (side * 25 * 512)}
                    rows.append(row)
    return pd.DataFrame(rows)


def fitted(law: str = "federated", values: dict[str, float] | None = None, **changes: Any) -> Fitted:
    values = values or VALUES
    generator = np.random.default_rng(0)
    spread = {name: value * np.exp(0.01 * generator.standard_normal(200)) for name, value in values.items()}
    made = Fitted(LAWS[law], dict(values), pd.DataFrame(spread), runs())
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_the_question_reaches_the_law():
    best = planning.optimal_size(fitted(), compute=1e14, participation=0.25, concentration=0.3)
    alone = minimise("federated", VALUES, budget=Budget(compute=1e14), setting=Setting(clients_per_round=4, skew=0.4))
    assert best.params == pytest.approx(float(alone.params), rel=1e-12)
    assert best.loss == pytest.approx(float(alone.loss), rel=1e-12)
    assert best.rounds == pytest.approx(best.tokens / (4 * 25 * 512), rel=1e-12)
    assert best.params_low < best.params < best.params_high
    assert any("times the largest of the runs" in note for note in best.notes)


def test_fewer_clients_and_less_skew_allow_a_larger_model():
    sizes = [planning.optimal_size(fitted(), compute=1e13, clients_per_round=m, skew=0.1).params for m in (1, 4, 16)]
    assert sizes[0] > sizes[1] > sizes[2]
    sizes = [planning.optimal_size(fitted(), compute=1e13, clients_per_round=4, skew=s).params for s in (0.0, 0.3, 0.6)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_discount_one_is_the_average_compute_rule():
    values = {**VALUES, "g": 1.0}
    sixteen = planning.optimal_size(fitted(values=values), compute=1.6e14, clients_per_round=16, skew=0.1)
    one = planning.optimal_size(fitted(values=values), compute=1e13, clients_per_round=1, skew=0.1)
    assert sixteen.params == pytest.approx(one.params, rel=1e-9)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({}, FitError, "clients_per_round=.*participation="),
        ({"participation": 2.0, "skew": 0.1}, ConfigError, r"participation must be in \(0, 1\]"),
        ({"participation": 0.25, "clients_per_round": 4, "skew": 0.1}, ConfigError, "not both"),
        ({"participation": 0.01, "skew": 0.1}, ConfigError, "less than one client"),
        ({"clients_per_round": 32, "skew": 0.1, "clients": 16}, ConfigError, "at most clients"),
        ({"clients_per_round": 4, "concentration": 0.01}, FitError, "give skew="),
        ({"clients_per_round": 4, "concentration": -1.0}, ConfigError, "concentration must be positive"),
        ({"clients_per_round": 4, "concentration": 0.3, "skew": 0.1}, ConfigError, "not both"),
        ({"clients_per_round": 4, "skew": 1.2}, ConfigError, "skew must be in"),
        ({"clients_per_round": 4, "skew": 0.1, "target": "speed"}, ConfigError, "target must be"),
        ({"clients_per_round": 4, "skew": 0.1, "target": "pass_at_1"}, FitError, "fit a link"),
        ({"clients_per_round": 4, "skew": 0.1, "compute": -1.0}, ConfigError, "compute must be positive"),
    ],
)
def test_wrong_questions_are_refused(words, error, message):
    with pytest.raises(error, match=message):
        planning.optimal_size(fitted(), **{"compute": 1e14, **words})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"clients": "sixteen"}, "clients must be a number, got 'sixteen'"),
        ({"participation": "25%"}, "a quarter is 0.25"),
        ({"skew": "iid"}, "0 is iid, 1 disjoint"),
        ({"clients_per_round": 0.5}, "clients_per_round must be at least 1"),
        ({"local_steps": 0.5}, "local_steps must be at least 1"),
        ({"clients_per_round": True}, "must be a number, got True"),
    ],
)
def test_what_is_no_number_is_named_whoever_asks(words, message):
    made = fitted()
    for ask in (planning.optimal_size, planning.plan, planning.least_compute, sizes.optimal_sizes, region):
        budget = {"loss": 1.0} if ask is planning.least_compute else {"compute": 1e14}
        with pytest.raises(ConfigError, match=message):
            ask(made, **budget, **words)
        with pytest.raises(ConfigError, match="level must be between 0 and 1, got 95"):
            ask(made, **budget, clients_per_round=4, level=95)
    asked, written = ({"clients_per_round": value} for value in (4, "4"))
    assert str(planning.plan(made, compute=1e14, **written)) == str(planning.plan(made, compute=1e14, **asked))


def test_unknown_limits_are_named():
    with pytest.raises(ConfigError, match="there is no limit or setting .computer.; did you mean .compute."):
        check_words({"computer": 1e14, "clients_per_round": 4, "skew": 0.1})
    with pytest.raises(TypeError, match="computer"):
        planning.plan(fitted(), computer=1e14)


def test_what_is_not_given_is_taken_from_the_runs_or_said_to_be_assumed():
    silent = planning.optimal_size(fitted(), compute=1e14, clients=16)
    said = planning.optimal_size(fitted(), compute=1e14, clients=16, clients_per_round=16, skew=0.0)
    assert silent.params == said.params and silent.loss == said.loss
    assert any(note.startswith("skew = 0: the clients are taken to be alike") for note in silent.notes)
    assert any(note.startswith("clients_per_round = clients") for note in silent.notes)
    assert not any("taken to be" in note or "= clients" in note for note in said.notes)


def test_skew_is_interpolated_between_measured_concentrations():
    assert skew_of(0.3, runs()) == pytest.approx(0.4)
    assert skew_of(np.inf, runs()) == pytest.approx(0.02)
    between = skew_of(0.2, runs())
    assert 0.4 < between < 0.6
    assert skew_of(10.0, runs()) < 0.1
    with pytest.raises(FitError, match="do not record"):
        skew_of(0.3, runs().drop(columns="skew"))
    assert skew_of(np.inf, runs().query("concentration < 1")) == 0.0


def test_the_setting_is_filled_from_the_runs():
    budget, setting, notes = question(
        LAWS["federated"], runs(), {"compute": 1e14, "participation": 0.5, "skew": 0.1, "rounds": 1e4}
    )
    assert budget.names == ("compute", "rounds")
    assert setting.clients == 16 and float(np.asarray(setting.clients_per_round)) == 8
    assert setting.local_steps == 25 and setting.batch_tokens == 512
    taken = ("clients = 16", "local_steps = 25", "batch_tokens = 512")
    assert notes == tuple(f"{value}, as in the runs" for value in taken)
    other = runs().drop(columns=["batch_size", "sequence_length"])
    assert question(LAWS["federated"], other, {"compute": 1.0, "clients_per_round": 1, "skew": 0})[
        1
    ].batch_tokens == pytest.approx(512)


def test_limits_on_communication_and_memory_bind():
    free = planning.plan(fitted(), compute=1e14, clients_per_round=4, skew=0.1)
    tight = planning.plan(fitted(), compute=1e14, clients_per_round=4, skew=0.1, bytes_per_client=1e8)
    assert tight.binding == ("bytes_per_client",)
    assert tight.loss > free.loss and tight.compute < free.compute
    assert 8 * tight.params * tight.rounds * 4 / 16 == pytest.approx(1e8, rel=1e-9)
    assert tight.shadow_prices["bytes_per_client"] > 0 and tight.shadow_prices["compute"] == 0


def test_free_local_steps_need_a_law_that_prices_them():
    drift = {**VALUES, "F": 5.0, "h": 0.3, "r": 0.5}
    words = {"compute": 1e13, "clients_per_round": 4, "skew": 0.1, "bytes_sent": 1e11}
    free = planning.plan(fitted("federated-drift", drift), local_steps="free", **words)
    held = planning.plan(fitted("federated-drift", drift), local_steps=25, **words)
    assert free.loss <= held.loss
    assert free.local_steps != pytest.approx(25, rel=0.1)
    with pytest.raises(FitError, match="does not say what longer"):
        planning.plan(fitted(), local_steps="free", **words)


def test_a_sweep_equals_single_questions():
    budgets = np.geomspace(1e12, 1e16, 9)
    table = sizes.optimal_sizes(fitted(), compute=budgets, clients_per_round=4, skew=0.1)
    for index in (0, 4, 8):
        one = planning.optimal_size(fitted(), compute=budgets[index], clients_per_round=4, skew=0.1)
        for name in ("params", "params_low", "params_high", "tokens", "rounds", "loss"):
            assert table[name].iloc[index] == pytest.approx(getattr(one, name), rel=1e-9), name
    assert (table["params_low"] <= table["params"]).all() and (table["params"] <= table["params_high"]).all()
    bare = sizes.optimal_sizes(fitted(), compute=budgets, clients_per_round=4, skew=0.1, intervals=False)
    assert list(bare.columns) == ["compute", "params", "tokens", "rounds", "loss"]


def test_a_sweep_of_a_real_fit_has_the_bands_of_single_questions():
    made = fit(simulate_runs("federated", VALUES, runs(), noise=0.02, seed=1), law="federated", resamples=200)
    words = {"clients_per_round": 4, "skew": 0.1}
    table = made.optimal_sizes(compute=[1e13, 1e14], **words)
    one = made.optimal_size(compute=1e14, **words)
    for name in ("params", "params_low", "params_high", "loss", "loss_low", "loss_high"):
        assert table[name].iloc[1] == pytest.approx(getattr(one, name), rel=1e-9), name


def test_without_replicates_the_ends_of_a_sweep_are_unknown():
    alone = sizes.optimal_sizes(fitted(replicates=pd.DataFrame()), compute=[1e13, 1e14], clients_per_round=4, skew=0.1)
    assert alone[["params_low", "params_high", "loss_low", "loss_high"]].isna().all().all()
    assert alone["params"].notna().all()


def test_least_compute_for_a_loss_and_for_pass_at_1():
    words = {"clients_per_round": 4, "skew": 0.1}
    best = planning.optimal_size(fitted(), compute=3e13, **words)
    back = planning.least_compute(fitted(), loss=best.loss, **words)
    assert back.compute == pytest.approx(3e13, rel=1e-6)
    linked = fitted(link=Link.from_json(EXAMPLE))
    goal = planning.least_compute(linked, pass_at_1=0.5, **words)
    assert goal.pass_at_1 == pytest.approx(0.5, rel=1e-6)
    with pytest.raises(FitError, match="the fitted law ends at 0.35"):
        planning.least_compute(fitted(), loss=0.2, **words)
    with pytest.raises(ConfigError, match="one target"):
        planning.least_compute(fitted(), **words)
    with pytest.raises(FitError, match="fit a link"):
        planning.least_compute(fitted(), pass_at_1=0.5, **words)


def test_pass_at_k_comes_with_a_link():
    link = Link.from_json(EXAMPLE)
    best = planning.optimal_size(fitted(link=link), compute=1e13, clients_per_round=4, skew=0.1, target="pass_at_10")
    expected = link.predict(best.loss, (1, 10, 100))["estimate"].tolist()
    assert best.pass_at_1 == pytest.approx(expected[0], rel=1e-12)
    assert [best.pass_at_k[k][0] for k in (1, 10, 100)] == pytest.approx(expected, rel=1e-12)
    assert best.pass_at_1_low <= best.pass_at_1 <= best.pass_at_1_high
    assert "pass_at_1" in repr(best)


def test_attempts_favour_a_smaller_model():
    linked = fitted(link=Link.from_json(EXAMPLE))
    words = {"compute": 1e14, "clients_per_round": 4, "skew": 0.1}
    best = planning.optimal_size(linked, **words)
    tried = optimal_size_with_attempts(linked, compute_per_problem=2e9, tokens_per_attempt=60, **words)
    (k, (share, low, high)) = next(iter(tried.pass_at_k.items()))
    assert tried.params < best.params
    assert k == round(2e9 / (2 * tried.params * 60)) and low <= share <= high
    # brute force over sizes
    params = np.geomspace(1e3, 1e7, 20001)
    columns = {"params": params, "tokens": 1e14 / (6 * params), "clients_per_round": 4.0, "skew": 0.1}
    loss = LAWS["federated"].predict(VALUES, {n: np.broadcast_to(v, params.shape) for n, v in columns.items()})
    attempts = np.maximum(2e9 / (2 * params * 60), 1.0)
    from scalefed.downstream.link import pass_at_k

    shares = pass_at_k(linked.link.curve, loss, attempts)
    assert share == pytest.approx(float(shares.max()), rel=1e-6)
    assert tried.params == pytest.approx(float(params[np.argmax(shares)]), rel=2e-3)


def test_sampling_cost_counts_as_compute():
    words = {"clients_per_round": 4, "skew": 0.1}
    plain = planning.least_compute(fitted(), loss=0.7, **words)
    used = planning.least_compute(fitted(), loss=0.7, sampled_tokens=1e9, **words)
    assert used.params < plain.params and used.tokens > plain.tokens
    assert used.compute == pytest.approx(6 * used.params * used.tokens + 2 * used.params * 1e9, rel=1e-9)


def test_a_law_without_tokens_is_refused():
    values = {"E": 1.0, "A": 20.0, "a": 0.1, "g": 0.01}
    with pytest.raises(FitError, match="does not say how loss depends on tokens"):
        planning.optimal_size(fitted("diloco-offset", values), compute=1e20, clients_per_round=4)


def test_a_saved_fit_answers_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    """A fresh process without torch, and without the slow imports that an answer does not need."""
    levels = {"params": [1e7, 1e8, 1e9], "tokens": [1e9, 1e10, 1e11], "clients_per_round": [1, 4, 16]}
    found = fit(simulate_runs("federated", VALUES, {**levels, "skew": [0.0, 0.5]}, noise=0.002), "federated")
    path = found.save(tmp_path / "fit.json")
    code = f"""
import sys
sys.modules["torch"] = None  # import torch now raises ImportError
import scalefed as sf
best = sf.load_fit({str(path)!r}).optimal_size(compute=1e19, clients_per_round=4, skew=0.2)
print(best.params, best.loss_low, best.loss_high)
print([m for m in ("scipy.stats", "statsmodels", "altair", "transformers", "flwr") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    numbers, loaded = done.stdout.splitlines()
    best = found.optimal_size(compute=1e19, clients_per_round=4, skew=0.2)
    assert [float(x) for x in numbers.split()] == pytest.approx([best.params, best.loss_low, best.loss_high], rel=1e-9)
    assert loaded == "[]"
