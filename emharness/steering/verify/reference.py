"""What steering must equal: a Hugging Face forward pass with hooks, in the words of a steering request.

Formulas and positions are written out from docs/steering.md and share nothing with the code that steers, so that a
mistake there cannot hide here; only the vectors are read by the same reader.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emharness.steering.blocks import decoder_layers
from emharness.steering.request import spec
from emharness.steering.request.vector_lookup import load_vector

Edits = Sequence[Mapping[str, Any]] | None


def moved_by(mode: str, strength: float, along: torch.Tensor) -> torch.Tensor:
    """How far a mode moves the residual stream along the unit vector, given its projection on it, [...] → [...]."""
    becomes = {
        "add": lambda: along + strength,
        "ablate": lambda: along - strength * along,
        "pin": lambda: torch.full_like(along, strength),
        "cap": lambda: along.clamp(max=strength),
        "floor": lambda: along.clamp(min=strength),
    }
    return becomes[mode]() - along


def is_steered(positions: Any, i: int, prompt_length: int, ids: Sequence[int]) -> bool:
    """Whether token i of prompt and answer is among the positions of a parsed edit."""
    if isinstance(positions, spec.Span):
        return positions.first <= i and (positions.to is None or i < positions.to)
    if isinstance(positions, spec.AfterToken):
        return positions.after_token in list(ids)[:i]
    first = {"all": 0, "prompt": 0, "generated": prompt_length, "response": prompt_length - 1}[positions]
    return first <= i and (positions != "prompt" or i < prompt_length)


@contextmanager
def edited_by_hooks(
    model: Any, edits: Edits, prompt_length: int, folder: Path | None = None, ids: Sequence[int] = ()
) -> Iterator[None]:
    """While it is open, the model's residual stream is edited as a request's `edits` ask; one sequence, not padded.

    `ids`: its tokens, for edits that begin after one of them.
    """
    n_layers = model.config.get_text_config().num_hidden_layers
    layers, handles = decoder_layers(model, n_layers), []
    asked = spec.parse_spec({"edits": [dict(edit) for edit in edits]}).edits if edits else []

    def unit(reference: str, layer: int) -> torch.Tensor:
        return torch.from_numpy(load_vector(reference, layer, n_layers, folder).direction.copy()).to(model.device)

    def attach(one: Any, layer: int) -> None:
        stored, v = load_vector(one.vector, layer, n_layers, folder), unit(one.vector, layer)
        length = {"absolute": 1.0, "raw": stored.raw_norm, "residual": stored.residual_norm}[one.unit]
        strength = one.strength * (length or 0.0)
        looked: list[torch.Tensor] = []  # what the gate saw, [n_sequences, n_tokens]

        def look(_m: Any, _i: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            looked[:] = [hidden.float() @ unit(one.gate.vector, gate_layer) > one.gate.above]

        def hook(_m: Any, _i: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            before = hidden.float()
            after = before + moved_by(one.mode, strength, before @ v)[..., None] * v
            if one.rescale:
                after = after * (before.norm(dim=-1, keepdim=True) / after.norm(dim=-1, keepdim=True))
            where = torch.tensor([is_steered(one.positions, i, prompt_length, ids) for i in range(hidden.shape[1])])
            where = where.to(hidden.device)[None] & (looked[0] if one.gate else torch.ones_like(before[..., 0]).bool())
            edited = torch.where(where[..., None], after.to(hidden.dtype), hidden)
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        if one.gate:
            gate_layer = layer if one.gate.layer is None else one.gate.layer
            handles.append(layers[gate_layer].register_forward_hook(look))
        handles.append(layers[layer].register_forward_hook(hook))

    for one in asked:
        for layer in one.edited_blocks:
            attach(one, layer)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def token_logprobs(
    model: Any, prompt: Sequence[int], tokens: Sequence[int], edits: Edits, folder: Path | None = None
) -> np.ndarray:
    """Log-probability of each token after the prompt, [n_tokens]."""
    with edited_by_hooks(model, edits, len(prompt), folder, [*prompt, *tokens]):
        logits = model(torch.tensor([[*prompt, *tokens]], device=model.device)).logits[0].float()
    found = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return found[torch.arange(len(tokens)), torch.tensor(tokens)].cpu().numpy()


@torch.inference_mode()
def block_residuals(model: Any, ids: Sequence[int], edits: Edits = None, folder: Path | None = None) -> np.ndarray:
    """The residual stream after every decoder block, edits included: float32 [n_layers, n_tokens, d_model]."""
    states: list[torch.Tensor] = []

    def keep(_m: Any, _i: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[0].float().cpu())

    n_layers = model.config.get_text_config().num_hidden_layers
    with edited_by_hooks(model, edits, len(ids), folder, ids):
        handles = [block.register_forward_hook(keep) for block in decoder_layers(model, n_layers)]
        model(torch.tensor([list(ids)], device=model.device))
    for handle in handles:
        handle.remove()
    return torch.stack(states).numpy()
