"""Which kernels does a run train with, and why? Ours where they can be had and serve, torch's elsewhere, by name."""

import ctypes
import logging
from dataclasses import dataclass
from functools import cache

import torch

from scalefed.config import RunConfig
from scalefed.errors import ConfigError
from scalefed.federated.native.build import Unavailable, level, library, step_version
from scalefed.federated.native.library import what_is_wrong
from scalefed.models import Decoder, Model

logger = logging.getLogger(__name__)
THREADED_PARAMS = 3_000_000
"""From this size on, torch's threads share a product (:class:`scalefed.experiment.training.one_thread`)."""


@dataclass(frozen=True)
class Kernels:
    """What trains a client.

    Attributes:
        name: ``native``, ``eager`` or ``compiled``.
        level: of the processor, for ``native``.
        version: of our step (:func:`~scalefed.federated.native.build.step_version`), for ``native``.
        reason: why torch's serve although ours were to be taken where they can; empty otherwise.
        code: the loaded library of ``native``.
    """

    name: str
    level: str = ""
    version: str = ""
    reason: str = ""
    code: ctypes.CDLL | None = None

    def __str__(self) -> str:
        """As the run log has it, such as ``native x86-64-v4``."""
        return f"{self.name} {self.level}".strip()


def choose(model: Model, config: RunConfig, *, dtype: torch.dtype = torch.float32) -> Kernels:
    """The kernels that train ``model`` under ``config``.

    Args:
        model: ours are written for :class:`~scalefed.models.Decoder`.
        config: ``kernels`` ``auto`` takes ours where they serve; ``native`` demands them.
        dtype: of the weights.

    Raises:
        ConfigError: ``native`` is demanded and cannot be had; the line says why.
    """
    if config.kernels in ("eager", "compiled"):
        return Kernels(config.kernels)
    reason = _unfit(model, config, dtype)
    advice = "set kernels='auto' to train such runs with torch"
    if not reason:
        chosen = level()
        code = library(chosen, what_is_wrong)
        if not isinstance(code, Unavailable):
            return Kernels("native", chosen, step_version(chosen), code=code)
        reason, advice = code.reason, code.advice
        if config.kernels == "auto":
            _say_once(code)
    if config.kernels == "native":
        raise ConfigError(f"kernels='native' cannot be had: {reason}; {advice}")
    return Kernels("eager", reason=reason)


def _unfit(model: Model, config: RunConfig, dtype: torch.dtype) -> str:
    """Why ours cannot serve such a run; empty where they can."""
    if config.device != "cpu":
        return f"device {config.device}"
    if not isinstance(model, Decoder):
        return "a pretrained model" if config.checkpoint else "not the ladder's decoder"
    if model.precision != "float32":
        return f"precision {model.precision}"
    if dtype != torch.float32:
        return f"weights in {str(dtype).removeprefix('torch.')}"
    if config.kernels == "auto" and model.params >= THREADED_PARAMS and torch.get_num_threads() > 1:
        return f"torch has {torch.get_num_threads()} threads, which pay from {THREADED_PARAMS:,} parameters"
    return ""


@cache
def _say_once(missing: Unavailable) -> None:
    logger.warning(
        "%s: training uses torch, two to four times slower; %s; kernels=eager silences this",
        missing.reason,
        missing.advice,
    )
