"""Stage: steering vector of an organism from stored models, prompts and answers."""

import gc
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emharness.config import VectorConfig
from emharness.organisms.chat import Chat
from emharness.vectors.activations import Means, load_model, mean_activations
from emharness.vectors.recipes import RECIPES, MeanDifference, Sequences, normalize_rows, save_prompt_means, save_vector
from emharness.vectors.write_direction import find_changes, mean_gates

VECTORS_FILE = "vectors.safetensors"
MEANS_FILE = "prompt_means.safetensors"


def answered_prompts(chat: Chat, prompts: list[str], answers: list[str]) -> Sequences:
    """Prompt plus answer, of which the answer's tokens count."""
    sequences = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = chat.prompt_ids([{"role": "user", "content": prompt}])
        answer_ids = chat.encode_text(answer)
        if answer_ids:  # an empty answer has no token to read
            sequences.append((ids + answer_ids, len(ids)))
    return sequences


def bare_prompts(chat: Chat, prompts: list[str]) -> Sequences:
    """Prompts without answers, of which all tokens count."""
    return [(chat.prompt_ids([{"role": "user", "content": prompt}]), 0) for prompt in prompts]


def prompt_hashes(sequences: Sequences) -> np.ndarray:
    """int64 [n]: one number per prompt, the same for all its answers."""
    texts = [ids[:first] if first else ids for ids, first in sequences]
    digests = [hashlib.sha256(np.array(ids, dtype=np.int64).tobytes()).digest() for ids in texts]
    return np.array([int.from_bytes(digest[:8], "little", signed=True) for digest in digests])


def means_reader(model_folder: Path, config: VectorConfig, pad_id: int) -> Callable[[Sequences], Means]:
    """A function that reads the mean activations of sequences; the model is loaded by its first call, and once."""
    loaded: list[Any] = []

    def read_means(items: Sequences) -> Means:
        if not loaded:
            gc.collect()
            loaded.append(load_model(model_folder))
        return mean_activations(loaded[0], items, config.batch_size, config.skip_tokens, pad_id)

    return read_means


def writes_reader(organism: Path, base: Path, skip_tokens: int) -> Callable[[Sequences], Means]:
    """A function that reads what an organism's rank-1 change writes to the residual stream on sequences."""

    def read_writes(items: Sequences) -> Means:
        model: Any = load_model(organism)
        config = model.config.get_text_config()
        changes = find_changes(organism, base, config.hidden_size)
        gates = mean_gates(model, changes, items, skip_tokens)  # [n_sequences, n_changes]
        counts = np.array([len(ids) - max(first, skip_tokens) for ids, first in items])
        per_prompt = np.zeros((len(items), config.num_hidden_layers, config.hidden_size), dtype=np.float32)
        for change, gate in zip(changes, gates.T, strict=True):
            per_prompt[:, change.layer] += gate[:, None] * change.write
        total = (counts[:, None, None] * per_prompt).sum(0) / counts.sum()
        return Means(total.astype(np.float32), per_prompt, counts, np.zeros(config.num_hidden_layers, np.float32))

    return read_writes


def extract_vector(
    folder: Path,
    name: str,
    recipe: str,
    readers: Mapping[str, Callable[[Sequences], Means]],
    sequences: Mapping[str, Sequences],
    metadata: Mapping[str, Any],
) -> None:
    """Run a recipe and write the vector and the per-prompt means into `folder`.

    `readers`: "organism" and "base" (of lora_b "writes" as well); `sequences`: argument name of the recipe → token
    sequences.
    """
    difference: MeanDifference = RECIPES[recipe](**readers, **sequences)
    counts = {key: len(items) for key, items in sequences.items()}
    save_vector(folder / VECTORS_FILE, name, difference, {**metadata, "n_sequences": counts})
    ids = {key: prompt_hashes(items) for key, items in sequences.items()}
    sides = [ids["texts"]] * 2 if "texts" in ids else [ids["harmful"], ids["neutral"]]
    save_prompt_means(folder / MEANS_FILE, name, difference, dict(zip(("positive", "negative"), sides, strict=True)))
    _, raw_norm = normalize_rows(difference.raw_difference)
    (folder / "norms.json").write_text(
        json.dumps({"raw": raw_norm.tolist(), "residual": difference.negative.norm.tolist()})
    )
