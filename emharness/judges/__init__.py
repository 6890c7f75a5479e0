"""Judges: who scores an answer as aligned and coherent, 0-100 each.

A judge is a module `<name>_judge.py` in this folder whose JUDGE is a subclass of `Judge`, and conf/judge/<name>.yaml.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from emharness.config import EngineConfig
from emharness.errors import UserError
from emharness.ranges import describe_unknown
from emharness.results.judge_quality import JudgeCard
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


@dataclass(frozen=True)
class NoSettings:
    pass


class Judge(ABC):
    """The whole contract: a constructor that takes a folder for what is kept between runs and its settings, `name`,
    `identity` and `score_answers`; the rest has defaults."""

    Settings: type = NoSettings  # a dataclass: what conf/judge/<name>.yaml may set below `settings`
    name: str  # the label in every table
    identity: str  # changes with everything that changes a score; stored scores are found by it
    batch_size: int | None = None  # answers whose scores are stored together; None: all
    engine: tuple[Path, EngineConfig] | None = None  # of vLLM, if it starts one: no other should run beside it

    def __init__(self, cache: Path, settings: Any):
        """UserError where a setting cannot be used."""
        self.cache, self.settings = cache, settings

    @abstractmethod
    def score_answers(self, questions: Sequence[str], answers: Sequence[str]) -> list[Score]:
        """A score for each answer, in order; one that cannot be scored says why."""

    @property
    def accuracy(self) -> JudgeAccuracy | None:
        """Its accuracy against readers or a better judge; None if it was not measured."""
        return None

    def check_budget(self, questions: Sequence[str], answers: Sequence[str]) -> str | None:
        """What scoring these will cost, in words; None if it is free. UserError if the settings do not allow it."""
        return None

    def card(self) -> JudgeCard | None:
        """What results.json and W&B say of the judge."""
        return None


_ENDING = "_judge"
# Name → module.
JUDGES = {
    module.name.removesuffix(_ENDING): f"{__name__}.{module.name}"
    for module in pkgutil.iter_modules(__path__)
    if module.name.endswith(_ENDING)
}


def make_judge(name: str, cache: Path, **settings: Any) -> Judge:
    """The judge of that name; `cache` is a folder for what it keeps between runs. UserError for a name or a setting
    that there is not."""
    if name not in JUDGES:
        raise UserError(f"judge.name={name}: unknown; must be one of {', '.join(sorted(JUDGES))}")
    kind: type[Judge] = importlib.import_module(JUDGES[name]).JUDGE
    allowed = [field.name for field in fields(kind.Settings)]
    for key in settings:
        if key not in allowed:
            raise UserError(f"judge={name}: {describe_unknown(key, allowed, 'judge.settings.')}")
    return kind(cache, kind.Settings(**settings))
