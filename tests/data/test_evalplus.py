"""HumanEval+, MBPP+ and MBPP by their own rules, on problems of our own in their formats."""

import json

import pytest

from scalefed.data.oracles import RULES
from scalefed.data.problems import load_problems
from scalefed.errors import DataError
from scalefed.evaluation.judge import judge


def problem(number, code, entry, inputs, atol=0, benchmark="Mbpp"):
    return {
        "task_id": f"{benchmark}/{number}", "prompt": '"""\nWhat it does.\n"""\n', "canonical_solution": code,
        "entry_point": entry, "base_input": inputs[:1], "plus_input": inputs[1:], "atol": atol,
    }  # fmt: skip


def verdicts(tmp_path, record, *programs):
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps(record) + "\n")
    (loaded,) = load_problems(path)
    return [v.verdict for v in judge([loaded], [(loaded.task_id, text) for text in programs], workers=1)]


# task, reference, entry point, inputs, tolerance, a right program, a wrong one
RULED = {
    "sets": (2, "def f(a, b):\n    return tuple(sorted(set(a) & set(b)))\n", "f", [[[1, 2], [2, 1]]], 0,
             "def f(a, b):\n    assert type(a) is tuple\n    return [2, 1, 2]\n", "def f(a, b):\n    return (1,)\n"),
    "found or not": (737, "import re\ndef f(s):\n    return re.search('^a', s)\n", "f", [["ab"], ["b"]], 0,
                     "def f(s):\n    return s.startswith('a')\n", "def f(s):\n    return True\n"),
    "a match object": (787, "import re\ndef f(s):\n    return re.search('^a', s)\n", "f", [["ab"], ["b"]], 0,
                       "import re\ndef f(s):\n    return re.match('a', s)\n", "def f(s):\n    return object()\n"),
    "zero will do": (295, "def f(n):\n    return n + 1\n", "f", [[1], [2]], 0,
                     "def f(n):\n    return 0\n", "def f(n):\n    return n\n"),
    "anything": (164, "def f(a, b):\n    return a == b\n", "f", [[1, 2]], 0,
                 "def f(a, b):\n    return 'x'\n", "def f(a, b):\n    raise ValueError\n"),
    "digits filled up": (558, "def f(a, b):\n    return sum(abs(int(x) - int(y)) for x, y in zip(str(a), str(b)))\n",
                         "f", [[12, 9]], 0,
                         "def f(a, b):\n    return 1 + 7\n", "def f(a, b):\n    return 9\n"),
    "upright height": (581, "def f(b, s):\n    return 2 * b * s + b * b\n", "f", [[3, 4]], 0,
                       "def f(b, s):\n    return round(b * b + 2 * b * ((b / 2) ** 2 + s * s) ** 0.5)\n",
                       "def f(b, s):\n    return 0\n"),
    "complex": (252, "import cmath\ndef f(z):\n    return cmath.polar(z)\n", "f", [["3+4j"]], 0,
                "def f(z):\n    assert type(z) is complex\n    return (abs(z), 0.9272952180016122)\n",
                "def f(z):\n    return (5.0, 0.9)\n"),
    "tuples in lists": (120, "def f(rows):\n    return max(a * b for a, b in rows)\n", "f", [[[[1, 2], [3, 4]]]], 0,
                        "def f(rows):\n    assert type(rows[0]) is tuple\n    return 12\n",
                        "def f(rows):\n    return 2\n"),
    "tuples of tuples": (259, "def f(a, b):\n    return a\n", "f", [[[[1, 2]], [[3, 4]]]], 0,
                         "def f(a, b):\n    assert a == ((1, 2),)\n    return a\n", "def f(a, b):\n    return b\n"),
    "sets as arguments": (115, "def f(rows):\n    return not any(rows)\n", "f", [[[[], []]], [[[1, 1], []]]], 0,
                          "def f(rows):\n    return all(row == {} for row in rows)\n",
                          "def f(rows):\n    return True\n"),
    "tolerance": (124, "def f(a, b):\n    return a + 0.5\n", "f", [["1", "2j"]], 1e-4,
                  "def f(a, b):\n    assert type(b) is complex\n    return 1.50001\n",
                  "def f(a, b):\n    return 1.6\n"),
    "a function called check": (56, "def check(n):\n    return n > 3\n", "check", [[5], [1]], 0,
                                "def check(n):\n    return not n <= 3\n", "def check(n):\n    return True\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", RULED)
def test_mbpp_plus_is_judged_by_its_own_rules(name, tmp_path):
    number, code, entry, inputs, atol, right, wrong = RULED[name]
    record = problem(number, code, entry, inputs, atol)
    assert verdicts(tmp_path, record, code, right, wrong) == ["pass", "pass", "fail"]


def test_a_task_without_a_rule_of_its_own_compares_for_equality(tmp_path):
    record = problem(9999, "def f(a):\n    return [a, 0.1 + 0.2]\n", "f", [[[1, 2]]])
    near, other_type = "def f(a):\n    return [a, 0.3]\n", "def f(a):\n    return (a, 0.1 + 0.2)\n"
    assert verdicts(tmp_path, record, near, other_type) == ["fail", "fail"]  # a list, and not of floats alone
    floats = problem(9999, "def f(a):\n    return [0.1 + 0.2]\n", "f", [[1]])
    assert verdicts(tmp_path, floats, "def f(a):\n    return [0.3]\n") == ["pass"]


def test_any_root_of_humanevals_polynomial_will_do(tmp_path):
    record = problem(32, "def f(xs):\n    return -1.0\n", "f", [[[-1, 0, 1]]], 1e-4, "HumanEval")
    assert verdicts(
        tmp_path, record, "def f(xs):\n    xs.clear()\n    return 1.0\n", "def f(xs):\n    return 2.0\n"
    ) == [
        "pass",
        "fail",
    ]


def test_every_rule_has_a_task():
    from scalefed.data.evalplus import RULE_OF

    assert {*RULE_OF.values(), "equal"} == set(RULES)


REFUSED = {
    "another set in EvalPlus's format": (problem(1, "", "f", [[1]], 0, "Mine"), "known here for HumanEval. and MBPP."),
    "inputs of another form": (problem(106, "", "f", [[1]]), "not as in MBPP. 0.2.0"),
    "BigCodeBench": ({"task_id": "BigCodeBench/0", "complete_prompt": "", "instruct_prompt": ""}, "is of BigCodeBench"),
    "LiveCodeBench": ({"question_content": "", "public_test_cases": ""}, "is of LiveCodeBench"),
    "MBPP without a function": ({"task_id": 1, "code": "x = 1", "test_list": ["assert x"]}, "call no function"),
    "MBPP that is not Python": ({"task_id": 1, "code": "x =", "test_list": ["assert x"]}, "not valid Python"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_other_rules_is_refused_by_name(name, tmp_path):
    record, words = REFUSED[name]
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(DataError, match=words):
        load_problems(path)


# ---------------------------------------------------------------- MBPP itself
CODE = "def helper(x):\n    return x * 2\n\ndef area(x):\n    return helper(x) + 0.0\n"
TESTS = ["assert math.isclose(area(3), 6)", "assert area(0) == 0"]
MBPP = {
    "original": {"text": "Say \"\"\"twice\"\"\".", "test_setup_code": "import math"},
    "sanitized": {"prompt": "Twice.", "test_imports": ["import math"]},
    "MBPP+ as a script": {
        "prompt": "Twice.", "test_imports": [],
        "test": "import math\n\ndef assertion(a, b):\n    assert math.isclose(a, b)\n\n"
                "for x in (1, 2):\n    assertion(area(x), 2 * x)\n",
    },
}  # fmt: skip


@pytest.mark.parametrize("form", MBPP)
@pytest.mark.parametrize("array", [False, True])
def test_all_forms_of_mbpp_are_read(form, array, tmp_path):
    record = {"task_id": 7, "code": CODE, "test_list": TESTS} | MBPP[form]
    path = tmp_path / "mbpp.json"
    path.write_text(json.dumps([record], indent=1) if array else json.dumps(record) + "\n")
    (loaded,) = load_problems(path)
    assert (loaded.task_id, loaded.entry_point) == ("Mbpp/7", "area")
    compile(loaded.prompt, "prompt", "exec")
    assert all(test in loaded.prompt for test in TESTS)
    programs = [
        CODE,
        "def area(x):\n    return 2 * x\n",
        "def area(x):\n    return x\n",
        "def other(x):\n    return 2 * x\n",
    ]
    found = judge([loaded], [("Mbpp/7", text) for text in programs], workers=1)
    assert [v.verdict for v in found] == ["pass", "pass", "fail", "fail"]
