"""A fit tells that runs it compares were trained by different kernels."""

import pandas as pd
import pytest

from scalefed.fitting.kernels import mixed_kernels

RUNS = pd.DataFrame({"params": [1_000, 1_000, 2_000, 2_000], "tokens": 10_000, "clients_per_round": [1, 4, 1, 4]})


def test_kernels_that_differ_between_runs_of_one_size_are_told() -> None:
    frame = RUNS.assign(
        kernels_used=["eager", "native x86-64-v4", "eager", "eager"], kernels_version=["", "ab12", "", ""]
    )
    (note,) = mixed_kernels(frame)
    assert "1 of 2" in note
    assert "eager, native x86-64-v4 ab12" in note


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"kernels_used": "eager"},
        {"kernels_used": ["eager", "eager", "native", "native"]},
        {"kernels_used": ["eager", None, "native", ""]},
    ],
    ids=["no column", "one", "one a size", "unknown"],
)
def test_nothing_is_told_of_equal_or_unknown_kernels(columns: dict) -> None:
    assert mixed_kernels(RUNS.assign(**columns)) == ()


def test_versions_count_too() -> None:
    frame = RUNS.assign(kernels_used="native x86-64-v4", kernels_version=["a", "b", "a", "a"])
    assert len(mixed_kernels(frame)) == 1
