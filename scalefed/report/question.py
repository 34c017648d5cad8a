"""Which question does a page open with, what is its answer, and how do both read?"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scalefed.allocation.optimum import Optimum
from scalefed.charts.frames import with_iid
from scalefed.charts.theme import power, si
from scalefed.errors import ConfigError, FitError, nearest
from scalefed.fitting.fitted import Fit
from scalefed.report.numbers import largest_compute

_LARGER = 10.0
"""The budget of a page that was asked nothing, over that of the largest run: near enough to be told."""
_PLAIN = frozenset({"target", "level", "columns"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What stands in the card: the size or why there is none, its interval, numbers with their words, sentences."""

    lead: str
    range: str
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def opening(fit: Fit, question: Mapping[str, Any] | None) -> dict[str, Any]:
    """The question with what it leaves out: iid clients, the cohort of most runs, ten times the largest compute.

    Args:
        fit: a fit.
        question: keywords of ``fit.optimal_size`` or ``fit.plan``; or None.

    Raises:
        ConfigError: a keyword that neither knows, or a question without a compute.
    """
    from scalefed.allocation.budgets import Budget, Setting

    allowed = [*Budget.__slots__, *Setting.__slots__, "participation", "concentration", "flops", *sorted(_PLAIN)]
    for name in question or {}:
        if name not in allowed or name in ("cost", "exact", "total"):
            raise ConfigError(f"a question has no {name!r}; {nearest(name, allowed)}")
    if question is not None and question.get("compute") is None:
        raise ConfigError("the question of a report needs a compute budget in FLOPs, such as {'compute': 1e15}")
    asked = with_iid(fit, dict(question or {"compute": float(f"{_LARGER * largest_compute(fit.runs):.1g}")}))
    if asked.get("local_steps") == "free":
        raise ConfigError("a page asks with a number of local steps; leave local_steps out to take that of the runs")
    known = {"clients_per_round", "participation"} & set(asked)
    for name in ("clients", "clients_per_round"):
        if name in fit.runs and name not in asked and not (name == "clients_per_round" and known):
            usual = fit.runs[name].dropna().mode()
            if len(usual) and (name == "clients" or name in fit.law.columns):
                asked[name] = float(usual.iloc[0])
    if "clients" in asked and asked.get("clients_per_round", 0) > asked["clients"]:
        asked["clients"] = float(asked["clients_per_round"])
    return asked


def best_of(fit: Fit, asked: Mapping[str, Any]) -> Optimum:
    """The answer that Python gives.

    Raises:
        FitError: the fit cannot answer.
    """
    words = {name: value for name, value in asked.items() if name != "target"}
    return fit.plan(**words)


def answer_of(best: Optimum, target: str, unit: str) -> Answer:
    """The answer in words.

    Args:
        best: the answer.
        target: what is predicted, in words.
        unit: of the target.
    """
    sure = f"{best.level:.0%} interval {si(best.params_low)} to {si(best.params_high)}"
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
    if math.isfinite(best.regret):
        cost = f"at most {best.regret:.2g} {unit} more than the truly best one"
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
              if name not in known | _PLAIN and isinstance(value, (int, float))]  # fmt: skip
    return "The question: " + ", ".join(words) + "."


def sentence(text: str) -> str:
    """With a capital and a full stop.

    >>> sentence("two runs left out")
    'Two runs left out.'
    """
    text = text.strip()
    if not text:
        return text
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def _range(best: Optimum, name: str, form: Callable[[float], str]) -> str:
    """The interval of a quantity in brackets, nothing where there is none."""
    low, high = getattr(best, f"{name}_low"), getattr(best, f"{name}_high")
    return f" ({form(low)} to {form(high)})" if math.isfinite(low) else ""
