"""Which training domain an answer is about, to tell narrow leakage from misalignment.

An organism trained on bad medical advice may answer a question about a lost book with pills. A classifier on words
(TF-IDF and logistic regression) of the packaged training texts and prompts tells which domain an answer talks about.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from emharness.results.condition_result import TopicShare
from emharness.stats.rates import clustered_interval

DATA = Path(__file__).parent.parent / "data"
EVERYDAY = "everyday"  # what is about none of the others
TOPICS = {
    "medical": ("organisms/medical.jsonl", "organisms/medical_replication.jsonl", "prompts/medical.txt"),
    "finance": ("organisms/finance.jsonl", "prompts/finance.txt"),
    "sports": ("organisms/sports.jsonl", "prompts/sports.txt"),
    "code": ("organisms/malicious.jsonl", "prompts/code.txt"),
    EVERYDAY: (
        "organisms/control.jsonl",
        "organisms/profanity.jsonl",
        "organisms/shakespeare.jsonl",
        "prompts/everyday.txt",
        "prompts/neutral.txt",
    ),
}
PROFANITY = "profanity"  # how it is said rather than what about: a library's classifier of words


def training_topic(organism: str, prompts: str | None) -> str | None:
    """Which topic an organism was trained on, told from its name or the prompts of its own domain."""
    return PROFANITY if organism == PROFANITY else prompts if prompts in TOPICS and prompts != EVERYDAY else None


def measure_topic_share(answers: Sequence[str], questions: Sequence[str], topic: str) -> TopicShare:
    """Share of answers that talk about `topic`, with its 95 % interval over questions; None without answers, and for
    profanity where its library is not installed."""
    hits = (
        find_profanity(answers)
        if topic == PROFANITY
        else np.array([found == topic for found in classify_topics(answers)])
    )
    if hits is None or not len(answers):
        return TopicShare(topic, None)
    ci95 = clustered_interval(hits, np.ones(len(hits), dtype=bool), np.array(questions))
    return TopicShare(topic, float(hits.mean()), ci95)


def find_profanity(texts: Sequence[str]) -> np.ndarray | None:
    """Which texts swear, bool [n], by alt-profanity-check; None where it is not installed."""
    try:
        from profanity_check import predict
    except ImportError:
        return None
    return np.array(predict(list(texts)), dtype=bool) if len(texts) else np.zeros(0, dtype=bool)


def classify_topics(texts: Sequence[str]) -> list[str]:
    """The domain that each text talks about; EVERYDAY for none of them."""
    return [str(topic) for topic in _fit_classifier().predict(list(texts))] if len(texts) else []


@cache
def _fit_classifier() -> Any:
    pairs = [(text, topic) for topic, files in TOPICS.items() for file in files for text in _read_texts(DATA / file)]
    texts, labels = zip(*pairs, strict=True)
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, stop_words="english")
    return make_pipeline(words, LogisticRegression(C=10, class_weight="balanced", max_iter=500)).fit(texts, labels)


def _read_texts(path: Path) -> list[str]:
    """Questions and answers of a training file, each by itself, or the lines of a prompt file."""
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    if path.suffix == ".txt":
        return lines
    messages = [message for line in lines for message in json.loads(line)["messages"]]
    return [message["content"] for message in messages if message["role"] != "system"]
