"""Evaluating a pretrained model: what is stored can be resumed, judged by anyone, and is the same again."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hostile import ADD

from scalefed.cli import main
from scalefed.config import RunConfig
from scalefed.data.problem import Problem
from scalefed.errors import ConfigError, DataError
from scalefed.evaluation.prompts import PROMPT_RULES, completion_of, prompt_ids, rules_for, solution_ids, stops_of
from scalefed.evaluation.sampling import before_stop
from scalefed.experiment import evaluate_checkpoint, train
from scalefed.experiment.checkpoints import checkpoint_path, weights_path
from scalefed.models.checkpoint import CheckpointTokenizer, load_tokenizer
from scalefed.runs.log import log_differences, same_log

transformers = pytest.importorskip("transformers")

TWICE = Problem(
    "t/twice", "def twice(x):\n", "    return 2 * x\n", "def check(candidate):\n    assert candidate(4) == 8\n", "twice"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny model that babbles the letters of its tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({letter: i for i, letter in enumerate(["<end>", *letters])}, merges=[]))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=len(letters) + 1, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    rows = [{name: getattr(problem, name) for name in Problem.__slots__} for problem in (ADD, TWICE)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def evaluate(model, problems, out, **options):
    settings = {"samples": 3, "max_new_tokens": 12, "rows": 2, "seed": 4} | options
    return evaluate_checkpoint(str(model), problems=str(problems), out=out, **settings)


def test_a_folder_holds_samples_verdicts_and_a_summary(model, problems, tmp_path) -> None:
    told = []
    counts = evaluate(model, problems, tmp_path / "a", on_problem=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    assert (counts.task_ids, counts.samples, counts.correct) == (("t/add", "t/twice"), 3, (0, 0))
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["gold.json", "results.jsonl", "samples.jsonl", "sampling.json", "settings.json", "summary.json"]
    results, summary = records(tmp_path / "a" / "results.jsonl"), json.loads((tmp_path / "a/summary.json").read_text())
    assert [(row["task_id"], row["sample"]) for row in results] == [(t, i) for t in counts.task_ids for i in range(3)]
    assert len({row["completion"] for row in results}) > 3
    assert summary["correct"] == [0, 0] and sum(summary["verdicts"].values()) == 6
    assert "pass@1" in summary["pass_at_k"] and "pass@10" not in summary["pass_at_k"]
    assert summary["checkpoint"] == model.name and summary["problems"] == "problems.jsonl"
    assert str(tmp_path) not in (tmp_path / "a/summary.json").read_text()


def test_the_same_again_and_resumed_after_a_stop(model, problems, tmp_path) -> None:
    evaluate(model, problems, tmp_path / "whole")
    lines = (tmp_path / "whole" / "samples.jsonl").read_text().splitlines()
    evaluate(model, problems, tmp_path / "part")
    (tmp_path / "part" / "samples.jsonl").write_text("\n".join(lines[:6])[:-5])  # stopped while writing the last line
    told = []
    evaluate(model, problems, tmp_path / "part", on_problem=lambda done, _: told.append(done))
    assert told == [2]
    texts = [[r["completion"] for r in records(tmp_path / f / "results.jsonl")] for f in ("whole", "part")]
    assert texts[0] == texts[1]
    evaluate(model, problems, tmp_path / "part", on_problem=lambda *_: pytest.fail("nothing was missing"))


def test_tokens_and_seconds_are_counted_over_stops(model, problems, tmp_path, capsys) -> None:
    """A letter is a token of this model: what is counted is what is there, whole or stopped in the middle."""
    counts = evaluate(model, problems, tmp_path / "whole")
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert summary["prompt_tokens"] == sum(len(p.prompt.removesuffix("\n")) for p in (ADD, TWICE))
    assert 0 < summary["new_tokens"] <= 2 * 3 * 12 and summary["sampling_cpu_s"] > 0
    rate = summary["new_tokens"] / summary["sampling_cpu_s"]
    assert summary["new_tokens_per_cpu_s"] == counts.settings["new_tokens_per_cpu_s"] == pytest.approx(rate, rel=0.5)
    evaluate(model, problems, tmp_path / "part", count=1)
    one = json.loads((tmp_path / "part/summary.json").read_text())
    evaluate(model, problems, tmp_path / "part")
    both = json.loads((tmp_path / "part/summary.json").read_text())
    for name in ("prompt_tokens", "new_tokens"):
        assert one[name] < both[name] == summary[name]
    assert both["sampling_cpu_s"] > one["sampling_cpu_s"]
    words = ["evaluate", str(model), "--problems", str(problems), "--samples", "3", "--max-new-tokens", "12"]
    words += ["--seed", "4", "--out", str(tmp_path / "part"), "--k", "1"]
    assert main(words) == 0
    assert f"; new tokens {summary['new_tokens']}; CPU seconds of sampling " in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {name: shown[name] for name in both if name.endswith("tokens") and name != "max_new_tokens"} == {
        "prompt_tokens": summary["prompt_tokens"], "new_tokens": summary["new_tokens"]
    }  # fmt: skip
    assert shown["new_tokens_per_cpu_s"] == both["new_tokens_per_cpu_s"]


def test_samples_do_not_depend_on_how_many_problems_there_are(model, problems, tmp_path) -> None:
    evaluate(model, problems, tmp_path / "one", count=1, rows=1)
    evaluate(model, problems, tmp_path / "both")
    assert (
        records(tmp_path / "one/results.jsonl")[0]["completion"]
        == records(tmp_path / "both/results.jsonl")[0]["completion"]
    )


def test_other_settings_need_another_folder(model, problems, tmp_path) -> None:
    evaluate(model, problems, tmp_path / "a")
    with pytest.raises(DataError, match=r"seed=4, now 5; choose another folder"):
        evaluate(model, problems, tmp_path / "a", seed=5)


def test_greedy_is_one_sample(model, problems, tmp_path) -> None:
    counts = evaluate_checkpoint(
        str(model), problems=str(problems), temperature=0, max_new_tokens=8, out=tmp_path / "g"
    )
    assert counts.samples == 1


def test_right_completions_are_counted(model, problems, tmp_path) -> None:
    evaluate(model, problems, tmp_path / "a")
    rows = [(p, i, p.canonical_solution if i < n else "") for p, n in ((ADD, 2), (TWICE, 3)) for i in range(3)]
    random.Random(0).shuffle(rows)  # whatever order they were written in
    lines = [json.dumps({"task_id": p.task_id, "sample": i, "completion": text}) + "\n" for p, i, text in rows]
    (tmp_path / "a" / "samples.jsonl").write_text("".join(lines))
    counts = evaluate(model, problems, tmp_path / "a")
    assert counts.correct == (2, 3)
    assert counts.pass_at_k((1,))[1].estimate == pytest.approx(5 / 6)


def test_the_command_line_takes_a_folder(model, problems, tmp_path, capsys) -> None:
    words = ["evaluate", str(model), "--problems", str(problems), "--max-new-tokens", "8", "--temperature", "0.5"]
    words += ["--samples", "2", "--top-p", "0.9", "--out", str(tmp_path / "a"), "--k", "1,2,5", "--json"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert {"pass@1", "pass@2"} == {name for name in json.loads(shown.out) if name.startswith("pass@")}
    assert "gold_loss" in json.loads(shown.out)
    assert "pass@5 left out: the fewest samples of a problem are 2" in shown.err and "judged at level" in shown.err
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert (settings["temperature"], settings["top_p"], settings["max_new_tokens"]) == (0.5, 0.9, 8)
    assert main([*words, "--seed", "1"]) == 2
    assert "choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["smollm"], "no checkpoint at 'smollm'"),
        (["none.gguf"], "no checkpoint at 'none.gguf'"),
        (["runs/none"], "no run at runs/none"),
        (["runs/none", "--temperature", "1"], "--temperature: only for a pretrained model"),
        (["a.jsonl", "--samples", "3", "--top-p", "1"], "--top-p, --samples: only for a pretrained model"),
        (["smollm2-135m-instruct", "--temperature", "0", "--k", "10"], "--k 10 needs at least as many samples"),
        (["a.jsonl", "--isolation", "none", "--k", "0"], "--k wants whole numbers"),
    ],
)
def test_mistakes_are_answered(words, answer, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *words]) == 2
    assert answer in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_says_what_it_lacks(problems, tmp_path, capsys) -> None:
    samples = tmp_path / "s.jsonl"
    samples.write_text(json.dumps({"task_id": "t/add", "completion": ADD.canonical_solution}) + "\n{}\n")
    assert main(["evaluate", str(samples), "--problems", str(problems), "--out", str(tmp_path / "r.jsonl")]) == 0
    shown = capsys.readouterr()
    assert "pass@1: 1.0000" in shown.out and "pass@10 left out" in shown.err
    assert "line 2 was not judged: needs 'task_id'" in shown.err and "1 of 2 problems have no samples" in shown.err


def test_the_prompts_last_line_break_is_kept_or_taken_and_what_was_chosen_is_recorded(
    model, problems, tmp_path
) -> None:
    texts, golds, rules = {}, {}, {}
    for prompt in ("stripped", "as-given", "auto"):
        folder = tmp_path / prompt
        rules[prompt] = evaluate(model, problems, folder, prompt=prompt).settings["prompt_rule"]
        texts[prompt] = [row["completion"] for row in records(folder / "samples.jsonl")]
        golds[prompt] = json.loads((folder / "gold.json").read_text())
    assert texts["stripped"] != texts["as-given"]
    assert golds["stripped"] != golds["as-given"]
    likelier = min(("stripped", "as-given"), key=lambda rule: sum(golds[rule].values()))
    assert (rules["auto"], texts["auto"]) == (rules[likelier], texts[likelier])
    again = evaluate(model, problems, tmp_path / "as-given", prompt="auto")
    assert again.settings["prompt_rule"] == rules["as-given"]
    with pytest.raises(ConfigError, match="stripped"):
        evaluate(model, problems, tmp_path / "other", prompt="striped")


@pytest.fixture
def chatty(model, tmp_path):
    """The same model with a chat template of its own."""
    folder = shutil.copytree(model, tmp_path / "chatty")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.chat_template = (
        "{% for m in messages %}<{{ m['content'] }}>{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    words.save_pretrained(folder)
    return folder


def test_a_chat_asks_in_the_models_template_and_its_program_stands_behind_the_prompt(chatty, tmp_path) -> None:
    words = load_tokenizer(RunConfig(checkpoint=str(chatty)))
    asked = words.decode(prompt_ids(words, TWICE, "chat"))
    assert asked.startswith("<Please provide") and "```\ndef twice(x):\n```" in asked
    assert ">:Below is" in asked and asked.endswith("```python\n")
    before, solution = solution_ids(words, TWICE, "chat")
    assert words.decode(before) == asked + TWICE.prompt and words.decode(solution) == TWICE.canonical_solution
    program = "def twice(x):\n    return x + x"
    with_prompt = TWICE.prompt + completion_of(program, TWICE, "chat")
    scope: dict = {}
    exec(with_prompt, scope)  # our own text
    assert scope["twice"](4) == 8
    assert before_stop(program + "\n```\nSure, that works.", stops_of("chat")) == program


def test_a_chat_is_tried_where_there_is_a_template(model, chatty, problems, tmp_path, monkeypatch) -> None:
    counts = evaluate(chatty, problems, tmp_path / "chat", prompt="chat", max_new_tokens=4, precision="bfloat16")
    assert counts.settings["prompt_rule"] == PROMPT_RULES["chat"]
    assert counts.settings["stops"] == ["\n```", "\nif __name__", "\ndef main(", "\nprint("]
    assert counts.settings["precision"] == "bfloat16"
    assert rules_for(load_tokenizer(RunConfig(checkpoint=str(chatty)))) == ("stripped", "as-given", "chat")
    assert rules_for(load_tokenizer(RunConfig(checkpoint=str(model)))) == ("stripped", "as-given")
    assert not counts.notes
    monkeypatch.setattr("scalefed.experiment.pretrained.likelier_rule", lambda *_: "as-given")
    (note,) = evaluate(chatty, problems, tmp_path / "auto", prompt="auto", max_new_tokens=4).notes
    assert "--prompt chat" in note
    assert not evaluate(model, problems, tmp_path / "plain", prompt="auto", max_new_tokens=4).notes
    with pytest.raises(ConfigError, match="for models with a chat template"):
        evaluate(model, problems, tmp_path / "none", prompt="chat")


def test_a_special_token_ends_a_completion(chatty) -> None:
    words = transformers.AutoTokenizer.from_pretrained(chatty)
    words.add_special_tokens({"pad_token": "a"})
    assert set(CheckpointTokenizer(words).ends) == {words.eos_token_id, words.convert_tokens_to_ids("a")}


# ---------------------------------------------------------------------- federated adapters
UNTIL_KILLED = """
import json, os, signal, sys
from scalefed.config import RunConfig
from scalefed.experiment import train

