"""Write the paper: every number in it from ``runs/`` and ``fits/``, none by hand.

    python paper/build.py            facts, figures and, where typst is installed, paper.pdf
    python paper/build.py --study    what the study says (study.py) made anew, the rest as it is, and paper.pdf
    python paper/build.py --pdf      only paper.pdf, from the facts and figures that are there

``paper.typ`` holds the words, ``generated/`` what this script writes.
"""

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import scalefed as sf
from scalefed.analysis.effects import at_equal_loss, paired_effects
from scalefed.analysis.hypothesis_tests import average_compute_test
from scalefed.analysis.isoflop import isoflop_optima
from scalefed.charts.theme import power, si
from scalefed.errors import FitWarning
from scalefed.laws import LAWS, Law

HERE = Path(__file__).parent
ROOT = HERE.parent
GENERATED = HERE / "generated"
sys.path.insert(0, str(HERE))  # the scripts of the paper are no package
import ablations  # noqa: E402
import checks  # noqa: E402
import crossed  # noqa: E402
import isoflops  # noqa: E402
import pass100  # noqa: E402
import population  # noqa: E402
import posthoc  # noqa: E402
import published  # noqa: E402
import realmodels  # noqa: E402
import realtext  # noqa: E402
import remedies  # noqa: E402
import slices  # noqa: E402
import study  # noqa: E402
import unequal  # noqa: E402

SEEDS = ["params", "tokens_asked", "clients_per_round", "concentration"]
COMPUTE = 3e12
COUNTS = (1, 4, 16)
ABLE = 0.8  # nats a token; above, hardly a program passes
RESAMPLES = 300
"""Replicates of each law that is held against the others: its bands' ends move by less than they are told to."""
CENTRALISED = ("gc-local", "gc-global", "gc-fed")


# ---------------------------------------------------------------------- what the runs say
def facts() -> dict[str, Any]:
    """Everything the paper says in numbers, as the strings it prints."""
    runs = sf.load_runs(ROOT / "runs/grid")
    fit = sf.load_fit(ROOT / "fits/grid.json")
    told = {name: law for name, law in LAWS.items() if set(law.columns) <= set(runs)}
    fits = {name: _fitted(runs, law, fit.law.fixed) for name, law in told.items()}
    return {
        "runs_hash": fit.runs_hash,
        "grid": _grid(runs),
        "law": _law(fit),
        "holdout": _holdout(runs, fit, list(fits.values())),
        "equal_loss": _equal_loss(runs, fit.params["E"]),
        "optimum": _optimum(fit, runs),
        "rule": _rule(fit, fits["federated-capacity"]),
        "skew": _skew(runs),
        "centralisation": _centralisation(),
        "synthetic": _synthetic(),
        "ladder": _ladder(),
        "study": study.facts(),
    }


def _grid(runs: pd.DataFrame) -> dict[str, Any]:
    return {
        "runs": str(len(runs)),
        "sizes": _ends(runs["params"], si),
        "tokens": _ends(runs["tokens_asked"], si),
        "compute": _ends(runs["compute"], power),
        "clients": f"{runs['clients'].iloc[0]:g}",
        "per_round": _ends(runs["clients_per_round"], "{:g}".format),
        "local_steps": f"{runs['local_steps'].iloc[0]:g}",
        "batch": f"{runs['batch_size'].iloc[0]:g} x {runs['sequence_length'].iloc[0]:g}",
        "per_param": _ends(runs["tokens"] / runs["params"], lambda ratio: f"{float(f'{ratio:.2g}'):,g}"),
        "concentrations": ", ".join(f"{value:g}" for value in sorted(runs["concentration"].unique()) if value < np.inf),
        "skew": f"{runs.loc[runs['concentration'] == runs['concentration'].min(), 'skew'].mean():.2f}",
        "pass_at_1": _ends(runs["pass_at_1"], "{:.1%}".format),
        "problems": f"{runs['problem_count'].iloc[0]:g}",
        "samples": f"{runs['samples'].iloc[0]:g}",
        "entropy": f"{runs['entropy_per_token'].iloc[0]:.4f}",
        "hours": f"{runs.loc[runs['device'] == 'cpu', 'cpu_s'].sum() / 3600:.0f}",
        "on_gpu": str((runs["device"] != "cpu").sum()),
    }


