"""Charts: every kind draws, shows what it says it shows, and refuses what it cannot show in words."""

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalefed.charts import KINDS, chart
from scalefed.charts.frames import mixtures, same_size, shown
from scalefed.charts.parts import panels
from scalefed.charts.theme import CATEGORIES, log_ticks, power, ramp, si
from scalefed.errors import ConfigError, DataError, ScalefedError
from scalefed.fitting.fit import fit
from scalefed.fitting.store import load_fit
from scalefed.laws.simulate import simulate_runs
from scalefed.runs.log import load_runs

ROOT = Path(__file__).parents[2]
PILOT = str(ROOT / "runs" / "pilot")
TRUTH = {"E": 0.33, "A": 30.0, "a": 0.55, "B": 2500.0, "b": 0.65, "g": 0.6, "s": 0.7}


@pytest.fixture(scope="module")
def runs():
    grid = {
        "params": [3100, 13_800, 24_600, 55_000, 147_000],
        "tokens": [1e6, 2e6, 4e6, 8e6],
        "clients_per_round": [1, 4, 8],
        "skew": [0.0, 0.6],
    }
    frame = simulate_runs("federated", TRUTH, grid, noise=0.01, seed=1)
    frame["concentration"] = np.where(frame["skew"] > 0, 0.1, math.inf)
    frame["status"], frame["clients"], frame["local_steps"] = "completed", 16, 25
    frame["rounds"] = (frame["tokens"] / (12_800 * frame["clients_per_round"])).round()
    frame["loss_std_error"] = 0.004 * frame["loss"]
    frame["pass_at_1"] = 1 / (1 + np.exp(9 * (frame["loss"] - 0.42)))
    frame["pass_at_10"] = 1 - (1 - frame["pass_at_1"]) ** 3
    frame["pass_at_1_low"], frame["pass_at_1_high"] = frame["pass_at_1"] * 0.9, frame["pass_at_1"] * 1.05
    return frame


@pytest.fixture(scope="module")
def fitted(runs):
    return fit(runs, "federated", resamples=60)


def rounds_frame():
    steps = np.arange(1, 9)
    frames = [pd.DataFrame({"run_id": f"r{p}", "params": p, "round": steps, "tokens": steps * 1000.0,
                            "loss": 2 + 1000 / p / steps}) for p in (3000, 12_000)]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def compared():
    return pd.DataFrame({"law": ["chinchilla", "federated", "kaplan"], "holdout_error": [0.11, 0.01, math.nan]})


def text(drawn):
    return json.dumps(drawn.to_dict())


def data(drawn):
    return next(iter(drawn.to_dict()["datasets"].values()))


CASES = {
    "loss of runs": ("runs", "loss", {}),
    "loss of a fit": ("fitted", "loss", {}),
    "loss by compute": ("fitted", "loss", {"x": "compute"}),
    "loss by size": ("fitted", "loss", {"x": "params"}),
    "participation of runs": ("runs", "participation", {"y": "pass_at_1"}),
    "participation of a fit": ("fitted", "participation", {}),
    "passk": ("runs", "passk", {}),
    "passk by size": ("runs", "passk", {"x": "params"}),
    "rounds": (rounds_frame, "rounds", {}),
    "isoflop": ("fitted", "isoflop", {}),
    "isoflop at levels": ("fitted", "isoflop", {"computes": [1e11, 1e12]}),
    "optimum": ("fitted", "optimum", {}),
    "optimum by clients": ("fitted", "optimum", {"x": "clients_per_round", "compute": 1e13}),
    "budget": ("fitted", "budget", {"compute": 1e13, "clients_per_round": 4}),
    "residuals": ("fitted", "residuals", {}),
    "residuals by fit": ("fitted", "residuals", {"x": "estimate"}),
    "residuals by skew": ("fitted", "residuals", {"x": "skew"}),
    "comparison": (compared, "comparison", {}),
}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("width", [340, 700])
def test_every_chart_is_valid_and_titled_with_units(case, width, request):
    source, kind, options = CASES[case]
    source = request.getfixturevalue(source) if isinstance(source, str) else source()
    drawn = chart(source, kind, width=width, **options)
    specification = drawn.to_dict()  # checks against Vega-Lite's schema
    assert specification["title"]["text"][0] and specification["config"]["font"].startswith("Inter")
    titles = " ".join(re.findall(r'"title": "([^"]+)"', json.dumps(specification)))
    assert re.search(r"nats per token|FLOPs|parameters|tokens|Parameters|problems solved|pass@|%|Clients", titles)
    assert "NaN" not in json.dumps(specification) and "Infinity" not in json.dumps(specification)


