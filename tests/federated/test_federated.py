"""The loop: golden arithmetic, purity, resuming, batching, order, divergence, and what a round records."""

import copy
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from federated_toys import Quadratic, Tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.config import RunConfig
from scalefed.federated import client as client_module
from scalefed.federated.batched_runs import Job, run_many
from scalefed.federated.client import local_updates
from scalefed.federated.client_optimizer import InnerOptimizer
from scalefed.federated.participation import cohort, survivors
from scalefed.federated.rounds import Round, initial_state, one_round, run_rounds
from scalefed.federated.schedule import learning_rate
from scalefed.federated.server import mean_update, server_step
from scalefed.federated.state import ClientTask, ClientUpdate, Correction, ServerState
from scalefed.models import Decoder, shape_for
from scalefed.runs.schema import ROUND_COLUMNS
from scalefed.values import ALGORITHMS

VOCAB = 32
DECODER = Decoder(shape_for(1_000, VOCAB))
TEXT = Tokens(batch=2, length=8, vocab=VOCAB)


def config(**changes: object) -> RunConfig:
    """A few rounds of a thousand parameters."""
    base = {
        "params": 1_000, "vocab_size": VOCAB, "clients": 5, "clients_per_round": 3, "local_steps": 3, "batch_size": 2,
        "sequence_length": 8, "tokens": 4 * 3 * 3 * 16, "learning_rate": 0.02, "final_learning_rate": 0.1,
        "synthetic_tokens": 40, "generator_params": 1_000, "generator_steps": 2,
        "kernels": "eager",
    }  # fmt: skip
    if changes.get("algorithm") == "central":
        base |= {"clients": 1, "clients_per_round": 1}
    return RunConfig(**{**base, **changes})


def train(chosen: RunConfig, model=DECODER, data=TEXT, state: ServerState | None = None) -> list[Round]:
    return list(run_rounds(chosen, model, data, state or initial_state(chosen, model)))


def same_state(first: ServerState, second: ServerState) -> bool:
    """Equal to the last bit, in everything."""
    return (
        torch.equal(first.weights, second.weights)
        and first.round == second.round
        and first.visits == second.visits
        and _same(first.slots, second.slots)
        and first.memory.keys() == second.memory.keys()
        and all(_same(first.memory[client], second.memory[client]) for client in first.memory)
    )


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------- golden
def plain_fedavg(chosen: RunConfig, model: Decoder, data: Tokens) -> torch.Tensor:
    """FedAvg with AdamW clients as one plain loop without the package's federated code, kept in the order of operations
    of its first form: stored runs were made with this arithmetic, so it must stay equal to the last bit."""
    weights = model.initial(chosen.seed)
    visits = [0] * chosen.clients
    momentum = torch.zeros_like(weights)
    decay = chosen.weight_decay * model.decay_mask
    kept: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}
    for number in range(chosen.rounds):
        trained = []
        for client, steps in survivors(chosen, number, cohort(chosen, number)).items():
            w = weights.clone()
            m, v, before = kept.get(client, (torch.zeros_like(w), torch.zeros_like(w), 0))
            batches = torch.from_numpy(data.batches(client, visit=visits[client], steps=steps))
            visits[client] += 1
            for step in range(steps):
                leaf = w.detach().requires_grad_()
                (g,) = torch.autograd.grad(model.loss(leaf, batches[step]), leaf)
                rate = learning_rate(chosen, number, step)
                g = g * (
                    chosen.clip_norm / torch.linalg.vector_norm(g, dim=-1, keepdim=True).clamp(min=chosen.clip_norm)
                )
                w.addcmul_(w, decay, value=-rate)
                m.lerp_(g, 1 - chosen.beta1)
                v.mul_(chosen.beta2).addcmul_(g, g, value=1 - chosen.beta2)
                spread = (v / (1 - chosen.beta2 ** (before + step + 1))).sqrt_().add_(chosen.adam_epsilon)
                w.addcdiv_(m, spread, value=-rate / (1 - chosen.beta1 ** (before + step + 1)))
            if chosen.inner_state == "keep":
                kept[client] = (m, v, before + steps)
            trained.append((w, steps))
        change = torch.zeros_like(weights)
        for w, steps in trained:
            change.add_(w - weights, alpha=steps / sum(count for _, count in trained))
        if beta := chosen.server_momentum:
            momentum = beta * momentum + change
            change = change + beta * momentum
        weights = weights + (chosen.server_learning_rate or 1.0) * change
    return weights


