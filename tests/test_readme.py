"""The README is true: its sessions run as written, its two commands are complete, its picture is there."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the committed runs and fits, in which sessions may write."""
    for name in ("runs", "fits"):
        (tmp_path / name).mkdir()
    (tmp_path / "runs" / "grid").symlink_to(ROOT / "runs" / "grid")
    (tmp_path / "fits" / "grid.toml").write_text((ROOT / "fits" / "grid.toml").read_text())
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(command, place):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_python_sessions_run_as_written(place):
    sessions = blocks("python")
    assert len(sessions) == 2
    printed = run([sys.executable, "-W", "ignore", "-c", "\n".join(sessions)], place)
    assert "federated-capacity-steps: loss = E + (A*exp(s*skew)" in printed
    low, high = map(float, re.search(r"^[\d.e+]+ ([\d.e+]+) ([\d.e+]+)$", printed, flags=re.MULTILINE).groups())
    assert 1e3 < low < high
    assert (place / "participation.png").stat().st_size > 10_000
    assert len(list((place / "runs" / "mine").glob("*/run.json"))) == 1


def test_the_shell_session_runs_as_written(place):
    (session,) = blocks("console")
    commands = [line.removeprefix("$ ") for line in session.splitlines()]
    assert len(commands) == 7 and all(command.startswith("scalefed ") for command in commands)
    for command in commands:
        run([sys.executable, "-W", "ignore", "-m", *shlex.split(command)], place)
    assert (place / "optimum.png").stat().st_size > 10_000
    page = (place / "page.html").read_text()
    assert "Content-Security-Policy" in page
    assert re.search(r'<p class="lead" id="lead">[^<]*\d', page), "the page answers before any script runs"


def test_the_first_screen_has_two_complete_commands_and_a_picture():
    first = TEXT.split("## ")[0]
    commands = re.findall(r"```sh\n(.*?)```", first, flags=re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        assert "python3 -m venv" in command and "pip install" in command and "-c constraints.txt" in command
    assert commands[0].strip().endswith("scalefed demo") and "pytest" in commands[1]
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", first)
    assert (ROOT / picture).stat().st_size > 10_000


def test_files_that_the_readme_names_are_there():
    for name in (
        "runs/LOG.md",
        "paper/paper.pdf",
        "runs/grid",
        "fits/grid.toml",
        "constraints.txt",
        "tests/benchmarks",
    ):
        assert (ROOT / name).exists(), name


def test_what_is_told_of_the_study_is_what_it_says_today():
    build = runpy.run_path(str(ROOT / "docs" / "build.py"))
    assert build["readme"]() == TEXT and build["study"]() in TEXT, "run: python docs/build.py"
    size = {words: 1e3 * float(found) for words, found in re.findall(r"^\| (.+?) \| ([\d.]+)k \(", TEXT, re.MULTILINE)}
    base = size["4 a round"]
    assert size["16 a round"] < base < size["one client a round"] and size["4 a round of 256"] < base
    assert size["4 a round, 100 local steps"] < base < size["4 a round, 1 local step"]
    assert min(size["4 a round, Dirichlet 0.1"], size["4 a round, 8k tokens a client"]) > base
