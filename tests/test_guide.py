"""The guide is true: each page's sessions run as written and print what it shows, and every link leads somewhere."""

import json
import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SESSIONS = runpy.run_path(str(DOCS / "sessions.py"))
PAGES = SESSIONS["pages"]()
SHOWN_ONLY = ("pip install", "scalefed demo", "scalefed sweep", "flwr run", "for ", "done", "flower-super", "ray start")


def anchors(page):
    """Headings as mkdocs names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])
def test_a_page_prints_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    shown = page.read_text(encoding="utf-8")
    with SESSIONS["place"](tmp_path / "here"):
        printed = SESSIONS["run_page"](shown)
    assert SESSIONS["agree"](shown, printed), f"python docs/sessions.py {page}\n{printed}"


def test_a_session_that_drifts_is_seen(tmp_path):
    with SESSIONS["place"](tmp_path):
        page = SESSIONS["run_page"]("```python\nprint(2 + 2, 'runs')\n```\n\n```text\n5 runs\n```\n")
    assert page == "```python\nprint(2 + 2, 'runs')\n```\n\n```text\n4 runs\n```\n"
    agree = SESSIONS["agree"]
    assert agree("loss 0.3081 at 56k", "loss 0.3079 at 56k")
    assert not agree("loss 0.30 at 56k", "loss 0.40 at 56k") and not agree("5 runs", "5 rows")


def test_what_is_shown_only_is_for_installing_or_other_machines():
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
            assert all(line.strip().startswith(SHOWN_ONLY) for line in block.splitlines()), (page.name, block)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in sorted(DOCS.rglob("*.md"))])
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.is_file(), link
            assert not anchor or anchor in anchors(there), link


def test_every_page_of_the_guide_is_in_its_menu():
    menu = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^ +- (\S+\.md)$", menu, flags=re.MULTILINE))
    assert named == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_notebooks_are_their_pages():
    made = runpy.run_path(str(DOCS / "notebooks.py"))
    for name in made["JOURNEYS"]:
        page = (DOCS / "guide" / f"{name}.md").read_text(encoding="utf-8")
        kept = (DOCS / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
        assert kept == made["notebook"](page), "run: python docs/notebooks.py"
        code = [cell for cell in json.loads(kept)["cells"] if cell["cell_type"] == "code"]
        assert len(code) >= 5 and any(cell["outputs"] for cell in code)


def test_the_gallery_has_every_kind_of_chart():
    made = runpy.run_path(str(DOCS / "gallery.py"))
    assert (DOCS / "gallery.md").read_text(encoding="utf-8") == made["page"](), "run: python docs/gallery.py"
    for kind in made["KINDS"]:
        assert (DOCS / "gallery" / f"{kind}.png").stat().st_size > 10_000, kind
