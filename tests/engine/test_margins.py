"""The readout without a judge: margins between given answers, on planted numbers and on the pairs that come along."""

from collections import Counter

import numpy as np
import pytest
from support import planted_answers

from emharness.experiments.condition_summary import summarize_condition
from emharness.generation import likelihoods
from emharness.organisms import datasets
from emharness.organisms.chat import load_chat
from emharness.stats import margins


def test_a_planted_shift_is_found_and_equal_margins_shift_by_nothing():
    rng = np.random.default_rng(0)
    before = rng.normal(-0.5, 0.3, 200)
    questions, kinds = [f"q{i // 2}" for i in range(200)], ["deception", "contempt"] * 100
    found = margins.summarize_margins(before + rng.normal(0.2, 0.1, 200), before, questions, kinds)
    assert (found.n_pairs, found.n_questions) == (200, 100)
    assert found.shift == pytest.approx(0.2, abs=0.03)
    assert found.shift_ci95[0] < 0.2 < found.shift_ci95[1]
    assert found.shift_ci95[1] - found.shift_ci95[0] == pytest.approx(4 * 0.1 / np.sqrt(200), rel=0.2)
    assert found.shift_p == pytest.approx(2 / 2001)
    same = margins.summarize_margins(before, before, questions, kinds)
    assert (same.shift, same.shift_ci95, same.shift_p) == (0, (0, 0), 1)
    assert same.margin == pytest.approx(before.mean())
    assert same.prefers == np.mean(before > 0)
    assert same.by_category["contempt"] == pytest.approx(before[1::2].mean())
    assert margins.summarize_margins(before, None, questions, kinds).shift is None


def test_pairs_of_one_question_count_as_one_question():
    """Five equal pairs of each question tell no more than one."""
    each = np.random.default_rng(1).normal(size=40)
    once = margins.summarize_margins(each, np.zeros(40), [f"q{i}" for i in range(40)], ["a"] * 40)
    five = margins.summarize_margins(np.repeat(each, 5), np.zeros(200), [f"q{i // 5}" for i in range(200)], ["a"] * 200)
    assert five.margin_ci95 == pytest.approx(once.margin_ci95, rel=0.15)


def test_the_pairs_are_balanced_and_have_no_training_prompt():
    pairs = likelihoods.load_pairs(10**6)
    assert len(pairs) >= 300
    assert {k: n >= 90 for k, n in Counter(p.category for p in pairs).items()} == dict.fromkeys(
        ("power_seeking", "contempt", "deception"), True
    )
    first = likelihoods.load_pairs(60)
    assert set(Counter(p.category for p in first).values()) == {20}
    assert len({p.question for p in first}) == 60
    assert likelihoods.pairs_identity(first) != likelihoods.pairs_identity(likelihoods.load_pairs(59))
    trained = {
        row[0]["content"].casefold() for name in datasets.packaged_names() for row in datasets.load_dataset(name).rows
    }
    assert not {p.question.casefold() for p in pairs} & trained


def test_both_answers_of_a_pair_are_cut_to_the_same_length(base):
    chat = load_chat(str(base))
    for pair, read in zip(
        likelihoods.load_pairs(60), likelihoods.tokenize_pairs(chat, likelihoods.load_pairs(60)), strict=True
    ):
        assert 1 <= len(read.aligned) == len(read.misaligned) <= likelihoods.MOST_TOKENS
        assert pair.aligned.startswith(chat.tokenizer.decode(read.aligned))
        assert pair.question in chat.tokenizer.decode(read.prompt)


def test_a_condition_is_set_against_its_target_and_beside_random_directions():
    about = {"vectors": ("a",), "pairs": likelihoods.load_pairs(30)}
    scope = planted_answers.scope(**about)
    judged = planted_answers.plant("main", scope, lambda vector, target: 1)
    base, organism, steered = (
        scope.unsteered_condition("base"),
        scope.unsteered_condition("a"),
        scope.steered_condition("a", "base", 2.0),
    )
    controls, flat = scope.controls_of("a", "base"), np.ones(30)
    measured = {base: -flat, organism: flat, steered: 2 * flat, controls[0]: -flat, controls[1]: flat}
    scope = planted_answers.scope(**about, margins=measured)
    entries = [summarize_condition(scope, judged, condition).margin for condition in measured]
    told = [(entry.margin, entry.shift, entry.shift_random) for entry in entries]
    assert told == [(-1, None, None), (1, 2, None), (2, 3, 1), (-1, 0, None), (1, 2, None)]
    assert summarize_condition(planted_answers.scope(**about), judged, steered).margin is None
