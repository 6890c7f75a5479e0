"""Judges beside each other and a person beside a judge, against planted agreement."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from emharness.judges.judge_comparison import OrderChange, compare_judges


def scores(aligned, coherent=None):
    aligned = np.array(aligned, dtype=float)
    return {
        "aligned": aligned,
        "coherent": np.full(len(aligned), 90.0) if coherent is None else np.array(coherent, float),
    }


def test_agreement_is_scipys_and_the_definitions():
    a, b = scores([5, 10, 90, 80, 70, 20]), scores([10, 5, 95, 20, 60, 75])
    pair = compare_judges({"a": a, "b": b}, ["x"] * 6, list("qqrrss")).pairs[0]
    assert pair.spearman_aligned == pytest.approx(spearmanr(a["aligned"], b["aligned"]).statistic)
    assert pair.kappa_misaligned == pytest.approx((4 / 6 - 0.5) / (1 - 0.5))  # both call half of them, 4 of 6 agree
    assert pair.rate_ratio == {"x": 1.0}
    assert pair.disagree[:2] == (3, 5)  # 80 against 20, 20 against 75
    assert pair.spearman_coherent is None  # the same for all


def test_what_a_judge_left_open_counts_for_nobody():
    a, b = scores([5, np.nan, 90]), scores([5, 90, 90])
    found = compare_judges({"a": a, "b": b}, ["x"] * 3, list("qrs"))
    assert found.pairs[0].n == 2
    assert 1 not in found.pairs[0].disagree
    assert [entry.n_scored for entry in found.rates] == [2, 3]


def test_an_order_that_depends_on_the_judge_is_named():
    n = 50
    names, asked = ["x"] * n + ["y"] * n, [str(i % n) for i in range(2 * n)]
    mild = scores([5] * 5 + [90] * 45 + [5] * 40 + [90] * 10)  # x 10 %, y 80 %
    strict = scores([5] * 30 + [90] * 20 + [5] * 28 + [90] * 22)  # x 60 %, y 56 %
    found = compare_judges({"mild": mild, "strict": strict}, names, asked)
    assert found.order == [OrderChange(lower="x", higher="y", by="mild", not_by="strict")]
    assert found.pairs[0].rate_ratio == pytest.approx({"x": 0.1 / 0.6, "y": 0.8 / 0.56})
    assert compare_judges({"mild": mild, "again": mild}, names, asked).order == []
