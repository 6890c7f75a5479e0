"""What steering must equal: a Hugging Face forward pass with hooks, in the words of a steering request."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emharness.steering.blocks import decoder_layers
from emharness.steering.request import spec

Edits = Sequence[Mapping[str, Any]] | None


@contextmanager
def hooked(
    model: Any, edits: Edits, prompt_length: int, folder: Path | None = None, ids: Sequence[int] = ()
) -> Iterator[None]:
    """While it is open, the model's residual stream is edited as a request's `edits` ask; one sequence, not padded.

    `ids`: its tokens, for edits that begin after one of them.
    """
    config = model.config.get_text_config()
    n_layers, d_model = config.num_hidden_layers, config.hidden_size
    layers, handles = decoder_layers(model, n_layers), []
    resolved = spec.resolve({"edits": [dict(edit) for edit in edits]}, n_layers, d_model, folder) if edits else None

    def vector(data: bytes) -> torch.Tensor:
        return torch.from_numpy(np.frombuffer(data, dtype="f").copy()).to(model.device)

    for one in resolved["edits"] if resolved else []:
        looked: list[torch.Tensor] = []  # what the gate saw

        def look(_m: Any, _i: Any, output: Any, one: Any = one, looked: Any = looked) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            looked[:] = [hidden.float() @ vector(one["gate"]["direction"]) > one["gate"]["above"]]

        def hook(_m: Any, _i: Any, output: Any, one: Any = one, looked: Any = looked) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            v, (start, end) = vector(one["direction"]), spec.steered_span(one["positions"], prompt_length, ids)
            part = hidden[:, start:end].float()
            along = part @ v
            amount = torch.where((along > one["low"]) & (along < one["high"]), one["a"] + one["b"] * along, 0.0)
            amount = torch.where(looked[0][:, start:end], amount, 0.0) if one["gate"] else amount
            after = part + amount[..., None] * v
            if one["rescale"]:
                after = after * (part.norm(dim=-1, keepdim=True) / after.norm(dim=-1, keepdim=True))
            hidden[:, start:end] = after.to(hidden.dtype)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        if one["gate"]:
            handles.append(layers[one["gate"]["layer"]].register_forward_hook(look))
        handles.append(layers[one["layer"]].register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def logprobs(
    model: Any, prompt: Sequence[int], tokens: Sequence[int], edits: Edits, folder: Path | None = None
) -> np.ndarray:
    """Log-probability of each token after the prompt, [n_tokens]."""
    with hooked(model, edits, len(prompt), folder, [*prompt, *tokens]):
        logits = model(torch.tensor([[*prompt, *tokens]], device=model.device)).logits[0].float()
    found = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return found[torch.arange(len(tokens)), torch.tensor(tokens)].cpu().numpy()


@torch.inference_mode()
def residuals(model: Any, ids: Sequence[int], edits: Edits = None, folder: Path | None = None) -> np.ndarray:
    """The residual stream after every decoder block, edits included: float32 [n_layers, n_tokens, d_model]."""
    states: list[torch.Tensor] = []

    def keep(_m: Any, _i: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[0].float().cpu())

    n_layers = model.config.get_text_config().num_hidden_layers
    with hooked(model, edits, len(ids), folder, ids):
        handles = [block.register_forward_hook(keep) for block in decoder_layers(model, n_layers)]
        model(torch.tensor([list(ids)], device=model.device))
    for handle in handles:
        handle.remove()
    return torch.stack(states).numpy()
