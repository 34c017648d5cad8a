"""What is in an MLflow store? Its folder ``mlruns`` or its database ``mlflow.db``, read without MLflow.

Names are those of ``mlflow.search_runs``: ``metrics.val_loss``, ``params.n_params``, ``status``; so the same
``columns=`` serves a store, the frame of ``search_runs`` and a CSV of it.

Sources: ``mlflow.store.tracking.file_store`` (a metric's file has lines ``timestamp value step``),
``mlflow.store.tracking.dbmodels.models``.
"""

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scalefed.errors import DataError
from scalefed.runs.reading import opened, read_text

_STATUS = {"1": "RUNNING", "2": "SCHEDULED", "3": "FINISHED", "4": "FAILED", "5": "KILLED"}
_META = "meta.yaml"
_SQLITE = b"SQLite format 3\0"


# ---------------------------------------------------------------------- recognised
def is_run(folder: Path) -> bool:
    """Whether a folder is one run of a store."""
    return (folder / _META).is_file() and ((folder / "metrics").is_dir() or (folder / "params").is_dir())


def run_folders(folder: Path) -> list[Path]:
    """The runs at or below a folder."""
    return sorted(path.parent for path in Path(folder).rglob(_META) if is_run(path.parent))


def is_database(path: Path) -> bool:
    """Whether a file is an SQLite database by its first bytes."""
    try:
        with opened(path) as stream:
            return stream.read(len(_SQLITE)) == _SQLITE
    except DataError:
        return False


# ---------------------------------------------------------------------- a folder
def row_of(folder: Path) -> dict[str, Any]:
    """One run as one row: run_id, status, its parameters, and the last value of every metric.

    Raises:
        DataError: a file of it is damaged.
    """
    meta = dict(re.findall(r"(?m)^(\w+):[ \t]*(.*?)[ \t]*$", read_text(folder / _META)))
    run_id = meta.get("run_id", "").strip("'\"") or folder.name
    row: dict[str, Any] = {"run_id": run_id, "run_name": meta.get("run_name", "").strip("'\""),
                           "status": _STATUS.get(meta.get("status", ""), meta.get("status", ""))}  # fmt: skip
    for name, path in _below(folder / "params"):
        row[f"params.{name}"] = read_text(path)
    for name, path in _below(folder / "metrics"):
        if points := list(_points(path)):
            row[f"metrics.{name}"] = max(points, key=lambda point: (point[2], point[0]))[1]
    return row


def records_of(folder: Path) -> list[dict[str, Any]]:
    """One record a logged value: ``step`` and the metric under its name."""
    return [
        {"step": step, name: value} for name, path in _below(folder / "metrics") for _, value, step in _points(path)
    ]


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            yield path.relative_to(folder).as_posix(), path


def _points(path: Path) -> Iterator[tuple[int, float, int]]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        try:
            yield int(words[0]), float(words[1]), int(words[2]) if len(words) > 2 else 0
        except (ValueError, IndexError):
            raise DataError(f"{path}, line {number}: not 'timestamp value step', but {line!r:.60}") from None


# ---------------------------------------------------------------------- a database
def rows_of_database(path: Path) -> list[dict[str, Any]]:
    """Every run that was not deleted as one row.

    Raises:
        DataError: the database is damaged or is not MLflow's.
    """
    with _database(path) as ask:
        rows = {
            run_id: {"run_id": run_id, "run_name": name, "status": status}
            for run_id, name, status in ask("SELECT run_uuid, name, status FROM runs WHERE lifecycle_stage = 'active'")
        }
        for run_id, key, value in ask("SELECT run_uuid, key, value FROM params"):
            if run_id in rows:
                rows[run_id][f"params.{key}"] = value
        for run_id, key, value, is_nan in ask("SELECT run_uuid, key, value, is_nan FROM latest_metrics"):
            if run_id in rows:
                rows[run_id][f"metrics.{key}"] = None if is_nan else value
        return list(rows.values())


def records_of_database(path: Path) -> list[dict[str, Any]]:
    """One record a logged value of the only run.

    Raises:
        DataError: the database is damaged, is not MLflow's, or holds several runs.
    """
    with _database(path) as ask:
        runs = [run_id for (run_id,) in ask("SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active'")]
        if len(runs) != 1:
            raise DataError(
                f"{path} holds {len(runs)} runs; rounds are those of one: give the frame of "
                "MlflowClient().get_metric_history, or read all runs with load_runs"
            )
        found = ask("SELECT run_uuid, key, value, step FROM metrics WHERE is_nan = 0")
        return [{"step": step, key: value} for run_id, key, value, step in found if run_id == runs[0]]


@contextlib.contextmanager
def _database(path: Path) -> Iterator[Any]:
    with opened(path):  # a file, and one that can be read
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        yield lambda question: connection.execute(question).fetchall()
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        raise DataError(f"{path} is no MLflow database that can be read ({error}); export its runs as CSV") from error
    finally:
        connection.close()
