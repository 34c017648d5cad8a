"""Shared synthetic text: the generators write what their model says, the pool is mixed in, the budget is kept."""

import builtins
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from scalefed.config import RunConfig
from scalefed.errors import ConfigError, MissingExtraError
from scalefed.federated import synthetic
from scalefed.federated.privacy import clipped_gradients, noise_multiplier, private_training
from scalefed.federated.rounds import initial_state, run_rounds
from scalefed.federated.synthetic import generator_model, generators, mixed, pool_bytes, with_pool, write_blocks
from scalefed.models import Decoder, shape_for
from scalefed.seeds import rng

VOCAB, LENGTH = 24, 8
MODEL = Decoder(shape_for(1_000, VOCAB))


def config(**changes: object) -> RunConfig:
    base = {
        "algorithm": "synthetic-sharing", "params": 1_000, "vocab_size": VOCAB, "clients": 3, "clients_per_round": 2,
        "local_steps": 4, "batch_size": 5, "sequence_length": LENGTH, "tokens": 2 * 2 * 4 * 5 * LENGTH,
        "synthetic_tokens": 10 * LENGTH, "synthetic_share": 0.25, "generator_params": 1_000, "generator_steps": 3,
    }  # fmt: skip
    return RunConfig(**{**base, **changes})


class Text:
    """Client k's documents are the number 5 + k over and over, after the end of another document."""

    def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
        blocks = np.full((steps, 5, LENGTH + 1), 5 + client)
        blocks[:, :, 0] = 0
        return blocks


class RandomText:
    def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
        return np.random.default_rng((client, visit)).integers(VOCAB, size=(steps, 5, LENGTH + 1))


# ---------------------------------------------------------------------- writing
def test_the_writer_draws_from_the_models_own_distribution() -> None:
    """Inverting the model's cumulative distribution at the same luck, from full forward passes, gives the same text."""
    chosen = config()
    weights = MODEL.initial(3) * 3
    written = write_blocks(MODEL, weights, chosen, client=2)
    assert written.shape == (10, LENGTH + 1)
    assert bool((written[:, 0] == 0).all())
    uniforms = rng(chosen.seed, "synthetic-text", 2).random((10, LENGTH))
    with torch.no_grad():
        chances = torch.softmax(MODEL.logits(weights, written[:, :-1]).double(), -1).numpy()
    for row in range(10):
        for position in range(LENGTH):
            cumulative = chances[row, position].cumsum()
            low = 0.0 if written[row, position + 1] == 0 else cumulative[written[row, position + 1] - 1]
            assert low - 1e-6 <= uniforms[row, position] <= cumulative[written[row, position + 1]] + 1e-6


def test_a_trained_generator_writes_its_clients_text() -> None:
    chosen = config(generator_steps=80)
    pool = with_pool(chosen, Text(), initial_state(chosen, MODEL)).slots["synthetic"]
    assert pool.shape == (30, LENGTH + 1)
    for client in range(3):
        text = pool[10 * client : 10 * client + 10, 2:]
        assert float((text == 5 + client).float().mean()) > 0.8


def test_generators_in_one_batch_are_those_trained_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, plain = config(), Decoder.initial
    with monkeypatch.context() as double:  # in single precision, Adam turns last bits near zero into a step's sign
        double.setattr(Decoder, "initial", lambda self, seed: plain(self, seed).double())
        together = generators(chosen, RandomText(), range(3))
        alone = [generators(chosen, RandomText(), range(k, k + 1))[0] for k in range(3)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-9)
    whole = with_pool(chosen, RandomText(), initial_state(chosen, MODEL)).slots["synthetic"]
    monkeypatch.setattr(synthetic, "AT_ONCE", 2)
    pieces = with_pool(chosen, RandomText(), initial_state(chosen, MODEL)).slots["synthetic"]
    assert float((whole == pieces).float().mean()) > 0.9


