"""The paper: every number from the runs, of the present fit, and it compiles."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalefed.fitting.fit import load_fit
from scalefed.runs.log import load_runs

PAPER = Path(__file__).parents[1] / "paper"
SOURCES = sorted(PAPER.glob("*.typ"))
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
FACTS = json.loads((PAPER / "generated" / "facts.json").read_text(encoding="utf-8"))
NOMINAL = {"90%", "95%"}


def test_no_number_is_typed_by_hand() -> None:
    told = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path.name != "tables.typ")
    lines = [line for line in told.splitlines() if not line.startswith(("#set", "#show", "//"))]
    words = re.sub(r"#?(image|text|pad|v|left-columns: )\([^()]*\)", "", "\n".join(lines))
    typed = set(re.findall(r"(?<![\w.@(\\-])\d[\d.,]*(?:%|[kM]\b|(?!\w))", words.replace("\\@", "@")))
    assert typed <= NOMINAL, f"numbers typed by hand: {sorted(typed - NOMINAL)}"


def test_the_facts_are_those_of_the_stored_fit() -> None:
    fit = load_fit(PAPER.parent / "fits" / "grid.json")
    assert FACTS["runs_hash"] == fit.runs_hash, "fits/grid.json has changed: python paper/build.py"
    assert FACTS["law"]["formula"] == fit.law.formula
    assert [row[0] for row in FACTS["law"]["rows"]] == list(fit.params)
    assert FACTS["grid"]["runs"] == str(len(fit.run_ids))


def test_every_fact_is_told_and_every_fact_told_is_there() -> None:
    groups = {"grid": "grid", "law": "law", "holdout": "held", "optimum": "best", "rule": "rule"}
    for group, facts in FACTS.items():
        name = groups.get(group, f"facts.{group}")
        told = set(re.findall(rf"(?<![\w/]){re.escape(name)}\.(\w+)", TEXT))
        if isinstance(facts, dict):
            assert told == set(facts), f"{group}: told and not there, or there and not told: {told ^ set(facts)}"


def test_the_paper_compiles(tmp_path: Path) -> None:
    typst = pytest.importorskip("typst", reason="typst is not installed: pip install 'scalefed[paper]'")
    typst.compile(str(PAPER / "paper.typ"), output=str(tmp_path / "paper.pdf"), root=str(PAPER))
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")


def test_the_facts_come_from_the_runs() -> None:
    """Those that need no fit, made anew."""
    build = runpy.run_path(str(PAPER / "build.py"))
    runs = load_runs(PAPER.parent / "runs" / "grid")
    made = {"grid": build["_grid"](runs), "skew": build["_skew"](runs), "centralisation": build["_centralisation"](),
            "synthetic": build["_synthetic"](), "ladder": build["_ladder"]()}  # fmt: skip
    assert made == {name: FACTS[name] for name in made}, "the runs have changed: python paper/build.py"


def test_the_one_command_makes_everything_that_is_told() -> None:
    build = (PAPER / "build.py").read_text(encoding="utf-8")
    made = {path.stem for path in (PAPER / "generated").glob("*.json")} - {"facts"}
    assert made == {name for name in made if re.search(rf"^ +{name}\.(main|write)\(", build, re.MULTILINE)}


def test_every_check_is_told() -> None:
    checks = json.loads((PAPER / "generated" / "checks.json").read_text(encoding="utf-8"))
    for group, facts in checks.items():
        assert f"checks.{group}" in TEXT, group
        if isinstance(facts, dict):
            assert set(re.findall(rf"\bchecks\.{group}\.(\w+)", TEXT)) == set(facts), group


def test_runs_of_unclean_trees_are_the_old_ones_that_are_marked() -> None:
    """New runs come from clean trees."""
    checks = json.loads((PAPER / "generated" / "checks.json").read_text(encoding="utf-8"))
    made = runpy.run_path(str(PAPER / "checks.py"))["unclean"]()
    assert made == checks["unclean"] and made["total"] == "135"


def test_what_is_said_of_published_runs_is_told() -> None:
    text = (PAPER / "published.typ").read_text(encoding="utf-8")
    facts = json.loads((PAPER / "generated" / "published.json").read_text(encoding="utf-8"))
    for group in ("diloco", "repeats"):
        assert set(re.findall(rf"(?<!\.)\b{group}\.(\w+)", text)) == set(facts[group])


def test_published_constants_are_the_law_they_name() -> None:
    """One pass at a size that the text can feed is their law without repeats."""
    published = runpy.run_path(str(PAPER / "published.py"))
    once = pd.DataFrame({"params": [1e8], "tokens": [1e10], "unique_tokens": [1e10]})
    assert published["published_law"](once)[0] == pytest.approx(1.87 + 521 / 1e8**0.353 + 1488 / 1e10**0.353, rel=5e-3)
    again = once.assign(tokens=4e10)
    worth = 1e10 * (1 + 15.39 * (1 - np.exp(-3 / 15.39)))
    gained = published["published_law"](once)[0] - published["published_law"](again)[0]
    assert gained == pytest.approx(1488 / 1e10**0.353 - 1488 / worth**0.353, rel=1e-2)
