"""What may a reader of the page ask, and between which ends? One control a number of the question."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scalefed.allocation.program import ROUND_COLUMNS
from scalefed.fitting.result import Fit
from scalefed.laws import Law

_HIGHER = 1e4
"""The largest budget offered, over the largest of the runs: far beyond what they can tell, and said so."""
_ROUND = ("clients_per_round", "rounds", "bytes_sent", "participation")
_ASKED = frozenset({"params", "params_total", "params_trained", "tokens", "epochs", "compute", "unique_tokens", "skew",
                    "clients", "local_steps", *_ROUND, *ROUND_COLUMNS})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A number that a reader moves.

    Attributes:
        name: as Python's keyword has it.
        label: in words.
        unit: what stands behind the number.
        low, high: ends of its slider.
        value: where it begins; None for a limit that is not set.
        log: whether the slider moves in logarithms.
        whole: whether it is a whole number.
        factor: of the unit shown, in the keyword's unit.
        column: whether it goes into ``columns=``, as the law's own column.
        help: a sentence.
    """

    name: str
    label: str
    unit: str
    low: float
    high: float
    value: float | None
    log: bool = True
    whole: bool = False
    factor: float = 1.0
    column: bool = False
    help: str = ""


def own_columns(law: Law) -> tuple[str, ...]:
    """The columns of a law that are no part of a question, in alphabetical order.

    >>> own_columns(Law.parse("E + A/params^a + B/tokens^b + C*learning_rate^c"))
    ('learning_rate',)
    """
    return tuple(sorted(set(law.columns) - _ASKED))


def controls(fit: Fit, asked: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The controls of a page: ``setting``, ``limits`` that may be set, and ``goals``.

    Args:
        fit: a fit.
        asked: the question that the page opens with.
        numbers: what :func:`scalefed.report.numbers.planner_numbers` found the runs to settle.
    """
    given = numbers["setting"]["given"]
    made = {"setting": _setting(fit, asked, given), "limits": _limits(fit, asked, given), "goals": _goals(fit, numbers)}
    return {name: [asdict(one) for one in group] for name, group in made.items()}


def compute_control(asked: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The slider of the budget."""
    value, smallest = float(asked["compute"]), float(numbers["smallest_compute"])
    high = max(_HIGHER * float(numbers["largest_compute"]), 100 * value)
    return asdict(
        Control(name="compute", label="Training compute, all clients", unit="FLOPs", low=min(smallest, value / 100),
                high=high, value=value)
    )  # fmt: skip


def _setting(fit: Fit, asked: Mapping[str, Any], given: Mapping[str, Any]) -> list[Control]:
    columns, made = set(fit.law.columns), []
    if "clients_per_round" in given or columns & set(_ROUND):
        clients = float(given.get("clients") or given.get("clients_per_round") or 1)
        cohort = float(given.get("clients_per_round") or clients)
        most = max(1e6, 10 * clients)
        made += [
            Control(name="clients", label="Clients with data", unit="", low=1, high=most, value=clients, whole=True),
            Control(name="clients_per_round", label="Clients in a round", unit="", low=1, high=most, value=cohort,
                    help="the cohort; moves with participation"),
            Control(name="participation", label="Participation", unit="%", low=0.001, high=100, factor=0.01,
                    value=100 * cohort / clients, help="share of the clients that trains in a round"),
        ]  # fmt: skip
    if "local_steps" in given and (made or columns & ROUND_COLUMNS):
        made.append(Control(name="local_steps", label="Local steps in a round", unit="", low=1, high=10_000, whole=True,
                            value=float(given["local_steps"])))  # fmt: skip
    if "skew" in columns:
        made.append(Control(name="skew", label="How different clients are", unit="", low=0, high=1, log=False,
                            value=float(given.get("skew", 0.0)), help="measured skew: 0 iid, 1 disjoint"))  # fmt: skip
    if "unique_tokens" in columns:
        middle = float(given.get("unique_tokens") or np.nanmedian(fit.runs["unique_tokens"].to_numpy(dtype=float)))
        made.append(Control(name="unique_tokens", label="Different tokens, all clients", unit="", low=middle / 1e3,
                            high=middle * 1e4, value=middle))  # fmt: skip
    return made + [_own(fit, name, asked) for name in own_columns(fit.law)]


def _own(fit: Fit, name: str, asked: Mapping[str, Any]) -> Control:
    """A column that only this law has, from its values in the runs."""
    values = fit.runs[name].to_numpy(dtype=float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    log = low > 0 and high > 4 * low
    start = float({**asked.get("columns", {})}.get(name, np.nanmedian(values)))
    ends = (low / 10, high * 10) if log else (low - (high - low), high + (high - low))
    label = name.replace("_", " ").capitalize()
    return Control(name=name, label=label, unit="", low=ends[0], high=ends[1], value=start, log=log, column=True)


def _limits(fit: Fit, asked: Mapping[str, Any], given: Mapping[str, Any]) -> list[Control]:
    def limit(name: str, label: str, unit: str, factor: float, low: float, high: float, text: str = "") -> Control:
        value = None if asked.get(name) is None else float(asked[name]) / factor
        return Control(name=name, label=label, unit=unit, low=low, high=high, value=value, factor=factor, help=text)

    made = []
    if "batch_tokens" in given:
        made.append(limit("memory", "Memory of a client", "GB", 1e9, 1e-3, 1e3, "weights, gradients, Adam, one step"))
    if {"clients_per_round", "local_steps", "batch_tokens"} <= set(given):
        made += [
            limit("bytes_per_client", "Traffic of a client", "GB", 1e9, 1e-3, 1e5, "up and down, mean over clients"),
            limit("rounds", "Rounds", "", 1, 1, 1e7),
            limit("seconds", "Time in all", "hours", 3600, 1e-2, 1e5, "needs a speed, a bandwidth, or both"),
            limit("flops_per_second", "Speed of a client", "GFLOP/s", 1e9, 1e-2, 1e6),
            limit("bandwidth", "Bandwidth of a client", "MB/s", 1e6, 1e-3, 1e5),
            limit("latency", "Time lost in a round", "s", 1, 1e-3, 1e5),
        ]
    made += [
        limit("tokens", "Tokens, all clients", "", 1, 1e3, 1e15),
        limit("params", "Parameters", "", 1, 1e2, 1e13, "non-embedding"),
    ]
    return made


def _goals(fit: Fit, numbers: Mapping[str, Any]) -> list[Control]:
    target = fit.runs[fit.target].to_numpy(dtype=float)
    low, high = float(np.nanmin(target)), float(np.nanmax(target))
    floor = float(fit.params[fit.law.floor]) if fit.law.floor else low / 2
    start = floor + 0.8 * (low - floor)
    ends = (floor + 0.02 * max(low - floor, 1e-9), high) if math.isfinite(floor) and floor < low else (low / 2, high)
    made = [Control(name="loss", label="Loss to reach", unit=str(numbers["target_unit"]), low=ends[0], high=ends[1],
                    value=start if ends[0] < start < ends[1] else math.sqrt(ends[0] * ends[1]))]  # fmt: skip
    if fit.link is not None:
        made.append(Control(name="pass_at_k", label="Share of problems to solve", unit="%", low=1, high=99, value=50,
                            log=False, factor=0.01))  # fmt: skip
    return made
