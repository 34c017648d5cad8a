"""Every algorithm against a second implementation: numpy loops written from the papers' pseudocode."""

import math

import numpy as np
import pytest
import torch
from federated_toys import Quadratic, Tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.config import RunConfig
from scalefed.errors import ConfigError
from scalefed.federated.centralisation import at_clients, centring
from scalefed.federated.participation import cohort, survivors
from scalefed.federated.rounds import initial_state, run_rounds
from scalefed.federated.server import evaluated_weights, server_settings, server_step
from scalefed.federated.state import ClientUpdate, ServerState
from scalefed.models import Layout
from scalefed.values import ALGORITHMS

MODEL, DATA = Quadratic(), Tokens()
ETA, ROUNDS, STEPS = 0.1, 6, 4


def config(algorithm: str, **changes: object) -> RunConfig:
    """SGD of constant rate without clipping or decay: the setting the papers' pseudocode is written for."""
    base = {
        "algorithm": algorithm, "clients": 6, "clients_per_round": 3, "local_steps": STEPS, "batch_size": 2,
        "sequence_length": 3, "tokens": ROUNDS * 3 * STEPS * 6, "inner_optimizer": "sgd", "learning_rate": ETA,
        "inner_state": "reset",
        "final_learning_rate": 1.0, "warmup": 0.0, "weight_decay": 0.0, "clip_norm": math.inf, "seed": 3,
    }  # fmt: skip
    return RunConfig(**{**base, **changes})


def native(chosen: RunConfig) -> ServerState:
    state = initial_state(chosen, MODEL)
    for done in run_rounds(chosen, MODEL, DATA, state):
        state = done.state
    assert state.round == ROUNDS
    return state


def who(chosen: RunConfig):
    """For every round, the clients that train, their batches, and how often each had trained before."""
    visits = dict.fromkeys(range(chosen.clients), 0)
    for number in range(ROUNDS):
        steps = survivors(chosen, number, cohort(chosen, number))
        yield {c: DATA.batches(c, visit=visits[c], steps=n) for c, n in steps.items()}
        for client in steps:
            visits[client] += 1


def sgd(weights: np.ndarray, batches: np.ndarray, change=lambda g, w: g) -> np.ndarray:
    for blocks in batches:
        weights = weights - ETA * change(MODEL.gradient(weights, blocks), weights)
    return weights


def start(chosen: RunConfig) -> np.ndarray:
    return MODEL.initial(chosen.seed).numpy().copy()


def apart(state: ServerState, reference: np.ndarray) -> float:
    """The largest distance of a weight from the reference; rounding errors of these sums stay below 1e-11."""
    return float(np.abs(state.weights.numpy() - reference).max())


# ---------------------------------------------------------------------- references
@pytest.mark.parametrize("weighting", ["tokens", "uniform"])
def test_fedavg_is_the_weighted_mean_of_the_clients_models(weighting: str) -> None:
    chosen = config("fedavg", stragglers=0.5, weighting=weighting)
    w = start(chosen)
    for cohort_data in who(chosen):
        sizes = np.array([len(b) if weighting == "tokens" else 1.0 for b in cohort_data.values()])
        w = np.average([sgd(w, b) for b in cohort_data.values()], axis=0, weights=sizes)
    assert apart(native(chosen), w) <= 1e-11


def test_fedprox_minimises_the_loss_plus_half_mu_times_the_squared_distance() -> None:
    mu = 0.7
    chosen = config("fedprox", proximal=mu)
    w = start(chosen)
    for cohort_data in who(chosen):
        w = np.mean([sgd(w, b, lambda g, v, w=w: g + mu * (v - w)) for b in cohort_data.values()], axis=0)
    assert apart(native(chosen), w) <= 1e-11


