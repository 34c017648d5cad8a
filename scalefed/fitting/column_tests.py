"""What does the law say without the runs that lie farthest along a column? One refit a column, from the optimum."""

import numpy as np

from scalefed.allocation.column_tests import ColumnTest
from scalefed.allocation.extrapolation import LINEAR, LINEAR_SLACK
from scalefed.fitting.problem import Problem, subset
from scalefed.fitting.solver import Solver

_HELD = 1 / 4  # of the range of a column, its far end
_SPARE = 2  # runs more than parameters that must be left
_OTHERS = ("params", "params_total", "params_trained", "tokens", "compute")  # the back-test holds these out


def column_tests(problem: Problem, theta: np.ndarray, *, delta: float) -> tuple[ColumnTest, ...]:
    """The tests that these runs allow: at least two values of the column, and spare runs, must be left.

    Args:
        problem: law and runs.
        theta: (p,) the law's optimum, from which each refit starts.
        delta: width of the Huber loss.
    """
    made = []
    for column in problem.law.columns:
        if column in _OTHERS or not problem.p:
            continue
        keep = _near(column, problem.columns[column])
        if keep.all() or keep.sum() < problem.p + _SPARE or not _still_varies(problem, keep):
            continue
        reduced = subset(problem, np.flatnonzero(keep))
        found = Solver(reduced, delta=delta).solve(theta[None], cold=True, iterations=100, tolerance=1e-9)
        values = reduced.to_values(found.theta)[0]
        made.append(ColumnTest(column, dict(zip(reduced.names, map(float, values), strict=True))))
    return tuple(made)


def _near(column: str, values: np.ndarray) -> np.ndarray:
    """The runs that are kept: all but those in the far third of the column's range."""
    x = values if column in LINEAR or not values.min() > 0 else np.log(values)
    return np.asarray(x <= x.max() - _HELD * np.ptp(x) + 1e-9) if np.ptp(x) > 0 else np.ones(len(x), dtype=bool)


def _still_varies(problem: Problem, keep: np.ndarray) -> bool:
    """Whether every column that varies does so among the runs that are kept."""
    for name, values in problem.columns.items():
        slack = LINEAR_SLACK if name in LINEAR else 0.0
        if np.ptp(values) > slack >= np.ptp(values[keep]):
            return False
    return True
