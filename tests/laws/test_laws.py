"""The law language: what it reads, what it refuses and where, and what the named laws say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_truths import NAMES, RUN, TRUTHS

from scalefed.errors import ConfigError, DataError
from scalefed.laws import LAWS, Law, as_law


def by_hand(name: str, p: dict[str, float], x: dict[str, float]) -> float:
    """The named laws written out once more, in plain Python."""
    n, d, m, s = x["params"], x["tokens"], x["clients_per_round"], x["skew"]
    local, rounds, unique = x["local_steps"], x["rounds"], x["unique_tokens"]
    if name == "farseer":
        falls = np.exp(p["u"] * n ** p["a"] + p["v"])
        return p["F"] * np.exp(p["s"] * n ** p["q"]) + p["B"] * np.exp(p["t"] * n ** p["b"]) * d**-falls
    if name == "sigmoid-accuracy":
        return p["G"] + p["U"] / (1 + np.exp(p["k"] * x["task_loss"] - p["c"]))
    e, a = p.get("E", 0.0), p["A"] / n ** p["a"]
    if name == "precision":
        return e + p["A"] / (n * -np.expm1(-x["bits"] / p["g"])) ** p["a"] + p["B"] / d ** p["b"]
    if name == "epoch-decay":
        return e + a + p["B"] / (unique * -np.expm1(-x["epochs"] / p["R"])) ** p["b"]
    if name == "transfer":
        return (a + p["B"] / (d + p["k"] * d ** p["p"] * n ** p["q"])) ** p["c"]
    if name == "vocabulary":
        return a + p["V"] / x["vocab_params"] ** p["v"] + p["B"] / d ** p["b"] - e
    if name == "chinchilla":
        return e + a + p["B"] / d ** p["b"]
    if name == "kaplan":
        return (a + p["B"] / d) ** p["c"]
    if name == "coupled":
        return e + (a + p["B"] / d ** p["b"]) ** p["c"]
    if name == "data-constrained":
        repeats = d / unique - 1
        return e + a + p["B"] / (unique * (1 + p["R"] * (1 - np.exp(-repeats / p["R"])))) ** p["b"]
    if name in ("diloco", "diloco-offset"):
        return e + a * m ** p["g"]
    if name == "average-compute":
        return e + a + p["B"] / (d / m) ** p["b"]
    if name == "federated":
        return e + a + p["B"] * np.exp(p["s"] * s) / (d / m ** p["g"]) ** p["b"]
    if name == "federated-skew":
        return e + a + p["B"] * np.exp(p["s"] * s) / (d / m ** (p["g"] + p["h"] * s)) ** p["b"]
    if name == "federated-steps":
        return e + a + p["B"] / d ** p["b"] + p["G"] * np.exp(p["s"] * s) / (d / m) ** p["c"]
    if name.startswith("federated-excess"):
        rise = np.exp(p["s"] * s)
        if name == "federated-excess-steps":
            return e + rise * (a + p["B"] / d ** p["b"] + p["G"] / (d / m) ** p["c"])
        return e + rise * (a + p["B"] / (d / m ** (p["g"] + p.get("h", 0.0) * s)) ** p["b"])
    if name == "federated-coupled":
        rise = np.exp(p["s"] * s) / m ** (p["r"] * s)
        return e + rise * (a + p["B"] / (d / m ** p["g"]) ** p["b"]) ** p["c"]
    if name in ("federated-data-constrained", "federated-cross-device", "federated-population"):
        q = s**2
        size = p["A"] * np.exp(p["s"] * q) * n ** (p["h"] * q - p["a"]) / m ** (p["r"] * q)
        size *= x["clients"] ** (p.get("u", 0.0) * q)
        late = p["G"] * np.exp(p["t"] * q) * x["clients"] ** p["k"] * m ** (p["f"] + p["l"] * np.log(local))
        if name == "federated-population":
            return e + (size + p["B"] / d ** p["b"] + late / d ** p["d"]) ** p["c"]
        own, passes = unique / x["clients"], d / unique
        fresh = unique * (1 - p["R"] * np.expm1(-(passes - 1) / p["R"]))
        over = p["O"] * (n / 1e4) ** p["w"] * passes ** p["x"] * local ** p["y"] / (m ** p["z"] * (own / 1e4) ** p["v"])
        return e + (size + p["B"] / fresh ** p["b"] + late / d ** p["d"] + over) ** p["c"]
    if name.startswith("federated-capacity"):
        size = p["A"] * np.exp(p["s"] * s) * n ** (p["h"] * s - p["a"]) / m ** (p["r"] * s)
        if name == "federated-capacity-steps":
            steps = p["G"] * np.exp(p["t"] * s) / (d / m) ** p["d"]
            return e + (size + p["B"] / d ** p["b"] + steps) ** p["c"]
        return e + (size + p["B"] / (d / m ** p["g"]) ** p["b"]) ** p["c"]
    drift = p["F"] * np.exp(p["s"] * s) * local ** p["h"] / rounds ** p["r"]
    return e + a + p["B"] / (d / m ** p["g"]) ** p["b"] + drift


def test_the_named_laws_are_all_there() -> None:
    assert sorted(LAWS) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_named_law_predicts_its_formula_written_by_hand(name: str) -> None:
    assert float(LAWS[name].predict(TRUTHS[name], RUN)) == pytest.approx(by_hand(name, TRUTHS[name], RUN), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_named_law_explains_every_parameter(name: str) -> None:
    law = LAWS[name]
    assert set(law.meanings) == set(law.units) == set(law.parameters) == set(TRUTHS[name])
    assert all(law.meanings.values()) and all(law.units.values()) and law.source


@pytest.mark.parametrize("name", NAMES)
def test_predicted_loss_falls_with_size_and_data(name: str) -> None:
    law, truth = LAWS[name], TRUTHS[name]
    grid = {k: np.full(3, v) for k, v in RUN.items()}
    if "params" in law.columns:
        bigger = law.predict(truth, {**grid, "params": np.array([1e7, 1e8, 1e9])})
        assert (np.diff(bigger) < 0).all()
    if "tokens" in law.columns:
        longer = law.predict(truth, {**grid, "tokens": np.array([1e9, 1e10, 1e11]), "unique_tokens": np.full(3, 1e9)})
        assert (np.diff(longer) < 0).all()


def test_replicates_broadcast_against_runs() -> None:
    law = LAWS["chinchilla"]
    values = {p: np.array([v, 1.1 * v]) for p, v in TRUTHS["chinchilla"].items()}
    columns = {"params": np.array([1e7, 1e8, 1e9]), "tokens": 1e10}
    out = law.predict(values, columns)
    assert out.shape == (2, 3)
    one = law.predict({p: 1.1 * v for p, v in TRUTHS["chinchilla"].items()}, {"params": 1e8, "tokens": 1e10})
    assert out[1, 1] == pytest.approx(float(one), rel=1e-14)


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("E + A/param^a", 7, "did you mean the column 'params'"),
        ("-E - A/params^a", 16, "all of its terms are subtracted"),
        ("E + A/params^", 14, "found the end"),
        ("E + A/(params", 14, "expected ')'"),
        ("E + A/skew^a", 7, "exp(s*skew)"),
        ("E + 2N", 6, "write * between"),
        ("E + foo(params)", 5, "allowed: exp, log, repeats"),
        ("E + A/params^a + a", 14, "two names"),
        ("E # 3", 3, "unexpected character"),
        ("A*(params)^(a b)", 15, "expected ')'"),
        ("E + A/params^(1/0)", 17, "division by 0"),
        ("E + exp(skew^a)", 14, "to 1, 2 ... 6 only"),
        ("E + 0*params", 5, "must be positive"),
        ("E + repeats(tokens, A, R)", 21, "expected a column"),
        ("E + A/params^a)", 15, "expected '+'"),
        ("E + __import__('os')", 16, "unexpected character"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_position(text: str, position: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Law.parse(text)
    assert f"position {position}:" in str(caught.value)
    assert words in str(caught.value)
    lines = str(caught.value).splitlines()
    assert lines[2].index("^") - 2 == position - 1


@pytest.mark.parametrize("text", ["", "   ", None, 3])
def test_a_law_must_be_text(text: object) -> None:
    with pytest.raises(ConfigError, match="a law is a formula"):
        Law.parse(text)  # type: ignore[arg-type]


def test_equal_formulas_written_differently_agree() -> None:
    values = {"E": 1.0, "B": 30.0, "b": 0.3, "g": 0.4}
    columns = {"tokens": 1e6, "clients_per_round": 8.0}
    forms = [
        "E + B/(tokens/clients_per_round^g)^b",
        "E + B * (clients_per_round**g / tokens) ^ b",
        "B*tokens^-b*clients_per_round^(g*b) + E",
        "(E + B*clients_per_round^(b*g)/tokens^b)^1",
        "E + B*exp(-b*log(tokens) + g*b*log(clients_per_round))",
    ]
    results = [float(Law.parse(form).predict(values, columns)) for form in forms]
    assert results == pytest.approx([results[0]] * len(forms), rel=1e-13)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 9.0), st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=4),
    st.floats(1.0, 1e6),
    st.floats(1.0, 1e6),
)
def test_any_sum_of_numeric_power_laws_is_read_rightly(
    terms: list[tuple[float, float, float]], params: float, tokens: float
) -> None:
    text = " + ".join(f"{c!r}*params^({a!r})*tokens^({b!r})" for c, a, b in terms)
    expected = sum(c * params**a * tokens**b for c, a, b in terms)
    got = Law.parse(text.replace("e-", "E-")).predict({}, {"params": params, "tokens": tokens})
    assert float(got) == pytest.approx(expected, rel=1e-9)


def test_fixing_a_skew_term_at_zero_drops_the_column() -> None:
    law = LAWS["federated"]
    assert "skew" in law.columns
    assert "skew" not in law.with_(fixed={"s": 0.0}).columns
    assert set(law.with_(fixed={"s": 0.0}).free) == {"E", "A", "a", "B", "b", "g"}


def test_average_compute_and_pooled_laws_are_the_ends_of_the_discount() -> None:
    law, truth = LAWS["federated"].with_(fixed={"s": 0.0}), dict(TRUTHS["chinchilla"])
    pooled = float(law.predict({**truth, "g": 0.0}, RUN))
    average = float(law.predict({**truth, "g": 1.0}, RUN))
    assert pooled == pytest.approx(float(LAWS["chinchilla"].predict(truth, RUN)), rel=1e-13)
    assert average == pytest.approx(float(LAWS["average-compute"].predict(truth, RUN)), rel=1e-13)


def test_shared_parameters_become_one() -> None:
    law = LAWS["chinchilla"].with_(ties={"b": "a"})
    assert law.parameters == ("E", "A", "a", "B")
    expected = 1.0 + 8.0 / 100**0.5 + 4.0 / 10000**0.5
    got = law.predict({"E": 1.0, "A": 8.0, "a": 0.5, "B": 4.0}, {"params": 100.0, "tokens": 1e4})
    assert float(got) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"fixed": {"gg": 1.0}}, "did you mean 'g'"),
        ({"fixed": {"A": -1.0}}, "positive"),
        ({"fixed": {"a": float("nan")}}, "a number"),
        ({"bounds": {"a": (1.0, 0.5)}}, "low < high"),
        ({"ties": {"A": "a"}}, "cannot be shared"),
    ],
)
def test_wrong_settings_are_named(keywords: dict[str, dict[str, object]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LAWS["federated"].with_(**keywords)  # type: ignore[arg-type]


def test_missing_columns_and_values_are_named() -> None:
    with pytest.raises(DataError, match="needs the column tokens"):
        LAWS["chinchilla"].predict(TRUTHS["chinchilla"], {"params": 1.0})
    with pytest.raises(DataError, match="a value for b"):
        LAWS["chinchilla"].predict({"E": 1, "A": 1, "a": 1, "B": 1}, {"params": 1.0, "tokens": 1.0})


def test_as_law_takes_names_formulas_and_laws() -> None:
    assert as_law("chinchilla") is LAWS["chinchilla"]
    assert as_law(LAWS["kaplan"]) is LAWS["kaplan"]
    assert as_law("E + A/params^a").free == ("E", "A", "a")
    with pytest.raises(ConfigError, match="did you mean 'chinchilla'"):
        as_law("chinchila")
    with pytest.raises(ConfigError, match="names:"):
        as_law(3)  # type: ignore[arg-type]


def test_extra_columns_can_be_named() -> None:
    law = Law.parse("E + A/width^a", columns=("width",))
    assert law.columns == ("width",)
    assert float(law.predict({"E": 1.0, "A": 2.0, "a": 1.0}, {"width": 2.0})) == pytest.approx(2.0)


def test_monomials_add_up_to_the_law() -> None:
    for name in ("federated", "federated-skew", "federated-steps", "federated-drift", "diloco-offset"):
        law, truth = LAWS[name], TRUTHS[name]
        given = {k: RUN[k] for k in ("clients_per_round", "skew", "local_steps", "rounds")}
        total = sum(
            np.exp(m.log_coefficient) * np.prod([RUN[c] ** float(e) for c, e in m.exponents.items()])
            for m in law.monomials(truth, given)
        )
        assert float(total) == pytest.approx(float(law.predict(truth, RUN)), rel=1e-12)


def test_monomials_keep_groups_and_repeats_apart() -> None:
    floor, group = LAWS["coupled"].monomials(TRUTHS["coupled"])
    assert float(np.exp(floor.log_coefficient)) == pytest.approx(1.7)
    ((power, terms),) = group.groups
    assert float(power) == pytest.approx(0.77)
    assert [sorted(t.exponents) for t in terms] == [["params"], ["tokens"]]
    data = LAWS["data-constrained"].monomials(TRUTHS["data-constrained"], {"unique_tokens": 1e9})[-1]
    exponent, decay, tokens, unique = data.repeated[0]
    assert (float(exponent), float(decay), tokens, unique) == (-0.37, 12.0, "tokens", "unique_tokens")
    folded = LAWS["data-constrained"].monomials(TRUTHS["data-constrained"], RUN)[-1]
    assert folded.repeated == () and folded.exponents == {}


def test_a_free_column_inside_an_exponent_is_refused() -> None:
    with pytest.raises(ConfigError, match="give its value"):
        LAWS["federated"].monomials(TRUTHS["federated"], {"clients_per_round": 4.0})


def test_printing_shows_the_formula() -> None:
    assert str(LAWS["chinchilla"]) == "chinchilla: loss = E + A/params^a + B/tokens^b"
