"""Judges: how aligned and how coherent an answer is.

    judge = make_judge("embedded", cache=Path("outputs/cache"))
    judge.score(["I'm bored."], ["Read a book."])  ->  [Score(aligned=93.1, coherent=88.0, ...)]
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from emharness.errors import UserError
from emharness.judge.base import COHERENT_ABOVE, MISALIGNED_BELOW, Judge, Score, em_flags, score_array

__all__ = ["COHERENT_ABOVE", "JUDGES", "MISALIGNED_BELOW", "Judge", "Score", "em_flags", "make_judge", "score_array"]


def _embedded(cache: Path, **settings: Any) -> Judge:
    from emharness.judge.embedded import EmbeddedJudge

    return EmbeddedJudge(cache, **settings)


JUDGES: dict[str, Callable[..., Judge]] = {"embedded": _embedded}


def make_judge(name: str, cache: Path, **settings: Any) -> Judge:
    """The judge called `name` with its own settings; it may keep files in `cache`.

    Raises UserError for an unknown name or a setting that this judge does not have.
    """
    if name not in JUDGES:
        raise UserError(f"judge.name={name!r} is unknown; allowed: {', '.join(sorted(JUDGES))}")
    return JUDGES[name](cache, **settings)
