"""Which runs did another tool keep? One row a run from a tracker's store, files or objects, or from any table."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalefed.errors import DataError, RunLogWarning
from scalefed.runs.importers import huggingface, lm_eval, mlflow, tensorboard, wandb
from scalefed.runs.jsontext import read_json
from scalefed.runs.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def read_runs(source: Any) -> "pd.DataFrame":
    """One row a run from any source but folders, under the source's own names.

    Args:
        source: what :func:`scalefed.runs.tables.read_table` takes; a file of MLflow, of a Hugging Face Trainer, of
            TensorBoard or of lm-eval; runs of the API of Weights & Biases.

    Raises:
        DataError: it is none of these, or nothing of it can be read.
    """
    import pandas as pd

    if isinstance(source, (str, os.PathLike)):
        rows = _of_file(Path(source))
        if rows is not None:
            return pd.DataFrame(rows)
    elif (runs := _tracked(source)) is not None:
        return pd.DataFrame(wandb.rows_of(runs))
    frame = read_table(source)
    return wandb.unfolded(frame) if wandb.is_export(frame) else frame


def of_folder(folder: Path) -> "pd.DataFrame | None":
    """One row a run of the first tool whose files are at or below a folder; None if there are none.

    A damaged run is named in a :class:`RunLogWarning` and skipped.

    Raises:
        DataError: none of the runs can be read.
    """
    if paths := mlflow.run_folders(folder):
        return _rows(paths, mlflow.row_of, folder)
    if paths := _outermost(folder.rglob(huggingface.FILE)):
        return _rows(paths, lambda path: huggingface.row_of(_state(path), path.parent.name), folder)
    if paths := sorted(folder.rglob("results*.json")):
        return _rows(paths, lambda path: lm_eval.row_of(_results(path), path.stem), folder)
    if paths := sorted({path.parent for path in tensorboard.files_below(folder)}):
        return _rows(paths, _last_scalars, folder)
    return None


def _of_file(path: Path) -> list[Row] | None:
    if tensorboard.is_events(path):
        return [_last_of(tensorboard.records_of(path), path.parent.name)]
    if path.suffix == ".db" or (path.suffix not in (".json", ".csv") and mlflow.is_database(path)):
        return mlflow.rows_of_database(path)
    if path.suffix == ".wandb":
        raise DataError(
            f"{path.name} is an internal file of Weights & Biases; give the runs of its API, "
            'load_runs(wandb.Api().runs("entity/project")), or a CSV of them'
        )
    if path.suffix == ".json" and path.exists():
        content = read_json(path)
        if huggingface.is_state(content):
            return [huggingface.row_of(content, path.absolute().parent.name)]
        if lm_eval.is_results(content):
            return [lm_eval.row_of(content, path.stem)]
    return None


def _rows(paths: Iterable[Path], read: Callable[[Path], Row], root: Path) -> "pd.DataFrame":
    """The rows of all that can be read; a damaged one is named and skipped."""
    import pandas as pd

    rows, count = [], 0
    for path in paths:
        count += 1
        with _skipping(path):
            rows.append(read(path))
    if not rows:
        raise DataError(f"none of the {count} runs in {root} can be read; give another folder")
    return pd.DataFrame(rows)


@contextlib.contextmanager
def _skipping(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        warnings.warn(f"skipped the run in {path}: {error}", RunLogWarning, stacklevel=7)


def _state(path: Path) -> Any:
    content = read_json(path)
    if not huggingface.is_state(content):
        raise DataError(f"{path} is no state of a Trainer: it has no log_history")
    return content


def _results(path: Path) -> Any:
    content = read_json(path)
    if not lm_eval.is_results(content):
        raise DataError(f"{path} holds no results of lm-eval")
    return content


def _outermost(paths: Iterable[Path]) -> list[Path]:
    """Files whose folder does not lie below that of another: a run's state, not its checkpoints'."""
    kept: list[Path] = []
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        if not any(path.is_relative_to(other.parent) for other in kept):
            kept.append(path)
    return sorted(kept)


def _last_scalars(folder: Path) -> Row:
    files = sorted(path for path in folder.glob(tensorboard.PATTERN) if path.is_file())
    return _last_of([record for file in files for record in tensorboard.records_of(file)], folder.name)


def _last_of(records: list[Row], name: str) -> Row:
    """A run's last scalar of every tag, and its last step."""
    row: Row = {"run_id": name, "step": max((record["step"] for record in records), default=None)}
    for record in sorted(records, key=lambda record: record["step"]):
        row |= {key: value for key, value in record.items() if key != "step"}
    return row


def _tracked(source: Any) -> list[Any] | None:
    """The runs of a tracker's API, if that is what the source iterates over; else None."""
    if wandb.is_run(source):
        return [source]
    if isinstance(source, (list, tuple)) or (hasattr(source, "__iter__") and hasattr(source, "per_page")):
        runs = list(source)
        return runs if runs and all(map(wandb.is_run, runs)) else None
    return None
