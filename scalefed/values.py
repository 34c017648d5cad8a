"""Which values may a setting have? The allowed choices and ranges, and how text becomes a value and a value text."""

import json
import math
import types
import typing
from typing import Any

from scalefed.errors import ConfigError, nearest

ALGORITHMS = (
    "fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold", "fednova", "feddyn", "fedvarp",
    "diloco", "gc-local", "gc-global", "gc-fed", "synthetic-sharing", "local", "central",
)  # fmt: skip
PARTITIONS = ("dirichlet", "iid", "pathological", "quantity", "natural")
PARTICIPATION = ("fixed", "uniform", "bernoulli", "weighted", "cyclic")
DATA = ("micro", "python")
BYTE_VOCABULARY = 257  # the bytes and the end of a document: what a model of the ladder reads real text in

POSITIVE = {
    "params", "tokens", "clients", "clients_per_round", "concentration", "local_steps", "batch_size",
    "sequence_length", "learning_rate", "learning_rate_scale", "server_learning_rate", "adam_epsilon", "clip_norm",
    "samples", "validation_tokens", "problem_count", "families_per_client", "vocab_size",
    "server_epsilon", "synthetic_epsilon", "synthetic_delta", "synthetic_kept", "generator_params",
    "generator_steps",
}  # fmt: skip
NOT_NEGATIVE = {
    "weight_decay", "unique_tokens", "warmup", "proximal", "evaluate_every", "lora_rank", "seed", "data_seed",
    "server_momentum", "dynamic_regularization", "synthetic_tokens", "temperature",
}  # fmt: skip
UNIT = {
    "beta1", "beta2", "server_beta1", "server_beta2", "dropout", "stragglers", "straggler_share", "final_learning_rate",
    "synthetic_share", "synthetic_kept", "top_p", "server_momentum", "centralised_share", "warmup", "inner_momentum",
    "synthetic_delta",
}  # fmt: skip
MAY_BE_INFINITE = {"concentration", "clip_norm", "synthetic_epsilon"}
"""Settings of which infinity means something: iid clients, no clipping, no privacy budget."""
CHOICES = {
    "algorithm": ALGORITHMS, "variant": ("paper", "flower"), "partition": PARTITIONS, "sampling": PARTICIPATION,
    "data": DATA, "inner_optimizer": ("adamw", "sgd"), "inner_state": ("reset", "keep"),
    "learning_rate_rule": ("kept", "anew"), "precision": ("float32", "bfloat16"),
    "client_batching": ("auto", "batched", "loop"), "weighting": ("tokens", "uniform"),
    "centralised_vectors": ("mean", "keep"), "kernels": ("auto", "native", "eager", "compiled"),
}  # fmt: skip


def coerce(name: str, value: Any, kind: Any, *, from_text: bool = False) -> Any:
    """The value as the field's type, or a ConfigError that says what is allowed."""
    if isinstance(kind, types.UnionType):
        if value is None or (from_text and value.lower() in ("none", "auto")):
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    try:
        if kind is str:
            if not isinstance(value, str):
                raise TypeError
            return value
        if isinstance(value, bool) or (isinstance(value, str) and not from_text):
            raise TypeError
        number = float(value.replace("_", "")) if isinstance(value, str) else float(value)
        if math.isnan(number):
            raise ValueError
        if kind is int:
            if not number.is_integer():
                raise ValueError
            return int(value) if isinstance(value, int) else int(number)
        return number
    except (TypeError, ValueError, OverflowError):
        wanted = {int: "a whole number", float: "a number", str: "text"}[kind]
        raise ConfigError(f"{name} must be {wanted}, got {value!r}") from None


def check_range(name: str, value: Any) -> None:
    """Raise a ConfigError unless the setting may have that value."""
    if value is None:
        return
    if name in CHOICES and value not in CHOICES[name]:
        raise ConfigError(f"unknown {name} {value!r}; {nearest(value, CHOICES[name])}")
    if isinstance(value, (int, float)):
        if math.isinf(value) and (value < 0 or name not in MAY_BE_INFINITE):
            raise ConfigError(f"{name} must be finite, got {value:g}")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ConfigError(f"{name} must be below 2^63, got a number of {len(str(abs(value)))} digits")
    if name in POSITIVE and not value > 0:
        raise ConfigError(f"{name} must be positive, got {value:g}")
    if name in NOT_NEGATIVE and value < 0:
        raise ConfigError(f"{name} must be zero or positive, got {value:g}")
    if name in UNIT and not 0 <= value <= 1:
        raise ConfigError(f"{name} must be between 0 and 1, got {value:g}")


def as_toml(value: Any) -> str:
    """A setting's value as TOML."""
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def short(number: float) -> str:
    """A count in three digits: 24000 -> 24k."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"
