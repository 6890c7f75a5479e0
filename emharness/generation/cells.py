"""The grid's vocabulary: an edit, a condition, a cell; and the keys under which responses are kept.

A response is determined by what the model is (the stream), by the edits of its residual stream, by the tokens it
is asked with, by how much it may say, and by which sample it is. Its key is the hash of these, so experiments that
ask the same thing share the answer, whatever they call it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emharness.steering.request import spec as steering


@dataclass(frozen=True)
class Edit:
    """One edit of the residual stream after block `layer`, in the words of the study.

    `strength` is in `unit`: absolute, raw (1 = the raw norm) or residual (1 = the mean residual norm). The norms
    are those of `norm_of`, or of the vector itself: a random direction takes the dose of the vector it controls.
    """

    vector: str
    layer: int
    strength: float
    unit: str = "raw"
    mode: str = "add"
    positions: str = "all"
    norm_of: str | None = None


@dataclass(frozen=True)
class Condition:
    """Target model + edits; without edits it is unsteered. `name` is for people and is no part of its identity."""

    target: str
    edits: tuple[Edit, ...] = ()
    name: str = field(default="", compare=False)


@dataclass(frozen=True)
class Cell:
    """A condition on a question set, so many samples of each question."""

    condition: Condition
    questions: str
    samples: int
    max_new_tokens: int
    judged: bool = True  # texts that a vector is made of get no scores


@dataclass(frozen=True)
class Direction:
    """Where a stored vector lies and what its units mean; norms float [n_layers], None where it has none. `there`: bool
    [n_layers], at which layers it has a direction; None: at all."""

    file: Path
    name: str
    raw_norm: np.ndarray | None = None
    residual_norm: np.ndarray | None = None
    there: np.ndarray | None = None

    def has_layer(self, layer: int) -> bool:
        return self.there is None or bool(self.there[layer])


@dataclass(frozen=True)
class Prompt:
    """A question as the model reads it."""

    question_id: str
    question: str
    system: str | None
    token_ids: tuple[int, ...]

    @property
    def key(self) -> str:
        return _short_hash(np.asarray(self.token_ids, dtype=np.int64).tobytes())


@dataclass(frozen=True)
class Request:
    """One response to be had."""

    key: str
    edits: str  # digest of its edits
    prompt: Prompt
    sample: int
    max_new_tokens: int
    spec: Mapping[str, Any] | None
    seed: int


def make_steering_spec(edits: Sequence[Edit], directions: Mapping[str, Direction], root: Path) -> dict[str, Any] | None:
    """The steering request, with every strength as an absolute length; None where nothing is edited.

    Files are named relative to `root`, the folder that the engine reads vectors from. KeyError for an unknown vector.
    """
    listed = []
    for edit in edits:
        if edit.strength == 0:
            continue
        own, scale = directions[edit.vector], directions[edit.norm_of or edit.vector]
        if edit.mode == "ablate" and not own.has_layer(edit.layer):
            continue  # there is nothing of it to remove
        length = 1.0
        if edit.mode == "add" and edit.unit != "absolute":
            norms = scale.raw_norm if edit.unit == "raw" else scale.residual_norm
            if norms is None:
                raise ValueError(f"vector {edit.norm_of or edit.vector} has no {edit.unit} norm")
            length = float(norms[edit.layer])
        listed.append(
            {
                "vector": f"{own.file.relative_to(root).as_posix()}#{own.name}",
                "layer": edit.layer,
                "strength": edit.strength * length,
                "mode": edit.mode,
                "positions": edit.positions,
            }
        )
    return {"edits": listed} if listed else None


def edits_digest(spec: Mapping[str, Any] | None, n_layers: int, d_model: int, root: Path) -> str:
    """Hash of what the edits do: directions by content, strengths, layers, positions; "" where nothing is edited."""
    return steering.resolve_spec(dict(spec), n_layers, d_model, root)["digest"].hex()[:16] if spec else ""


def list_requests(
    cell: Cell, prompts: Iterable[Prompt], spec: Mapping[str, Any] | None, digest: str, stream: str, seed: int
) -> list[Request]:
    """A cell's responses in order: by question, then sample. `stream` is the key of all that its target shares.

    The seed of a response comes from its key, so that it does not depend on what else is asked beside it.
    """
    listed = []
    for prompt in prompts:
        for sample in range(cell.samples):
            key = _short_hash(f"{stream} {digest} {prompt.key} {cell.max_new_tokens} {sample}".encode())
            number = int(_short_hash(f"{seed} {key}".encode())[:15], 16)
            listed.append(Request(key, digest, prompt, sample, cell.max_new_tokens, spec, number))
    return listed


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:20]
