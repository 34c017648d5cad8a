"""No attack passes, harms the machine or spoils a neighbour's verdict, and honest code is judged right."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attack_table
import hostile
import pytest
from attack_table import Canary
from hostile_kinds import KINDS

from scalefed.data.problems import load_problems
from scalefed.errors import SandboxError
from scalefed.evaluation.judge import Verdict, judge

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SANDBOXES = ("ns", "landlock")
FAST = [("ns", "shared"), ("landlock", "fresh")]
ALL = [*FAST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("ns", "fresh"), ("landlock", "shared")))]


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.owner() == tmp_path.owner() and str(folder).startswith("/tmp/"):
            folder.chmod(0o777)  # only the sandbox may be in the way
    monkeypatch.setenv("CANARY", "sings")
    with attack_table.canary(tmp_path / "canary") as canary:
        yield canary


def run(cases: list[hostile.Case], canary: Canary, level: str, tier: str) -> list[Verdict]:
    """Judge the cases; skip where this machine does not allow the level."""
    pairs = [("t/add", canary.filled(case.completion)) for case in cases]
    try:
        return judge([hostile.ADD], pairs, timeout=0.7, memory_mb=400, isolation=level, tier=tier, workers=1)
    except SandboxError as error:
        pytest.skip(f"this machine has no level {level}: {error}")


@pytest.mark.parametrize(("level", "tier"), ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_attacks_come_to_nothing_and_their_neighbours_are_judged_right(
    canary: Canary, kind: str, level: str, tier: str
) -> None:
    try:
        row = attack_table.try_kind(kind, KINDS[kind], canary, level=level, tier=tier)
    except SandboxError as error:
        pytest.skip(f"this machine has no level {level}: {error}")
    assert row == attack_table.Row(kind, len(KINDS[kind]), (), (), (), ())


def test_harm_neighbours_and_remains_are_seen(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    (canary.folder / "victim").write_text("dead")
    (canary.folder / "new").touch()
    assert canary.harm() == ["new is there", "victim was changed"]
    before = attack_table.children()
    os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    assert len(attack_table.left_behind(before, patience=0)) == 1
    monkeypatch.setattr(attack_table, "NEIGHBOURS", [("lost", "    return x - y + 0 * {i}\n", "pass")])
    solves = hostile.Case("solves", "    return x + y\n", frozenset({"fail"}))
    try:
        row = attack_table.try_kind("none", [solves], canary, level="landlock", tier="fresh")
    except SandboxError as error:
        pytest.skip(f"this machine has no Landlock: {error}")
    assert [text.partition(" ")[0] for text in (*row.wrong, *row.neighbours)] == ["solves:", "lost:", "lost:"]
    assert not row.clean


@pytest.mark.parametrize(("level", "tier"), [("ns", "shared"), ("landlock", "fresh")])
def test_honest_code_is_judged_right(canary: Canary, level: str, tier: str) -> None:
    verdicts = run(hostile.HONEST, canary, level, tier)
    wrong = {
        c.name: (v.verdict, v.reason)
        for c, v in zip(hostile.HONEST, verdicts, strict=True)
        if v.verdict not in c.allowed
    }
    assert wrong == {}
    assert canary.harm() == []


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
    assert canary.harm() == []


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
