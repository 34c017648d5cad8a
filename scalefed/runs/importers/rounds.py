"""What did somebody else's training log, round by round? Each becomes a frame like that of ``scalefed.Run.history``.

A metric that the server (or the only trainer) measured keeps its name; of the clients' metrics, those of training get
the prefix ``train_`` and those of evaluation ``client_``.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalefed.errors import DataError
from scalefed.runs.importers import flower, huggingface, mlflow, tensorboard
from scalefed.runs.importers.merging import rounds_table
from scalefed.runs.jsontext import read_json, read_lines
from scalefed.runs.reading import is_folder, read_text, shown
from scalefed.runs.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib", ".dill")
_LOGS = (".log", ".txt", ".out")
_WHAT = (
    "a Flower Result or History (or a dict or .json of it, or what it printed), a Trainer's trainer_state.json, "
    "TensorBoard's event files, an MLflow run, or a .csv, .tsv, .jsonl, .json or .parquet table with one row a round"
)


def import_rounds(source: Any, *, columns: Mapping[str, str] | None = None) -> "pd.DataFrame":
    """One row a round from another program's log.

    Blanks never erase a number: rows of one round that complete each other become one. Rows that contradict each other
    are an error, unless a column such as ``client`` says that each is a client's: then they become means, weighted by
    their tokens or examples.

    Args:
        source: a Flower ``Result`` or ``History``, a mapping of its attributes, a .json file of it, or a file or text
            of what it printed; ``trainer_state.json`` or its folder; TensorBoard's event file or folder; a run's folder
            in MLflow's ``mlruns``, or ``mlflow.db``; a table of one row a round or step: a file (.csv, .tsv, .jsonl,
            .json, .parquet), a DataFrame or a list of mappings.
        columns: names in the source for ours, ``round`` included, such as ``{"round": "Step", "loss": "val/loss"}``.

    Raises:
        DataError: there are no rounds in it, rows contradict each other, or a name in ``columns`` is unknown.

    >>> log = {"train_metrics_clientapp": {1: {"loss": 2.5}}, "evaluate_metrics_serverapp": {1: {"loss": 2.25}}}
    >>> import_rounds(log)[["round", "loss", "train_loss"]].values.tolist()
    [[1.0, 2.25, 2.5]]
    """
    if isinstance(source, str) and ("\n" in source or len(source) > 4096):  # no path is so long
        records: Iterable[Mapping[Any, Any]] | None = flower.printed(source)
        if records is None:
            raise DataError(f"no rounds in the text {shown(source)}; give {_WHAT}")
        return rounds_table(records, columns, "the text")
    if isinstance(source, (str, os.PathLike)):
        return rounds_table(_of_path(Path(source)), columns, shown(source))
    return rounds_table(_of_object(source), columns, f"the {type(source).__name__}")


def _of_path(path: Path) -> Iterable[Mapping[Any, Any]]:
    kind = path.suffix.lower()
    if is_folder(path):
        return _of_folder(path)
    if tensorboard.is_events(path):
        return tensorboard.records_of(path)
    if kind in _PICKLES:
        raise DataError(
            f"{path.name} is a pickle, which runs whatever code is in it when it is read; where you trust it, give the "
            "object: import_rounds(pickle.load(open(...))), or save the History as JSON: json.dump(vars(history), file)"
        )
    if kind in _LOGS:
        found = flower.printed(read_text(path))
        if found is None:
            raise DataError(f"{path} holds no summary as Flower prints it at the end of a run; give {_WHAT}")
        return found
    if kind == ".json":
        return _of_object(read_json(path), str(path))
    if ".jsonl" in path.suffixes:
        return _of_lines(list(read_lines(path)))
    if kind == ".db" or mlflow.is_database(path):
        return mlflow.records_of_database(path)
    return _records(read_table(path))


def _of_folder(path: Path) -> Iterable[Mapping[Any, Any]]:
    if (path / huggingface.FILE).exists():
        return _of_object(read_json(path / huggingface.FILE), str(path))
    if mlflow.is_run(path):
        return mlflow.records_of(path)
    if files := tensorboard.files_below(path):
        return [record for file in files for record in tensorboard.records_of(file)]
    raise DataError(
        f"no rounds in the folder {path}; give {_WHAT}; runs of scalefed are read by load_runs(rounds=True)"
    )


def _of_object(source: Any, what: str = "") -> Iterable[Mapping[Any, Any]]:
    found = flower.records_of(source)
    if found is not None:
        return found
    if huggingface.is_state(source):
        return huggingface.records_of(source)
    if isinstance(source, Mapping) and not all(isinstance(value, (list, Mapping)) for value in source.values()):
        raise DataError(
            f"no rounds in {what or 'the mapping'}, which has {', '.join(map(str, source))[:80]}; give {_WHAT}"
        )
    if isinstance(source, (list, tuple)) and all(isinstance(record, Mapping) for record in source):
        return _of_lines(source)
    return _records(read_table(source))


def _of_lines(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if huggingface.is_history(records):
        return huggingface.records_of({"log_history": records})
    return [_flat(record) for record in records]


def _records(frame: "pd.DataFrame") -> list[dict[Any, Any]]:
    return list(frame.dropna(axis=1, how="all").astype(object).to_dict("records"))


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of a round log with the nested ``metrics`` lifted up, prefixed by what kind of record it is."""
    prefix = {"server_eval": "", "client_eval": "client_"}.get(str(record.get("kind", "")), "train_")
    flat = {key: value for key, value in record.items() if key not in ("metrics", "kind", "clients")}
    metrics = record.get("metrics")
    if not isinstance(metrics, Mapping):
        return flat
    return flat | {key if key.startswith(prefix) else prefix + key: value for key, value in metrics.items()}
