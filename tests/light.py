"""The reading half where only its own dependencies are installed: a table is fitted, asked, drawn and reported.

Run by CI in an environment without torch: ``python tests/light.py``.
"""

import csv
import random
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
READERS = ("runs/test_pack.py", "laws", "test_config.py", "test_old_words.py")


def shell(*words: str, code: int = 0) -> str:
    """What the command prints, on both streams; it must end with this exit code."""
    done = subprocess.run(["scalefed", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def table(path: Path) -> None:
    """Forty made-up runs under other people's column names."""
    noise = random.Random(1)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["N", "D", "m", "val"])
        for n in (1e6, 3e6, 1e7, 3e7, 1e8):
            for d in (1e8, 3e8, 1e9, 3e9):
                for m in (1, 4):
                    loss = 1.7 + 400 * n**-0.34 + 410 * (d / m**0.5) ** -0.3
                    rows.writerow([n, d, m, loss * noise.gauss(1, 0.003)])


def main() -> None:
    """Fail with what was printed if one of the commands does not do what it says."""
    with tempfile.TemporaryDirectory() as folder:
        own, fit, page, picture = (str(Path(folder) / name) for name in ("own.csv", "f.json", "p.html", "o.png"))
        table(Path(own))
        names = [w for pair in ("params=N", "tokens=D", "clients_per_round=m", "loss=val") for w in ("--column", pair)]
        assert "converged" in shell("fit", own, *names, "--out", fit)
        question = ("--compute", "1e17", "clients_per_round=4")
        assert "params" in shell("optimum", fit, *question)
        shell("chart", fit, "optimum", "--out", picture)
        shell("report", fit, *question, "--out", page)
        assert Path(page).stat().st_size > 10_000 and Path(picture).stat().st_size > 10_000
        assert "2 runs" in shell("sweep", "params=3500,14000", "--dry-run")
        assert "Arguments:" in shell("fit", "--help")
        left = Path(folder) / "left"
        for making in (("train", "params=3500", "--runs", str(left)), ("demo", "--out", str(left))):
            assert "pip install 'scalefed[train]'" in shell(*making, code=2) and not left.exists()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(TESTS / name) for name in READERS)]
    sys.exit(subprocess.run(command, cwd=TESTS.parent).returncode)


if __name__ == "__main__":
    main()
