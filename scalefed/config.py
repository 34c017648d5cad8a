"""What is a run? One flat frozen set of settings, which is also the row of the run log.

A :class:`RunConfig` reads from TOML and from ``key=value`` words, checks itself, and names itself: its ``run_id`` is a
hash of everything that differs from the defaults, so equal settings mean the same run everywhere.
"""

import dataclasses
import hashlib
import json
import math
import os
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from scalefed.errors import ConfigError, nearest
from scalefed.typeset import html_table
from scalefed.units import train_flops
from scalefed.values import BYTE_VOCABULARY, as_toml, check_range, coerce, short

# Defaults that have changed since ids were first given, as they were then: an id is a hash of what differs from those.
_FIRST_DEFAULTS = {
    "inner_state": "reset", "final_learning_rate": 0.1, "learning_rate_rule": "anew", "kernels": "eager",
}  # fmt: skip
# Values that name the same run as the first default: kernels chosen by themselves stand in the log, not in the name.
_SAME_RUN = {"kernels": "auto"}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one federated training run. See the README for every field's meaning and unit.

    Attributes:
        params: non-embedding parameters asked for; the nearest shape of the ladder is trained and its count logged.
        tokens: training tokens over all clients and rounds; rounded to whole rounds.
        clients: how many clients hold data.
        clients_per_round: how many of them train in a round.
        concentration: Dirichlet concentration of the clients' family mixtures; infinity is iid.
        local_steps: optimizer steps a client takes in a round.
        algorithm: one of :data:`scalefed.values.ALGORITHMS`; ``central`` trains on everything with no federation.
        variant: whose formula, where papers and packages disagree: ``paper`` or ``flower``.
        batch_size: sequences in a client's step.
        sequence_length: tokens in a sequence.
        inner_state: whether a client's optimizer goes on from its last round (``keep``) or starts anew (``reset``), as
            it must where clients cannot store anything. On the micro benchmark ``reset`` costs a tenth to a third of
            the loss.
        learning_rate: peak learning rate of the clients; None for the rule :attr:`client_learning_rate`.
        learning_rate_rule: ``kept`` for clients that keep their optimizer's state, ``anew`` for those that do not.
        learning_rate_scale: factor on the peak learning rate, given or by rule.
        final_learning_rate: end of the cosine schedule over rounds, as a share of the peak.
        warmup: share of all steps in which the learning rate rises linearly.
        server_learning_rate: step of the server along the mean update; None for the algorithm's published default.
        server_momentum: Nesterov momentum of the server (FedAvg, DiLoCo) or heavy ball (FedAvgM); None for the default.
        inner_momentum: momentum of the clients' SGD; AdamW has its own ``beta1``.
        proximal: FedProx's strength mu. dynamic_regularization: FedDyn's alpha.
        centralised_target: gc-fed centralises every tensor at the clients but those whose name holds this word; empty
            for the first ``centralised_share`` of the tensors instead, the output layer counted last.
        centralised_vectors: what centring does to vectors: ``mean`` takes their mean away, as the published code does;
            ``keep`` leaves them alone.
        synthetic_share: share of every client's batch that is synthetic text. synthetic_tokens: how much each client
            shares. synthetic_epsilon, synthetic_delta: differential privacy of each of its blocks; inf is none.
        synthetic_kept: share of the synthetic blocks that a client draws in a round and keeps: those that the model it
            starts from finds likeliest. 1 keeps all.
        generator_params: size of the model that writes the synthetic text. generator_steps: its training steps.
        kernels: what computes a step. ``auto`` takes our own, compiled on first use, for the ladder's models on a
            processor where there is a C compiler, and torch's elsewhere; ``native`` demands our own, ``eager`` torch's;
            ``compiled`` runs the model through ``torch.compile``. They differ in rounding: the run log's
            ``kernels_used`` says which it was. ``auto`` and ``eager`` are one run to :attr:`run_id`.
        device: where clients train and samples are drawn: ``cpu``, ``cuda`` or ``cuda:1``. On a GPU, runs that share
            steps are equal to those alone up to rounding, not to the last bit.
        data: ``micro``, or ``python`` for functions of installed packages. A model of the ladder reads those as bytes
            (``vocab_size`` 257), and its ``problems`` are ``none`` unless another set than micro's is named: of micro's
            problems it has read nothing.
        data_root: what ``data="python"`` reads: a folder (with a slash in it) whose entries are packages, or names of
            installed packages with spaces between them; empty for all that is installed here. A pretrained model reads
            whole files, of the standard library or of a folder.
        unique_tokens: size of the training corpus in tokens; 0 for enough that an average client repeats nothing and
            that every client holds a block.
        seed: draws of this run (weights, partition, participation, batches, sampling).
        data_seed: draws of the corpus, the validation text and the problems, shared by runs that are compared.
    """

    params: int = 24_000
    tokens: int = 2_000_000
    clients: int = 16
    clients_per_round: int = 4
    concentration: float = math.inf
    local_steps: int = 25
    algorithm: str = "fedavg"
    variant: str = "paper"
    # the clients' optimizer
    batch_size: int = 4
    sequence_length: int = 128
    inner_optimizer: str = "adamw"
    inner_state: str = "keep"
    learning_rate: float | None = None
    learning_rate_rule: str = "kept"
    learning_rate_scale: float = 1.0
    final_learning_rate: float = 0.01
    warmup: float = 0.05
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    adam_epsilon: float = 1e-8
    clip_norm: float = 1.0
    inner_momentum: float = 0.0
    # the server's
    server_learning_rate: float | None = None
    server_momentum: float | None = None
    server_beta1: float = 0.9
    server_beta2: float = 0.99
    server_epsilon: float = 1e-3
    weighting: str = "tokens"
    # algorithm settings
    proximal: float = 0.01
    dynamic_regularization: float = 0.1
    centralised_share: float = 0.9
    centralised_target: str = "embedding"
    centralised_vectors: str = "mean"
    synthetic_share: float = 0.1
    synthetic_kept: float = 1.0
    synthetic_tokens: int = 20_000
    synthetic_epsilon: float = math.inf
    synthetic_delta: float = 1e-5
    generator_params: int = 6_000
    generator_steps: int = 250
    # data and clients
    data: str = "micro"
    data_root: str = ""
    vocab_size: int = 512
    partition: str = "dirichlet"
    families_per_client: int = 2
    unique_tokens: int = 0
    sampling: str = "fixed"
    dropout: float = 0.0
    stragglers: float = 0.0
    straggler_share: float = 0.5
    # a pretrained model instead of the ladder
    checkpoint: str = ""
    lora_rank: int = 0
    # evaluation
    problems: str = "micro"
    problem_count: int = 164
    samples: int = 20
    temperature: float = 0.8
    top_p: float = 1.0
    validation_tokens: int = 65_536
    evaluate_every: int = 0
    # how it is computed
    precision: str = "float32"
    client_batching: str = "auto"
    kernels: str = "auto"
    device: str = "cpu"
    seed: int = 0
    data_seed: int = 0

    def __post_init__(self) -> None:
        """Check every field; raises :class:`ConfigError`."""
        kinds = _kinds()
        for name, value in self.items():
            object.__setattr__(self, name, coerce(name, value, kinds[name]))
        for name, value in self.items():
            check_range(name, value)
        if self.clients_per_round > self.clients:
            raise ConfigError(
                f"clients_per_round={self.clients_per_round} is more than clients={self.clients}; "
                "lower clients_per_round or add clients"
            )
        self._check_text()
        if self.algorithm == "central" and self.clients != 1:
            raise ConfigError(
                f"algorithm='central' trains one client that holds everything, got clients={self.clients}; "
                "set clients=1 clients_per_round=1"
            )

    def _check_text(self) -> None:
        """Real text is read by a model of the ladder as bytes and has no problems of its own."""
        if self.data_root and self.data != "python":
            raise ConfigError(f"data_root={self.data_root!r:.80} is what data='python' reads; set data=python too")
        if self.data != "python" or self.checkpoint:
            return
        if self.vocab_size not in (BYTE_VOCABULARY, type(self).vocab_size):
            raise ConfigError(
                f"data='python' is read as bytes, so vocab_size is {BYTE_VOCABULARY}, got {self.vocab_size}; "
                "leave it out"
            )
        object.__setattr__(self, "vocab_size", BYTE_VOCABULARY)
        if self.problems == type(self).problems:
            object.__setattr__(self, "problems", "none")

    # ------------------------------------------------------------------ reading and writing
    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """The names of all settings, in order."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """A config from a mapping; an unknown key is an error that names its nearest neighbour.

        ``participation`` may stand for ``clients_per_round``: a share of the clients in (0, 1].
        """
        for name in settings:
            if name not in (*cls.fields(), "participation"):
                raise ConfigError(f"unknown setting {name!r:.60}; {nearest(name, cls.fields())}")
        return cls(**_without_participation(settings))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *overrides: str) -> Self:
        """A config from a TOML file, with ``key=value`` words on top.

        Raises:
            ConfigError: the file is missing or no TOML, a key is unknown, or a value is out of range.
        """
        return cls.from_dict({**read_toml(path), **parse_overrides(overrides)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what differs from the defaults as TOML."""
        lines = [f"{name} = {as_toml(value)}" for name, value in self.changed().items()]
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def items(self) -> Iterator[tuple[str, Any]]:
        """Pairs of name and value, in order."""
        return ((name, getattr(self, name)) for name in self.fields())

    def __repr__(self) -> str:
        return f"RunConfig({', '.join(f'{name}={value!r}' for name, value in self.changed().items())})"

    def _repr_html_(self) -> str:
        rows = [(name, str(value)) for name, value in self.changed().items()]
        return f"<div><p><code>{self.run_id}</code></p>{html_table(('setting', 'value'), rows)}</div>"

    def to_dict(self) -> dict[str, Any]:
        """All settings as a plain dict."""
        return dict(self.items())

    def changed(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        return self._differing({})

    def _differing(self, other_defaults: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that differ from the defaults, some of which are given."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)} | dict(other_defaults)
        return {name: value for name, value in self.items() if value != defaults[name]}

    def replace(self, **changes: Any) -> Self:
        """A copy with some settings changed; unknown names are an error."""
        return self.from_dict({**self.to_dict(), **changes})

    # ------------------------------------------------------------------ what follows from the settings
    @property
    def run_id(self) -> str:
        """The run's name: its main settings in words, then a hash of everything that differs from the defaults.

        A default that changes later changes no id: the hash is over what differs from the first defaults.
        """
        differing = {k: v for k, v in self._differing(_FIRST_DEFAULTS).items() if _SAME_RUN.get(k) != v}
        text = json.dumps({"version": 1, **differing}, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=5).hexdigest()
        mix = "iid" if math.isinf(self.concentration) else f"c{self.concentration:g}"
        return (
            f"{self.algorithm}-{short(self.params)}-{short(self.tokens)}-"
            f"{self.clients_per_round}of{self.clients}-{mix}-s{self.seed}-{digest}"
        )

    @property
    def participation(self) -> float:
        """Share of the clients that train in a round."""
        return self.clients_per_round / self.clients

    @property
    def tokens_per_round(self) -> int:
        """Tokens all sampled clients see in one round."""
        return self.clients_per_round * self.local_steps * self.batch_size * self.sequence_length

    @property
    def rounds(self) -> int:
        """Rounds that come nearest to ``tokens``, at least one."""
        return max(1, round(self.tokens / self.tokens_per_round))

    @property
    def compute(self) -> float:
        """Training FLOPs of all clients, 6 x params x tokens, for the parameters asked for."""
        return float(train_flops(self.params, self.tokens))

    @property
    def corpus_tokens(self) -> int:
        """Tokens in the training corpus: ``unique_tokens``, else the next power of two above ``tokens``.

        No fewer than a block a client; a deal that still leaves a client without one doubles them.
        """
        least = max(self.tokens, 2**18, self.clients * (self.sequence_length + 1))
        return self.unique_tokens or 2 ** math.ceil(math.log2(least))

    @property
    def client_learning_rate(self) -> float:
        """Peak learning rate: ``learning_rate_scale`` times the one given, or times a rule (pretrained 2e-4, SGD 0.1).

        The rule ``kept``, for clients that keep Adam's moments, is ``0.013 (params / 24,000)^-0.5
        clients_per_round^0.25`` at every budget: the mean of several clients bears larger steps. Server momentum
        lengthens every step: with it, scale the rate by 1 - momentum. The rule ``anew``, for moments that start anew
        in every round, is ``0.012 (params / 24,000)^-0.5 clients_per_round^-0.25``, made for 2M tokens; there the best
        rate falls about as ``tokens^-0.4``.

        Source: measured on the micro benchmark from 14k to 150k parameters, 1 to 16 clients a round and 1M to 8M
        tokens, see ``runs/LOG.md``.
        """
        return self.learning_rate_scale * (self.learning_rate or self._rate_by_rule())

    def _rate_by_rule(self) -> float:
        if self.inner_optimizer == "sgd":
            return 0.1
        if self.checkpoint:
            return 2e-4
        base, exponent = (0.013, 0.25) if self.learning_rate_rule == "kept" else (0.012, -0.25)
        return float(base * (self.params / 24_000) ** -0.5 * self.clients_per_round**exponent)


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Settings from ``key=value`` words, typed by the field.

    Raises:
        ConfigError: a word without ``=``, an unknown key, or a value of the wrong type.

    >>> parse_overrides(["clients=8", "concentration=inf"])
    {'clients': 8, 'concentration': inf}
    """
    kinds, settings = _kinds() | {"participation": float}, {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConfigError(f"expected key=value, got {word!r}; for example clients=16")
        if name not in kinds:
            raise ConfigError(f"unknown setting {name!r:.60}; {nearest(name, kinds)}")
        settings[name] = coerce(name, text.strip(), kinds[name], from_text=True)
    return settings


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A TOML file as a dict.

    Raises:
        ConfigError: the file is missing or is not TOML.
    """
    try:
        if not Path(path).is_file():  # nor a pipe, which would be waited for
            raise FileNotFoundError
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, OSError) as error:
        why = "" if isinstance(error, FileNotFoundError) else f" that can be read ({error.strerror})"
        raise ConfigError(
            f"no config file{why} at {str(path):.200}; give the path of a TOML file such as runs/base.toml"
        ) from None
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, a number of thousands of digits, too deep
        raise ConfigError(f"{str(path):.200} is not valid TOML: {str(error):.200}") from error


def cache_directory() -> Path:
    """Where weights and corpora go: ``SCALEFED_CACHE``, ``XDG_CACHE_HOME/scalefed``, or ``~/.cache/scalefed``."""
    if own := os.environ.get("SCALEFED_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "scalefed"


# ---------------------------------------------------------------------- helpers
def _kinds() -> dict[str, Any]:
    hints = typing.get_type_hints(RunConfig)
    return {name: hints[name] for name in RunConfig.fields()}


def _without_participation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a share of the clients turned into a number of clients."""
    rest = dict(settings)
    if "participation" not in rest:
        return rest
    share = coerce("participation", rest.pop("participation"), float)
    if not 0 < share <= 1:
        raise ConfigError(f"participation must be in (0, 1], got {share:g}; 0.25 trains a quarter of the clients")
    clients = coerce("clients", rest.get("clients", RunConfig.clients), int)
    return rest | {"clients_per_round": max(1, round(share * clients))}
