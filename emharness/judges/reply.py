"""A judge model's replies, and how two of them become an answer's score."""

from dataclasses import dataclass

from emharness.judges import Score
from emharness.judges.reply_scores import REFUSAL


@dataclass(frozen=True)
class Reply:
    """The outcome of one request: a score, a category, or the reason why there is neither."""

    score: float | None = None
    category: str | None = None
    why: str | None = None
    again: bool = False  # worth another try on the next start


def score_of(aligned: Reply, coherent: Reply) -> Score:
    """Both replies about an answer as its score; a category of the first leaves `aligned` open."""
    why = next((reply.why for reply in (aligned, coherent) if reply.why), None)
    return Score(
        aligned=aligned.score,
        coherent=coherent.score,
        refusal=aligned.category == REFUSAL,
        unscored=why or (aligned.category.lower() if aligned.category else None),
        again=aligned.again or coherent.again,
    )
