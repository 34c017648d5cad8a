"""No attack passes, none harms the host, and honest code is judged right, at both levels that are called a sandbox."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest

from scalefed.data.problems import load_problems
from scalefed.errors import SandboxError
from scalefed.evaluation.judge import Verdict, judge

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SANDBOXES = ("ns", "landlock")


@dataclasses.dataclass(frozen=True)
class Canary:
    """What must stay as it is."""

    folder: Path
    port: int
    listeners: tuple[socket.socket, ...]

    def unharmed(self) -> None:
        """Assert that nothing was read out, changed, planted or connected to."""
        assert sorted(p.name for p in self.folder.iterdir()) == ["secret", "socket", "victim"]
        assert (self.folder / "victim").read_text() == "alive"
        for listener in self.listeners:
            with pytest.raises(BlockingIOError):
                listener.recv(1) if listener.type == socket.SOCK_DGRAM else listener.accept()
        for planted in ("/dev/shm/planted", "/root/planted", "/tmp/d"):
            assert not os.path.lexists(planted)
        assert sandbox_processes() == []


def sandbox_processes() -> list[str]:
    """Command lines of living processes with a uid that only the sandbox uses, or that run its modules."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            uid = folder.stat().st_uid
            text = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
        if text and uid >= 1_500_000_000 and (uid - 1_500_000_000) // 4 in _TESTERS | {parent}:
            found.append(text)
    return found


_TESTERS: set[int] = set()


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.owner() == tmp_path.owner() and str(folder).startswith("/tmp/"):
            folder.chmod(0o777)  # only the sandbox may be in the way
    folder = tmp_path / "canary"
    folder.mkdir()
    folder.chmod(0o777)
    for name, text in (("secret", "open sesame"), ("victim", "alive")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o666)
    monkeypatch.setenv("CANARY", "sings")
    tcp, unix, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX), socket.socket(type=2)
    unix.bind(str(folder / "socket"))
    unix.listen()
    udp.bind(("127.0.0.1", tcp.getsockname()[1]))
    (folder / "socket").chmod(0o777)
    for listener in (tcp, unix, udp):
        listener.setblocking(False)
    yield Canary(folder, tcp.getsockname()[1], (tcp, unix, udp))
    for listener in (tcp, unix, udp):
        listener.close()


def run(cases: list[hostile.Case], canary: Canary, level: str, tier: str) -> list[Verdict]:
    """Judge the cases; skip where this machine does not allow the level."""
    filled = [c.completion.replace("{canary}", str(canary.folder)).replace("{port}", str(canary.port)) for c in cases]
    try:
        return judge(
            [hostile.ADD], [("t/add", text) for text in filled], timeout=0.7, memory_mb=400, isolation=level, tier=tier,
            workers=1,
        )  # fmt: skip
    except SandboxError as error:
        pytest.skip(f"this machine has no level {level}: {error}")


@pytest.mark.parametrize(
    ("level", "tier"),
    [
        ("ns", "shared"),
        ("landlock", "fresh"),
        pytest.param("ns", "fresh", marks=pytest.mark.slow),
        pytest.param("landlock", "shared", marks=pytest.mark.slow),
    ],
)
def test_no_attack_passes_or_harms(canary: Canary, level: str, tier: str) -> None:
    verdicts = run(hostile.ATTACKS, canary, level, tier)
    wrong = {
        c.name: (v.verdict, v.reason)
        for c, v in zip(hostile.ATTACKS, verdicts, strict=True)
        if v.verdict not in c.allowed
    }
    assert wrong == {}
    assert {v.level for v in verdicts} == {level}
    canary.unharmed()


@pytest.mark.parametrize(("level", "tier"), [("ns", "shared"), ("landlock", "fresh")])
def test_honest_code_is_judged_right(canary: Canary, level: str, tier: str) -> None:
    verdicts = run(hostile.HONEST, canary, level, tier)
    wrong = {
        c.name: (v.verdict, v.reason)
        for c, v in zip(hostile.HONEST, verdicts, strict=True)
        if v.verdict not in c.allowed
    }
    assert wrong == {}
    canary.unharmed()


def test_temporary_files_work_where_there_is_a_private_place(canary: Canary) -> None:
    body = "    import tempfile\n    with tempfile.TemporaryFile() as f:\n        f.write(b'1')\n    return x + y\n"
    keep = "    open('/tmp/left', 'w').write('x')\n    return x + y\n"
    find = "    import os\n    return x + y if os.listdir('/tmp') else None\n"
    cases = [hostile.Case(name, text, frozenset()) for name, text in (("temp", body), ("keep", keep), ("find", find))]
    assert [v.verdict for v in run(cases, canary, "ns", "fresh")] == ["pass", "pass", "fail"]


@pytest.mark.slow
@pytest.mark.parametrize("level", SANDBOXES)
@pytest.mark.parametrize("tier", ["fresh", "shared"])
def test_every_given_hostile_completion(canary: Canary, level: str, tier: str) -> None:
    path = SHARED / "hostile_completions.jsonl"
    if not path.exists():
        pytest.skip("the given hostile completions are not on this machine")
    given = [json.loads(line) for line in path.read_text().splitlines()]
    problems = load_problems("humaneval")
    try:
        verdicts = judge(
            problems, [(c["task_id"], c["completion"]) for c in given], memory_mb=400, isolation=level, tier=tier,
            workers=1,
        )  # fmt: skip
    except SandboxError as error:
        pytest.skip(f"this machine has no level {level}: {error}")
    # the list is older than the verdict of a library that samples may not use; only this one asks for such a library
    allowed = {c["name"]: {*c["acceptable"]} for c in given}
    allowed["import_the_benchmark"].add("missing_module")
    wrong = {c["name"]: v.verdict for c, v in zip(given, verdicts, strict=True) if v.verdict not in allowed[c["name"]]}
    assert wrong == {}
    canary.unharmed()


def test_nothing_reaches_standard_output() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/helpers')\n"
        "from hostile import ADD\nfrom scalefed.evaluation.judge import judge\n"
        'text = \'    import os\\n    print(1)\\n    os.write(1, b"x")\\n    os.write(2, b"x")\\n\'\n'
        "judge([ADD], [('t/add', text)], workers=1)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"", b"")
