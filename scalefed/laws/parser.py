"""How is a law read from text? A hand-written tokenizer and recursive-descent parser; nothing is run as code.

Grammar (``^`` and ``**`` mean the same)::

    law      = term { "+" term }
    term     = factor { ("*" | "/") factor }
    factor   = base [ "^" exponent ]
    base     = number | name | "exp" "(" polynomial ")" | "repeats" "(" column "," column "," name ")" | "(" law ")"
    exponent = [ "-" ] ( number | name | "(" polynomial ")" )
    polynomial = [ "-" ] product { ("+" | "-") product }
    product  = item { "*" item | "/" number }
    item     = number | name | "log" "(" column ")" | "(" polynomial ")"

A name is a column of the run log or else a parameter. As a base a column must be positive; inside exponents and ``exp``
a column stands for itself, so ``exp(s*skew)`` works where skew is 0.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from scalefed.errors import ConfigError
from scalefed.laws.terms import Atom, Part, Polynomial, Power, Term, collect, multiply
from scalefed.runs.schema import COLUMNS as SCHEMA

_RESULTS = (
    "params params_total params_trained tokens compute participation skew rounds bytes_sent bytes_per_client".split()
)
COLUMNS = frozenset(
    [name for name, c in SCHEMA.items() if c.kind == "setting" and c.dtype in ("int", "float")] + _RESULTS
)
MAY_BE_ZERO = frozenset({"skew"})
_RESERVED = {"exp", "log", "repeats"}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<op>\*\*|[-+*/^(),]))"
)
_LONGEST, _DEEPEST, _MOST_TERMS = 10_000, 50, 1_000
"""Characters, levels of parentheses, and terms once products of sums are multiplied out, of the largest law."""
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
            raise self._fail(f"expected '+', '*', '/' or the end, found {self._peek().text!r}")
        both = self.out.bases & self.out.exponents
        if both:
            name = sorted(both)[0]
            raise self._fail(f"the parameter {name!r} stands both as a base and in an exponent; use two names", name)
        return self.out

    def _sum(self) -> tuple[Term, ...]:
        self._enter()
        terms = list(self._term())
        while self._peek().text in ("+", "-"):
            if self._peek().text == "-":
                raise self._fail("terms are added, never subtracted (a negative power is written tokens^-b)")
            self._next()
            terms += self._term()
            self._bound(len(terms))
        self.depth -= 1
        return tuple(terms)

    def _enter(self) -> None:
        """One level down; a law that is too deep is refused before Python's own stack ends."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self._fail(f"a law may be {_DEEPEST} levels of parentheses deep")

    def _bound(self, terms: int) -> None:
        if terms > _MOST_TERMS:
            raise self._fail(f"multiplied out this law has {terms:,} terms or more; it may have {_MOST_TERMS:,}")

    def _term(self) -> tuple[Term, ...]:
        start = self._peek().position
        product = self._factor()
        while self._peek().text in ("*", "/"):
            operator = self._next()
            factor = self._factor()
            if operator.text == "/":
                if len(factor) != 1:
                    raise self._fail("cannot divide by a sum", operator)
                factor = (_raise(factor[0], (Part(-1.0),)),)
            self._bound(len(product) * len(factor))
            product = tuple(Term(collect(a.parts + b.parts), a.powers + b.powers) for a in product for b in factor)
        words = self.text[start - 1 : self._peek().position - 1].strip()
        return tuple(Term(t.parts, t.powers, words) for t in product)

    def _factor(self) -> tuple[Term, ...]:
        base_at = self._peek()
        base = self._base()
        if self._peek().text != "^":
            return base
        self._next()
        exponent = self._exponent()
        if len(base) == 1:
            return (_raise(base[0], exponent),)
        if exponent == (Part(1.0),):
            return base
        if any(p.atoms for p in exponent) or (not any(p.parameters for p in exponent) and _number(exponent) <= 0):
            raise self._fail("a sum may be raised to a positive number or to parameters only", base_at)
        return (Term((), (Power(base, exponent),)),)

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
            self._expect("(")
            inside = self._polynomial()
            self._expect(")")
            return (Term(inside),)
        if token.text == "repeats":
            return (Term((Part(1.0, (), (self._repeats(),)),)),)
        if token.text in self.columns:
            if token.text in MAY_BE_ZERO:
                raise self._fail(f"{token.text} may be 0, so it cannot be a base; write exp(s*{token.text})", token)
            return (Term((Part(1.0, (), (Atom("log", (token.text,)),)),)),)
        self._parameter(token, self.out.bases)
        return (Term((Part(1.0, (token.text,)),)),)

    def _repeats(self) -> Atom:
        self._expect("(")
        tokens = self._column()
        self._expect(",")
        unique = self._column()
        self._expect(",")
        decay = self._next()
        if decay.kind != "name" or decay.text in self.columns:
            raise self._fail("repeats(tokens, unique_tokens, R) needs a parameter as its third part", decay)
        self._parameter(decay, self.out.bases)
        self._expect(")")
        return Atom("repeats", (tokens, unique), decay.text)

    # -- exponents: polynomials in parameters and columns ------------------------------------------------------------
    def _exponent(self) -> Polynomial:
        if self._peek().text == "-":
            self._next()
            return multiply((Part(-1.0),), self._item())
        return self._item()

    def _polynomial(self) -> Polynomial:
        self._enter()
        sign = 1.0
        if self._peek().text == "-":
            self._next()
            sign = -1.0
        total = multiply((Part(sign),), self._product())
        while self._peek().text in ("+", "-"):
            sign = 1.0 if self._next().text == "+" else -1.0
            total = collect(total + multiply((Part(sign),), self._product()))
            self._bound(len(total))
        self.depth -= 1
        return total

    def _product(self) -> Polynomial:
        total = self._item()
        while self._peek().text in ("*", "/"):
            if self._next().text == "*":
                item = self._item()
                self._bound(len(total) * len(item))
                total = multiply(total, item)
                continue
            divisor = self._next()
            if divisor.kind != "number" or float(divisor.text) == 0.0:
                raise self._fail("inside an exponent one can divide by a number only", divisor)
            total = multiply(total, (Part(1.0 / float(divisor.text)),))
        return total

    def _item(self) -> Polynomial:
        token = self._next()
        if token.text == "(":
            inside = self._polynomial()
            self._expect(")")
            return inside
        if token.kind == "number":
            return (Part(float(token.text)),) if float(token.text) else ()
        if token.kind != "name":
            raise self._fail(f"expected a number, a parameter or a column, found {_shown(token)}", token)
        if token.text == "log":
            self._expect("(")
            column = self._column()
            self._expect(")")
            return (Part(1.0, (), (Atom("log", (column,)),)),)
        if token.text in self.columns:
            return (Part(1.0, (), (Atom("raw", (token.text,)),)),)
        self._parameter(token, self.out.exponents)
        return (Part(1.0, (token.text,)),)

    # -- tokens and names --------------------------------------------------------------------------------------------
    def _column(self) -> str:
        token = self._next()
        if token.kind != "name" or token.text not in self.columns:
            raise self._fail(f"expected a column of the run log, found {_shown(token)}", token)
        return token.text

    def _parameter(self, token: Token, group: set[str]) -> None:
        name = token.text
        if name in _RESERVED:
            raise self._fail(f"{name} is a function; write {name}(...)", token)
        near = [c for c in self.columns if len(name) > 3 and (c.startswith(name) or name.rstrip("s") == c.rstrip("s"))]
        near = sorted(near) or (get_close_matches(name.lower(), sorted(self.columns), 1, 0.8) if len(name) > 3 else [])
        if near:
            raise self._fail(f"unknown name {name!r}; did you mean the column {near[0]!r}?", token)
        if self._peek().text == "(":
            raise self._fail(f"{name} is no function; allowed: exp, log, repeats", token)
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


def _raise(term: Term, exponent: Polynomial) -> Term:
    powers = tuple(Power(p.terms, multiply(p.exponent, exponent)) for p in term.powers)
    return Term(multiply(term.parts, exponent), powers, term.text)


def _number(polynomial: Polynomial) -> float:
    return sum(part.coefficient for part in polynomial)
