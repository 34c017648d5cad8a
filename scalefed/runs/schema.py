"""What does a run log hold? Every column's type, unit and meaning, and how older logs become today's.

``COLUMNS`` describes one row a run, ``ROUND_COLUMNS`` one row a round. A column that says when, where and how fast, and
not what came out, is marked ``timing``: two logs of the same work may differ in those and in nothing else.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scalefed.values import MAY_BE_INFINITE, NOT_NEGATIVE, POSITIVE, UNIT


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a number may have, from ``low`` to ``high``; the low end itself is out where ``above``."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    infinite: bool = False

    @property
    def most(self) -> float:
        """The largest value: shares that sum to 1 come to a little more by their rounding."""
        return self.high * (1 + _ROUNDING) if self.high < _BEYOND else self.high

    def holds(self, value: float) -> bool:
        """Whether the value may be one; NaN, which says that nothing was measured, may."""
        if value != value:
            return True
        if math.isinf(value):
            return self.infinite and value > 0
        return (value > self.low if self.above else value >= self.low) and value <= self.most

    def __str__(self) -> str:
        if self.low == -math.inf:
            return "any number"
        if self.high >= _BEYOND:
            return f"above {self.low:g}" if self.above else f"at least {self.low:g}"
        return f"above {self.low:g} and at most {self.high:g}" if self.above else f"from {self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the run log.

    Attributes:
        name: the column's name, the same everywhere.
        dtype: ``int``, ``float``, ``bool``, ``str`` or ``list`` (rounds only).
        unit: what one of it is; ``-`` for names and shares without a unit.
        meaning: one line.
        kind: ``setting``, ``result`` or ``timing``.
        range: the values that it may have, if it is a number.
    """

    name: str
    dtype: str
    unit: str
    meaning: str
    kind: str = "result"
    range: Range = Range()

    @property
    def is_number(self) -> bool:
        """Whether it holds one number a row."""
        return self.dtype in ("int", "float")

    def fault(self, value: Any) -> str | None:
        """What is wrong with a stored value, in words that follow the column's name; None for a good one."""
        if value is None or (isinstance(value, float) and value != value):
            return None
        if self.dtype == "list":
            return None if isinstance(value, list) else f"must be a list, got {value!r:.60}"
        if self.dtype in ("str", "bool"):
            kind = str if self.dtype == "str" else bool
            wanted = "text" if self.dtype == "str" else "true or false"
            return None if isinstance(value, kind) else f"must be {wanted}, got {value!r:.60}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"must be a number, got {value!r:.60}"
        if self.dtype == "int" and isinstance(value, float) and not value.is_integer():
            return f"must be a whole number, got {value!r}"
        if (isinstance(value, int) or self.dtype == "int") and abs(value) >= TOO_MANY:
            return "must be a number below 2^63, got one of more digits"
        return None if self.range.holds(float(value)) else f"must be {self.range}, got {value!r}"


