"""One config, read and written everywhere the same, that refuses nonsense in words."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.config import RunConfig, cache_directory, parse_overrides
from scalefed.errors import ConfigError
from scalefed.sweeps import load_sweep, sweep

settings.register_profile("quick", deadline=None, max_examples=40)
settings.load_profile("quick")


def test_toml_round_trip_keeps_every_setting(tmp_path):
    config = RunConfig(params=55_000, concentration=0.1, learning_rate=0.003, algorithm="diloco", seed=3)
    config.save(tmp_path / "run.toml")
    assert RunConfig.load(tmp_path / "run.toml") == config
    assert RunConfig.load(tmp_path / "run.toml", "seed=4") == config.replace(seed=4)


@given(
    st.integers(1_000, 10**7), st.integers(1, 64), st.floats(0.01, 100.0), st.sampled_from(["fedavg", "scaffold"]),
    st.none() | st.floats(1e-5, 1.0),
)  # fmt: skip
def test_run_id_is_a_function_of_the_content(params, clients, concentration, algorithm, rate):
    config = RunConfig(
        params=params, clients=clients, clients_per_round=1, concentration=concentration, algorithm=algorithm,
        learning_rate=rate,
    )  # fmt: skip
    again = RunConfig.from_dict(config.to_dict())
    assert again == config and again.run_id == config.run_id
    assert config.replace(seed=config.seed + 1).run_id != config.run_id


def test_the_id_of_a_known_config_never_changes():
    assert RunConfig().run_id == "fedavg-24k-2M-4of16-iid-s0-" + RunConfig().run_id[-10:]
    config = RunConfig(params=14_000, tokens=500_000, clients_per_round=1, learning_rate=0.015)
    assert config.run_id == "fedavg-14k-500k-1of16-iid-s0-ec963b97e2"
    # the defaults of the first version; that they have changed since changes no id
    first = config.replace(inner_state="reset", final_learning_rate=0.1, learning_rate_rule="anew")
    assert first.run_id == "fedavg-14k-500k-1of16-iid-s0-319e8f6b65"


def test_participation_stands_for_clients_per_round():
    assert RunConfig.from_dict({"clients": 40, "participation": 0.1}).clients_per_round == 4
    assert parse_overrides(["participation=0.5"]) == {"participation": 0.5}
    assert [c.clients_per_round for c in sweep(RunConfig(), participation=[0.25, 1])] == [4, 16]


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({"clinets": 4}, ["unknown setting 'clinets'", "did you mean 'clients'"]),
        ({"participation": 2.0}, ["(0, 1]", "2"]),
        ({"clients_per_round": 17}, ["clients_per_round=17", "clients=16", "lower"]),
        ({"tokens": -1}, ["tokens must be positive", "-1"]),
        ({"params": 1.5}, ["params must be a whole number", "1.5"]),
        ({"params": True}, ["params must be a whole number", "True"]),
        ({"concentration": 0}, ["concentration must be positive"]),
        ({"concentration": math.nan}, ["concentration must be a number"]),
        ({"algorithm": "fedavgg"}, ["unknown algorithm 'fedavgg'", "did you mean 'fedavg'"]),
        ({"dropout": 1.5}, ["dropout must be between 0 and 1", "1.5"]),
        ({"algorithm": "central"}, ["clients=1"]),
        ({"learning_rate": "fast"}, ["learning_rate must be a number", "'fast'"]),
    ],
)
def test_bad_settings_say_what_is_allowed(given_settings, words):
    with pytest.raises(ConfigError) as error:
        RunConfig.from_dict(given_settings)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_bad_files_and_words_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="no config file"):
        RunConfig.load(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("params = = 3")
    with pytest.raises(ConfigError, match="not valid TOML"):
        RunConfig.load(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match="expected key=value, got 'clients'"):
        parse_overrides(["clients"])


def test_rounds_and_tokens_agree():
    config = RunConfig(tokens=2_000_000, clients_per_round=4, local_steps=25, batch_size=4, sequence_length=128)
    assert config.tokens_per_round == 4 * 25 * 4 * 128
    assert abs(config.rounds * config.tokens_per_round - config.tokens) <= config.tokens_per_round / 2


def test_a_sweep_is_the_product_of_its_axes_without_repeats():
    configs = sweep(RunConfig(), params=[3_500, 14_000], seed=[0, 1, 1])
    assert [(c.params, c.seed) for c in configs] == [(3_500, 0), (3_500, 1), (14_000, 0), (14_000, 1)]
    with pytest.raises(ConfigError, match="must be a list"):
        sweep(RunConfig(), algorithm="fedavg")
    with pytest.raises(ConfigError, match="has no values"):
        sweep(RunConfig(), params=[])


def test_a_sweep_file_holds_grids_over_a_base(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        "[base]\nclients = 8\n[[grid]]\nparams = [3_500, 14_000]\nclients_per_round = 1\n"
        "[[grid]]\nparams = [14_000]\nclients_per_round = [1, 4]\n"
    )
    configs = load_sweep(path)
    assert [(c.params, c.clients, c.clients_per_round) for c in configs] == [
        (3_500, 8, 1),
        (14_000, 8, 1),
        (14_000, 8, 4),
    ]
    path.write_text("[bases]\nclients = 8\n")
    with pytest.raises(ConfigError, match="unknown table 'bases'"):
        load_sweep(path)


def test_the_cache_directory_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("SCALEFED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "scalefed"


@pytest.mark.parametrize("rate", [{}, {"learning_rate": 0.02}, {"inner_optimizer": "sgd"}])
def test_the_scale_multiplies_the_rate_given_or_by_rule(rate: dict[str, Any]) -> None:
    whole = RunConfig(**rate).client_learning_rate
    assert RunConfig(learning_rate_scale=0.5, **rate).client_learning_rate == 0.5 * whole
    assert RunConfig(**rate).replace(learning_rate_scale=1.0).run_id == RunConfig(**rate).run_id


def test_the_rate_by_rule() -> None:
    large = RunConfig(params=96_000, tokens=8_000_000, clients_per_round=16)
    assert large.client_learning_rate == pytest.approx(0.013 / 2 * 2)
    assert large.replace(clients_per_round=1, tokens=1_000_000).client_learning_rate == pytest.approx(0.013 / 2)
    assert large.replace(learning_rate_rule="anew").client_learning_rate == pytest.approx(0.012 / 2 / 2)
