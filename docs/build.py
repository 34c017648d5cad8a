"""Write the tables in docs/ from the code, so that they cannot drift: ``python docs/build.py``."""

import json
import math
import re
from pathlib import Path

import scalefed
from scalefed.config import RunConfig
from scalefed.laws import LAWS, RECOMMENDED
from scalefed.runs.schema import COLUMNS, ROUND_COLUMNS
from scalefed.values import CHOICES

HERE = Path(__file__).parent
ROOT = HERE.parent
STUDY = re.compile(r"(?<=<!-- python docs/build.py -->\n).*?(?=<!-- end -->)", re.DOTALL)
"""Where README tells of the study."""
SETTINGS = """# Every setting of a run

Fields of `scalefed.RunConfig`, keys of a TOML file, and `key=value` words of `scalefed train` and `scalefed sweep`.
`participation` may stand for `clients_per_round`: a share of the clients in (0, 1].

"""
REALISED = """
## What chance makes of a setting

A round is never empty, and the row says what happened: `participants_mean`, `participation_realised`, `tokens`
(trained) beside `tokens_asked`. The number of rounds is fixed beforehand, from `tokens` and full cohorts.

- `dropout = p`: each of the m drawn clients stays away with chance p; where all would, one stays. On average
  m (1 - p) + p^m answer: of 2 drawn 1.01 at 0.9 (a share of 0.505, not 0.1) and 1.25 at 0.5; of 16 drawn at 0.5, 8.0.
- `sampling = bernoulli`: each of the K clients comes with chance q = `participation`; where none does, one is drawn.
  On average K q + (1 - q)^K come: 1.36 where 1 of 16 was asked for, and 1.36 times the tokens; 4.01 for 4 of 16.
- `stragglers = p`: each drawn client finishes with chance p only `straggler_share` of its steps, rounded to whole
  steps, at least one; the others finish all.
- `synthetic_share`: of a visit's blocks; where it is no whole number of them, one of the two numbers beside it is drawn
  so that the share holds on average over rounds.
- `partition = quantity`: Dirichlet sizes, but at least one block a client, drawn from the largest.
- `unique_tokens = 0`: the next power of two above `tokens` (at least 2^18, at least a block a client), doubled while a
  client would hold less than a block; the row's `unique_tokens` is what was made.
"""
COLUMNS_HEAD = """# Every column of the run log

One row a run (`sf.load_runs`), then one row a round (`rounds=True`). Settings are in [settings.md](settings.md).
Columns marked *timing* may differ between two runs of the same settings; no other may.
"""
LAWS_HEAD = (
    """# Every named law

`sf.fit(runs, law="federated")` and `scalefed fit RUNS --law federated` take these names, or a formula of your own: sums
and differences of products of powers of columns of the run log, such as `E + A/params^a + B*exp(s*skew)/tokens^b`. A
parameter may have any name that is no column of your table (`alpha`, `beta`). Loss is in nats per token, `params`
without embeddings, `tokens` over all clients and rounds, `skew` from 0 (iid) to 1 (disjoint).

What a formula may hold: sums to a power, `(A/params^a + B/tokens^b)^c`, or under a stroke, `U/(1 + exp(k*x - c))`;
exponentials of powers, `exp(s*params^q)`; `1 - exp(-bits/g)`; `log(compute)`; effective tokens after repeats,
`repeats(tokens/clients_per_round^g, unique_tokens, R)`; a term that is subtracted, as long as the loss stays positive.
A column of your own is named by `columns={"bits": "bits"}`. Sums of powers are asked for their best size by a geometric
program, all others by a search over sizes.

Begin with the first """
    + f"{len(RECOMMENDED)}"
    + """; the others are kept for comparison, and because stored fits name them.
"""
)
API_HEAD = """# Every public name

`import scalefed as sf`; each name loads on first use. What needs an extra that is not installed says so.
"""
API = {
    "Read and write runs": ("load_runs", "load_counts", "import_rounds", "write_run", "pack", "unpack", "Run"),
    "Fit and ask": (
        "fit",
        "load_fit",
        "Fit",
        "FitStatus",
        "Optimum",
        "Profile",
        "Region",
        "compare",
        "first_runs",
        "next_runs",
    ),
    "Laws": ("Law", "LAWS", "simulate_runs", "train_flops"),
    "Show": ("chart", "write_report"),
    "pass@k": ("estimate_pass_at_k", "pass_at_k", "PassAtK", "evaluate", "fit_link", "Link"),
    "Make runs": ("RunConfig", "sweep", "load_sweep", "train", "train_all", "partition", "Partition", "measured_skew"),
    "Flower": ("log_flower",),
    "Errors": ("ScalefedError", "ConfigError", "DataError", "FitError", "FitWarning", "RunLogWarning"),
}
"""Public names by what they are for; a name that stands in none of these is put last."""
PRICED = ("one client a round", "4 a round", "16 a round", "4 a round, 1 local step", "4 a round, 100 local steps",
          "4 a round of 256", "4 a round, Dirichlet 0.1", "4 a round, 8k tokens a client")  # fmt: skip
