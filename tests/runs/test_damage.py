"""Broken files of every kind: a refusal in words, or the good rows; the benchmark asks the same of 20,000."""

from random import Random

import pytest
from damage import attempt
from damage_kinds import kinds
from damage_more import more_kinds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KINDS = {kind.name: kind for kind in [*kinds(), *more_kinds()]}


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_a_broken_file_is_refused_in_words_or_hides_nothing(tmp_path_factory, name, seed):
    outcome = attempt(KINDS[name], tmp_path_factory.mktemp("files"), Random(seed))
    assert outcome.what in ("refused", "read"), outcome
