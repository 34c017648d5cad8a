"""What counts beside the loss: recovered from counts, used in predictions, plans and comparisons, refused in words."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fit_stub import Fitted

from scalefed import compare, fit
from scalefed.allocation import planning
from scalefed.allocation.attempts import optimal_size_with_attempts
from scalefed.cli import main
from scalefed.downstream.betabinomial import Cells, objective
from scalefed.downstream.curve import Covariates
from scalefed.downstream.fit import fit_link, link_runs
from scalefed.downstream.link import EXAMPLE, Link, pass_at_k
from scalefed.errors import ConfigError, DataError, FitError
from scalefed.laws import LAWS
from scalefed.laws.simulate import simulate_runs

EXTRA = {"tokens": 0.4, "skew": 1.5}
WORDS = {"clients_per_round": 4.0, "skew": 0.1}
VALUES = {"E": 0.35, "A": 6.0, "a": 0.34, "B": 200.0, "b": 0.42, "g": 0.5, "s": 1.2}


def simulated(problems: int = 164, *, seed: int = 0, scatter: float = 0.0):
    """Runs of a law, and counts drawn from a link that also looks at tokens and skew."""
    generator = np.random.default_rng(seed)
    grid = {"params": [1e4, 3e4, 1e5, 3e5], "tokens": [1e6, 4e6, 1.6e7, 6.4e7], "clients_per_round": [1, 4],
            "skew": [0.0, 0.3, 0.6]}  # fmt: skip
    runs = simulate_runs("federated", VALUES, grid)
    runs = runs.assign(run_id=[f"r{i:03d}" for i in range(len(runs))])
    inside = 2.0 - 4 * (runs["loss"] - 0.9) + EXTRA["tokens"] * np.log(runs["tokens"] / 8e6)
    inside += EXTRA["skew"] * (runs["skew"] - 0.3) + scatter * generator.standard_normal(len(runs))
    mean = 0.95 / (1 + np.exp(-inside))
    parts = []
    for name, mu in zip(runs["run_id"], mean, strict=True):
        rate = generator.beta(3 * mu, 3 * (1 - mu), problems)
        parts.append(pd.DataFrame({"run_id": name, "task_id": range(problems), "samples": 20,
                                   "correct": generator.binomial(20, rate)}))  # fmt: skip
    return runs, pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def made() -> tuple[pd.DataFrame, pd.DataFrame, Link]:
    runs, counts = simulated()
    table = runs.set_index("run_id")
    return (
        runs,
        counts,
        fit_link(counts, table["loss"], floor=None, covariates=table[["tokens", "skew"]], resamples=100),
    )


def looking(**coefficients: float) -> Link:
    """The example's link with columns beside the loss."""
    theta = [*EXAMPLE["theta"], *coefficients.values()]
    centers = {name: 0.3 if name == "skew" else float(np.log(1e6)) for name in coefficients}
    return Link.from_json({**EXAMPLE, "theta": theta, "replicates": [theta, theta], "covariates": centers})


@pytest.mark.parametrize("mean", ["logistic", "power"])
def test_derivatives_against_finite_differences(mean: str):
    runs, counts = simulated(problems=20)
    table = runs.set_index("run_id").head(12)
    features = pd.DataFrame(Covariates.of(table[["tokens", "skew"]]).features(table), index=table.index)
    z = (table["loss"] - table["loss"].mean()) / table["loss"].std()
    cells = Cells.build(counts[counts["run_id"].isin(table.index)], z, features)
    theta, many, step = np.array([[0.2, -1.5, 1.5, 0.7, -0.2, 0.3, -0.4]]), cells.tally(), 1e-5
    _, gradient, hessian = objective(theta, cells, many, mean, hessian=True)
    moves = np.eye(7) * step
    sides = [[objective(theta + sign * m, cells, many, mean, hessian=False) for sign in (1, -1)] for m in moves]
    np.testing.assert_allclose(gradient[0], [(up[0][0] - down[0][0]) / (2 * step) for up, down in sides], rtol=1e-6)
    by_gradient = [(up[1][0] - down[1][0]) / (2 * step) for up, down in sides]
    np.testing.assert_allclose(hessian[0], by_gradient, rtol=1e-6, atol=1e-5)


