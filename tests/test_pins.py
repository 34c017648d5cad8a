"""What is installed by hash is what is pinned, and all of it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pins(path):
    """Name -> version, and the lines without a hash."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    found = dict(line.partition(" ")[0].split("==") for line in lines)
    return {re.sub(r"[-_.]+", "-", name).lower(): version.strip() for name, version in found.items()}, lines


def test_hashes_stand_beside_the_pins():
    pinned, _ = pins(ROOT / "constraints.txt")
    hashed, lines = pins(ROOT / ".ci" / "hashes.txt")
    assert {"torch", "numpy", "pytest", "flwr", "transformers"} <= hashed.keys()
    other = {name: version for name, version in hashed.items() if pinned.get(name) not in (None, version.split("+")[0])}
    assert other == {}
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
