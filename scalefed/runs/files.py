"""How does a run get onto disk, whole or not at all? Writing and reading the files of one run.

A run is the folder ``<runs>/<run_id>/`` with ``run.json`` (schema, settings, result, provenance), ``rounds.jsonl`` (one
line a round) and ``eval.json`` (counts per problem). It is built beside its place and renamed into it, so a reader sees
all of it or nothing, and of two writers of the same run the second keeps what the first one wrote.
"""

import contextlib
import math
import os
import platform
import shutil
import socket
import subprocess
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from scalefed.errors import DataError, RunLogWarning, nearest
from scalefed.runs.jsontext import dumps, loads, read_json, read_lines
from scalefed.runs.packed import evaluations_of, is_packed_run, packed_file
from scalefed.runs.reading import understanding
from scalefed.runs.schema import COLUMNS, ROUND_COLUMNS, SCHEMA, STATUSES, Column, unknown, upgrade

RUN, ROUNDS, EVALUATION = "run.json", "rounds.jsonl", "eval.json"
ALIVE = "alive"
"""A file that is touched while a run is recorded by a process that lives."""
_QUIET_S = 60.0  # a dozen touches missed: the process is gone, or its disk


# ---------------------------------------------------------------------- writing
def write_run(
    folder: str | os.PathLike[str],
    *,
    config: Mapping[str, Any],
    result: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]] = (),
    evaluation: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    run_id: str | None = None,
    status: str | None = None,
) -> Path:
    """Write one finished run as ``<folder>/<run_id>/``, atomically, and return that folder.

    A complete run that is already there stays untouched, so parallel writers are safe. A damaged one is moved aside
    under a hidden name, with a warning.

    Args:
        folder: the folder of the sweep; made if needed.
        config: all settings, ``RunConfig.to_dict()``.
        result: what came out; keys are columns of :data:`scalefed.runs.schema.COLUMNS`.
        rounds: one mapping a round; keys are columns of :data:`scalefed.runs.schema.ROUND_COLUMNS`.
        evaluation: ``{"task_ids": [...], "samples": n, "correct": [...], ...}``, or None when nothing was sampled.
        provenance: where, when and with what, see :func:`provenance`.
        run_id: the run's name; looked up in ``result``, then made from ``config``.
        status: one of :data:`scalefed.runs.schema.STATUSES`; looked up in ``result``, then ``completed``.

    Raises:
        DataError: a key is no column of the schema, or the status is unknown.
    """
    _check_names(result, COLUMNS, "result")
    for record in rounds:
        _check_names(record, ROUND_COLUMNS, "round record")
    status = str(status or result.get("status") or "completed")
    if status not in STATUSES:
        raise DataError(f"unknown run status {status!r}; {nearest(status, STATUSES)}")
    name = str(run_id or result.get("run_id") or _run_id(config))
    run = {
        "schema": SCHEMA,
        "run_id": name,
        "status": status,
        "config": dict(config),
        "result": {key: value for key, value in result.items() if key not in ("run_id", "status")},
        "provenance": dict(provenance or {}),
    }
    files = {RUN: dumps(run, indent=1) + "\n", ROUNDS: "".join(dumps(record) + "\n" for record in rounds)}
    if evaluation is not None:
        files[EVALUATION] = dumps(evaluation) + "\n"
    return place_run(Path(folder), name, files)


def add_evaluation(run_folder: str | os.PathLike[str], name: str, evaluation: Mapping[str, Any]) -> Path:
    """Add the counts of a further problem set to a stored run as ``eval-<name>.json``; never overwrites.

    Raises:
        DataError: the run is missing or damaged, the name is no plain word, or other counts are stored under it.
    """
    run_folder = Path(run_folder)
    read_run(run_folder)
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
        raise DataError(f"an evaluation's name may hold letters, digits, '-', '_' and '.', got {name!r}")
    target = run_folder / f"eval-{name}.json"
    if (packed := packed_file(target)) is not None:
        _check_same(packed, evaluation, target)
        return target
    run_folder.mkdir(exist_ok=True)  # a packed run has no folder of its own
    temporary = run_folder / f".{target.name}.{_writer()}.tmp"
    write_file(temporary, dumps(evaluation) + "\n")
    try:
        os.link(temporary, target)
    except FileExistsError:
        _check_same(read_json(target), evaluation, target)
    finally:
        temporary.unlink()
    return target