@pytest.mark.parametrize(
    "changes",
    [{}, {"server_momentum": 0.9, "server_learning_rate": 0.7}, {"clients_per_round": 1}, {"stragglers": 0.5}],
    ids=["plain", "nesterov", "one client", "stragglers"],
)
@pytest.mark.parametrize("inner_state", ["reset", "keep"])
def test_fedavg_is_the_plain_loop(changes: dict, inner_state: str) -> None:
    chosen = config(client_batching="loop", inner_state=inner_state, **changes)
    assert torch.equal(train(chosen)[-1].state.weights, plain_fedavg(chosen, DECODER, TEXT))


# ---------------------------------------------------------------------- pure functions and resuming
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_round_is_a_pure_function_and_a_run_resumes_to_the_same_bits(algorithm: str, tmp_path) -> None:
    chosen = config(algorithm=algorithm, inner_state="keep", stragglers=0.3)
    rounds = train(chosen)
    middle = rounds[1].state
    untouched = copy.deepcopy(middle)
    first, second = one_round(chosen, DECODER, TEXT, middle), one_round(chosen, DECODER, TEXT, middle)
    assert same_state(middle, untouched)
    assert same_state(first.state, second.state)
    assert first.record == second.record == rounds[2].record
    torch.save([middle.weights, middle.round, middle.slots, middle.memory, list(middle.visits)], tmp_path / "state.pt")
    weights, number, slots, memory, visits = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = train(chosen, state=ServerState(weights, number, slots, memory, tuple(visits)))
    assert same_state(resumed[-1].state, rounds[-1].state)
    assert [one.record for one in resumed] == [one.record for one in rounds[2:]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_checkpoint_holds_no_more_than_its_vectors(algorithm: str) -> None:
    chosen = config(algorithm=algorithm, inner_state="keep")
    state = train(chosen)[-1].state
    kept = [state.weights, *state.slots.values(), *(v for memory in state.memory.values() for v in memory.values())]
    assert all(vector.untyped_storage().nbytes() == vector.nbytes for vector in kept)


def test_state_is_only_kept_where_it_is_needed() -> None:
    assert train(config(inner_state="reset"))[-1].state.memory == {}
    assert train(config())[-1].state.slots == {}
    kept = train(config(algorithm="scaffold", inner_state="reset"))[-1].state
    assert set(kept.slots) == {"control"}
    assert {name for memory in kept.memory.values() for name in memory} == {"control"}


# ---------------------------------------------------------------------- plain training
def test_one_client_with_everything_is_plain_training() -> None:
    """central: one AdamW over all steps, to the bit, although the loop is cut into rounds."""
    chosen = config(algorithm="central", local_steps=3)
    weights = DECODER.initial(chosen.seed)
    steps = chosen.rounds * chosen.local_steps
    assert chosen.rounds > 2
    batches = np.concatenate([TEXT.batches(0, visit=visit, steps=3) for visit in range(chosen.rounds)])
    rates = [learning_rate(chosen, 0, step) for step in range(steps)]
    task = ClientTask(0, torch.from_numpy(batches))
    (plain,) = local_updates(DECODER, weights, [task], chosen, learning_rates=rates)
    assert plain.steps == steps
    assert torch.equal(train(chosen)[-1].state.weights, plain.weights)


def test_fedavg_with_one_client_and_sgd_is_plain_training() -> None:
    chosen = config(clients=1, clients_per_round=1, inner_optimizer="sgd")
    central = config(algorithm="central", inner_optimizer="sgd")
    torch.testing.assert_close(train(chosen)[-1].state.weights, train(central)[-1].state.weights, atol=1e-6, rtol=1e-5)


def test_keeping_the_inner_state_matters_and_resetting_forgets() -> None:
    reset, keep = (train(config(algorithm="diloco", inner_state=how))[-1].state for how in ("reset", "keep"))
    assert reset.memory == {}
    assert not torch.equal(reset.weights, keep.weights)
    trained = [client for client, visits in enumerate(keep.visits) if visits]
    assert sorted(keep.memory) == trained
    for client in trained:
        assert int(keep.memory[client]["inner_steps"]) == 3 * keep.visits[client]


def test_adamw_agrees_with_torch() -> None:
    chosen = config(algorithm="central", clip_norm=0.5, weight_decay=0.1)
    model, data = Quadratic(), Tokens()
    weights = torch.nn.Parameter(model.initial(chosen.seed))
    decayed = model.decay_mask.bool()
    optimizer = torch.optim.AdamW([weights], lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for number in range(chosen.rounds):
        for step, blocks in enumerate(torch.from_numpy(data.batches(0, visit=number, steps=3))):
            rate = learning_rate(chosen, number, step)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            model.loss(weights, blocks).backward()
            torch.nn.utils.clip_grad_norm_([weights], 0.5)
            with torch.no_grad():
                weights[decayed] *= 1 - rate * 0.1
            optimizer.step()
    trained = train(chosen, model, data)[-1].state.weights
    torch.testing.assert_close(trained, weights.detach(), atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------------- at once or one by one
@pytest.mark.parametrize("before", [(0, 0), (4, 11)])
def test_the_step_of_a_client_has_the_same_bits_alone_and_beside_others(before: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    weights, gradient, first, second = (torch.randn(2, 1_003, generator=draw) for _ in range(4))
    kept = [
        {"inner_first": one, "inner_second": two.square(), "inner_steps": torch.tensor(steps)}
        for one, two, steps in zip(first, second, before, strict=True)
    ]

    def stepped(which: slice | int) -> torch.Tensor:
        own, memory = weights[which].clone(), kept[which] if isinstance(which, slice) else [kept[which]]
        InnerOptimizer(config(weight_decay=0.1), own, torch.ones(1_003), kept=memory).step(own, gradient[which], 0.01)
        return own

    together = stepped(slice(None))
    assert torch.equal(together, torch.stack([stepped(0), stepped(1)]))
    assert not torch.equal(together, weights)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "scaffold", "feddyn", "fedvarp", "gc-fed", "local"])
def test_batched_clients_train_as_they_would_alone(algorithm: str) -> None:
    """In double precision: in single, Adam turns the last bits of a gradient near zero into a step's sign."""
    chosen = config(algorithm=algorithm, stragglers=0.5, inner_state="keep")
    first = initial_state(chosen, DECODER)
    doubled = {name: slot.double() for name, slot in first.slots.items()}
    first = replace(first, weights=first.weights.double(), slots=doubled)
    ways = {how: train(chosen.replace(client_batching=how), state=first) for how in ("loop", "batched", "auto")}
    for how in ("batched", "auto"):
        for one, other in zip(ways["loop"], ways[how], strict=True):
            assert one.state.weights.dtype == torch.float64
            torch.testing.assert_close(one.state.weights, other.state.weights, atol=1e-10, rtol=1e-9)
            np.testing.assert_allclose(one.record["client_losses"], other.record["client_losses"], atol=1e-10)
            assert one.record["client_tokens"] == other.record["client_tokens"]


def test_who_shares_a_batch_changes_nothing() -> None:
    chosen = config(client_batching="batched", clients=9)
    tasks = [ClientTask(client, torch.from_numpy(TEXT.batches(client, visit=0, steps=3))) for client in range(9)]
    start, rates = DECODER.initial(0), [0.02] * 3
    together = local_updates(DECODER, start, tasks, chosen, learning_rates=rates)
    for size in (2, 5):
        some = local_updates(DECODER, start, tasks[:size], chosen, learning_rates=rates)
        for one, other in zip(some, together, strict=False):
            torch.testing.assert_close(one.weights, other.weights, atol=1e-6, rtol=1e-5)
    backwards = local_updates(DECODER, start, tasks[::-1], chosen, learning_rates=rates)
    assert [update.client for update in backwards] == [task.client for task in tasks[::-1]]


def test_groups_hold_equal_shapes_and_fit_the_cache() -> None:
    def task(client: int, steps: int, batch: int, pull: float = 0.0) -> ClientTask:
        return ClientTask(client, torch.zeros(steps, batch, 129, dtype=torch.long), correction=Correction(pull=pull))

    tasks = [task(0, 3, 1), task(1, 1, 1), task(2, 3, 2), task(3, 2, 1, pull=0.1), task(4, 3, 1)]
    assert client_module.groups_of(DECODER, tasks, config()) == [[0, 4, 1], [2], [3]]
    assert client_module.groups_of(DECODER, tasks, config(client_batching="loop")) == [[0], [4], [1], [2], [3]]
    many = [task(client, 1, 2) for client in range(9)]  # 256 tokens a step: eight fit into 2,048
    assert [len(group) for group in client_module.groups_of(DECODER, many, config())] == [8, 1]
    long = [task(client, 1, 8) for client in range(3)]  # 1,024 tokens a step: one by one
    assert [len(group) for group in client_module.groups_of(DECODER, long, config())] == [1, 1, 1]


def test_a_bfloat16_batch_agrees_with_the_loop() -> None:
    model = Decoder(shape_for(1_000, VOCAB), precision="bfloat16")
    ways = [train(config(precision="bfloat16", client_batching=how), model)[-1].state.weights
            for how in ("loop", "batched")]  # fmt: skip
    torch.testing.assert_close(*ways, atol=2e-2, rtol=2e-2)
    full = train(config())[-1].state.weights
    assert not torch.equal(ways[0], full)
    assert float((ways[0] - full).norm() / full.norm()) < 0.05


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch warns about its own parts
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_kernels_agree_with_eager_ones() -> None:
    eager = train(config(inner_optimizer="sgd", client_batching="loop"))[-1].state.weights
    for how in ("loop", "batched"):
        chosen = config(inner_optimizer="sgd", client_batching=how, kernels="compiled")
        torch.testing.assert_close(eager, train(chosen)[-1].state.weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("inner_state", ["keep", "reset"])
@pytest.mark.parametrize("algorithm", ["fedavg", "diloco", "gc-local", "gc-fed", "synthetic-sharing", "local"])
def test_the_step_that_a_gpu_records_is_the_step(algorithm: str, inner_state: str, monkeypatch) -> None:
    """Its arithmetic, on the processor and in double precision; what a GPU makes of it is tested where there is one."""
    chosen = config(algorithm=algorithm, inner_state=inner_state)
    first = initial_state(chosen, DECODER)
    doubled = {name: slot.double() for name, slot in first.slots.items()}
    first = replace(first, weights=first.weights.double(), slots=doubled)
    plain = train(chosen, state=first)
    made: list[int] = []
    recording = client_module.Recording

    def counted(*given: object) -> object:
        made.append(1)
        return recording(*given)

    monkeypatch.setattr(client_module, "can_record", lambda *_: True)
    monkeypatch.setattr(client_module, "Recording", counted)
    recorded = train(chosen, model=Decoder(shape_for(1_000, VOCAB)), state=first)
    assert made == [1] if algorithm != "synthetic-sharing" else sum(made) <= 2  # one for the generators
    for one, other in zip(plain, recorded, strict=True):
        torch.testing.assert_close(one.state.weights, other.state.weights, atol=1e-10, rtol=1e-9)
        np.testing.assert_allclose(one.record["client_losses"], other.record["client_losses"], atol=1e-6)
        assert one.state.memory.keys() == other.state.memory.keys()
        for client, memory in one.state.memory.items():
            assert memory.keys() == other.state.memory[client].keys()
            for name, vector in memory.items():
                torch.testing.assert_close(vector, other.state.memory[client][name], atol=1e-10, rtol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("algorithm", ["fedavg", "gc-fed", "scaffold"])
def test_adam_on_a_gpu_agrees_with_the_processor(algorithm: str) -> None:
    """With small steps: Adam turns the last bits of a gradient near zero into a step's sign."""
    ways = [train(config(algorithm=algorithm, device=device, learning_rate=1e-5))[-1] for device in ("cpu", "cuda")]
    assert ways[1].state.weights.device.type == "cpu"
    moved = [way.state.weights - DECODER.initial(0) for way in ways]
    assert float((moved[0] - moved[1]).norm() / moved[0].norm()) < 0.05
    for one, other in zip(*(way.record["client_losses"] for way in ways), strict=True):
        assert abs(one - other) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "feddyn", "gc-fed", "local", "synthetic-sharing"])
@pytest.mark.parametrize("how", ["loop", "batched"])
def test_a_gpu_agrees_with_the_processor(algorithm: str, how: str) -> None:
    ways = [
        train(config(algorithm=algorithm, device=device, inner_optimizer="sgd", client_batching=how))[-1].state.weights
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(ways[0], ways[1], atol=1e-4, rtol=1e-3)


def test_runs_advanced_together_are_the_runs_alone() -> None:
    chosen = [
        config(), config(seed=1), config(algorithm="scaffold"), config(clients=7, clients_per_round=2),
        config(tokens=2 * 3 * 3 * 16), config(algorithm="gc-fed", server_momentum=0.5), config(inner_optimizer="sgd"),
    ]  # fmt: skip
    jobs = [Job(one, Decoder(shape_for(1_000, VOCAB)), TEXT, initial_state(one, DECODER)) for one in chosen]
    last: dict[int, Round] = {}
    seen = dict.fromkeys(range(len(jobs)), 0)
    for step in run_many(jobs):
        last |= step
        for position in step:
            seen[position] += 1
    assert seen == {position: one.rounds for position, one in enumerate(chosen)}
    for position, one in enumerate(chosen):
        alone = train(one)[-1]
        torch.testing.assert_close(last[position].state.weights, alone.state.weights, atol=1e-6, rtol=1e-5)
        assert last[position].state.visits == alone.state.visits
        assert last[position].record["clients"] == alone.record["clients"]


# ---------------------------------------------------------------------- order and draws
@settings(deadline=None, max_examples=25)
@given(
    st.permutations(range(5)),
    st.sampled_from([name for name in ALGORITHMS if name not in ("local", "central")]),
    st.integers(0, 1_000),
)
def test_aggregation_ignores_client_order(order: list[int], algorithm: str, seed: int) -> None:
    model, draw = Quadratic(), np.random.Generator(np.random.PCG64(seed))
    chosen = config(algorithm=algorithm)
    state = initial_state(chosen, model)
    updates = []
    for index in range(5):
        weights = state.weights + torch.from_numpy(draw.normal(size=model.layout.size))
        updates.append(
            ClientUpdate(index, weights, 1 + index, 10 * (1 + index), 1.0, sent={"control": weights - state.weights})
        )
    one = server_step(state, updates, chosen, layout=model.layout)
    other = server_step(state, [updates[i] for i in order], chosen, layout=model.layout)
    assert same_state(one, other)


def test_equal_clients_average_to_themselves() -> None:
    weights = torch.randn(10, generator=torch.Generator().manual_seed(0))
    state = ServerState(torch.zeros(10))
    updates = [ClientUpdate(k, weights, 1, 1 + k, 1.0) for k in range(4)]
    torch.testing.assert_close(mean_update(state, updates, RunConfig()), weights)


def test_the_same_config_twice_is_the_same_run() -> None:
    first, second = train(config(dropout=0.3)), train(config(dropout=0.3))
    assert same_state(first[-1].state, second[-1].state)
    assert [one.record for one in first] == [one.record for one in second]
    assert not torch.equal(train(config(seed=1, dropout=0.3))[-1].state.weights, first[-1].state.weights)


class Watched(Tokens):
    """Notes who asked for what."""

    def __init__(self) -> None:
        super().__init__(batch=2, length=8, vocab=VOCAB)
        self.asked: list[tuple[int, int, int]] = []

    def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
        self.asked.append((client, visit, steps))
        return super().batches(client, visit=visit, steps=steps)


def test_the_algorithm_changes_no_draw() -> None:
    asked = {}
    for algorithm in ("fedavg", "scaffold", "gc-fed", "fedadam", "local", "diloco"):
        data = Watched()
        train(config(algorithm=algorithm, dropout=0.2, stragglers=0.2), data=data)
        asked[algorithm] = data.asked
    assert len({tuple(one) for one in asked.values()}) == 1


def test_a_longer_run_begins_with_the_draws_of_the_shorter_one() -> None:
    short, long = Watched(), Watched()
    train(config(dropout=0.2), data=short)
    train(config(dropout=0.2, tokens=2 * config().tokens), data=long)
    assert long.asked[: len(short.asked)] == short.asked


# ---------------------------------------------------------------------- trouble
class Poisoned(Quadratic):
    """The loss of anybody who meets token 0 is not a number."""

    def loss(self, weights: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        bad = (blocks == 0).flatten(-2).any(-1)
        return super().loss(weights, blocks) + torch.where(bad, torch.nan, 0.0) * weights.sum(-1)


class OnePoisonedClient:
    """Client 1 holds nothing but the bad token."""

    def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
        return np.full((steps, 2, 4), 0 if client == 1 else 5)


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "feddyn", "fedvarp", "local", "fedadam"])
@pytest.mark.parametrize("how", ["loop", "batched"])
def test_a_client_that_diverged_is_left_out_and_recorded(algorithm: str, how: str) -> None:
    chosen = config(algorithm=algorithm, clients=3, clients_per_round=3, inner_optimizer="sgd", client_batching=how)
    rounds = train(chosen, Poisoned(), OnePoisonedClient())
    for done in rounds:
        assert not done.diverged
        assert done.record["left_out"] == [1]
        assert done.record["participants"] == 3
        assert math.isnan(done.record["client_losses"][1])
        assert math.isfinite(done.record["train_loss"])
    last = rounds[-1].state
    assert bool(torch.isfinite(last.weights).all())
    assert 1 not in last.memory
    assert all(bool(torch.isfinite(v).all()) for memory in last.memory.values() for v in memory.values())
    assert rounds[0].state.visits == (1, 1, 1)


def test_a_run_ends_when_every_client_diverged() -> None:
    class AllBad(OnePoisonedClient):
        def batches(self, client: int, *, visit: int, steps: int) -> np.ndarray:
            return super().batches(1 if visit else 0, visit=visit, steps=steps)

    chosen = config(clients=2, clients_per_round=2, inner_optimizer="sgd")
    first, second = train(chosen, Poisoned(), AllBad())
    assert not first.diverged
    assert second.diverged
    assert second.record["left_out"] == [0, 1]
    assert torch.equal(second.state.weights, first.state.weights)


# ---------------------------------------------------------------------- the record
def test_a_record_says_who_trained_how_much_and_what_it_cost() -> None:
    chosen = config(dropout=0.4, stragglers=0.5, straggler_share=0.34)
    rounds = train(chosen)
    visits = [0] * chosen.clients
    for number, done in enumerate(rounds):
        record = done.record
        assert set(record) <= set(ROUND_COLUMNS)
        sampled = cohort(chosen, number)
        steps = survivors(chosen, number, sampled)
        assert record["round"] == number + 1
        assert record["clients"] == list(sampled)
        assert record["participants"] == len(steps)
        assert record["client_tokens"] == [count * 16 for count in steps.values()]
        assert record["tokens"] == sum(record["client_tokens"])
        assert record["repeats"] == sum(visits[client] > 0 for client in steps)
        assert record["bytes_sent"] == 4 * DECODER.params_total * (len(sampled) + len(steps))
        assert record["learning_rate"] == learning_rate(chosen, number, 0)
        for client in steps:
            visits[client] += 1
        assert done.state.visits == tuple(visits)
    assert any(done.record["participants"] < 3 for done in rounds)


def test_norms_and_cosines_of_a_round_by_hand() -> None:
    model, data = Quadratic(), Tokens()
    chosen = config(inner_optimizer="sgd", clip_norm=math.inf)
    state = initial_state(chosen, model)
    sampled = cohort(chosen, 0)
    moves = []
    for client in sampled:
        w = state.weights.numpy().copy()
        for step, blocks in enumerate(data.batches(client, visit=0, steps=3)):
            rate = learning_rate(chosen, 0, step)
            w = w - rate * chosen.weight_decay * model.decay_mask.numpy() * w - rate * model.gradient(w, blocks)
        moves.append(w - state.weights.numpy())
    mean = np.mean(moves, axis=0)
    record = one_round(chosen, model, data, state).record
    size = np.linalg.norm(mean)
    assert record["update_norm"] == pytest.approx(size, rel=1e-6)
    assert record["client_norm"] == pytest.approx(np.mean([np.linalg.norm(m) for m in moves]), rel=1e-6)
    assert record["client_drift"] == pytest.approx(np.mean([np.linalg.norm(m - mean) for m in moves]) / size, rel=1e-6)
    assert record["cosine"] == pytest.approx(np.mean([m @ mean / np.linalg.norm(m) / size for m in moves]), rel=1e-6)


@pytest.mark.parametrize(("algorithm", "vectors"), [("fedavg", 2), ("scaffold", 4), ("local", 0), ("gc-fed", 2)])
def test_bytes_count_every_vector_that_travels(algorithm: str, vectors: int) -> None:
    record = train(config(algorithm=algorithm))[0].record
    assert record["bytes_sent"] == 4 * DECODER.params_total * 3 * vectors


def test_an_update_is_finite_only_with_a_finite_loss_and_weights() -> None:
    good = ClientUpdate(0, torch.ones(2), 1, 1, 0.5)
    assert good.finite
    assert not replace(good, loss=math.inf).finite
    assert not replace(good, weights=torch.tensor([1.0, math.nan])).finite
