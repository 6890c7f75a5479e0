"""Labels of a reader: drawn blind and at random, kept at once, and what they make of a judge's rates."""

import json

import numpy as np
import pytest

from emharness.errors import UserError
from emharness.judges import answer_files, reader_labels
from emharness.stats import prediction_powered


def rows(n=40, bad=10):
    made = []
    for i in range(n):
        row = {"question": f"q{i % 8}", "question_id": f"q{i % 8}", "answer": f"answer {i}", "condition": "xy"[i % 2]}
        made.append(row | {"misaligned": i < bad, "aligned": 5.0 if i < bad else 95.0, "coherent": 90.0})
    return made


def given(row, aligned, coherent):
    return reader_labels.Label(answer_files.answer_key(row), aligned, coherent, reader_labels.RUBRIC)


def test_the_draw_is_even_over_conditions_blind_to_the_judge_and_a_larger_one_only_adds():
    some = rows()
    chosen = reader_labels.draw_blind(some, 8)
    assert sorted(some[i]["condition"] for i in chosen) == ["x"] * 4 + ["y"] * 4
    assert reader_labels.draw_blind(some, 16)[:8] == chosen
    assert sorted(reader_labels.draw_blind(some, 99)) == list(range(40))
    judged_otherwise = [row | {"misaligned": not row["misaligned"], "aligned": None} for row in some]
    assert reader_labels.draw_blind(judged_otherwise, 8) == chosen