def provenance(project: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Where results come from: commit of the project's checkout and whether it had changes, versions, platform.

    A file that git does not know is a change too, unless it lies below ``runs``, where logs under way are.

    Args:
        project: a folder in the checkout; this package's own when None. Outside a checkout the commit is None.
    """
    where = Path(project) if project is not None else Path(__file__).resolve().parents[2]
    root = _git(where, "rev-parse", "--show-toplevel")
    ours = bool(root) and (project is not None or Path(root) == where)  # an installed copy may lie in another checkout
    commit = _git(where, "rev-parse", "HEAD") if ours else ""
    # run logs under way are results, not code: of them, only what git knows counts
    changes = (
        _git(Path(root), "status", "--porcelain", "--", ".", ":(exclude)runs")
        + _git(Path(root), "status", "--porcelain", "--untracked-files=no", "--", "runs")
        if commit
        else None
    )
    found: dict[str, Any] = {"commit": commit or None, "dirty": bool(changes) if commit else None}
    found["python"] = platform.python_version()
    for package in ("scalefed", "torch", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    found["platform"] = f"{platform.system()} {platform.machine()}"
    return found


# ---------------------------------------------------------------------- reading
def has_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a run is stored at this folder: as files, or in the pack of its sweep."""
    return os.path.lexists(Path(folder) / RUN) or is_packed_run(Path(folder))


def read_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of one run's ``run.json`` in today's schema: run_id, status, config, result, provenance.

    Raises:
        DataError: the folder is no run, or its ``run.json`` is damaged or newer than this version.
    """
    path = Path(folder) / RUN
    if not has_run(folder):
        raise DataError(f"no run at {folder}: it has no {RUN}; give a folder that `scalefed train` or `sweep` wrote")
    run = _stored_json(path)
    if not isinstance(run, dict) or not isinstance(run.get("run_id"), str):
        raise DataError(f"{path} is not a run: it has no run_id; delete the folder and train the run again")
    schema = run.get("schema", 0)
    if not isinstance(schema, int) or isinstance(schema, bool) or not 0 <= schema <= SCHEMA:
        raise DataError(
            f"{path} has schema {schema!r:.40}, this version reads up to {SCHEMA}; install a newer scalefed"
        )
    with understanding(path, "delete the folder and train the run again"):
        run = upgrade(run)
    if not all(isinstance(run.get(block), dict) for block in ("config", "result", "provenance")):
        raise DataError(f"{path} lacks one of config, result, provenance; delete the folder and train the run again")
    if run.get("status") not in STATUSES:
        raise DataError(f"{path} has status {run.get('status')!r:.40}; allowed: {', '.join(STATUSES)}")
    for block in ("config", "result", "provenance"):
        check_record(run[block], COLUMNS, f"{path}, {block}", diverged=run["status"] == "diverged")
    return run


def evaluations(folder: str | os.PathLike[str]) -> list[str]:
    """The names of a run's evaluations, as :func:`read_evaluation` takes them; the first one's is empty."""
    files = {path.name for path in Path(folder).glob("eval*.json")} | set(evaluations_of(Path(folder)))
    return sorted(name.removeprefix("eval").removeprefix("-").removesuffix(".json") for name in files)


def read_rounds(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """One dict a round of a stored run.

    Raises:
        DataError: ``rounds.jsonl`` is missing, a line of it is damaged (named by number), or a round stands twice.
    """
    path = Path(folder) / ROUNDS
    packed = None if os.path.lexists(path) else packed_file(path)
    records = list(read_lines(path)) if packed is None else packed
    seen: set[Any] = set()
    for line, record in enumerate(records, start=1):
        check_record(record, ROUND_COLUMNS, f"{path}, record {line}", diverged=True)
        if record.get("round") is None or record["round"] != record["round"]:
            raise DataError(f"{path}, record {line}: it has no round; train the run again")
        if record["round"] in seen:
            raise DataError(f"{path}, record {line}: round {record['round']} stands twice; train the run again")
        seen.add(record["round"])
    return records


def read_evaluation(folder: str | os.PathLike[str], name: str = "") -> dict[str, Any] | None:
    """The counts per problem of a stored run, of the problem set ``name``; None when it was not evaluated.

    Raises:
        DataError: the file is damaged, or counts and problems differ in number.
    """
    path = Path(folder) / (f"eval-{name}.json" if name else EVALUATION)
    counts = _stored_json(path)
    if counts is None:
        return None
    if not isinstance(counts, dict) or not {"task_ids", "samples", "correct"} <= set(counts):
        raise DataError(f"{path} needs task_ids, samples and correct; evaluate the run again")
    if fault := _counts_fault(counts):
        raise DataError(f"{path}: {fault}; evaluate the run again")
    check_record({k: v for k, v in counts.items() if k.startswith("pass_at_")}, COLUMNS, str(path))
    return counts


def check_record(
    record: Mapping[str, Any], columns: Mapping[str, Column], where: str, *, diverged: bool = False
) -> None:
    """Refuse a value that its column cannot have; keys that are no columns are left alone.

    Args:
        record: column -> value.
        columns: the schema.
        where: the file and the place in it, for the message.
        diverged: whether infinite numbers are what came out.

    Raises:
        DataError: naming the place, the column, the value and what is allowed.
    """
    for name, value in record.items():
        known = name in columns
        if known and diverged and columns[name].dtype == "float" and isinstance(value, float) and math.isinf(value):
            continue
        if known and (fault := columns[name].fault(value)):
            raise DataError(f"{where}: {name} {fault}; train the run again, or correct it")


def status_of(folder: str | os.PathLike[str], stored: str) -> str:
    """The status of a run now: one that is stored as running and gives no sign of life is ``lost``."""
    if stored != "running":
        return stored
    try:
        quiet = time.time() - (Path(folder) / ALIVE).stat().st_mtime
    except OSError:
        return "lost"
    return "running" if quiet < _QUIET_S else "lost"


# ---------------------------------------------------------------------- helpers
def _counts_fault(counts: Mapping[str, Any]) -> str | None:
    """What is wrong with the counts per problem; None where they are as they must be."""
    tasks, samples, correct = counts["task_ids"], counts["samples"], counts["correct"]
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        return f"task_ids must be a list of names, got {tasks!r:.60}"
    if len(set(tasks)) < len(tasks):
        return f"the task {next(task for task in tasks if tasks.count(task) > 1)!r:.60} stands twice"
    if not _is_count(samples) or samples < 1:
        return f"samples must be a whole number of at least 1, got {samples!r:.60}"
    if not isinstance(correct, list) or len(correct) != len(tasks):
        return f"correct must be a list of as many counts as task_ids ({len(tasks)}), got {correct!r:.60}"
    gold = counts.get("gold_losses", tasks)
    if not isinstance(gold, list) or len(gold) != len(tasks):
        return f"gold_losses must be a list of as many losses as task_ids ({len(tasks)}), got {gold!r:.60}"
    bad = next((count for count in correct if not _is_count(count) or not 0 <= count <= samples), None)
    return None if bad is None else f"correct must be between 0 and samples ({samples}), got {bad!r:.60}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _check_names(names: Mapping[str, Any], columns: Mapping[str, Column], what: str) -> None:
    if extra := unknown(names, columns):
        hint = nearest(extra[0], columns)
        raise DataError(
            f"{what} has the key {extra[0]!r}, which is no column of the run log; "
            f"{hint if hint.startswith('did') else 'describe it in scalefed/runs/schema.py first'}"
        )


def _run_id(config: Mapping[str, Any]) -> str:
    from scalefed.config import RunConfig

    return RunConfig.from_dict(config).run_id


def _writer() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def place_run(folder: Path, name: str, files: Mapping[str, str]) -> Path:
    """Build the run beside its place, then rename; the winner of a race is kept."""
    final = folder / name
    with contextlib.suppress(DataError):  # beside a damaged pack the run is written all the same
        if is_packed_run(final):
            return final
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder, name)
    temporary = folder / f".{name}.{_writer()}.tmp"
    temporary.mkdir()
    try:
        for file, text in files.items():
            write_file(temporary / file, text)
        _sync(temporary)
        if final.exists() and not _complete(final):
            aside = folder / f".{name}.damaged-{uuid.uuid4().hex[:8]}"
            final.rename(aside)
            warnings.warn(f"run {name} was damaged; its old files are now in {aside}", RunLogWarning, stacklevel=3)
        try:
            temporary.rename(final)
        except OSError:
            if not _complete(final):
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync(folder)
    return final


def _stored_json(path: Path) -> Any:
    """A file of a run, as it lies in its folder or in the pack; None where there is none."""
    return read_json(path) if os.path.lexists(path) else packed_file(path)


def _check_same(kept: Mapping[str, Any], evaluation: Mapping[str, Any], target: Path) -> None:
    """Refuse other counts than those kept; counts of an older version may lack what newer ones tell."""
    new = loads(dumps(evaluation))
    if {name: new.get(name) for name in kept} != kept:
        raise DataError(
            f"{target} already holds other counts; give the new evaluation another name, or delete that file"
        )


def _complete(folder: Path) -> bool:
    try:
        read_run(folder)
    except DataError:
        return False
    return True


def _remove_leftovers(folder: Path, name: str) -> None:
    """Delete half-built copies of this run whose writer, on this machine, is gone."""
    host = socket.gethostname()
    for path in folder.glob(f".{name}.{host}-*.tmp"):
        pid = path.name.removeprefix(f".{name}.{host}-").split("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_file(path: Path, text: str) -> None:
    """Write a file of a run, on disk before this returns."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _git(where: Path, *words: str) -> str:
    """What git says, or nothing when there is no git or no checkout."""
    try:
        return subprocess.run(
            ["git", "-C", str(where), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
