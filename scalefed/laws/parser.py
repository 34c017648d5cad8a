"""How is a law read from text? A hand-written tokenizer and recursive-descent parser; nothing is run as code.

Grammar (``^`` and ``**`` mean the same)::

    law      = [ "-" ] term { ("+" | "-") term }
    term     = factor { ("*" | "/") factor }
    factor   = base [ "^" exponent ]
    base     = number | name | "exp" "(" polynomial ")" | "log" "(" column ")" | "(" law ")"
             | "repeats" "(" term "," term "," name ")"
    exponent = [ "-" ] item
    polynomial = [ "-" ] product { ("+" | "-") product }
    product  = item { "*" item | "/" item }
    item     = number | name [ "^" exponent ] | "log" "(" column ")" | "exp" "(" polynomial ")" | "(" polynomial ")"

A name is a column of the run log or else a parameter. As a base a column must be positive; inside exponents and ``exp``
a column stands for itself, so ``exp(s*skew)`` works where skew is 0. What is subtracted must leave the law positive.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from scalefed.errors import ConfigError
from scalefed.laws.terms import Atom, Part, Polynomial, Power, Repeats, Term, collect, multiply
from scalefed.runs.schema import COLUMNS as SCHEMA

_RESULTS = (
    "params", "params_total", "params_trained", "tokens", "compute", "participation", "skew", "rounds", "epochs",
    "bytes_sent", "bytes_per_client",
)  # fmt: skip
COLUMNS = frozenset(
    [name for name, c in SCHEMA.items() if c.kind == "setting" and c.dtype in ("int", "float")] + list(_RESULTS)
)
MAY_BE_ZERO = frozenset({"skew"})
_RESERVED = {"exp", "log", "repeats"}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<op>\*\*|[-+*/^(),]))"
)
_LONGEST, _DEEPEST, _MOST_TERMS = 10_000, 50, 1_000
"""Characters, levels of parentheses, and terms once products of sums are multiplied out, of the largest law."""
_HIGHEST_POWER = 6  # of what may be 0
_SHORT = 3  # letters of a name that is never taken for a slip of a column
_SHOWN = 160  # characters of a law in a message
_NUMBER_THEN_NAME = re.compile(r"[A-Za-z_.]")


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the text with its position (counted from 1)."""

    kind: str
    text: str
    position: int


@dataclass(slots=True)
class Parsed:
    """What the text says: terms, parameters in order of appearance, and which of them stand as bases."""

    terms: tuple[Term, ...] = ()
    parameters: list[str] = field(default_factory=list)
    bases: set[str] = field(default_factory=set)
    exponents: set[str] = field(default_factory=set)


def tokenize(text: str) -> list[Token]:
    """Split a formula into tokens; a ConfigError names the first character that does not belong."""
    tokens, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            bad = at + len(text[at:]) - len(text[at:].lstrip())
            raise _error(text, bad + 1, f"unexpected character {text[bad]!r}")
        kind = str(match.lastgroup)
        word = match.group(kind)
        at = match.end()
        if kind == "number" and at < len(text) and _NUMBER_THEN_NAME.match(text[at]):
            raise _error(text, at + 1, f"{text[at]!r} follows the number {word} directly; write * between them")
        if kind == "number" and not math.isfinite(float(word)):
            raise _error(text, match.start(kind) + 1, f"the number {word} is too large")
        tokens.append(Token(kind, "^" if word == "**" else word, match.start(kind) + 1))
    tokens.append(Token("end", "", len(text.rstrip()) + 1))
    return tokens


def parse(text: str, columns: Sequence[str] = ()) -> Parsed:
    """Read a formula into terms.

    Args:
        text: the formula, for example ``"E + A/params^a + B/tokens^b"``.
        columns: further column names beside the run log's own.

    Raises:
        ConfigError: the text is not a sum of power-law products; the message shows the position.

    >>> parse("E + A/params^a").parameters
    ['E', 'A', 'a']
    """
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"a law is a formula such as 'E + A/params^a + B/tokens^b', got {text!r}")
    if len(text) > _LONGEST:
        raise ConfigError(f"a law may be {_LONGEST:,} characters long, got {len(text):,}, beginning with {text[:40]!r}")
    return _Parser(text, COLUMNS | frozenset(columns)).law()


def _error(text: str, position: int, problem: str) -> ConfigError:
    start = max(0, position - 81) if len(text) > _SHOWN else 0
    piece = " ".join(text[start : start + _SHOWN].split("\n"))
    return ConfigError(
        f"cannot read the law at position {position}: {problem}\n  {piece}\n  {' ' * (position - 1 - start)}^\n"
        "a law is a sum of power-law products, for example 'E + A/params^a + B/(tokens/clients_per_round^g)^b'"
    )


