"""Results in notebooks and papers: HTML that is inert, Markdown and LaTeX that say the same."""

import re

import pandas as pd
import pytest

import scalefed as sf
from scalefed.runs.log import write_run

BAD = "</td><script>alert(1)</script>"
TRUTH = {"E": 1.2, "A": 80.0, "a": 0.33, "B": 300.0, "b": 0.31}


@pytest.fixture(scope="module")
def fit():
    grid = {"params": [1e5, 4e5, 2e6, 1e7], "tokens": [4e7, 2e8, 1e9]}
    runs = sf.simulate_runs("chinchilla", TRUTH, grid, noise=0.01).rename(columns={"loss": "bits_per_byte"})
    law = sf.Law.parse("E + A/params^a + B/tokens^b", name=BAD, source=BAD, meanings={"a": BAD})
    return sf.fit(runs, law, target="bits_per_byte", resamples=40)


@pytest.fixture(scope="module")
def shown(fit, tmp_path_factory):
    """One of each result that a notebook shows."""
    config = sf.RunConfig(params=3_500, tokens=100_000)
    folder = write_run(tmp_path_factory.mktemp("runs"), config=config.to_dict(), rounds=[],
                       result={"params": 3_504, "tokens": 100_000, "loss": 1.5, "rounds": 3, "skew": 0.0})  # fmt: skip
    return {
        "fit": fit,
        "law": fit.law,
        "optimum": fit.optimal_size(compute=1e16),
        "passk": sf.estimate_pass_at_k([20] * 5, [1, 2, 3, 4, 5]),
        "run": sf.Run.load(folder),
        "config": config,
    }


def test_every_result_has_html_in_which_nothing_runs(shown):
    for name, result in shown.items():
        page = result._repr_html_()
        assert page.startswith("<div>") and "<table>" in page and "<script" not in page, name
    assert "&lt;script&gt;" in shown["fit"]._repr_html_() and "&lt;script&gt;" in shown["law"]._repr_html_()


def test_markdown_and_latex_hold_the_same_numbers(shown):
    for name in ("fit", "law", "optimum", "passk", "run"):
        sheet = shown[name].sheet()
        markdown, latex = shown[name].to_markdown(), shown[name].to_latex()
        assert markdown.count("\n|") >= len(sheet.rows) + 1, name
        body = latex.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
        assert len(body) == len(sheet.rows) and all(line.endswith("\\\\") for line in body)
        for row in sheet.rows:
            assert len(row) == len(sheet.head)
    assert not re.search(r"(?<!\\)[_%&#]", shown["optimum"].to_latex().split("toprule")[1].replace(" & ", " "))


def test_an_optimum_speaks_of_its_target_in_its_unit(shown):
    text = repr(shown["optimum"])
    assert "bits_per_byte" in text and "nats" not in text
    assert re.search(r"held by compute: 1% more saves \S+ bits", text)


def test_numbers_have_one_format(shown):
    for name in ("fit", "optimum"):
        assert not re.search(r"\de[+-]0|\de\+", str(shown[name]) + shown[name].to_markdown()), name


def test_a_config_shows_what_differs_from_the_defaults(shown):
    config = shown["config"]
    assert repr(config) == "RunConfig(params=3500, tokens=100000)"
    assert eval(repr(config), {"RunConfig": sf.RunConfig}) == config
    assert "learning_rate" not in config._repr_html_() and config.run_id in config._repr_html_()


def test_a_run_shows_its_main_columns_with_units(shown):
    page = shown["run"]._repr_html_()
    assert "nats per token" in page and "3,504" in page
    assert isinstance(shown["run"].history(), pd.DataFrame)
