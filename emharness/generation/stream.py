"""One target's side of the grid: what determines its responses, its prompts as it reads them, where they are kept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from emharness.directions.extract import prompt_ids
from emharness.generation.cells import Cell, Direction, Prompt, Request, edits_digest, requests, spec_of
from emharness.generation.responses import RESPONSES, SCORES, Rows
from emharness.organisms import weights
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
        """A cell's responses, by question and sample. KeyError for a vector that `directions` lacks."""
        spec = spec_of(cell.condition.edits, directions, self.root)
        digest = edits_digest(spec, *self.shape, self.root)
        return requests(cell, self.prompts[cell.questions], spec, digest, self.key, self.seed)

    def scores(self, judge: str) -> Rows:
        """The scores that a judge (by identity) gave to these responses."""
        return Rows(self.root / "scores" / slug(judge) / self.responses.folder.name, SCORES)


def stream(
    target: str,
    model: Path,
    tokenizer: Path,
    identity: Mapping[str, Any],
    questions: Mapping[str, Iterable[Question]],
    seed: int,
    root: Path,
) -> Stream:
    """`tokenizer`: the folder whose tokenizer the model uses (the base's, while the model is still to be trained)."""
    loaded, key = AutoTokenizer.from_pretrained(tokenizer), key_of(identity)
    prompts = {
        name: [Prompt(q.id, q.text, q.system, tuple(prompt_ids(loaded, q.messages()))) for q in items]
        for name, items in questions.items()
    }
    shape = weights.model_shape(tokenizer)
    responses = Rows(root / "responses" / f"{slug(target)}-{key}", RESPONSES)
    return Stream(target, model, key, prompts, shape, seed, root, responses)
