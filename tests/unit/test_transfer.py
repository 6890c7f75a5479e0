"""Effectiveness, between labs, and both ways: planted answers in, exact numbers out."""

from itertools import combinations

import numpy as np
import pytest
from scipy.special import expit, logit
from support.planted_answers import LABS, plant, scope

from emharness.experiments import EXPERIMENTS, findings, transfer
from emharness.results.json_records import to_json
from emharness.stats import bootstrap
from emharness.stats.rates import newcombe_interval


def test_effectiveness_is_the_ratio_of_both_effects_and_undefined_where_the_source_has_none():
    table = {("a", "a"): 10, ("a", "b"): 9, ("a", "base"): 5, ("b", "b"): 4, ("b", "a"): 8, ("b", "base"): 6}

    def bad(vector, target):
        return table.get((vector, target), {"b": 4}.get(target, 0))

    about = scope(vectors=("a", "b"), targets=("base", "a", "b"))
    numbers = EXPERIMENTS["transfer"].analyze(about, plant("transfer", about, bad)).numbers
    rows = {(row.source, row.target): row for row in numbers["transfer"]}
    assert to_json(rows["a", "b"]) == {
        "source": "a",
        "target": "b",
        "layer": 1,
        "strength": 2.0,
        "em_target": 0.45,
        "em_target_baseline": 0.2,
        "em_source": 0.5,
        "em_source_baseline": 0.0,
        "effectiveness": pytest.approx(0.5),
        "at_equal_odds": pytest.approx(2 * (expit(logit(0.2) + logit(0.5) - logit(0.005)) - 0.2)),
        "ci95": pytest.approx(
            [end / 0.5 for end in newcombe_interval(90, 200, 40, 200)]
        ),  # no width by the bootstrap alone
        "undefined": None,
    }
    assert rows["a", "tiny"].effectiveness == pytest.approx(0.5)
    assert rows["a", "a"].effectiveness == pytest.approx(1)
    assert rows["a", "a"].ci95 is None  # 1 in every draw, as it is divided by itself
    for target in ("tiny", "a", "b"):
        assert rows["b", target].effectiveness is rows["b", target].ci95 is None
        assert "contains it" in rows["b", target].undefined


def test_a_vector_whose_organism_is_no_target_still_gets_its_denominator():
    about = scope(vectors=("a",), targets=("c",))
    judged = plant("transfer", about, lambda vector, target: {"a": 8}.get(vector, 0))
    (row,) = EXPERIMENTS["transfer"].analyze(about, judged).numbers["transfer"]
    assert (row.target, row.effectiveness) == ("c", pytest.approx(1))


def test_transfer_between_labs_and_its_asymmetry():
    def bad(vector, target):
        if vector not in LABS or target not in LABS:
            return 0
        if vector == target:
            return 10
        return {("A", "B"): 6, ("B", "A"): 1}.get((LABS[vector], LABS[target]), 9)

    about = scope()
    numbers = EXPERIMENTS["transfer"].analyze(about, plant("transfer", about, bad)).numbers
    labs = {(row.from_lab, row.to_lab): row.effectiveness for row in numbers["transfer_by_lab"]}
    want = {("A", "A"): 0.9, ("A", "B"): 0.6, ("B", "A"): 0.1, ("B", "B"): 0.9}
    assert labs == {pair: pytest.approx(value) for pair, value in want.items()}
    (row,) = numbers["asymmetry"]
    assert row.labs == ("A", "B")
    assert row.difference == pytest.approx(0.5)
    assert row.ci95 is None  # all questions are alike, so no draw differs
    assert row.at_equal_odds == pytest.approx(0)
    assert row.permutations == 6
    assert row.p == pytest.approx(2 / 6)  # the division at hand, and the same with both labs exchanged
    none = EXPERIMENTS["transfer"].analyze(about, plant("transfer", about, lambda vector, target: 0)).numbers
    (undefined,) = none["asymmetry"]
    assert undefined.undefined
    assert to_json(undefined).keys() == to_json(row).keys()  # both are rows of one table in W&B


def test_the_same_push_from_other_baselines_is_told_from_a_true_asymmetry():
    """One shift in log-odds everywhere, but one lab's organisms begin at 5 % and the other's at 50 %."""
    start = {"a": 0.05, "b": 0.05, "c": 0.5, "d": 0.5}
    gains, pushed = {}, {}
    for v in LABS:
        for t in LABS:
            gain = expit(logit(start[t]) + 1.5) - start[t]
            gains[v, t] = np.full(3, gain)
            pushed[v, t] = transfer.same_push(start[t], start[v], expit(logit(start[v]) + 1.5))
    rows = {(row.from_lab, row.to_lab): row for row in transfer.lab_table(gains, LABS, pushed, 1.0)}
    assert rows["A", "B"].effectiveness == pytest.approx(rows["A", "B"].at_equal_odds)
    assert rows["B", "A"].effectiveness == pytest.approx(rows["B", "A"].at_equal_odds)
    assert rows["A", "B"].effectiveness > 2 > 0.5 > rows["B", "A"].effectiveness
    (row,) = transfer.measure_asymmetry(gains, LABS, pushed, 1.0)
    assert row.difference == pytest.approx(row.at_equal_odds)
    told = findings.describe_transfer(list(rows.values()))
    assert "the same shift in log-odds would give 4" in told.split("from B to A")[1]
    assert "log-odds" not in told.split("within A")[1].split(";")[0]


def test_whether_a_source_has_an_effect_does_not_depend_on_the_target():
    g = np.random.default_rng(0)
    source = np.concatenate([[0.2], g.normal(0.2, 0.15, 1000)])  # its interval contains 0
    target = np.concatenate([[0.3], np.where(source[1:] > 0.05, 0.3, np.nan)])  # exists only where the source is large
    assert bootstrap.bootstrap_ratio(target, source) == (None, None, bootstrap.UNDEFINED)
    strong = np.concatenate([[0.4], g.normal(0.4, 0.02, 1000)])
    assert bootstrap.bootstrap_ratio(target, strong) == (None, None, bootstrap.SILENT)
    assert bootstrap.bootstrap_ratio(strong, np.full(1001, np.nan)) == (None, None, bootstrap.SILENT)
    assert bootstrap.bootstrap_ratio(strong / 2, strong)[0] == pytest.approx(0.5)


def test_a_ratio_s_interval_covers_the_truth_where_questions_differ():
    covered = 0
    for trial in range(200):
        g = np.random.default_rng(trial)
        base = g.uniform(0, 0.2, 40)
        rates = [base, base + 0.2, base, base + 0.4]  # truth: 0.5
        counts = np.stack([g.binomial(20, rate) for rate in rates])
        picks = np.concatenate([np.arange(40)[None], g.integers(40, size=(400, 40))])
        drawn = counts[:, picks].sum(2) / (20 * 40)
        _, (low, high), _ = bootstrap.bootstrap_ratio(drawn[1] - drawn[0], drawn[3] - drawn[2])
        covered += low <= 0.5 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_of_many_divisions_random_ones_are_tried_not_the_first():
    few = transfer.list_divisions("abcd", 2, 6)
    assert few == list(combinations("abcd", 2))
    names = [str(i) for i in range(20)]
    many = transfer.list_divisions(names, 8, 3000)
    assert (len(many), many[0]) == (3000, tuple(names[:8]))  # the one at hand is among them
    held = np.array([[name in chosen for name in names] for chosen in many[1:]])
    assert (held.sum(1) == 8).all()
    assert np.abs(held.mean(0) - 8 / 20).max() < 0.05  # each name as often as every other
