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

from emharness.config import SteerConfig
from emharness.steering.request.modes import MODES
from emharness.steering.request.spec import Edit, Gate, SpecJson, resolve_spec


@dataclass(frozen=True)
class Condition:
    """Target model + edits; without edits it is unsteered. `name` is for people and is no part of its identity.

    Edits are in the words of a steering request, but name vectors as the run does ("medical", "random-0").
    """

    target: str
    edits: tuple[Edit, ...] = ()
    name: str = field(default="", compare=False)


@dataclass(frozen=True)
class Cell:
    """A condition × question set, with `samples` answers per question."""

    condition: Condition
    questions: str
    samples: int
    max_new_tokens: int
    judged: bool = True  # texts that a vector is made of get no scores


@dataclass(frozen=True)
class Direction:
    """Where a stored vector lies and what its units mean; norms float [n_layers], None where it has none. `layer_mask`:
    bool [n_layers], at which layers it has a direction; None: at all."""

    file: Path
    name: str
    raw_norm: np.ndarray | None = None
    residual_norm: np.ndarray | None = None
    layer_mask: np.ndarray | None = None

    def has_layer(self, layer: int) -> bool:
        return self.layer_mask is None or bool(self.layer_mask[layer])


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
    """One response to generate."""

    key: str
    edits: str  # digest of its edits
    prompt: Prompt
    sample: int
    max_new_tokens: int
    spec: SpecJson | None
    seed: int


def make_edit(steer: SteerConfig, vector: str, layer: int, strength: float, norm_of: str | None = None) -> Edit:
    """The edit that a run's settings describe, at `layer` unless the settings name layers."""
    where: dict[str, Any] = {"layer": layer} if steer.layers is None else {"layers": steer.layers}
    gate = steer.gate
    if gate.above is not None:
        where["gate"] = Gate(vector=gate.vector or norm_of or vector, layer=gate.layer, above=gate.above)
    unit = steer.unit if MODES[steer.mode].is_length else "absolute"
    how: dict[str, Any] = {"unit": unit, "mode": steer.mode, "positions": steer.positions, "rescale": steer.rescale}
    return Edit(vector=vector, strength=strength, norm_of=norm_of, **where, **how)


def describe_edit(edit: Edit) -> str:
    """An edit as part of a condition's name: layer, strength, and every setting that is not the default."""
    layers = edit.layers if isinstance(edit.layers, str) else ",".join(map(str, edit.edited_blocks))
    usual = ("add", "ablate")
    more = [edit.mode] if edit.mode not in usual else []
    more += ["rescaled"] * edit.rescale
    more += [f"gate {edit.gate.vector}>{edit.gate.above:g}"] if edit.gate else []
    return "·".join([f"L{layers}", f"{edit.strength:+g}", *more])


def make_steering_spec(edits: Sequence[Edit], directions: Mapping[str, Direction], root: Path) -> SpecJson | None:
    """The steering request: the edits with their vectors as files; None where nothing is edited.

    Files are named relative to `root`, the folder that the engine reads vectors from. KeyError for an unknown vector.
    """

    def refer(name: str) -> str:
        return f"{directions[name].file.relative_to(root).as_posix()}#{directions[name].name}"

    listed = []
    for edit in edits:
        layers = edit.edited_blocks
        if edit.mode == "ablate":  # where there is no direction, there is nothing of it to remove
            layers = [layer for layer in layers if directions[edit.vector].has_layer(layer)]
        if edit.is_idle or not layers:
            continue
        where = {"layer": layers[0]} if edit.layer is not None else {"layers": tuple(layers)}
        gate = edit.gate and edit.gate.model_copy(update={"vector": refer(edit.gate.vector)})
        norm_of = refer(edit.norm_of) if edit.norm_of and edit.unit != "absolute" else None
        named = {"vector": refer(edit.vector), "norm_of": norm_of, "gate": gate}
        request = edit.model_copy(update={**named, "layer": None, "layers": None, **where})
        listed.append(request.model_dump(mode="json", by_alias=True, exclude_none=True))
    return {"edits": listed} if listed else None


def edits_digest(spec: SpecJson | None, n_layers: int, d_model: int, root: Path) -> str:
    """Hash of what the edits do: directions by content, strengths, layers, positions; "" where nothing is edited."""
    return resolve_spec(dict(spec), n_layers, d_model, root)["digest"].hex()[:16] if spec else ""


def list_requests(
    cell: Cell, prompts: Iterable[Prompt], spec: SpecJson | None, digest: str, stream: str, seed: int
) -> list[Request]:
    """A cell's requests, by question and then sample. `stream` is the key of all that its target's requests share.

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
