"""What did a Hugging Face Trainer log? ``trainer_state.json`` in the folder of a run or a checkpoint; steps are rounds.

Source: ``transformers.TrainerState``; ``total_flos`` is 6 tokens times the parameters without embeddings
(``PreTrainedModel.floating_point_ops``), which is where ``params`` comes from.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

FILE = "trainer_state.json"
_OURS = {"step": "round", "loss": "train_loss", "eval_loss": "loss", "num_input_tokens_seen": "tokens"}
_SUMMARY = "train_runtime"
"""In a record without ``loss`` this says that it sums up the whole run; its ``train_loss`` is a mean over all steps."""


def is_state(content: Any) -> bool:
    """Whether the content of a JSON file is a Trainer's state."""
    return isinstance(content, Mapping) and isinstance(content.get("log_history"), list)


def is_history(records: Sequence[Any]) -> bool:
    """Whether records are a Trainer's ``log_history`` by itself, where ``loss`` is of training."""
    known = [record for record in records if isinstance(record, Mapping) and "step" in record]
    return any("loss" in record for record in known) and any(
        "eval_loss" in record or _SUMMARY in record for record in known if "loss" not in record
    )


def records_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record an entry of the log, with our names."""
    records = []
    for entry in content["log_history"]:
        if not isinstance(entry, Mapping):
            continue
        entry = dict(entry)
        if "loss" not in entry and "train_loss" in entry and _SUMMARY in entry:
            entry["train_loss_mean"] = entry.pop("train_loss")
        timing = {key: value for key, value in entry.items() if key.endswith(("_runtime", "_per_second"))}
        records.append({_OURS.get(key, key): value for key, value in entry.items() if key not in timing})
    return records


def row_of(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The run as one row: the last held-out loss, tokens, compute and what follows from them.

    Args:
        content: of the state's file.
        name: of the run.
    """
    records = records_of(content)
    last: dict[str, Any] = {}
    for record in records:
        last |= {key: record[key] for key in ("loss", "train_loss", "tokens") if record.get(key) is not None}
    tokens = content.get("num_input_tokens_seen") or last.get("tokens")
    flops = content.get("total_flos")
    row = {"run_id": name, "status": _status(content), "loss": last.get("loss"), "train_loss": last.get("train_loss")}
    row |= {"tokens": tokens, "compute": flops, "steps": content.get("global_step"), "epochs": content.get("epoch")}
    if _positive(tokens) and _positive(flops):
        row["params"] = flops / (6 * tokens)
    return {key: value for key, value in row.items() if value is not None}


def _status(content: Mapping[str, Any]) -> str | None:
    done, asked = content.get("global_step"), content.get("max_steps")
    if not _positive(done) or not _positive(asked):
        return None
    return "completed" if done >= asked else "unfinished"


def _positive(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