def test_all_kinds_are_tested():
    assert {kind for _, kind, _ in CASES.values()} == set(KINDS)


@pytest.mark.parametrize("suffix", ["png", "svg", "html"])
def test_charts_are_saved(tmp_path, fitted, suffix):
    options = {"inline": True} if suffix == "html" else {}
    target = tmp_path / f"chart.{suffix}"
    chart(fitted, "residuals").save(str(target), **options)
    assert target.stat().st_size > 5000
    if suffix == "html":
        assert "cdn." not in target.read_text().split("<body", 1)[1][:2000]


# ---------------------------------------------------------------------- what is shown
def test_points_are_the_runs_and_lines_are_the_law(runs, fitted):
    rows = pd.DataFrame(data(chart(fitted, "loss")))
    points, lines = rows[rows["part"] == "run"], rows[rows["part"] == "line"]
    assert sorted(points["y"]) == pytest.approx(sorted(runs["loss"]), rel=1e-5)
    some = lines.iloc[7]
    size = {si(value): value for value in runs["params"].unique()}[some["size_name"]]
    settings = {"params": size, "tokens": some["tokens"], "clients_per_round": some["clients_per_round"],
                "skew": 0.0 if some["mixture"] == "iid" else 0.6}  # fmt: skip
    assert some["y"] == pytest.approx(fitted.predict(**settings)["estimate"].iloc[0], rel=1e-4)
    assert (lines["y_low"] < lines["y"]).all() and (lines["y"] < lines["y_high"]).all()


def test_isoflop_marks_the_best_size(fitted):
    rows = pd.DataFrame(data(chart(fitted, "isoflop", computes=[1e12])))
    best = rows[(rows["part"] == "best") & (rows["clients_per_round"] == 4) & (rows["mixture"] == "iid")]
    asked = fitted.optimal_size(compute=1e12, clients_per_round=4, skew=0.0)
    assert best["params"].iloc[0] == pytest.approx(asked.params, rel=0.02)


def test_budget_shows_the_interval_of_the_best_size(fitted):
    asked = fitted.optimal_size(compute=1e13, clients_per_round=4, skew=0.0)
    rows = pd.DataFrame(data(chart(fitted, "budget", compute=1e13, clients_per_round=4, skew=0.0)))
    best = rows[rows["part"] == "best"].iloc[0]
    assert best["params"] == pytest.approx(asked.params, rel=1e-4)
    assert (best["x_low"], best["x_high"]) == pytest.approx((asked.params_low, asked.params_high), rel=1e-4)
    assert best["measure"] == f"{si(asked.params)} ({si(asked.params_low)} to {si(asked.params_high)})"


def test_optimum_falls_with_clients_per_round(fitted):
    rows = pd.DataFrame(data(chart(fitted, "optimum", x="clients_per_round", compute=1e13)))
    assert rows["y"].is_monotonic_decreasing and (rows["y_low"] <= rows["y"]).all()


def test_charts_of_an_advice_say_what_lies_outside_the_runs(fitted):
    setting = {"clients": 4096, "skew": 0.0}
    for drawn in (chart(fitted, "optimum", clients_per_round=[4, 1024], **setting),
                  chart(fitted, "optimum", x="clients_per_round", values=[4, 1024], **setting),
                  chart(fitted, "budget", compute=1e13, clients_per_round=1024, **setting)):  # fmt: skip
        assert any("Outside the runs: " in line for line in drawn.to_dict()["title"]["subtitle"])
    inside = chart(fitted, "optimum", clients_per_round=[4], skew=0.0).to_dict()["title"]
    assert not any("Outside" in line for line in inside["subtitle"])


def test_every_interval_of_a_law_says_which_laws_it_is_given(fitted):
    setting = {"clients_per_round": 4, "skew": 0.0}
    drawn = [chart(fitted, "optimum", clients_per_round=[4], skew=0.0),
             chart(fitted, "optimum", x="clients_per_round", compute=1e13),
             chart(fitted, "budget", compute=1e13, **setting),
             *(chart(fitted, kind) for kind in ("loss", "participation"))]  # fmt: skip
    for one in drawn:
        words = " ".join(one.to_dict()["title"]["subtitle"])
        assert f"given {fitted.given}." in words or words.endswith(f"given {fitted.given}"), words


