"""Edits of the residual stream while an organism is trained; afterwards they are off.

They are the edits of requests (docs/steering.md) at all positions. `add` is preventative steering (Chen et al. 2025,
arXiv:2507.21509): the model need not learn a shift that it is given. `ablate` with strength 1 is concept ablation
fine-tuning (Casademunt et al. 2025, arXiv:2507.16795): the loss says nothing of what lies along the direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from emharness.errors import UserError
from emharness.steering.request.spec import EditJson, ResolvedSpec, parse_spec, resolve_spec


def check_edits(edits: Sequence[EditJson], organism: str, shape: tuple[int, int], location: str) -> ResolvedSpec | None:
    """The edits with the directions that they name, `<file>#<key>` below EMHARNESS_VECTORS; None where there are none.

    `{organism}` in a vector's name stands for the organism's; shape: (n_layers, d_model). UserError, beginning with
    `location`, for what is no edit, a vector that is not there, and positions and gates, which only answers have.
    """
    if not edits:
        return None
    named = [
        {key: value.format(organism=organism) if isinstance(value, str) else value for key, value in edit.items()}
        for edit in edits
    ]
    try:
        for edit in parse_spec({"edits": named}).edits:
            if edit.positions != "all" or edit.gate is not None or edit.rescale:
                raise ValueError("steering: positions, gate and rescale cannot be set for training")
        return resolve_spec({"edits": named}, *shape)
    except ValueError as error:
        raise UserError(f"{location}: edits: {str(error).removeprefix('steering: ')}") from None


@contextmanager
def apply_edits(model: Any, spec: ResolvedSpec | None) -> Iterator[None]:
    """Edit the stream of every forward pass inside; gradients go through the edits."""
    if spec is None:
        yield
        return
    from emharness.steering.blocks import decoder_layers

    layers = decoder_layers(model, model.config.get_text_config().num_hidden_layers)
    handles = [layers[edit["layer"]].register_forward_hook(_make_hook(edit)) for edit in spec["edits"]]
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
