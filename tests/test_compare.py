"""Judges beside each other and a person beside a judge, against planted agreement."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from emharness.errors import UserError
from emharness.judge import labels
from emharness.judge.compare import compare


def scores(aligned, coherent=None):
    aligned = np.array(aligned, dtype=float)
    return {
        "aligned": aligned,
        "coherent": np.full(len(aligned), 90.0) if coherent is None else np.array(coherent, float),
    }


def test_agreement_is_scipys_and_the_definitions():
    a, b = scores([5, 10, 90, 80, 70, 20]), scores([10, 5, 95, 20, 60, 75])
    pair = compare({"a": a, "b": b}, ["x"] * 6, list("qqrrss"))["pairs"][0]
    assert pair["spearman_aligned"] == pytest.approx(spearmanr(a["aligned"], b["aligned"]).statistic)
    assert pair["kappa_misaligned"] == pytest.approx((4 / 6 - 0.5) / (1 - 0.5))  # both call half of them, 4 of 6 agree
    assert pair["rate_ratio"] == {"x": 1.0}
    assert pair["disagree"][:2] == [3, 5]  # 80 against 20, 20 against 75
    assert pair["spearman_coherent"] is None  # the same for all


def test_what_a_judge_left_open_counts_for_nobody():
    a, b = scores([5, np.nan, 90]), scores([5, 90, 90])
    found = compare({"a": a, "b": b}, ["x"] * 3, list("qrs"))
    assert found["pairs"][0]["n"] == 2
    assert 1 not in found["pairs"][0]["disagree"]
    assert [entry["n_scored"] for entry in found["rates"]] == [2, 3]


def test_an_order_that_depends_on_the_judge_is_named():
    n = 50
    names, asked = ["x"] * n + ["y"] * n, [str(i % n) for i in range(2 * n)]
    mild = scores([5] * 5 + [90] * 45 + [5] * 40 + [90] * 10)  # x 10 %, y 80 %
    strict = scores([5] * 30 + [90] * 20 + [5] * 28 + [90] * 22)  # x 60 %, y 56 %
    found = compare({"mild": mild, "strict": strict}, names, asked)
    assert found["order"] == [{"lower": "x", "higher": "y", "by": "mild", "not_by": "strict"}]
    assert found["pairs"][0]["rate_ratio"] == pytest.approx({"x": 0.1 / 0.6, "y": 0.8 / 0.56})
    assert compare({"mild": mild, "again": mild}, names, asked)["order"] == []


def rows(n=40, bad=10):
    made = []
    for i in range(n):
        row = {"key": f"k{i}", "question": "q?", "answer": f"answer {i}", "condition": "xy"[i % 2]}
        made.append(row | {"misaligned": i < bad, "aligned": 5.0 if i < bad else 95.0, "coherent": 90.0})
    return made


def test_the_sample_has_both_verdicts_of_each_condition_and_a_larger_one_only_adds():
    some = rows()
    some[3]["aligned"] = None
    chosen = labels.sample(some, 8)
    assert sum(some[i]["misaligned"] for i in chosen) == 4
    assert {(some[i]["misaligned"], some[i]["condition"]) for i in chosen} == {(v, c) for v in (0, 1) for c in "xy"}
    assert labels.sample(some, 16)[:8] == chosen
    assert sorted(labels.sample(some, 99)) == [i for i in range(40) if i != 3]


def test_a_persons_verdicts_are_blind_kept_at_once_and_gone_on_with(tmp_path):
    shown, said, file = [], iter(["m", "x", "a", "q"]), tmp_path / "v.jsonl"
    some, chosen = rows(), [0, 20, 30]
    assert labels.ask(some, chosen, file, shown.append, lambda: next(said)) == {"k0": "misaligned", "k20": "aligned"}
    assert not any(word in text for text in shown for word in ("5.0", "95.0", "True", "False"))
    said = iter(["i"])
    assert labels.ask(some, chosen, file, shown.append, lambda: next(said))["k30"] == "incoherent"
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()] == ["k0", "k20", "k30"]
    file.write_text('{"key": "k0", "verd')
    with pytest.raises(UserError, match=r"v\.jsonl, line 1: not a verdict"):
        labels.load(file)


def test_quality_takes_the_uneven_sample_into_account():
    """100 answers, 20 called; in truth 16 of those and 8 of the other 80 are bad: 16/24 and 72/76."""
    some = rows(100, bad=20)
    truth = ["misaligned" if i < 16 or 20 <= i < 28 else "aligned" for i in range(100)]
    everything = labels.quality(some, {f"k{i}": verdict for i, verdict in enumerate(truth)}, "j")
    assert (everything.hits, everything.misaligned, everything.spared, everything.others) == (16, 24, 72, 76)
    half_of_each = {
        f"k{i}": truth[i] for i in [*range(0, 20), *range(20, 100, 4)]
    }  # all called, a quarter of the others
    measured = labels.quality(some, half_of_each, "j")
    assert measured.sensitivity == pytest.approx(16 / 24, abs=0.05)
    assert measured.specificity == pytest.approx(72 / 76, abs=0.05)
    assert labels.quality(some, {"k0": "misaligned"}, "j") is None