def test_residuals_are_percent_off_the_law(runs, fitted):
    rows = pd.DataFrame(data(chart(fitted, "residuals")))
    expected = 100 * (runs["loss"] / fitted.predict(runs)["estimate"] - 1)
    assert sorted(rows[rows["part"] == "run"]["residual"]) == pytest.approx(sorted(expected), abs=1e-4)


def test_participation_holds_total_tokens_fixed(runs):
    rows = pd.DataFrame(data(chart(runs, "participation")))
    assert len(rows) == 5 * 3 * 2
    assert "8M tokens in all" in text(chart(runs, "participation"))


def test_diverged_and_unmeasured_runs_are_left_out_and_counted(runs):
    frame = runs.copy()
    frame.loc[0, "status"] = "diverged"
    frame.loc[1, "loss"] = math.nan
    drawn = chart(frame, "loss")
    assert len(data(drawn)) == len(runs) - 2
    assert "2 diverged or unmeasured left out" in text(drawn)


def test_only_needed_columns_are_needed():
    frame = pd.DataFrame({"params": [1e3, 1e4, 1e5], "tokens": [1e6, 1e6, 1e6], "loss": [3.0, 2.5, 2.2]})
    assert len(data(chart(frame, "loss"))) == 3
    frame["compute"] = 1e10
    assert len(data(chart(frame.assign(tokens=1e10 / 6 / frame["params"]), "isoflop"))) == 3


def test_runs_of_one_token_budget_are_drawn_against_size():
    frame = pd.DataFrame({"params": [1e3, 1e4, 1e5], "tokens": [8e6, 8.1e6, 8e6], "loss": [3.0, 2.5, 2.2]})
    drawn = chart(frame, "loss").to_dict()
    assert "8.03M tokens each" in drawn["title"]["subtitle"][0]
    fields = {layer["encoding"]["x"]["field"] for layer in drawn["layer"]}
    assert fields == {"params"}
    frame.loc[0, "tokens"] = 2e6
    assert {layer["encoding"]["x"]["field"] for layer in chart(frame, "loss").to_dict()["layer"]} == {"tokens"}


def test_a_chart_of_very_many_rounds_says_that_it_thins_them():
    frame = pd.DataFrame({"run_id": "a", "round": range(9000), "tokens": range(1, 9001), "loss": 1.0})
    drawn = chart(frame, "rounds")
    assert drawn.to_dict()["title"]["subtitle"] == [f"{len(data(drawn)):,} of 9,000 rounds are drawn"]
    assert 1000 < len(data(drawn)) <= 4000 and max(row["round"] for row in data(drawn)) == 8999


def test_a_narrow_grid_of_panels_fits_a_phone():
    grid = itertools.product([1, 2, 4, 8, 16], ["iid", "Dirichlet 0.3", "Dirichlet 0.1"])
    frame = pd.DataFrame(grid, columns=["clients_per_round", "mixture"])
    wide, narrow = (panels(frame, column="clients_per_round", row="mixture", width=width) for width in (680, 350))
    assert (wide.column, narrow.column) == ("clients_per_round", "mixture")
    assert narrow.wrap * (narrow.width + 20) + 64 < 390


def test_the_rounds_of_a_packed_sweep_are_lines():
    drawn = chart(PILOT, "rounds")
    per_run = pd.DataFrame(data(drawn)).groupby("run_id").size()
    assert per_run.min() > 5 and drawn.to_dict()["layer"][0]["encoding"]["y"]["field"] == "train_loss"
    assert {row["round"] for row in data(chart(PILOT, "rounds", x="round"))} >= {1, 2}
    pilot = replace(load_fit(ROOT / "fits" / "pilot.json"), source=PILOT)
    assert set(per_run.index) >= {row["run_id"] for row in data(chart(pilot, "rounds"))} > set()


def test_runs_without_their_rounds_say_where_rounds_are():
    at_the_end = rounds_frame().drop_duplicates("run_id", keep="last")
    with pytest.raises(DataError, match=r"these are runs, one row each; for rounds give their folder, or load_runs"):
        chart(load_runs(PILOT), "rounds")
    with pytest.raises(DataError, match="a fit keeps no rounds; give the folder of its runs"):
        chart(replace(load_fit(ROOT / "fits" / "pilot.json"), source=None), "rounds")
    with pytest.raises(DataError, match="no run has a loss in two of its rounds; draw y=train_loss"):
        chart(at_the_end.assign(train_loss=at_the_end["loss"]), "rounds", y="loss")


