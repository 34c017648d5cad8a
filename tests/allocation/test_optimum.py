"""The planner against hand-computed values, brute force, and the algebra of scaling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_truths import OF_OWN_COLUMNS

from scalefed.allocation.budgets import Budget, Setting
from scalefed.allocation.optimum import evaluate, interval, least_compute, minimise
from scalefed.errors import ConfigError, FitError
from scalefed.laws import LAWS, Law
from scalefed.units import activation_values, client_memory_bytes

HOFFMANN = {"E": 1.69, "A": 406.4, "a": 0.34, "B": 410.7, "b": 0.28}
VALUES = {
    **HOFFMANN,
    "g": 0.3,
    "s": 0.8,
    "h": 0.2,
    "G": 300.0,
    "c": 0.3,
    "F": 10.0,
    "r": 0.5,
    "R": 15.0,
    "t": 0.4,
    "d": 0.3,
}
SPECIAL = {
    "coupled": {**HOFFMANN, "A": 4.0, "B": 4.0, "c": 1.3},
    "kaplan": {"A": 100.0, "a": 0.8, "B": 1e9, "c": 0.1},
    "federated-population": {
        **HOFFMANN, "A": 4.0, "B": 4.0, "c": 1.3, "G": 30.0, "d": 0.3, "s": 0.8, "h": 0.2, "r": 0.5, "t": 0.4,
        "u": 0.2, "k": 0.1, "f": 0.4, "l": 0.06,
    },
    "federated-cross-device": {
        **HOFFMANN, "A": 4.0, "B": 4.0, "c": 1.3, "G": 30.0, "d": 0.3, "s": 0.8, "h": 0.2, "r": 0.5, "t": 0.4, "u": 0.2,
        "R": 15.0, "k": 0.1, "f": 0.4, "l": 0.06, "O": 2.5, "w": 0.1, "x": 0.2, "y": 0.1, "z": 0.4, "v": 0.9,
    },
    "federated-data-constrained": {
        **HOFFMANN, "A": 4.0, "B": 4.0, "c": 1.3, "G": 30.0, "d": 0.3, "s": 0.8, "h": 0.2, "r": 0.5, "t": 0.4,
        "R": 15.0, "k": 0.1, "f": 0.4, "l": 0.06, "O": 2.5, "w": 0.1, "x": 0.2, "y": 0.1, "z": 0.4, "v": 0.9,
    },
}  # fmt: skip
SETTING = Setting(clients=100, clients_per_round=16, skew=0.2, local_steps=30, batch_tokens=4096, unique_tokens=1e9)
BUDGETS = {
    "compute": {"compute": 1e20},
    "mixed": {
        "compute": 1e20,
        "bytes_per_client": 2e12,
        "rounds": 2e4,
        "memory": 16e9,
        "seconds": 864000.0,
        "flops_per_second": 1e13,
        "bandwidth": 1e8,
        "latency": 1.0,
    },
    "slow network": {"compute": 1e20, "seconds": 864000.0, "flops_per_second": 1e13, "bandwidth": 1e6},
    "sampled": {"compute": 1e20, "sampled_tokens": 1e10},
}
WITH_TRADE = [name for name in LAWS if not name.startswith("diloco") and name not in OF_OWN_COLUMNS]


def values_of(name: str) -> dict[str, float]:
    return SPECIAL.get(name) or {p: VALUES[p] for p in LAWS[name].free}


def most_tokens(params: np.ndarray, budget: dict[str, float], setting: Setting) -> np.ndarray:
    """The limits written out by hand, for full training in float32 without a vocabulary."""
    m, clients = setting.clients_per_round, setting.clients
    per_round = setting.local_steps * setting.batch_tokens * m
    tokens = np.full_like(params, np.inf)
    if "compute" in budget:
        tokens = (budget["compute"] - 2 * params * budget.get("sampled_tokens", 0.0)) / (6 * params)
    if "bytes_per_client" in budget:
        tokens = np.minimum(tokens, budget["bytes_per_client"] / (8 * params * m / clients) * per_round)
    if "rounds" in budget:
        tokens = np.minimum(tokens, budget["rounds"] * per_round)
    if "seconds" in budget:
        a_round = 8 * params / budget["bandwidth"] + budget.get("latency", 0.0)
        a_token = 6 * params / (m * budget["flops_per_second"]) + a_round / per_round
        tokens = np.minimum(tokens, budget["seconds"] / a_token)
    if "memory" in budget:
        width = np.cbrt(params * 64 / 12)
        needed = 4 * (4 * params + 17 * width * width / 64 * setting.batch_tokens)
        tokens = np.where(needed > budget["memory"], np.nan, tokens)
    return np.where(tokens > 0, tokens, np.nan)


def brute_force(law: Law, values: dict[str, float], budget: dict[str, float]) -> tuple[float, float, float]:
    """A grid over params, refined; as many tokens as the limits allow."""
    low, high = np.log(1e4), np.log(1e13)
    for _ in range(5):
        mesh = np.linspace(low, high, 2001)
        params = np.exp(mesh)
        tokens = most_tokens(params, budget, SETTING)
        known = {"params": params, "tokens": tokens, "clients_per_round": 16.0, "skew": 0.2, "local_steps": 30.0}
        known |= {"rounds": tokens / (16 * 30 * 4096), "unique_tokens": 1e9, "clients": 100.0}
        with np.errstate(invalid="ignore"):
            loss = law.predict(values, {n: np.broadcast_to(known[n], params.shape) for n in law.columns})
        best = int(np.nanargmin(loss))
        low, high = mesh[max(best - 2, 0)], mesh[min(best + 2, 2000)]
    return float(params[best]), float(tokens[best]), float(loss[best])


@pytest.mark.parametrize(
    ("law", "extra", "setting", "expected"),
    [
        ("chinchilla", {}, {}, 6.4486e8),
        ("average-compute", {}, {"clients_per_round": 16}, 1.8436e8),
        ("federated", {"g": 0.15, "s": 0.0}, {"clients_per_round": 16, "skew": 0.0}, 5.3443e8),
    ],
)
def test_published_constants_give_the_known_sizes(law, extra, setting, expected):
    found = minimise(law, {**HOFFMANN, **extra}, budget=Budget(compute=1e20), setting=Setting(**setting))
    assert float(found.params) == pytest.approx(expected, rel=1e-4)


def test_where_text_wears_out_the_budget_is_not_spent():
    """With so little text a client that more passes make it worse, the best run stops at the best number of tokens."""
    law, values = LAWS["federated-data-constrained"], {**SPECIAL["federated-data-constrained"], "O": 0.02, "x": 0.9}
    setting = Setting(clients=16, clients_per_round=4, skew=0.0, local_steps=25, batch_tokens=512, unique_tokens=32_768)
    found = minimise(law, values, budget=Budget(compute=1e15), setting=setting)
    columns = {"params": found.params, "clients_per_round": 4.0, "clients": 16.0, "skew": 0.0, "local_steps": 25.0}
    tokens = np.geomspace(1e3, 1e15 / 6 / float(found.params), 4001)
    loss = law.predict(values, {**columns, "tokens": tokens, "unique_tokens": 32_768.0})
    assert float(found.tokens) < 0.5 * tokens[-1]
    assert float(found.loss) == pytest.approx(loss.min(), rel=1e-5)


def test_text_of_clients_is_all_the_text_and_passes_over_it_are_a_limit_where_they_are_given():
    law, values = LAWS["federated-data-constrained"], {**SPECIAL["federated-data-constrained"], "O": 1e-3}
    setting = Setting(clients=16, clients_per_round=4, skew=0.0, local_steps=25, batch_tokens=512, unique_tokens=32_768)
    free = minimise(law, values, budget=Budget(compute=1e13, unique_tokens_per_client=2_048), setting=setting)
    held = minimise(law, values, budget=Budget(compute=1e13, unique_tokens_per_client=2_048, epochs=3), setting=setting)
    assert float(free.tokens) > 4 * 32_768
    assert float(held.tokens) == pytest.approx(3 * 32_768, rel=1e-5)


def test_without_a_word_on_text_every_token_is_read_once():
    law, values = LAWS["federated-data-constrained"], {**SPECIAL["federated-data-constrained"], "O": 1e-3}
    setting = Setting(clients=16, clients_per_round=4, skew=0.0, local_steps=25, batch_tokens=512)
    found = minimise(law, values, budget=Budget(compute=1e15), setting=setting)
    columns = {"clients_per_round": 4.0, "clients": 16.0, "skew": 0.0, "local_steps": 25.0}
    params = float(found.params) * np.geomspace(0.8, 1.25, 21)
    tokens = 1e15 / 6 / params
    loss = law.predict(values, {**columns, "params": params, "tokens": tokens, "unique_tokens": tokens})
    assert np.argmin(loss) == 10 and float(found.loss) == pytest.approx(loss[10], rel=1e-9)


def test_closed_form_of_two_terms():
    a, b = HOFFMANN["a"], HOFFMANN["b"]
    size = (a * HOFFMANN["A"] / (b * HOFFMANN["B"])) ** (1 / (a + b)) * (1e21 / 6) ** (b / (a + b))
    found = minimise("chinchilla", HOFFMANN, budget=Budget(compute=1e21))
    assert float(found.params) == pytest.approx(size, rel=1e-12)
    # L* - E = (1 + a/b) A N*^-a
    assert float(found.excess) == pytest.approx((1 + a / b) * HOFFMANN["A"] * size**-a, rel=1e-12)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", WITH_TRADE)
def test_equals_brute_force(name, budget):
    limits = BUDGETS[budget]
    found = minimise(name, values_of(name), budget=Budget(**limits), setting=SETTING)
    params, tokens, loss = brute_force(LAWS[name], values_of(name), limits)
    assert bool(found.bounded)
    assert float(found.params) == pytest.approx(params, rel=1e-3)
    assert float(found.tokens) == pytest.approx(tokens, rel=1e-3)
    assert float(found.loss) <= loss * (1 + 1e-9)
    spent = 6 * found.params * found.tokens + 2 * found.params * limits.get("sampled_tokens", 0.0)
    assert float(found.compute) == pytest.approx(float(spent), rel=1e-12)
    assert float(found.tokens) <= most_tokens(np.array([float(found.params)]), limits, SETTING)[0] * (1 + 1e-9)


def test_binding_limits_are_spent_exactly_and_named():
    # few rounds allowed, a slow network and a huge compute: the two hold at once, in a corner
    budget = Budget(compute=1e30, rounds=500.0, bytes_sent=1e12)
    found = minimise("federated", values_of("federated"), budget=budget, setting=SETTING)
    assert set(found.binding()) == {"rounds", "bytes_sent"}
    assert float(found.rounds) == pytest.approx(500.0, rel=1e-9)
    assert 8 * float(found.params) * 16 * float(found.rounds) == pytest.approx(1e12, rel=1e-9)


def test_memory_limit_holds_by_its_own_formula():
    setting = Setting(batch_tokens=2048, vocab=32000, width_per_layer=64)
    budget = Budget(compute=1e24, memory=2e9)
    found = minimise("chinchilla", HOFFMANN, budget=budget, setting=setting)
    params = float(found.params)
    width = (params * 64 / 12) ** (1 / 3)
    activations = activation_values(width=1, layers=1, tokens=2048, vocab=0) * width * width / 64
    activations += activation_values(width=1, layers=1, tokens=2048, vocab=32000) - activation_values(
        width=1, layers=1, tokens=2048, vocab=0
    )
    total = client_memory_bytes(params + 32000 * width, activations=activations)
    assert total == pytest.approx(2e9, rel=1e-6)
    assert set(found.binding()) == {"memory", "compute"}


def test_lora_lowers_memory_and_traffic():
    full = minimise("chinchilla", HOFFMANN, budget=Budget(compute=1e24, memory=2e9), setting=Setting(batch_tokens=1))
    lora = minimise(
        "chinchilla",
        HOFFMANN,
        budget=Budget(compute=1e24, memory=2e9),
        setting=Setting(batch_tokens=1, trained_share=0.01),
    )
    # weights + gradient + two moments are 4 numbers a parameter, with 1% trained 1.03
    assert float(lora.params / full.params) == pytest.approx(4 / 1.03, rel=0.02)


@pytest.mark.parametrize("name", ["compute", "bytes_per_client", "rounds", "memory", "seconds"])
def test_prices_are_the_derivative_of_the_loss(name):
    limits = {
        "compute": {"compute": 1e19},
        "bytes_per_client": {"compute": 1e22, "bytes_per_client": 1e12},
        "rounds": {"compute": 1e22, "rounds": 4000.0},
        "memory": {"compute": 1e21, "memory": 4e9},
        "seconds": {"seconds": 1e6, "flops_per_second": 1e12, "bandwidth": 1e7, "latency": 2.0},
    }[name]

    def loss(factor: float) -> float:
        scaled = {**limits, name: limits[name] * factor}
        found = minimise("federated-steps", values_of("federated-steps"), budget=Budget(**scaled), setting=SETTING)
        return float(found.loss)

    found = minimise("federated-steps", values_of("federated-steps"), budget=Budget(**limits), setting=SETTING)
    saved = (loss(1 - 1e-4) - loss(1 + 1e-4)) / 2e-4 * 0.01
    assert name in found.binding()
    assert float(found.prices[name]) == pytest.approx(saved, rel=1e-3)


def test_free_local_steps_against_a_grid():
    setting = Setting(clients=100, clients_per_round=16, skew=0.2, batch_tokens=4096)
    budget = Budget(compute=1e20, bytes_per_client=1e12)
    values = values_of("federated-drift")
    found = minimise("federated-drift", values, budget=budget, setting=setting)
    params = np.geomspace(2e7, 5e8, 241)[:, None]
    rounds = 1e12 / (8 * params * 16 / 100)
    tokens = np.geomspace(1e9, 1e13, 1201)[None, :]
    columns = {"params": params, "tokens": tokens, "clients_per_round": 16.0, "skew": 0.2, "rounds": rounds}
    columns["local_steps"] = tokens / (rounds * 16 * 4096)
    loss = LAWS["federated-drift"].predict(values, {k: np.broadcast_to(v, (241, 1201)) for k, v in columns.items()})
    loss = np.where((6 * params * tokens <= 1e20) & (columns["local_steps"] >= 1), loss, np.inf)
    assert float(found.loss) <= loss.min() + 1e-12
    assert float(found.loss) == pytest.approx(loss.min(), rel=1e-4)
    product = 16 * 4096 * float(found.rounds) * float(found.local_steps)
    assert product == pytest.approx(float(found.tokens), rel=1e-9)
    assert float(found.rounds) == pytest.approx(1e12 * 100 / (8 * float(found.params) * 16), rel=1e-6)


def test_a_law_that_rises_with_tokens_is_solved_too():
    law = Law.parse("E + A/params^a + B/tokens^b + F*tokens^h/1e9")
    values = {**HOFFMANN, "F": 1.0, "h": 0.8}
    found = minimise(law, values, budget=Budget(compute=1e24))
    params = np.exp(np.linspace(np.log(1e6), np.log(1e14), 801))[:, None]
    tokens = np.exp(np.linspace(np.log(1e6), np.log(1e14), 801))[None, :]
    loss = law.predict(
        values, {"params": np.broadcast_to(params, (801, 801)), "tokens": np.broadcast_to(tokens, (801, 801))}
    )
    loss = np.where(6 * params * tokens <= 1e24, loss, np.inf)
    assert float(found.loss) <= loss.min() and float(found.loss) == pytest.approx(loss.min(), rel=1e-4)


def test_many_questions_at_once_equal_one_by_one():
    compute = np.geomspace(1e17, 1e23, 25)
    exponents = np.linspace(0.3, 0.38, 7)
    values = {**values_of("federated-steps"), "a": exponents[:, None]}
    together = minimise("federated-steps", values, budget=Budget(compute=compute), setting=SETTING)
    assert together.params.shape == (7, 25)
    for i, j in [(0, 0), (3, 12), (6, 24)]:
        one = {**values, "a": exponents[i]}
        alone = minimise("federated-steps", one, budget=Budget(compute=compute[j]), setting=SETTING)
        assert together.params[i, j] == pytest.approx(float(alone.params), rel=1e-10)


def test_least_compute_inverts_the_optimum():
    for name in ("chinchilla", "coupled", "federated-steps", "data-constrained"):
        best = minimise(name, values_of(name), budget=Budget(compute=3e20), setting=SETTING)
        back = least_compute(name, values_of(name), loss=float(best.loss), setting=SETTING)
        assert float(back.compute) == pytest.approx(3e20, rel=1e-6)
        assert float(back.params) == pytest.approx(float(best.params), rel=1e-6)


def test_least_compute_says_what_cannot_be_reached():
    found = least_compute("chinchilla", HOFFMANN, loss=np.array([2.5, 1.6]))
    assert np.isfinite(found.compute[0]) and np.isinf(found.compute[1])
    assert found.bounded.tolist() == [True, False]
    # rounds and memory end the loss before the target
    held = least_compute("chinchilla", HOFFMANN, loss=1.9, budget=Budget(params=1e6), setting=SETTING)
    assert np.isinf(float(held.compute))


@settings(deadline=None, max_examples=30)
@given(
    a=st.floats(0.1, 0.9),
    b=st.floats(0.1, 0.9),
    log_a=st.floats(0.0, 8.0),
    log_b=st.floats(0.0, 8.0),
    log_compute=st.floats(15.0, 24.0),
    g=st.floats(0.0, 1.2),
)
def test_more_compute_helps_and_is_spent_exactly(a, b, log_a, log_b, log_compute, g):
    values = {"E": 1.0, "A": np.exp(log_a), "a": a, "B": np.exp(log_b), "b": b, "g": g, "s": 0.5}
    compute = 10.0**log_compute * np.array([1.0, 3.0])
    found = minimise(
        "federated", values, budget=Budget(compute=compute), setting=Setting(clients_per_round=4, skew=0.3)
    )
    usable = found.bounded
    np.testing.assert_allclose(6 * (found.params * found.tokens)[usable], compute[usable], rtol=1e-11)
    if usable.all():
        assert found.loss[1] < found.loss[0]
        assert found.params[1] > found.params[0] and found.tokens[1] > found.tokens[0]
        step = np.log(found.params[1] / found.params[0]) / np.log(3.0)
        assert step == pytest.approx(b / (a + b), rel=1e-6)


@settings(deadline=None, max_examples=25)
@given(unit=st.floats(-4.0, 4.0), other=st.floats(-4.0, 4.0))
def test_units_do_not_matter(unit, other):
    """Params in units of u and tokens in units of v: the same run."""
    u, v = 10.0**unit, 10.0**other
    first = minimise("chinchilla", HOFFMANN, budget=Budget(compute=1e21))
    scaled = {**HOFFMANN, "A": HOFFMANN["A"] * u ** -HOFFMANN["a"], "B": HOFFMANN["B"] * v ** -HOFFMANN["b"]}
    second = minimise("chinchilla", scaled, budget=Budget(compute=1e21 / (u * v)))
    assert float(second.params) * u == pytest.approx(float(first.params), rel=1e-9)
    assert float(second.tokens) * v == pytest.approx(float(first.tokens), rel=1e-9)
    assert float(second.loss) == pytest.approx(float(first.loss), rel=1e-12)


@settings(deadline=None, max_examples=25)
@given(clients=st.floats(1.0, 512.0), compute=st.floats(15.0, 23.0))
def test_average_compute_rule_depends_on_compute_per_client_only(clients, compute):
    """At discount 1 the best size depends on compute / clients alone (theory: corollary 3)."""
    many = minimise(
        "average-compute", HOFFMANN, budget=Budget(compute=10**compute), setting=Setting(clients_per_round=clients)
    )
    one = minimise(
        "average-compute", HOFFMANN, budget=Budget(compute=10**compute / clients), setting=Setting(clients_per_round=1)
    )
    assert float(many.params) == pytest.approx(float(one.params), rel=1e-9)


@pytest.mark.parametrize("name", ["diloco", "diloco-offset"])
def test_a_law_without_tokens_is_refused(name):
    values = {p: {"E": 1.0, "A": 20.0, "a": 0.1, "g": 0.01}[p] for p in LAWS[name].free}
    with pytest.raises(FitError, match="does not say how loss depends on tokens"):
        minimise(name, values, budget=Budget(compute=1e20), setting=SETTING)


@pytest.mark.parametrize(
    ("budget", "setting", "message"),
    [
        ({}, SETTING, "give compute"),
        ({"params": 1e9}, SETTING, "hold no tokens"),
        ({"compute": 1e20}, Setting(), "depends on skew, clients_per_round"),
        ({"compute": 1e20, "bytes_sent": 1e9}, Setting(clients_per_round=4, skew=0, batch_tokens=8), "local_steps"),
        ({"compute": 1e20, "seconds": 1e3}, SETTING, "flops_per_second"),
        ({"compute": 1e20, "memory": 10.0}, SETTING, "does not hold the activations"),
    ],
)
def test_what_cannot_be_answered_is_said(budget, setting, message):
    with pytest.raises(FitError, match=message):
        minimise("federated", values_of("federated"), budget=Budget(**budget), setting=setting)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(compute=-1.0), "compute must be positive"),
        (lambda: Budget(compute=np.array([1.0, np.nan])), "compute must be positive"),
        (lambda: Budget(compute="much"), "positive number"),
        (lambda: Budget(compute=1.0, latency=-1.0), "latency"),
        (lambda: Setting(clients=4, clients_per_round=5), "at most clients"),
        (lambda: Setting(skew=1.5), "skew must be in"),
        (lambda: Setting(trained_share=2.0), "trained_share"),
    ],
)
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_an_optimum_that_nothing_holds_is_refused():
    with pytest.raises(FitError, match="nothing holds the best size"):
        interval("chinchilla", {**HOFFMANN, "a": -0.1}, {}, budget=Budget(compute=1e20))


def test_interval_covers_the_replicates_and_prints():
    generator = np.random.default_rng(0)
    replicates = {name: value * np.exp(0.02 * generator.standard_normal(500)) for name, value in HOFFMANN.items()}
    best = interval("chinchilla", HOFFMANN, replicates, budget=Budget(compute=1e20))
    assert best.params == pytest.approx(6.4486e8, rel=1e-4)
    assert best.params_low < best.params < best.params_high
    inside = (best.replicates["params"] > best.params_low) & (best.replicates["params"] < best.params_high)
    assert 0.94 <= inside.mean() <= 0.96
    assert best.regret > 0 and "regret: at most" in repr(best)
    assert best.binding == ("compute",) and best.compute == pytest.approx(1e20, rel=1e-12)
    text = repr(best)
    assert "held by compute" in text and "params" in text and "95% intervals" in text
    plain = best.to_dict()
    assert plain["rounds"] is None and plain["params"] == best.params
    alone = repr(interval("chinchilla", HOFFMANN, {}, budget=Budget(compute=1e20)))
    assert "without intervals: there are no replicates" in alone and "nan" not in alone and "644,900,000" in alone


def test_a_regret_of_nothing_is_not_told_as_a_number():
    generator = np.random.default_rng(0)
    noisy = {name: value * np.exp(0.02 * generator.standard_normal(100)) for name, value in HOFFMANN.items()}
    exact = {name: np.full(100, value * (1 + 1e-15)) for name, value in HOFFMANN.items()}
    for replicates, limits in ((exact, {"compute": 1e20}), (noisy, {"params": 1e8, "tokens": 1e9})):
        best = interval("chinchilla", HOFFMANN, replicates, budget=Budget(**limits))
        assert best.regret == 0 and best.params_low == pytest.approx(best.params_high, rel=1e-9)
        assert "at most 0" not in repr(best) and "every replicate of the fit has this best size" in repr(best)


def test_evaluate_equals_the_law():
    values = values_of("federated-drift")
    got = evaluate(LAWS["federated-drift"], values, SETTING, params=[1e7, 1e8], tokens=[1e9, 1e10])
    columns = {"params": np.array([1e7, 1e8]), "tokens": np.array([1e9, 1e10]), "clients_per_round": 16.0}
    columns |= {"skew": 0.2, "local_steps": 30.0, "rounds": columns["tokens"] / (16 * 30 * 4096)}
    expected = LAWS["federated-drift"].predict(values, {k: np.broadcast_to(v, 2) for k, v in columns.items()})
    np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_the_corner_of_two_limits_is_found_wherever_the_search_comes_from():
    """A token limit under a larger budget: size grows until the budget binds too, at the corner and not before it."""
    stream = np.random.default_rng(3)
    law = LAWS["coupled"]
    for _ in range(40):
        values = {"E": 0.3, "A": stream.uniform(1, 60), "a": stream.uniform(0.1, 0.5), "B": stream.uniform(1, 5000),
                  "b": stream.uniform(0.2, 0.9), "c": stream.uniform(0.5, 3.0)}  # fmt: skip
        tokens, compute = 10 ** stream.uniform(5, 8), 10 ** stream.uniform(11, 18)
        found = minimise(law, values, budget=Budget(compute=compute, tokens=tokens))
        size = np.geomspace(1.0, 1e20, 40_001)
        loss = law.predict(values, {"params": size, "tokens": np.minimum(tokens, compute / (6 * size))})
        assert float(found.loss) == pytest.approx(loss.min(), rel=2e-3)  # the mesh may miss the corner by that
        assert float(found.loss) <= loss.min() * (1 + 1e-9)


def test_least_compute_is_found_where_the_least_loss_is_not_convex_in_log_compute():
    law = Law.parse("E + A/(params^a + P) + B/tokens^b").with_(fixed={"P": 30.0})
    values = {"E": 1.2, "A": 80.0, "a": 0.33, "B": 300.0, "b": 0.31}
    for loss in (2.032, 2.5, 3.0):
        found = least_compute(law, values, loss=loss, budget=Budget(tokens=1.8e9))
        again = minimise(law, values, budget=Budget(tokens=1.8e9, compute=found.compute))
        assert np.isfinite(found.compute) and float(again.loss) == pytest.approx(loss, rel=1e-6)
