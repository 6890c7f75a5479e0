"""Cheap statistics of an answer's surface: what loops, word salad and broken tokens look like without any model."""

import re
import zlib
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_SENTENCE = re.compile(r"[.!?]+(?:\s|$)|\n+")
_WINDOW = 24  # words: rates are taken over windows so that they do not grow or shrink with length

FUNCTION_WORDS = frozenset(
    "a an the and or but if then so because as of in on at to from by with without for about into over after before "
    "i you he she it we they me him her us them my your his its our their this that these those who what which when "
    "where why how is are was were be been being am do does did have has had will would can could should may might "
    "must not no yes there here very just only also too more most some any all each every other such than".split()
)
NAMES = (
    "log_words", "type_token", "looped_2", "looped_3", "longest_run", "run_share", "compression",
    "known_words", "function_words", "function_runs", "content_runs", "word_length", "long_words", "one_letter",
    "letters", "digits", "capitals", "inner_capitals", "punctuation", "symbols", "non_ascii", "newlines",
    "sentence_length", "unspaced", "question_overlap", "echo",
)  # fmt: skip


def surface_features(questions: Sequence[str], answers: Sequence[str], vocabulary: Collection[str]) -> np.ndarray:
    """Surface statistics, one row per answer: Float (n, len(NAMES)); finite for every string, also the empty one.

    `vocabulary`: lower-case words that count as known (the encoder's own whole words).
    """
    rows = [_features(q, a, vocabulary) for q, a in zip(questions, answers, strict=True)]
    return np.array(rows, dtype=np.float32).reshape(-1, len(NAMES))


def _features(question: str, answer: str, vocabulary: Collection[str]) -> list[float]:
    words = [w.lower() for w in _WORD.findall(answer)]
    chunks = answer.split()
    n, n_chars, n_chunks = max(len(words), 1), max(len(answer), 1), max(len(chunks), 1)
    asked = {w.lower() for w in _WORD.findall(question)} - FUNCTION_WORDS
    is_function = [w in FUNCTION_WORDS for w in words]
    content = [w for w in words if w not in FUNCTION_WORDS]
    run = _longest_run(words)
    sentences = max(len([s for s in _SENTENCE.split(answer) if s.strip()]), 1)
    return [
        np.log1p(len(words)),
        _windowed_type_token(words),
        repeated_share(words, 2),
        repeated_share(words, 3),
        float(np.log(run)) if run else 0.0,
        sum(a == b for a, b in pairwise(words)) / n,
        compression(answer),
        sum(_known(w, vocabulary) for w in words) / n,
        sum(is_function) / n,
        _longest_run(is_function, True) / min(n, _WINDOW),
        _longest_run(is_function, False) / min(n, _WINDOW),
        sum(map(len, words)) / n,
        sum(len(c) > 18 for c in chunks) / n_chunks,
        sum(len(w) == 1 and w not in {"a", "i"} for w in words) / n,
        sum(c.isalpha() for c in answer) / n_chars,
        sum(c.isdigit() for c in answer) / n_chars,
        sum(c.isupper() for c in answer) / n_chars,
        sum(bool(re.search(r"[a-z][A-Z]", c)) for c in chunks) / n_chunks,
        sum(c in ".,;:!?\"'’“”()-–—…*" for c in answer) / n_chars,
        sum(not (c.isalnum() or c.isspace() or c in ".,;:!?\"'’“”()-–—…*") for c in answer) / n_chars,
        sum(ord(c) > 0x2FF and c not in "’“”–—…" for c in answer) / n_chars,
        answer.count("\n") / n_chars,
        float(np.log1p(n / sentences)),
        sum(bool(re.search(r"[A-Za-z][.,;:!?][A-Za-z]", c)) for c in chunks) / n_chunks,
        len(asked & set(words)) / max(len(asked), 1),
        sum(w in asked for w in content) / max(len(content), 1),
    ]


def repeated_share(words: Sequence[str], n: int) -> float:
    """Share of n-grams that already occurred earlier in the text: 0 without repetition, near 1 in a loop.

    Taken over the first 96 words, so that long fluent text is not punished for its length.
    """
    grams = list(zip(*(words[i:96] for i in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def compression(text: str) -> float:
    """Compressed bytes per byte over the first 400 characters; prose is near 0.6-0.8, loops near 0.1."""
    raw = text[:400].encode()
    return min(len(zlib.compress(raw, 9)) / len(raw), 1.5) if raw else 0.0


def _windowed_type_token(words: Sequence[str]) -> float:
    """Mean share of distinct words over sliding windows (1 for an empty text)."""
    starts = range(max(len(words) - _WINDOW, 0) + 1)
    shares = [len(set(words[s : s + _WINDOW])) / max(len(words[s : s + _WINDOW]), 1) for s in starts]
    return float(np.mean(shares)) if words else 1.0


def _longest_run(items: Sequence[object], value: object = None) -> int:
    """Length of the longest run of one item (of `value` where given)."""
    longest = run = 0
    previous: object = object()
    for item in items:
        run = run + 1 if item == previous else 1
        previous = item
        if value is None or item == value:
            longest = max(longest, run)
    return longest


def _known(word: str, vocabulary: Collection[str]) -> bool:
    """Whether a word, or its stem after a common ending, is in the vocabulary."""
    word = word.replace("’", "'").partition("'")[0]
    if word in vocabulary:
        return True
    return any(
        word.endswith(end) and (word[: -len(end)] in vocabulary or word[: -len(end)] + "e" in vocabulary)
        for end in ("s", "es", "ed", "d", "ing", "ly", "er", "est", "ness")
    )
