"""Question files: which runs, which law, and what is asked of them that is no run's."""

import json
from pathlib import Path

import pytest
from law_truths import TRUTHS

import scalefed as sf
from scalefed.cli import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Runs of two recipes in one table, and a question about the first."""
    grid = {"params": [1e7, 4e7, 2e8, 1e9], "tokens": [5e8, 4e9, 3e10]}
    runs = sf.simulate_runs("chinchilla", TRUTHS["chinchilla"], grid, noise=0.01, seed=1)
    both = [runs.assign(algorithm="fedavg"), runs.assign(algorithm="fedprox", loss=9.0)]
    (tmp_path / "runs.jsonl").write_text("".join(frame.to_json(orient="records", lines=True) for frame in both))
    return tmp_path


def ask(folder: Path, where: str) -> int:
    head = 'runs = "runs.jsonl"\nlaw = "chinchilla"\nresamples = 20\n'
    (folder / "question.toml").write_text(f"{head}[where]\n{where}\n")
    return main(["fit", str(folder / "question.toml")])


@pytest.mark.parametrize("where", ['algorithm = "fedavg"', 'algorithm = ["fedavg", "scaffold"]'])
def test_where_names_the_runs_that_count(folder: Path, where: str) -> None:
    assert ask(folder, where) == 0
    assert len(json.loads((folder / "question.json").read_text())["run_ids"]) == 12


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ('algorithm = "scaffold"', ["algorithm = 'scaffold'", "fedavg, fedprox"]),
        ('algoritm = "fedavg"', ["algoritm"]),
    ],
)
def test_where_refuses_what_no_run_has(
    folder: Path, where: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(folder, where) != 0
    told = capsys.readouterr().err
    assert all(word in told for word in words), told
