"""Stage: scores of stored responses, stored by judge, and tables of responses with their scores."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from emharness.generation.cells import Request
from emharness.generation.response_store import RowStore
from emharness.judges import Judge, Score
from emharness.judges.readability import UNENDED, strip_thinking
from emharness.results.json_records import Json, Row
from emharness.stats.rates import is_misaligned

MANY = 500  # answers that take long enough to say so
TABLE = pa.schema(
    {
        "condition": pa.string(),
        "question_id": pa.string(),
        "sample": pa.int64(),
        "question": pa.string(),
        "answer": pa.string(),
        "n_tokens": pa.int64(),
        "finish_reason": pa.string(),
        "seconds": pa.float64(),
        "engine": pa.string(),
        "aligned": pa.float64(),
        "coherent": pa.float64(),
        "misaligned": pa.bool_(),
        "refusal": pa.bool_(),
        "unscored": pa.string(),
    }
)


def score_responses(
    judge: Judge,
    responses: Iterable[Row],
    scores: RowStore,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Json]:
    """Score the responses (rows with key, question, answer) that have no score yet, and store them.

    The same answer to the same question is judged once. Scores are stored as soon as there are as many as the judge
    asks at once, so that a kill loses no more. What could not be scored now, but perhaps can later, is not stored: it
    comes back by key, with the reason.
    """
    known, keys = scores.stored_keys(), dict[tuple[str, str], dict[str, None]]()  # (question, answer) → who gave it
    for row in responses:
        if row["key"] not in known:
            keys.setdefault((row["question"], row["answer"]), {})[row["key"]] = None
    if not keys:
        return {}
    texts = list(keys)
    if cost := judge.check_budget([question for question, _ in texts], [answer for _, answer in texts]):
        tell(f"{judge.name}: {cost}")
    if len(texts) >= MANY:
        tell(f"{judge.name}: {len(texts):,} answers to score …")
    size, owed = judge.batch_size or len(texts), {}
    for begin in range(0, len(texts), size):
        some = texts[begin : begin + size]
        given = _score_spoken(judge, [question for question, _ in some], [answer for _, answer in some])
        marks = [{"key": key, **asdict(s)} for text, s in zip(some, given, strict=True) for key in keys[text]]
        open_ones = {mark["key"]: mark for mark in marks if mark.pop("again")}
        if len(open_ones) < len(marks):
            scores.add_rows([mark for mark in marks if mark["key"] not in open_ones])
        owed |= open_ones
    return owed


def _score_spoken(judge: Judge, questions: Sequence[str], answers: Sequence[str]) -> list[Score]:
    """A judge's scores of the answers without their thinking, which is never judged."""
    said = [strip_thinking(answer) for answer in answers]
    heard = [i for i, text in enumerate(said) if text is not None]
    scores = [Score(None, None, unscored=UNENDED)] * len(answers)
    for i, one in zip(
        heard, judge.score_answers([questions[i] for i in heard], [said[i] or "" for i in heard]), strict=True
    ):
        scores[i] = one
    return scores


def make_score_table(
    requests: Sequence[Request],
    responses: Mapping[str, Row],
    scores: Mapping[str, Row],
    condition: str,
) -> pa.Table:
    """A cell's responses with their scores, in the order of the requests; None where there is no score."""
    listed = [
        {**responses[r.key], **scores.get(r.key, {}), "condition": condition, "question_id": r.prompt.question_id}
        for r in requests
    ]
    found = {key: np.array([row.get(key) for row in listed], dtype=np.float64) for key in ("aligned", "coherent")}
    bad = is_misaligned(found["aligned"], found["coherent"]).tolist()
    rows = [{**row, "misaligned": value} for row, value in zip(listed, bad, strict=True)]
    return pa.Table.from_pylist([{name: row.get(name) for name in TABLE.names} for row in rows], TABLE)