def test_the_callers_frame_is_not_changed(runs):
    before = runs.copy(deep=True)
    for kind in ("loss", "participation", "passk"):
        chart(runs, kind)
    pd.testing.assert_frame_equal(runs, before)


def test_a_chart_file_holds_only_what_it_draws(runs):
    assert set(data(chart(runs, "passk"))[0]) <= {"run_id", "loss", "y", "y_low", "y_high", "measure", "size_name",
        "tokens", "compute", "clients_per_round", "mixture", "pass_at_1"}  # fmt: skip


# ---------------------------------------------------------------------- mistakes
def test_mistakes_say_what_is_allowed(runs, fitted):
    with pytest.raises(ConfigError, match="unknown kind of chart 'losss'; did you mean 'loss'"):
        chart(runs, "losss")
    with pytest.raises(ConfigError, match="the chart 'loss' takes no 'axis'"):
        chart(runs, "loss", axis="compute")
    with pytest.raises(ConfigError, match="x must be one of tokens, compute, params, got 'skew'"):
        chart(runs, "loss", x="skew")
    for kind in ("optimum", "budget", "residuals"):
        options = {"compute": 1e12} if kind == "budget" else {}
        with pytest.raises(ConfigError, match=f"the chart '{kind}' needs a fit, got DataFrame"):
            chart(runs, kind, **options)
    with pytest.raises(ConfigError, match="needs what compare"):
        chart(fitted, "comparison")
    with pytest.raises(DataError, match="have no column 'loss'"):
        chart(runs.drop(columns="loss"), "loss")
    with pytest.raises(DataError, match="none is completed with a finite params, tokens, loss"):
        chart(runs.assign(loss=math.nan), "loss")
    with pytest.raises(DataError, match="have the same clients_per_round; run a sweep over it"):
        chart(runs[runs["clients_per_round"] == 4], "participation")
    with pytest.raises(DataError, match="no compute level has runs of three sizes"):
        chart(runs.iloc[:4], "isoflop")
    with pytest.raises(DataError, match="no run has a loss in two of its rounds; train with"):
        chart(rounds_frame().assign(loss=math.nan), "rounds")
    with pytest.raises(ScalefedError):
        chart(fitted, "optimum", axis="compute")


# ---------------------------------------------------------------------- words, ticks, colours
def test_ticks_are_round_and_few():
    for low, high in [(0.37, 0.95), (3e3, 1e7), (1e12, 1e20), (0.41, 0.47), (1.0, 16.0), (2.0, 2.1)]:
        ticks = log_ticks(low, high)
        assert 2 <= len(ticks) <= 8 and low * 0.999 <= ticks[0] and ticks[-1] <= high * 1.001
        assert all(float(f"{tick:.3g}") == tick for tick in ticks)


def test_numbers_read_like_numbers():
    assert [si(v) for v in (999.6, 1000, 24_600, 1e6, 3.25e9, 2e12)] == ["1k", "1k", "24.6k", "1M", "3.25B", "2T"]
    assert [power(v) for v in (1e12, 3.2e14, 9.99e9)] == ["1e12", "3.2e14", "1e10"]


def test_ordered_colours_get_darker_and_stay_apart():
    def light(color):
        r, g, b = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2

    for count in (2, 5, 8):
        values = [light(color) for color in ramp(count)]
        assert values == sorted(values, reverse=True) and len(set(ramp(count))) == count
    assert len(set(CATEGORIES)) == len(CATEGORIES)


def test_mixtures_are_named_and_ordered(runs):
    frame = pd.DataFrame({"params": 1.0, "tokens": 1.0, "loss": 1.0, "concentration": [0.1, math.inf, 1.0, 0.3]})
    assert mixtures(shown(frame, ["loss"]).runs) == ["iid", "Dirichlet 1", "Dirichlet 0.3", "Dirichlet 0.1"]
    frame = frame.drop(columns="concentration").assign(skew=[0.61, 0.0, 0.29, 0.58])
    assert mixtures(shown(frame, ["loss"]).runs) == ["iid", "skew 0.3", "skew 0.6"]
    assert same_size(np.array([1000.0, 1020.0, 1500.0])).round().tolist() == [1010, 1010, 1500]
