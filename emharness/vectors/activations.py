"""Mean residual-stream activations of all layers, one forward pass per batch, nothing kept per token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from emharness.organisms.model_folders import choose_precision
from emharness.steering.blocks import decoder_layers


@dataclass(frozen=True)
class Means:
    """Token means of a set of sequences, in float32.

    total:      [n_layers, d_model]  token-weighted mean over the set
    per_prompt: [n_sequences, n_layers, d_model]  mean of each sequence
    n_tokens:   [n_sequences]  tokens that entered each mean
    norm:       [n_layers]  mean length of the residual stream
    """

    total: np.ndarray
    per_prompt: np.ndarray
    n_tokens: np.ndarray
    norm: np.ndarray


def load_model(folder: Path) -> torch.nn.Module:
    device, dtype = choose_precision()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    return model.to(device).eval()


@torch.inference_mode()
def mean_activations(
    model: torch.nn.Module,
    sequences: Sequence[tuple[list[int], int]],
    batch_size: int,
    skip_tokens: int,
    pad_id: int,
) -> Means:
    """Means over the tokens of each (token ids, first counted position).

    The first `skip_tokens` positions of every sequence stay out: they are attention sinks whose norm is
    orders of magnitude above the rest, and a mean with them measures prompt length. Layer L is the residual
    stream after decoder block L; the last block is read before the final norm. Sums run in float64.
    Raises ValueError when a sequence has no token left to count.
    """
    starts = [max(first, skip_tokens) for _, first in sequences]
    for (ids, _), start in zip(sequences, starts, strict=True):
        if len(ids) <= start:
            raise ValueError(f"a sequence of {len(ids)} tokens has none after the first {start}")
    config = model.config.get_text_config()  # type: ignore[union-attr]
    layers = decoder_layers(model, config.num_hidden_layers)
    per_prompt = np.zeros((len(sequences), len(layers), config.hidden_size), dtype=np.float32)
    total = np.zeros((len(layers), config.hidden_size))
    norm = np.zeros(len(layers))
    counts = np.array([len(ids) - start for (ids, _), start in zip(sequences, starts, strict=True)])
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))  # little padding
    device = next(model.parameters()).device
    captured: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    mask = torch.empty(0)

    def capture(index: int):
        def hook(_module, _inputs, output) -> None:
            hidden = (output[0] if isinstance(output, tuple) else output).double()
            sums = torch.einsum("btd,bt->bd", hidden, mask)
            captured[index] = (sums.cpu(), (hidden.norm(dim=-1) * mask).sum().cpu())

        return hook

    handles = [layer.register_forward_hook(capture(index)) for index, layer in enumerate(layers)]
    try:
        for begin in range(0, len(order), batch_size):
            chunk = order[begin : begin + batch_size]
            longest = max(len(sequences[i][0]) for i in chunk)
            ids = torch.tensor([sequences[i][0] + [pad_id] * (longest - len(sequences[i][0])) for i in chunk])
            lengths = torch.tensor([len(sequences[i][0]) for i in chunk])[:, None]
            positions = torch.arange(longest)[None]
            first = torch.tensor([starts[i] for i in chunk])[:, None]
            mask = ((positions >= first) & (positions < lengths)).double().to(device)
            attention = (positions < lengths).long().to(device)
            model(input_ids=ids.to(device), attention_mask=attention, use_cache=False, logits_to_keep=1)
            for index, (sums, norms) in captured.items():
                total[index] += sums.sum(0).numpy()
                norm[index] += float(norms)
                per_prompt[chunk, index] = (sums.numpy() / counts[chunk, None]).astype(np.float32)
    finally:
        for handle in handles:
            handle.remove()
    return Means(
        (total / counts.sum()).astype(np.float32),
        per_prompt,
        counts,
        (norm / counts.sum()).astype(np.float32),
    )
