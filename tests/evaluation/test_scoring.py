"""Held-out loss is the plain mean over predicted tokens, however rows are batched and padded."""

import math

import numpy as np
import pytest
import torch

from scalefed.config import RunConfig
from scalefed.data import micro
from scalefed.data.corpus import whole_rows
from scalefed.evaluation.scoring import held_out_loss
from scalefed.federated.preparation import prepare
from scalefed.models import Decoder, shape_for

MODEL = Decoder(shape_for(5_000, 64))
WEIGHTS = MODEL.initial(0) * 2
ROWS = [np.array(row, dtype=np.uint16) for row in ([0, 5, 9], [0, 1], [0, 7, 7, 7, 3, 2, 60], [0, 4, 4])]


def each_alone():
    """Loss of every predicted token, one row at a time and without padding."""
    losses = []
    for row in ROWS:
        tokens = torch.from_numpy(row.astype(np.int64))[None]
        chances = torch.log_softmax(MODEL.logits(WEIGHTS, tokens[:, :-1]).double(), -1)[0]
        losses.append([-float(chances[i, token]) for i, token in enumerate(tokens[0, 1:])])
    return losses


@pytest.mark.parametrize("batch_tokens", [1, 6, 1000])
def test_the_mean_is_over_tokens_and_padding_counts_nothing(batch_tokens):
    losses = each_alone()
    result = held_out_loss(MODEL, WEIGHTS, ROWS, bytes_per_token=3.0, batch_tokens=batch_tokens)
    assert result.tokens == sum(map(len, losses)) == 11
    assert result.loss == pytest.approx(sum(map(sum, losses)) / 11, rel=1e-6)
    assert result.bits_per_byte == pytest.approx(result.loss / math.log(2) / 3.0, rel=1e-6)


def test_the_standard_error_is_that_of_a_ratio_of_sums():
    losses = each_alone()
    result = held_out_loss(MODEL, WEIGHTS, ROWS, bytes_per_token=3.0)
    rest = [sum(row) - result.loss * len(row) for row in losses]
    expected = math.sqrt(4 / 3 * sum(one**2 for one in rest)) / 11
    assert result.std_error == pytest.approx(expected, rel=1e-5)


def test_scoring_rows_begin_with_the_end_of_a_document_and_cut_none():
    text = micro.validation(20_000, seed=0)
    rows = whole_rows(text.tokens, text.offsets, length=128, start=0)
    assert np.array_equal(np.concatenate([row[1:] for row in rows]), text.tokens)
    assert all(row[0] == 0 and row[-1] == 0 for row in rows)
    ends = set(text.offsets.tolist())
    assert all(end in ends for end in np.cumsum([len(row) - 1 for row in rows]))


def test_an_untrained_model_scores_about_the_log_of_the_vocabulary():
    task = prepare(RunConfig(params=3_500, tokens=30_000, validation_tokens=4_096))
    result = held_out_loss(task.model, task.model.initial(0), task.validation, bytes_per_token=task.bytes_per_token)
    assert abs(result.loss - math.log(512)) < 0.2
    assert 1.0 < task.bytes_per_token < 5.0
