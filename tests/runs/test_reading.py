"""The door of every reader: no line without end."""

import gzip

import pytest

from scalefed.data.jsonlines import read_jsonl
from scalefed.errors import DataError
from scalefed.runs import reading
from scalefed.runs.jsontext import read_lines


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