# name | dtype | unit | meaning; settings are the fields of RunConfig, in its order
_SETTINGS = """
clients|int|clients|clients that hold data
clients_per_round|int|clients|clients that train in a round
concentration|float|-|Dirichlet concentration of the clients' mixtures; inf is iid
local_steps|int|steps|optimizer steps a client takes in a round
algorithm|str|-|federated algorithm
variant|str|-|whose formula where papers and packages disagree
batch_size|int|sequences|sequences in a client's step
sequence_length|int|tokens|tokens in a sequence
inner_optimizer|str|-|the clients' optimizer
inner_state|str|-|whether a client's optimizer state is reset or kept between rounds
learning_rate|float|1/step|peak learning rate of the clients
learning_rate_rule|str|-|which rule gives the peak learning rate where none is given
learning_rate_scale|float|-|factor on the peak learning rate, given or by rule
final_learning_rate|float|-|end of the schedule as a share of the peak
warmup|float|-|share of all steps in which the learning rate rises
weight_decay|float|-|decoupled weight decay of the clients' optimizer
beta1|float|-|first moment decay of the clients' optimizer
beta2|float|-|second moment decay of the clients' optimizer
adam_epsilon|float|-|epsilon of the clients' optimizer
clip_norm|float|-|largest gradient norm of a client's step
inner_momentum|float|-|momentum of the clients' SGD
server_learning_rate|float|1/round|step of the server along the mean update
server_momentum|float|-|momentum of the server
server_beta1|float|-|first moment decay of an adaptive server
server_beta2|float|-|second moment decay of an adaptive server
server_epsilon|float|-|epsilon of an adaptive server
weighting|str|-|weights of the clients' updates in the mean
proximal|float|-|strength of FedProx's pull to the global weights
dynamic_regularization|float|-|strength of FedDyn's regulariser
centralised_share|float|-|share of the tensors whose gradients are centralised at the clients
centralised_target|str|-|tensors that gc-fed does not centralise at the clients
centralised_vectors|str|-|whether centring takes the mean of a vector away or keeps the vector
synthetic_share|float|-|share of a client's data that is shared synthetic text; of few blocks in expectation over rounds
synthetic_kept|float|-|share of the drawn synthetic blocks that stay, the likeliest under the model a round starts from
synthetic_tokens|int|tokens|synthetic text that each client shares
synthetic_epsilon|float|nats|privacy budget of the shared synthetic text; inf for none
synthetic_delta|float|-|chance that the privacy budget does not hold
generator_params|int|parameters|size of the model that writes a client's synthetic text
generator_steps|int|steps|training steps of that model
data|str|-|training text
data_root|str|-|folder or installed packages that real text is read from; empty for all installed here
vocab_size|int|tokens|entries of the tokenizer
partition|str|-|how examples are dealt to clients; quantity deals iid content in Dirichlet sizes, at least a block each
families_per_client|int|families|families a client holds under the pathological partition
unique_tokens|int|tokens|training text in the corpus, before any repetition; 0 for as much as tokens and clients need
sampling|str|-|how the clients of a round are drawn; fixed and uniform are two names of one draw, under two run ids
dropout|float|-|chance that a drawn client never answers; one of a round always does
stragglers|float|-|chance that a drawn client finishes only part of its steps
straggler_share|float|-|share of its steps that a straggler finishes, rounded to whole steps, at least one
checkpoint|str|-|pretrained model that training starts from
lora_rank|int|-|rank of the LoRA adapters; 0 trains all weights
problems|str|-|problem set of pass@k
problem_count|int|problems|problems that pass@k is measured on
samples|int|samples|programs sampled for each problem
temperature|float|-|sampling temperature; 0 takes the likeliest token
top_p|float|-|share of probability kept when sampling
validation_tokens|int|tokens|held-out text that loss is measured on
evaluate_every|int|rounds|rounds between evaluations; 0 for the last only
precision|str|-|number format of training
client_batching|str|-|whether clients train one by one or at once
kernels|str|-|what computes a step: auto, native (our own), eager (torch's) or compiled (torch.compile)
device|str|-|device asked for
seed|int|-|seed of this run's draws
data_seed|int|-|seed of corpus, validation text and problems
"""

_RESULTS = """
run_id|str|-|name of the run: main settings and a hash of all of them
sweep|str|-|folder that holds the run
status|str|-|completed or diverged; of a Flower run that is recorded also running, failed, or lost (no sign of life)
params|int|parameters|non-embedding parameters of the model as trained
params_asked|int|parameters|non-embedding parameters asked for
params_total|int|parameters|all parameters, embedding included
params_trained|int|parameters|parameters that training updates
tokens|int|tokens|training tokens over all clients and rounds, as spent
tokens_asked|int|tokens|training tokens asked for
compute|float|FLOPs|training compute of all clients, 6 x params x tokens
compute_exact|float|FLOPs|compute with output layer and attention counted, and with all that synthetic text costs
participation|float|-|clients_per_round / clients
participation_realised|float|-|participants_mean / clients: what dropout and Bernoulli sampling made of participation
skew|float|-|measured difference of the clients' mixtures, 0 iid to 1 disjoint, without what is chance
skew_uncorrected|float|-|the same difference of the clients' counts, chance included
local_epochs|float|-|passes of one full visit over an average client's text: tokens of a visit / tokens of a client
rounds|int|rounds|rounds of training
rounds_kept|int|rounds|rounds with a record in rounds.jsonl, spread evenly: at most 2,000, the last among them
bytes_sent|int|bytes|bytes on the wire, up and down, all clients and rounds
bytes_per_client|float|bytes|mean bytes on the wire per client
loss|float|nats/token|held-out loss on the global mixture
loss_std_error|float|nats/token|standard error of loss over held-out text
bits_per_byte|float|bits/byte|held-out loss per byte of text
loss_by_source|list|nats/token|held-out loss of each source of text (family of problems, package), in their order
loss_unseen_sources|float|nats/token|held-out loss on sources of text (packages) that no client holds
sources|list|-|packages of the clients' text, in the order of loss_by_source: name, version, licence as stated there
sources_unseen|list|-|packages that no client holds, of loss_unseen_sources
text_files|int|-|files that real text was read from
text_hash|str|-|hash of real text, held-out text included: equal ones are equal text
loss_client_mean|float|nats/token|held-out loss on each client's own mixture of sources, mean over clients
loss_client_p90|float|nats/token|held-out loss on each client's own mixture of sources, 90th percentile over clients
loss_own_text|float|nats/token|loss on a sample of the clients' own text, as much and in such shares as is held out
loss_gap|float|nats/token|loss - loss_own_text: what the model knows of its text by heart
gold_loss|float|nats/token|loss of the problems' canonical solutions given their prompts, mean over problems
train_loss|float|nats/token|mean training loss of the last round
entropy_per_token|float|nats/token|exact entropy of the text: no model's loss is lower
pass_at_1|float|-|unbiased pass@1, mean over problems
pass_at_1_low|float|-|lower end of its 95% interval
pass_at_1_high|float|-|upper end of its 95% interval
pass_at_10|float|-|unbiased pass@10, mean over problems
pass_at_10_low|float|-|lower end of its 95% interval
pass_at_10_high|float|-|upper end of its 95% interval
epochs|float|-|times an average training token was seen
tokens_per_param|float|tokens|tokens / params
weights_hash|str|-|hash of the final weights
update_norm|float|-|norm of the last round's mean update
client_drift|float|-|mean distance of a client's update from the mean update, over the mean update's norm
participants_mean|float|clients|clients that answered, mean over rounds
model_width|int|-|width of the model
model_layers|int|layers|layers of the model
model_heads|int|heads|attention heads of a layer
model_head_width|int|-|width of an attention head
model_vocab|int|tokens|entries of the model's output layer
"""

