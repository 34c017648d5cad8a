"""Paired effects: equal settings are paired, the arithmetic is the mean over pairs, nothing is paired by accident."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from scalefed.analysis.effects import at_equal_loss, paired_effects
from scalefed.errors import DataError


def runs():
    """Three sizes, iid and skewed, one and four clients; skew adds 10% to the loss and takes 0.1 from pass@1."""
    rows = []
    for params in (1_000, 2_000, 4_000):
        for clients, momentum in ((1, None), (4, 0.5)):
            for concentration in (np.inf, 0.1):
                skewed = concentration < 1
                loss = 100 / params**0.5 * (1.1 if skewed else 1.0) * (1.2 if clients == 4 else 1.0)
                rows.append({"params": params, "tokens": 1e6, "clients_per_round": clients,
                             "server_momentum": momentum, "concentration": concentration, "loss": loss,
                             "pass_at_1": 0.3 - 0.1 * skewed})  # fmt: skip
    return pd.DataFrame(rows)


def test_a_constant_effect_is_found_exactly():
    (row,) = paired_effects(runs(), "concentration").to_dict("records")
    assert row["pairs"] == 6 and row["from"] == np.inf and row["to"] == 0.1
    assert row["estimate"] == pytest.approx(0.1) and row["low"] == pytest.approx(0.1) == row["high"]
    (row,) = paired_effects(runs(), "concentration", of="pass_at_1").to_dict("records")
    assert row["estimate"] == pytest.approx(-0.1)


def test_settings_that_follow_the_factor_do_not_prevent_pairs():
    table = paired_effects(runs(), "clients_per_round", by="concentration")
    assert table["pairs"].tolist() == [3, 3] and table["estimate"].tolist() == pytest.approx([0.2, 0.2])


def test_sizes_pair_although_their_learning_rate_follows():
    frame = runs().assign(learning_rate=lambda frame: 0.1 / frame["params"] ** 0.5)
    table = paired_effects(frame, "params")
    assert table["pairs"].tolist() == [4, 4]
    assert table["estimate"].tolist() == pytest.approx([2**-0.5 - 1, 4**-0.5 - 1])


def test_the_interval_is_that_of_a_paired_t_test():
    frame = runs()
    frame["pass_at_1"] += np.random.default_rng(0).normal(0, 0.02, len(frame))
    (row,) = paired_effects(frame, "concentration", of="pass_at_1", level=0.9).to_dict("records")
    wide = frame.pivot_table(index=["params", "clients_per_round"], columns="concentration", values="pass_at_1")
    interval = ttest_rel(wide[0.1], wide[np.inf]).confidence_interval(0.9)
    assert row["estimate"] == pytest.approx((wide[0.1] - wide[np.inf]).mean())
    assert [row["low"], row["high"]] == pytest.approx([interval.low, interval.high])


def test_one_pair_has_an_estimate_but_no_interval():
    (row,) = paired_effects(runs().query("params == 1_000 and clients_per_round == 1"), "concentration").to_dict(
        "records"
    )
    assert (
        row["pairs"] == 1 and row["estimate"] == pytest.approx(0.1) and np.isnan(row["low"]) and np.isnan(row["high"])
    )


def test_a_start_can_be_named_and_settings_can_follow():
    frame = runs().query("clients_per_round == 1").assign(algorithm="fedavg", synthetic_share=0.1, arm="none")
    ties = [frame.assign(algorithm="synthetic-sharing", synthetic_share=share, arm=f"{share:.0%}",
                           loss=frame["loss"] * (1 - share)) for share in (0.05, 0.2)]  # fmt: skip
    table = paired_effects(pd.concat([frame, *ties]), "arm", start="none", follows=("algorithm", "synthetic_share"))
    assert table["to"].tolist() == ["20%", "5%"] and table["from"].unique().tolist() == ["none"]
    assert table["estimate"].tolist() == pytest.approx([-0.2, -0.05]) and table["pairs"].tolist() == [6, 6]
    with pytest.raises(DataError, match="no run has arm = 'nothing'; there are 20%, 5%, none"):
        paired_effects(pd.concat([frame, *ties]), "arm", start="nothing")


def test_questions_without_an_answer_are_refused():
    with pytest.raises(DataError, match="no column 'skews'"):
        paired_effects(runs(), "skews")
    alone = runs().query("clients_per_round == 1")
    with pytest.raises(DataError, match="no two runs differ in clients_per_round alone"):
        paired_effects(alone, "clients_per_round")


# -- at equal loss -----------------------------------------------------------------------------------------------------
def solved(seed: int, *, tokens: float = 0.0, skew: float = 0.0, noise: float = 0.1):
    """Runs and counts whose log odds follow the loss, and beside it tokens (a decade) and skew by what is given."""
    rng = np.random.default_rng(seed)
    rows, parts = [], []
    for number, (params, budget, mixed) in enumerate(
        (p, d, s) for p in np.geomspace(1e3, 1e6, 6) for d in np.geomspace(1e5, 1e8, 5) for s in (0.0, 0.3, 0.6)
    ):
        loss = 1 + 20 * params**-0.3 + 20 * budget**-0.3 + 0.3 * mixed
        odds = 1 - 1.5 * np.log(loss - 1) + tokens * np.log10(budget) + skew * mixed + noise * rng.standard_normal()
        rows.append({"run_id": f"r{number}", "params": params, "tokens": budget, "skew": mixed, "loss": loss})
        chance = 1 / (1 + np.exp(-odds + 6 * tokens))
        parts.append(pd.DataFrame({"run_id": f"r{number}", "task_id": range(20), "samples": 20,
                                   "correct": rng.binomial(20, chance, size=20)}))  # fmt: skip
    return pd.DataFrame(rows), pd.concat(parts, ignore_index=True)


SETTINGS = ("params", "tokens", "skew")


def test_what_matters_beside_the_loss_is_found_and_nothing_else():
    runs, counts = solved(0, tokens=np.log(2), skew=np.log(3))
    found = at_equal_loss(runs, counts, columns=SETTINGS, floor=1.0)
    assert found.loc["tokens", "odds_ratio"] == pytest.approx(2, rel=0.1)
    assert found.loc["skew", "odds_ratio"] == pytest.approx(3, rel=0.2)
    assert (found["low"] < found["odds_ratio"]).all() and (found["odds_ratio"] < found["high"]).all()
    assert found.loc["tokens", "p_value"] < 1e-6 and found.loc["params", "low"] < 1 < found.loc["params", "high"]


def test_intervals_hold_one_where_the_loss_tells_all():
    inside = []
    for seed in range(40):
        found = at_equal_loss(*solved(seed), columns=SETTINGS, floor=1.0)
        inside += ((found["low"] < 1) & (found["high"] > 1)).tolist()
    assert 0.88 <= np.mean(inside) <= 0.99


def test_order_and_runs_without_counts_do_not_matter():
    runs, counts = solved(0, tokens=0.5)
    more = pd.concat([runs.sample(frac=1, random_state=0), runs.head(3).assign(run_id=["a", "b", "c"])])
    plain, other = (at_equal_loss(one, counts, columns=SETTINGS, floor=1.0) for one in (runs, more))
    pd.testing.assert_frame_equal(plain, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words", "match"),
    [
        ({}, {"columns": ("parms",)}, "no column 'parms'.*params"),
        ({"tokens": 1e6}, {}, "tokens is 1,000,000 in every run"),
        ({"tokens": 0.0}, {}, "tokens must be positive"),
        ({}, {"floor": 5.0}, "runs have no loss above the floor 5"),
        ({"run_id": "other"}, {}, "none of the runs has success counts"),
    ],
)
def test_at_equal_loss_refuses_what_it_cannot_use(change, words, match):
    runs, counts = solved(0)
    with pytest.raises(DataError, match=match):
        at_equal_loss(runs.assign(**change), counts, **{"columns": SETTINGS, "floor": 1.0, **words})


def test_at_equal_loss_refuses_too_few_settings():
    runs, counts = solved(0)
    with pytest.raises(DataError, match="different settings are too few for 7 coefficients, needed are 21"):
        at_equal_loss(runs.head(20), counts, columns=SETTINGS, floor=1.0)
