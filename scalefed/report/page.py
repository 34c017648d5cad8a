"""What should a person read? One offline page: the answer first, how sure and why, charts, law, runs, provenance."""

import html
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from scalefed.allocation.defaults import OF_A_SIZE, check_words
from scalefed.charts import chart
from scalefed.charts.inert import embedded
from scalefed.charts.theme import config, power, si
from scalefed.errors import ConfigError, DataError, FitError
from scalefed.runs.log import load_runs, provenance

if TYPE_CHECKING:
    import pandas as pd

    from scalefed.allocation.optimum import Optimum

WIDE, NARROW = 730, 340
"""Widths in pixels that every chart is drawn for; the page takes the one that fits the screen."""
_RUNS = 400
_SHOWN = ("run_id", "params", "tokens", "compute", "clients_per_round", "clients", "mixture", "concentration", "skew",
          "loss", "pass_at_1", "pass_at_10")  # fmt: skip


def write_report(
    fit: Any,
    *,
    out: str | os.PathLike[str],
    runs: Any = None,
    title: str | None = None,
    question: Mapping[str, Any] | None = None,
    kinds: Sequence[str] = ("isoflop", "optimum", "loss", "participation", "passk", "residuals"),
) -> Path:
    """Write one HTML page that needs no network: light and dark, for wide and narrow screens.

    Args:
        fit: a fit.
        out: the file to write; folders are made as needed.
        runs: the runs behind it, where they hold more columns than the fit kept; the fit's own when None.
        title: of the page.
        question: what ``fit.optimal_size`` is asked: ``{"compute": 1e15, "clients": 16, "participation": 0.25}``. The
            page has no answer when None.
        kinds: charts to draw; one that these runs cannot show is named with the reason instead.

    Returns:
        The path of the page.

    Raises:
        ConfigError: this is no fit, or the question has no compute.
    """
    if not all(hasattr(fit, name) for name in ("predict", "law", "runs", "summary")):
        raise ConfigError(f"a report needs a fit, got {type(fit).__name__}; make one with scalefed.fit(runs)")
    if question is not None and question.get("compute") is None:
        raise ConfigError("the question of a report needs a compute budget in FLOPs, such as {'compute': 1e15}")
    check_words(question or (), OF_A_SIZE)
    frame = load_runs(fit.runs if runs is None else runs)
    drawn, data, refused = _charts(fit, frame, question, kinds)
    parts = [
        *_answer(fit, question),
        *_certainty(fit),
        *(f'<div class="card chart"><div id="{item["id"]}"></div></div>' for item in drawn),
        *(f'<p class="soft">Not drawn: {_text(kind)} ({_text(reason)}).</p>' for kind, reason in refused),
        *_law(fit),
        *_runs(frame),
        *_provenance(fit, frame),
    ]
    page = Template(resources.files("scalefed.report").joinpath("report.html").read_text(encoding="utf-8"))
    text = page.substitute(
        title=_text(title or "Which model size to train"),
        body="\n".join(parts),
        footer="Made by scalefed. This page needs no network.",
        library=_library(),
        charts=embedded(
            {"items": drawn, "datasets": data, "config": {"light": _bare(config()), "dark": config(dark=True)}}
        ),
    )
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target


# ---------------------------------------------------------------------- the answer
def _answer(fit: Any, question: Mapping[str, Any] | None) -> list[str]:
    if question is None:
        return []
    asked = f'<p class="asked">{_text(_in_words(question))}</p>'
    try:
        best = fit.optimal_size(**question)
    except FitError as error:
        return [asked, f'<div class="card none"><p><b>No size can be recommended.</b> {_text(error)}</p></div>']
    sure = f"{best.level:.0%} interval {si(best.params_low)} to {si(best.params_high)}"
    if not math.isfinite(best.params_low):
        sure = "no interval, as the fit has no replicates"
    facts = [
        (si(best.tokens), "training tokens in all" + _range(best, "tokens", si)),
        (f"{best.tokens / best.params:.3g}", "tokens per parameter"),
        (f"{best.loss:.3f}", "predicted loss, nats per token" + _range(best, "loss", "{:.3f}".format)),
    ]
    if math.isfinite(best.rounds):
        facts.insert(1, (si(best.rounds), "rounds" + _range(best, "rounds", si)))
    if math.isfinite(best.pass_at_1):
        facts.append((f"{best.pass_at_1:.2f}", "predicted pass@1" + _range(best, "pass_at_1", "{:.2f}".format)))
    cells = "".join(f"<div><b>{_text(value)}</b><span>{_text(words)}</span></div>" for value, words in facts)
    return [
        asked,
        f'<div class="card answer"><p class="lead">Train {si(best.params)} parameters</p>'
        f'<p class="range">{sure}; non-embedding</p>'
        f'<div class="facts">{cells}</div></div>',
        *_caveats(best),
    ]