def test_scaffold_follows_option_two_of_the_paper() -> None:
    chosen = config("scaffold", server_learning_rate=0.8, stragglers=0.4)
    w = start(chosen)
    c = np.zeros_like(w)
    own = {k: np.zeros_like(w) for k in range(chosen.clients)}
    for cohort_data in who(chosen):
        moves, control_moves = [], []
        for k, batches in cohort_data.items():
            y = sgd(w, batches, lambda g, v, k=k, c=c: g - own[k] + c)
            fresh = own[k] - c + (w - y) / (len(batches) * ETA)  # option II
            moves.append(y - w)
            control_moves.append(fresh - own[k])
            own[k] = fresh
        w = w + 0.8 * np.mean(moves, axis=0)
        c = c + len(cohort_data) / chosen.clients * np.mean(control_moves, axis=0)
    state = native(chosen)
    assert apart(state, w) <= 1e-11
    np.testing.assert_allclose(state.slots["control"].numpy(), c, atol=1e-11)
    for client, memory in state.memory.items():
        np.testing.assert_allclose(memory["control"].numpy(), own[client], atol=1e-11)


def test_scaffolds_server_control_is_the_mean_of_the_clients_controls() -> None:
    chosen = config("scaffold")
    state = native(chosen)
    total = sum(memory["control"] for memory in state.memory.values())
    torch.testing.assert_close(state.slots["control"], total / chosen.clients)


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_fednova_normalises_by_the_accumulated_gradient_weights(rho: float) -> None:
    chosen = config("fednova", stragglers=0.6, straggler_share=0.25, inner_momentum=rho)
    w, lengths = start(chosen), set()
    for cohort_data in who(chosen):
        directions, sizes = [], []
        for batches in cohort_data.values():
            y, buffer = w, np.zeros_like(w)
            for blocks in batches:
                buffer = rho * buffer + MODEL.gradient(y, blocks)
                y = y - ETA * buffer
            tau = len(batches)  # the paper's vector a for momentum SGD, and its 1-norm
            a = np.array([(1 - rho ** (tau - j)) / (1 - rho) for j in range(tau)])
            directions.append((w - y) / (ETA * a.sum()))
            sizes.append(a.sum())
            lengths.add(tau)
        effective = np.mean(sizes)
        w = w - effective * ETA * np.mean(directions, axis=0)
    assert lengths == {1, STEPS}
    assert apart(native(chosen), w) <= 1e-11


def test_fednova_without_stragglers_is_fedavg() -> None:
    torch.testing.assert_close(native(config("fednova")).weights, native(config("fedavg")).weights)


def test_feddyn_follows_the_paper() -> None:
    alpha = 0.3
    chosen = config("feddyn", dynamic_regularization=alpha)
    w = start(chosen)
    h = np.zeros_like(w)
    duals = {k: np.zeros_like(w) for k in range(chosen.clients)}
    for cohort_data in who(chosen):
        models = []
        for k, batches in cohort_data.items():
            theta = sgd(w, batches, lambda g, v, k=k, w=w: g - duals[k] + alpha * (v - w))
            duals[k] = duals[k] - alpha * (theta - w)
            models.append(theta)
        h = h - alpha / chosen.clients * sum(model - w for model in models)
        w = np.mean(models, axis=0) - h / alpha
    state = native(chosen)
    assert apart(state, w) <= 1e-11
    np.testing.assert_allclose(state.slots["drift"].numpy(), h, atol=1e-11)


def test_feddyn_without_regularisation_is_fedavg() -> None:
    torch.testing.assert_close(
        native(config("feddyn", dynamic_regularization=0.0)).weights, native(config("fedavg")).weights
    )


def test_fedvarp_follows_the_paper() -> None:
    chosen = config("fedvarp")
    w = start(chosen)
    last = {k: np.zeros_like(w) for k in range(chosen.clients)}
    for cohort_data in who(chosen):
        updates = {k: sgd(w, batches) - w for k, batches in cohort_data.items()}
        step = np.mean([updates[k] - last[k] for k in updates], axis=0) + np.mean(list(last.values()), axis=0)
        w = w + step
        last |= updates
    state = native(chosen)
    assert apart(state, w) <= 1e-11
    np.testing.assert_allclose(state.slots["update_mean"].numpy(), np.mean(list(last.values()), axis=0), atol=1e-11)


def test_fedvarp_with_everybody_drawn_is_fedavg() -> None:
    everybody = {"clients_per_round": 6, "tokens": ROUNDS * 6 * STEPS * 6}
    torch.testing.assert_close(
        native(config("fedvarp", **everybody)).weights, native(config("fedavg", **everybody)).weights
    )
    assert not torch.equal(native(config("fedvarp")).weights, native(config("fedavg")).weights)


