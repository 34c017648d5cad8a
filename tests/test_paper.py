"""The paper: every number from the runs, of the present fit, and it compiles."""

import json
import re
import runpy
from pathlib import Path

import pytest

from scalefed.fitting.fit import load_fit
from scalefed.runs.log import load_runs

PAPER = Path(__file__).parents[1] / "paper"
TEXT = (PAPER / "paper.typ").read_text(encoding="utf-8")
FACTS = json.loads((PAPER / "generated" / "facts.json").read_text(encoding="utf-8"))
NOMINAL = {"90%", "95%"}


def test_no_number_is_typed_by_hand() -> None:
    lines = [line for line in TEXT.splitlines() if not line.startswith(("#set", "#show", "//"))]
    words = re.sub(r"#let rows.*?\n}\n", "", "\n".join(lines), flags=re.DOTALL)
    words = re.sub(r"#?(image|text|pad|v|left-columns: )\([^()]*\)", "", words)
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
