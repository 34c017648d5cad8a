"""What a run leaves behind: exact compute, losses by source and client, gold likelihood, and a log of bounded size."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import scalefed as sf
from scalefed.architecture import shape_for
from scalefed.config import RunConfig
from scalefed.data import micro
from scalefed.evaluation.scoring import held_out_loss, mixture_losses, solution_losses, torch_losses
from scalefed.experiment.evaluation import gold_losses
from scalefed.experiment.training import KEPT_ROUNDS, is_kept, peak_memory_mb
from scalefed.federated.preparation import prepare, prepare_writer
from scalefed.models import Decoder
from scalefed.runs.derived import compute_exact, flops_per_token
from scalefed.runs.log import read_run, run_folders
from scalefed.units import train_flops

RUNS = Path(__file__).parents[2] / "runs"
QUICK = {"params": 3_500, "tokens": 6_000, "clients": 4, "clients_per_round": 2, "local_steps": 3, "batch_size": 2,
         "sequence_length": 64, "problem_count": 6, "samples": 2, "validation_tokens": 4_096,
         "unique_tokens": 30_000}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return sf.train(RunConfig(**QUICK, concentration=0.1, evaluate_every=5), runs=tmp_path_factory.mktemp("runs"))


# ---------------------------------------------------------------------- compute
@pytest.mark.parametrize("params", [3_500, 7_000, 24_000, 152_000])
@pytest.mark.parametrize("length", [16, 128])
def test_exact_flops_are_what_torch_counts(params, length):
    shape = shape_for(params, 512)
    model, tokens = Decoder(shape), torch.randint(512, (2, length + 1))
    weights = model.initial(0).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(weights, tokens).backward()
    exact = train_flops(shape.params, 2 * length, model=shape.at(length))
    # the plain kernel that torch counts computes all pairs of tokens, a causal one those that are seen
    all_pairs = 12 * shape.layers * shape.heads * 24 * (length - (length + 1) / 2) * 2 * length
    assert counter.get_total_flops() == pytest.approx(exact + all_pairs, rel=1e-12)


def test_exact_flops_with_adapters_are_what_torch_counts():
    transformers, _ = pytest.importorskip("transformers"), pytest.importorskip("peft")
    from scalefed.federated.preparation import shape_of
    from scalefed.models import Checkpoint

    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    model = Checkpoint(transformers.LlamaForCausalLM(config), lora_rank=4)
    length = 16
    weights = model.initial(0).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        model.loss(weights, torch.randint(300, (2, length + 1))).backward()
    row = {"params": model.params, "params_trained": model.params_trained, "tokens": 2 * length, "checkpoint": "x",
           "sequence_length": length, "vocab_size": 512, **shape_of(model)}  # fmt: skip
    all_pairs = 12 * 3 * 32 * (length - (length + 1) / 2) * 2 * length
    # the adapters of the first layer need no gradient of their input: torch spares what the count includes
    assert counter.get_total_flops() == pytest.approx(compute_exact(row) + all_pairs, rel=0.05)


def test_synthetic_text_and_its_privacy_are_in_the_bill():
    plain = RunConfig(algorithm="fedavg").to_dict() | {"params": 23_200, "tokens": 10**6, "model_width": 32,
                                                       "model_layers": 2, "model_heads": 1}  # fmt: skip
    base = compute_exact(plain)
    sharing = plain | {"algorithm": "synthetic-sharing", "unique_tokens": 2**21}
    generator = shape_for(6_000, 512, between=False)
    per_token = train_flops(generator.params, 1, model=generator.at(128))
    trained = 16 * 250 * 4 * 128 * per_token
    written = 16 * math.ceil(20_000 / 128) * 128 * per_token / 3
    assert compute_exact(sharing) == pytest.approx(base + trained + written, rel=1e-12)
    private = compute_exact(sharing | {"synthetic_epsilon": 8.0})
    assert private == pytest.approx(base + 8 * trained + written, rel=1e-12)
    assert compute_exact(sharing | {"synthetic_share": 0.0}) == base
    choosing = compute_exact(
        sharing | {"synthetic_kept": 0.5}
    )  # twice the tenth that is shared, scored and not trained on
    assert choosing == pytest.approx(base * (1 + 0.2 / 3) + trained + written, rel=1e-12)
    assert compute_exact({"params": 1, "tokens": 1}) is None  # somebody else's run


def test_stored_runs_get_their_exact_compute_and_read_as_before():
    runs = sf.load_runs(RUNS / "grid")
    ratio = (runs["compute_exact"] / runs["compute"]).groupby(runs["params"]).agg(["min", "max"])
    assert ratio.loc[3_504].round(2).tolist() == [4.21, 4.21] and ratio.loc[332_448].round(2).tolist() == [1.26, 1.26]
    for folder in list(run_folders(RUNS / "grid"))[:5]:
        stored = read_run(folder)["result"]
        row = runs[runs["run_id"] == folder.name].iloc[0]
        assert row["loss"] == stored["loss"] and row["skew_uncorrected"] == stored["skew"]
        assert row["skew"] == pytest.approx(stored["skew"], abs=0.003)


def test_every_stored_id_is_still_that_of_its_settings():
    folders = list(run_folders(RUNS))
    assert len(folders) >= 810
    for folder in folders:
        run = read_run(folder)
        assert RunConfig.from_dict(run["config"]).run_id == run["run_id"] == folder.name


def test_a_table_gets_what_follows_from_it_and_keeps_what_it_has():
    row = {"params": 3_504, "tokens": 1e6, "loss": 1.0, "local_steps": 25, "batch_size": 4, "sequence_length": 128,
           "clients": 16, "unique_tokens": 32_000, "vocab_size": 512, "model_width": 16, "model_layers": 1,
           "model_heads": 1}  # fmt: skip
    table = sf.load_runs(pd.DataFrame([row, row | {"unique_tokens": math.nan}]))
    assert table["compute_exact"].tolist() == [88_464e6] * 2
    assert table["local_epochs"][0] == 6.4 and math.isnan(table["local_epochs"][1])
    own = sf.load_runs(pd.DataFrame([row | {"compute_exact": 5.0}]))
    assert own["compute_exact"].tolist() == [5.0]
    assert "compute_exact" not in sf.load_runs(pd.DataFrame([{"params": 1e6, "tokens": 1e8, "loss": 3.0}]))


# ---------------------------------------------------------------------- losses
def test_the_row_holds_what_the_study_asks_of_it(run):
    row = run.row
    assert row["local_epochs"] == pytest.approx(3 * 2 * 64 / (row["unique_tokens"] / 4))
    assert row["participation_realised"] == row["participants_mean"] / 4 == 0.5
    assert row["compute_exact"] > 2 * row["compute"]
    assert row["loss_gap"] == row["loss"] - row["loss_own_text"]
    assert len(row["loss_by_source"]) == len(micro.FAMILIES)
    assert row["loss_client_mean"] <= row["loss_client_p90"]
    counts = run.counts()
    assert counts["gold_loss"].mean() == pytest.approx(row["gold_loss"]) and len(counts) == 6
    history = run.history().set_index("round")
    assert history["gold_loss"].dropna().index.tolist() == [5] and math.isfinite(history["loss_own_text"][5])


def test_sources_make_up_the_loss_and_mixtures_divide_it(run):
    task = prepare(run.config)
    weights = task.model.initial(0)
    found = held_out_loss(
        task.model, weights, task.validation, bytes_per_token=3.0, batch_tokens=512, sources=task.sources
    )
    sizes = np.bincount(np.concatenate(task.sources), minlength=len(found.by_source))
    assert found.tokens == sizes.sum()
    assert np.average(found.by_source, weights=sizes) == pytest.approx(found.loss, rel=1e-6)
    alone = [row for row, labels in zip(task.validation, task.sources, strict=True) if set(labels) == {0}]
    assert alone and mixture_losses(found.by_source, np.eye(16)[:1])[0] == found.by_source[0]
    plain = held_out_loss(task.model, weights, task.validation, bytes_per_token=3.0, batch_tokens=512)
    assert plain.loss == found.loss and plain.by_source == ()
    assert task.mixtures.sum() == task.unique_tokens


def test_gold_loss_is_that_of_one_problem_after_the_other():
    writer = prepare_writer(RunConfig(params=3_500))
    model, weights = writer.model, writer.model.initial(1)
    problems = micro.problems(7)
    found = gold_losses(writer, weights, problems)
    for problem, loss in zip(problems, found, strict=True):
        start = problem.prompt.removesuffix("\n")
        prompt, whole = (writer.tokenizer.encode(t) for t in (start, problem.prompt + problem.canonical_solution))
        assert whole[: len(prompt)] == prompt
        logits = model.logits(weights, torch.tensor([whole[:-1]]))[0].log_softmax(-1)
        own = -logits[torch.arange(len(whole) - 1), torch.tensor(whole[1:])][len(prompt) - 1 :]
        assert loss == pytest.approx(float(own.mean()), rel=1e-5)


def test_a_batch_changes_no_solutions_loss_and_an_empty_one_has_none():
    model = prepare_writer(RunConfig(params=3_500)).model
    prompts, solutions = [[1, 2, 3], [4] * 20, [7]], [[5, 6], [9], []]
    at_once = solution_losses(model, model.initial(0), prompts, solutions)
    alone = [solution_losses(model, model.initial(0), [p], [s])[0] for p, s in zip(prompts, solutions, strict=True)]
    assert at_once[:2] == pytest.approx(alone[:2], rel=1e-5) and math.isnan(at_once[2])


def test_losses_of_a_few_positions_at_once_are_those_of_all_to_the_bit(monkeypatch):
    """As where a vocabulary of 150,000 would take gigabytes."""
    model = prepare_writer(RunConfig(params=3_500)).model
    weights, rows = 3 * model.initial(0), [np.arange(30), np.arange(7, 20)]
    whole = torch_losses(model, weights, rows)
    monkeypatch.setattr("scalefed.evaluation.scoring.LOGITS", 5 * model.shape.vocab + 1)
    assert torch.equal(torch_losses(model, weights, rows), whole) and float(whole.sum()) > 0


def test_gold_loss_falls_as_a_model_learns(run):
    task = prepare(run.config)
    before = np.mean(gold_losses(task, task.model.initial(run.config.seed), micro.problems(6)))
    assert run.gold_loss < before - 1


def test_a_larger_k_needs_no_training(run, tmp_path):
    answer = sf.evaluate(run, samples=12, k=(1, 10, 100))
    assert [rate.k for rate in answer] == [1, 10]
    again = sf.load_counts(run.folder, evaluation="micro-n12-s0")
    assert again["gold_loss"].mean() == pytest.approx(run.gold_loss, rel=1e-5)
    stored = run.folder / "eval-micro-n12-s0.json"
    older = {key: value for key, value in json.loads(stored.read_text()).items() if key != "gold_losses"}
    stored.write_text(json.dumps(older))  # as before gold likelihood was measured
    sf.evaluate(run, samples=12, k=(1,))
    assert json.loads(stored.read_text()) == older


# ---------------------------------------------------------------------- rounds
@pytest.mark.parametrize(("rounds", "every"), [(10, 0), (2_000, 0), (2_001, 0), (31_250, 0), (31_250, 1), (31_250, 7),
                                               (5_000, 100), (7, 3)])  # fmt: skip
def test_at_most_two_thousand_rounds_are_kept_evenly(rounds, every):
    config = RunConfig(local_steps=1, clients_per_round=1, tokens=512 * rounds, evaluate_every=every)
    assert config.rounds == rounds
    kept = [number for number in range(1, rounds + 1) if is_kept(config, number) or number == rounds]
    assert len(kept) <= KEPT_ROUNDS and (rounds > KEPT_ROUNDS - 1 or kept == list(range(1, rounds + 1)))
    if every and rounds // every < KEPT_ROUNDS:
        assert set(range(every, rounds + 1, every)) <= set(kept)
    gaps = np.diff([0, *kept])
    assert gaps.max() <= 2 * max(1, math.ceil(rounds / KEPT_ROUNDS)) + 1


def test_a_long_run_keeps_an_even_log_with_true_totals(tmp_path, monkeypatch):
    monkeypatch.setattr("scalefed.experiment.training.KEPT_ROUNDS", 4)
    settings = QUICK | {"local_steps": 1, "tokens": 256 * 11, "problems": "none"}
    short = sf.train(RunConfig(**settings), runs=tmp_path)
    assert (short.rounds, short.rounds_kept) == (11, 3)
    history = short.history()
    assert history["round"].tolist() == [4, 8, 11]
    assert history["tokens"].tolist() == [4 * 256, 8 * 256, 11 * 256] and short.tokens == 11 * 256
    assert short.participants_mean == 2.0


# ---------------------------------------------------------------------- either axis
def test_the_best_size_at_equal_compute_on_either_axis():
    truth = {"E": 1.0, "A": 60.0, "a": 0.35, "B": 60.0, "b": 0.35}
    grid = {"params": [3_504, 13_944, 55_536, 152_512], "tokens": list(np.geomspace(1e3, 1e8, 21))}
    runs = sf.simulate_runs("chinchilla", truth, grid)
    shapes = {params: shape_for(params, 512).at(128) for params in grid["params"]}
    exact = [train_flops(p, t, model=shapes[int(p)]) for p, t in zip(runs["params"], runs["tokens"], strict=True)]
    runs = runs.assign(compute_exact=exact)
    from scalefed.analysis.isoflop import isoflop_optima

    plain = isoflop_optima(runs, 1.8e10, floor=1.0)
    true = isoflop_optima(runs, 1.8e10, axis="compute_exact", floor=1.0)
    assert "compute_exact" in true and true["loss"][0] > plain["loss"][0]  # the true bill buys fewer tokens
    assert true["params"][0] * true["tokens"][0] < 0.7 * plain["params"][0] * plain["tokens"][0]
    cost = flops_per_token(runs, "compute_exact")
    assert cost(13_944) == pytest.approx(train_flops(13_944, 1, model=shapes[13_944]))
    assert cost(13_944) < cost(25_000) < cost(55_536) < cost(3e5)


def test_the_isoflop_chart_takes_either_axis():
    runs = sf.load_runs(RUNS / "grid")
    fitted = sf.load_fit(RUNS.parent / "fits" / "grid.json")
    lowest = {}
    for axis in ("compute", "compute_exact"):
        drawn = sf.chart(fitted, "isoflop", axis=axis, computes=[1e12, 3e12]).to_dict()
        points = pd.DataFrame([row for rows in drawn["datasets"].values() for row in rows])
        assert axis == "compute" or "exact count" in json.dumps(drawn)
        lowest[axis] = points[points["part"] == "best"]["y"].min()
    assert lowest["compute_exact"] > lowest["compute"] and len(runs)


@pytest.mark.parametrize(("axis", "error", "match"), [("flops", sf.ConfigError, "unknown compute axis"),
                                                      ("compute_exact", sf.DataError, "no compute_exact")])  # fmt: skip
def test_an_axis_that_is_not_there_is_said(axis, error, match):
    with pytest.raises(error, match=match):
        flops_per_token(pd.DataFrame({"params": [1e4], "tokens": [1e6], "loss": [1.0]}), axis)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a program's own peak")
def test_the_peak_of_memory_is_the_programs_own_and_not_its_parents():
    ballast = np.ones(150_000_000)  # 1.2 GB
    code = "from scalefed.experiment.training import peak_memory_mb; print(peak_memory_mb())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert float(child.stdout) < 1_000 < ballast.nbytes / 2**20 < peak_memory_mb()
