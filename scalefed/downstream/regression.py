"""Where do the classical regressions come from? From statsmodels, an extra that fits, sizes and charts do without."""

from typing import Any

from scalefed.errors import MissingExtraError


def statsmodels() -> Any:
    """The module ``statsmodels.api``.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import statsmodels.api as found
    except ImportError as error:
        raise MissingExtraError(
            "this test needs statsmodels; install it with: pip install 'scalefed[stats]'"
        ) from error
    return found
