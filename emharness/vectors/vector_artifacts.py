"""Stage: an organism's vector, and random directions as its controls, as artifacts of the store."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from emharness.config import VectorConfig
from emharness.config_checks import PAIRED
from emharness.organisms.chat import Chat, load_chat
from emharness.organisms.model_artifacts import Model
from emharness.store import Artifact, key_of
from emharness.vectors.activations import load_model, mean_activations
from emharness.vectors.extraction import (
    VECTORS_FILE,
    answered_prompts,
    bare_prompts,
    extract_vector,
    means_reader,
    writes_reader,
)
from emharness.vectors.recipes import Sequences, load_vector_file

CODE = 3  # raise when a vector changes for the same config


@dataclass(frozen=True)
class VectorTexts:
    """What a vector is read from: model_diff and lora_b read `prompts` with both models' `answers` (one entry of each
    for a text; answers may be empty until the artifact is made), which `asked` identifies; mean_diff `harmful` and
    `neutral`."""

    prompts: Sequence[str]
    answers: Sequence[str]
    harmful: Sequence[str]
    neutral: Sequence[str]
    asked: Mapping[str, Any]

    def identity(self, recipe: str) -> dict[str, Any]:
        if recipe in PAIRED:
            return {"prompts": key_of({"prompts": list(dict.fromkeys(self.prompts))}), "asked": dict(self.asked)}
        return {"prompts": key_of({"harmful": list(self.harmful), "neutral": list(self.neutral)})}

    def encode(self, recipe: str, chat: Chat) -> dict[str, Sequences]:
        """Argument of the recipe → token sequences."""
        if recipe in PAIRED:
            return {"texts": answered_prompts(chat, list(self.prompts), list(self.answers))}
        sets = {"harmful": self.harmful, "neutral": self.neutral}
        return {key: bare_prompts(chat, list(texts)) for key, texts in sets.items()}


def vector_artifact(
    config: VectorConfig, base: Model, organism: Model, texts: VectorTexts, about: Mapping[str, Any]
) -> Artifact:
    """An organism's vector by `config.recipe`. `about` goes into the file's metadata."""
    read = texts.identity(config.recipe)
    identity = {
        "recipe": config.recipe,
        "base": base.identity,
        "organism": organism.identity,
        "skip_tokens": config.skip_tokens,
        "code": CODE,
        **read,
    }

    def fill_folder(folder: Path) -> None:
        metadata = {
            "recipe": config.recipe,
            **about,
            "base_key": key_of(base.identity),
            "organism_key": key_of(organism.identity),
            "prompts_hash": read["prompts"],
            "skip_tokens": config.skip_tokens,
        }
        chat = load_chat(base.folder, base.template)
        readers = {
            "organism": means_reader(organism.folder, config, chat.pad_id),
            "base": means_reader(base.folder, config, chat.pad_id),
        }
        if config.recipe == "lora_b":
            readers["writes"] = writes_reader(organism.folder, base.folder, config.skip_tokens)
        extract_vector(folder, organism.name, config.recipe, readers, texts.encode(config.recipe, chat), metadata)

    return Artifact("vectors", organism.name, identity, fill_folder)


def random_artifact(count: int, n_layers: int, d_model: int, seed: int) -> Artifact:
    """`count` random unit directions at every layer, named random-0, random-1, …

    Each is drawn by itself from (seed, number), so that asking for more leaves the first ones as they were.
    """
    identity = {"random": count, "n_layers": n_layers, "d_model": d_model, "seed": seed, "code": CODE}

    def fill_folder(folder: Path) -> None:
        tensors = {}
        for i in range(count):
            rows = np.random.default_rng([seed, i]).standard_normal((n_layers, d_model))
            tensors[f"random-{i}"] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        metadata = {name: json.dumps({"recipe": "random", "seed": seed}) for name in tensors}
        save_file(tensors, folder / VECTORS_FILE, metadata=metadata)

    return Artifact("directions", "random", identity, fill_folder)


def subspace_artifact(clusters: Mapping[str, Sequence[Path]], names: Mapping[str, Sequence[str]]) -> Artifact:
    """An orthonormal basis of each cluster's vectors at every layer: `<cluster>/0`, `<cluster>/1`, …

    clusters: name → files of its vectors; names: name → the vectors' names in them.
    """
    identity = {"subspaces": {c: [path.parent.name for path in paths] for c, paths in clusters.items()}, "code": CODE}

    def fill_folder(folder: Path) -> None:
        tensors = {}
        for cluster, paths in clusters.items():
            listed = [load_vector_file(path)[0][name] for path, name in zip(paths, names[cluster], strict=True)]
            basis = orthonormal_basis(np.stack(listed, axis=-1))
            tensors |= {f"{cluster}/{i}": np.ascontiguousarray(basis[..., i]) for i in range(len(listed))}
        metadata = {name: json.dumps({"recipe": "subspace"}) for name in tensors}
        save_file(tensors, folder / VECTORS_FILE, metadata=metadata)

    return Artifact("directions", "subspaces", identity, fill_folder)


def orthonormal_basis(vectors: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the span of each layer's vectors, float32: [n_layers, d_model, k] → the same shape.

    A vector that is zero, or in the span of those before it, adds no direction: zeros stand in its place.
    """
    q, r = np.linalg.qr(vectors.astype(np.float64))
    adds = np.abs(np.diagonal(r, axis1=-2, axis2=-1)) > 1e-6  # [n_layers, k]
    return (q * adds[:, None, :]).astype(np.float32)


ACTIVATIONS_FILE = "activations.safetensors"


def activations_artifact(model: Model, base: Model, prompts: Sequence[str], config: VectorConfig) -> Artifact:
    """Mean residual of each prompt in a model, float32 [n_prompts, n_layers, d_model], attention sinks left out.

    The prompts are fixed texts, read by the base's tokenizer, so that what differs between models is the models.
    """
    identity = {
        "model": model.identity,
        "base": base.identity,
        "prompts": key_of({"prompts": list(prompts)}),
        "skip_tokens": config.skip_tokens,
        "code": CODE,
    }

    def fill_folder(folder: Path) -> None:
        chat = load_chat(base.folder, base.template)
        texts = bare_prompts(chat, list(prompts))
        means = mean_activations(load_model(model.folder), texts, config.batch_size, config.skip_tokens, chat.pad_id)
        save_file({"per_prompt": means.per_prompt}, folder / ACTIVATIONS_FILE)

    return Artifact("activations", model.name, identity, fill_folder)
