"""The public names are a list; they load on first use, and take their data first and the rest by keyword."""

import ast
import inspect
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import scalefed

ROOT = Path(__file__).parents[1]

DESIGNED = {
    "RunConfig", "sweep", "train", "evaluate", "partition", "pass_at_k", "load_runs", "Law", "LAWS", "fit", "Fit",
    "load_fit", "compare", "first_runs", "next_runs", "simulate_runs", "train_flops", "chart", "write_report",
    "ScalefedError", "FitError", "estimate_pass_at_k",
}  # fmt: skip
BESIDE = {  # what the designed names return, raise or are fed with
    "ConfigError", "DataError", "FitStatus", "FitWarning", "Link", "Optimum", "Partition", "PassAtK", "Profile",
    "Region", "Run", "RunLogWarning", "fit_link", "import_rounds", "load_counts", "load_sweep", "log_flower",
    "measured_skew", "pack", "train_all", "unpack", "write_run",
}  # fmt: skip

# data that a function takes by position; everything else is by keyword
POSITIONAL = {
    "chart": ["fit_or_runs", "kind"],
    "compare": ["fits"],
    "evaluate": ["run"],
    "first_runs": [],
    "fit": ["runs", "law"],
    "fit_link": ["counts", "losses"],
    "import_rounds": ["source"],
    "load_counts": ["source"],
    "load_fit": ["path"],
    "load_runs": ["source"],
    "load_sweep": ["path"],
    "log_flower": ["strategy"],
    "measured_skew": ["histograms"],
    "next_runs": ["fit"],
    "pack": ["folder"],
    "partition": ["labels"],
    "estimate_pass_at_k": ["samples", "correct", "k"],
    "pass_at_k": ["samples", "correct", "k"],
    "simulate_runs": ["law", "parameters", "grid"],
    "sweep": ["base"],
    "train": ["config"],
    "train_all": ["configs"],
    "train_flops": ["params", "tokens"],
    "unpack": ["folder"],
    "write_report": ["fit"],
    "write_run": ["folder"],
}


def test_all_is_the_designed_names_and_those_beside_them():
    assert set(scalefed.__all__) == DESIGNED | BESIDE
    assert scalefed.__all__ == sorted(
        scalefed.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )


def test_every_name_loads_and_is_documented():
    for name in scalefed.__all__:
        value = getattr(scalefed, name)
        assert name in dir(scalefed)
        if callable(value):
            assert inspect.getdoc(value), name
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        scalefed.trian  # noqa: B018


def test_the_names_for_type_checkers_are_the_same():
    tree = ast.parse((ROOT / "scalefed" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {(alias.asname, f"{node.module}") for node in block.body for alias in node.names}
    assert told == {(name, home) for home, names in scalefed._HOMES.items() for name in names}
    assert {name for name, _ in told} == set(scalefed.__all__)


@pytest.mark.parametrize("name", sorted(POSITIONAL))
def test_data_first_everything_else_by_keyword(name):
    parameters = inspect.signature(getattr(scalefed, name)).parameters.values()
    by_position = [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
    ]
    assert by_position == POSITIONAL[name]


def test_every_function_is_in_that_table():
    functions = {name for name in scalefed.__all__ if inspect.isfunction(getattr(scalefed, name))}
    assert functions == set(POSITIONAL)


def test_reading_needs_no_torch():
    code = """
import sys

class NoTorch:  # as if it were not installed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoTorch())
import scalefed as sf
grid = {"params": [1e3, 1e4, 1e5], "tokens": [1e6, 1e7, 1e8]}
runs = sf.simulate_runs("chinchilla", {"E": 1, "A": 8, "a": 0.5, "B": 100, "b": 0.5}, grid, noise=0.001)
fit = sf.fit(sf.load_runs(runs), "chinchilla", resamples=10)
print(round(fit.optimal_size(compute=1e12).params) > 0, sf.chart(runs, "loss").to_dict()["title"]["text"][0])
print([m for m in ("transformers", "peft", "flwr", "scalefed.experiment") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split("\n")[:2] == ["True Held-out loss by training tokens and model size", "[]"]


def test_generated_pages_are_what_the_code_says():
    build = runpy.run_path(str(ROOT / "docs" / "build.py"))
    for name in ("settings", "columns", "laws", "api"):
        page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page == build[name](), "run: python docs/build.py"
