"""Blind predictions: a held-out run passes only where its prediction was frozen in git before it started."""

import json
import math
import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

import scalefed as sf

ROOT = Path(__file__).parents[1]
BLIND = runpy.run_path(str(ROOT / "paper" / "blind.py"))
NAME = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(root: Path, *words: str, date: str = "2026-01-01T00:00:00+00:00") -> str:
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    command = ["git", "-C", str(root), *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **NAME, **dates}
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with held-out cells, a prediction frozen on 2 January and a commit before it, tagged ``early``."""
    git(tmp_path, "init", "-q")
    holdout = tmp_path / "runs" / "holdout"
    holdout.mkdir(parents=True)
    (holdout / "sweep.toml").write_text("[base]\nparams = 3_000\ntokens = 100_000\nlocal_steps = 40\nseed = 0\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "cells")
    git(tmp_path, "tag", "early")
    (tmp_path / "fits").mkdir()
    (tmp_path / "fits" / "law.frozen.json").write_text("{}")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "frozen", date="2026-01-02T00:00:00+00:00")
    return tmp_path


def write(root: Path, sweep: str = "holdout", **changed: object) -> None:
    """One run of the held-out cell, at another seed, as a run log tells it."""
    config = sf.RunConfig(params=3_000, tokens=100_000, local_steps=40, seed=7)
    told = {"started": "2026-01-03T00:00:00+00:00", "commit": git(root, "rev-parse", "HEAD"), "dirty": False, **changed}
    folder = root / "runs" / sweep / config.run_id
    folder.mkdir(parents=True)
    amounts = {
        "params": 2_912,
        "params_asked": 3_000,
        "tokens": 102_400,
        "tokens_asked": 100_000,
        "unique_tokens": 262_150,
    }
    record = {
        "schema": 2,
        "run_id": config.run_id,
        "status": "completed",
        "config": {name: "inf" if value == math.inf else value for name, value in config.to_dict().items()},
        "result": {**amounts, "loss": 1.5},
        "provenance": told,
    }
    (folder / "run.json").write_text(json.dumps(record))


def breaches(root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    return BLIND["main"](root), capsys.readouterr().out


def test_a_run_after_its_frozen_prediction_passes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(repository)
    assert breaches(repository, capsys) == (0, "1 frozen predictions, 1 held-out runs, 0 breaches\n")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"started": "2026-01-01T12:00:00+00:00"}, "holds no prediction frozen before"),
        ({"dirty": True}, "not clean"),
        ({"dirty": None}, "not clean"),
        ({"commit": None}, "no commit"),
        ({"commit": "0" * 40}, "holds no prediction"),
    ],
)
def test_a_run_that_is_not_blind_is_named(
    repository: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, object], why: str
) -> None:
    write(repository, **changed)
    count, printed = breaches(repository, capsys)
    assert count == 1
    assert why in printed


def test_a_commit_without_the_prediction_does_not_count_and_no_folder_hides_a_run(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(repository, sweep="elsewhere", commit=git(repository, "rev-parse", "early"))
    assert breaches(repository, capsys)[0] == 1


def test_a_prediction_that_changes_or_is_not_committed_is_none(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "fits" / "other.frozen.json").write_text("{}")
    assert "other.frozen.json: not committed" in breaches(repository, capsys)[1]
    (repository / "fits" / "law.frozen.json").write_text('{"a": 1}')
    assert "law.frozen.json: changed" in breaches(repository, capsys)[1]
    git(repository, "commit", "-qam", "again")
    assert "law.frozen.json: changed" in breaches(repository, capsys)[1]


def test_stored_runs_are_recognised_by_their_cell() -> None:
    found = list(BLIND["held_out_runs"](ROOT, ["runs/steps/sweep.toml"]))
    assert {row["run_id"] for row in sf.load_runs(ROOT / "runs" / "steps").to_dict("records")} <= {
        row["run_id"] for row in found
    }
