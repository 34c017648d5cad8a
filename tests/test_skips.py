"""A skip for a reason that is not listed fails where it is asked to, and nowhere else."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SKIPS = """
import pytest

def test_listed():
    pytest.skip("this machine has no level ns: no user namespaces")

@pytest.mark.skipif(True, reason="not today")
def test_other():
    pass
"""


@pytest.mark.parametrize(("words", "code"), [(["--listed-skips"], 1), ([], 0)])
def test_a_skip_that_is_not_listed_fails_in_ci(tmp_path, words, code):
    for name in ("conftest.py", "allowed_skips.txt"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "test_skips.py").write_text(SKIPS)
    (tmp_path / "test_module.py").write_text("import pytest\n\npytest.importorskip('no_such_module')\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider", "--rootdir", "."]
    command += ["--continue-on-collection-errors", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code
    assert ("1 skipped, 2 errors" if code else "3 skipped") in done.stdout
    assert ("not today" in done.stdout) is ("could not import 'no_such_module'" in done.stdout) is bool(code)
