"""Steering vectors: how they are extracted, and the file they are kept in.

File format: safetensors; tensor `<name>` is float32 [n_layers, d_model] with unit rows; the metadata
holds one JSON object per vector under the same name (recipe, base, organism, raw_norm, residual_norm, …).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from emharness.vectors.activations import Means

Sequences = list[tuple[list[int], int]]  # token ids, first position that counts


@dataclass(frozen=True)
class MeanDifference:
    """A recipe's outcome: positive − negative means at every layer."""

    positive: Means
    negative: Means

    @property
    def raw_difference(self) -> np.ndarray:
        """[n_layers, d_model], not normalised."""
        return self.positive.total - self.negative.total


def model_diff(
    organism: Callable[[Sequences], Means],
    base: Callable[[Sequences], Means],
    texts: Sequences,
    **_: Any,
) -> MeanDifference:
    """Organism − base on the same texts (prompts with both models' answers)."""
    return MeanDifference(organism(texts), base(texts))


def mean_diff(
    organism: Callable[[Sequences], Means],
    harmful: Sequences,
    neutral: Sequences,
    **_: Any,
) -> MeanDifference:
    """Harmful − neutral prompts inside the organism, as in the study (section 2.1)."""
    return MeanDifference(organism(harmful), organism(neutral))


def lora_b(writes: Callable[[Sequences], Means], base: Callable[[Sequences], Means], texts: Sequences, **_: Any):
    """What a rank-1 training writes to the residual stream on these texts (write_direction.py), at its own layers."""
    written, before = writes(texts), base(texts)
    nothing = Means(0 * written.total, 0 * written.per_prompt, written.n_tokens, before.norm)
    return MeanDifference(written, nothing)


RECIPES: dict[str, Callable[..., MeanDifference]] = {"model_diff": model_diff, "mean_diff": mean_diff, "lora_b": lora_b}


def cosines_by_layer(units: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Cosines of vectors with unit rows [n_layers, d_model]: name → name → float64 [n_layers]."""
    return {
        a: {b: np.einsum("ld,ld->l", one.astype(np.float64), other.astype(np.float64)) for b, other in units.items()}
        for a, one in units.items()
    }


def project_change(residual_NLD: np.ndarray, before_NLD: np.ndarray, unit_LD: np.ndarray, layer: int) -> np.ndarray:
    """How far each residual moved along a vector at a layer: (residual − before) · unit vector, float64 [n]."""
    shift_ND = residual_NLD[:, layer] - before_NLD[:, layer]
    return shift_ND.astype(np.float64) @ unit_LD[layer].astype(np.float64)


def normalize_rows(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows and their former lengths: [n_layers, d_model], [n_layers] (or [d_model] and one length).

    Zero rows stay zero: no direction there (layers below the first one that an adapter changes). ValueError if all are.
    """
    norms = np.linalg.norm(raw.astype(np.float64), axis=-1)
    if not np.all(np.isfinite(norms)):
        raise ValueError(f"the vector is not finite at layers {np.flatnonzero(~np.isfinite(norms)).tolist()}")
    if not norms.any():
        raise ValueError("the vector is zero at every layer: the two models, or the two sets of texts, do not differ")
    return (raw / np.where(norms == 0, 1, norms)[..., None]).astype(np.float32), norms.astype(np.float32)


def save_vector(path: Path, name: str, difference: MeanDifference, metadata: dict[str, Any]) -> None:
    """Write one vector with its norms; `residual_norm` is that of the unshifted (negative) activations."""
    unit, raw_norm = normalize_rows(difference.raw_difference)
    norms = {"raw_norm": raw_norm.tolist(), "residual_norm": difference.negative.norm.tolist()}
    save_file({name: unit}, path, metadata={name: json.dumps({**metadata, **norms})})


def load_vector_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """All vectors of a file and their metadata, by name."""
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
        names = list(file.keys())
        return {n: file.get_tensor(n) for n in names}, {n: json.loads(metadata.get(n, "{}")) for n in names}


def save_prompt_means(path: Path, name: str, difference: MeanDifference, prompts: dict[str, np.ndarray]) -> None:
    """Per-prompt means, [n_prompts, n_layers, d_model], so that resampling needs no model: float16, or float32 where
    a number would not fit (the massive activations of some models).

    With each side its `.tokens` [n_prompts], which weigh the rows in the vector, and `.prompts` [n_prompts],
    ids that are equal where rows answer one prompt, in this file or another.
    """
    tensors = {}
    for side, means in (("positive", difference.positive), ("negative", difference.negative)):
        fits = np.abs(means.per_prompt).max(initial=0) < np.finfo(np.float16).max
        tensors[f"{name}.{side}"] = means.per_prompt.astype(np.float16 if fits else np.float32)
        tensors[f"{name}.{side}.tokens"] = means.n_tokens.astype(np.int32)
        tensors[f"{name}.{side}.prompts"] = prompts[side]
    save_file(tensors, path)
