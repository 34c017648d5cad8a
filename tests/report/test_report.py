"""The page: the answer first, honest about what it cannot say, whole without a network."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from scalefed.charts.theme import si
from scalefed.errors import ConfigError
from scalefed.fitting.fit import fit
from scalefed.laws.simulate import simulate_runs
from scalefed.report.page import SCRIPTS, write_report

TRUTH = {"E": 0.33, "A": 30.0, "a": 0.55, "B": 2500.0, "b": 0.65, "g": 0.6}
QUESTION = {"compute": 2e13, "clients": 16, "participation": 0.25}


@pytest.fixture(scope="module")
def fitted():
    grid = {"params": [3100, 13_800, 55_000], "tokens": [1e6, 3e6, 8e6], "clients_per_round": [1, 4, 8]}
    frame = simulate_runs("federated", {**TRUTH, "s": 0.0}, {**grid, "skew": [0.0]}, noise=0.01, seed=1)
    frame["clients"], frame["local_steps"], frame["commit"] = 16, 25, "0123456789abcdef"
    return fit(frame.drop(columns="skew"), "E + A/params^a + B/(tokens/clients_per_round^g)^b", resamples=60)


@pytest.fixture(scope="module")
def page(fitted, tmp_path_factory):
    target = tmp_path_factory.mktemp("page") / "deep" / "page.html"
    assert (
        write_report(fitted, out=target, question=QUESTION, title="A <b>pilot</b>", kinds=("size", "residuals"))
        == target
    )
    return target.read_text(encoding="utf-8")


def test_a_fit_without_replicates_claims_no_interval(fitted, tmp_path):
    alone = fit(fitted.runs, fitted.law, resamples=0)
    assert alone.summary()[["std_error", "low", "high"]].isna().all().all()
    target = write_report(alone, out=tmp_path / "page.html", question=QUESTION)
    words, _ = read(target.read_text(encoding="utf-8"))
    best = alone.optimal_size(**QUESTION)
    assert f"Train {si(best.params)} parameters no interval, as the fit has no replicates" in words
    assert "not estimated" in words and not re.search(r"\bnan\b", words) and "95% intervals" not in words


class Words(HTMLParser):
    """The words a reader sees, and every address the page would fetch."""

    def __init__(self):
        super().__init__()
        self.words, self.addresses, self.depth = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.depth += tag in ("script", "style")
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.depth -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.depth:
            self.words.append(data)


def read(text):
    parser = Words()
    parser.feed(text)
    return " ".join(" ".join(parser.words).split()), parser.addresses


def numbers_of(text):
    return json.loads(re.search(r'<script type="application/json" id="numbers">(.*?)</script>', text, re.S)[1])


def test_the_answer_comes_first_with_its_interval(page, fitted):
    words, _ = read(page)
    best = fitted.optimal_size(**QUESTION)
    answer = f"Train {si(best.params)} parameters 95% interval {si(best.params_low)} to {si(best.params_high)}"
    assert answer in words
    assert "2e13 FLOPs of training compute over all clients, 4 of 16 clients in each round" in words
    order = [words.index(part) for part in (answer, "How sure is this?", "The law", "The runs", "Provenance")]
    assert order == sorted(order)
    assert (
        "tokens 8M" not in words and "Measured: sizes 3.1k to 55k, tokens 1M to 8M, clients per round 1 to 8." in words
    )


def test_the_page_fetches_nothing_and_runs_nothing_but_its_own_script(page):
    _, addresses = read(page)
    assert addresses == []
    assert "@import" not in page and "url(" not in page.split("<script")[0]
    allowed = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    own = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    wanted = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"script-src 'sha256-{wanted}';" in allowed and "default-src 'none'" in allowed
    assert page.count("<script>") == 1 and "unsafe-eval" not in allowed


def test_text_is_escaped(page):
    assert "A &lt;b&gt;pilot&lt;/b&gt;" in page and "<b>pilot</b>" not in page


def test_the_numbers_of_the_law_and_the_runs_travel_with_the_page(page, fitted):
    numbers = numbers_of(page)
    assert numbers["law"]["values"]["a"][0] == pytest.approx(fitted.params["a"], rel=1e-7)
    mixed = sum(len(next(iter(law["values"].values()))) for law in numbers["mixed"])
    assert len(numbers["law"]["values"]["a"]) + mixed == 1 + len(fitted.replicates)
    assert numbers["runs"]["value"] == pytest.approx(fitted.runs["loss"].tolist(), rel=1e-4)
    assert numbers["target_unit"] == "nats per token" and numbers["refused"] is None
    assert numbers["theme"]["dark"]["ink"] != numbers["theme"]["light"]["ink"]
    assert [figure for figure in re.findall(r'data-name="(\w+)"', page)] == ["size", "residuals"]
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_law_runs_and_provenance_are_there(page, fitted):
    words, _ = read(page)
    assert fitted.law.formula in words
    for name, row in fitted.summary().iterrows():
        assert re.search(rf"\b{name} {float(f'{row.estimate:.4g}'):g} ", words)
    assert "27 runs" in words and fitted.runs_hash in words and "0123456789ab" in words


def test_without_a_question_ten_times_the_largest_run_is_asked(fitted, tmp_path):
    words, _ = read(write_report(fitted, out=tmp_path / "a.html", kinds=()).read_text(encoding="utf-8"))
    assert "The question: 3e13 FLOPs of training compute over all clients" in words and "Train" in words


def test_another_target_is_told_in_its_own_unit(fitted, tmp_path):
    runs = fitted.runs.assign(bits_per_byte=fitted.runs["loss"] / 3)
    other = fit(runs, fitted.law, target="bits_per_byte", resamples=20)
    text = write_report(other, out=tmp_path / "a.html", question=QUESTION).read_text(encoding="utf-8")
    words, _ = read(text)
    assert "predicted bits per byte (" in words and "nats" not in words
    assert numbers_of(text)["target_title"] == "Held-out loss (bits per byte)"


@pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning")
def test_a_fit_that_cannot_answer_says_so(tmp_path):
    frame = pd.DataFrame({"params": [1e3, 1e4, 1e5, 1e6, 1e7, 1e8]})
    frame["tokens"] = 20 * frame["params"]
    frame["loss"] = 1.0 + 30 / frame["params"] ** 0.3
    loose = fit(frame, "chinchilla", resamples=20)
    path = write_report(loose, out=tmp_path / "a.html", question={"compute": 1e12}, kinds=("size", "residuals"))
    words, _ = read(path.read_text(encoding="utf-8"))
    assert "No size can be recommended" in words and "Train " not in words
    assert "size" not in re.findall(r'data-name="(\w+)"', path.read_text()) and "How sure is this?" in words


def test_mistakes_say_what_is_allowed(fitted, tmp_path):
    with pytest.raises(ConfigError, match="a report needs a fit, got DataFrame"):
        write_report(fitted.runs, out=tmp_path / "a.html")
    with pytest.raises(ConfigError, match="needs a compute budget in FLOPs"):
        write_report(fitted, out=tmp_path / "a.html", question={"clients": 3})
    with pytest.raises(ConfigError, match="no chart 'sizes'; did you mean 'size'"):
        write_report(fitted, out=tmp_path / "a.html", kinds=("sizes",))
    with pytest.raises(ConfigError, match="no limit or setting 'client'; did you mean 'clients'"):
        write_report(fitted, out=tmp_path / "a.html", question={"compute": 1e12, "client": 3})


def test_the_files_of_the_page_belong_to_the_package():
    folder = Path(__file__).parents[2] / "scalefed" / "report"
    assert {f"{name}.js" for name in SCRIPTS} == {file.name for file in folder.glob("*.js")}
    assert {"page.html", "table.html", "page.css"} <= {file.name for file in folder.iterdir()}