def project(vector: np.ndarray, names: tuple[str, ...], vectors: str = "mean") -> np.ndarray:
    """P(g) by reshaping and matrix algebra: each row of an (out, in) matrix times (I - 11^T / n)."""
    result = vector.copy()
    for entry in MODEL.layout:
        if entry.name not in names or (len(entry.shape) == 1 and vectors == "keep"):
            continue
        rows = entry.shape[0] if len(entry.shape) > 1 else 1
        block = vector[entry.start : entry.stop].reshape(rows, -1)
        n = block.shape[1]
        result[entry.start : entry.stop] = (block @ (np.eye(n) - np.ones((n, n)) / n)).reshape(-1)
    return result


EVERYTHING = ("embedding", "body", "scale", "head")


@pytest.mark.parametrize(
    ("algorithm", "extra", "at_client", "at_server"),
    [
        ("gc-local", {}, EVERYTHING, ()),
        ("gc-global", {}, (), EVERYTHING),
        ("gc-fed", {}, ("body", "scale", "head"), EVERYTHING),
        ("gc-fed", {"centralised_target": "head"}, ("embedding", "body", "scale"), EVERYTHING),
        ("gc-fed", {"centralised_target": "", "centralised_share": 0.5}, ("body", "scale"), EVERYTHING),
        ("gc-fed", {"centralised_target": "", "centralised_share": 0.9}, ("body", "scale", "head"), EVERYTHING),
        ("gc-local", {"centralised_vectors": "keep"}, EVERYTHING, ()),
    ],
)
def test_gradient_centralisation(algorithm: str, extra: dict, at_client: tuple, at_server: tuple) -> None:
    chosen = config(algorithm, stragglers=0.5, **extra)
    vectors = extra.get("centralised_vectors", "mean")
    w = start(chosen)
    for cohort_data in who(chosen):
        models = [sgd(w, b, lambda g, v: project(g, at_client, vectors)) for b in cohort_data.values()]
        w = w + project(np.mean(models, axis=0) - w, at_server, vectors)  # sizes are ignored, as published
    assert apart(native(chosen), w) <= 1e-11


def test_momentum_acts_on_the_centred_gradient() -> None:
    chosen = config("gc-local", inner_momentum=0.9)
    w = start(chosen)
    for cohort_data in who(chosen):
        models = []
        for batches in cohort_data.values():
            y, buffer = w, np.zeros_like(w)
            for blocks in batches:
                buffer = 0.9 * buffer + project(MODEL.gradient(y, blocks), EVERYTHING)
                y = y - ETA * buffer
            models.append(y)
        w = np.mean(models, axis=0)
    assert apart(native(chosen), w) <= 1e-11


@pytest.mark.parametrize("algorithm", ["fedadam", "fedyogi", "fedadagrad"])
def test_adaptive_servers_follow_algorithm_two_of_the_paper(algorithm: str) -> None:
    b1, b2, tau, eta = 0.8, 0.95, 1e-2, 0.05
    chosen = config(algorithm, server_beta1=b1, server_beta2=b2, server_epsilon=tau, server_learning_rate=eta)
    w = start(chosen)
    m, v = np.zeros_like(w), np.full_like(w, tau**2)
    for cohort_data in who(chosen):
        delta = np.mean([sgd(w, b) - w for b in cohort_data.values()], axis=0)
        m = b1 * m + (1 - b1) * delta
        v = {
            "fedadagrad": v + delta**2,
            "fedyogi": v - (1 - b2) * delta**2 * np.sign(v - delta**2),
            "fedadam": b2 * v + (1 - b2) * delta**2,
        }[algorithm]
        w = w + eta * m / (np.sqrt(v) + tau)
    assert apart(native(chosen), w) <= 1e-11


