"""Text of a run log, however hostile, is text in every page: nothing of it runs, by escaping and again by policy."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import scalefed as sf
from scalefed.charts.inert import chart_page, embedded
from scalefed.laws.simulate import simulate_runs

BAD = "</script><script>document.title=`CHANGED`</script><img src=x onerror=\"document.title='CHANGED'\">"
RUNNING = "<script>document.title=`CHANGED`</script>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def hostile_runs():
    truth = {"E": 1.8, "A": 480.0, "a": 0.35, "B": 2100.0, "b": 0.37}
    runs = simulate_runs(
        "chinchilla", truth, {"params": [1e6, 3e6, 1e7, 3e7], "tokens": [1e8, 3e8, 1e9, 3e9]}, noise=0.003
    )
    words = {name: BAD for name in ("mixture", "algorithm", "device", "commit")}
    ids = [f"{BAD}{i}" for i in range(len(runs))]
    return runs.assign(run_id=ids, clients=16, clients_per_round=[1, 2, 4, 8] * 4, skew=[0.0, 0.3] * 8, **words)


def pages(folder: Path) -> dict[str, Path]:
    """Every door by which text of a run log goes into a page."""
    runs = hostile_runs()
    found = {name: folder / f"{name}.html" for name in ("loss", "isoflop", "html", "shown", "fit", "report")}
    sf.chart(runs, "loss", headline=BAD).save(found["loss"])
    found["html"].write_text(sf.chart(runs, "loss", headline=BAD).to_html())
    shown = sf.chart(runs, "loss", headline=BAD)._repr_mimebundle_()
    found["shown"].write_text((shown[0] if isinstance(shown, tuple) else shown)["text/html"])
    fit = sf.fit(runs, law="chinchilla", resamples=0, backtest=False)
    sf.chart(fit, "isoflop", headline=BAD).save(str(found["isoflop"]))
    found["fit"].write_text(fit._repr_html_())
    sf.write_report(fit, runs=runs, out=found["report"], title=BAD)
    return found


def title_of(page: Path) -> str:
    """The title of a page after it has run in a browser."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, check=True, timeout=120)
    return re.search(r"<title>(.*?)</title>", done.stdout.decode() + "<title></title>", re.DOTALL)[1]


def test_no_page_holds_an_element_that_a_run_log_brought(tmp_path):
    for name, page in pages(tmp_path).items():
        text = page.read_text()
        assert "document.title" in text or name == "fit", name  # the text is there
        assert "<script>document.title" not in text and "<img src=x" not in text, name


def test_json_in_a_page_ends_nothing_and_says_the_same():
    odd = {"a": [BAD, "<!--", "]]>", "\u2028\u2029&amp;", "\0"], "</script>": 1.5, "half": "\ud800"}
    assert not set("<>&\u2028\u2029") & set(embedded(odd)) and json.loads(embedded(odd)) == odd


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_nothing_of_a_run_log_runs_in_a_browser(tmp_path):
    for name, page in pages(tmp_path).items():
        assert title_of(page) != "CHANGED", name


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_policy_stops_what_escaping_would_have_let_through(tmp_path):
    page = chart_page(sf.chart(hostile_runs(), "loss"), title="as it was")
    (tmp_path / "kept.html").write_text(page.replace("</body>", RUNNING + "</body>"))
    assert title_of(tmp_path / "kept.html") == "as it was"
    (tmp_path / "bare.html").write_text(f"<title>as it was</title>{RUNNING}")  # a browser does run such a thing
    assert title_of(tmp_path / "bare.html") == "CHANGED"
