"""What a direction says in words: the tokens that it promotes and suppresses, read out directly (logit lens)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emharness.errors import UserError
from emharness.steering.request.vector_files import StoredTensor
from emharness.steering.request.vector_lookup import layer_row
from emharness.vectors.recipes import load_vector_file

if TYPE_CHECKING:
    import torch

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "embedding_norm")


@dataclass(frozen=True, kw_only=True)
class VectorTokens:
    """A vector's row at one block, read out: tokens from the strongest on, and the stored vectors nearest to it, each
    with its cosine there."""

    name: str
    layer: int
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    nearest: tuple[tuple[str, float], ...] = ()


def row_at(name: str, stored: StoredTensor, layer: int, n_layers: int) -> np.ndarray:
    """A vector's row at a block, float32 [d_model]. UserError where it has none there."""
    try:
        return layer_row(name, stored, layer, n_layers).direction
    except ValueError as error:
        raise UserError(str(error).removeprefix("steering: ")) from None


def stored_rows(files: Mapping[str, Path], layer: int, n_layers: int) -> dict[str, np.ndarray]:
    """The rows of a store's vectors at a block, by name; those of models of another depth are left out."""
    found = {}
    for name, file in files.items():
        rows = next(iter(load_vector_file(file)[0].values()))
        if len(rows) == n_layers:
            found[name] = rows[layer]
    return found


def read_vector_tokens(
    rows: Mapping[str, np.ndarray], layer: int, folder: Path, stored: Mapping[str, np.ndarray], count: int = 10
) -> list[VectorTokens]:
    """The tokens of each vector, and its neighbours among the `stored` ones. rows: float [d_model], of block `layer` of
    the model in `folder`; stored: rows of the same block. UserError where a width is not the model's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    width = model.config.get_text_config().hidden_size
    for name, row in rows.items():
        if row.size != width:
            raise UserError(f"{name}: has width {row.size}, but the base has {width}")
    logits_NV = direct_logits(model, np.stack([*rows.values()]))
    found = []
    for (name, row), logits_V in zip(rows.items(), logits_NV, strict=True):
        order = np.argsort(-logits_V, kind="stable")
        promoted, suppressed = (
            tuple(tokenizer.decode([int(token)]) for token in some) for some in (order[:count], order[::-1][:count])
        )
        near = nearest_vectors(row, {other: values for other, values in stored.items() if values.size == width})
        found.append(
            VectorTokens(name=name, layer=layer, promoted=promoted, suppressed=suppressed, nearest=tuple(near))
        )
    return found


def direct_logits(model: Any, rows_ND: np.ndarray) -> np.ndarray:
    """(f(v) − f(−v)) ÷ 2 for each row v, f the final norm and the output layer: float [n, n_tokens]. What both have
    whatever they are given, as biases, falls out."""
    import torch

    norm, output = _find_final_norm(model), model.get_output_embeddings()
    with torch.inference_mode():
        rows = torch.from_numpy(rows_ND.astype(np.float32))
        return ((output(norm(rows)) - output(norm(-rows))) / 2).numpy()


def _find_final_norm(model: Any) -> torch.nn.Module:
    blocks = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    for name in FINAL_NORMS:
        if hasattr(blocks, name):
            return getattr(blocks, name)
    raise UserError(f"base: {type(model).__name__} has no final norm that is known here ({', '.join(FINAL_NORMS)})")


def nearest_vectors(row_D: np.ndarray, stored: Mapping[str, np.ndarray], count: int = 5) -> list[tuple[str, float]]:
    """Names and cosines of the vectors with the greatest |cosine|, the greatest first; zero rows are left out."""
    lengths = {name: float(np.linalg.norm(other) * np.linalg.norm(row_D)) for name, other in stored.items()}
    cosines = [(name, float(row_D @ other) / lengths[name]) for name, other in stored.items() if lengths[name] > 0]
    return sorted(cosines, key=lambda one: -abs(one[1]))[:count]
