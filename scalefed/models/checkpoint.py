"""What is trained when a pretrained model is given? All of it, or small LoRA adapters beside frozen weights.

With adapters, only they are trained and travel: the flat vector holds them alone, in float32 whatever the precision of
the frozen weights. Dropout is off, so that a step is a pure function of weights and tokens.
"""

import copy
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows

from scalefed.config import RunConfig
from scalefed.errors import ConfigError, DataError, MissingExtraError
from scalefed.models.decoder import require_transformers
from scalefed.models.files import checkpoint_folder
from scalefed.models.layout import Layout, Tensor
from scalefed.models.session import CheckpointSession
from scalefed.seeds import stream_seed

LORA_SCALE = 2
"""Factor on the adapters' output (peft's ``lora_alpha / r``), as in the FlowerTune baselines."""


class Checkpoint:
    """A ``transformers`` causal language model as a stateless model: weights go in as a flat vector.

    Attributes:
        module: the ``transformers`` model; its own weights are the frozen or the starting ones.
        layout: names and shapes of what is trained: the adapters, or everything.
        params: non-embedding parameters, adapters included; input and output embedding are both left out.
        params_total: all parameters, adapters included.
        params_trained: length of the flat vector.
    """

    batched = False

    def __init__(self, module: Any, *, lora_rank: int = 0, precision: str = "float32", trainable: bool = True) -> None:
        """Take over a model, and add adapters of the given rank to its linear layers (0: train everything).

        Args:
            module: a ``transformers`` causal language model; it is changed in place.
            lora_rank: rank of the adapters.
            precision: ``bfloat16`` computes in bfloat16; what is trained stays float32.
            trainable: False to read and write with the model's own weights only: the flat vector is empty, and the
                weights are in memory once.

        Raises:
            MissingExtraError: adapters are asked for and peft is not installed.
        """
        module = module.to(torch.bfloat16 if precision == "bfloat16" else torch.float32).eval()
        module.requires_grad_(False)
        embedding = {id(p) for e in (module.get_input_embeddings(), module.get_output_embeddings()) if e
                     for p in e.parameters()}  # fmt: skip
        if lora_rank:
            _adapt(module, lora_rank)
        self.lora_rank = lora_rank
        named = dict(module.named_parameters())
        trained = {name: p for name, p in named.items() if trainable and (not lora_rank or ".lora_" in name)}
        self.module = module
        self.layout = Layout({name: tuple(p.shape) for name, p in trained.items()})
        self.params = sum(p.numel() for p in named.values() if id(p) not in embedding)
        self.params_total = sum(p.numel() for p in named.values())
        self.params_trained = self.layout.size

    def initial(self, seed: int) -> Tensor:
        """Starting weights ``(P,)``: the pretrained ones, or adapters that change nothing yet.

        Adapters start as in peft: the first factor uniform within ``1 / sqrt(inputs)``, the second zero.

        Source: Hu et al. 2021 (LoRA, arXiv 2106.09685), section 4.1.
        """
        named = dict(self.module.named_parameters())
        if not self.layout.size:
            return torch.zeros(0, device=self.module.device)
        if not self.lora_rank:
            return torch.cat([named[entry.name].detach().float().reshape(-1) for entry in self.layout])
        generator = torch.Generator().manual_seed(stream_seed(seed, "weights") >> 1)
        pieces = []
        for entry in self.layout:
            if "lora_A" in entry.name:
                bound = entry.shape[-1] ** -0.5
                pieces.append((torch.rand(entry.shape, generator=generator) * 2 - 1).mul_(bound).reshape(-1))
            else:
                pieces.append(torch.zeros(entry.stop - entry.start))
        return torch.cat(pieces).to(self.module.device)

    def loss(self, weights: Tensor, blocks: Tensor) -> Tensor:
        """Mean loss in nats per token: ``(P,), (b, t+1) -> ()``."""
        logits = self.logits(weights, blocks[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].reshape(-1))

    def logits(self, weights: Tensor, tokens: Tensor) -> Tensor:
        """Next-token logits: ``(P,), (b, t) -> (b, t, vocab)``."""
        if not self.lora_rank:
            weights = weights.to(self.module.dtype)
        views = self.layout.unflatten(weights) if self.layout.size else {}
        output = torch.func.functional_call(self.module, views, (tokens,), {"use_cache": False})
        logits: Tensor = output.logits
        return logits

    @cached_property
    def decay_mask(self) -> Tensor:
        """One where weight decay applies (matrices), zero for norm scales and biases: ``(P,)``."""
        return self.layout.decay_mask()

    def to_hugging_face(self, weights: Tensor) -> Any:
        """A copy as a plain ``transformers`` model with these weights, adapters merged in."""
        model = copy.deepcopy(self.module)
        with torch.no_grad():
            model.load_state_dict(self.layout.unflatten(weights.detach()), strict=False)
            if self.lora_rank:
                _merge(model)
        return model.eval()

    def session(self, weights: Tensor, *, rows: int, length: int) -> CheckpointSession:
        """A key/value cache for sampling with these weights, adapters merged in.

        Args:
            weights: ``(P,)``.
            rows: completions written at once.
            length: most tokens of a completion, prompt included.
        """
        module = self.to_hugging_face(weights) if self.layout.size else self.module
        return CheckpointSession(module, rows=rows, length=length)


