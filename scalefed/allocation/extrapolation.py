"""What of a question lies outside the runs, and what does its answer assume there?

A fit keeps what its runs had of every column (:class:`Ranges`). A question is held against that column by column:
outside, its answer says so in a sentence and in decades; a setting that the law does not contain is never dropped
without a word; and where the runs had one value only of a column that the law needs, the question is refused.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalefed.allocation.program import ROUND_COLUMNS
from scalefed.errors import FitError
from scalefed.laws import Law
from scalefed.laws.parser import COLUMNS
from scalefed.runs.schema import COLUMNS as SCHEMA
from scalefed.units import grouped

Array = NDArray[np.float64]

SLACK = 1.001  # counts that differ by less are the same
LINEAR_SLACK = 0.02  # iid clients measure a skew near zero, each deal another
LINEAR = ("skew",)
SIZE = ("params", "tokens")
TEXTS = ("algorithm", "data", "inner_optimizer", "inner_state")
"""Columns of texts that runs to be predicted are held against."""
PHRASES: Mapping[str, tuple[str, str]] = {
    "clients": ("{} client", "{} clients"),
    "clients_per_round": ("{} client per round", "{} clients per round"),
    "participation": ("a participation of {}", "a participation of {}"),
    "local_steps": ("{} local step", "{} local steps"),
    "batch_tokens": ("{} token a step", "{} tokens a step"),
    "skew": ("a skew of {}", "a skew of {}"),
    "epochs": ("{} pass over their text", "{} passes over their text"),
    "unique_tokens": ("{} different token", "{} different tokens"),
}
"""Column -> a number of it in words, for one and for another."""
_ALSO: Mapping[str, tuple[str, ...]] = {
    "clients": ("participation",),
    "clients_per_round": ("participation",),
    "participation": ("clients_per_round",),
    "local_steps": tuple(ROUND_COLUMNS),
    "batch_tokens": tuple(ROUND_COLUMNS),
    "unique_tokens": ("epochs",),
    "epochs": ("unique_tokens",),
}
"""Column -> those of a law through which it counts too."""
_DERIVED = ("batch_tokens", "trained_share")
_QUOTIENTS = (
    ("participation", "clients_per_round", "clients"),
    ("epochs", "tokens", "unique_tokens"),
    ("trained_share", "params_trained", "params_total"),
)


@dataclass(frozen=True, slots=True)
class Ranges:
    """What runs had of their columns.

    Attributes:
        numbers: column -> its smallest and its largest value.
        words: column of texts -> its different values.
        bound: columns of one value only for which laws with a term for them were not tried, as nothing could tell it.
    """

    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bound: tuple[str, ...] = ()


def ranges_of(runs: pd.DataFrame, law: Law) -> Ranges:
    """What these runs had of the columns that a question may name: settings, and whatever the law needs.

    >>> ranges_of(pd.DataFrame({"clients": [16, 16], "inner_state": ["keep", "keep"]}), Law.parse("E + A/params^a"))
    Ranges(numbers={'clients': (16.0, 16.0)}, words={'inner_state': ('keep',)}, bound=())
    """
    numbers, words = {}, {}
    for name, values in {**{str(name): runs[name] for name in runs}, **_derived(runs)}.items():
        if name in COLUMNS or name in law.columns or name in _DERIVED:
            known = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
            iid = (name == "concentration") & np.isposinf(known)
            if len(known := known[np.isfinite(known) | iid]):
                numbers[name] = (float(known.min()), float(known.max()))
        elif name in SCHEMA and SCHEMA[name].kind == "setting" and SCHEMA[name].dtype == "str":
            words[name] = tuple(sorted(map(str, values.dropna().unique())))
    return Ranges(numbers, {name: values for name, values in words.items() if values})


def _derived(runs: pd.DataFrame) -> dict[str, "pd.Series[Any]"]:
    """Columns that follow from others, where they are not there."""

    def number(name: str) -> "pd.Series[float]":
        return pd.to_numeric(runs[name], errors="coerce")

    made = {}
    for name, first, second in _QUOTIENTS:
        if name not in runs and {first, second} <= set(runs.columns):
            made[name] = number(first) / number(second)
    if "batch_tokens" not in runs and {"batch_size", "sequence_length"} <= set(runs.columns):
        made["batch_tokens"] = number("batch_size") * number("sequence_length")
    return made


def ranges_behind(fit: Any) -> Ranges:
    """The ranges that a fit keeps, or else those of its runs."""
    kept = getattr(fit, "ranges", None)
    return kept if isinstance(kept, Ranges) and (kept.numbers or kept.words) else ranges_of(fit.runs, fit.law)


@dataclass(frozen=True, slots=True)
class Column:
    """What runs had of one column of numbers, and whether the law looks at it.

    Attributes:
        name: the column.
        low, high: its ends in the runs; NaN where they do not tell it.
        in_law: whether the law's answer depends on it.
        needed: whether the law, or one that was not tried for that, would depend on it, had the runs varied it.
        tested: whether the law was tested on runs of the column that it was not fitted to.
    """

    name: str
    low: float
    high: float
    in_law: bool
    needed: bool
    tested: bool = True

    @property
    def phrases(self) -> tuple[str, str]:
        """The words of a number, for one and for another."""
        return PHRASES.get(self.name, (f"{self.name} {{}}",) * 2)

    @property
    def linear(self) -> bool:
        """Whether distances are told as a share of the range and not in decades."""
        return self.name in LINEAR or not self.low > 0

    @property
    def constant(self) -> bool:
        """Whether the runs had one value only."""
        return self.high - self.low <= LINEAR_SLACK if self.name in LINEAR else self.high <= self.low * SLACK

    def beyond(self, value: float) -> float:
        """How far a value lies outside: decades, or the share of the range; 0 inside or where the runs do not tell."""
        if not self.linear:
            outside = value > self.high * SLACK or value < self.low / SLACK
            return float(max(np.log10(value / self.high), np.log10(self.low / value))) if outside else 0.0
        away = max(value - self.high, self.low - value)
        span = self.high - self.low
        slack = LINEAR_SLACK if self.name in LINEAR else 0.0
        return float(away / span if span > slack else away) if away > slack else 0.0

    def sentence(self, value: float, said: bool) -> str:
        """What the answer assumes at a value; empty where there is nothing to say.

        Args:
            value: of the question.
            said: whether the question names the column.

        Raises:
            FitError: the law needs the column, and the runs had one other value of it only.
        """
        here, beyond = self.phrase(value), self.beyond(value)
        if np.isnan(self.low):
            return "" if self.in_law else f"the runs do not tell their {self.name}; {_ASSUMES}"
        if not beyond:
            unheard = said and not self.in_law and not self.constant
            return f"{self.name} {_UNHEARD} for all that the runs had" if unheard else ""
        if self.name == "epochs" and not self.in_law:
            return (
                f"runs that read their text {grouped(value)} times were not fitted, and the law has no term for it: "
                "bands reach up to text that teaches nothing when it is read again"
            )
        if self.constant and self.needed and not self.in_law:
            raise FitError(
                f"these runs all had {self.phrase(self.low)}, so what {here} does was not measured: ask for "
                f"{self.name} = {grouped(self.low)}, add runs with another, or fit by name a law without it"
            )
        if self.constant:
            return f"these runs all had {self.phrase(self.low)}; the answer for {grouped(value)} {_tail(self.in_law)}"
        over = value > self.high
        end = self.high if over else self.low
        if self.linear:
            how = "above the highest" if over else "below the lowest"
        else:
            how = f"{grouped(value / end)} times the most" if over else f"{grouped(end / value)} times below the least"
        told = f"{here} is {how} of the runs ({grouped(end)})"
        tested = "" if self.tested else "; these runs could not test the law there"
        return f"{told}{tested}" if self.in_law else f"{told}; {_ASSUMES}"

    def phrase(self, value: float) -> str:
        """A number of the column in words."""
        one, many = self.phrases
        return (one if value == 1 else many).format(grouped(value))


_ASSUMES = "the answer assumes that it does not matter"
_UNHEARD = "has no term in this law: size and loss are the same"


def _tail(in_law: bool) -> str:
    return "goes by the law alone" if in_law else "assumes that it does not matter"


def most_passes(ranges: Ranges) -> float:
    """How often runs read their text, at most; at least once, as fresh text is."""
    return max(ranges.numbers.get("epochs", (1.0, 1.0))[1], 1.0)


def column_of(name: str, ranges: Ranges, law: Law, tested: Collection[str] | None = None) -> Column:
    """One column as the runs and the law have it; with the columns along which the law was tested."""
    low, high = ranges.numbers.get(name, (np.nan, np.nan))
    if name == "epochs":  # fewer passes than one are fresh text too
        low, high = 1e-9, most_passes(ranges)
    through = {name, *_ALSO.get(name, ())}
    named = {c for term in law.terms for part in term.all_parts() for atom in part.atoms for c in atom.columns}
    return Column(name, low, high, bool(through & set(law.columns)), bool(through & named) or name in ranges.bound,
                  tested is None or bool(through & {*tested, *SIZE}))  # fmt: skip


def look(
    law: Law,
    ranges: Ranges,
    asked: Mapping[str, Any],
    said: Collection[str],
    tested: Collection[str] | None = None,
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Notes on the columns of a question that lie outside the runs, and how far.

    Args:
        law: the law.
        ranges: what the runs had.
        asked: column -> number, numbers or text.
        said: the columns that the question itself names; the others were filled in.
        tested: those along which the law was tested on runs that it was not fitted to; None where that does not count.

    Returns:
        Sentences, and column -> decades beyond the runs (share of the range for skew).

    Raises:
        FitError: the law needs a column of which the runs had one other value only.
    """
    notes, beyond = [], {}
    for name, value in asked.items():
        if isinstance(value, str):
            notes.append(_of_text(name, value, ranges.words.get(name, ())))
            continue
        column = column_of(name, ranges, law, tested)
        values = np.ravel(np.asarray(value, dtype=np.float64))
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        away = [column.beyond(one) for one in values]
        farthest = int(np.argmax(away))
        if away[farthest]:
            beyond[name] = away[farthest]
        if name not in SIZE:
            notes.append(column.sentence(float(values[farthest]), name in said))
    return tuple(note for note in notes if note), beyond