# ---------------------------------------------------------------------- mixing
def test_a_share_of_every_batch_comes_from_the_pool() -> None:
    chosen = config()
    state = with_pool(chosen, Text(), initial_state(chosen, MODEL))
    pool = {tuple(block) for block in state.slots["synthetic"].tolist()}
    own = np.full((4, 5, LENGTH + 1), 20)
    batches = mixed(chosen, MODEL, state, 1, own)
    assert batches.shape == own.shape
    assert bool((own == 20).all())  # the client's own text is not touched
    foreign = [tuple(block) for block in batches.reshape(-1, LENGTH + 1).tolist() if block != [20] * (LENGTH + 1)]
    assert len(foreign) == 5  # a quarter of 20 blocks
    assert set(foreign) <= pool
    assert np.array_equal(batches, mixed(chosen, MODEL, state, 1, own))
    assert not np.array_equal(batches, mixed(chosen, MODEL, state, 0, own))


def test_the_likeliest_of_the_drawn_blocks_stay() -> None:
    """Three clients write one word each; a model trained on one client's word keeps hers of all that are drawn."""
    chosen = config(synthetic_kept=0.25, generator_steps=80)
    state = with_pool(chosen, Text(), initial_state(chosen, MODEL))
    knows = generators(chosen, Text(), range(1, 2))[0]
    own = np.full((4, 5, LENGTH + 1), 20)
    batches = mixed(chosen, MODEL, replace(state, weights=knows), 0, own)
    foreign = batches[batches[..., -1] != 20]
    assert len(foreign) == 5
    assert float((foreign[:, 2:] == 6).mean()) > 0.9
    everything = mixed(config(generator_steps=80), MODEL, replace(state, weights=knows), 0, own)
    assert float((everything[everything[..., -1] != 20][:, 2:] == 6).mean()) < 0.9


@pytest.mark.parametrize(("steps", "batch"), [(1, 2), (1, 4), (3, 1), (5, 1), (25, 4)])
@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_share_holds_over_rounds_however_short_they_are(steps: int, batch: int, share: float) -> None:
    chosen = config(synthetic_share=share)
    own, pool = np.full((steps, batch, LENGTH + 1), 20), torch.ones(6, LENGTH + 1, dtype=torch.int32)
    state = replace(initial_state(chosen, MODEL), slots={"synthetic": pool})
    rounds = [mixed(chosen, MODEL, replace(state, round=number), number % 3, own) for number in range(1_000)]
    counts = np.array([(one[:, :, 0] == 1).sum() for one in rounds])
    assert abs(counts.mean() - share * steps * batch) < 4 * 0.5 / math.sqrt(1_000)
    assert np.ptp(counts) == (0 if (share * steps * batch).is_integer() else 1)


def test_a_whole_number_of_blocks_is_that_many_bit_for_bit_as_before_shares_were_drawn() -> None:
    pool, own = np.arange(90).reshape(10, 9), np.full((6, 5, LENGTH + 1), 200)
    state = replace(initial_state(config(), MODEL), slots={"synthetic": torch.from_numpy(pool)})
    batches = mixed(config(synthetic_share=0.1), MODEL, state, 1, own)
    draw = rng(0, "synthetic-mix", 0, 1)
    places = draw.choice(30, size=3, replace=False)
    expected = own.reshape(30, -1).copy()
    expected[places] = pool[draw.integers(10, size=3)]
    assert np.array_equal(batches, expected.reshape(own.shape))


def test_without_a_share_it_is_fedavg() -> None:
    runs = [list(run_rounds(one, MODEL, RandomText(), initial_state(one, MODEL)))
            for one in (config(synthetic_share=0.0), config(algorithm="fedavg"))]  # fmt: skip
    assert torch.equal(runs[0][-1].state.weights, runs[1][-1].state.weights)
    assert [one.record for one in runs[0]] == [one.record for one in runs[1]]