def _law(fit: sf.Fit) -> dict[str, Any]:
    rows = []
    for name, row in fit.summary().iterrows():
        held = name in fit.law.fixed
        ends = "known" if held else f"{row['low']:.3g} to {row['high']:.3g}"
        rows.append([str(name), f"{row['estimate']:.3g}", ends, fit.law.meanings[str(name)]])
    return {"name": fit.law.name, "formula": fit.law.formula, "rows": rows, "noise": f"{fit.noise:.1%}"}


def _fitted(runs: pd.DataFrame, law: Law, fixed: Mapping[str, float]) -> sf.Fit:
    held = fixed if "E" in law.parameters else None
    return sf.fit(runs, law=law, fixed=held, huber_delta="auto", scale_weight=1.0, resamples=RESAMPLES)


def _holdout(runs: pd.DataFrame, fit: sf.Fit, fits: list[sf.Fit]) -> dict[str, Any]:
    """Every named law against the largest budget, which none of them has seen."""
    largest = runs["tokens_asked"].max()
    held = runs[runs["tokens_asked"] == largest]
    counts, covariates = sf.load_counts(ROOT / "runs/grid"), _covariates(fit)
    table = sf.compare(*fits, holdout="tokens", counts=counts, covariates=covariates, settings=SEEDS)
    plain = sf.compare(fit, *fits[:1], holdout="tokens", counts=counts).iloc[0]
    loose = table["training_status"].isin(["loose", "not_identified"])
    rows = [
        [str(name), f"{r['holdout_error']:.1%}", f"{r['mean_error']:.1%}", f"{r['coverage']:.0%}", f"{r['width']:.0%}",
         f"{100 * r['pass_at_1_error']:.1f}", f"{r['pass_at_1_coverage']:.0%}"]
        for name, r in table[~loose].sort_values("holdout_error", ascending=False).iterrows()
    ]  # fmt: skip
    names = ("law", "runs", "means", "inside", "width", "passes", "passes_inside")
    spread = held.groupby(SEEDS)["loss"].agg(["std", "mean", "count"]).query("count > 1")
    chosen = next(dict(zip(names, row, strict=True)) for row in rows if row[0] == fit.law.name)
    return {
        "budget": si(float(largest)),
        "below": si(float(runs.loc[runs["tokens_asked"] < largest, "tokens_asked"].max())),
        "runs": str(len(held)),
        "means": str(len(held.groupby(SEEDS))),
        "seeds": f"{np.sqrt(((spread['std'] / spread['mean']) ** 2).mean()):.1%}",
        "rows": rows,
        "loose": " and ".join(table.index[loose]),
        "chosen": chosen,
        "plain_passes": f"{100 * plain['pass_at_1_error']:.1f}",
        "plain_inside": f"{plain['pass_at_1_coverage']:.0%}",
    }


def _covariates(fit: sf.Fit) -> tuple[str, ...]:
    """What the link looks at beside the loss."""
    return fit.link.curve.covariates.names if fit.link and fit.link.curve.covariates else ()


def _equal_loss(runs: pd.DataFrame, floor: float) -> dict[str, Any]:
    """Odds of passing beside the loss, of the runs that pass at all often."""
    able = runs[runs["loss"] < ABLE]
    found = at_equal_loss(able, sf.load_counts(ROOT / "runs/grid"), floor=floor)
    words = {name: f"{row['odds_ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})" for name, row in found.iterrows()}
    return {str(name): text for name, text in words.items()} | {"below": f"{ABLE:g}", "runs": str(len(able))}


