"""What did the Language Model Evaluation Harness measure? One row a model from ``results_*.json``.

A metric is the column ``task/metric``; one that is ours (``pass@1``, ``bits_per_byte``) is also under our name, if one
task alone measured it.

Source: ``lm_eval.loggers.EvaluationTracker.save_results_aggregated``; keys of a task are ``metric,filter``.
"""

from collections.abc import Mapping
from typing import Any

_OURS = {"pass@1": "pass_at_1", "pass_at_1": "pass_at_1", "pass@10": "pass_at_10", "bits_per_byte": "bits_per_byte"}


def is_results(content: Any) -> bool:
    """Whether the content of a JSON file is what the harness saves."""
    if not isinstance(content, Mapping) or not isinstance(content.get("results"), Mapping):
        return False
    return any(name in content for name in ("configs", "n-shot", "versions", "model_name"))


def row_of(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The results as one row.

    Args:
        content: of the results' file.
        name: of the run, where the file does not say the model's.
    """
    row: dict[str, Any] = {"run_id": str(content.get("model_name") or name)}
    config = content.get("config")
    if isinstance(config, Mapping) and config.get("model_num_parameters") is not None:
        row["params_total"] = config["model_num_parameters"]
    under_ours: dict[str, list[Any]] = {}
    for task, metrics in content["results"].items():
        for key, value in metrics.items() if isinstance(metrics, Mapping) else ():
            metric, _, kept = str(key).partition(",")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or "," not in str(key):
                continue
            row[f"{task}/{metric}" + (f" ({kept})" if kept not in ("none", "") else "")] = value
            if metric in _OURS:
                under_ours.setdefault(_OURS[metric], []).append(value)
    return row | {ours: values[0] for ours, values in under_ours.items() if len(values) == 1}
