"""What should a person read, and move? One offline page: the answer, sliders, how sure and why, charts, law, runs.

The page holds the law, its replicates and the runs as numbers, and plain scripts (``*.js`` beside this module) that
compute what ``fit.optimal_size``, ``fit.plan`` and ``fit.least_compute`` compute. Nothing is fetched, no library is
needed, and a content security policy lets no script run but these.
"""

import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from scalefed.charts.frames import TITLES, same_size, shown
from scalefed.charts.inert import embedded, policy
from scalefed.charts.isoflop import levels
from scalefed.charts.theme import colors, power, si
from scalefed.errors import ConfigError, FitError, nearest
from scalefed.fitting.result import Fit
from scalefed.laws import LAWS
from scalefed.report.controls import compute_control, controls
from scalefed.report.numbers import planner_numbers
from scalefed.report.question import Answer, answer_of, best_of, in_words, opening, refusal, sentence
from scalefed.runs.log import load_runs, provenance
from scalefed.runs.schema import unit_of

SCRIPTS = ("words", "law", "optimum", "passes", "planner", "plot", "charts", "question", "controls", "page")
"""The scripts of the page, in this order."""
CHARTS = {
    "size": "What each size reaches within these limits",
    "isoflop": "Loss by model size at equal compute",
    "frontier": "The best size for every budget",
    "clients": "The best size by clients per round",
    "passk": "How many problems are solved, by loss",
    "residuals": "What the law misses, run by run",
    "runs": "The runs",
}
_RUNS = 400  # rows of the table on the page: it opens at once; the log has all
_SHOWN = ("run_id", "params", "tokens", "compute", "clients_per_round", "clients", "mixture", "concentration", "skew",
          "loss", "pass_at_1", "pass_at_10")  # fmt: skip
_DRAWN = ("pass_at_1", "pass_at_1_low", "pass_at_1_high", "pass_at_10", "pass_at_10_low", "pass_at_10_high")


def write_report(
    fit: Fit,
    *,
    out: str | os.PathLike[str],
    runs: Any = None,
    title: str | None = None,
    question: Mapping[str, Any] | None = None,
    kinds: Sequence[str] = tuple(CHARTS),
    saved_as: str | None = None,
) -> Path:
    """Write one HTML page that needs no network: sliders move the answer; light and dark, wide, narrow and on paper.

    Args:
        fit: a fit.
        out: the file to write; folders are made as needed.
        runs: the runs behind it, where they hold more columns than the fit kept; the fit's own when None.
        title: of the page.
        question: what the page opens with, as ``fit.optimal_size`` or ``fit.plan`` take it: ``{"compute": 1e15,
            "clients": 16, "participation": 0.25}``. When None, ten times the compute of the largest run.
        kinds: charts of the page, of :data:`CHARTS`.
        saved_as: where the fit is kept, for the commands that the page offers to copy.

    Returns:
        The path of the page.

    Raises:
        ConfigError: this is no fit, the question has no compute, or an unknown chart.
    """
    if not all(hasattr(fit, name) for name in ("predict", "law", "runs", "summary")):
        raise ConfigError(f"a report needs a fit, got {type(fit).__name__}; make one with scalefed.fit(runs)")
    for kind in kinds:
        if kind not in CHARTS:
            raise ConfigError(f"the page has no chart {kind!r}; {nearest(str(kind), CHARTS)}")
    frame = load_runs(fit.runs if runs is None else runs)
    asked = opening(fit, question)
    numbers, answer = _numbers(fit, frame, asked, saved_as)
    script_text = script()
    text = _template("page.html").render(
        title=title or "Which model size to train",
        policy=policy([script_text]),
        style=_file("page.css"),
        asked=in_words(asked),
        refused=numbers["refused"],
        answer=answer,
        charts=[
            (kind, CHARTS[kind]) for kind in kinds if not (numbers["refused"] and kind not in ("residuals", "runs"))
        ],
        count=len(frame),
        status=str(getattr(fit.status, "name", fit.status)).replace("_", " ").lower(),
        certainty=_certainty(fit),
        formula=f"{fit.target} = {fit.law.formula}",
        law_table=_law(fit),
        source=sentence(fit.law.source),
        runs_table=_runs(frame),
        more=max(len(frame) - _RUNS, 0),
        provenance_table=_provenance(fit, frame),
        numbers=_markup(embedded(numbers)),
        script=_markup(script_text),
    )
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8", errors="replace")  # half a letter is shown as ?
    return target


