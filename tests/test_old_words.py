"""A word that the package had before its first release is an error that names the new one."""

import pytest

import scalefed as sf
from scalefed.errors import RENAMED, nearest


@pytest.mark.parametrize(("old", "new"), [("robust", "huber_delta"), ("focus", "scale_weight"), ("shared", "ties")])
def test_an_old_keyword_names_the_new_one(old, new):
    with pytest.raises(TypeError, match=f"'{old}': it is called '{new}' now"):
        sf.fit("runs/none", **{old: None})


def test_an_old_key_of_a_question_file_names_the_new_one():
    for old, new in RENAMED.items():
        assert new in nearest(old, ["runs", "law", new])


def test_a_keyword_of_today_is_not_refused():
    with pytest.raises(sf.DataError):
        sf.fit("nothing.csv", huber_delta=None)
