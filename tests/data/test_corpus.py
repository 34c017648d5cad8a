"""From text to batches: blocks, client streams, whole documents, a cache, and real Python files."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalefed.data import micro
from scalefed.data.corpus import ClientStreams, blocks, gather
from scalefed.data.sources import encode, python_source
from scalefed.data.tokenizer import load_tokenizer, train_tokenizer
from scalefed.errors import ConfigError, DataError
from scalefed.seeds import rng

TEXT = micro.corpus(40_000, seed=0)
HALVES = tuple(np.array_split(np.arange(len(TEXT.families)), 2))


def streams(*, length=32, batch_size=4, visit_steps=5, seed=0, indices=HALVES):
    return ClientStreams(
        TEXT.tokens, TEXT.offsets, indices, length=length, batch_size=batch_size, visit_steps=visit_steps, seed=seed
    )


def documents_of(tokens):
    """The multiset of documents in a run of tokens."""
    found, start = [], 0
    for end in np.flatnonzero(tokens == 0):
        found.append(tuple(tokens[start : end + 1].tolist()))
        start = end + 1
    return sorted(found)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 12))
def test_blocks_predict_every_token_once(count, length):
    tokens = np.arange(count, dtype=np.uint16)
    cut = blocks(tokens, length)
    assert cut.shape == (max((count - 1) // length, 0), length + 1)
    targets = cut[:, 1:].reshape(-1)
    assert np.array_equal(targets, tokens[1 : 1 + len(targets)])
    assert all(a[-1] == b[0] for a, b in pairwise(cut))


def test_gather_puts_chosen_documents_end_to_end():
    order = np.array([5, 2, 9])
    expected = [TEXT.tokens[TEXT.offsets[i] : TEXT.offsets[i + 1]] for i in order]
    assert np.array_equal(gather(TEXT.tokens, TEXT.offsets, order), np.concatenate(expected))
    assert len(gather(TEXT.tokens, TEXT.offsets, order[:0])) == 0


def test_visits_continue_where_the_last_one_ended():
    one = streams(visit_steps=5).batches(1, visit=0, steps=5)
    two = streams(visit_steps=5).batches(1, visit=1, steps=5)
    both = streams(visit_steps=10).batches(1, visit=0, steps=10)
    assert one.shape == (5, 4, 33)
    assert np.array_equal(np.concatenate([one, two]), both)
    rows = both.reshape(-1, 33)
    assert np.array_equal(rows[1:, 0], rows[:-1, -1])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 200)), min_size=1, max_size=6))
def test_batches_depend_on_client_and_visit_not_on_what_came_before(visits):
    used = streams()
    for client, visit in visits:
        assert np.array_equal(
            used.batches(client, visit=visit, steps=5), streams().batches(client, visit=visit, steps=5)
        )


def test_each_epoch_shows_every_document_of_the_client_once_in_a_new_order():
    held = int(np.diff(TEXT.offsets)[HALVES[0]].sum())
    per_epoch = (held - 1) // 32
    stream = streams(batch_size=1, visit_steps=per_epoch)
    rows = [stream.batches(0, visit=epoch, steps=per_epoch)[:, 0] for epoch in range(2)]
    epochs = [np.concatenate([r[:, :-1].reshape(-1), r[-1:, -1]]) for r in rows]
    whole = documents_of(gather(TEXT.tokens, TEXT.offsets, HALVES[0]))
    for seen in epochs:
        missing = len(whole) - len(documents_of(seen))
        assert 0 <= missing <= 3  # the remainder of less than a block
        assert set(documents_of(seen)) <= set(whole)
    assert not np.array_equal(epochs[0], epochs[1])
    expected = gather(TEXT.tokens, TEXT.offsets, rng(0, "batches", 0, 1).permutation(HALVES[0]))
    assert np.array_equal(epochs[1], expected[: len(epochs[1])])


def test_a_straggler_sees_the_beginning_of_its_visit():
    assert np.array_equal(streams().batches(0, visit=3, steps=2), streams().batches(0, visit=3, steps=5)[:2])


def test_more_clients_change_no_other_stream():
    thirds = (*HALVES, HALVES[0][:200])
    assert np.array_equal(streams(indices=thirds).batches(0, visit=2, steps=5), streams().batches(0, visit=2, steps=5))
    assert not np.array_equal(streams(seed=1).batches(0, visit=2, steps=5), streams().batches(0, visit=2, steps=5))


def test_a_client_with_less_than_a_block_is_named():
    with pytest.raises(DataError, match="client 1 holds 1 documents, less than one block of 4000"):
        streams(length=4000, indices=(HALVES[0], np.array([3])))


@pytest.fixture
def packages(tmp_path):
    """Two packages and a module, with files that must be left out."""
    for name, files in {"alpha": 5, "beta": 2}.items():
        (tmp_path / name / "deep").mkdir(parents=True)
        for i in range(files):
            (tmp_path / name / "deep" / f"m{i}.py").write_text(f"def {name}_{i}(x):\n    return x + {i}\n" * 8)
    (tmp_path / "gamma.py").write_text("value = 'é'\n" * 30, encoding="utf-8")
    (tmp_path / "alpha" / "small.py").write_text("x = 1\n")
    (tmp_path / "alpha" / "latin.py").write_bytes(b"name = '\xe9'\n" * 30)
    (tmp_path / "beta" / "copy.py").write_text((tmp_path / "beta" / "deep" / "m0.py").read_text())
    (tmp_path / "beta" / "large.py").write_text("x = 1\n" * 40_000)
    (tmp_path / "not-a-package").mkdir()
    (tmp_path / "not-a-package" / "m.py").write_text("x = 1\n" * 100)
    return tmp_path


def test_python_files_are_grouped_by_package(packages):
    found = python_source(packages)
    assert found.names == ("alpha", "beta", "gamma")
    assert np.bincount(found.groups).tolist() == [5, 2, 1]
    for text, group in zip(found.texts, found.groups, strict=True):
        assert text.startswith(("def alpha", "def beta", "value")[group])
    assert python_source(packages).texts == found.texts
    assert np.bincount(python_source(packages, max_files=4).groups).tolist() == [2, 1, 1]
    assert np.bincount(python_source(packages, per_group=1).groups).tolist() == [1, 1, 1]


def test_python_text_becomes_tokens_of_either_tokenizer(packages, tmp_path):
    found = python_source(packages)
    trained = train_tokenizer(found.texts, vocab_size=400)
    for tokenizer in (trained, micro.tokenizer()):
        made = encode(found.texts, tokenizer, groups=found.groups)
        assert made.tokens.dtype == np.uint16 and (made.tokens[made.offsets[1:] - 1] == tokenizer.eos).all()
        pieces = [tokenizer.decode(made.tokens[a : b - 1]) for a, b in pairwise(made.offsets)]
        assert tuple(pieces) == found.texts
        assert made.text_bytes.sum() == sum(len(text.encode()) for text in found.texts)
    path = tmp_path / "tokenizer.json"
    path.write_text(trained.to_json())
    assert load_tokenizer(path).encode(found.texts[0]) == trained.encode(found.texts[0])


def test_installed_packages_give_natural_clients():
    found = python_source(max_files=60)
    assert len(found.texts) == 60 and len(found.names) >= 30
    with pytest.raises(ConfigError, match="one number a text"):
        encode(found.texts, micro.tokenizer(), groups=found.groups[:3])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"root": "nowhere"}, DataError, "no folder 'nowhere'"),
        ({"max_files": 0}, ConfigError, "max_files must be at least 1, got 0"),
        ({"per_group": 0}, ConfigError, "per_group must be at least 1"),
    ],
)
def test_wrong_source_settings_are_named(options, error, message):
    with pytest.raises(error, match=message):
        python_source(**options)


def test_wrong_tokenizers_are_named(tmp_path):
    with pytest.raises(DataError, match="no Python files"):
        python_source(tmp_path)
    with pytest.raises(ConfigError, match="at least 257"):
        train_tokenizer(["x"], vocab_size=math.floor(256))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="cannot read a tokenizer"):
        load_tokenizer(tmp_path / "bad.json")
