"""Stored vectors with their prompt means, made up, for the tests of geometry."""

import numpy as np

from emharness.vectors import recipes as stored_format
from emharness.vectors.activations import Means


def rng(seed=0):
    return np.random.default_rng(seed)


def means_of(rows, tokens):
    total = np.einsum("p,pld->ld", tokens / tokens.sum(), rows)
    return Means(total, rows, tokens, np.ones(rows.shape[1], dtype=np.float32))


def save_extraction(folder, name, shift, seed, recipe="mean_diff", n=40, anisotropy=0.0):
    """One layer; rows are noise plus `shift` [d] on the positive side. Prompts are shared by all vectors."""
    g = rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    noise = g.standard_normal((2, n, 1, len(shift)))
    noise[..., 0] += anisotropy * g.standard_normal((2, n, 1))
    tokens = g.integers(5, 30, (2, n))
    tokens = tokens if recipe == "mean_diff" else np.stack([tokens[0]] * 2)
    sides = [means_of(noise[0] + shift, tokens[0]), means_of(noise[1], tokens[1])]
    difference = stored_format.MeanDifference(*sides)
    stored_format.save_vector(folder / "vectors.safetensors", name, difference, {"recipe": recipe})
    ids = np.arange(2 * n).reshape(2, n) if recipe == "mean_diff" else np.stack([np.arange(n) // 2] * 2)
    file = folder / "prompt_means.safetensors"
    stored_format.save_prompt_means(file, name, difference, {"positive": ids[0], "negative": ids[1]})
    return folder / "vectors.safetensors"
