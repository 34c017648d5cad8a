"""What did somebody else's training log, round by round? Flower results, JSON-lines round logs and pfl's CSV files.

Each becomes a frame like that of :meth:`scalefed.runs.log.Run.history`, the source's other metrics beside our columns.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalefed.errors import DataError, nearest
from scalefed.runs.jsontext import read_lines
from scalefed.runs.schema import ROUND_COLUMNS
from scalefed.runs.tables import read_table, some_names

if TYPE_CHECKING:
    import pandas as pd

# where Flower's Result keeps metrics by round, and the prefix that keeps equal names apart
_FLOWER = {
    "train_metrics_clientapp": "train_",
    "evaluate_metrics_clientapp": "client_",
    "evaluate_metrics_serverapp": "",
}
_ROUND_NAMES = ("round", "server_round", "central_iteration", "current_round")


def import_rounds(source: Any, *, columns: Mapping[str, str] | None = None) -> "pd.DataFrame":
    """One row a round from another program's log.

    A metric that the server measured keeps its name; of the clients' metrics, those of training get the prefix
    ``train_`` and those of evaluation ``client_`` (so a Flower client's ``loss`` becomes ``train_loss``).

    Args:
        source: a Flower ``Result`` (or its attributes as a dict), a .jsonl file with a ``round`` in each line, or a CSV
            file with a column ``round`` or ``central_iteration``, as pfl's AggregateMetricsToDisk writes it.
        columns: names in the source for ours, such as ``{"loss": "Central val | loss"}``.

    Raises:
        DataError: there are no rounds in it, or a name in ``columns`` is unknown.

    >>> log = {"train_metrics_clientapp": {1: {"loss": 2.5}}, "evaluate_metrics_serverapp": {1: {"loss": 2.25}}}
    >>> import_rounds(log)[["round", "loss", "train_loss"]].values.tolist()
    [[1.0, 2.25, 2.5]]
    """
    import pandas as pd

    if _is_flower(source):
        rows = _from_flower(source)
    elif isinstance(source, (str, os.PathLike)) and ".jsonl" in Path(source).suffixes:
        rows = _merged(_flat(record) for record in read_lines(Path(source)))
    else:
        rows = _merged(read_table(source).dropna(axis=1, how="all").to_dict("records"))
    if not rows:
        raise DataError(
            f"no rounds in {source!r:.80}; each record needs a round number under one of: {', '.join(_ROUND_NAMES)}"
        )
    frame = pd.DataFrame(rows)
    for ours, theirs in (columns or {}).items():
        if ours not in ROUND_COLUMNS:
            raise DataError(f"{ours!r} is no column of a round; {nearest(ours, ROUND_COLUMNS)}")
        if theirs not in frame.columns:
            raise DataError(f"the log has no metric {theirs!r}, only {some_names(frame.columns)}")
        frame = frame.drop(columns=[ours], errors="ignore").rename(columns={theirs: ours})
    known = [name for name in ROUND_COLUMNS if name in frame.columns]
    return frame[known + [name for name in frame.columns if name not in known]]


# ---------------------------------------------------------------------- helpers
def _is_flower(source: Any) -> bool:
    if isinstance(source, Mapping):
        return any(name in source for name in _FLOWER)
    return all(hasattr(source, name) for name in _FLOWER)


def _from_flower(source: Any) -> list[dict[str, Any]]:
    blocks = source if isinstance(source, Mapping) else {name: getattr(source, name) for name in _FLOWER}
    return _merged(
        {"round": int(number)} | _prefixed(metrics, prefix)
        for block, prefix in _FLOWER.items()
        for number, metrics in dict(blocks.get(block) or {}).items()
    )


def _prefixed(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key if key.startswith(prefix) else prefix + key: value for key, value in dict(metrics).items()}


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A line of a round log with the nested ``metrics`` lifted up, prefixed by what kind of record it is."""
    prefix = {"server_eval": "", "client_eval": "client_"}.get(str(record.get("kind", "")), "train_")
    flat = {key: value for key, value in record.items() if key not in ("metrics", "kind", "clients")}
    metrics = record.get("metrics")
    return flat | (_prefixed(metrics, prefix) if isinstance(metrics, Mapping) else {})


def _merged(records: Iterable[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """Records of the same round as one row, in the order of rounds; records without a round are left out."""
    rows: dict[int, dict[str, Any]] = {}
    for record in records:
        name = next((name for name in _ROUND_NAMES if record.get(name) is not None), None)
        if name is not None:
            number = int(record[name])
            rest = {str(key): value for key, value in record.items() if key != name}
            rows.setdefault(number, {"round": number}).update(rest)
    return [rows[number] for number in sorted(rows)]
