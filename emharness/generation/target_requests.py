"""One target's part of the grid: what determines its responses, its tokenised prompts, where responses are stored."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emharness.errors import UserError
from emharness.generation.cells import Cell, Direction, Prompt, Request, edits_digest, list_requests, make_steering_spec
from emharness.generation.response_store import RESPONSES, SCORES, RowStore
from emharness.organisms.chat import Chat
from emharness.questions import Question
from emharness.store import key_of, make_slug


@dataclass(frozen=True)
class TargetRequests:
    target: str
    model: Path
    key: str  # hash of what all its responses share: weights, sampling, engine, seed
    prompts: Mapping[str, Sequence[Prompt]]  # by question set
    shape: tuple[int, int]  # (n_layers, d_model)
    seed: int
    root: Path  # of the store: vector files are named relative to it
    responses: RowStore

    def list_requests(self, cell: Cell, directions: Mapping[str, Direction]) -> list[Request]:
        """A cell's responses, by question and sample. KeyError for a vector that `directions` lacks, UserError for a
        dose that no engine would take."""
        spec = make_steering_spec(cell.condition.edits, directions, self.root)
        try:
            digest = edits_digest(spec, *self.shape, self.root)
        except ValueError as error:
            raise UserError(f"condition {cell.condition.name}: {error}") from None
        return list_requests(cell, self.prompts[cell.questions], spec, digest, self.key, self.seed)

    def open_scores(self, judge: str) -> RowStore:
        """The scores that a judge (by identity) gave to these responses."""
        return RowStore(self.root / "scores" / make_slug(judge) / self.responses.folder.name, SCORES)


def open_target(
    target: str,
    model: Path,
    prompts: Mapping[str, Sequence[Prompt]],
    identity: Mapping[str, Any],
    shape: tuple[int, int],
    root: Path,
) -> TargetRequests:
    """`prompts`: every question set, as the model reads it (as the base does, while it is still to be trained).
    `identity`: all that its responses share, with the run's "seed"; `shape`: (n_layers, d_model)."""
    key = key_of(identity)
    responses = RowStore(root / "responses" / f"{make_slug(target)}-{key}", RESPONSES)
    return TargetRequests(target, model, key, prompts, shape, identity["seed"], root, responses)


def read_by(chat: Chat, questions: Mapping[str, Iterable[Question]]) -> dict[str, list[Prompt]]:
    """Question sets as a model reads them. UserError for a question that its template cannot render."""
    return {name: [_render_prompt(chat, name, q) for q in items] for name, items in questions.items()}


def _render_prompt(chat: Chat, questions: str, q: Question) -> Prompt:
    try:
        return Prompt(q.id, q.text, q.system, tuple(chat.prompt_ids(q.as_messages())))
    except ValueError as error:
        raise UserError(f"questions {questions}, {q.id}: {error}") from None
