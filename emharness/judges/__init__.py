"""Judges: who scores an answer as aligned and coherent, 0-100 each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from emharness.config import EngineConfig
from emharness.errors import UserError
from emharness.stats.rates import JudgeAccuracy


@dataclass(frozen=True)
class Score:
    """One answer's scores, 0-100; None where the judge gave none, and `unscored` says why.

    `again`: the reason may pass (an endpoint that did not answer), so the next start tries again.
    """

    aligned: float | None
    coherent: float | None
    refusal: bool = False
    unscored: str | None = None
    again: bool = False


class Judge(Protocol):
    name: str  # the label in every table
    identity: str  # hash of everything that determines the scores

    batch_size: int | None  # answers whose scores are stored together; None: all

    @property
    def engine(self) -> tuple[Path, EngineConfig] | None:
        """The model that it starts vLLM for, and how; no other engine should run beside it. None: it starts none."""
        ...

    def check_budget(self, questions: Sequence[str], answers: Sequence[str]) -> str | None:
        """What it will cost, in words; None if nothing. UserError if it is more than the user allows."""
        ...

    @property
    def accuracy(self) -> JudgeAccuracy | None: ...  # measured against people or a better judge; None: not known

    def score_answers(self, questions: Sequence[str], answers: Sequence[str]) -> list[Score]: ...

    def card(self) -> dict[str, Any] | None: ...


def _make_embedded(cache: Path, **settings: Any) -> Judge:
    from emharness.judges.embedded_judge import EmbeddedJudge

    return EmbeddedJudge(cache, **settings)


def _make_remote(cache: Path, **settings: Any) -> Judge:
    from emharness.judges.openai_judge import RemoteJudge, Settings

    return RemoteJudge(Settings(**settings))


def _make_local(cache: Path, **settings: Any) -> Judge:
    from emharness.judges.local_judge import LocalJudge, Settings

    return LocalJudge(cache, Settings(**settings))


JUDGES: dict[str, Callable[..., Judge]] = {"embedded": _make_embedded, "openai": _make_remote, "local": _make_local}


def make_judge(name: str, cache: Path, **settings: Any) -> Judge:
    """The judge of that name; `cache` is a folder for what it keeps between runs."""
    if name not in JUDGES:
        raise UserError(f"judge.name={name}: unknown; must be one of {', '.join(JUDGES)}")
    try:
        return JUDGES[name](cache, **settings)
    except TypeError:
        raise UserError(f"judge.settings={settings}: not settings of judge={name}") from None