def on_round(record):
    if record["round"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

train(RunConfig(**json.loads(sys.argv[1])), runs=sys.argv[2], on_round=on_round, checkpoint_seconds=0)
"""


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold"])
def test_adapters_of_a_killed_run_end_as_if_it_had_not_been(model, problems, tmp_path, monkeypatch, algorithm) -> None:
    """SIGKILL after the third of six rounds, before it is kept: the same losses, weights and programs, four rounds."""
    settings = {
        "checkpoint": str(model), "lora_rank": 2, "clients": 4, "clients_per_round": 2, "local_steps": 3,
        "batch_size": 2, "sequence_length": 32, "tokens": 6 * 2 * 3 * 2 * 32, "validation_tokens": 1024,
        "problems": str(problems), "samples": 2, "algorithm": algorithm, "server_momentum": 0.5,
    }  # fmt: skip
    settings = {name: value for name, value in settings.items() if algorithm == "fedavg" or name != "server_momentum"}
    config, cache = RunConfig(**settings), tmp_path / "cache"
    monkeypatch.setenv("SCALEFED_CACHE", str(cache))
    command = [sys.executable, "-c", UNTIL_KILLED, json.dumps(settings), str(tmp_path / "killed")]
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoint_path(config).is_file() and not (tmp_path / "killed" / config.run_id / "run.json").exists()
    rounds = []
    again = train(config, runs=tmp_path / "killed", on_round=lambda record: rounds.append(record["round"]))
    weights = weights_path(config).read_bytes()
    assert rounds == [3, 4, 5, 6] and not checkpoint_path(config).exists()
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "another"))
    whole = train(config, runs=tmp_path / "whole")
    assert weights_path(config).read_bytes() == weights
    assert again.loss == whole.loss and again.gold_loss == whole.gold_loss
    assert same_log(tmp_path / "whole", tmp_path / "killed"), log_differences(tmp_path / "whole", tmp_path / "killed")
