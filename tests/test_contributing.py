"""CONTRIBUTING.md is true: each addition applies as it stands there, and its command runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ADDITIONS = {
    name: (diff, command)
    for name, diff, command in re.findall(r"## Add an? (\w+)\n.*?```diff\n(.*?)```.*?```sh\n(.*?)```", TEXT, re.DOTALL)
}


def test_the_four_additions_are_there():
    assert sorted(ADDITIONS) == ["algorithm", "chart", "importer", "law"]


@pytest.fixture
def checkout(tmp_path):
    """What an addition changes or reads, in a folder of its own, with this Python's commands first on the path."""
    for name in ("scalefed", "tests", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("runs", "fits", "paper"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def apply(diff, folder):
    """Put every part of a diff in the one place that it fits."""
    for path, hunks in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", diff, re.DOTALL | re.MULTILINE):
        file = folder / path
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        for hunk in hunks.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            old = "".join(line[1:] for line in lines if line[0] in " -")
            assert text.count(old) == 1, f"{path} has not exactly one place for\n{hunk}"
            text = text.replace(old, "".join(line[1:] for line in lines if line[0] in " +"))
        file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", sorted(ADDITIONS))
def test_an_addition_works_as_written(name, checkout):
    diff, command = ADDITIONS[name]
    apply(diff, checkout)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(checkout), "PYTHONWARNINGS": "ignore"}
    environment |= {"PYTEST_ADDOPTS": "-p no:cacheprovider -p no:xdist"}
    done = subprocess.run(["bash", "-euc", command], cwd=checkout, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