def in_short(extrapolation: Mapping[str, float]) -> str:
    """How far outside the runs, besides params and tokens, in a line for a chart; empty where nowhere.

    >>> in_short({"tokens": 0.5, "clients": 1.8, "skew": 0.39})
    'Outside the runs: clients by a factor of 63, skew by 39% of their range'
    """
    told = []
    for name, away in extrapolation.items():
        if name not in SIZE:
            far = f"{away:.0%} of their range" if name in LINEAR else f"a factor of {grouped(10**away, 2)}"
            told.append(f"{name.replace('_', ' ')} by {far}")
    return f"Outside the runs: {', '.join(told)}" if told else ""


def look_at_table(
    law: Law,
    ranges: Ranges,
    table: Mapping[str, Any],
    names: Collection[str],
    tested: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Notes on the columns of runs to be predicted, as :func:`look` has them.

    Args:
        law: the law.
        ranges: what its own runs had.
        table: column -> a number or numbers, a text or texts.
        names: the columns that count, besides those that a question has words for.
        tested: as for :func:`look`.

    Raises:
        FitError: as :func:`look`.
    """
    asked = {
        name: table[name]
        for name in dict.fromkeys((*PHRASES, *law.columns, *names))
        if name in table and name not in TEXTS
    }
    if {"tokens", "unique_tokens"} <= set(table) and "epochs" not in table:
        asked["epochs"] = np.asarray(table["tokens"], dtype=float) / np.asarray(table["unique_tokens"], dtype=float)
    if "unique_tokens" not in law.columns:
        asked.pop("unique_tokens", None)
    notes = list(look(law, ranges, asked, set(table), tested)[0])
    for name in TEXTS:
        for value in sorted({*np.ravel(table[name])}) if name in table else ():
            notes.append(_of_text(name, str(value), ranges.words.get(name, ())))
    return tuple(note for note in notes if note)


def _of_text(name: str, value: str, seen: tuple[str, ...]) -> str:
    if not seen:
        return f"the runs do not tell their {name}; {_ASSUMES}"
    if value not in seen:
        had = "these runs all had" if len(seen) == 1 else "these runs had"
        return f"{had} {name} {' or '.join(seen)}; the answer for {value} {_tail(False)}"
    return "" if len(seen) == 1 else f"{name} {_UNHEARD} for {' and '.join(seen)}"
