"""A browser for the tests of pages; they skip where there is none."""

import pytest
from browser import Browser, find


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    path = find()
    if path is None:
        pytest.skip("no Chromium here; apt-get install chromium")
    process = Browser(path)
    yield process
    process.close()
