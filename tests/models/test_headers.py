"""A header that claims more than its file holds is refused before memory is taken; one that tells the truth is read."""

import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from scalefed.errors import DataError
from scalefed.models.headers import check_weights


def text(words):
    return struct.pack("<Q", len(words)) + words


def gguf(*, tensors=1, keys=2, version=3, length=None, count=2, values=32):
    parts = [b"GGUF", struct.pack("<IQQ", version, tensors, keys)]
    parts += [text(b"name"), struct.pack("<I", 8), struct.pack("<Q", 1 if length is None else length), b"x"]
    parts += [text(b"list"), struct.pack("<IIQ", 9, 8, count), text(b"a"), text(b"b")]
    parts += [text(b"w"), struct.pack("<IQIQ", 1, values, 0, 0), bytes(128)]
    return b"".join(parts)


@pytest.fixture
def good(tmp_path):
    save_file({"a": torch.zeros(4, 5), "b": torch.zeros(3, dtype=torch.bfloat16)}, tmp_path / "m.safetensors")
    (tmp_path / "m.gguf").write_bytes(gguf())
    return tmp_path


def test_good_headers_are_read(good):
    check_weights(good / "m.safetensors")
    check_weights(good / "m.gguf")


@pytest.mark.parametrize(
    "fault",
    [{"tensors": 2**60}, {"keys": 2**60}, {"length": 2**62}, {"count": 2**61}, {"values": 2**61}, {"version": 1}],
)
def test_a_gguf_header_that_claims_too_much_is_refused(tmp_path, fault):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(**fault))
    with pytest.raises(DataError, match=r"m\.gguf is damaged: .*; fetch the file again"):
        check_weights(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "bytes"),
        (b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,8]}}', "does not fill"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,800]}}', "outside the file"),
        (b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', "where a size should"),
        (b"[" * 100_000, "RecursionError"),
    ],
)
def test_a_safetensors_header_that_claims_too_much_is_refused(tmp_path, header, words):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) or 2**63) + header + bytes(8))
    with pytest.raises(DataError, match=words):
        check_weights(path)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(["m.gguf", "m.safetensors"]))
def test_whatever_bytes_change_a_header_is_read_or_refused_in_words(good, data, name):
    content = bytearray((good / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = good / f"changed-{name}"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        check_weights(path)
    except DataError as error:
        assert str(path) in str(error)
