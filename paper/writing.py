"""Where the scripts of the paper leave what the paper prints."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

GENERATED = Path(__file__).parent / "generated"


def write_facts(name: str, told: Mapping[str, Any], *, show: bool = True) -> None:
    """Write ``generated/NAME.json``, from which ``NAME.typ`` prints, and show it."""
    text = json.dumps(told, indent=1, ensure_ascii=False)
    (GENERATED / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    if show:
        print(text)