_TIMING = """
wall_s|float|s|wall-clock time of training; runs that a sweep trains at once share theirs evenly
cpu_s|float|s|processor time of training; runs that a sweep trains at once share theirs evenly
evaluate_s|float|s|wall-clock time of evaluation
peak_memory_mb|float|MB|largest resident memory of the process
tokens_per_s|float|tokens/s|training tokens over wall_s
maker|str|-|program that made the run, where it was not scalefed: its settings have no defaults
started|str|-|when the run began, ISO 8601 in UTC
commit|str|-|commit of the project's checkout
dirty|bool|-|whether that checkout had changes
device_name|str|-|device that was used
kernels_used|str|-|kernels that trained: native and the processor's level, eager, compiled; several if made in parts
kernels_version|str|-|hash of our own step's source, compiler and flags: equal ones make equal bits; empty for torch's
kernels_reason|str|-|why torch's kernels trained although our own were allowed; empty otherwise
python|str|-|version of Python
torch|str|-|version of torch
numpy|str|-|version of numpy
scalefed|str|-|version of scalefed
platform|str|-|operating system and machine
"""

_ROUNDS = """
round|int|rounds|number of the round, from 1
tokens|int|tokens|training tokens so far
loss|float|nats/token|held-out loss after the round, where it was measured
train_loss|float|nats/token|mean training loss of the round's clients
loss_own_text|float|nats/token|loss on a sample of the clients' own text after the round, where it was measured
gold_loss|float|nats/token|loss of the canonical solutions after the round, where it was measured
pass_at_1|float|-|pass@1 after the round, where it was measured
pass_at_10|float|-|pass@10 after the round, where it was measured
learning_rate|float|1/step|the clients' learning rate in the round
update_norm|float|-|norm of the mean update
client_norm|float|-|mean norm of the clients' updates
client_drift|float|-|mean distance of a client's update from the mean update, over the mean update's norm
cosine|float|-|mean cosine of a client's update and the mean update
clients|list|-|clients that were drawn
participants|int|clients|clients that answered
left_out|list|-|clients whose update was not finite and was left out
repeats|int|clients|clients of the round that had trained before
client_losses|list|nats/token|training loss of each client that answered
client_tokens|list|tokens|training tokens of each client that answered
bytes_sent|int|bytes|bytes on the wire so far, up and down
"""

_ROUND_TIMING = """
wall_s|float|s|wall-clock time of the round
cpu_s|float|s|processor time of the round
kernels_used|str|-|kernels that trained the round: native with the processor's level, eager or compiled
kernels_version|str|-|hash of our own step's source, compiler and flags; empty for torch's
"""

STATUSES = ("completed", "diverged", "running", "failed")
"""What a run may be stored as; one that is running and gives no sign of life is read as ``lost``."""

TOO_MANY = 2**63  # the first whole number that a table's column of whole numbers does not hold
_ROUNDING = 1e-9  # relative, of what is summed
_BEYOND = 1e16
"""Above every number of parameters that could be; a thousand times it for tokens, and so on up: far above any run."""
_MOST = {"parameters": _BEYOND, "tokens": 1e19, "FLOPs": 1e36, "bytes": 1e27, "nats/token": 1e4, "bits/byte": 1e4}
_SHARES = ("participation", "skew", "pass_at_")  # with what is added to these names
_ROUNDED = 1 + 1e-4  # of float32 sums over 332k weights the cosine of one client came out as 1.0000054
_SIGNED = {"cosine": Range(-_ROUNDED, _ROUNDED), "loss_gap": Range(-1e4, 1e4)}


