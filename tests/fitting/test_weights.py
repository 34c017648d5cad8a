"""Weights of laws: what their errors say, pulled half of the way that an equal share would go."""

import numpy as np
import pytest

from scalefed.fitting.weights import stacking_weights


def test_two_laws_are_weighted_as_by_hand():
    """Errors (1, 0) and (0, 2): least ``a^2 + 4 (1-a)^2 + (1/2)^2 ((a-1/2)^2 + (1/2-a)^2)`` is at a = 8.5 / 11."""
    weights = stacking_weights(np.array([[1.0, 0.0], [0.0, 2.0]]))
    assert weights == pytest.approx([8.5 / 11, 2.5 / 11], rel=1e-5)


def test_the_size_of_the_errors_does_not_matter():
    errors = np.random.default_rng(0).normal(size=(20, 3)) * [1.0, 1.5, 3.0]
    assert stacking_weights(1e-4 * errors) == pytest.approx(stacking_weights(errors), rel=1e-6)
