"""The scripts of the page answer as Python does: sizes, intervals, loss, pass@k, notes, at random settings."""

import itertools
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import scalefed as sf
from scalefed.errors import FitError, ScalefedError
from scalefed.laws.simulate import simulate_runs
from scalefed.report.numbers import planner_numbers
from scalefed.report.page import SCRIPTS, script

ROOT = Path(__file__).parents[2]
SHARE = 0.005  # what the page may be off
NUMBERS = ("params", "tokens", "rounds", "loss", "compute", "local_steps")
ENDS = ("params", "tokens", "rounds", "loss", "pass_at_1")


def made(law, truth, *, fixed=None, resamples=120, noise=0.01, **grid):
    """A fit of a law to runs that follow it."""
    rows = pd.DataFrame([dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())])
    for name, value in {"clients": 64, "clients_per_round": 1, "batch_tokens": 512, "local_steps": 25}.items():
        rows[name] = rows.get(name, value)
    rows["rounds"] = rows["tokens"] / (rows["clients_per_round"] * rows["batch_tokens"] * rows["local_steps"])
    frame = simulate_runs(law, truth, rows, noise=noise, seed=1)
    frame["run_id"] = [f"run-{i}" for i in range(len(frame))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sf.fit(frame, law, fixed=fixed, resamples=resamples)


SIZES = {"params": [1e5, 4e5, 2e6, 1e7], "tokens": [4e7, 2e8, 1e9]}
CHINCHILLA = {"E": 1.2, "A": 80.0, "a": 0.33, "B": 300.0, "b": 0.31}


def fits():
    """Name -> a fit; each of another kind of law."""
    many = {"clients_per_round": [1, 4, 16]}
    repeats = "E + A/params^a + B/repeats(tokens, unique_tokens, R)^b"
    drift = {**CHINCHILLA, "g": 0.5, "F": 0.3, "s": 1.0, "h": 0.4, "r": 0.5}
    yield "chinchilla", lambda: made("chinchilla", CHINCHILLA, **SIZES)
    yield (
        "federated",
        lambda: made("federated", {**CHINCHILLA, "g": 0.5, "s": 0.8}, **SIZES, **many, skew=[0, 0.3, 0.8]),
    )
    yield "coupled", lambda: made("coupled", {"E": 1.1, "A": 40, "a": 0.3, "B": 200, "b": 0.33, "c": 1.2}, **SIZES)
    yield "repeats", lambda: made(repeats, {**CHINCHILLA, "R": 6.0}, **SIZES, unique_tokens=[1e7, 1e8])
    rising = "E + A/params^a + B/tokens^b + F*tokens^0.5/params^0.1"
    yield "rising", lambda: made(rising, {**CHINCHILLA, "F": 3e-5}, fixed={"F": 3e-5}, **SIZES)
    divided = "E + A/(params^a + P) + B/tokens^b"
    yield (
        "divided",
        lambda: made(divided, {"E": 1.2, "A": 80, "a": 0.33, "P": 30, "B": 300, "b": 0.31}, fixed={"P": 30}, **SIZES),
    )
    steps = {"local_steps": [5, 25, 125], "clients_per_round": [4, 16], "skew": [0.0, 0.5]}
    yield "drift", lambda: made("federated-drift", drift, **SIZES, **steps)
    for name in ("grid", "pilot", "stateless", "study"):
        yield name, lambda name=name: sf.load_fit(ROOT / "fits" / f"{name}.json")


FITS = dict(fits())
PER_FIT = 20  # of eleven fits: 220 settings in all


def settings(fit, stream, count):
    """Random questions that may be asked of a fit, under one or several limits, or for a goal."""
    columns = set(fit.law.columns)
    largest = float((6 * fit.runs["params"] * fit.runs["tokens"]).max())
    for _ in range(count):
        ask = {"compute": largest * 10 ** stream.uniform(-2, 2), "level": float(stream.choice([0.8, 0.9, 0.95]))}
        ask["clients"] = int(2 ** stream.uniform(2, 10))
        ask["clients_per_round"] = max(1, int(ask["clients"] * stream.uniform(0.02, 1)))
        ask["local_steps"] = int(2 ** stream.uniform(1, 8))
        if "skew" in columns:
            ask["skew"] = round(float(stream.uniform(0, 1)), 3)
        if "unique_tokens" in columns:
            ask["unique_tokens"] = 10 ** stream.uniform(7.5, 9)
        rounds = ask["compute"] / (6 * 1e6 * ask["clients_per_round"] * 512 * ask["local_steps"])
        more = {
            "memory": 10 ** stream.uniform(7, 9.5),
            "bytes_per_client": 8e5 * rounds * 10 ** stream.uniform(0, 2),
            "rounds": max(1.0, rounds * 10 ** stream.uniform(-1, 1.5)),
            "tokens": 10 ** stream.uniform(6.5, 10),
            "params": 10 ** stream.uniform(4, 7),
            "sampled_tokens": 10 ** stream.uniform(4, 7),
            "compute_per_client": ask["compute"] / ask["clients"] * 10 ** stream.uniform(-0.5, 0.5),
        }
        for name in stream.choice(list(more), size=int(stream.integers(0, 3)), replace=False):
            ask[str(name)] = float(more[str(name)])
        if stream.random() < 0.25:
            ask |= {"seconds": 10 ** stream.uniform(4, 7), "flops_per_second": 10 ** stream.uniform(9, 12),
                    "bandwidth": 10 ** stream.uniform(5, 8), "latency": 10 ** stream.uniform(-1, 1)}  # fmt: skip
        if stream.random() < 0.2:
            ask = {name: value for name, value in ask.items() if name not in ("compute", "sampled_tokens", "tokens")}
            estimate = fit.params.get("E", 1.0)
            goal = {"loss": float(estimate * stream.uniform(1.02, 1.6))}
            if fit.link is not None and stream.random() < 0.5:
                goal = {"pass_at_k": float(stream.uniform(0.05, 0.9)), "k": int(stream.choice([1, 10]))}
            ask |= goal
        yield ask


def python_answer(fit, ask):
    """What Python says: the answer, or the kind of refusal."""
    goal = {"loss", "pass_at_k"} & set(ask)
    try:
        return fit.least_compute(**ask) if goal else fit.plan(**ask)
    except FitError:
        return None


@pytest.fixture(scope="module")
def planner(browser, tmp_path_factory):
    """A function that asks the scripts many questions of one fit."""
    folder = tmp_path_factory.mktemp("planner")

    def ask_all(name, fit, asks):
        data = planner_numbers(fit, {"compute": 1e15, "clients": 64, "clients_per_round": 4, "skew": 0.0,
                                     "local_steps": 25, "unique_tokens": 1e8})  # fmt: skip
        file = folder / f"{name}.html"
        file.write_text(f"<meta charset=utf-8><script>{script(SCRIPTS[:5])}</script>", encoding="utf-8")
        page = browser.open(file.as_uri())
        page.evaluate(f"globalThis.data = readNumbers({json.dumps(json.dumps(data, allow_nan=False))}); 0")
        loop = (
            f"({json.dumps(asks)}).map((ask) => {{ try {{ return plan(data, ask); }}"
            " catch (error) { if (!(error instanceof Refusal)) throw error; return error.message; } })"
        )
        found = json.loads(page.evaluate(f"JSON.stringify({loop}, (key, x) => x === Infinity ? 'inf' : x)"))
        assert page.complaints() == []
        page.close()
        return found

    return ask_all


@pytest.mark.parametrize("name", FITS)
def test_the_page_answers_as_python_does(name, planner):
    fit = FITS[name]()
    asks = list(settings(fit, np.random.default_rng(len(name)), PER_FIT))
    if name == "study":  # the text of the clients is all the text
        for ask in asks[::3]:
            ask["unique_tokens_per_client"] = ask.pop("unique_tokens") / ask["clients"]
    answers = planner(name, fit, asks)
    told = 0
    for ask, theirs in zip(asks, answers, strict=True):
        ours = python_answer(fit, ask)
        if ours is None or isinstance(theirs, str):
            assert ours is None and isinstance(theirs, str), (ask, ours, theirs)
            continue
        told += 1
        agree(ask, ours, theirs)
    assert told >= PER_FIT // 4  # the questions go far beyond the runs in every column, where some fits cannot tell


def agree(ask, ours, theirs):
    """Raise unless two answers to one question are the same to half a percent."""
    for name in (*NUMBERS, *(f"{name}_{end}" for name in ENDS for end in ("low", "high"))):
        mine, other = getattr(ours, name), theirs.get(name)
        other = math.inf if other == "inf" else other
        if not math.isfinite(mine):
            assert other is None or other == mine, (name, ask, mine, other)
            continue
        assert other == pytest.approx(mine, rel=SHARE, abs=1e-4), (name, ask, mine, other)
    for k, values in ours.pass_at_k.items():
        assert theirs["pass_at_k"][str(k)] == pytest.approx(values, rel=SHARE, abs=1e-4), (k, ask)
    floor = 1e-6 * ours.loss
    assert {n for n in ours.binding if ours.shadow_prices[n] > floor} == {
        n for n in theirs["binding"] if theirs["shadow_prices"][n] > floor
    }, (ask, ours.shadow_prices, theirs["shadow_prices"])
    for limit in ours.binding:
        assert theirs["shadow_prices"].get(limit, 0) == pytest.approx(ours.shadow_prices[limit], rel=0.02, abs=floor)
    if ours.regret > floor:
        assert theirs["regret"] == pytest.approx(ours.regret, rel=0.1, abs=floor), ask
    assert [words(note) for note in theirs["notes"]] == [words(note) for note in ours.notes], ask


def words(note):
    """A note without its numbers, which may differ in the last digit."""
    return "".join("#" if letter.isdigit() else letter for letter in note).replace("#", "").replace(".", "")


def test_a_law_or_a_link_that_cannot_answer_refuses_in_both(planner):
    fit = FITS["chinchilla"]()
    asks = [{"compute": 1e15, "loss": 0.5}, {"tokens": 1e9, "pass_at_k": 0.5, "k": 1}, {"params": 1e6}]
    answers = planner("refused", fit, asks)
    assert all(isinstance(answer, str) for answer in answers)
    for ask in asks:
        with pytest.raises(ScalefedError):
            if {"loss", "pass_at_k"} & set(ask):
                fit.least_compute(**{n: v for n, v in ask.items() if n != "compute"})
            else:
                fit.plan(**ask)
