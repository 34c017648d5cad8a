"""Sampling: the cache changes nothing, and a sample is the same whatever is sampled beside it."""

import pytest
import torch

from scalefed.errors import ConfigError
from scalefed.evaluation.sampling import DecoderSession, sample
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


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_p": 0.0}, {"samples": 0}, {"max_new_tokens": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="sampling needs"):
        draw(PROMPTS, **options)


def test_empty_prompts_are_refused():
    with pytest.raises(ConfigError, match="no prompt may be empty"):
        draw([[1], []])