def _range(best: "Optimum", name: str, form: Callable[[float], str]) -> str:
    """The interval of a quantity in brackets, nothing where there is none."""
    low, high = getattr(best, f"{name}_low"), getattr(best, f"{name}_high")
    return f" ({form(low)} to {form(high)})" if math.isfinite(low) else ""


def _caveats(best: "Optimum") -> list[str]:
    notes = [_sentence(note) for note in best.notes]
    if math.isfinite(best.regret):
        cost = f"at most {best.regret:.2g} nats per token more than the truly best one"
        notes.insert(0, f"If the law holds, this size costs {cost}, with {best.level:.0%} probability.")
    return ['<ul class="plain">', *(f"<li>{_text(note)}</li>" for note in notes), "</ul>"] if notes else []


def _certainty(fit: Any) -> list[str]:
    told = [_sentence(str(fit.message)), *(_sentence(note) for note in getattr(fit, "notes", ()))]
    told += [f"{name} was held at {value:.4g}, not fitted." for name, value in fit.law.fixed.items()]
    missed = getattr(fit, "holdout_error", math.nan)
    if missed is not None and math.isfinite(missed):
        told.append(
            f"Fitted without its largest runs, the law predicts them with a median error of {100 * missed:.2g}%."
        )
    status = str(getattr(fit.status, "name", fit.status)).replace("_", " ").lower()
    told.append(_measured(fit.runs))
    items = "".join(f"<li>{_text(line)}</li>" for line in dict.fromkeys(told) if line)
    return ["<h2>How sure is this?</h2>", f"<p>{len(fit.runs)} runs, status: <b>{_text(status)}</b>.</p>",
            f'<ul class="plain">{items}</ul>']  # fmt: skip


def _measured(frame: "pd.DataFrame") -> str:
    """What the runs cover."""
    parts = []
    for name, words in (("params", "sizes"), ("tokens", "tokens"), ("clients_per_round", "clients per round")):
        if name in frame:
            low, high = frame[name].min(), frame[name].max()
            parts.append(f"{words} {si(low)} to {si(high)}" if high > low else f"{words} {si(low)}")
    return f"Measured: {', '.join(parts)}." if parts else ""


# ---------------------------------------------------------------------- charts
def _charts(
    fit: Any, frame: "pd.DataFrame", question: Mapping[str, Any] | None, kinds: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Any], list[tuple[str, str]]]:
    """Every chart as two specifications, the data they share, and what cannot be drawn with the reason."""
    wanted: list[tuple[str, dict[str, Any]]] = [(kind, {}) for kind in kinds]
    if question is not None:
        wanted.insert(0, ("budget", dict(question)))
    drawn: list[dict[str, Any]] = []
    data: dict[str, Any] = {}
    refused: list[tuple[str, str]] = []
    for kind, options in wanted:
        source = frame if kind == "passk" else fit
        try:
            wide, narrow = (chart(source, kind, width=width, **options).to_dict() for width in (WIDE, NARROW))
        except (DataError, FitError) as error:
            refused.append((kind, str(error)))
            continue
        for specification in (wide, narrow):
            data |= specification.pop("datasets", {})
        drawn.append({"id": f"chart-{len(drawn)}", "wide": _bare(wide), "narrow": _bare(narrow)})
    return drawn, data, refused


def _bare(specification: dict[str, Any]) -> dict[str, Any]:
    """A specification on the page's own ground: its config is given when it is drawn."""
    return {key: value for key, value in specification.items() if key not in ("config", "background")}


def _library() -> str:
    """Vega, Vega-Lite and their embedding as one script."""
    import altair as alt
    import vl_convert

    version = alt.SCHEMA_VERSION.removeprefix("v").rsplit(".", 1)[0]
    known = vl_convert.get_vegalite_versions()
    exported = "window.vegaEmbed=vegaEmbed;"
    script = str(vl_convert.javascript_bundle(exported, vl_version=version if version in known else known[-1]))
    return script.replace("</script", "<\\/script")


