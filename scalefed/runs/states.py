"""Has this run ended well? The words that trackers and schedulers have for a run's state, whatever their case.

Sources: Weights & Biases (``wandb.apis.public.Run.state``), MLflow (``mlflow.entities.RunStatus``), Ray Tune
(``ray.tune.experiment.Trial``) and Ray Jobs (``JobStatus``), Slurm (``man sacct``, "JOB STATE CODES"), Optuna
(``TrialState``). Beside words there are exit codes (Slurm's ``ExitCode`` of ``sacct`` is ``code:signal``) and flags
such as ``finished``.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

FINISHED = frozenset("completed complete finished done success succeeded successful terminated ok".split())
"""States of a run whose numbers are those of its end; Ray Tune calls that TERMINATED."""

UNFINISHED = frozenset(
    "diverged nan failed fail failure error errored crashed killed aborted canceled cancelled interrupted stopped "
    "terminating preempted preempting oom out_of_memory timeout timed_out deadline node_fail boot_fail revoked "
    "running pending queued waiting scheduled starting paused suspended resizing requeued requeue_hold requeue_fed "
    "requeue configuring completing signaling stage_out special_exit stop pruned unfinished incomplete lost "
    "unknown".split()
)
"""States of a run that is under way, or ended before its time."""

STATUS = "status"
"""The run log's own column of states: a word in it that nobody knows is no state that is known to be final."""

NAMES = frozenset(f"{of}{word}" for word in ("status", "state") for of in ("", "run", "trial", "job", "task"))
"""What else tables call it, as :func:`_bare` spells it."""

EXIT_CODES = frozenset(["exitcode", "exitstatus", "returncode", "derivedexitcode"])
"""Names of columns of exit codes: 0 is a good end."""

FLAGS = {
    **dict.fromkeys(("finished", "isfinished", "completed", "iscompleted", "done", "success", "succeeded"), True),
    **dict.fromkeys(("failed", "crashed", "killed", "diverged", "preempted", "oom", "aborted", "interrupted"), False),
}
"""Names of columns of yes and no, and which of the two is a good end."""

_YES, _NO = frozenset(["true", "1", "1.0", "yes", "y"]), frozenset(["false", "0", "0.0", "no", "n"])


def plain(state: Any) -> str:
    """A state in lower case, words joined by underscores, without what a scheduler adds.

    >>> plain("OUT_OF_MEMORY"), plain("Timed out"), plain("CANCELLED by 1001"), plain("COMPLETED+")
    ('out_of_memory', 'timed_out', 'cancelled', 'completed')
    """
    word = re.sub(r"\s+by\s+.*$", "", str(state).strip().lower())
    return re.sub(r"[\s-]+", "_", word).removeprefix("runstatus.").removeprefix("trialstate.").rstrip("+")


def is_blank(state: Any) -> bool:
    """Whether nothing is said of the state: None, NaN or an empty text."""
    return not state.strip() if isinstance(state, str) else state is None or str(state) in ("nan", "<NA>", "NaT")


def is_finished(state: Any) -> bool:
    """Whether a run in this state counts; one whose state is blank does, one in a state unknown to us does not.

    >>> [is_finished(state) for state in ("FINISHED", "Crashed", None, "baseline", True)]
    [True, False, True, False, False]
    """
    return is_blank(state) or (isinstance(state, str) and plain(state) in FINISHED)


def unfinished(runs: "pd.DataFrame") -> dict[str, np.ndarray]:
    """Which runs do not count: for every reason, such as ``status crashed``, a mask of the rows, (n,) booleans.

    Args:
        runs: one row a run; columns are known by their names, whatever their case and the marks in them, and by what
            they hold: ``state`` may be a place, ``finished`` a date.

    >>> import pandas as pd
    >>> runs = pd.DataFrame({"_state": ["finished", "Killed", ""], "ExitCode": ["0:0", "0:9", "1:0"]})
    >>> {why: rows.tolist() for why, rows in unfinished(runs).items()}  # doctest: +NORMALIZE_WHITESPACE
    {'_state killed': [False, True, False], 'ExitCode 0:9': [False, True, False], 'ExitCode 1:0': [False, False, True]}
    """
    reasons: dict[str, np.ndarray] = {}
    for name in runs.columns:
        if (why := _reader(name, runs[name])) is None:
            continue
        told = runs[name].map(lambda value, why=why: None if is_blank(value) else why(value))
        for reason in dict.fromkeys(told.dropna()):
            reasons[f"{name} {reason}"] = (told == reason).to_numpy(dtype=bool, na_value=False)
    return reasons


def _reader(name: Any, values: "pd.Series") -> Callable[[Any], str | None] | None:
    """What says of a value in this column why its run does not count, or None; None for a column of something else."""
    bare = _bare(name)
    if name == STATUS or (bare in NAMES and _mostly(values, lambda value: plain(value) in FINISHED | UNFINISHED)):
        return _of_state
    if bare in EXIT_CODES and _mostly(values, lambda value: _exit_code(value) is not None):
        return _of_exit_code
    if bare in FLAGS and _mostly(values, lambda value: _flag(value) is not None):
        return lambda value: str(value) if _flag(value) not in (None, FLAGS[bare]) else None
    return None


def _bare(name: Any) -> str:
    """The last part of a name in letters alone, in lower case: ``exitcode`` for ``slurm.Exit_Code``."""
    return re.sub(r"[^a-z]", "", name.rpartition(".")[2].lower()) if isinstance(name, str) else ""


def _mostly(values: "pd.Series", known: Callable[[Any], bool]) -> bool:
    told = [known(value) for value in values if not is_blank(value)]
    return sum(told) > len(told) / 2


def _of_state(value: Any) -> str | None:
    if is_finished(value):
        return None
    word = plain(value)
    return word if word in UNFINISHED else f"{str(value)!r:.40}, which is no state that is known to be final"


def _exit_code(value: Any) -> bool | None:
    """Whether an exit code is 0, and no signal ended the run; None for what is no exit code."""
    found = re.fullmatch(r"\s*(-?\d+)(?:\.0)?(?::(\d+))?\s*", str(value))
    return None if found is None else not int(found[1]) and not int(found[2] or 0)


def _of_exit_code(value: Any) -> str | None:
    return str(value).strip().removesuffix(".0") if _exit_code(value) is False else None


def _flag(value: Any) -> bool | None:
    word = str(value).strip().lower()
    return True if word in _YES else False if word in _NO else None