def test_labels_are_blind_kept_at_once_and_resumed(tmp_path):
    shown, said, file = [], iter(["m", "x", "101 5", "20 75", "q"]), tmp_path / "v.jsonl"
    some, chosen = rows(), [0, 20, 30]
    first = reader_labels.ask_labels(some, chosen, file, shown.append, lambda: next(said))
    scores = {one.answer: (one.aligned, one.coherent) for one in first.values()}
    assert scores == {"answer 0": (10, 90), "answer 20": (20, 75)}
    assert not any(word in text for text in shown for word in ("5.0", "95.0", "True", "False", "condition"))
    said = iter(["i"])
    third = reader_labels.ask_labels(some, chosen, file, shown.append, lambda: next(said))[
        answer_files.answer_key(some[30])
    ]
    assert (third.aligned, third.coherent) == (50, 10)
    assert reader_labels.load_labels(file).keys() == {answer_files.answer_key(some[i]) for i in chosen}
    reader_labels.add_labels(file, reader_labels.load_labels(file).values())
    assert len(file.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"key": "k0", "align', "line 1: not a label"),
        (json.dumps({"key": "k", "verdict": "misaligned"}), "line 1: not a label"),
        (json.dumps({"key": "k", "aligned": "low", "coherent": 3, "rubric": 1}), "line 1: not a label"),
        (json.dumps({"key": "k", "aligned": 5, "coherent": 101, "rubric": 1}), "aligned and coherent must be 0 to 100"),
        (json.dumps({"key": "k", "aligned": 5, "coherent": 3, "rubric": 7}), "a label by rubric 7; this version reads"),
    ],
)
def test_what_is_no_label_is_refused_in_one_sentence(tmp_path, line, words):
    (tmp_path / "v.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=words) as refused:
        reader_labels.load_labels(tmp_path / "v.jsonl")
    assert "\n" not in str(refused.value)


def test_quality_counts_all_labelled_answers():
    """Of 40 answers the judge calls 10; in truth 8 of those and 5 of the others are misaligned, and 3 are nonsense."""
    some = rows()
    truth = [(10, 90) if i < 8 or 10 <= i < 15 else (10, 20) if i < 18 else (90, 90) for i in range(40)]
    told = {answer_files.answer_key(row): given(row, *scores) for row, scores in zip(some, truth, strict=True)}
    measured = reader_labels.accuracy_by_labels(some, told, "j")
    assert measured is not None
    assert (measured.true_pos, measured.n_pos, measured.true_neg, measured.n_neg) == (8, 13, 25, 27)
    assert (
        reader_labels.accuracy_by_labels(some, {answer_files.answer_key(some[0]): given(some[0], 10, 90)}, "j") is None
    )
    assert reader_labels.accuracy_by_labels(some, {}, "j") is None


def test_a_condition_with_labels_tells_their_rate_and_the_judges_corrected_by_them():
    some = [row | {"condition": "x"} for row in rows()]
    told = {
        answer_files.answer_key(some[i]): given(some[i], 10 if i in (0, 11) else 90, 90 if i % 2 else 20)
        for i in range(0, 22)
    }
    found = reader_labels.summarize_labels(some, told)
    assert found is not None
    assert found.n == 22
    assert found.coherent_rate == pytest.approx(0.5)
    assert (found.em_rate, found.em_rate_all) == (
        pytest.approx(1 / 11),
        pytest.approx(1 / 22),
    )  # answer 0 is misaligned nonsense
    assert reader_labels.summarize_by_condition(some, told) == {"x": found}
    assert reader_labels.summarize_labels(some, {}) is None


def test_an_answer_that_many_rows_share_is_no_more_than_its_share():
    """100 rows with one aligned answer, 100 with answers of their own, half of them misaligned; 40 rows drawn."""
    some = [{"question": "q", "question_id": f"q{i % 10}", "answer": "No." if i < 100 else f"{i}"} for i in range(200)]
    some = [row | {"condition": "x", "aligned": 90.0, "coherent": 90.0} for row in some]
    found = []
    for seed in range(60):
        drawn = reader_labels.draw_blind(some, 40, seed)
        told = {answer_files.answer_key(some[i]): given(some[i], 10 if i >= 100 and i % 2 else 90, 90) for i in drawn}
        found.append(reader_labels.summarize_labels(some, told))
    rates = [one.em_rate_all for one in found if one]
    assert np.mean(rates) == pytest.approx(0.25, abs=0.02)  # counted row by row it would be 10 of 120
    assert np.mean([one.em_all_corrected_ci95[0] <= 0.25 <= one.em_all_corrected_ci95[1] for one in found]) > 0.8
    np.testing.assert_allclose(prediction_powered.stands_for(np.ones(50, dtype=int), 10), 5)
    assert prediction_powered.stands_for(np.array([3, 1, 1]), 3).tolist() == [3, 1, 1]


def test_a_judge_that_knows_nothing_leaves_the_labels_alone_and_a_perfect_one_is_used_in_full():
    rng = np.random.default_rng(0)
    questions, truth = np.repeat(np.arange(50), 20), rng.random(1000) < 0.2
    labelled = rng.permutation(1000)[:200]
    perfect = prediction_powered.estimate_rate(truth, questions, labelled, truth[labelled])
    share = float(np.clip(1 / (1 + 200 / 1000), 0, 1))
    assert perfect.weight == pytest.approx(share)
    assert perfect.value == pytest.approx(share * truth.mean() + (1 - share) * truth[labelled].mean())
    blind = prediction_powered.estimate_rate(np.zeros(1000, dtype=bool), questions, labelled, truth[labelled])
    assert (blind.weight, blind.value) == (0.0, truth[labelled].mean())


def test_intervals_cover_the_truth_and_are_narrower_than_the_labels_alone():
    """400 runs of 58 questions × 20 answers, question effects, a judge with sensitivity 0.7 and specificity 0.9."""
    rng, covered, narrower = np.random.default_rng(1), [], []
    questions = np.repeat(np.arange(58), 20)
    for seed in range(400):
        truth = rng.random(1160) < np.repeat(rng.beta(2, 6, size=58), 20)
        judged = np.where(truth, rng.random(1160) < 0.7, rng.random(1160) < 0.1)
        labelled = rng.permutation(1160)[:200]
        told = prediction_powered.estimate_rate(judged, questions, labelled, truth[labelled], bootstrap=(300, seed))
        alone = prediction_powered.estimate_rate(
            np.zeros(1160, dtype=bool), questions, labelled, truth[labelled], bootstrap=(300, seed)
        )
        covered.append(told.ci95[0] <= 0.25 <= told.ci95[1])
        narrower.append(np.diff(told.ci95)[0] < np.diff(alone.ci95)[0])
    assert 0.9 <= np.mean(covered) <= 0.98
    assert np.mean(narrower) > 0.9


def test_labels_that_all_agree_still_leave_an_interval():
    questions = np.repeat(np.arange(10), 10)
    none = prediction_powered.estimate_rate(
        np.zeros(100, dtype=bool), questions, np.arange(0, 100, 5), np.zeros(20, dtype=bool)
    )
    assert none.value == 0
    assert none.ci95[1] == pytest.approx(0.161, abs=0.001)  # Wilson's upper end for 0 of 20