class _Parser:
    def __init__(self, text: str, columns: frozenset[str]) -> None:
        self.text, self.columns = text, columns
        self.tokens, self.at = tokenize(text), 0
        self.depth = 0
        self.out = Parsed()

    # -- the law: sums of terms --------------------------------------------------------------------------------------
    def law(self) -> Parsed:
        self.out.terms = self._sum()
        if self._peek().kind != "end":
            raise self._fail(f"expected '+', '-', '*', '/' or the end, found {self._peek().text!r}")
        if all(term.sign < 0 for term in self.out.terms):
            raise self._fail("a law is positive, but all of its terms are subtracted")
        both = self.out.bases & self.out.exponents
        if both:
            name = sorted(both)[0]
            raise self._fail(f"the parameter {name!r} stands both as a base and in an exponent; use two names", name)
        return self.out

    def _sum(self) -> tuple[Term, ...]:
        self._enter()
        terms = list(self._term(self._sign()))
        while self._peek().text in ("+", "-"):
            terms += self._term(1.0 if self._next().text == "+" else -1.0)
            self._bound(len(terms))
        self.depth -= 1
        return tuple(terms)

    def _sign(self) -> float:
        if self._peek().text != "-":
            return 1.0
        self._next()
        return -1.0

    def _enter(self) -> None:
        """One level down; a law that is too deep is refused before Python's own stack ends."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self._fail(f"a law may be {_DEEPEST} levels of parentheses deep")

    def _bound(self, terms: int) -> None:
        if terms > _MOST_TERMS:
            raise self._fail(f"multiplied out this law has {terms:,} terms or more; it may have {_MOST_TERMS:,}")

    def _term(self, sign: float) -> tuple[Term, ...]:
        start = self._peek().position
        product = self._factor()
        while self._peek().text in ("*", "/"):
            factor = self._factor() if self._next().text == "*" else (self._divisor(),)
            if len(product) * len(factor) > 1 and any(term.sign < 0 for term in product + factor):
                product, factor = (_whole(product),), (_whole(factor),)  # a difference stays one, with its amplitude
            self._bound(len(product) * len(factor))
            product = tuple(a.times(b) for a in product for b in factor)
        words = self.text[start - 1 : self._peek().position - 1].strip()
        return tuple(replace(term, text=words, sign=sign * term.sign) for term in product)

    def _divisor(self) -> Term:
        return _whole(self._factor()).raised((Part(-1.0),))

    def _factor(self) -> tuple[Term, ...]:
        first = self._peek()
        base = self._base()
        if self._peek().text != "^":
            return base
        self._next()
        exponent = self._exponent()
        if first.text in self.out.bases and (near := _near(first.text, self.columns)):
            raise self._fail(f"unknown name {first.text!r}; did you mean the column {near!r}?", first)
        if exponent == (Part(1.0),):
            return base
        return (_whole(base).raised(exponent),)

    def _base(self) -> tuple[Term, ...]:
        token = self._next()
        if token.text == "(":
            inner = self._sum()
            self._expect(")")
            return inner
        if token.kind == "number":
            value = float(token.text)
            if value <= 0:
                raise self._fail("a factor must be positive", token)
            return (Term((Part(math.log(value)),) if value != 1.0 else ()),)
        if token.kind != "name":
            raise self._fail(f"expected a number, a name or '(', found {_shown(token)}", token)
        if token.text == "exp":
            return (Term(self._in_parentheses()),)
        if token.text == "log":
            return (Term((Part(1.0, (), (Atom("loglog", (self._column_in_parentheses(),)),)),)),)
        if token.text == "repeats":
            return (Term((), repeats=(self._repeats(token),)),)
        if token.text in self.columns:
            return (self._positive(token),)
        self._parameter(token, self.out.bases)
        return (Term((Part(1.0, (token.text,)),)),)

    def _positive(self, token: Token) -> Term:
        """A column as a base."""
        if token.text in MAY_BE_ZERO:
            raise self._fail(f"{token.text} may be 0, so it cannot be a base; write exp(s*{token.text})", token)
        return Term((Part(1.0, (), (Atom("log", (token.text,)),)),))

    def _repeats(self, start: Token) -> Repeats:
        self._expect("(")
        products = []
        for _ in range(2):
            first = self._peek()
            product = self._term(1.0)
            self._expect(",")
            plain = len(product) == 1 and not product[0].powers and not product[0].repeats
            if not plain:
                raise self._fail("repeats(tokens, unique_tokens, R) takes columns, or products of their powers", start)
            if not any(part.atoms for part in product[0].parts):
                raise self._fail(f"expected a column of the run log, found {_shown(first)}", first)
            products.append(replace(product[0], text=""))
        decay = self._next()
        if decay.kind != "name" or decay.text in self.columns:
            raise self._fail("repeats(tokens, unique_tokens, R) needs a parameter as its third part", decay)
        self._parameter(decay, self.out.bases)
        self._expect(")")
        return Repeats(products[0], products[1], decay.text)

    # -- exponents: polynomials in parameters and columns ------------------------------------------------------------
    def _exponent(self) -> Polynomial:
        return multiply((Part(self._sign()),), self._item())

    def _in_parentheses(self) -> Polynomial:
        self._expect("(")
        inside = self._polynomial()
        self._expect(")")
        return inside

    def _polynomial(self) -> Polynomial:
        self._enter()
        total = multiply((Part(self._sign()),), self._product())
        while self._peek().text in ("+", "-"):
            sign = 1.0 if self._next().text == "+" else -1.0
            total = collect(total + multiply((Part(sign),), self._product()))
            self._bound(len(total))
        self.depth -= 1
        return total

    def _product(self) -> Polynomial:
        start, total = self._peek(), self._item()
        while self._peek().text in ("*", "/"):
            item = self._item() if self._next().text == "*" else self._inverse()
            self._bound(len(total) * len(item))
            total = multiply(total, item)
        for part in total:
            meant = next((near for name in part.parameters if (near := _near(name, self.columns))), None)
            if len(part.parameters) > 1 and not part.atoms and not part.factors and meant:
                name = next(name for name in part.parameters if _near(name, self.columns) == meant)
                raise self._fail(f"unknown name {name!r}; did you mean the column {meant!r}?", start)
        return total

    def _inverse(self) -> Polynomial:
        """What stands under a stroke: a number, or a positive base."""
        token = self._peek()
        if token.kind == "number":
            self._next()
            if float(token.text) == 0.0:
                raise self._fail("division by 0", token)
            return (Part(1.0 / float(token.text)),)
        return (Part(1.0, (), (), (self._divisor(),)),)

    def _item(self) -> Polynomial:
        token = self._next()
        if token.text == "(":
            self.at -= 1
            return self._to_a_number(self._in_parentheses())
        if token.kind == "number":
            return (Part(float(token.text)),) if float(token.text) else ()
        if token.kind != "name":
            raise self._fail(f"expected a number, a parameter or a column, found {_shown(token)}", token)
        if token.text == "log":
            return self._to_a_number((Part(1.0, (), (Atom("log", (self._column_in_parentheses(),)),)),))
        if token.text == "exp":
            return (Part(1.0, (), (), (Term(self._in_parentheses()),)),)
        if token.text in self.columns:
            if self._peek().text == "^" and token.text not in MAY_BE_ZERO:
                self._next()
                return (Part(1.0, (), (), (self._positive(token).raised(self._exponent()),)),)
            return self._to_a_number((Part(1.0, (), (Atom("raw", (token.text,)),)),))
        if self._peek().text == "^":
            self._next()
            self._parameter(token, self.out.bases)
            return (Part(1.0, (), (), (Term((Part(1.0, (token.text,)),)).raised(self._exponent()),)),)
        self._parameter(token, self.out.exponents)
        return (Part(1.0, (token.text,)),)

    def _to_a_number(self, base: Polynomial) -> Polynomial:
        """What may be 0 or below, to a small whole power."""
        if self._peek().text != "^":
            return base
        self._next()
        token = self._next()
        if token.kind != "number" or float(token.text) not in range(1, _HIGHEST_POWER + 1):
            raise self._fail(f"what may be 0 can be raised to 1, 2 ... {_HIGHEST_POWER} only", token)
        total = base
        for _ in range(int(float(token.text)) - 1):
            self._bound(len(total) * len(base))
            total = multiply(total, base)
        return total

    # -- tokens and names --------------------------------------------------------------------------------------------
    def _column_in_parentheses(self) -> str:
        self._expect("(")
        token = self._next()
        if token.kind != "name" or token.text not in self.columns:
            raise self._fail(f"expected a column of the run log, found {_shown(token)}", token)
        self._expect(")")
        return token.text

    def _parameter(self, token: Token, group: set[str]) -> None:
        name = token.text
        if name in _RESERVED:
            raise self._fail(f"{name} is a function; write {name}(...)", token)
        if self._peek().text == "(":
            root = "; write ^0.5 for a root" if name == "sqrt" else ""
            raise self._fail(f"{name} is no function; allowed: {', '.join(sorted(_RESERVED))}{root}", token)
        group.add(name)
        if name not in self.out.parameters:
            self.out.parameters.append(name)

    def _peek(self) -> Token:
        return self.tokens[self.at]

    def _next(self) -> Token:
        token = self.tokens[self.at]
        self.at = min(self.at + 1, len(self.tokens) - 1)
        return token

    def _expect(self, text: str) -> None:
        token = self._next()
        if token.text != text:
            raise self._fail(f"expected {text!r}, found {_shown(token)}", token)

    def _fail(self, problem: str, where: Token | str | None = None) -> ConfigError:
        if isinstance(where, str):
            where = next(t for t in self.tokens if t.text == where)
        return _error(self.text, (where or self._peek()).position, problem)


def _shown(token: Token) -> str:
    return repr(token.text) if token.text else "the end"


def _whole(terms: tuple[Term, ...]) -> Term:
    """A sum as one term: itself if it has one term that is added, else a group."""
    if len(terms) == 1 and terms[0].sign > 0:
        return terms[0]
    return Term((), (Power(terms, (Part(1.0),)),))


def _near(name: str, columns: Iterable[str]) -> str | None:
    """The column that a name is likely to be a slip of; None if there is none."""
    if len(name) <= _SHORT:
        return None
    near = [c for c in columns if c.startswith(name) or name.rstrip("s") == c.rstrip("s")]
    return next(iter(sorted(near) or get_close_matches(name.lower(), sorted(columns), 1, 0.8)), None)
