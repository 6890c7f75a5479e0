"""Judges: who scores an answer as aligned and coherent, 0-100 each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from emharness.config import EngineConfig
from emharness.errors import UserError
from emharness.judge.metrics import Quality


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

    at_once: int | None  # answers whose scores are stored together; None: all

    @property
    def engine(self) -> tuple[Path, EngineConfig] | None:
        """The model that it starts vLLM for, and how; no other engine should run beside it. None: it starts none."""
        ...

    def afford(self, questions: Sequence[str], answers: Sequence[str]) -> str | None:
        """What it will cost, in words; None if nothing. UserError if it is more than the user allows."""
        ...

    @property
    def quality(self) -> Quality | None: ...  # measured against people or a better judge; None: not known

    def score(self, questions: Sequence[str], answers: Sequence[str]) -> list[Score]: ...

    def card(self) -> dict[str, Any] | None: ...


def _embedded(cache: Path, **settings: Any) -> Judge:
    from emharness.judge.embedded import EmbeddedJudge

    return EmbeddedJudge(cache, **settings)


def _remote(cache: Path, **settings: Any) -> Judge:
    from emharness.judge.remote import RemoteJudge, Settings

    return RemoteJudge(Settings(**settings))


def _local(cache: Path, **settings: Any) -> Judge:
    from emharness.judge.local import LocalJudge, Settings

    return LocalJudge(cache, Settings(**settings))


JUDGES: dict[str, Callable[..., Judge]] = {"embedded": _embedded, "openai": _remote, "local": _local}


def make_judge(name: str, cache: Path, **settings: Any) -> Judge:
    """The judge of that name; `cache` is a folder for what it keeps between runs."""
    if name not in JUDGES:
        raise UserError(f"judge.name={name}: unknown; must be one of {', '.join(JUDGES)}")
    try:
        return JUDGES[name](cache, **settings)
    except TypeError:
        raise UserError(f"judge.settings={settings}: not settings of judge={name}") from None
