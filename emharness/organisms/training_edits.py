"""Edits of the residual stream while an organism is trained; afterwards they are off.

They are the edits of requests (docs/steering.md) at all positions, along a vector of a file or along directions that
the base gives before training (contrast_directions.py). `add` is preventative steering (Chen et al. 2025,
arXiv:2507.21509): the model need not learn a shift that it is given. `ablate` with strength 1 is concept ablation
fine-tuning (Casademunt et al. 2025, arXiv:2507.16795): the loss says nothing of what lies along the direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from emharness.errors import UserError
from emharness.organisms.chat import Chat
from emharness.organisms.contrast_directions import Contrast, parse_contrast, read_directions
from emharness.steering.request.modes import MODES
from emharness.steering.request.spec import Edit, EditJson, ResolvedSpec, edit_rule, parse_spec, resolve_spec
from emharness.steering.request.vector_lookup import StoredVector


@dataclass(frozen=True)
class ContrastEdit:
    """An edit along directions that the base gives. `rule`: mode, strength and unit; its vector and layer are not
    used."""

    contrast: Contrast
    rule: Edit

    def identity(self) -> dict[str, Any]:
        return {**self.contrast.identity(), **{key: getattr(self.rule, key) for key in ("mode", "strength", "unit")}}


@dataclass(frozen=True)
class TrainingEdits:
    """`stored`: along vectors of files; `contrasts`: along directions of the base."""

    stored: ResolvedSpec | None = None
    contrasts: tuple[ContrastEdit, ...] = ()

    def __bool__(self) -> bool:
        return self.stored is not None or bool(self.contrasts)

    def identity(self) -> dict[str, Any]:
        """What an organism is stored under; empty where nothing is edited."""
        stored = {"edits": self.stored["digest"].hex()} if self.stored else {}
        return {**stored, **({"contrasts": [edit.identity() for edit in self.contrasts]} if self.contrasts else {})}


NO_EDITS = TrainingEdits()


def check_edits(edits: Sequence[EditJson], organism: str, shape: tuple[int, int], location: str) -> TrainingEdits:
    """A recipe's edits: those with a `vector`, `<file>#<key>` below EMHARNESS_VECTORS, and those with a `direction`, a
    source of contrast_directions.py.

    `{organism}` in a vector's name stands for the organism's; shape: (n_layers, d_model). UserError, beginning with
    `location`, for what is no edit, a vector that is not there, and positions and gates, which only answers have.
    """
    contrasts = tuple(_check_contrast(edit, f"{location}: edits") for edit in edits if "direction" in edit)
    named = [
        {key: value.format(organism=organism) if isinstance(value, str) else value for key, value in edit.items()}
        for edit in edits
        if "direction" not in edit
    ]
    if not named:
        return TrainingEdits(None, contrasts)
    try:
        for edit in parse_spec({"edits": named}).edits:
            if edit.positions != "all" or edit.gate is not None or edit.rescale:
                raise ValueError("steering: positions, gate and rescale cannot be set for training")
        return TrainingEdits(resolve_spec({"edits": named}, *shape), contrasts)
    except ValueError as error:
        raise UserError(f"{location}: edits: {str(error).removeprefix('steering: ')}") from None


def _check_contrast(given: Mapping[str, Any], location: str) -> ContrastEdit:
    own = {key: given[key] for key in ("mode", "strength", "unit") if key in given}
    contrast = parse_contrast({key: value for key, value in given.items() if key not in own}, location)
    try:
        rule = parse_spec({"edits": [{"vector": "", "layer": 0, **own}]}).edits[0]
    except ValueError as error:
        raise UserError(f"{location}: {str(error).removeprefix('steering: edits.0.')}") from None
    if contrast.rank is not None and MODES[rule.mode].is_length and rule.unit == "raw":
        raise UserError(f"{location}: rank={contrast.rank}, unit=raw: a subspace has no length of its own")
    if not MODES[rule.mode].is_length and rule.unit != "absolute":
        raise UserError(f"{location}: mode={rule.mode}: takes a plain factor, so unit must be absolute")
    return ContrastEdit(contrast, rule)


def read_edits(edits: TrainingEdits, model: Any, chat: Chat, seed: int) -> list[EditJson]:
    """All edits as `apply_edits` takes them; `model` must still answer as the base does."""
    found: list[EditJson] = list(edits.stored["edits"]) if edits.stored else []
    for edit in edits.contrasts:
        for at in read_directions(model, chat, edit.contrast, seed):
            for unit in at.units:
                rule = edit_rule(edit.rule, StoredVector(unit.tobytes(), at.length, at.residual))
                found.append({"layer": at.layer, "direction": unit.tobytes(), **asdict(rule)})
    return found


@contextmanager
def apply_edits(model: Any, edits: Sequence[EditJson]) -> Iterator[None]:
    """Edit the stream of every forward pass inside; gradients go through the edits."""
    if not edits:
        yield
        return
    from emharness.steering.blocks import decoder_layers

    layers = decoder_layers(model, model.config.get_text_config().num_hidden_layers)
    handles = [layers[edit["layer"]].register_forward_hook(_make_hook(edit)) for edit in edits]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _make_hook(edit: EditJson) -> Callable[[Any, Any, Any], Any]:
    """h ← h + (a + b · (h·v̂)) v̂ where low < h·v̂ < high, at every token."""
    import torch

    unit = torch.from_numpy(np.frombuffer(edit["direction"], dtype=np.float32).copy())

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        v = unit.to(hidden.device)
        along = hidden.float() @ v
        inside = (along > edit["low"]) & (along < edit["high"])
        edited = hidden + (torch.where(inside, edit["a"] + edit["b"] * along, 0.0)[..., None] * v).to(hidden.dtype)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    return hook
