"""Known truths for every named law, shared by the tests of laws, solver and fits."""

TRUTHS = {
    "chinchilla": {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37},
    "kaplan": {"A": 5.5e10, "a": 0.8, "B": 3e13, "c": 0.11},
    "coupled": {"E": 1.7, "A": 2300.0, "a": 0.42, "B": 1e4, "b": 0.43, "c": 0.77},
    "data-constrained": {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37, "R": 12.0},
    "diloco": {"A": 19.0, "a": 0.0985, "g": 0.0116},
    "diloco-offset": {"E": 0.97, "A": 30.0, "a": 0.15, "g": 0.0173},
    "average-compute": {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37},
    "federated": {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37, "g": 0.4, "s": 0.6},
    "federated-skew": {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37, "g": 0.4, "s": 0.6, "h": 0.5},
    "federated-steps": {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37, "G": 5e4, "c": 0.5, "s": 0.8},
    "federated-excess": {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37, "g": 0.4, "s": 0.6},
    "federated-excess-skew": {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37, "g": 0.4, "s": 0.6, "h": -0.5},
    "federated-excess-steps": {
        "E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37, "G": 5e4, "c": 0.5, "s": 0.8,
    },
    "federated-coupled": {
        "E": 1.7, "A": 2300.0, "a": 0.42, "B": 1e4, "b": 0.43, "c": 0.77, "g": 0.4, "s": 0.6, "r": 0.3,
    },
    "federated-capacity": {
        "E": 1.7, "A": 2300.0, "a": 0.42, "B": 1e4, "b": 0.43, "c": 0.77, "g": 0.4, "s": -0.6, "h": 0.08, "r": 0.3,
    },
    "federated-capacity-steps": {
        "E": 1.7, "A": 2300.0, "a": 0.42, "B": 1e4, "b": 0.43, "c": 0.77, "s": -0.6, "h": 0.08, "r": 0.3,
        "G": 2e5, "d": 0.6, "t": 0.5,
    },
    "federated-data-constrained": {
        "E": 1.7, "A": 2300.0, "a": 0.42, "B": 1e4, "b": 0.43, "R": 12.0, "c": 0.77, "s": -0.6, "h": 0.08, "r": 0.3,
        "G": 2e5, "d": 0.6, "t": 0.5, "k": 0.1, "f": 0.4, "l": 0.06,
        "O": 0.03, "w": 0.3, "x": 0.2, "y": 0.1, "z": 0.4, "v": 0.9,
    },
    "federated-cross-device": {
        "E": 1.7, "A": 2300.0, "a": 0.42, "B": 1e4, "b": 0.43, "R": 12.0, "c": 0.77, "s": -0.6, "h": 0.08, "r": 0.3,
        "G": 2e5, "d": 0.6, "t": 0.5, "k": 0.1, "f": 0.4, "l": 0.06, "u": 0.15,
        "O": 0.03, "w": 0.3, "x": 0.2, "y": 0.1, "z": 0.4, "v": 0.9,
    },
    "federated-population": {
        "E": 1.7, "A": 2300.0, "a": 0.42, "B": 1e4, "b": 0.43, "c": 0.77, "s": -0.6, "h": 0.08, "r": 0.3,
        "G": 2e5, "d": 0.6, "t": 0.5, "k": 0.1, "f": 0.4, "l": 0.06, "u": 0.15,
    },
    "federated-drift": {
        "E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37, "g": 0.4, "s": 1.0, "F": 0.3, "h": 0.5, "r": 0.6,
    },
    "farseer": {
        "F": 1.1, "s": -0.021, "q": 0.17, "B": 0.002, "t": 88.0, "b": -0.1, "u": -0.124, "a": 0.123, "v": 0.42,
    },
    "precision": {"E": 2.7, "A": 4300.0, "g": 2.7, "a": 0.51, "B": 1.8e4, "b": 0.53},
    "epoch-decay": {"E": 1.9, "A": 500.0, "a": 0.35, "B": 1500.0, "R": 6.0, "b": 0.35},
    "transfer": {"A": 1e9, "a": 0.9, "B": 5e8, "k": 1.9e4, "p": 0.18, "q": 0.38, "c": 0.2},
    "vocabulary": {"A": 30.0, "a": 0.1, "V": 6.0, "v": 0.15, "B": 25.0, "b": 0.12, "E": 3.0},
    "sigmoid-accuracy": {"G": 0.25, "U": 0.6, "k": 4.0, "c": 12.0},
}  # fmt: skip
NAMES = tuple(TRUTHS)
RUN = {
    "params": 1e8, "tokens": 4e9, "clients_per_round": 4.0, "skew": 0.3, "local_steps": 50.0, "rounds": 1e4,
    "unique_tokens": 1e9, "clients": 16.0, "epochs": 4.0, "bits": 6.0, "vocab_params": 5e7, "task_loss": 2.8,
}  # fmt: skip
OF_OWN_COLUMNS = ("farseer", "precision", "epoch-decay", "transfer", "vocabulary", "sigmoid-accuracy")
"""Published laws; those of forms or columns of their own are recovered and asked in tests/laws/test_published.py."""
