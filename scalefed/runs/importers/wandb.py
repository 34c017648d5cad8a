"""What did Weights & Biases keep? Runs of its API, and the CSV that its documentation's export makes of them.

A run is one row: ``run_id``, ``status``, then its config and its summary, nested keys joined by dots
(``optimizer.lr``); where both have a key, the config's is ``config.key``.

Source: docs.wandb.ai, "Import and export data": columns ``summary``, ``config`` (each the text of a dict) and ``name``.
"""

import ast
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from scalefed.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

_LONGEST = 1_000_000  # characters of a config or summary
_DEEPEST = 20  # mappings in one another; an export is not deeper, a hostile one is cut


def is_run(thing: Any) -> bool:
    """Whether an object is a run of the API by what it has."""
    return all(hasattr(thing, name) for name in ("config", "summary", "state", "id"))


def rows_of(runs: Iterable[Any]) -> list[dict[str, Any]]:
    """Runs of ``wandb.Api().runs(...)`` as rows."""
    return [
        {"run_id": str(run.id), "name": str(getattr(run, "name", run.id)), "status": run.state}
        | _joined(dict(run.config), dict(getattr(run.summary, "_json_dict", None) or dict(run.summary)))
        for run in runs
    ]


def is_export(frame: "pd.DataFrame") -> bool:
    """Whether a table is the export of the API: texts of dicts under summary and config."""
    return {"summary", "config"} <= set(frame.columns) and all(
        isinstance(value, Mapping) or (isinstance(value, str) and value.lstrip().startswith("{"))
        for name in ("summary", "config")
        for value in frame[name]
    )


def unfolded(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The export of the API with a column for every key.

    Raises:
        DataError: a config or summary is no text of a dict.
    """
    import pandas as pd

    rows = []
    for place, record in enumerate(frame.to_dict("records")):
        config, summary = (_mapping(record.pop(name), name, place) for name in ("config", "summary"))
        rest = {str(key): value for key, value in record.items() if not str(key).startswith("Unnamed:")}
        if "state" in rest and "status" not in rest:
            rest["status"] = rest.pop("state")
        if "name" in rest and "run_id" not in rest:
            rest["run_id"] = rest["name"]
        rows.append(rest | _joined(config, summary))
    return pd.DataFrame(rows)


def _mapping(value: Any, name: str, place: int) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    try:
        if len(value) > _LONGEST:
            raise ValueError(f"{len(value):,} characters")
        try:
            found = json.loads(value)
        except ValueError:
            found = ast.literal_eval(value.replace(": nan", ": None").replace(": inf", ": None"))
        if not isinstance(found, dict):
            raise ValueError("no dict")
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(f"{name} in row {place} is no text of a dict ({error}); export the runs again") from error
    return found


def _joined(config: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    settings, results = _flat(config), _flat(summary)
    both = settings.keys() & results.keys()
    return {f"config.{key}" if key in both else key: value for key, value in settings.items()} | results


def _flat(nested: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Keys joined by dots; W&B's own keys begin with an underscore and are left out, ``value`` wrappers taken off."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if str(key).startswith("_"):
            continue
        if isinstance(value, Mapping) and set(value) <= {"value", "desc"} and "value" in value:
            value = value["value"]
        if isinstance(value, Mapping) and depth < _DEEPEST:
            found |= _flat(value, f"{prefix}{key}.", depth + 1)
        else:
            found[f"{prefix}{key}"] = value
    return found
