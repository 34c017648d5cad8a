"""The command line: what it prints, how it fails, how fast it starts."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import scalefed
from scalefed.cli import app, main
from scalefed.cli.demo import CHARTS
from scalefed.cli.output import configs_from
from scalefed.config import RunConfig
from scalefed.laws import LAWS, RECOMMENDED
from scalefed.laws.simulate import simulate_runs
from scalefed.passk import estimate_pass_at_k
from scalefed.runs.log import load_runs, write_run

ROOT = Path(__file__).parents[2]
TRUTH = {"E": 0.33, "A": 30.0, "a": 0.55, "B": 2500.0, "b": 0.65}
LAW = "E + A/params^a + B/tokens^b"
COMMANDS = (
    "chart",
    "compare",
    "demo",
    "evaluate",
    "first",
    "fit",
    "laws",
    "next",
    "optimum",
    "pack",
    "report",
    "runs",
    "sweep",
    "train",
    "unpack",
)

pytestmark = pytest.mark.filterwarnings("ignore::scalefed.errors.FitWarning", "ignore::scalefed.errors.RunLogWarning")


def make_run(folder, *, loss=1.25, **settings):
    config = RunConfig(**{"params": 3000, "tokens": 1000, **settings})
    result = {"params": 3105, "tokens": 1024, "loss": loss, "skew": 0.0, "rounds": 2}
    rounds = [{"round": 1, "tokens": 512, "train_loss": 2.0}, {"round": 2, "tokens": 1024, "train_loss": 1.5}]
    return write_run(folder, config=config.to_dict(), result=result, rounds=rounds)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with good and bad inputs, named by what they are."""
    folder = tmp_path_factory.mktemp("files")
    grid = {"params": [3e3, 1e4, 3e4, 1e5], "tokens": [1e6, 3e6, 1e7], "seed": [0, 1]}
    good = simulate_runs("chinchilla", TRUTH, grid, noise=0.003, seed=2)
    good.to_csv(folder / "good.csv", index=False)
    good.rename(columns={"params": "N", "tokens": "D"}).to_csv(folder / "renamed.csv", index=False)
    good.drop(columns="loss").to_csv(folder / "no-loss.csv", index=False)
    good.assign(loss=math.nan).to_csv(folder / "nan.csv", index=False)
    good.assign(loss="low").to_csv(folder / "text.csv", index=False)
    good.iloc[:1].to_csv(folder / "one.csv", index=False)
    good[good["params"] == 1e4].to_csv(folder / "one-size.csv", index=False)
    good.assign(tokens=20 * good["params"]).drop(columns="compute", errors="ignore").to_csv(
        folder / "on-a-line.csv", index=False
    )
    good.iloc[:0].to_csv(folder / "no-rows.csv", index=False)
    (folder / "other.csv").write_text("a,b\n1,2\n")
    (folder / "others.csv").write_text("n_params,train/tokens,eval_loss\n1,2,3\n")
    (folder / "half.csv").write_text("params,train_tokens,eval_loss\n1,2,3\n")
    text = good.to_json(orient="records", lines=True)
    (folder / "cut.jsonl").write_text(text[: len(text) // 2])
    (folder / "runs.xlsx").write_text("x")
    (folder / "empty").mkdir()
    broken = make_run(folder / "corrupt")
    (broken / "run.json").write_text('{"schema": 1, "run_id"')
    make_run(folder / "runs")
    (folder / "broken.json").write_text('{"format": 1,')
    (folder / "other.json").write_text('{"a": 1}')
    (folder / "bad.toml").write_text("params = = 3\n")
    (folder / "unknown.toml").write_text("parms = 3\n")
    (folder / "sweep.toml").write_text("[grid]\nparams = [3]\n")
    (folder / "good-sweep.toml").write_text("[base]\nclients = 8\n[[grid]]\nparams = [3_000, 6_000]\nseed = [0, 1]\n")
    (folder / "samples.jsonl").write_text('{"task": "a"}\n')
    return folder


def run(capsys, *words):
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


# ---------------------------------------------------------------------- mistakes
# name: (words, parts of the message); {f} is the folder of files
MISTAKES = {
    "unknown key": ("train parms=3000", ["unknown setting 'parms'", "did you mean 'params'"]),
    "no key": ("train 24000=", ["unknown setting '24000'"]),
    "not a number": ("train params=many", ["params must be a whole number, got 'many'"]),
    "half a parameter": ("train params=0.5", ["params must be a whole number, got '0.5'"]),
    "participation above 1": ("train participation=2.0", ["participation must be in (0, 1], got 2"]),
    "participation of zero": ("train participation=0", ["participation must be in (0, 1], got 0"]),
    "more clients per round than clients": (
        "train clients=4 clients_per_round=8",
        ["clients_per_round=8 is more than clients=4", "lower clients_per_round or add clients"],
    ),
    "negative tokens": ("train tokens=-5", ["tokens must be positive, got -5"]),
    "negative seed": ("train seed=-1", ["seed must be zero or positive, got -1"]),
    "unknown algorithm": ("train algorithm=fedavgg", ["unknown algorithm 'fedavgg'", "did you mean 'fedavg'"]),
    "probability above 1": ("train dropout=1.5", ["dropout must be between 0 and 1, got 1.5"]),
    "central with clients": (
        "train algorithm=central clients=4",
        ["one client that holds everything", "set clients=1"],
    ),
    "missing file": ("train {f}/none.toml", ["no config file at", "give the path of a TOML file"]),
    "not TOML": ("train {f}/bad.toml", ["is not valid TOML"]),
    "unknown key in a file": ("train {f}/unknown.toml", ["unknown setting 'parms'", "did you mean 'params'"]),
    "empty axis value": ("sweep params=3000, --dry-run", ["params must be a whole number, got ''"]),
    "unknown axis": ("sweep prams=1,2 --dry-run", ["unknown setting 'prams'", "did you mean 'params'"]),
    "wrong sweep file": ("sweep {f}/sweep.toml --dry-run", ["[[grid]]", "double brackets"]),
    "no workers": ("sweep params=3000,6000 --workers 0", ["--workers", "0 is not in the range"]),
    "empty folder": ("runs {f}/empty", ["no runs in", "make some with `scalefed sweep`"]),
    "no such place": ("runs {f}/none", ["nothing at", "give a folder of runs or a .csv"]),
    "wrong kind of file": ("runs {f}/runs.xlsx", ["cannot read runs.xlsx", "allowed are run folders and .csv"]),
    "corrupt run.json": ("runs {f}/corrupt", ["skipped the run in", "none of the 1 runs in", "train them again"]),
    "unknown sweep": ("runs {f}/runs --sweep rnus", ["no sweep 'rnus'", "did you mean 'runs'"]),
    "unknown column": ("runs {f}/good.csv --sort lss", ["no column 'lss'", "only run_id, params"]),
    "rounds of a table": ("runs {f}/good.csv --rounds", ["rounds are kept in run folders"]),
    "column of nothing": ("runs {f}/renamed.csv --column params", ["--column wants ours=theirs", "params=N"]),
    "column that is not there": ("fit {f}/renamed.csv --column params=M", ["no column 'M' for params"]),
    "wrong output": ("runs {f}/good.csv --out {f}/x.doc", ["must end in .csv, .parquet or .jsonl"]),
    "truncated JSONL": ("fit {f}/cut.jsonl", ["cut.jsonl, line", "not JSON", "cut off"]),
    "no loss column": ("fit {f}/no-loss.csv --law chinchilla", ["no column 'loss'", "allowed: ", "params"]),
    "no known column": ("fit {f}/other.csv", ["has no column of the run log, only a, b", "--column params=N"]),
    "columns as others name them": (
        "fit {f}/others.csv",
        ["--column params=n_params --column tokens=train/tokens --column loss=eval_loss"],
    ),
    "some columns as others name them": (
        "fit {f}/half.csv",
        ["have no tokens, only params, train_tokens", "--column tokens=train_tokens --column loss=eval_loss"],
    ),
    "NaN losses": ("fit {f}/nan.csv --law chinchilla", ["no run is left to fit", "loss missing"]),
    "text losses": ("fit {f}/text.csv --law chinchilla", ["loss must be a number", "got 'low' in row 0"]),
    "no rows": ("fit {f}/no-rows.csv", ["has no rows", "one row a run"]),
    "one run only": ("fit {f}/one.csv --law chinchilla", ["only one run is left", "give at least 5 runs"]),
    "all runs of one size": (
        "optimum {f}/one-size.csv --law chinchilla --compute 1e12",
        ["cannot determine", "params"],
    ),
    "all runs on a line": (
        "optimum {f}/on-a-line.csv --law chinchilla --compute 1e12",
        ["cannot tell the best size", "wider than a factor of 10"],
    ),
    "unknown law": ("fit {f}/good.csv --law chinchila", ["unknown law 'chinchila'", "did you mean 'chinchilla'"]),
    "unreadable law": ("fit {f}/good.csv --law E+A/params^", ["position"]),
    "law without its columns": ("fit {f}/good.csv --law average-compute", ["clients_per_round"]),
    "unknown target": ("fit {f}/good.csv --law chinchilla --target los", ["los"]),
    "negative robust": (
        "fit {f}/good.csv --law chinchilla --huber-delta -1",
        ["huber_delta must be a positive number", "1e-3"],
    ),
    "no budget": ("optimum {f}/good.csv --law chinchilla", ["--compute"]),
    "negative budget": ("optimum {f}/good.csv --law chinchilla --compute -1", ["compute", "-1"]),
    "unknown setting": (
        "optimum {f}/good.csv --law chinchilla --compute 1e12 clents=3",
        ["no limit or setting 'clents'", "did you mean 'clients'"],
    ),
    "setting without a value": ("optimum {f}/good.csv --law chinchilla --compute 1e12 clients", ["expected key=value"]),
    "participation in a question": (
        "optimum {f}/good.csv --law chinchilla --compute 1e12 clients=4 participation=2",
        ["participation must be in (0, 1]"],
    ),
    "no fit": ("optimum {f}/none.json --compute 1e12", ["no fit at", "scalefed fit <runs> --out"]),
    "broken fit": ("optimum {f}/broken.json --compute 1e12", ["is not a saved fit", "save the fit again"]),
    "JSON but no fit": ("report {f}/other.json", ["JSON but not a saved fit"]),
    "unknown chart": ("chart {f}/good.csv lss", ["unknown kind of chart 'lss'", "did you mean 'loss'"]),
    "unknown chart option": ("chart {f}/good.csv loss widht=3", ["takes no 'widht'", "did you mean 'width'"]),
    "wrong picture": ("chart {f}/good.csv loss --out x.gif", ["unknown kind of file '.gif'", ".png"]),
    "chart that needs a fit": ("chart {f}/good.csv optimum", ["needs a fit"]),
    "chart without pass@k": ("chart {f}/good.csv passk", ["no column 'pass_at_1'"]),
    "evaluating nothing": ("evaluate {f}/empty", ["neither a run", "run.json"]),
    "evaluating attempts": ("evaluate {f}/runs --k one", ["--k wants whole numbers", "--k 1,10"]),
    "no samples": ("evaluate {f}/none.jsonl --problems micro", ["none.jsonl"]),
    "samples without fields": ("evaluate {f}/samples.jsonl --problems micro", ["task_id, completion"]),
    "unknown problems": ("evaluate {f}/samples.jsonl --problems micor", ["micor"]),
    "demo participation": ("demo --participation 2", ["participation must be in (0, 1], got 2", "0.25"]),
    "demo without clients": ("demo --clients 3 --participation 0.1", ["less than one client per round"]),
    "demo of nothing": ("demo --pilot-compute 5", ["at least 1e+11 FLOPs", "got 5", "6e+12 is usual"]),
    "unknown command": ("trian", ["No such command 'trian'"]),
    "unknown option": ("fit {f}/good.csv --lw x", ["No such option", "--law"]),
    "file as folder": ("train params=3000 --runs {f}/good.csv", ["good.csv is a file; give a folder"]),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_mistakes_end_with_words_and_code_2(mistake, files, capsys):
    words, parts = MISTAKES[mistake]
    code, out, err = run(capsys, *words.format(f=files).split())
    assert code == 2, (out, err)
    for part in parts:
        assert part in err, err
    pythonic = r"columns=|\bsf\.|\bfit\.\w+\(|=\.\.\.|load_runs"
    assert not re.search(pythonic, err), err  # the shell's words
    assert "Traceback" not in err and out == ""
    assert len(err) < 1500, "a message, not a page"


def test_there_are_enough_mistakes():
    assert len(MISTAKES) >= 25


def test_no_traceback_from_a_real_process(files):
    words = [sys.executable, "-m", "scalefed", "fit", str(files / "no-loss.csv"), "--law", "chinchilla"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------- answers
def test_runs_are_listed_for_people_and_programs(files, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # readline, where pytest's workers load it, sets it
    code, out, _ = run(capsys, "runs", files / "runs")
    assert code == 0 and "3.1k" in out and "1.25" in out and "run_id" in out
    code, out, _ = run(capsys, "runs", files / "runs", "--json")
    row = json.loads(out)[0]
    assert row["loss"] == 1.25 and row["concentration"] == "inf" and row["learning_rate"] is None
    code, out, _ = run(capsys, "runs", files / "runs", "--rounds", "--json", "--show", "round,train_loss")
    assert json.loads(out) == [{"round": 1, "train_loss": 2.0}, {"round": 2, "train_loss": 1.5}]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_runs_are_exported_whole(files, capsys, tmp_path, suffix):
    code, out, err = run(capsys, "runs", files / "runs", "--out", tmp_path / f"all.{suffix}")
    assert code == 0 and out == "" and "1 rows written" in err
    back, row = load_runs(tmp_path / f"all.{suffix}").iloc[0], load_runs(files / "runs").iloc[0]
    assert (back["loss"], back["concentration"], back["run_id"]) == (row["loss"], math.inf, row["run_id"])


def test_a_law_is_fitted_kept_and_asked(files, capsys, tmp_path):
    kept = tmp_path / "fits" / "a.json"
    fit_words = ["fit", files / "renamed.csv", "--law", "chinchilla", "--resamples", 50, "--column", "params=N"]
    code, out, err = run(capsys, *fit_words, "--column", "tokens=D", "--out", kept)
    assert code == 0 and "E + A/params^a + B/tokens^b" in out and "24" in out and str(kept) in err
    code, out, _ = run(capsys, "optimum", kept, "--compute", "1e13")
    assert code == 0 and "params" in out and "[" in out
    code, out, _ = run(capsys, "optimum", kept, "--compute", "1e13", "--json")
    answer = json.loads(out)
    assert answer["params_low"] <= answer["params"] <= answer["params_high"]
    assert answer["params"] * answer["tokens"] * 6 == pytest.approx(1e13, rel=1e-6)
    code, out, _ = run(capsys, "fit", files / "good.csv", "--law", "chinchilla", "--resamples", 50, "--json")
    fitted = json.loads(out)
    assert fitted["law"] == "chinchilla" and fitted["status"] == "CONVERGED"
    assert fitted["params"]["a"]["estimate"] == pytest.approx(TRUTH["a"], abs=0.05)
    code, out, _ = run(capsys, "next", kept, "--compute", "1e12", "--count", 2, "--json")
    assert code == 0 and 1 <= len(json.loads(out)) <= 2


def test_the_runs_to_begin_with_are_told(capsys):
    words = ["first", "--compute", "1e13", "clients_per_round=1,4", "tokens_per_param=100", "--json"]
    code, out, _ = run(capsys, *words)
    rows = json.loads(out)
    assert code == 0 and len(rows) == 10 and {row["clients_per_round"] for row in rows} == {1, 4}
    code, _, err = run(capsys, "first", "--compute", "1e13", "--count", 5)
    assert code == 2 and "from 6" in err


def test_what_lies_outside_the_runs_is_told_below_an_answer_and_a_table(capsys):
    words = [
        "optimum",
        ROOT / "fits" / "grid.json",
        "clients=1000",
        "clients_per_round=4",
        "skew=0",
        "inner_state=reset",
    ]
    told = ("these runs all had 16 clients; the answer for 1,000", "inner_state keep; the answer for reset")
    for budgets in ("1e12", "1e12,1e13"):
        code, out, _ = run(capsys, *words, "--compute", budgets)
        assert code == 0 and all(any("note: " in line and one in line for line in out.splitlines()) for one in told)
    _, out, _ = run(capsys, *words, "--compute", "1e12,1e13", "--json")
    assert all(any(one in note for note in row["notes"]) for row in json.loads(out) for one in told)
    code, _, err = run(
        capsys, "optimum", ROOT / "fits" / "grid.json", "--compute", "1e12", "bandwidth=1e6", "clients=4"
    )
    assert code == 2 and "bandwidth changes nothing here" in err


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"scalefed {scalefed.__version__}\n"


def test_laws_are_compared(files, capsys):
    words = ["compare", files / "good.csv", "--law", "chinchilla", "--law", "kaplan", "--resamples", 20]
    code, out, _ = run(capsys, *words, "--json")
    rows = json.loads(out)
    assert code == 0 and len(rows) == 2 and {"holdout_error", "aic", "bic", "weight"} <= set(rows[0])
    code, out, _ = run(
        capsys, *words, "--huber-delta", "none", "--scale-weight", 1, "--settings", "params,tokens", "--json"
    )
    again = json.loads(out)
    assert code == 0 and again[0]["held_out"] == 2 * again[0]["means"] and again[0]["mean_error"] > 0
    assert again[0]["holdout_error"] != rows[0]["holdout_error"]


@pytest.mark.slow
def test_laws_are_compared_with_a_known_floor_and_on_pass_at_1(capsys):
    words = ["compare", ROOT / "runs" / "pilot", "--law", "chinchilla", "--law", "diloco", "--resamples", 20]
    code, out, err = run(capsys, *words, "--holdout", "tokens > 4e6", "--fix", "E=0.2009", "--passk", "--json")
    rows = json.loads(out)
    assert code == 0 and err == "" and [row["held_out"] for row in rows] == [30, 30]
    assert [row["parameters"] for row in rows] == [4, 3]  # E is held in the law that has it
    assert all(0 < row["pass_at_1_error"] < 0.5 for row in rows)
    code, out, err = run(capsys, *words, "--fix", "F=1")
    assert code == 2 and "no law here has a parameter 'F' to hold" in err


def test_laws_are_listed_and_explained(capsys):
    code, out, _ = run(capsys, "laws")
    assert code == 0 and [line.split()[0] for line in out.splitlines()][:-1] == list(RECOMMENDED)
    assert out.splitlines()[-1].endswith("scalefed laws --all")
    code, out, _ = run(capsys, "laws", "--all")
    assert code == 0 and {line.split()[0] for line in out.splitlines() if line[-1] != ":"} == set(LAWS)
    code, out, _ = run(capsys, "laws", "--json")
    assert [row["law"] for row in json.loads(out) if row["recommended"]] == list(RECOMMENDED)
    code, out, _ = run(capsys, "laws", "federated")
    assert code == 0 and LAWS["federated"].formula in out and "clients_per_round, params, skew, tokens" in out
    for name in LAWS["federated"].parameters:
        assert re.search(rf"^  {name} +\w", out, re.MULTILINE)
    code, out, _ = run(capsys, "laws", "E + A/params^a", "--json")
    assert code == 0 and [row["parameter"] for row in json.loads(out)["parameters"]] == ["E", "A", "a"]
    code, out, err = run(capsys, "laws", "federatd")
    assert code == 2 and out == "" and "did you mean 'federated'" in err


def test_charts_and_pages_are_written(files, capsys, tmp_path):
    code, out, _ = run(
        capsys, "chart", files / "good.csv", "loss", "x=compute", "--out", tmp_path / "deep" / "loss.json"
    )
    assert code == 0 and out.strip() == str(tmp_path / "deep" / "loss.json")
    assert "layer" in json.loads((tmp_path / "deep" / "loss.json").read_text())
    page = tmp_path / "page.html"
    code, out, _ = run(capsys, "report", files / "good.csv", "--law", "chinchilla", "--compute", "1e13", "--out", page)
    assert code == 0 and "Train " in page.read_text()


def test_a_sweep_is_listed_before_it_is_run(files, capsys):
    code, out, _ = run(capsys, "sweep", "params=3_000,6_000", "participation=0.25,0.5", "--dry-run", "--json")
    rows = json.loads(out)
    assert code == 0 and [(row["params"], row["clients_per_round"]) for row in rows] == [
        (3000, 4), (3000, 8), (6000, 4), (6000, 8)]  # fmt: skip
    code, out, _ = run(capsys, "sweep", files / "good-sweep.toml", "clients=4", "--dry-run")
    assert code == 0 and out.strip().endswith("FLOPs in all") and out.count("4of4") == 4


def test_the_words_of_a_sweep_can_be_read_back(tmp_path):
    configs, text = configs_from(["params=3_000,6_000", "concentration=inf,0.1", "clients=8", "algorithm=fedprox"])
    (tmp_path / "sweep.toml").write_text(text)
    assert configs_from([str(tmp_path / "sweep.toml")])[0] == configs and len(configs) == 4


# ---------------------------------------------------------------------- start-up and help
HEAVY = ("torch", "pandas", "numpy", "scipy", "altair", "statsmodels", "transformers")


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["train", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom scalefed.cli import main\n"
        f"main({words!r})\nprint('heavy:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("heavy: []")


def test_the_package_imports_nothing_heavy():
    code = f"import sys, scalefed\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def commands():
    import typer

    return typer.main.get_command(app).commands


def test_the_commands_are_these():
    assert tuple(sorted(commands())) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_line_of_help_and_an_example(name, capsys):
    code, out, _ = run(capsys, name, "--help")
    first = commands()[name].help.split("\n")[0]
    assert code == 0 and len(first) <= 66 and first.endswith(".")
    assert f"scalefed {name} " in out and "Example:" in out
    for param in commands()[name].params:
        words = (
            getattr(param, "words", None) or type(commands()[name]).words.get(param.name) or getattr(param, "help", "")
        )
        assert words, f"{name}: {param.name} has no help"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_parses(name):
    """The options and words of an example exist; nothing is run."""
    command = commands()[name]
    examples = re.findall(rf"scalefed {name}(?: .*)?$", command.help, flags=re.MULTILINE)
    assert examples, f"{name} has no example"
    assert all(command.make_context(name, line.split()[2:]) for line in examples)


def test_every_command_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"scalefed {name}" not in text] == []


def test_python_m_is_the_same_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "scalefed", "--help"], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"COLUMNS": "80"},
    )  # fmt: skip
    assert "Usage: scalefed [OPTIONS] COMMAND" in done.stdout


def test_only_the_command_line_prints():
    found = [
        path.relative_to(ROOT)
        for path in (ROOT / "scalefed").rglob("*.py")
        if path.parent.name != "cli" and re.search(r"^\s*print\(", path.read_text(encoding="utf-8"), re.M)
    ]
    assert found == []


def test_demo_draws_kinds_that_exist():
    from scalefed.charts import KINDS

    assert set(CHARTS) <= set(KINDS)


# ---------------------------------------------------------------------- the whole way
@pytest.mark.slow
def test_train_sweep_evaluate_end_to_end(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEFED_CACHE", str(tmp_path / "cache"))
    runs = tmp_path / "runs" / "tiny"
    small = ["tokens=20000", "local_steps=5", "samples=2", "problem_count=4", "validation_tokens=2048"]
    code, out, err = run(capsys, "train", "params=3000", *small, "--runs", runs, "--json")
    first = json.loads(out)
    assert code == 0 and first["status"] == "completed" and "of" in err
    code, out, err = run(capsys, "sweep", "params=3000,6000", *small, "--runs", runs, "--workers", 1)
    assert code == 0 and f"2 runs in {runs}" in out
    assert len(load_runs(runs)) == 2 and first["run_id"] in set(load_runs(runs)["run_id"])
    assert (runs / "sweep.toml").is_file()
    code, out, _ = run(capsys, "evaluate", runs / first["run_id"], "--samples", 2, "--k", "1,2", "--json")
    assert code == 0 and {"pass@1", "pass@2", "problems", "samples_min", "samples_max"} <= set(json.loads(out))


def stored_runs_are_made(configs, *, runs, **_):
    shutil.copytree(ROOT / "runs" / "pilot", runs, dirs_exist_ok=True)


@pytest.mark.slow
def test_demo_ends_with_a_size_its_interval_and_a_page(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("scalefed.experiment.train_all", stored_runs_are_made)
    words = ("--clients", 16, "--participation", 0.25, "--law", "federated-coupled")
    code, out, err = run(capsys, "demo", "--out", tmp_path, *words)
    assert code == 0 and "its floor E held at the text's exact entropy" in err
    assert re.search(r"train \S+ parameters \(95% interval \S+ to \S+\) on \S+ tokens in all", out)
    assert "4 of 16 clients in each round" in out and out.strip().endswith(f"The page: {tmp_path / 'index.html'}")
    spans, leaves = map(float, re.search(r"a factor of ([\d.]+);.*should leave a factor of ([\d.]+):", out).groups())
    assert 1 < leaves < spans and f"scalefed next {tmp_path / 'fit.json'} --compute" in out
    assert "Train " in (tmp_path / "index.html").read_text() and (tmp_path / "fit.json").is_file()
    assert {path.name for path in (tmp_path / "charts").iterdir()} == {
        f"{kind}.{suffix}" for kind in (*CHARTS, "budget") for suffix in ("png", "json")}  # fmt: skip


@pytest.mark.slow
def test_a_demo_that_cannot_tell_says_so_and_still_shows_what_it_measured(capsys, tmp_path, monkeypatch):
    def nothing_varies(configs, *, runs, **_):
        for seed in range(8):
            make_run(runs, seed=seed, loss=2.0 + seed / 100)

    monkeypatch.setattr("scalefed.experiment.train_all", nothing_varies)
    code, out, err = run(capsys, "demo", "--out", tmp_path, "--law", "chinchilla")
    assert code == 2 and out == "" and "cannot determine" in err and "a longer demo may tell" in err
    assert "No size can be recommended" in (tmp_path / "index.html").read_text()


def test_tables_are_aligned(capsys):
    from scalefed.cli.output import tell_frame

    frame = pd.DataFrame({"params": [3105, 24_600], "loss": [1.23456789, math.nan], "status": ["completed", None]})
    tell_frame(frame, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [["3.1k", "1.235", "completed"], ["24.6k", "-", "-"]]
    assert len({len(line) for line in lines}) == 1


# ---------------------------------------------------------------------- what fits a terminal, and JSON everywhere
@pytest.mark.parametrize(
    "words",
    [
        "runs {f}/good.csv --show all",
        "compare {f}/good.csv --law chinchilla --law coupled",
        "optimum {f}/good.csv --law chinchilla --compute 1e12,1e13,1e14",
    ],
)
def test_tables_fit_eighty_columns(words, files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, *words.format(f=files).split())
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    monkeypatch.delenv("COLUMNS")
    _, wide, _ = run(capsys, *words.format(f=files).split())
    assert "..." not in wide and "_" in wide.splitlines()[0]  # for other programs: whole names, whole cells


def test_charts_and_reports_tell_json(files, capsys, tmp_path):
    words = ("chart", files / "good.csv", "loss", "--out", tmp_path / "loss.svg", "--json")
    code, out, _ = run(capsys, *words)
    told = json.loads(out)
    assert code == 0 and told["file"] == str(tmp_path / "loss.svg") and "encoding" in json.dumps(told["chart"])
    page = tmp_path / "page.html"
    code, out, _ = run(capsys, "report", files / "good.csv", "--law", "chinchilla", "--compute", "1e13", "--out", page,
                       "--json")  # fmt: skip
    told = json.loads(out)
    assert code == 0 and told["page"] == str(page) and told["question"]["compute"] == 1e13
    assert told["answer"]["params"] > 0 and told["refused"] is None
    code, _, err = run(capsys, "report", files / "good.csv", "clients=4")
    assert code == 2 and "give --compute with clients=4" in err


def test_counts_are_estimated_and_their_mistakes_answered(tmp_path, capsys):
    path = tmp_path / "counts.tsv"
    path.write_text("task_id\tn\tc\na\t20\t0\nb\t20\t7\nc\t20\t20\n")
    assert main(["evaluate", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    expected = estimate_pass_at_k(20, [0, 7, 20], (1, 10)).to_dict()
    assert {name: shown[name] for name in expected} == expected and shown["counts"] == "counts.tsv"
    assert main(["evaluate", str(path), "--k", "1,50"]) == 0
    said = capsys.readouterr()
    assert "counts of counts.tsv\n3 problems, 20 samples each" in said.out and "pass@50 left out" in said.err
    assert main(["evaluate", str(path), "--problems", "humaneval"]) == 2
    assert "--problems: counts.tsv holds counts" in capsys.readouterr().err
    path.write_text("run_id\tn\tc\nx\t20\t0\ny\t20\t7\n")
    assert main(["evaluate", str(path)]) == 2
    assert "counts of 2 runs (x, y, ...); give a table of one" in capsys.readouterr().err
    path.write_text("n\tc\n20\t.35\n")
    assert main(["evaluate", str(path)]) == 2
    assert "a rate? multiply it by samples" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