def _range(name: str, dtype: str, unit: str, kind: str) -> Range:
    """Which values a column may have: a setting's as RunConfig has them, a result's by what it measures."""
    if dtype not in ("int", "float") or name in _SIGNED:
        return _SIGNED.get(name, Range())
    if kind == "setting":
        low = 0.0 if name in POSITIVE | NOT_NEGATIVE | UNIT else -math.inf
        high = 1.0 if name in UNIT else _MOST.get(unit, math.inf)
        return Range(low, high, above=name in POSITIVE, infinite=name in MAY_BE_INFINITE)
    if name.startswith(_SHARES):
        return Range(0, 1, above=name == "participation")
    return Range(0, _MOST.get(unit, math.inf), above=unit in ("parameters", "FLOPs"))


def _table(*texts: tuple[str, str]) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for kind, text in texts:
        for line in text.strip().splitlines():
            name, dtype, unit, meaning = line.split("|")
            columns[name] = Column(name, dtype, unit, meaning, kind, _range(name, dtype, unit, kind))
    return columns


COLUMNS: Mapping[str, Column] = _table(("result", _RESULTS), ("setting", _SETTINGS), ("timing", _TIMING))
ROUND_COLUMNS: Mapping[str, Column] = _table(("result", _ROUNDS), ("timing", _ROUND_TIMING))
TIMING: frozenset[str] = frozenset(
    column.name for table in (COLUMNS, ROUND_COLUMNS) for column in table.values() if column.kind == "timing"
)


# ---------------------------------------------------------------------- older logs
_SETTINGS_BEFORE: Mapping[int, dict[str, Any]] = {2: {"learning_rate_rule": "anew"}}
"""Schema -> settings that it brought in, with what runs before it did."""
FIRST_PLAIN_SCHEMA = 1
"""From here on, later schemas differ by what :func:`settings_of` says and by nothing else."""


def settings_of(schema: int) -> dict[str, Any]:
    """Settings that today's default is not true of, in a run of this schema that does not name them.

    >>> settings_of(1)
    {'learning_rate_rule': 'anew'}
    """
    found: dict[str, Any] = {}
    for later in sorted(_SETTINGS_BEFORE, reverse=True):
        found |= _SETTINGS_BEFORE[later] if schema < later else {}
    return found


def m001_blocks_and_status(run: dict[str, Any]) -> dict[str, Any]:
    """Version 0 kept settings and results in one flat row and a diverged run as a flag."""
    from scalefed.config import RunConfig

    row = {key: value for key, value in run.items() if key not in ("schema", "run_id", "diverged", "provenance")}
    settings = set(RunConfig.fields())
    return {
        "schema": 1,
        "run_id": run["run_id"],
        "status": "diverged" if run.get("diverged") else "completed",
        "config": {key: value for key, value in row.items() if key in settings},
        "result": {key: value for key, value in row.items() if key not in settings or key in ("params", "tokens")},
        "provenance": run.get("provenance", {}),
    }


def m002_learning_rate_rule(run: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had one rule for the learning rate."""
    config = run.get("config")
    return run | {"schema": 2} | ({"config": _SETTINGS_BEFORE[2] | config} if config else {})


UPGRADES: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (m001_blocks_and_status, m002_learning_rate_rule)
SCHEMA = len(UPGRADES)


def unit_of(name: str) -> str:
    """The unit of a column in words; empty for a share, and for a column that is not of the run log.

    >>> unit_of("loss"), unit_of("bits_per_byte"), unit_of("pass_at_1")
    ('nats per token', 'bits per byte', '')
    """
    column = COLUMNS.get(name)
    return "" if column is None or column.unit == "-" else column.unit.replace("/", " per ")


def upgrade(run: dict[str, Any]) -> dict[str, Any]:
    """A stored run as today's schema, by the numbered steps after the one it was written with.

    >>> upgrade({"schema": 0, "run_id": "a", "loss": 1.0, "seed": 3})["result"]
    {'loss': 1.0}
    """
    for step in UPGRADES[run.get("schema", 0) :]:
        run = step(run)
    return run


def unknown(names: Iterable[str], columns: Mapping[str, Column]) -> list[str]:
    """The names that the schema does not describe, in order.

    >>> unknown(["loss", "lose"], COLUMNS)
    ['lose']
    """
    return [name for name in names if name not in columns]
