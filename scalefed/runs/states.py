"""Has this run ended well? The words that trackers and schedulers have for a run's state, whatever their case.

Sources: Weights & Biases (``wandb.apis.public.Run.state``), MLflow (``mlflow.entities.RunStatus``), Ray Tune
(``ray.tune.experiment.Trial``) and Ray Jobs (``JobStatus``), Slurm (``man sacct``, "JOB STATE CODES"), Optuna
(``TrialState``).
"""

import re
from collections.abc import Iterable
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

NAMES = ("status", "state", "run_state", "trial_status", "job_state")
"""What tables call the column, whatever its case; the first is ours."""


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


def state_column(names: Iterable[Any], values: Any) -> str | None:
    """The column that holds the states: ``status``, or one of the other names if most of what it holds is known states.

    Args:
        names: of the table's columns.
        values: a mapping, column -> its values.

    >>> state_column(["Name", "State"], {"State": ["finished", "crashed"]})
    'State'
    >>> state_column(["state"], {"state": ["Ohio"]}) is None
    True
    """
    texts = [name for name in names if isinstance(name, str)]
    if NAMES[0] in texts:
        return NAMES[0]
    for name in texts:
        if name.strip().lower().replace(" ", "_") in NAMES:
            told = [plain(state) for state in values[name] if not is_blank(state)]
            if sum(word in FINISHED | UNFINISHED for word in told) > len(told) / 2:
                return name
    return None


def unfinished(runs: "pd.DataFrame") -> dict[str, np.ndarray]:
    """Which runs do not count: for every reason, such as ``status crashed``, a mask of the rows, (n,) booleans."""
    name = state_column(runs.columns, runs)
    if name is None:
        return {}
    states = runs[name]
    if states.dtype == object:  # lists and the like cannot be compared
        states = states.map(lambda state: state if isinstance(state, str) or is_blank(state) else repr(state))
    reasons: dict[str, np.ndarray] = {}
    for state in states.unique():
        if not is_finished(state):
            word = plain(state)
            why = word if word in UNFINISHED else f"{str(state)!r:.40}, which is no state that is known to be final"
            here = (states == state).to_numpy(dtype=bool, na_value=False)
            reasons[f"{name} {why}"] = here | reasons.get(f"{name} {why}", False)
    return reasons
