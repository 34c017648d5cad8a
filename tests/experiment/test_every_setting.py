"""Every setting changes the run where it is said to matter, or is refused: none is silently without effect."""

import json

import pytest

pytest.importorskip("torch")

from scalefed.config import RunConfig
from scalefed.data import micro
from scalefed.errors import ConfigError, DataError
from scalefed.experiment import train
from scalefed.experiment.evaluation import write_programs
from scalefed.federated.preparation import prepare, prepare_writer

BASE = RunConfig(
    params=1_400, tokens=1_024, clients=4, clients_per_round=2, local_steps=2, batch_size=2, sequence_length=32,
    concentration=0.5, unique_tokens=16_384, validation_tokens=1_024, problems="none", kernels="eager",
    generator_params=1_000, generator_steps=3, synthetic_tokens=256,
)  # fmt: skip
SYNTHETIC, ADAPTIVE = {"algorithm": "synthetic-sharing", "synthetic_share": 0.5}, {"algorithm": "fedadam"}
CHANGES: dict[str, tuple[object, dict[str, object]]] = {
    "params": (3_500, {}), "tokens": (2_048, {}), "clients": (5, {}), "clients_per_round": (3, {}),
    "concentration": (0.1, {}), "local_steps": (3, {}), "algorithm": ("fedavgm", {}),
    "variant": ("flower", {"algorithm": "fedyogi"}), "batch_size": (3, {}), "sequence_length": (16, {}),
    "inner_optimizer": ("sgd", {}), "inner_state": ("reset", {}), "learning_rate": (0.001, {}),
    "learning_rate_rule": ("anew", {}), "learning_rate_scale": (0.5, {}), "final_learning_rate": (0.5, {}),
    "warmup": (0.9, {}), "weight_decay": (0.5, {}), "beta1": (0.5, {}), "beta2": (0.5, {}),
    "adam_epsilon": (0.01, {}), "clip_norm": (0.01, {}), "inner_momentum": (0.5, {"inner_optimizer": "sgd"}),
    "server_learning_rate": (0.5, {}), "server_momentum": (0.5, {}), "server_beta1": (0.5, ADAPTIVE),
    "server_beta2": (0.5, ADAPTIVE), "server_epsilon": (0.1, ADAPTIVE),
    "weighting": ("uniform", {"stragglers": 0.5, "clients_per_round": 4}), "proximal": (1.0, {"algorithm": "fedprox"}),
    "dynamic_regularization": (1.0, {"algorithm": "feddyn"}),
    "centralised_share": (0.2, {"algorithm": "gc-fed", "centralised_target": ""}),
    "centralised_target": ("norm", {"algorithm": "gc-fed"}), "centralised_vectors": ("keep", {"algorithm": "gc-local"}),
    "synthetic_share": (0.1, SYNTHETIC), "synthetic_tokens": (512, SYNTHETIC), "synthetic_epsilon": (1.0, SYNTHETIC),
    "synthetic_kept": (0.5, SYNTHETIC),
    "synthetic_delta": (0.1, SYNTHETIC | {"synthetic_epsilon": 1.0}), "generator_params": (3_500, SYNTHETIC),
    "generator_steps": (6, SYNTHETIC), "data": ("python", {}),
    "data_root": ("python numpy", {"data": "python"}), "vocab_size": (640, {}), "partition": ("quantity", {}),
    "families_per_client": (5, {"partition": "pathological"}), "unique_tokens": (32_768, {}),
    "sampling": ("cyclic", {}), "dropout": (0.5, {}), "stragglers": (0.5, {}),
    "straggler_share": (1.0, {"stragglers": 0.9}),
    "checkpoint": ("nowhere", {}), "lora_rank": (4, {}), "validation_tokens": (2_048, {}), "evaluate_every": (2, {}),
    "precision": ("bfloat16", {}), "seed": (1, {}), "data_seed": (1, {}),
}  # fmt: skip
REFUSED = {"checkpoint", "lora_rank"}
OF_ANSWERS = {"problems": "nothing", "problem_count": 3, "samples": 3, "temperature": 0.2, "top_p": 0.5}
HOW_COMPUTED = {"client_batching", "kernels", "device"}  # differ in rounding at most


def outcome(config: RunConfig, folder: object) -> str:
    """Results and rounds of a run as text, without its settings and times; or why it was refused."""
    try:
        run = train(config, runs=folder)
    except (ConfigError, DataError) as error:
        return f"refused: {error}"
    stored = json.loads((folder / config.run_id / "run.json").read_text())  # type: ignore[operator]
    rounds = (folder / config.run_id / "rounds.jsonl").read_text().splitlines()  # type: ignore[operator]
    kept = [{k: v for k, v in json.loads(line).items() if not k.endswith("_s")} for line in rounds]
    assert run.run_id == config.run_id
    return json.dumps([stored["result"], kept], sort_keys=True)


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_the_run_or_is_refused(name, tmp_path):
    value, context = CHANGES[name]
    if name in ("synthetic_epsilon", "synthetic_delta"):
        pytest.importorskip("opacus")
    before = BASE.replace(**context)
    assert getattr(before, name) != value
    try:
        after = before.replace(**{name: value})
    except ConfigError:
        assert name in REFUSED
        return
    found = outcome(after, tmp_path / "after")
    assert found.startswith("refused") == (name in REFUSED), found[:300]
    assert found != outcome(before, tmp_path / "before")


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_every_setting_of_the_answers_changes_them_or_is_refused(name, tmp_path):
    before = BASE.replace(problems="micro", problem_count=2, samples=2)
    after = before.replace(**{name: OF_ANSWERS[name]})

    def answers(config):
        writer = prepare_writer(config)
        problems = micro.problems(config.problem_count, seed=config.data_seed)
        weights = writer.model.initial(0) * 3
        return write_programs(writer, weights, problems, config, samples=config.samples, seed=0, max_new_tokens=8)

    if name == "problems":
        with pytest.raises((ConfigError, DataError), match="nothing"):
            train(after, runs=tmp_path)
    else:
        assert answers(after) != answers(before)


def test_no_setting_is_left_out():
    assert {*CHANGES, *OF_ANSWERS, *HOW_COMPUTED} == set(RunConfig.fields())


def test_a_thousand_clients_have_text_by_default():
    config = RunConfig(params=1_400, tokens=30_000, clients=1_000, concentration=0.1, kernels="eager")
    task = prepare(config)
    assert task.unique_tokens > 1_000 * 129
    assert all(task.data.batches(client, visit=0, steps=1).shape == (1, 4, 129) for client in range(0, 1_000, 50))
    with pytest.raises(DataError, match="less than one block"):
        prepare(config.replace(unique_tokens=2**17))


def test_a_temperature_of_zero_writes_the_likeliest_program(tmp_path):
    writer = prepare_writer(BASE)
    problems, weights = micro.problems(2, seed=0), writer.model.initial(0) * 3
    config = BASE.replace(temperature=0)
    texts = [text for seed in (0, 1) for _, text in
             write_programs(writer, weights, problems, config, samples=2, seed=seed, max_new_tokens=8)]  # fmt: skip
    assert texts[:2] == [texts[0]] * 2
    assert texts[:4] == texts[4:]
    with pytest.raises(ConfigError, match="temperature must be zero or positive"):
        BASE.replace(temperature=-0.1)
