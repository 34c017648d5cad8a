"""Functions of packages: what counts as one, that copies count once, who holds what, and that nothing leaks."""

import ast

import numpy as np
import pytest

from scalefed.data.functions import (
    STANDARD_LIBRARY,
    check_source,
    encode_bytes,
    find_packages,
    functions,
    functions_of,
    part,
)
from scalefed.data.tokenizer import ByteTokenizer
from scalefed.errors import ConfigError, DataError

SOURCE = '''
import os

@decorated
def first(x):
    def inner(y):
        return y
    return inner(x)

class Some:
    """A class."""

    async def second(self):
        return """
    kept
"""

    class Deep:
        def third(self): return 3
'''


@pytest.fixture
def root(tmp_path):
    """Twelve packages; the functions of the last are those of the first, indented otherwise."""
    for number in range(11):
        (tmp_path / f"p{number:02}").mkdir()
        for file in range(4):
            text = "\n".join(f"def f{number}_{file}_{i}(x):\n    return x + {i} * {'x' * 60}\n" for i in range(20))
            (tmp_path / f"p{number:02}" / f"m{file}.py").write_text(text)
    copied = (tmp_path / "p00" / "m0.py").read_text().replace("    return", "  return")
    (tmp_path / "p11.py").write_text(copied)
    return f"{tmp_path}/"


def texts_of(corpus):
    words = ByteTokenizer()
    return [words.decode(corpus.tokens[a:b]) for a, b in zip(corpus.offsets, corpus.offsets[1:], strict=False)]


def test_functions_and_methods_are_documents():
    found = functions_of(SOURCE)
    assert [text.splitlines()[0] for text in found] == [
        "@decorated",
        "async def second(self):",
        "def third(self): return 3",
    ]
    assert all(ast.parse(text) for text in found)
    assert functions_of(SOURCE.replace("\n", "\r\n")) == found
    assert functions_of("def f(:\n") == [] and functions_of("x = 1\n") == []


def test_bytes_are_ids_of_the_byte_vocabulary():
    made = encode_bytes([(0, "é".encode()), (4, b"ab")], np.random.default_rng(0))
    words = ByteTokenizer()
    assert sorted(texts_of(made)) == ["ab", "é"]
    assert made.tokens.max() < words.vocab_size and (made.tokens[made.offsets[1:] - 1] == words.eos).all()
    assert made.tokens.tolist() == [i for text in texts_of(made) for i in (*words.encode(text), words.eos)]
    assert texts_of(part(made, np.array([1]))) == texts_of(made)[1:]


def test_text_held_out_and_unseen_packages_share_nothing(root):
    found = functions(root, size=40_000, held_out=4_000, exact=True, seed=0)
    parts = [texts_of(one) for one in (found.text, found.held_out, found.unseen)]
    bare = [" ".join(text.split()) for texts in parts for text in texts]
    assert len(set(bare)) == len(bare)
    assert abs(len(found.text.tokens) / 40_000 - 1) < 0.05 and abs(len(found.held_out.tokens) / 4_000 - 1) < 0.1
    assert len(found.unseen_packages) == 1 and len(found.packages) == 11
    for text, package in zip(texts_of(found.text), found.text.families, strict=True):
        assert text.startswith(f"def f{int(found.packages[package].name[1:])}_")
    given = np.bincount(found.text.families, minlength=11)
    assert max(given) - min(given[given > 0]) <= 25  # of 80: a file of 20 more or less


def test_the_same_packages_give_the_same_text_and_another_seed_another(root):
    one = functions(root, size=9_000, held_out=900, exact=True, seed=0)
    functions.cache_clear()
    assert functions(root, size=9_000, held_out=900, exact=True, seed=0).hash == one.hash
    assert functions(root, size=9_000, held_out=900, exact=True, seed=1).hash != one.hash


def test_too_little_text_is_said_and_all_of_it_serves_where_no_size_is_given(root):
    with pytest.raises(DataError, match=r"bytes of distinct functions, 1,000,900 are asked for; lower unique_tokens"):
        functions(root, size=1_000_000, held_out=900, exact=True, seed=0)
    assert len(functions(root, size=1_000_000, held_out=900, exact=False, seed=0).text.tokens) > 50_000


def test_installed_packages_state_version_and_licence():
    numpy, python = find_packages(f"{STANDARD_LIBRARY}, NumPy")
    assert str(numpy).startswith(f"numpy {np.__version__}, ") and "BSD" in numpy.licence
    assert python.licence == "PSF-2.0" and not any("site-packages" in path.parts for path in python.files)
    assert "scalefed" not in {package.name for package in find_packages()}


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("numppy", "names 'numppy', which is not installed here; did you mean 'numpy'"),
        ("./nowhere", "no folder 'nowhere'"),
    ],
)
def test_sources_that_are_not_there_are_named(root, message):
    with pytest.raises(DataError, match=message):
        check_source(root, partition="iid", clients=4)


def test_natural_clients_need_a_package_each(root):
    check_source(root, partition="natural", clients=11)
    with pytest.raises(ConfigError, match="11 of 12 packages are trained on and cannot fill 12 clients"):
        check_source(root, partition="natural", clients=12)