def _adapt(module: Any, rank: int) -> None:
    """Put LoRA adapters into all linear layers of a model except its output head."""
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("lora_rank needs peft; install it with: pip install 'scalefed[hf]'") from error
    settings = peft.LoraConfig(
        r=rank, lora_alpha=LORA_SCALE * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():  # peft's own random start is overwritten and must not move anybody's stream
        peft.inject_adapter_in_model(settings, module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def _merge(module: Any) -> None:
    """Add every adapter to the layer it belongs to, and take it out, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            module.set_submodule(name, layer.get_base_layer())


def load_checkpoint(config: RunConfig, *, trainable: bool = True) -> Checkpoint:
    """The model of ``config.checkpoint`` with adapters of ``config.lora_rank``, on ``config.device``.

    Args:
        config: names the checkpoint, its adapters, precision and device.
        trainable: False to read and write only, see :class:`Checkpoint`.

    Raises:
        ConfigError: sequences are longer than the model's positions.
        DataError: the checkpoint cannot be found or read.
        MissingExtraError: it needs a package that is not installed.
    """
    transformers = require_transformers()
    folder = checkpoint_folder(config.checkpoint, precision=config.precision)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    logs = transformers.utils.logging
    bar = logs.is_progress_bar_enabled()
    logs.disable_progress_bar()  # a second's work, and only the command line prints
    try:
        module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read a model from {folder}: {error}") from error
    finally:
        if bar:
            logs.enable_progress_bar()
    longest = getattr(module.config, "max_position_embeddings", None)
    if longest and config.sequence_length > longest:
        raise ConfigError(
            f"sequence_length={config.sequence_length} is longer than the {longest} positions of {config.checkpoint}; "
            f"set sequence_length={longest} or less"
        )
    return Checkpoint(
        module.to(config.device), lora_rank=config.lora_rank, precision=config.precision, trainable=trainable
    )


class CheckpointTokenizer:
    """The tokenizer of a pretrained model; text never becomes a special token, and comes back unchanged.

    Attributes:
        vocab_size: number of ids.
        eos: the id that ends a document.
        ends: all ids after which nothing of a completion follows: the special tokens.
        has_chat: whether it has a chat template.
    """

    def __init__(self, backend: Any) -> None:
        """Take over a ``transformers`` tokenizer."""
        self._backend = backend
        self.vocab_size: int = len(backend)
        if backend.eos_token_id is None:
            raise DataError("the checkpoint's tokenizer has no end token; set eos_token in its tokenizer_config.json")
        self.eos: int = backend.eos_token_id
        self.ends: tuple[int, ...] = tuple({self.eos, *backend.all_special_ids})
        self.has_chat: bool = bool(backend.chat_template)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without begin or end."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, without begin or end."""
        encoded = self._backend(list(texts), add_special_tokens=False, split_special_tokens=True)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def chat(self, request: str) -> list[int]:
        """The ids of a chat in which a user has asked and the answer is to begin."""
        messages = [{"role": "user", "content": request}]
        ids: list[int] = self._backend.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; special tokens are left out."""
        plain = [int(i) for i in ids]
        text: str = self._backend.decode(plain, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def load_tokenizer(config: RunConfig) -> CheckpointTokenizer:
    """The tokenizer of ``config.checkpoint``.

    Raises:
        DataError: the checkpoint or its tokenizer cannot be found or read.
        MissingExtraError: transformers is not installed.
    """
    transformers = require_transformers()
    folder = checkpoint_folder(config.checkpoint, precision=config.precision)
    try:
        backend = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read a tokenizer from {folder}: {error}") from error
    backend.model_max_length = 10**9  # corpora are cut into blocks later; no warning about long documents
    return CheckpointTokenizer(backend)
