"""judge=openai: any endpoint that speaks OpenAI's chat completions; GPT-4o by default.

Two requests an answer (aligned, coherent) at temperature 0, with the 20 likeliest first tokens, of which the score is
the mean (see `probabilities`). The key comes from the environment and is never written anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from emharness.errors import UserError
from emharness.judges import Judge, Score
from emharness.judges.chat_endpoint import Endpoint
from emharness.judges.judge_prompts import ALIGNED, COHERENT, fill_template
from emharness.judges.reply import Reply, score_of
from emharness.judges.reply_scores import TOP, aggregate_score, begins_with_a_score, parse_reply
from emharness.results.judge_quality import JudgeCard

CHARACTERS = 4.0  # of English text in a token, for estimates
CODE = 2  # raise when the same replies give other scores
FIRST_TOKENS = 4  # enough to see whether the first one is the whole number
TEXT_TOKENS = 32  # where an endpoint gives no probabilities: a number as JSON in a fence must fit


@dataclass(frozen=True)
class Settings:
    """`prices`: US dollars for a million tokens, read and written. `concurrency`: requests at once."""

    model: str = "gpt-4o-2024-08-06"
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    probabilities: bool = True  # False: the endpoint gives none, its text is read
    concurrency: int = 16
    timeout: float = 60.0  # seconds, of one request
    retries: int = 6  # with growing pauses, after 429, 5xx, timeouts and broken connections
    max_cost: float | None = None  # US dollars
    prices: dict[str, float] = field(default_factory=lambda: {"input": 2.5, "output": 10.0})


class RemoteJudge(Judge):
    """Scores by a chat model behind an endpoint; thread-safe counts of what it cost."""

    Settings = Settings
    batch_size = 64

    def __init__(self, cache: Path, settings: Settings):
        super().__init__(cache, settings)
        for name, least in (("concurrency", 1), ("retries", 0), ("timeout", 0.001)):
            if not getattr(settings, name) >= least:
                raise UserError(f"judge.settings.{name}={getattr(settings, name)}: must be at least {least}")
        if set(settings.prices) != {"input", "output"}:
            raise UserError("judge.settings.prices: must have input and output, US dollars for a million tokens")
        key = os.environ.get(settings.key_variable)
        if not key:
            raise UserError(
                f"judge=openai: the environment has no {settings.key_variable}; set it, or choose judge=local (a chat "
                "model on your own machine) or judge=embedded (offline, small)"
            )
        self._lock = Lock()
        self._endpoint = Endpoint(key, settings.base_url, settings.timeout, settings.retries)
        self.name = settings.model
        about = {key: value for key, value in asdict(settings).items() if key in ("model", "base_url", "probabilities")}
        asked = {**about, "prompts": [ALIGNED, COHERENT], "code": CODE}
        self.identity = f"{self.name}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}"
        self.tokens = Counter[str]()  # input, output
        self.models = Counter[str]()  # by which snapshot the endpoint says it answered

    def check_budget(self, questions: Sequence[str], answers: Sequence[str]) -> str | None:
        """What scoring these will probably cost; UserError if it goes beyond `max_cost`. Asks nothing."""
        estimate = self.estimate_cost(questions, answers)
        limit = self.settings.max_cost
        if limit is not None and self.spent_dollars + estimate > limit:
            raise UserError(
                f"judge.settings.max_cost={limit:g}: {len(answers):,} answers would cost about {estimate:.2f} dollars "
                f"beside {self.spent_dollars:.2f} spent; give a higher limit, fewer samples, or judge=embedded"
            )
        return f"about {estimate:.2f} dollars for {len(answers):,} answers, {self.spent_dollars:.2f} spent so far"

    def score_answers(self, questions: Sequence[str], answers: Sequence[str]) -> list[Score]:
        """Scores in order; whatever fails is unscored with its reason, the others go on."""
        wanted = [
            fill_template(template, question, answer)
            for question, answer in zip(questions, answers, strict=True)
            for template in (ALIGNED, COHERENT)
        ]
        distinct = list(dict.fromkeys(wanted))
        pool = ThreadPoolExecutor(self.settings.concurrency)
        try:
            replies = dict(zip(distinct, pool.map(self._ask_score, distinct), strict=True))
        finally:  # where one reply says that no other can be had, those that wait are not sent
            pool.shutdown(cancel_futures=True)
        found = [replies[text] for text in wanted]
        return [score_of(*pair) for pair in zip(found[::2], found[1::2], strict=True)]

    def card(self) -> JudgeCard:
        """What was asked, by which snapshots, and what it cost so far in this process."""
        shown = {key: value for key, value in asdict(self.settings).items() if key != "key_variable"}
        spent = {"tokens": dict(self.tokens), "cost_usd": round(self.spent_dollars, 4)}
        return JudgeCard(more={**shown, "snapshots": dict(self.models), **spent})

    def estimate_cost(self, questions: Sequence[str], answers: Sequence[str]) -> float:
        """US dollars for scoring these at most, from their length; asks nothing."""
        fixed = len(ALIGNED) + len(COHERENT)
        read = sum(fixed + 2 * (len(q) + len(a)) for q, a in zip(questions, answers, strict=True)) / CHARACTERS
        written = FIRST_TOKENS if self.settings.probabilities else TEXT_TOKENS
        return self._price_tokens(read, 2 * written * len(answers))

    @property
    def spent_dollars(self) -> float:
        """US dollars for the tokens that the endpoint has counted so far."""
        return self._price_tokens(self.tokens["input"], self.tokens["output"])

    def _price_tokens(self, n_read: float, n_written: float) -> float:
        return (n_read * self.settings.prices["input"] + n_written * self.settings.prices["output"]) / 1e6

    def _ask_score(self, text: str) -> Reply:
        settings = self.settings
        extra: dict[str, Any] = {"max_tokens": TEXT_TOKENS}
        if settings.probabilities:
            extra = {"max_tokens": FIRST_TOKENS, "logprobs": True, "top_logprobs": TOP}
        reply = self._endpoint.request_completion(
            model=settings.model, messages=[{"role": "user", "content": text}], temperature=0, seed=0, **extra
        )
        if isinstance(reply, Reply):
            return reply
        try:
            return self._read_reply(reply)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            return Reply(why=f"malformed reply: {type(error).__name__}", again=True)

    def _read_reply(self, reply: Any) -> Reply:
        with self._lock:
            if reply.usage is not None:
                self.tokens.update(input=reply.usage.prompt_tokens, output=reply.usage.completion_tokens)
            self.models[reply.model] += 1
        choice = reply.choices[0]
        text = choice.message.content or ""
        if choice.finish_reason == "content_filter":
            return Reply(why="filtered by the endpoint", again=True)
        if not self.settings.probabilities:
            score, category = parse_reply(text)
        elif choice.logprobs is None or not choice.logprobs.content:
            return Reply(
                why="the endpoint gave no log-probabilities; set judge.settings.probabilities=false", again=True
            )
        else:
            tokens = choice.logprobs.content
            if _continues_number(tokens):
                raise self._endpoint.stop_asking(
                    f"{self.name} writes a number as several tokens ({text.strip()[:8]!r}), so the "
                    "first token's probabilities are not its score's; set judge.settings.probabilities=false"
                )
            score, category = None, None
            if begins_with_a_score(text):
                score, category = aggregate_score(
                    {entry.token: math.exp(entry.logprob) for entry in tokens[0].top_logprobs}
                )
        if score is not None or category:
            return Reply(score, category)
        if not text.strip():
            return Reply(why="empty reply", again=True)
        if choice.finish_reason == "length" and not self.settings.probabilities:
            return Reply(why=f"no number within {TEXT_TOKENS} tokens of the reply", again=True)
        return Reply(why="no number in the reply")


def _continues_number(tokens: Sequence[Any]) -> bool:
    """Whether the number that a reply begins with is written as several tokens."""
    first = next((i for i, token in enumerate(tokens) if token.token.strip()), len(tokens))
    number = [token.token for token in tokens[first : first + 2]]
    return len(number) == 2 and number[0].strip().isdecimal() and number[1][:1].isdecimal()


JUDGE = RemoteJudge
