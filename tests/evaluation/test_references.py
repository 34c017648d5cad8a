"""A test that its own reference fails says nothing of a model; a slow reference stretches the limit."""

import json

import pytest

from scalefed.data.problem import Problem
from scalefed.evaluation import references
from scalefed.evaluation.references import References, check_references
from scalefed.evaluation.result_file import judge_file

SPIN = (
    "import time\n    start = time.process_time()\n    while time.process_time() < start + {seconds}:\n        pass\n"
)
GOOD = Problem("t/good", "def f(x):\n", "    return x\n", "def check(c):\n    assert c(1) == 1\n", "f")
WRONG = Problem("t/wrong", "def f(x):\n", "    return x\n", "def check(c):\n    assert c(1) == 2\n", "f")
RAISES = Problem("t/raises", "def f(x):\n", "    return x\n", "def check(c):\n    c(1) + 'a'\n", "f")
NONE = Problem("t/none", "def f(x):\n", "", "def check(c):\n    assert c(1) == 2\n", "f")
SLOW = Problem("t/slow", "def f(x):\n", f"    {SPIN.format(seconds=0.6)}    return x\n", GOOD.test, "f")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))


def test_broken_tests_are_found_once_and_problems_without_a_reference_are_left_alone(monkeypatch):
    found = check_references([GOOD, WRONG, RAISES, NONE], workers=1)
    assert set(found.broken) == {"t/wrong", "t/raises"}
    assert "assert c(1) == 2" in found.broken["t/wrong"] and "TypeError" in found.broken["t/raises"]
    monkeypatch.setattr(references, "judge", lambda *_, **__: pytest.fail("judged twice"))
    assert check_references([GOOD, WRONG, RAISES, NONE], workers=1) == found


def test_a_changed_test_is_judged_anew_and_an_unwritable_cache_costs_time_only(tmp_path, monkeypatch):
    assert check_references([WRONG], workers=1).broken
    mended = Problem(WRONG.task_id, WRONG.prompt, WRONG.canonical_solution, GOOD.test, "f")
    assert not check_references([mended], workers=1).broken
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "file" / "below"))
    assert check_references([WRONG], workers=1).broken


def test_samples_of_broken_tests_are_not_counted_and_are_told_apart(tmp_path):
    rows = [{"task_id": p.task_id, "completion": "    return x\n"} for p in (GOOD, WRONG, NONE)]
    path, out = tmp_path / "s.jsonl", tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = judge_file(path, [GOOD, WRONG, NONE], out=out, workers=1)
    assert (report.counts.task_ids, report.counts.correct) == (("t/good", "t/none"), (1, 0))
    assert report.counts.missing == () and set(report.broken) == {"t/wrong"}
    assert report.verdicts == {"pass": 1, "broken_test": 1, "fail": 1} and report.judged == 2
    assert "1 of 3 problems are left out" in report.notes[0] and "t/wrong (fail: assert c(1) == 2)" in report.notes[0]
    line = json.loads(out.read_text().splitlines()[1])
    assert line["verdict"] == "broken_test" and "own solution fails" in line["reason"]
    assert judge_file(path, [GOOD, WRONG, NONE], out=out, workers=1).judged == 0
    out.unlink()
    alone = judge_file(path, [GOOD, WRONG, NONE], out=out, workers=1, references=False)
    assert alone.counts.correct == (1, 0, 0) and alone.notes == ()


def test_limits_double_until_they_are_four_times_the_reference():
    own = References({}, {"a": 0.1, "b": 0.8, "c": 4.0})
    assert [own.limit(name, 3.0) for name in ("a", "b", "c", "other")] == [3.0, 6.0, 24.0, 3.0]
    assert own.limit("a", 0.4) == 0.4 and own.limit("a", 0.39) == pytest.approx(0.78)


def test_a_right_solution_as_slow_as_the_reference_passes_under_a_short_limit(tmp_path):
    rows = [{"task_id": p.task_id, "completion": p.canonical_solution} for p in (SLOW, GOOD, SLOW)]
    rows.append({"task_id": "t/good", "completion": f"    {SPIN.format(seconds=5)}    return x\n"})
    path, out = tmp_path / "s.jsonl", tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = judge_file(path, [GOOD, SLOW], out=out, timeout=1.0, workers=1)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["pass", "pass", "pass", "timeout"]
    assert [line["task_id"] for line in lines] == ["t/slow", "t/good", "t/slow", "t/good"]
    assert lines[0]["timeout_s"] == 1 and lines[0]["limit_s"] in (4, 8) and "limit_s" not in lines[1]
    assert any("t/slow" in note and "longer limit" in note for note in report.notes)
    assert judge_file(path, [GOOD, SLOW], out=out, timeout=1.0, workers=1).judged == 0
