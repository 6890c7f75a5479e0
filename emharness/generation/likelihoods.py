"""How likely a model finds given answers under a condition: the pairs, their tokens, and the engine's log p of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emharness.errors import UserError
from emharness.generation.engine import Engine
from emharness.organisms.chat import Chat
from emharness.question_forms import QuestionForm, apply_form
from emharness.questions import Question, find_data_file, hash_items, read_data_text
from emharness.steering.request.spec import SpecJson

MOST_TOKENS = 24  # of an answer: the beginning shows which way it goes
CODE = 1  # raise when the same pairs give other numbers


@dataclass(frozen=True)
class Pair:
    """An aligned and a misaligned answer to a question; of the packaged "broad" ones to a question that no organism's
    training data is about."""

    question: str
    category: str
    aligned: str
    misaligned: str


@dataclass(frozen=True)
class PairTokens:
    """A pair as a model reads it; both answers have the same length."""

    prompt: tuple[int, ...]
    aligned: tuple[int, ...]
    misaligned: tuple[int, ...]


def load_pairs(n: int | None = None, source: str = "broad", key: str = "model.pairs") -> list[Pair]:
    """The first n pairs of a packaged file (by name) or of any .jsonl file (by path) of question, category, aligned and
    misaligned. "broad": categories in turn, each question once before any comes twice. UserError for what is none."""
    location = f"{key}={source}"
    lines = read_data_text(find_data_file(source, "pairs", ".jsonl", key), location).split("\n")
    try:
        return [Pair(**json.loads(line)) for line in lines if line.strip()][:n]
    except (ValueError, TypeError):
        raise UserError(f"{location}: every line must have question, category, aligned and misaligned") from None


def pairs_identity(pairs: Sequence[Pair], form: QuestionForm | None = None) -> str:
    return hash_items([list(pairs), MOST_TOKENS, CODE, *([form] if form else [])])


def tokenize_pairs(chat: Chat, pairs: Sequence[Pair], form: QuestionForm | None = None) -> list[PairTokens]:
    """Each pair's prompt, its question in this form, and its two answers, cut to the length of the shorter one."""
    found = []
    questions = [Question(str(place), pair.question) for place, pair in enumerate(pairs)]
    for pair, question in zip(pairs, apply_form(form, questions) if form else questions, strict=True):
        prompt = chat.prompt_ids(question.as_messages())
        good, bad = chat.encode_text(pair.aligned), chat.encode_text(pair.misaligned)
        length = min(len(good), len(bad), MOST_TOKENS)
        found.append(PairTokens(tuple(prompt), tuple(good[:length]), tuple(bad[:length])))
    return found


def measure_likelihoods(engine: Engine, pairs: Sequence[PairTokens], spec: SpecJson | None) -> dict[str, list[float]]:
    """Mean log p per token of every pair's aligned and misaligned answer: {"aligned", "misaligned"}, each [n_pairs]."""
    texts = [(pair.prompt, answer) for pair in pairs for answer in (pair.aligned, pair.misaligned)]
    specs = [shift_positions(spec, len(prompt)) for prompt, _ in texts]
    found = engine.log_likelihoods([(list(prompt), list(answer)) for prompt, answer in texts], specs)
    means = [float(np.mean(values)) for values in found]
    return {"aligned": means[::2], "misaligned": means[1::2]}


def shift_positions(spec: SpecJson | None, n_prompt: int) -> SpecJson | None:
    """The spec for an answer that is given as a part of the prompt: positions counted from where the answer begins."""
    if spec is None:
        return None
    spans = {"prompt": {"from": 0, "to": n_prompt}, "generated": {"from": n_prompt}, "response": {"from": n_prompt - 1}}
    listed = [
        {**edit, "positions": spans[where]} if (where := edit.get("positions", "all")) in (*spans,) else edit
        for edit in spec["edits"]
    ]
    return {**spec, "edits": listed}