"""Federations that README tells of, in the paper's words."""
TOLD = """{runs} runs with {clients[0]} to {clients[1]} clients, {local_steps[0]} to {local_steps[1]} local steps and text read up to {epochs[1]} times
make one law, `fits/study.json`. Its best sizes at 3e12 FLOPs, with 95% intervals given that law (16 alike clients, 25 local steps
and fresh text unless said):

| federation | parameters to train | loss above one client a round |
|---|---|---|
{rows}

So the size to train is that of your federation, not the central one: the more clients are averaged, the more of them
there are and the longer each trains alone, the smaller it is; skew and text that comes round again ask for a larger one.
Predictions that were frozen before {held_out} held-out runs missed their means by {error} in the median, and by {missed} at worst
({setting}). The term that was missing there was added, frozen again, and missed {crossed[runs]} new runs
by {crossed[median][0]} (at worst {crossed[worst]}; the nearest smaller run {crossed[median][3]}): far outside, make runs of your own ([paper](paper/paper.pdf),
[diary](runs/LOG.md)).
On real Python, read as bytes, neither the price of averaging nor that of skew was the same (`runs/python`): the
law's form is offered for other text, its numbers are not. With both fitted to shorter runs there, it missed {far[runs]} runs of 32M
bytes, frozen before, by {far[errors][2][1]} in the median (a line through two budgets: {far[errors][2][4]}; `runs/python-32M`).
"""  # noqa: E501
COMPARED = "# Kept for comparison\n"


def settings() -> str:
    """The table of every setting of a run."""
    rows = ["| setting | default | unit | meaning |", "|---|---|---|---|"]
    meanings = COLUMNS["params_asked"].meaning, COLUMNS["tokens_asked"].meaning
    said = {"params": meanings[0], "tokens": meanings[1]}
    for name, value in RunConfig().items():
        meaning = said.get(name, COLUMNS[name].meaning)
        if name in CHOICES:
            meaning += ": " + ", ".join(f"`{choice}`" for choice in CHOICES[name])
        rows.append(f"| `{name}` | {_default(name, value)} | {COLUMNS[name].unit.replace('-', '')} | {meaning} |")
    return SETTINGS + "\n".join(rows) + "\n" + REALISED


def columns() -> str:
    """The tables of every column of the run log."""
    parts = [COLUMNS_HEAD]
    for title, table in (("A run", COLUMNS), ("A round", ROUND_COLUMNS)):
        parts += [f"## {title}\n", "| column | type | unit | meaning |", "|---|---|---|---|"]
        for column in table.values():
            if column.kind != "setting":
                mark = " (*timing*)" if column.kind == "timing" else ""
                unit = "" if column.unit == "-" else column.unit
                parts.append(f"| `{column.name}` | {column.dtype} | {unit} | {column.meaning}{mark} |")
        parts.append("")
    return "\n".join(parts)


def laws() -> str:
    """Every named law with its formula, parameters and source."""
    parts = [LAWS_HEAD]
    for name in (*RECOMMENDED, *(name for name in LAWS if name not in RECOMMENDED)):
        law = LAWS[name]
        if name not in RECOMMENDED and COMPARED not in parts:
            parts.append(COMPARED)
        parts += [f"## {name}\n", f"    {law.formula}\n", "| parameter | unit | meaning |", "|---|---|---|"]
        for parameter in law.parameters:
            unit = law.units[parameter].replace("none", "")
            parts.append(f"| `{parameter}` | {unit} | {law.meanings[parameter]} |")
        parts.append(f"\nSource: {law.source}\n")
    return "\n".join(parts)


def api() -> str:
    """Every public name, for mkdocstrings to fill in."""
    placed = {name for names in API.values() for name in names}
    groups = {**API, "More": tuple(name for name in scalefed.__all__ if name not in placed)}
    parts = [API_HEAD]
    for title, names in groups.items():
        here = [name for name in names if name in scalefed.__all__]
        parts += [f"## {title}\n"] * bool(here) + [f"::: {_home(name)}\n" for name in here]
    return "\n".join(parts)


def readme() -> str:
    """README with what the study says today, from the paper's figures."""
    return STUDY.sub(lambda _: study(), (ROOT / "README.md").read_text(encoding="utf-8"))


def study() -> str:
    """What a practitioner can take from the study."""
    facts = json.loads((ROOT / "paper" / "generated" / "facts.json").read_text(encoding="utf-8"))["study"]
    crossed = json.loads((ROOT / "paper" / "generated" / "crossed.json").read_text(encoding="utf-8"))
    real = json.loads((ROOT / "paper" / "generated" / "realtext.json").read_text(encoding="utf-8"))
    ranges = json.loads((ROOT / "fits" / "study.json").read_text(encoding="utf-8"))["ranges"]
    price = {words: f"| {words} | {size} | {more} |" for words, size, _, more, *_ in facts["price"]}
    missed = {cell[0]: cell[4].strip("+-") for cell in facts["cells"]}
    worst = max(missed, key=lambda setting: float(missed[setting].strip("%")))
    ends = {name: tuple(f"{end:.0f}" for end in ranges[name]) for name in ("clients", "local_steps", "epochs")}
    rows = "\n".join(price[words] for words in PRICED)
    return TOLD.format(
        **facts, **ends, crossed=crossed, rows=rows, setting=worst, missed=missed[worst], far=real["python-32M"]
    )


def _home(name: str) -> str:
    return next(f"{home}.{name}" for home, names in scalefed._HOMES.items() if name in names)


def _default(name: str, value: object) -> str:
    if value is None:
        return "by rule"
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    if isinstance(value, int) and value >= 1000 and "seed" not in name:
        return f"{value:_}"
    return f"`{value}`" if isinstance(value, str) and value else str(value) or "none"


if __name__ == "__main__":
    (HERE / "settings.md").write_text(settings(), encoding="utf-8")
    (HERE / "columns.md").write_text(columns(), encoding="utf-8")
    (HERE / "laws.md").write_text(laws(), encoding="utf-8")
    (HERE / "api.md").write_text(api(), encoding="utf-8")
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
