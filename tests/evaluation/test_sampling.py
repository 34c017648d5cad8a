"""Sampling: the cache changes nothing, and a sample is the same whatever is sampled beside it."""

import pytest
import torch

from scalefed.errors import ConfigError
from scalefed.evaluation.sampling import DecoderSession, before_stop, sample, stop_at
from scalefed.evaluation.token_sampling import draw as draw_tokens
from scalefed.models import Decoder, shape_for

MODEL = Decoder(shape_for(14_000, 64))
WEIGHTS = MODEL.initial(0) * 3  # larger weights make sharper, more varied distributions
PROMPTS = [[5, 9, 2], [7], [1, 2, 3, 4, 5, 6], [9, 9]]


def draw(prompts, **options):
    settings = {"samples": 3, "end": 0, "max_new_tokens": 12, "temperature": 1.0, "rows": 5, "seed": 1} | options
    session = DecoderSession(MODEL, WEIGHTS, rows=settings["rows"], length=32)
    return sample(session, prompts, **settings)


def greedy_without_cache(prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        following = int(MODEL.logits(WEIGHTS, torch.tensor([tokens]))[0, -1].argmax())
        if following == 0:
            break
        tokens.append(following)
    return tuple(tokens[len(prompt) :])


def test_greedy_equals_the_uncached_model():
    for completion in draw(PROMPTS, samples=1, temperature=0.0):
        assert completion.tokens == greedy_without_cache(PROMPTS[completion.prompt], 12)


def test_samples_do_not_depend_on_rows_or_on_what_else_is_sampled():
    together = {(c.prompt, c.sample): c.tokens for c in draw(PROMPTS, samples=4)}
    fewer_rows = {(c.prompt, c.sample): c.tokens for c in draw(PROMPTS, samples=4, rows=1)}
    fewer_samples = {(c.prompt, c.sample): c.tokens for c in draw(PROMPTS, samples=2)}
    assert together == fewer_rows
    assert all(together[key] == tokens for key, tokens in fewer_samples.items())
    assert len(set(together.values())) > 4


def test_samples_follow_the_models_distribution():
    chances = torch.softmax(MODEL.logits(WEIGHTS, torch.tensor([[7]]))[0, -1].double(), -1)
    draws = draw([[7]], samples=4000, max_new_tokens=1, rows=500)
    first = torch.tensor([c.tokens[0] if c.tokens else 0 for c in draws])
    counts = torch.bincount(first, minlength=64) / len(draws)
    assert float((counts - chances).abs().sum()) < 0.15


def test_top_p_keeps_the_smallest_likely_set():
    chances = torch.softmax(MODEL.logits(WEIGHTS, torch.tensor([[7]]))[0, -1].double(), -1)
    ordered, index = chances.sort(descending=True)
    kept = set(index[(ordered.cumsum(0) - ordered) < 0.5].tolist())
    draws = draw([[7]], samples=500, max_new_tokens=1, top_p=0.5, rows=500)
    assert {c.tokens[0] if c.tokens else 0 for c in draws} <= kept


def test_a_completion_ends_at_the_end_token_or_the_limit():
    for completion in draw(PROMPTS, samples=8):
        assert 0 not in completion.tokens
        assert completion.finished == (len(completion.tokens) < 12)


@pytest.mark.parametrize("top_p", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("vocabulary", [300, 6000])
def test_a_large_vocabulary_is_drawn_from_as_a_small_one(vocabulary: int, top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sharpness = torch.tensor([0.01, 0.1, 1.0, 3.0, 10.0]).repeat_interleave(20)  # flat: the nucleus is thousands wide
    logits = torch.randn(100, vocabulary, generator=generator) * sharpness[:, None]
    uniforms = torch.rand(100, generator=generator, dtype=torch.double)
    expected = []
    for row, number in zip(torch.softmax(logits.double() / 0.8, -1).tolist(), uniforms.tolist(), strict=True):
        kept, reached = set(), 0.0
        for token in sorted(range(vocabulary), key=lambda i: -row[i]):
            if reached >= top_p:
                break
            kept.add(token)
            reached += row[token]
        goal, total, chosen = number * reached, 0.0, -1
        for token in sorted(kept):
            total, chosen = total + row[token], token
            if total > goal:
                break
        expected.append(chosen)
    found = draw_tokens(logits, uniforms, temperature=0.8, top_p=top_p).tolist()
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 1  # a number right on an edge


def test_a_prompt_is_told_when_all_its_samples_are_written():
    told = []
    everything = draw(PROMPTS, samples=3, rows=2, on_prompt=told.append)
    assert sorted(one[0].prompt for one in told) == [0, 1, 2, 3]
    assert sorted((c for one in told for c in one), key=lambda c: (c.prompt, c.sample)) == everything


def test_a_completion_stops_at_a_stop_sequence_that_spans_tokens():
    letters = "".join(map(chr, range(64, 128)))
    free = {c.prompt: "".join(letters[t] for t in c.tokens) for c in draw(PROMPTS, samples=1, end=-1)}
    stops = [free[0][4:7], free[1][8:10]]
    stopped = stop_at(stops, lambda tokens: "".join(letters[t] for t in tokens))
    for c in draw(PROMPTS, samples=1, end=-1, stopped=stopped):
        text = "".join(letters[t] for t in c.tokens)
        ends = [free[c.prompt].find(stop) + len(stop) for stop in stops if stop in free[c.prompt]]
        assert text == free[c.prompt][: min(ends)] if ends else text == free[c.prompt]
        assert before_stop(text, stops) == before_stop(free[c.prompt], stops)
        assert c.finished == bool(ends)


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_p": 0.0}, {"samples": 0}, {"max_new_tokens": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="sampling needs"):
        draw(PROMPTS, **options)


def test_empty_prompts_are_refused():
    with pytest.raises(ConfigError, match="no prompt may be empty"):
        draw([[1], []])