def script(names: Iterable[str] = SCRIPTS) -> str:
    """The scripts as one, each kept in a file of its own to be read."""
    strict = '"use strict";\n'
    return strict + "\n".join(_file(f"{name}.js").replace(strict, "") for name in names)


# ---------------------------------------------------------------------- numbers
def _numbers(
    fit: Fit, frame: pd.DataFrame, asked: Mapping[str, Any], saved_as: str | None
) -> tuple[dict[str, Any], Answer]:
    """Everything that travels with the page, and the answer that it opens with."""
    unit, name = unit_of(fit.target), fit.target.replace("_", " ")
    drawn, left_out = _drawn(fit, frame)
    numbers: dict[str, Any] = {
        "target": fit.target,
        "target_name": name,
        "target_told": name if unit in ("", name) else f"{name}, {unit}",
        "target_unit": unit or name,
        "target_title": TITLES.get(fit.target, f"{name}{f' ({unit})' if unit else ''}"),
        "short_unit": unit.split(" per ")[0] or name,
        "runs": drawn,
        "left_out": left_out,
        "theme": {"light": colors(), "dark": colors(dark=True)},
        "question": {"level": 0.95} | {name: value for name, value in asked.items() if name != "target"},
        "source": _source(fit, saved_as),
        "refused": None,
    }
    try:
        numbers |= planner_numbers(fit, asked)
        answer = answer_of(best_of(fit, asked), numbers["target_told"], numbers["target_unit"])
    except FitError as error:
        return numbers | {"refused": str(error)}, refusal(error)
    numbers["levels"] = levels(numbers["runs"]["compute"])
    numbers["controls"] = controls(fit, numbers["question"], numbers) | {
        "compute": compute_control(numbers["question"], numbers)
    }
    if numbers["question"].pop("concentration", None) is not None:
        numbers["question"]["skew"] = numbers["setting"]["given"]["skew"]
    return numbers, answer


def _source(fit: Fit, saved_as: str | None) -> dict[str, str]:
    """How the fit is had again: from its file, or from the runs where nothing but the law was said of it."""
    plain = not (fit.law.fixed or fit.law.ties or fit.scale_weight) and fit.target == "loss"
    if saved_as is not None or not (plain and fit.source):
        place = saved_as or "fit.json"
        return {"python": f"sf.load_fit({place!r})", "shell": shlex.quote(place)}
    law = fit.law.name if fit.law.name in LAWS else fit.law.formula
    names = f", columns={dict(fit.columns)!r}" if fit.columns else ""
    words = [fit.source, "--law", law, *(word for pair in fit.columns.items() for word in ("--column", "=".join(pair)))]
    return {"python": f"sf.fit({fit.source!r}, {law!r}{names})", "shell": shlex.join(words)}


def _drawn(fit: Fit, frame: pd.DataFrame) -> tuple[dict[str, Any], str]:
    """The runs as lists, a number each or null, and what was left out of them in words."""
    view = shown(
        fit if fit.runs is frame else frame, [name for name in ("params", "tokens", fit.target) if name in frame]
    )
    table = view.runs
    found: dict[str, Any] = {
        "id": table["run_id"].astype(str).tolist() if "run_id" in table else [str(i) for i in table.index]
    }
    for name in ("params", "tokens", "compute", "clients_per_round", *_DRAWN):
        if name in table and table[name].notna().any():
            found[name] = _plain(table[name])
    found["value"], found["fitted"] = _plain(table[fit.target]), _plain(fit.predicted(table)["estimate"])
    if "params" in table:
        found["size"] = _plain(pd.Series(same_size(table["params"].to_numpy(dtype=float))))
    if "mixture" in table and table["mixture"].nunique() > 1:
        found["mixture"] = table["mixture"].astype(str).tolist()
    return found, "; ".join(view.note("")).removeprefix("; ")


def _plain(values: "pd.Series[Any]") -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.astype(float)]


# ---------------------------------------------------------------------- words and tables
def _certainty(fit: Fit) -> list[str]:
    told = [sentence(str(fit.message)), *(sentence(note) for note in fit.notes)]
    told += [f"{name} was held at {value:.4g}, not fitted." for name, value in fit.law.fixed.items()]
    missed = fit.holdout_error
    if math.isfinite(missed):
        told.append(
            f"Fitted without its largest runs, the law predicts them with a median error of {100 * missed:.2g}%."
        )
    return [line for line in dict.fromkeys([*told, _measured(fit.runs)]) if line]


