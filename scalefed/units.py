"""What does a run cost: parameters, FLOPs, bytes on the wire, memory? Each formula with its source.

Conventions: ``params`` counts non-embedding parameters, ``tokens`` counts all clients and rounds together, FLOPs are
multiply-and-add = 2. All functions broadcast over numpy arrays.
"""

import re
from typing import Any, NamedTuple

import numpy as np

FLOAT32_BYTES = 4  # IEEE 754 binary32
PRIVATE_BATCHES = 8
"""Expected batch of private training, in ordinary batches: the noise that a budget asks for falls with its size."""
NATS_PER_BIT = float(np.log(2.0))


class Architecture(NamedTuple):
    """What the exact count of a decoder's FLOPs needs beside its parameters; columns of a table serve as well.

    Attributes:
        width: of the model.
        layers: of attention and MLP.
        attention_width: heads times their width.
        vocab: entries of the output layer.
        context: tokens in a training sequence; a token attends to half of them on average, itself included.
    """

    width: Any
    layers: Any
    attention_width: Any
    vocab: Any
    context: Any


def train_flops(params: Any, tokens: Any, *, model: Architecture | None = None, trained: Any = None) -> Any:
    """Training compute in FLOPs: ``6 N D``, or with ``model`` the exact count of that architecture.

    Forward is 2ND, the backward pass through activations 2ND, and the weight gradients 2 N_trained D. That leaves out
    the output layer (``6 vocab width D``) and attention over the context (``12 layers attention_width (T + 1)/2 D``, as
    a causal kernel does it): little in a large model, and most of the work in a small one. On the ladder, with 512
    tokens in the vocabulary and 128 in a sequence, the exact count is 4.21 (3.5k parameters), 2.32 (14k), 1.97 (23k),
    1.66 (55k), 1.39 (152k), 1.26 (332k) and 1.15 (1M) times ``6 N D``. Left out of both: norms, softmax, the optimizer
    (some 15 operations a parameter and step) and evaluation.

    Args:
        params: non-embedding parameters.
        tokens: tokens over all clients and rounds.
        model: the architecture, such as ``Shape.at(context)`` of a rung; None for ``6 N D``.
        trained: parameters that are updated, such as LoRA's; all of them when None.

    Source: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1; Hoffmann et al. 2022 (arXiv 2203.15556), appendix F;
    why it matters: Porian et al. 2024 (arXiv 2406.19146), section 3.

    >>> train_flops(1000, 10)
    60000.0
    >>> train_flops(1000, 10, trained=100)
    42000.0
    >>> train_flops(3504, 1, model=Architecture(width=16, layers=1, attention_width=24, vocab=512, context=128))
    88464.0
    """
    params, tokens = np.asarray(params, dtype=float), np.asarray(tokens, dtype=float)
    weights = params if trained is None else np.asarray(trained, dtype=float)
    per_token = 4.0 * params + 2.0 * weights
    if model is not None:
        width, layers, attention_width, vocab, context = (np.asarray(one, dtype=float) for one in model)
        norms = (2 * layers + 1) * width  # scales of norms multiply nothing but themselves
        attention = 12.0 * layers * attention_width * (context + 1) / 2
        output = (6.0 if trained is None else 4.0) * vocab * width
        per_token = per_token - (6.0 if trained is None else 4.0) * norms + output + attention
    flops = per_token * tokens
    return float(flops) if flops.ndim == 0 else flops


def sampling_flops(params: Any, tokens: Any, *, model: Architecture | None = None) -> Any:
    """Compute to sample ``tokens`` new tokens, or to score them, in FLOPs: ``2 N`` each, a third of training.

    Args:
        params: non-embedding parameters.
        tokens: how many are written or read.
        model: the architecture for the exact count, as in :func:`train_flops`.

    Source: Kaplan et al. 2020, section 2.1.

    >>> sampling_flops(1000, 10)
    20000.0
    """
    return train_flops(params, tokens, model=model) / 3


def bytes_on_wire(values: int, *, clients_per_round: int, rounds: int, bytes_per_value: int = FLOAT32_BYTES) -> int:
    """Bytes sent in all: every sampled client receives and returns ``values`` numbers every round.

    Source: by definition of a synchronous round (McMahan et al. 2017, arXiv 1602.05629, algorithm 1).

    >>> bytes_on_wire(1000, clients_per_round=4, rounds=10)
    320000
    """
    return 2 * int(values) * int(bytes_per_value) * int(clients_per_round) * int(rounds)


def client_memory_bytes(
    params_total: Any, *, trained: Any = None, activations: Any = 0, bytes_per_value: int = FLOAT32_BYTES
) -> Any:
    """Memory one client needs, in bytes: weights, plus gradient and two Adam moments for what is trained.

    Args:
        params_total: all parameters, embedding included.
        trained: parameters that are updated; all of them when None.
        activations: values kept for the backward pass, see :func:`activation_values`.
        bytes_per_value: 4 for float32.

    Source: Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054), section 3.1, for one precision.

    >>> client_memory_bytes(1000)
    16000.0
    """
    total = np.asarray(params_total, dtype=float)
    weights = total if trained is None else np.asarray(trained, dtype=float)
    memory = bytes_per_value * (total + 3.0 * weights + np.asarray(activations, dtype=float))
    return float(memory) if memory.ndim == 0 else memory


def activation_values(*, width: int, layers: int, tokens: int, vocab: int) -> int:
    """Roughly how many values a training step keeps: about 17 per token, width and layer, and the logits twice.

    Source: Korthikanti et al. 2022 (arXiv 2205.05198), equation 2, in values instead of bytes and with a fused
    attention kernel; good to about 30%.

    >>> activation_values(width=32, layers=2, tokens=512, vocab=512)
    1081344
    """
    return 17 * width * layers * tokens + 2 * vocab * tokens


def bits_per_byte(loss: Any, *, tokens: int, text_bytes: int) -> Any:
    """Loss in nats per token as bits per byte of text, comparable over tokenizers.

    Source: Gao et al. 2020 (The Pile, arXiv 2101.00027), section 3.1.

    >>> round(bits_per_byte(0.6931471805599453, tokens=10, text_bytes=20), 6)
    0.5
    """
    return loss * tokens / (text_bytes * NATS_PER_BIT)


def grouped(value: float, digits: int = 4) -> str:
    """A number in four digits, with thousands set apart below a billion: the one format of numbers in text.

    Args:
        value: the number.
        digits: how many count, fewer for a factor or an error.

    >>> grouped(97_784.3), grouped(5.1132e6), grouped(6.449e9), grouped(0.27091), grouped(1.2345e-7)
    ('97,780', '5,113,000', '6.449e9', '0.2709', '1.235e-7')
    >>> grouped(152.3, 2)
    '150'
    """
    if value == 0 or 1e-4 <= abs(value) < 1e9:
        return f"{float(f'{value:.{digits}g}'):,.10g}"
    return re.sub(r"e([+-])0*(\d)", lambda found: f"e{found[1].replace('+', '')}{found[2]}", f"{value:.{digits}g}")
