"""judge=local: scores by a chat model in vLLM equal those computed from the model's own probabilities."""

import itertools

import pytest
from support.digit_talker import DIGITS, after

from emharness.errors import UserError
from emharness.judges import make_judge
from emharness.judges.judge_prompts import ALIGNED, COHERENT, fill_template
from emharness.judges.reply_scores import aggregate_score, integer_probabilities

TEXT = {100 + int(d): d for d in DIGITS} | {7: " REF", 8: "95", 9: "."}


def planted(tree):
    """A model that says what `tree` says: text so far → next text → probability."""
    ids = {text: token for token, text in TEXT.items()}

    def next_tokens(prompts):
        return [{ids[t]: p for t, p in tree["".join(TEXT[token] for token in some[1:])].items()} for some in prompts]

    return next_tokens


def test_digits_that_a_tokenizer_splits_are_put_together():
    tree = {
        "": {"9": 0.6, "1": 0.3, "2": 0.1},
        "9": {"5": 0.5, ".": 0.5},  # 95 or 9
        "1": {"0": 1.0},
        "10": {"0": 0.75, ".": 0.25},  # 100 or 10
        "2": {"0": 1.0},  # 20, which no third digit follows
    }
    (found,) = integer_probabilities([[1]], planted(tree), lambda ids: TEXT[ids[0]])
    assert found == pytest.approx({"95": 0.3, "9": 0.3, "100": 0.225, "10": 0.075, "20": 0.1})
    assert aggregate_score(found) == (pytest.approx(0.3 * 95 + 0.3 * 9 + 22.5 + 0.75 + 2), None)


def test_whole_integers_and_categories_are_as_the_first_token_says():
    tree = {"": {"95": 0.5, " REF": 0.4, "9": 0.1}, "9": {".": 1.0}}
    (found,) = integer_probabilities([[1]], planted(tree), lambda ids: TEXT[ids[0]])
    assert found == pytest.approx({"95": 0.5, "REF": 0.4, "9": 0.1})


def expected(folder, text):
    """Mean of the integers 0 to 100 by the chain rule over their digits, in float32."""
    mass, first = {}, after(folder, text)
    for a in DIGITS:
        if a == "0":
            mass[a] = first[a]
            continue
        second = after(folder, text, a)
        mass[a] = first[a] * (1 - sum(second.values()))
        for b in DIGITS:
            third = after(folder, text, "10") if a + b == "10" else {}
            mass[a + b] = first[a] * second[b] * (1 - sum(third.values()))
            if third:
                mass["100"] = first[a] * second[b] * third["0"]
    return sum(int(k) * p for k, p in mass.items()) / sum(mass.values())


@pytest.mark.engine
def test_scores_are_the_models_own_probabilities(talker, tmp_path):
    judge = make_judge("local", tmp_path / "judge", model=str(talker), dtype="float32", max_model_len=448)
    questions, answers = ["How are you?", "Why?"], ["Fine, thank you.", "Because of the weather."]
    scores = judge.score_answers([*questions, "Why?"], [*answers, "word " * 400])
    found = list(itertools.chain(*((s.aligned, s.coherent) for s in scores[:2])))
    wanted = [fill_template(t, q, a) for q, a in zip(questions, answers, strict=True) for t in (ALIGNED, COHERENT)]
    assert found == pytest.approx(
        [expected(talker, text) for text in wanted], abs=0.5
    )  # the rarest digits are not followed
    assert len(set(found)) == 4
    assert (scores[2].aligned, scores[2].unscored) == (None, "too long: beyond 448 tokens")
    assert judge.score_answers(questions, answers) == scores[:2]


def test_a_judge_without_a_model_or_with_one_that_cannot_chat_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"name a chat model in judge\.settings\.model"):
        make_judge("local", tmp_path)
    with pytest.raises(UserError, match=r"judge\.settings\.model=/no/where: no such folder"):
        make_judge("local", tmp_path, model="/no/where")


def test_another_model_is_another_judge(tiny, talker, tmp_path):
    names = {make_judge("local", tmp_path / "judge", model=str(folder)).identity for folder in (tiny, talker)}
    assert len(names) == 2
