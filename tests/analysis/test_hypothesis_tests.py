"""What a new user asks of a fit, and says wrongly: columns of one's own, contradictions, sweeps, tests, plain words."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from law_truths import TRUTHS

from scalefed.analysis.hypothesis_tests import nested_test
from scalefed.cli import main
from scalefed.downstream.link import EXAMPLE, Link
from scalefed.errors import ConfigError, DataError, FitWarning
from scalefed.fitting.fit import fit, load_fit
from scalefed.fitting.result import Fit
from scalefed.laws import LAWS, Law
from scalefed.laws.simulate import simulate_runs

TRUTH = TRUTHS["chinchilla"]
GRID = {"params": [1e7, 1e8, 1e9, 1e10], "tokens": [1e9, 1e10, 1e11, 1e12]}
NAMES = {"params": "N", "tokens": "D", "loss": "val"}


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    return simulate_runs("chinchilla", TRUTH, GRID, noise=0.002)


@pytest.fixture(scope="module")
def own(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.rename(columns=NAMES)[list(NAMES.values())]


@pytest.fixture(scope="module")
def fitted(own: pd.DataFrame) -> Fit:
    return fit(own, "chinchilla", columns=NAMES, huber_delta=1e-3, scale_weight=0.0, resamples=60)


# -- the law and what holds it ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"fixed": {"a": "x"}}, "a can be fixed at a number, got 'x'"),
        ({"fixed": {"a": True}}, "a can be fixed at a number"),
        ({"fixed": ["a"]}, "fixed is a mapping such as"),
        ({"bounds": {"a": 3}}, r"bounds of a must be \(low, high\)"),
        ({"bounds": {"a": (0.1, "x")}}, r"bounds of a must be \(low, high\)"),
        ({"bounds": {"a": (0.1, 0.2, 0.3)}}, r"bounds of a must be \(low, high\)"),
        ({"ties": {"b": "a", "a": "b"}}, "share both with one"),
        ({"ties": {"b": "a"}, "fixed": {"b": 0.3}}, "fix or bound a"),
        ({"fixed": {"a": 0.3}, "bounds": {"a": (0.4, 0.5)}}, "outside its bounds"),
    ],
)
def test_contradictory_constraints_are_refused(keywords: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LAWS["chinchilla"].with_(**keywords)  # type: ignore[arg-type]


def test_sharing_twice_in_turn_follows_the_last() -> None:
    law = Law.parse("A/params^a + B/tokens^b + C/rounds^c").with_(ties={"b": "a"}).with_(ties={"a": "c"})
    assert law.ties == {"b": "c", "a": "c"}
    got = law.predict({"A": 1, "B": 1, "C": 1, "c": 1}, {"params": 2.0, "tokens": 4.0, "rounds": 8.0})
    assert float(got) == pytest.approx(0.875)


@pytest.mark.parametrize(
    ("formula", "position", "words"),
    [
        ("E + A/parms^a", 7, "did you mean the column 'params'"),
        ("E + A/Tokens^a", 7, "did you mean the column 'tokens'"),
        ("E + 1e400*params", 5, "too large"),
    ],
)
def test_a_misspelt_column_is_not_a_parameter(formula: str, position: int, words: str) -> None:
    with pytest.raises(ConfigError, match=f"position {position}: .*{words}"):
        Law.parse(formula)


def test_a_law_with_everything_fixed_can_be_asked(runs: pd.DataFrame) -> None:
    found = fit(runs, "chinchilla", fixed=TRUTH, huber_delta=1e-3, scale_weight=0.0, resamples=20)
    assert found.params == TRUTH and len(found.replicates) == 20
    size = (0.35 * 480 / (0.37 * 2100) * (1e21 / 6) ** 0.37) ** (1 / 0.72)
    best = found.optimal_size(compute=1e21)
    assert best.params == pytest.approx(size, rel=1e-6)
    table = found.optimal_sizes(compute=[1e20, 1e21])
    assert table["params"].tolist() == pytest.approx([size / 10 ** (0.37 / 0.72), size], rel=1e-6)
    assert found.least_compute(loss=best.loss).compute == pytest.approx(1e21, rel=1e-6)


def test_a_law_without_columns_is_told_to_be_one(runs: pd.DataFrame) -> None:
    with pytest.warns(FitWarning, match="names no column of the runs"):
        fit(runs, "E + F", resamples=5, backtest=False)


def test_a_shared_parameter_is_in_the_equation(runs: pd.DataFrame) -> None:
    text = str(fit(runs, "chinchilla", ties={"b": "a"}, resamples=5, backtest=False))
    assert "b is a, by request" in text and "tokens^b\n" not in text.split("\n", 1)[1]


# -- columns of one's own --------------------------------------------------------------------------------------------
def test_a_formula_may_name_columns_of_the_runs(runs: pd.DataFrame) -> None:
    wide = runs.assign(width=np.sqrt(runs["params"]))
    with pytest.raises(ConfigError, match="columns={'width': 'width'} to use the column"):
        fit(wide, "E + A/width^a + B/tokens^b", resamples=0)
    found = fit(wide, "E + A/width^a + B/tokens^b", columns={"width": "width"}, resamples=0, backtest=False)
    assert found.params["a"] == pytest.approx(2 * TRUTH["a"], rel=0.1)


def test_a_fit_predicts_and_is_kept_under_the_names_it_was_given(
    own: pd.DataFrame, fitted: Fit, tmp_path: Path
) -> None:
    band = fitted.predict(own)
    assert (band["estimate"] / own["val"]).to_numpy() == pytest.approx(np.ones(len(own)), abs=0.02)
    own.to_csv(tmp_path / "mine.csv", index=False)
    made = fit(tmp_path / "mine.csv", "chinchilla", columns=NAMES, resamples=20)
    path = made.save(tmp_path / "mine.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # runs that have not changed raise no alarm
        back = load_fit(path)
    pd.testing.assert_frame_equal(back.predict(own), made.predict(own))


def test_plain_runs_are_shown_a_law_that_fits_them(runs: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="or fit law='chinchilla'"):
        fit(runs, "federated")


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(DataError, match="one length"):
        fit({"params": [1, 2], "tokens": [1, 2, 3], "loss": [3, 2]}, "chinchilla")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"params": -1e9, "tokens": 1e9}, "params must be positive"),
        ({"params": "big", "tokens": 1e9}, "params must hold numbers"),
        ({"params": 1e9}, "needs the column tokens"),
        ({"params": 1e9, "tokens": 1e9, "tokns": 1e9}, "did you mean 'tokens'"),
        ({"params": [1e9, 2e9], "tokens": [1e9, 2e9, 3e9]}, "params 2, tokens 3"),
    ],
)
def test_impossible_predictions_are_refused(fitted: Fit, columns: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        fitted.predict(**columns)  # type: ignore[arg-type]


# -- questions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"compute": 1e21, "client": 4}, "client"),
        ({"compute": 1e21, "memory": 1e9}, "memory"),
        ({}, "compute"),
        ({"compute": [1e20, 1e21]}, "one number here; fit.optimal_sizes"),
    ],
)
def test_questions_that_are_another_question_say_so(fitted: Fit, words: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, TypeError), match=message):
        fitted.optimal_size(**words)


def test_a_sweep_agrees_with_single_questions(fitted: Fit) -> None:
    table = fitted.optimal_sizes(compute=[1e20, 1e21])
    for row in table.itertuples():
        assert fitted.optimal_size(compute=row.compute).params == pytest.approx(row.params, rel=1e-6)


def test_answers_to_be_generated_make_the_best_model_smaller(fitted: Fit) -> None:
    """Training and sampling paid from one budget; brute force over sizes."""
    tokens = 1e12
    best = fitted.optimal_size(compute=1e21, sampled_tokens=tokens)
    sizes = np.geomspace(1e7, 1e11, 40_001)
    left = (1e21 - 2 * sizes * tokens) / (6 * sizes)
    sizes, left = sizes[left > 0], left[left > 0]
    loss = LAWS["chinchilla"].predict(fitted.params, {"params": sizes, "tokens": left})
    assert best.params == pytest.approx(sizes[np.argmin(loss)], rel=1e-3)
    assert best.params < fitted.optimal_size(compute=1e21).params


def test_results_print_in_a_line(fitted: Fit) -> None:
    assert repr(fitted.region(compute=1e21)).startswith("<Region at 1e21 FLOPs: best size ")
    assert repr(fitted.profile("a")).startswith("<Profile of a: 0.3")
    assert repr(Link.from_json(EXAMPLE)) == "<Link from loss to pass@k: 3 runs x 164 problems, logistic mean, ok>"
    with pytest.raises(ConfigError, match="at least 3 points"):
        fitted.profile("a", points=1)


def test_a_nested_test_wants_numbers_and_one_label_a_run(fitted: Fit) -> None:
    with pytest.raises(ConfigError, match="tested against a number"):
        nested_test(fitted, {"a": "x"})  # type: ignore[dict-item]
    with pytest.raises(DataError, match="one label for each of 16 runs, got 2"):
        nested_test(fitted, {"a": 0.3}, clusters=[1, 2])
    with pytest.raises(DataError, match="one cluster"):
        nested_test(fitted, {"a": 0.3}, clusters=[1] * 16)


# -- the shell -------------------------------------------------------------------------------------------------------
def shell(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_shell_bounds_and_shares(own: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.to_csv(tmp_path / "mine.csv", index=False)
    names = [word for pair in NAMES.items() for word in ("--column", "=".join(pair))]
    words = ["fit", tmp_path / "mine.csv", "--law", "chinchilla", "--resamples", 10, *names]
    code, out, _ = shell(capsys, *words, "--tie", "b=a", "--bound", "a=:0.9", "--json")
    assert code == 0 and "b" not in json.loads(out)["params"]
    code, _, err = shell(capsys, *words, "--bound", "a")
    assert code == 2 and "--bound wants name=low:high" in err
    code, _, err = shell(capsys, *words, "--bound", "a=3")
    assert code == 2 and "--bound wants name=low:high" in err
    assert shell(capsys, *words, "--out", tmp_path / "mine.json")[0] == 0
    _, out, err = shell(capsys, "optimum", tmp_path / "mine.json", "--compute", 1e21)
    assert "params" in out and "changed" not in err


def test_the_shell_plans_sweeps_and_inverts(fitted: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = fitted.save(tmp_path / "a.json")
    _, out, _ = shell(capsys, "optimum", kept, "--compute", "1e20,1e21", "--json")
    assert [row["compute"] for row in json.loads(out)] == [1e20, 1e21]
    _, out, _ = shell(capsys, "optimum", kept, "tokens=1e10", "--compute", 1e21, "--json")
    assert set(json.loads(out)["binding"]) == {"compute", "tokens"}
    _, out, _ = shell(capsys, "optimum", kept, "--loss", 2.5, "--json")
    assert json.loads(out)["loss"] == pytest.approx(2.5)
    for words, message in (
        (["--loss", 2.5, "--compute", 1e21], "one of them"),
        (["--pass", 0.5], "fit a link"),
        (["--compute", "much"], "--compute wants FLOPs"),
        (["clients=3"], "give --compute"),
        (["params=1e9", "tokns=1e10"], "did you mean 'tokens'"),
    ):
        code, out, err = shell(capsys, "optimum", kept, *words)
        assert code == 2 and message in err and out == "", err
