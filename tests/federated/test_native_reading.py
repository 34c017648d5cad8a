"""Reading and writing with our own kernels: torch's losses, logits and samples, in pages that are used again."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.config import RunConfig
from scalefed.errors import ConfigError, DataError
from scalefed.evaluation.sampling import DecoderSession, sample
from scalefed.evaluation.scoring import held_out_loss, solution_losses
from scalefed.evaluation.token_sampling import draw
from scalefed.experiment.evaluation import score, write_programs
from scalefed.federated.native import Kernels, NativeSession, Reader, build, native_losses
from scalefed.federated.native.library import what_is_wrong
from scalefed.federated.preparation import prepare
from scalefed.models import Decoder, shape_for

pytestmark = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="compiles C")
each_level = pytest.mark.parametrize("level", build.levels())
VOCAB, END = 45, 0
MODEL = Decoder(shape_for(55_000, VOCAB))  # two layers, two heads
WEIGHTS = MODEL.initial(1) + 0.3 * torch.randn(MODEL.layout.size, generator=torch.Generator().manual_seed(1))


def code(level: str):
    return build.library(level, what_is_wrong)


def texts(*lengths: int) -> list[list[int]]:
    draw_of = np.random.default_rng(0)
    return [draw_of.integers(VOCAB, size=length).tolist() for length in lengths]


def torchs_losses(row: list[int]) -> torch.Tensor:
    logits = MODEL.logits(WEIGHTS.double(), torch.tensor([row[:-1]]))[0]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="none")


@each_level
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(2, 180), min_size=1, max_size=12))
def test_losses_of_texts_of_any_lengths_are_torchs(level: str, lengths: list[int]) -> None:
    rows = texts(*lengths)
    found = Reader(code(level), MODEL, WEIGHTS, length=max(lengths)).token_losses(rows)
    for row, own in zip(rows, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(own).double(), torchs_losses(row), atol=2e-5, rtol=2e-5)


def test_many_short_texts_beside_a_long_one() -> None:
    rows = texts(1_500, *[3] * 400)
    found = Reader(code(build.level()), MODEL, WEIGHTS, length=1_500).token_losses(rows)
    for place in (0, 1, 200, 400):
        np.testing.assert_allclose(found[place], torchs_losses(rows[place]), atol=3e-5, rtol=3e-5)


def test_scores_agree_with_torchs() -> None:
    rows = [np.array(row, dtype=np.uint16) for row in texts(*range(2, 60))]
    ours = native_losses(code(build.level()))
    sources = [np.arange(len(row) - 1, dtype=np.uint16) % 3 for row in rows]
    one, two = (
        held_out_loss(MODEL, WEIGHTS, rows, bytes_per_token=3.0, batch_tokens=300, sources=sources, token_losses=how)
        for how in (None, ours)
    )
    assert one.loss == pytest.approx(two.loss, rel=1e-6) and one.by_source == pytest.approx(two.by_source, rel=1e-5)
    assert one.std_error == pytest.approx(two.std_error, rel=1e-5) and one.tokens == two.tokens
    prompts, solutions = texts(5, 9, 3), [*texts(4, 30), []]
    gold = [solution_losses(MODEL, WEIGHTS, prompts, solutions, token_losses=how) for how in (None, ours)]
    assert gold[0] == pytest.approx(gold[1], rel=1e-5, nan_ok=True)


def sessions(level: str, rows: int, length: int) -> tuple[DecoderSession, NativeSession]:
    theirs = DecoderSession(MODEL, WEIGHTS, rows=rows, length=length)
    return theirs, NativeSession(code(level), MODEL, WEIGHTS, rows=rows, length=length)


@each_level
def test_logits_of_rows_at_their_own_positions_are_torchs(level: str) -> None:
    """Rows leave, come again with another prompt and are forgotten; 40 more tokens cross pages."""
    prompts = texts(1, 15, 16, 17, 33)
    both = sessions(level, rows=6, length=90)
    with torch.inference_mode():
        for session in both:
            session.prefill(prompts)
        job = torch.tensor([0, 1, 2, 3, 4, 4])
        position = torch.tensor([len(prompts[one]) for one in job])
        first = [session.assign(torch.arange(6), job) for session in both]
        torch.testing.assert_close(*first, atol=2e-4, rtol=1e-4)
        draw_of = torch.Generator().manual_seed(0)
        for number in range(45):
            if number == 20:
                again, prompt = torch.tensor([1, 4]), torch.tensor([3, 0])
                torch.testing.assert_close(*(one.assign(again, prompt) for one in both), atol=2e-4, rtol=1e-4)
                position[again] = torch.tensor([17, 1])
            if number == 30:
                kept = torch.tensor([0, 1, 4])
                for session in both:
                    session.keep(kept)
                position = position[kept]
            token = torch.randint(VOCAB, (len(position),), generator=draw_of)
            torch.testing.assert_close(*(session.step(token, position) for session in both), atol=2e-4, rtol=1e-4)
            position = position + 1


def test_samples_are_torchs_but_for_rounding_and_do_not_depend_on_the_rows() -> None:
    prompts = texts(4, 20, 7)
    given = {"samples": 40, "end": END, "max_new_tokens": 50, "temperature": 0.7, "seed": 3}

    def written(session, **more):
        return [one.tokens for one in sample(session, prompts, **given, **more)]

    torchs, ours = sessions(build.level(), 120, 70)
    one = written(torchs, rows=120)
    two = written(ours, rows=120, draw=ours.draw)
    same = sum(a == b for a, b in zip(one, two, strict=True))
    assert same >= 115 and len({len(tokens) for tokens in two}) > 5
    for rows in (1, 7, 64):
        _, again = sessions(build.level(), rows, 70)
        assert written(again, rows=rows, draw=again.draw) == two


def test_pages_are_given_back() -> None:
    prompts = texts(20)
    _, ours = sessions(build.level(), 8, 120)
    sample(ours, prompts, samples=400, end=END, max_new_tokens=90, rows=8, draw=ours.draw)
    assert len(ours.chunks) == 1  # of 64 pages, for 400 samples of up to six pages of their own
    _, many = sessions(build.level(), 200, 120)
    sample(many, prompts, samples=200, end=VOCAB, max_new_tokens=90, rows=200, draw=many.draw)
    assert len(many.chunks) > 15  # and more are made where they are needed


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.sampled_from([0.1, 0.8, 1.0, 3.0]))
def test_draws_invert_the_same_distribution(seed: int, temperature: float) -> None:
    _, ours = sessions(build.level(), 1, 8)
    draw_of = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(64, VOCAB, generator=draw_of)
    uniforms = torch.rand(64, generator=draw_of, dtype=torch.double)
    uniforms[:2] = torch.tensor([0.0, 1 - 2**-53])
    found = ours.draw(logits, uniforms, temperature=temperature, top_p=1.0)
    wanted = draw(logits, uniforms, temperature=temperature, top_p=1.0)
    ends = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    near = ((ends - uniforms[:, None]).abs() < 1e-6).any(-1)
    assert torch.equal(found[~near], wanted[~near]) and int(near.sum()) < 4 and int(found.max()) < VOCAB


def test_what_cannot_be_read_is_refused() -> None:
    _, ours = sessions(build.level(), 2, 10)
    with pytest.raises(ConfigError, match="1 to 9 tokens"):
        ours.prefill(texts(10))
    with pytest.raises(DataError, match=f"0 to {VOCAB - 1}"):
        ours.prefill([[VOCAB]])


def test_a_task_is_scored_and_sampled_with_the_kernels_it_has() -> None:
    config = RunConfig(params=3_500, tokens=20_000, validation_tokens=2_048)
    task = prepare(config)
    assert task.kernels.name == "native"
    torchs = replace(task, kernels=Kernels("eager"))
    weights = task.model.initial(0)
    assert score(task, weights).loss == pytest.approx(score(torchs, weights).loss, rel=1e-6)
    from scalefed.data import micro

    problems = micro.problems(4)
    for chosen in (config, config.replace(top_p=0.9)):
        one, two = (
            write_programs(own, weights, problems, chosen, samples=5, seed=0, max_new_tokens=12)
            for own in (task, torchs)
        )
        assert sum(a == b for a, b in zip(one, two, strict=True)) >= 18
    greedy = [
        write_programs(own, weights, problems, config, samples=1, seed=0, max_new_tokens=12, temperature=0)
        for own in (task, torchs)
    ]
    assert greedy[0] == greedy[1]
