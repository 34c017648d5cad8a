"""The journeys as notebooks, made from their pages with what their sessions printed: ``python docs/notebooks.py``."""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
JOURNEYS = ("quick-start", "own-logs", "flower")
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
"""A block of a page, and what it printed, as in ``sessions.py``."""
PAGE = re.compile(r"\]\(([\w-]+)\.md")


def notebook(page: str) -> str:
    """A page as a notebook of version 4.5."""
    cells: list[dict[str, Any]] = []
    end = 0
    for found in BLOCK.finditer(page):
        _tell(cells, page[end : found.start()])
        cells.append(_cell(*found.groups()))
        end = found.end()
    _tell(cells, page[end:])
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _tell(cells: list[dict[str, Any]], text: str) -> None:
    if text.strip():
        cells.append({"cell_type": "markdown", "metadata": {}, "source": PAGE.sub(r"](../guide/\1.md", text.strip())})


def _cell(language: str, words: str, code: str, printed: str | None) -> dict[str, Any]:
    """A block as a code cell: commands as ``!``, files as ``%%writefile``."""
    if title := re.search(r'title="([^"]+)"', words):
        source, printed = f"%%writefile {title[1]}\n{code}", None
    elif language == "console":
        commands = re.findall(r"^\$ ((?:.*\\\n)*.*)", code, flags=re.MULTILINE)
        printed = re.sub(r"^\$ ((?:.*\\\n)*.*)\n", "", code, flags=re.MULTILINE)
        source = "\n".join(f"!{command}" for command in commands)
    else:
        source = code if language == "python" else f"%%{language}\n{code}"
    outputs = [{"output_type": "stream", "name": "stdout", "text": printed}] if printed else []
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "source": source.strip(), "outputs": outputs}


def main() -> None:
    """Write every notebook anew."""
    (HERE / "notebooks").mkdir(exist_ok=True)
    for name in JOURNEYS:
        page = (HERE / "guide" / f"{name}.md").read_text(encoding="utf-8")
        (HERE / "notebooks" / f"{name}.ipynb").write_text(notebook(page), encoding="utf-8")


if __name__ == "__main__":
    main()
