"""With ``--listed-skips``, as in CI, a test that skips for a reason not in ``allowed_skips.txt`` fails."""

from collections.abc import Generator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

LIST = Path(__file__).with_name("allowed_skips.txt")
ALLOWED = [line for line in LIST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--listed-skips", action="store_true", help=f"fail a skip whose reason is not in {LIST.name}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    return _listed((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    return _listed((yield), collector.config)


def _listed(report: Any, config: pytest.Config) -> Any:
    """The report; a failed one if it is of a skip for a reason that is not on the list."""
    if config.getoption("listed_skips") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not any(fnmatchcase(reason, allowed) for allowed in ALLOWED):
            report.outcome, report.longrepr = "failed", f"skipped, for a reason that is not in {LIST}: {reason}"
    return report