def test_the_pool_is_made_once_and_paid_for_in_the_first_round() -> None:
    chosen = config()
    first, second = run_rounds(chosen, MODEL, RandomText(), initial_state(chosen, MODEL))
    assert first.state.slots["synthetic"] is second.state.slots["synthetic"]
    blocks = 3 * 10 * (LENGTH + 1)
    assert first.record["bytes_sent"] - second.record["bytes_sent"] == 2 * blocks * 4 == pool_bytes(chosen, first.state)
    assert first.record["tokens"] == second.record["tokens"] == 2 * 4 * 5 * LENGTH


def test_synthetic_text_draws_disparate_clients_together() -> None:
    drift = {}
    for share in (0.0, 0.5):
        chosen = config(synthetic_share=share, generator_steps=40, learning_rate=0.02, clients_per_round=3)
        drift[share] = next(iter(run_rounds(chosen, MODEL, Text(), initial_state(chosen, MODEL)))).record[
            "client_drift"
        ]
    assert drift[0.5] < drift[0.0]


def test_a_checkpoint_is_refused() -> None:
    chosen = config(checkpoint="somewhere")
    with pytest.raises(ConfigError, match="leave checkpoint empty"):
        with_pool(chosen, Text(), initial_state(config(), MODEL))


# ---------------------------------------------------------------------- privacy
def test_every_blocks_gradient_is_its_own_and_is_clipped() -> None:
    weights = MODEL.initial(0) * 2
    blocks = torch.from_numpy(RandomText().batches(0, visit=0, steps=1)[0])
    clipped = clipped_gradients(MODEL, weights, blocks)
    norms = []
    for block, row in zip(blocks, clipped, strict=True):
        leaf = weights.clone().requires_grad_()
        (alone,) = torch.autograd.grad(MODEL.loss(leaf, block[None]), leaf)
        norms.append(float(alone.norm()))
        torch.testing.assert_close(row, alone / max(1.0, norms[-1]), atol=1e-6, rtol=1e-4)
    assert max(norms) > 1
    assert float(clipped.norm(dim=1).max()) <= 1 + 1e-5
    assert clipped_gradients(MODEL, weights, blocks[:0]).shape == (0, len(weights))


@pytest.mark.filterwarnings("ignore")
def test_the_noise_meets_the_budget_and_no_more() -> None:
    pytest.importorskip("opacus")
    from opacus.accountants import RDPAccountant

    chosen = config(synthetic_epsilon=4.0, synthetic_delta=1e-4)
    noise = noise_multiplier(chosen, sample_rate=0.1, steps=50)
    spent = {}
    for factor in (1.0, 0.9):
        accountant = RDPAccountant()
        accountant.history = [(noise * factor, 0.1, 50)]
        spent[factor] = accountant.get_epsilon(1e-4)
    assert spent[1.0] <= 4.0 < spent[0.9]


@pytest.mark.filterwarnings("ignore")
def test_private_training_is_reproducible_noisy_and_different_per_client() -> None:
    pytest.importorskip("opacus")
    chosen = config(synthetic_epsilon=8.0, synthetic_delta=1e-3, local_steps=3)
    start, batches = MODEL.initial(0), RandomText().batches(0, visit=0, steps=3)
    first, again, other = (private_training(MODEL, start, batches, chosen, client=k) for k in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert bool(torch.isfinite(first).all())


@pytest.mark.filterwarnings("ignore")
def test_a_run_with_a_privacy_budget() -> None:
    pytest.importorskip("opacus")
    chosen = config(synthetic_epsilon=8.0, synthetic_delta=1e-3)
    plain = config()
    last = {one.synthetic_epsilon: list(run_rounds(one, generator_model(one), RandomText(), initial_state(one, MODEL)))
            for one in (chosen, plain)}  # fmt: skip
    assert not last[8.0][-1].diverged
    assert not torch.equal(last[8.0][-1].state.slots["synthetic"], last[math.inf][-1].state.slots["synthetic"])


def test_a_budget_without_opacus_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("opacus"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"scalefed\[privacy\]"):
        noise_multiplier(config(synthetic_epsilon=1.0), sample_rate=0.1, steps=2)