def _optimum(fit: sf.Fit, runs: pd.DataFrame) -> dict[str, Any]:
    iid = isoflop_optima(runs[runs["concentration"] == np.inf], COMPUTE, floor=fit.params["E"])
    measured = iid.set_index("clients_per_round")
    rows = []
    for count in COUNTS:
        best = fit.optimal_size(compute=COMPUTE, clients=16, clients_per_round=count, skew=0)
        passes = f"{best.pass_at_1:.0%} ({best.pass_at_1_low:.0%} to {best.pass_at_1_high:.0%})"
        sizes = f"{si(best.params_low)} to {si(best.params_high)}"
        check = _measured(measured, count)
        rows.append([str(count), si(best.params), sizes, check, si(best.tokens), f"{best.loss:.3f}", passes])
    return {"compute": power(COMPUTE), "rows": rows, "sizes": [row[1] for row in rows], "losses": [r[5] for r in rows]}


def _measured(optima: pd.DataFrame, count: int) -> str:
    """The best size without a law, where the runs show one."""
    if count not in optima.index or np.isnan(optima.loc[count, "params"]):
        return "-"
    row = optima.loc[count]
    ends = "" if np.isnan(row["params_low"]) else f" ({si(row['params_low'])} to {si(row['params_high'])})"
    return si(row["params"]) + ends


def _rule(fit: sf.Fit, discounted: sf.Fit) -> dict[str, Any]:
    test = average_compute_test(fit)
    row = discounted.summary().loc["g"]
    return {
        "discounted": discounted.law.name,
        "g": f"{row['estimate']:.2f} ({row['low']:.2f} to {row['high']:.2f})",
        "q": f"{test.q:.2f} ({test.q_low:.2f} to {test.q_high:.2f})",
        "p": f"{test.p:.2f} ({test.p_low:.2f} to {test.p_high:.2f})",
        "difference": f"{test.difference:.2f} ({test.low:.2f} to {test.high:.2f})",
        "verdict": "is rejected" if test.low > 0 or test.high < 0 else "cannot be rejected",
    }


def _skew(runs: pd.DataFrame) -> dict[str, Any]:
    """What the most skewed clients cost beside iid ones, by token budget."""
    skewed = runs["concentration"].min()
    pairs = runs[runs["concentration"].isin([skewed, np.inf]) & (runs["clients_per_round"] <= 4)]
    table = paired_effects(pairs, "concentration", by="tokens_asked")
    passes = paired_effects(pairs, "concentration", of="pass_at_1", by="tokens_asked")
    rows = [
        [si(a["tokens_asked"]), f"{a['pairs']:g}", _percent(a), _points(b)]
        for (_, a), (_, b) in zip(table.iterrows(), passes.iterrows(), strict=True)
    ]
    return {"concentration": f"{skewed:g}", "rows": rows}


def _centralisation() -> dict[str, Any]:
    runs = sf.load_runs(ROOT / "runs/gc-fed")
    rows = []
    for name, condition in (
        ("SGD with momentum", "inner_optimizer == 'sgd'"),
        ("AdamW, new moments", "inner_optimizer == 'adamw' and inner_state == 'reset'"),
        ("AdamW, kept moments", "inner_state == 'keep'"),
    ):
        for vectors, words in (("mean", "centred"), ("keep", "left alone")):
            arm = runs.query(condition).query(f"algorithm == 'fedavg' or centralised_vectors == '{vectors}'")
            if arm["algorithm"].nunique() < 2:
                continue
            table = paired_effects(arm, "algorithm", follows=("centralised_vectors",)).set_index("to")
            cells = [_percent(table.loc[name]) if name in table.index else "" for name in CENTRALISED]
            rows.append([name, words, *cells])
    return {
        "rows": rows,
        "participation": f"{runs['participation'].iloc[0]:g}",
        "concentration": f"{runs['concentration'].iloc[0]:g}",
        "seeds": str(runs["seed"].nunique()),
    }


