"""How do scattered records become one row a round? Blanks never erase a number, and contradictions are never settled.

Loggers write training and validation of a round in different rows, and leave the other columns blank. A log with one
row a client has several rows a round that differ: those become means weighted by the clients' tokens or examples.
"""

import math
import numbers as abstract
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scalefed.errors import DataError, RunLogWarning, nearest
from scalefed.runs.amounts import NOTHING, is_lost
from scalefed.runs.amounts import number as number_in
from scalefed.runs.ranges import outside, refuse
from scalefed.runs.schema import ROUND_COLUMNS
from scalefed.runs.tables import likely_columns, numbers, some_names

if TYPE_CHECKING:
    import pandas as pd

Record = Mapping[Any, Any]

ROUND_NAMES = (
    "round", "server_round", "round_number", "central_iteration", "current_round", "communication_round", "comm_round",
    "global_round", "rnd", "iteration", "_step", "step", "global_step", "trainer/global_step", "epoch",
)  # fmt: skip
"""What logs call the number of the round, the best first; case does not count."""
CLIENT_NAMES = (
    "client", "client_id", "cid", "node", "node_id", "partition_id", "partition", "worker", "worker_id", "user",
    "user_id",
)  # fmt: skip
"""What logs call the client of a row."""
WEIGHT_NAMES = (
    "tokens", "num_tokens", "num_examples", "num-examples", "n_examples", "examples", "num_samples", "n_samples",
    "samples", "n", "data_size", "size", "weight",
)  # fmt: skip
"""What logs call the amount of data behind a client's row, the best first."""
_CLOCKS = (
    "time", "timestamp", "_timestamp", "_runtime", "wall_time", "wall_s", "cpu_s", "elapsed", "date", "datetime",
    "relative time (process)", "relative time (wall)", "wall time", "epoch",
)  # fmt: skip
"""Columns in which two rows of one round may differ: the last stands."""


def rounds_table(records: Iterable[Record], columns: Mapping[str, str] | None, what: str) -> "pd.DataFrame":
    """One row a round, our columns first.

    Args:
        records: in any order; those without a round are left out.
        columns: our name -> the name in the records; ``round`` too.
        what: the log's name in a message.

    Raises:
        DataError: no record has a round, a name in ``columns`` is unknown, rows of one round contradict each other, or
            a number is none or cannot be.
    """
    import pandas as pd

    found = [_named(record) for record in records]
    found = [_numbered(record, what) for record in _renamed(found, dict(columns or {}), what)]
    rows: dict[int, list[dict[str, Any]]] = {}
    for record in found:
        if "round" in record:
            rows.setdefault(_whole(record.pop("round"), what), []).append(record)
    if not rows:
        seen = some_names(dict.fromkeys(key for record in found for key in record)) or "nothing"
        raise DataError(
            f"no rounds in {what}: each record needs a round number under one of: {', '.join(ROUND_NAMES)}, or name "
            f'yours by columns={{"round": "..."}}; it has {seen}'
        )
    client = _client_name(rows.values())
    merged = [
        {"round": number} | (_merged(rows[number], number, what) if client is None
                             else _of_clients(rows[number], client, number, what))
        for number in sorted(rows)
    ]  # fmt: skip
    if client is not None:
        _so_far(merged)
        if not any(_weights([row for row in records if client in row]) for records in rows.values()):
            warnings.warn(
                f"{what}: clients' rows weigh alike, no column of theirs says how much data is behind them; name it by "
                'columns={"tokens": "..."}',
                RunLogWarning,
                stacklevel=3,
            )
    frame = numbers(pd.DataFrame(merged), what, ROUND_COLUMNS)
    refuse(outside(frame, frame.columns, ROUND_COLUMNS), what)
    known = [name for name in ROUND_COLUMNS if name in frame.columns]
    return frame[known + [name for name in frame.columns if name not in known]]


# ---------------------------------------------------------------------- names
def _named(record: Record) -> dict[str, Any]:
    """The record without its blanks, names as text."""
    return {str(key).strip(): value for key, value in record.items() if not _is_blank(value)}


def _renamed(records: list[dict[str, Any]], columns: dict[str, str], what: str) -> list[dict[str, Any]]:
    seen = list(dict.fromkeys(key for record in records for key in record))
    for ours, theirs in columns.items():
        if ours not in ROUND_COLUMNS:
            raise DataError(f"{ours!r} is no column of a round; {nearest(ours, ROUND_COLUMNS)}")
        if theirs not in seen:
            raise DataError(f"{what} has no metric {theirs!r}, only {some_names(seen)}")
    for ours in ("round", "loss"):
        if ours not in columns and ours not in seen and (found := _like(ours, seen, columns)):
            columns[ours] = found
    held_out = likely_columns([name for name in seen if name != "loss"], ["loss"]).get("loss")
    if held_out and "loss" in seen and not {"loss", "train_loss"} & set(columns) and "train_loss" not in seen:
        columns |= {"loss": held_out, "train_loss": "loss"}
        warnings.warn(
            f"{what}: loss is read as the training loss, as {held_out} stands beside it; columns={{'loss': 'loss'}} if "
            "it is held out",
            RunLogWarning,
            stacklevel=4,
        )
    back = {theirs: ours for ours, theirs in columns.items()}
    return [{back.get(key, key): value for key, value in record.items() if key in back or key not in columns}
            for record in records]  # fmt: skip


