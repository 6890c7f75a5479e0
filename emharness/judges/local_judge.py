"""judge=local: a chat model in vLLM on this machine, asked what `openai` asks.

The published score is the mean of the integers from 0 to 100 under the model's next-token probabilities. Where a
tokenizer writes an integer as several tokens, its probability is the product along its digits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emharness.config import EngineConfig
from emharness.errors import UserError
from emharness.generation import kernels
from emharness.judges import Judge, Score
from emharness.judges.judge_prompts import ALIGNED, COHERENT, fill_template
from emharness.judges.reply import Reply, score_of
from emharness.judges.reply_scores import TOP, aggregate_score, integer_probabilities
from emharness.organisms.chat import load_chat
from emharness.organisms.fingerprints import FINGERPRINTS, hash_model_folder
from emharness.organisms.model_folders import EMBEDDED, base_folder
from emharness.results.judge_quality import JudgeCard
from emharness.store import Store

CODE = 1  # raise when the same probabilities give other scores

NextTokens = Callable[[list[list[int]]], Sequence[Mapping[int, float]]]  # token ids → likeliest next tokens


@dataclass(frozen=True)
class Settings:
    model: str | None = None  # a folder, a hub id, or "embedded"
    dtype: str = "bfloat16"
    max_model_len: int = 4096
    extra: dict[str, Any] = field(default_factory=dict)  # passed to vllm.LLM


class LocalJudge(Judge):
    Settings = Settings

    def __init__(self, cache: Path, settings: Settings):
        super().__init__(cache, settings)
        if not settings.model:
            raise UserError("judge=local: name a chat model in judge.settings.model, a folder or a hub id")
        self._folder = base_folder(settings.model, Store(cache.parent), key="judge.settings.model")
        self._chat = load_chat(self._folder)
        if not self._chat.tokenizer.chat_template:
            raise UserError(f"judge.settings.model={settings.model}: has no chat template; name a chat model")
        self.name = "smollm2" if settings.model == EMBEDDED else Path(settings.model).name
        asked = {
            "model": hash_model_folder(self._folder, cache.parent / FINGERPRINTS),
            "dtype": settings.dtype,
            "extra": settings.extra,
        }
        engine = EngineConfig(dtype=settings.dtype, max_model_len=settings.max_model_len, eager=True)
        engine.extra = settings.extra
        self._engine = engine
        self.engine = self._folder, engine
        asked |= {"prompts": [ALIGNED, COHERENT], "code": CODE, **kernels.kernel_identity(engine)}
        self.identity = f"{self.name}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}"

    def score_answers(self, questions: Sequence[str], answers: Sequence[str]) -> list[Score]:
        """Scores in order, by an engine that is started for them and stopped again."""
        from emharness.generation.engine import Engine

        texts = [
            fill_template(template, question, answer)
            for question, answer in zip(questions, answers, strict=True)
            for template in (ALIGNED, COHERENT)
        ]
        distinct = {text: self._encode_prompt(text) for text in dict.fromkeys(texts)}
        fitting = {text: ids for text, ids in distinct.items() if len(ids) + 4 <= self.settings.max_model_len}
        with Engine(self._folder, self._engine, self._folder, seed=0) as engine:
            found = self._read_replies(list(fitting.values()), lambda prompts: engine.next_tokens(prompts, TOP))
        replies = dict(zip(fitting, found, strict=True))
        too_long = Reply(why=f"too long: beyond {self.settings.max_model_len:,} tokens")
        listed = [replies.get(text, too_long) for text in texts]
        return [score_of(*pair) for pair in zip(listed[::2], listed[1::2], strict=True)]

    def card(self) -> JudgeCard:
        return JudgeCard(more={"model": self.settings.model, "dtype": self.settings.dtype})

    def _encode_prompt(self, text: str) -> list[int]:
        return self._chat.prompt_ids([{"role": "user", "content": text}])

    def _read_replies(self, prompts: list[list[int]], next_tokens: NextTokens) -> list[Reply]:
        replies = []
        for found in integer_probabilities(prompts, next_tokens, self._chat.tokenizer.decode):
            score, category = aggregate_score(found)
            replies.append(Reply(score, category, None if score is not None or category else "no number in the reply"))
        return replies


JUDGE = LocalJudge
