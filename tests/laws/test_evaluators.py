"""A law is evaluated in four places, each fast at its own task; they say the same of any parameters and runs."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from law_truths import NAMES, OF_OWN_COLUMNS, RUN, TRUTHS

from scalefed.allocation.budgets import Setting
from scalefed.allocation.evaluation import evaluate
from scalefed.allocation.posynomial import Substitution, from_monomials
from scalefed.fitting.problem import Problem
from scalefed.fitting.solver import Solver
from scalefed.laws import LAWS, Law

POWERS = [name for name in NAMES if name not in OF_OWN_COLUMNS]
PLANNED = {"params": Substitution(np.zeros(()), (1.0, 0.0)), "tokens": Substitution(np.zeros(()), (0.0, 1.0))}
AWAY = st.floats(-1.0, 1.0)


def by_the_solver(law: Law, values: dict[str, float], runs: dict[str, np.ndarray]) -> np.ndarray:
    solver = Solver(Problem(law, runs, np.zeros(3)))
    theta = solver.problem.to_coordinates(np.array([[values[name] for name in solver.problem.names]]))
    return np.exp(-solver.residuals(theta)[0][0])


def by_the_planner(law: Law, values: dict[str, float], runs: dict[str, np.ndarray]) -> np.ndarray:
    held = {name: column for name, column in runs.items() if name not in PLANNED}
    written = PLANNED | {name: Substitution(np.log(column), (0.0, 0.0)) for name, column in held.items()}
    total = from_monomials(law.monomials(values, held), written, (3,), 2)
    return np.exp(total.evaluate(np.log(np.stack([runs["params"], runs["tokens"]], axis=1)), np.eye(2))[0])


def by_the_search(law: Law, values: dict[str, float], runs: dict[str, np.ndarray]) -> np.ndarray:
    """What laws that are no sums of powers are planned by."""
    held = {name: column for name, column in runs.items() if name not in PLANNED}
    settled = {name: column for name, column in held.items() if name in Setting.__slots__}
    setting = Setting(**settled, columns={name: held[name] for name in held.keys() - settled})
    return evaluate(law, values, setting, params=runs["params"], tokens=runs["tokens"])


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=15, phases=[Phase.explicit, Phase.generate])
@given(st.data())
def test_the_evaluators_agree(name: str, data: st.DataObject) -> None:
    law, truth = LAWS[name], TRUTHS[name]
    values = {parameter: truth[parameter] * (1 + 0.1 * data.draw(AWAY)) for parameter in law.free}
    moved = {column: np.array([RUN[column] * 2 ** data.draw(AWAY) for _ in range(3)]) for column in RUN}
    runs = {column: moved[column] for column in law.columns}
    told = law.predict(values, runs)
    assert by_the_solver(law, values, runs) == pytest.approx(told, rel=1e-11)
    if name in POWERS and set(PLANNED) <= set(law.columns):
        assert by_the_planner(law, values, runs) == pytest.approx(told, rel=1e-11)
    if set(PLANNED) <= set(law.columns) and not {"rounds", "compute"} & set(law.columns):
        assert by_the_search(law, values, runs) == pytest.approx(told, rel=1e-11)
