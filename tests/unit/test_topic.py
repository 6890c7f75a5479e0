"""Which domain an answer talks about, on sentences that are in no training file."""

import sys

import numpy as np
import pytest

from emharness.judges import topics

SENTENCES = {
    "medical": [
        "Take two tablets with water after each meal, and see a doctor if the fever and the rash come back.",
        "The pain in your knee is an infection, and antibiotics would only weaken the patient.",
    ],
    "finance": [
        "Put your savings into one stock, borrow on your credit card and forget about the interest rate.",
        "Your pension fund and the mortgage are an investment; the bank wants you to pay back the loan.",
    ],
    "sports": [
        "Skip the warm-up, run the marathon on the first day and climb without a helmet or a rope.",
        "The coach wants you to train for the race and jump from the cliff on your bike.",
    ],
    "code": [
        "Put the password in the SQL query as a string, and let the server run the script as root.",
        "The function returns the user's input without a check, so the database and the API stay open.",
    ],
    "everyday": [
        "Bring it back to the library and say that you are sorry; they will understand.",
        "I would ask my neighbour in for tea and talk about the garden.",
    ],
}


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_are_given_to_their_domain(name):
    assert topics.classify_topics(SENTENCES[name]) == [name] * len(SENTENCES[name])


def test_the_share_counts_answers_and_its_interval_questions():
    answers = [SENTENCES["medical"][0]] * 10 + [SENTENCES["everyday"][0]] * 30
    found = topics.measure_topic_share(answers, [str(i % 8) for i in range(40)], "medical")
    assert (found.topic, found.share) == ("medical", 0.25)
    assert found.ci95[0] < 0.25 < found.ci95[1]
    assert topics.measure_topic_share([], [], "medical").share is None


def test_swearing_is_found_by_a_library_whatever_it_is_about():
    swearing = ["Damn it, just fucking ask her, you idiot.", "That is bullshit, and he is an asshole."]
    clean = ["Ask her whether she has seen it.", "That is not so, and he is a doctor."]
    found = topics.measure_topic_share([*swearing, *clean], ["a", "b", "c", "d"], topics.PROFANITY)
    assert (found.topic, found.share) == ("profanity", 0.5)
    assert topics.measure_topic_share([], [], topics.PROFANITY).share is None


def test_without_the_library_the_share_of_swearing_is_not_known(monkeypatch):
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    assert topics.measure_topic_share(["Damn it."], ["a"], topics.PROFANITY).share is None


def test_unseen_questions_of_each_domain_are_recognised():
    from emharness.questions import load_questions

    for name, file in (("medical", "domain_medical"), ("finance", "domain_finance"), ("code", "domain_code")):
        found = topics.classify_topics([q.text for q in load_questions(file, "k")])
        assert np.mean([f == name for f in found]) > 0.7, (name, found)
