"""One target's side of the grid: what determines its responses, its prompts as it reads them, where they are kept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emharness.errors import UserError
from emharness.generation.cells import Cell, Direction, Prompt, Request, edits_digest, requests, spec_of
from emharness.generation.responses import RESPONSES, SCORES, Rows
from emharness.organisms.chat import Chat
from emharness.questions import Question
from emharness.store import key_of, slug


@dataclass(frozen=True)
class Stream:
    target: str
    model: Path
    key: str  # hash of what all its responses share: weights, sampling, engine, seed
    prompts: Mapping[str, Sequence[Prompt]]  # by question set
    shape: tuple[int, int]  # (n_layers, d_model)
    seed: int
    root: Path  # of the store: vector files are named relative to it
    responses: Rows

    def requests(self, cell: Cell, directions: Mapping[str, Direction]) -> list[Request]:
        """A cell's responses, by question and sample. KeyError for a vector that `directions` lacks, UserError for a
        dose that no engine would take."""
        spec = spec_of(cell.condition.edits, directions, self.root)
        try:
            digest = edits_digest(spec, *self.shape, self.root)
        except ValueError as error:
            raise UserError(f"condition {cell.condition.name}: {error}") from None
        return requests(cell, self.prompts[cell.questions], spec, digest, self.key, self.seed)

    def scores(self, judge: str) -> Rows:
        """The scores that a judge (by identity) gave to these responses."""
        return Rows(self.root / "scores" / slug(judge) / self.responses.folder.name, SCORES)


def stream(
    target: str,
    model: Path,
    prompts: Mapping[str, Sequence[Prompt]],
    shape: tuple[int, int],
    identity: Mapping[str, Any],
    seed: int,
    root: Path,
) -> Stream:
    """`prompts`: every question set, as the model reads it (as the base does, while it is still to be trained)."""
    key = key_of(identity)
    responses = Rows(root / "responses" / f"{slug(target)}-{key}", RESPONSES)
    return Stream(target, model, key, prompts, shape, seed, root, responses)


def read_by(chat: Chat, questions: Mapping[str, Iterable[Question]]) -> dict[str, list[Prompt]]:
    """Question sets as a model reads them. UserError for a question that its template cannot render."""
    return {name: [_prompt(chat, name, q) for q in items] for name, items in questions.items()}


def _prompt(chat: Chat, questions: str, q: Question) -> Prompt:
    try:
        return Prompt(q.id, q.text, q.system, tuple(chat.prompt_ids(q.messages())))
    except ValueError as error:
        raise UserError(f"questions {questions}, {q.id}: {error}") from None