def _numbered(record: dict[str, Any], what: str) -> dict[str, Any]:
    """The record with texts in our columns as the numbers they stand for."""
    for name, value in list(record.items()):
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
            record[name] = value = float(value) if abs(value) < 10**300 else math.inf  # more than any count
        if isinstance(value, str) and name in ROUND_COLUMNS and ROUND_COLUMNS[name].is_number and name != "round":
            number = number_in(value, ROUND_COLUMNS[name].unit)
            if number is None and not is_lost(value):
                where = f" in round {record['round']!r:.20}" if "round" in record else ""
                raise DataError(
                    f"{what}: {name} must be a number ({ROUND_COLUMNS[name].unit}), got {value!r:.60}{where}"
                )
            if number is None or math.isnan(number):
                del record[name]
            else:
                record[name] = number
    return record


def _like(ours: str, seen: Sequence[str], columns: Mapping[str, str]) -> str | None:
    """What these records call one of our columns, whatever its case; None if nothing."""
    folded: dict[str, str] = {}
    for name in seen:
        if name not in columns.values():
            folded.setdefault(name.lower().replace(" ", "_"), name)
    return next((folded[name] for name in (ROUND_NAMES if ours == "round" else (ours,)) if name in folded), None)


def _whole(value: Any, what: str) -> int:
    try:
        number = float(value)
        if not number.is_integer() or not 0 <= number < 2**53 or isinstance(value, bool):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{what}: a round must be a whole number from 0 up, got {value!r:.60}") from None
    return int(number)


def _is_blank(value: Any) -> bool:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and value.strip().lower() in NOTHING


# ---------------------------------------------------------------------- one round
def _merged(records: Sequence[dict[str, Any]], number: int, what: str) -> dict[str, Any]:
    """The rows of one round as one."""
    row: dict[str, Any] = {}
    for record in records:
        for key, value in record.items():
            if key in row and not _same(row[key], value) and key.lower() not in _CLOCKS:
                raise DataError(
                    f"{what}: {len(records)} rows for round {number} differ in {key}: {row[key]!r:.40} and "
                    f"{value!r:.40}; aggregate them first, or where each is a client's, add a column 'client' (and "
                    "'tokens' or 'num_examples' for its weight)"
                )
            row[key] = value
    return row


def _same(first: Any, second: Any) -> bool:
    try:
        return bool(first == second)
    except (TypeError, ValueError):  # arrays
        return False


def _client_name(rounds: Iterable[Sequence[Mapping[str, Any]]]) -> str | None:
    """The column that tells clients apart, if some round has rows of several; else None."""
    for records in rounds:
        for name in {key for record in records for key in record}:
            if name.lower().replace("-", "_") in CLIENT_NAMES:
                told = [str(record[name]) for record in records if name in record]
                if len(set(told)) > 1:
                    return name
    return None


def _of_clients(records: Sequence[dict[str, Any]], client: str, number: int, what: str) -> dict[str, Any]:
    """Rows of clients as their means; a row without a client is the server's."""
    own: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if client in record:
            own.setdefault(str(record[client]), []).append({k: v for k, v in record.items() if k != client})
    server = _merged([record for record in records if client not in record], number, what)
    rows = [_merged(of_one, number, f"{what}, client {name}") for name, of_one in own.items()]
    if not rows:
        return server
    weights = _weights(rows) or [1.0] * len(rows)
    found: dict[str, Any] = {"participants": len(rows), "clients": list(own)}
    for key in dict.fromkeys(key for row in rows for key in row):
        told = [(row[key], weight) for row, weight in zip(rows, weights, strict=True) if key in row]
        if all(isinstance(value, abstract.Real) and not isinstance(value, bool) for value, _ in told):
            name = f"client_{key}" if key in server else key
            if key == "tokens":
                found["client_tokens"] = [float(value) for value, _ in told]
            elif key.lower() in WEIGHT_NAMES:
                found[name] = sum(float(value) for value, _ in told)
            else:
                total = sum(weight for _, weight in told)
                found[name] = sum(float(value) * weight for value, weight in told) / total
        elif all(_same(value, told[0][0]) for value, _ in told):
            found[key] = told[0][0]
    if all(isinstance(row.get("loss", 0.0), abstract.Real) for row in rows) and "loss" in rows[0]:
        found["client_losses"] = [float(row["loss"]) for row in rows if "loss" in row]
    return found | server


def _weights(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """How much data stands behind each client's row; empty where some row does not say."""
    for wanted in WEIGHT_NAMES if rows else ():
        name = next((key for key in rows[0] if key.lower() == wanted), None)
        if name is not None:
            told = [row.get(name) for row in rows]
            good = [float(value) for value in told if isinstance(value, abstract.Real) and float(value) > 0]
            if len(good) == len(rows):
                return good
    return []


def _so_far(merged: Sequence[dict[str, Any]]) -> None:
    """Tokens of the clients' rows, summed over the rounds so far, as a round's column counts them."""
    total = 0.0
    for row in merged:
        if "client_tokens" in row and "tokens" not in row:
            total += sum(row["client_tokens"])
            row["tokens"] = total
