"""Which law maps runs to loss? Read one from text with :meth:`Law.parse`, or take a named one from ``LAWS``."""

from collections.abc import Sequence

from scalefed.errors import ConfigError, nearest
from scalefed.laws.law import Law, Monomial
from scalefed.laws.named import LAWS, RECOMMENDED

__all__ = ["LAWS", "RECOMMENDED", "Law", "Monomial", "as_law"]


def as_law(law: "Law | str", *, columns: Sequence[str] = ()) -> Law:
    """A law from a Law, a name in ``LAWS``, or a formula.

    Args:
        law: the law.
        columns: further column names that a formula may use, beside the run log's own.

    Raises:
        ConfigError: neither a name nor a readable formula.

    >>> as_law("chinchilla").free
    ('E', 'A', 'a', 'B', 'b')
    """
    if isinstance(law, Law):
        return law
    if not isinstance(law, str):
        raise ConfigError(f"a law is a Law, a name or a formula, got {law!r}; names: {', '.join(LAWS)}")
    if law in LAWS:
        return LAWS[law]
    if not any(sign in law for sign in "+*/^("):
        raise ConfigError(f"unknown law {law!r}; {nearest(law, LAWS)} (or write a formula: 'E + A/params^a')")
    return Law.parse(law, columns=columns)
