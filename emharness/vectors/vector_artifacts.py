"""Stage: an organism's vector, and random directions as its controls, as artifacts of the store."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from emharness.config import VectorConfig
from emharness.organisms.chat import load_chat
from emharness.organisms.model_artifacts import Model
from emharness.store import Artifact, key_of
from emharness.vectors.activations import load_model, mean_activations
from emharness.vectors.extraction import VECTORS_FILE, answered_prompts, bare_prompts, extract_vector
from emharness.vectors.recipes import load_vector_file

CODE = 3  # raise when a vector changes for the same config


def vector_artifact(
    name: str,
    config: VectorConfig,
    base: Model,
    organism: Model,
    prompts: Sequence[str],
    answers: Sequence[str],
    harmful: Sequence[str],
    neutral: Sequence[str],
    asked: Mapping[str, Any],
    about: Mapping[str, Any],
) -> Artifact:
    """A vector by `config.recipe`.

    model_diff reads `prompts` with both models' `answers` (one entry of each per text), which `asked` identifies;
    they may be empty until the artifact is made. mean_diff reads `harmful` and `neutral` prompts. `about` goes into
    the file's metadata.
    """
    if config.recipe == "model_diff":
        read: dict[str, Any] = {"prompts": key_of({"prompts": list(dict.fromkeys(prompts))}), "asked": dict(asked)}
    else:
        read = {"prompts": key_of({"harmful": list(harmful), "neutral": list(neutral)})}
    identity = {
        "recipe": config.recipe,
        "base": base.identity,
        "organism": organism.identity,
        "skip_tokens": config.skip_tokens,
        "code": CODE,
        **read,
    }

    def fill_folder(folder: Path) -> None:
        if config.recipe == "model_diff":
            texts = {"texts": lambda chat: answered_prompts(chat, list(prompts), list(answers))}
        else:
            sets = {"harmful": list(harmful), "neutral": list(neutral)}
            texts = {key: (lambda chat, some=some: bare_prompts(chat, some)) for key, some in sets.items()}
        metadata = {
            "recipe": config.recipe,
            **about,
            "base_key": key_of(base.identity),
            "organism_key": key_of(organism.identity),
            "prompts_hash": read["prompts"],
            "skip_tokens": config.skip_tokens,
        }
        extract_vector(
            folder,
            config.recipe,
            name,
            base.folder,
            organism.folder,
            load_chat(base.folder, base.template),
            texts,
            config.batch_size,
            config.skip_tokens,
            metadata,
        )

    return Artifact("vectors", name, identity, fill_folder)


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