# ---------------------------------------------------------------------- law, runs, provenance
def _law(fit: Any) -> list[str]:
    rows = []
    for name, row in fit.summary().iterrows():
        ends, error = f"{_short(row['low'], 4)} to {_short(row['high'], 4)}", _short(row["std_error"], 2)
        if name in fit.law.fixed:
            ends, error = "held fixed", ""
        elif math.isnan(row["low"]):
            ends, error = "not estimated", ""
        meaning = fit.law.meanings.get(name, "")
        rows.append([name, _short(row["estimate"], 4), error, ends, meaning])
    head = ["Parameter", "Estimate", "Std. error", "95% interval", "Meaning"]
    return [
        "<h2>The law</h2>",
        f'<div class="law"><code>{_text(fit.target)} = {_text(fit.law.formula)}</code></div>',
        _table(head, rows, numbers=(1, 2, 3), words=(4,)),
        f'<p class="soft">{_text(_sentence(fit.law.source))}</p>' if fit.law.source else "",
    ]


def _runs(frame: "pd.DataFrame") -> list[str]:
    names = [name for name in _SHOWN if name in frame and frame[name].notna().any()]
    rows = [[_cell(name, row[name]) for name in names] for row in frame[names].head(_RUNS).to_dict("records")]
    more = f'<p class="soft">and {len(frame) - _RUNS} more</p>' if len(frame) > _RUNS else ""
    numbers = tuple(index for index, name in enumerate(names) if name not in ("run_id", "mixture"))
    table = _table([name.replace("_", " ") for name in names], rows, numbers=numbers)
    return [f"<h2>The runs</h2><details><summary>{len(frame)} runs</summary>{table}{more}</details>"]


def _provenance(fit: Any, frame: "pd.DataFrame") -> list[str]:
    here = provenance()
    facts: dict[str, Any] = {
        "Law": f"{fit.law.name}, target {fit.target}",
        "Runs": f"{len(fit.run_ids)}, hash {getattr(fit, 'runs_hash', 'unknown')}",
        "Runs from": getattr(fit, "source", None) or "a table in memory",
        "Seed of the bootstrap": getattr(fit, "seed", "unknown"),
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
    return ["<h2>Provenance</h2>", _table([], [[name, str(value)] for name, value in facts.items()])]


# ---------------------------------------------------------------------- words
def _in_words(question: Mapping[str, Any]) -> str:
    words = [f"{power(float(question['compute']))} FLOPs of training compute over all clients"]
    clients, share = question.get("clients"), question.get("participation")
    count = question.get("clients_per_round") or (share and clients and share * clients)
    if clients and count:
        words.append(f"{count:g} of {clients:g} clients in each round")
    elif count:
        words.append(f"{count:g} clients in each round")
    if "concentration" in question and math.isfinite(question["concentration"]):
        words.append(f"Dirichlet mixtures of concentration {question['concentration']:g}")
    elif question.get("skew"):
        words.append(f"skew {question['skew']:g}")
    else:
        words.append("clients' data alike (iid)")
    if question.get("local_steps"):
        words.append(f"{question['local_steps']:g} local steps")
    return "The question: " + ", ".join(words) + "."


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


def _table(
    head: Iterable[str], rows: list[list[str]], *, numbers: tuple[int, ...] = (), words: tuple[int, ...] = ()
) -> str:
    def kind(index: int) -> str:
        return ' class="n"' if index in numbers else ' class="words"' if index in words else ""

    top = "".join(f"<th{kind(index)}>{_text(cell)}</th>" for index, cell in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(index)}>{_text(cell)}</td>" for index, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table>{f"<tr>{top}</tr>" if top else ""}{body}</table></div>'


def _short(value: float, digits: int) -> str:
    """So many digits that count, without an exponent below a million.

    >>> _short(287.3, 2), _short(0.00571, 2)
    ('290', '0.0057')
    """
    return f"{float(f'{value:.{digits}g}'):g}"


def _text(value: Any) -> str:
    return html.escape(str(value))


def _sentence(text: str) -> str:
    """With a capital and a full stop.

    >>> _sentence("two runs left out")
    'Two runs left out.'
    """
    text = text.strip()
    if not text:
        return text
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
