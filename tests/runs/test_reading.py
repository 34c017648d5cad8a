"""The door of every reader: no line without end, and no archive that fills the memory."""

import gzip

import pytest

from scalefed.data.jsonlines import read_jsonl
from scalefed.data.problem import Problem
from scalefed.data.problems import load_problems
from scalefed.errors import DataError
from scalefed.evaluation.sample_files import open_samples
from scalefed.runs import reading
from scalefed.runs.jsontext import read_lines
from scalefed.runs.log import load_counts, load_runs


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("read", [read_lines, read_jsonl])
def test_a_line_without_end_is_refused_before_it_is_held(tmp_path, monkeypatch, name, read):
    path = tmp_path / name
    open_file = gzip.open if name.endswith(".gz") else open
    with open_file(path, "wb") as stream:
        stream.write(b'{"a": 1}\n{"a": "' + b"0" * 1_000_000 + b'"}\n')
    assert len(list(read(path))) == 2
    monkeypatch.setattr(reading, "LONGEST_LINE", 1_000)
    with pytest.raises(DataError, match=r"a.jsonl\S*, line 2 is longer than 1_000 bytes; write a record a line"):
        list(read(path))


PROBLEM = Problem("t/0", "def f(x):\n", "    return x\n", "def check(candidate):\n    assert candidate(1) == 1\n", "f")
ROW = b"1000,1000,2.5\n"
WHOLE = {  # the beginning of an archive that is read as a whole, what is repeated in it, its end, and its reader
    "runs.csv.gz": (b"params,tokens,loss\n", ROW, b"", load_runs),
    "runs.tsv.gz": (b"params\ttokens\tloss\n", ROW.replace(b",", b"\t"), b"", load_runs),
    "wide.csv.gz": (b"params,tokens,loss\n1,", b"0", b",2\n", load_runs),
    "header.csv.gz": (b"params,tokens,loss,", b"x", b"\n1,2,3\n", load_runs),
    "runs.jsonl.gz": (b"", b'{"params": 1000, "tokens": 1000, "loss": 2.5}\n', b"", load_runs),
    "counts.csv.gz": (b"run_id,task_id,samples,correct\n", b"a,b,2,1\n", b"", load_counts),
    "problems.json.gz": (b"[", b'{"task_id": "t/0"},', b"{}]", load_problems),
    "samples.json.gz": (b'{"t/0":\n[', b'"    return x",', b'""]}\n', lambda path: open_samples(path, [PROBLEM])),
}


@pytest.mark.parametrize("name", WHOLE)
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused_before_it_is_held(tmp_path, monkeypatch, name):
    begin, again, end, read = WHOLE[name]
    path = tmp_path / name
    path.write_bytes(gzip.compress(begin + again * (8_000_000 // len(again)) + end))
    monkeypatch.setattr(reading, "SMALL", 1_000_000)
    with pytest.raises(DataError, match=rf"{name} unpacks to more than 100 times its size; unpack it first"):
        read(path)


def test_an_archive_of_rows_that_differ_is_read_whole(tmp_path, monkeypatch):
    path = tmp_path / "runs.csv.gz"
    rows = "".join(f"{1000 + n},{n * n},{2 + n / 7}\n" for n in range(5_000))
    path.write_bytes(gzip.compress(f"params,tokens,loss\n{rows}".encode()))
    monkeypatch.setattr(reading, "SMALL", 1_000)
    assert len(load_runs(path)) == 5_000