def _measured(frame: pd.DataFrame) -> str:
    """What the runs cover."""
    parts = []
    for name, words in (("params", "sizes"), ("tokens", "tokens"), ("clients_per_round", "clients per round")):
        if name in frame:
            low, high = frame[name].min(), frame[name].max()
            parts.append(f"{words} {si(low)} to {si(high)}" if high > low else f"{words} {si(low)}")
    return f"Measured: {', '.join(parts)}." if parts else ""


def _law(fit: Fit) -> Any:
    rows = []
    for name, row in fit.summary().iterrows():
        ends = f"{_short(row['low'], 4)} to {_short(row['high'], 4)}"
        if name in fit.law.fixed:
            ends = "held fixed"
        elif math.isnan(row["low"]):
            ends = "not estimated"
        rows.append([name, _short(row["estimate"], 4), ends, fit.law.meanings.get(name, "")])
    head = ["Parameter", "Estimate", f"95% interval given {fit.law.name}", "Meaning"]
    return _table(head, rows, numbers=(1, 2), words=(3,))


def _runs(frame: pd.DataFrame) -> Any:
    names = [name for name in _SHOWN if name in frame and frame[name].notna().any()]
    rows = [[_cell(name, row[name]) for name in names] for row in frame[names].head(_RUNS).to_dict("records")]
    numbers = tuple(index for index, name in enumerate(names) if name not in ("run_id", "mixture"))
    return _table(
        [_HEADS.get(name, name.replace("_", " ").capitalize()) for name in names], rows, numbers=numbers, ids=(0,)
    )


_HEADS = {"run_id": "Run", "params": "Parameters", "compute": "FLOPs", "pass_at_1": "pass@1", "pass_at_10": "pass@10"}


def _provenance(fit: Fit, frame: pd.DataFrame) -> Any:
    here = provenance()
    facts: dict[str, Any] = {
        "Law": f"{fit.law.name}, target {fit.target}",
        "Runs": f"{len(fit.run_ids)}, hash {fit.runs_hash}",
        "Runs from": fit.source or "a table in memory",
        "Seed of the bootstrap": fit.seed,
        "Bootstrap replicates": len(fit.replicates),
        "scalefed": here.get("scalefed", "from source"),
        "Commit": f"{here['commit']}{' with changes' if here['dirty'] else ''}"
        if here["commit"]
        else "not in a checkout",
        "Python, numpy": f"{here['python']}, {here.get('numpy', 'unknown')}",
    }
    for name, words in (("commit", "Commits of the runs"), ("torch", "torch of the runs"), ("device_name", "Devices")):
        if name in frame and frame[name].notna().any():
            facts[words] = ", ".join(str(value)[:12] for value in sorted(frame[name].dropna().astype(str).unique())[:6])
    return _table([], [[name, str(value)] for name, value in facts.items()], ids=(1,))


def _cell(name: str, value: Any) -> str:
    if value is None or value != value:
        return ""
    if name in ("params", "tokens"):
        return si(value)
    if name == "compute":
        return power(value)
    if name == "concentration":
        return "iid" if math.isinf(value) else f"{value:g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(value: float, digits: int) -> str:
    """So many digits that count, without an exponent below a million.

    >>> _short(287.3, 2), _short(0.00571, 2)
    ('290', '0.0057')
    """
    return f"{float(f'{value:.{digits}g}'):g}"


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: tuple[int, ...] = (),
    words: tuple[int, ...] = (),
    ids: tuple[int, ...] = (),
) -> Any:
    kinds = {
        **dict.fromkeys(range(len(head) or 9), ""),
        **dict.fromkeys(numbers, "n"),
        **dict.fromkeys(words, "words"),
        **dict.fromkeys(ids, "id"),
    }
    return _markup(_template("table.html").render(head=head, rows=rows, kinds=kinds))


# ---------------------------------------------------------------------- files of the package
@cache
def _file(name: str) -> str:
    return resources.files("scalefed.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> Any:
    from jinja2 import Environment, StrictUndefined

    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _template(name: str) -> Any:
    return _environment().from_string(_file(name))


def _markup(text: str) -> Any:
    """Text that is markup already: our own scripts, numbers escaped for a script, tables made with escaping."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704