@pytest.mark.parametrize(("algorithm", "nesterov"), [("fedavgm", False), ("diloco", True), ("fedavg", True)])
def test_server_momentum(algorithm: str, nesterov: bool) -> None:
    chosen = config(algorithm, server_momentum=0.8, server_learning_rate=0.6)
    w = start(chosen)
    m = np.zeros_like(w)
    for cohort_data in who(chosen):
        delta = np.mean([sgd(w, b) - w for b in cohort_data.values()], axis=0)
        m = 0.8 * m + delta
        w = w + 0.6 * (delta + 0.8 * m if nesterov else m)
    assert apart(native(chosen), w) <= 1e-11


def test_local_clients_never_meet() -> None:
    chosen = config("local")
    own = {k: start(chosen) for k in range(chosen.clients)}
    for cohort_data in who(chosen):
        for k, batches in cohort_data.items():
            own[k] = sgd(own[k], batches)
    state = native(chosen)
    assert apart(state, np.mean(list(own.values()), axis=0)) <= 1e-11
    models = evaluated_weights(chosen, state)
    assert len(models) == sum(visits > 0 for visits in state.visits)
    for client, model in zip(sorted(state.memory), models, strict=True):
        np.testing.assert_allclose(model.numpy(), own[client], atol=1e-11)


def test_the_global_model_is_evaluated_where_there_is_one() -> None:
    state = native(config("fedavg"))
    (only,) = evaluated_weights(config("fedavg"), state)
    assert only is state.weights


# ---------------------------------------------------------------------- settings
def test_server_defaults_are_the_published_ones() -> None:
    defaults = {name: tuple(server_settings(RunConfig(algorithm=name, clients=1, clients_per_round=1)))
                for name in ALGORITHMS}  # fmt: skip
    assert defaults.pop("diloco") == (0.7, 0.9)
    assert defaults.pop("fedavgm") == (1.0, 0.9)
    assert defaults.pop("fedadam") == defaults.pop("fedadagrad") == (0.1, 0.0)
    assert defaults.pop("fedyogi") == (0.01, 0.0)
    assert set(defaults.values()) == {(1.0, 0.0)}


@pytest.mark.parametrize("algorithm", ["feddyn", "local", "fedadam"])
def test_a_momentum_without_meaning_is_refused(algorithm: str) -> None:
    with pytest.raises(ConfigError, match="server_momentum=0.9 has no meaning for algorithm"):
        initial_state(config(algorithm, server_momentum=0.9), MODEL)


def test_a_target_that_names_no_tensor_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no tensor; the tensors are embedding, body, scale, head"):
        native(config("gc-fed", centralised_target="classifier"))


def test_centring_at_the_server_needs_the_layout() -> None:
    weights = torch.zeros(3)
    update = ClientUpdate(0, weights, 1, 1, 0.0)
    with pytest.raises(ConfigError, match="give server_step the model's layout"):
        server_step(ServerState(weights), [update], RunConfig(algorithm="gc-fed"))


# ---------------------------------------------------------------------- the operator
def test_the_layers_of_a_real_ladder_that_are_centred() -> None:
    layout = Layout({"embedding": (8, 2), "layers.0.qkv": (6, 2), "norm": (2,)})
    assert at_clients(RunConfig(algorithm="gc-fed"), layout).pieces == ((16, 28, 6), (28, 30, 1))
    assert at_clients(RunConfig(algorithm="gc-fed", centralised_vectors="keep"), layout).pieces == ((16, 28, 6),)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 10**6))
def test_centring_is_a_linear_projection_onto_zero_row_sums(out: int, width: int, clients: int, seed: int) -> None:
    layout = Layout({"a": (out, width), "b": (width,), "c": (out, width, 2)})
    centred = centring(layout)
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(clients, layout.size, generator=generator, dtype=torch.float64)
    once = centred(g)
    for name, tensor in layout.unflatten(once).items():
        sums = tensor.sum(-1) if name == "b" else tensor.flatten(2).sum(-1)
        torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-12, rtol=0)
    torch.testing.assert_close(centred(once), once)  # idempotent
    torch.testing.assert_close(centred(g.mean(0)), once.mean(0))  # the mean's centring is the centrings' mean
    torch.testing.assert_close(centred(2 * g), 2 * once)
    assert not torch.equal(g, once) or width == 1
    for row, alone in zip(once, g, strict=True):
        assert torch.equal(row, centred(alone))  # one client or many: the same
