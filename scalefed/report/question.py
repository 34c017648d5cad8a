"""Which question does a page open with, what is its answer, and how do both read?"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalefed.allocation.defaults import LIMITS, SETTING, check_words
from scalefed.allocation.optimum import Optimum
from scalefed.charts.theme import power, si
from scalefed.errors import ConfigError, FitError
from scalefed.fitting.result import Fit
from scalefed.report.controls import own_columns
from scalefed.report.numbers import largest_compute
from scalefed.units import grouped

_LARGER = 10.0
"""The budget of a page that was asked nothing, over that of the largest run: near enough to be told."""
_PLAIN = ("target", "level", "columns")


@dataclass(frozen=True, slots=True)
class Answer:
    """What stands in the card: the size or why there is none, its interval, numbers with their words, sentences."""

    lead: str
    range: str
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def opening(fit: Fit, question: Mapping[str, Any] | None) -> dict[str, Any]:
    """The question that was asked; where none was, ten times the largest compute for the clients of most runs.

    Args:
        fit: a fit.
        question: keywords of ``fit.optimal_size`` or ``fit.plan``; or None.

    Raises:
        ConfigError: a keyword that neither knows, or a question without a compute.
    """
    if question is not None:
        check_words(question, (*LIMITS, *SETTING, *_PLAIN))
        if question.get("compute") is None:
            raise ConfigError("the question of a report needs a compute budget in FLOPs, such as {'compute': 1e15}")
        if question.get("local_steps") == "free":
            raise ConfigError("a page asks with a number of local steps; leave it out to take that of the runs")
        return dict(question) | _own_columns(fit, question)
    asked: dict[str, Any] = {"compute": float(f"{_LARGER * largest_compute(fit.runs):.1g}")}
    for name in ("clients", "clients_per_round"):
        if name in fit.runs and len(usual := fit.runs[name].dropna().mode()):
            asked[name] = float(usual.iloc[0])
    if asked.get("clients_per_round", 0.0) > asked.get("clients", math.inf):
        del asked["clients"]
    return asked | _own_columns(fit, asked)


def _own_columns(fit: Fit, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Values for the columns that only this law has, where none are given: the runs' medians, which a reader moves."""
    given = dict(asked.get("columns") or {})
    for name in own_columns(fit.law):
        given.setdefault(name, float(np.nanmedian(fit.runs[name].to_numpy(dtype=float))))
    return {"columns": given} if given else {}


def best_of(fit: Fit, asked: Mapping[str, Any]) -> Optimum:
    """The answer that Python gives.

    Raises:
        FitError: the fit cannot answer.
    """
    words = {name: value for name, value in asked.items() if name != "target"}
    return fit.plan(**words)


def told(fit: Fit, question: Mapping[str, Any] | None) -> dict[str, Any]:
    """The question that a page opens with and its answer, as plain numbers and words; or why there is none.

    Args:
        fit: a fit.
        question: as it was given to the page.
    """
    asked = opening(fit, question)
    try:
        return {"question": asked, "answer": best_of(fit, asked).to_dict(), "refused": None}
    except FitError as error:
        return {"question": asked, "answer": None, "refused": str(error)}


def answer_of(best: Optimum, target: str, unit: str) -> Answer:
    """The answer in words.

    Args:
        best: the answer.
        target: what is predicted, in words.
        unit: of the target.
    """
    sure = f"{best.level:.0%} interval {si(best.params_low)} to {si(best.params_high)}, given {best.given}"
    if not math.isfinite(best.params_low):
        sure = "no interval, as the fit has no replicates"
    facts = [(si(best.tokens), "training tokens in all" + _range(best, "tokens", si))]
    if math.isfinite(best.rounds):
        facts.append((si(best.rounds), "rounds" + _range(best, "rounds", si)))
    facts.append((f"{best.tokens / best.params:.3g}", "tokens per parameter"))
    facts.append((f"{best.loss:.4g}", f"predicted {target}" + _range(best, "loss", "{:.4g}".format)))
    for k, (value, low, high) in best.pass_at_k.items():
        facts.append((f"{value:.3g}", f"predicted pass@{k} ({low:.3g} to {high:.3g})"))
    notes = [sentence(note) for note in best.notes]
    if best.regret > 0:
        cost = f"at most {grouped(best.regret, 2)} {unit} more than the truly best one"
        notes.insert(0, f"If the law holds, this size costs {cost}, with {best.level:.0%} probability.")
    return Answer(f"Train {si(best.params)} parameters", f"{sure}; non-embedding", tuple(facts), tuple(notes))


def refusal(error: FitError) -> Answer:
    """Why there is no size."""
    return Answer("No size can be recommended", sentence(str(error)))


def in_words(asked: Mapping[str, Any]) -> str:
    """The question as a sentence."""
    words = [f"{power(float(asked['compute']))} FLOPs of training compute over all clients"]
    clients, share = asked.get("clients"), asked.get("participation")
    count = asked.get("clients_per_round") or (share and clients and share * clients)
    if clients and count and clients > 1:
        words.append(f"{count:g} of {clients:g} clients in each round")
    elif count and count > 1:
        words.append(f"{count:g} clients in each round")
    if "concentration" in asked and math.isfinite(asked["concentration"]):
        words.append(f"Dirichlet mixtures of concentration {asked['concentration']:g}")
    elif asked.get("skew"):
        words.append(f"skew {asked['skew']:g}")
    elif count and count > 1:
        words.append("clients' data alike (iid)")
    if asked.get("local_steps"):
        words.append(f"{asked['local_steps']:g} local steps")
    known = {"compute", "clients", "participation", "clients_per_round", "concentration", "skew", "local_steps"}
    words += [f"{name.replace('_', ' ')} {value:g}" for name, value in asked.items()
              if name not in (*known, *_PLAIN) and isinstance(value, (int, float))]  # fmt: skip
    return "The question: " + ", ".join(words) + "."


def sentence(text: str) -> str:
    """With a capital and a full stop.

    >>> sentence("two runs left out"), sentence("local_steps = 25")
    ('Two runs left out.', 'local_steps = 25.')
    """
    text = text.strip()
    if not text:
        return text
    named = "_" in text.split(maxsplit=1)[0]  # a column, which is written as it is
    return (text if named else text[0].upper() + text[1:]) + ("" if text[-1] in ".!?" else ".")


def _range(best: Optimum, name: str, form: Callable[[float], str]) -> str:
    """The interval of a quantity in brackets, nothing where there is none."""
    low, high = getattr(best, f"{name}_low"), getattr(best, f"{name}_high")
    return f" ({form(low)} to {form(high)})" if math.isfinite(low) else ""