def test_the_truth_that_drew_the_counts_is_recovered(made):
    _, counts, link = made
    found = link.summary()
    for name, truth in EXTRA.items():
        assert abs(found.loc[name, "estimate"] - truth) < 4 * found.loc[name, "std_error"]
        assert found.loc[name, "estimate"] == pytest.approx(truth, rel=0.2)
    assert link.status == "ok" and "tokens, skew" in repr(link)
    plain = fit_link(counts, made[0].set_index("run_id")["loss"], floor=None, resamples=2)
    assert link.log_likelihood > plain.log_likelihood + 100 and plain.curve.covariates is None


def test_a_column_that_does_not_count_gets_nothing():
    inside = []
    for seed in range(12):
        runs, counts = simulated(60, seed=seed, scatter=0.1)
        table = runs.set_index("run_id")
        link = fit_link(
            counts, table["loss"], floor=None, covariates=table[["tokens", "skew", "params"]], resamples=100
        )
        row = link.summary().loc["params"]
        inside.append(row["low"] < 0 < row["high"])
    assert np.mean(inside) >= 0.75


def test_predictions_look_at_the_columns(made):
    _, _, link = made
    table = link.predict([0.8, 0.8], 1, covariates={"tokens": [1e6, 1e8], "skew": 0.3})
    assert table["estimate"][1] > table["estimate"][0] + 0.1
    assert (table["low"] <= table["estimate"]).all() and (table["estimate"] <= table["high"]).all()
    each = [link.predict(0.8, (1, 10), covariates={"tokens": t, "skew": 0.3})["estimate"].tolist() for t in (1e6, 1e8)]
    both = link.predict([0.8, 0.8], (1, 10), covariates={"tokens": np.array([1e6, 1e8]), "skew": 0.3})
    assert both["estimate"].tolist() == pytest.approx(each[0] + each[1], rel=1e-12)
    share = float(each[0][0])
    assert link.inverse(share, covariates={"tokens": 1e6, "skew": 0.3}) == pytest.approx(0.8, abs=1e-9)
    draws = link.draw([0.8], 1, covariates={"tokens": [1e6], "skew": [0.3]}, new_run=False)
    assert draws.shape == (100, 1, 1) and abs(np.median(draws) - share) < 0.02


def test_stores_and_reads_back(made):
    link = made[2]
    again, words = Link.from_json(link.to_json()), {"covariates": {"tokens": [2e6, 3e7], "skew": 0.2}}
    pd.testing.assert_frame_equal(link.predict([0.7, 1.0], **words), again.predict([0.7, 1.0], **words))
    assert again.to_json() == link.to_json()


def test_a_plan_tells_the_pass_rate_of_its_own_run():
    link = looking(tokens=0.3, params=0.2, skew=0.5)
    law, replicates = LAWS["federated"], pd.DataFrame()
    values = {n: VALUES[n] for n in law.parameters}
    stub = Fitted(law, values, replicates, simulated(2)[0], link=link)
    best = planning.optimal_size(stub, compute=1e13, **WORDS)
    here = {"tokens": best.tokens, "params": best.params, "skew": 0.1}
    assert best.pass_at_1 == pytest.approx(float(link.predict(best.loss, 1, covariates=here)["estimate"][0]), rel=1e-12)
    # the inverse question agrees with itself, to brute force over compute
    goal = planning.least_compute(stub, pass_at_1=0.4, **WORDS)
    assert goal.pass_at_1 == pytest.approx(0.4, rel=1e-8)
    assert planning.optimal_size(stub, compute=goal.compute, **WORDS).pass_at_1 == pytest.approx(0.4, rel=1e-6)