def _synthetic() -> dict[str, Any]:
    runs = sf.load_runs(ROOT / "runs/synthetic")
    skewed = runs[runs["concentration"] < np.inf]
    shares = skewed["algorithm"] != "fedavg"
    skewed = skewed.assign(arm=np.where(shares, _arm(skewed), "none"))
    follows = ("algorithm", "synthetic_share", "synthetic_epsilon", "generator_params", "generator_steps")
    losses = paired_effects(skewed, "arm", start="none", follows=follows).set_index("to")
    passes = paired_effects(skewed, "arm", of="pass_at_1", start="none", follows=follows).set_index("to")
    arms = skewed[shares].sort_values(["generator_params", "synthetic_epsilon", "synthetic_share"])
    rows = []
    for name, arm in arms.groupby("arm", sort=False):
        first, budget = arm.iloc[0], arm["synthetic_epsilon"].iloc[0]
        generator = f"{si(first['generator_params'])}, {first['generator_steps']:g} steps"
        private = "none" if np.isinf(budget) else f"{budget:g}"
        cells = [_percent(losses.loc[name]), _points(passes.loc[name])]
        rows.append([generator, private, f"{first['synthetic_share']:.0%}", str(len(arm)), *cells])
    iid = runs[runs["concentration"] == np.inf]["loss"].mean()
    alone = skewed.loc[~shares, "loss"].mean()
    return {"rows": rows, "iid": f"{iid:.3f}", "skewed": f"{alone:.3f}"}


def _arm(runs: pd.DataFrame) -> "pd.Series[str]":
    names = ["synthetic_share", "synthetic_epsilon", "generator_params"]
    return runs[names].astype(str).agg(" ".join, axis=1)


def _ladder() -> dict[str, Any]:
    runs = sf.load_runs(ROOT / "runs/ladder").sort_values("params")
    fit = sf.load_fit(ROOT / "fits/ladder.json")
    row = fit.summary().loc["E"]
    return {
        "sizes": _ends(runs["params"], si),
        "passes": _ends(runs["pass_at_1"], "{:.0%}".format),
        "floor": f"{row['estimate']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
        "entropy": f"{runs['entropy_per_token'].iloc[0]:.3f}",
    }


# ---------------------------------------------------------------------- words
def _ends(values: Iterable[float], form: Callable[[float], str]) -> str:
    values = list(values)
    return f"{form(min(values))} to {form(max(values))}"


def _percent(row: "pd.Series[Any]") -> str:
    if row["pairs"] == 1:
        return f"{row['estimate']:+.1%} (one pair)"
    return f"{row['estimate']:+.1%} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"


def _points(row: "pd.Series[Any]") -> str:
    if row["pairs"] == 1:
        return f"{100 * row['estimate']:+.1f} (one pair)"
    return f"{100 * row['estimate']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"


# ---------------------------------------------------------------------- figures and pages
def figures() -> None:
    """The charts, as SVG."""
    fit = sf.load_fit(ROOT / "fits/grid.json")
    kept = {"width": 560}
    drawn = {
        "optimum": sf.chart(fit, "optimum", clients=16, skew=0, headline="Best size by compute, iid clients", **kept),
        "passk": sf.chart(sf.load_runs(ROOT / "runs/grid"), "passk", headline="Loss and pass@1", **kept),
        "residuals": sf.chart(fit, "residuals", headline="What the law leaves", **kept),
    }
    for name, chart in drawn.items():
        chart.save(str(GENERATED / f"{name}.svg"))


def page() -> Path | None:
    """The PDF, or None where typst is not installed."""
    try:
        import typst
    except ImportError:
        return None
    target = HERE / "paper.pdf"
    typst.compile(str(HERE / "paper.typ"), output=str(target), root=str(HERE))
    return target


def main(words: list[str]) -> None:
    """Write everything, or only the PDF."""
    if words not in ([], ["--study"], ["--pdf"]):
        raise SystemExit(f"got {' '.join(words)}; allowed: nothing, --study or --pdf")
    target = GENERATED / "facts.json"
    if words != ["--pdf"]:
        GENERATED.mkdir(exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # the table says of every law how it fares
            made = {**json.loads(target.read_text(encoding="utf-8")), "study": study.facts()} if words else facts()
        target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if not words:
        figures()
        isoflops.main()
        checks.main()
        ablations.main()
        published.write()
        posthoc.main()
        crossed.main([])
        pass100.main()
        population.main()
        realmodels.main()
        realtext.main()
        remedies.main()
        unequal.main()
        slices.main()
    print(page() or "typst is not installed, so there is no PDF: pip install 'scalefed[paper]'")


if __name__ == "__main__":
    main(sys.argv[1:])