def test_attempts_look_at_the_columns():
    link = looking(tokens=0.3, params=0.2)
    law = LAWS["federated"]
    values = {n: VALUES[n] for n in law.parameters}
    stub = Fitted(law, values, pd.DataFrame(), simulated(2)[0], link=link)
    words = {"compute": 1e14, **WORDS}
    tried = optimal_size_with_attempts(stub, compute_per_problem=2e9, tokens_per_attempt=60, **words)
    params = np.geomspace(1e2, 1e7, 40001)
    columns = {"params": params, "tokens": 1e14 / (6 * params), **WORDS}
    loss = law.predict(values, {n: np.broadcast_to(v, params.shape) for n, v in columns.items()})
    k = np.maximum(2e9 / (2 * params * 60), 1.0)
    shares = pass_at_k(link.curve, loss, k, offset=link.curve.offset(columns)[0])
    assert next(iter(tried.pass_at_k.values()))[0] == pytest.approx(float(shares.max()), rel=1e-6)
    assert tried.params == pytest.approx(float(params[np.argmax(shares)]), rel=2e-3)


def test_size_and_tokens_that_outweigh_the_loss_are_said():
    law = LAWS["federated"]
    values = {n: VALUES[n] for n in law.parameters}
    stub = Fitted(law, values, pd.DataFrame(), simulated(2)[0], link=looking(tokens=-9.0, params=-9.0))
    with pytest.raises(FitError, match="count for more beside the loss"):
        planning.least_compute(stub, pass_at_1=0.4, **WORDS)


@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")  # one of them cannot fit
def test_laws_are_compared_with_what_is_beside_the_loss():
    runs, counts = simulated(80)
    fits = [fit(runs, law, resamples=40) for law in ("federated", "chinchilla")]
    names = ("tokens", "skew")
    plain, covariates = (compare(*fits, holdout="tokens", counts=counts, covariates=own) for own in ((), names))
    assert covariates.loc["federated", "pass_at_1_error"] < 0.5 * plain.loc["federated", "pass_at_1_error"]
    assert fits[0].with_link(counts, covariates=names).link.curve.covariates.names == names


def test_what_cannot_be_used_is_said(made):
    runs, counts, link = made
    with pytest.raises(DataError, match="looks at tokens, skew beside the loss; give skew too"):
        link.predict(0.8, covariates={"tokens": 1e6})
    with pytest.raises(DataError, match="give tokens, skew too"):
        link.draw([0.8], 1)
    with pytest.raises(DataError, match="tokens must be positive"):
        link.predict(0.8, covariates={"tokens": 0.0, "skew": 0.1})
    table = runs.set_index("run_id")
    with pytest.raises(DataError, match="skew is the same in every run"):
        fit_link(counts, table["loss"], covariates=table[["skew"]] * 0)
    with pytest.raises(DataError, match="no tokens for 1 runs, first 'r000'"):
        fit_link(counts, table["loss"], covariates=table[["tokens"]].iloc[1:])
    with pytest.raises(ConfigError, match="no column 'skw' to look at.*skew"):
        link_runs(LAWS["federated"], runs, "loss", counts, covariates=["skw"])
    with pytest.raises(ConfigError, match="covariates go with success counts"):
        fit(runs, "federated", resamples=2).with_link(link, covariates=["tokens"])


def test_the_shell_asks_for_it_by_name(tmp_path: Path, capsys):
    root = Path(__file__).parents[2] / "runs" / "pilot"
    out = tmp_path / "fit.json"
    words = [str(root), "--law", "chinchilla", "--resamples", "20", "--fix", "E=0.2009"]
    assert main(["fit", *words, "--passk", "--covariates", "tokens,params", "--out", str(out)]) == 0
    assert '"covariates"' in out.read_text() and '"params"' in out.read_text()
    capsys.readouterr()
    assert main(["fit", *words, "--covariates", "tokens"]) == 2
    assert "give --passk too" in capsys.readouterr().err
