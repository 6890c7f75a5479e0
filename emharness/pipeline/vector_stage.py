"""The vectors of a run: what they read, their artifacts, subspaces and random directions beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from emharness import claims
from emharness.config import BASE
from emharness.generation.cells import Cell, Condition, Direction
from emharness.generation.target_requests import TargetRequests
from emharness.input_checks import parse_organism_name
from emharness.organisms import model_folders
from emharness.organisms.model_artifacts import Model
from emharness.pipeline.answer_stage import generate_and_score
from emharness.pipeline.model_stage import EXTRACTION
from emharness.pipeline.run_context import RunContext
from emharness.store import Artifact
from emharness.vectors import recipes as files
from emharness.vectors.extraction import VECTORS_FILE
from emharness.vectors.vector_artifacts import (
    ACTIVATIONS_FILE,
    activations_artifact,
    random_artifact,
    subspace_artifact,
    vector_artifact,
)
from emharness.versions import collect_versions


def extraction_cells(context: RunContext, name: str) -> list[Cell]:
    """What a vector by model_diff reads: one answer of the organism and of the base to each extraction prompt."""
    length = context.config.vector.max_new_tokens
    return [Cell(Condition(target), f"{EXTRACTION}:{name}", 1, length, judged=False) for target in (name, BASE)]


def is_kind(name: str) -> bool:
    """Whether a vector stands for a kind of its own; replicas and checkpoints of an organism do not."""
    return parse_organism_name(name)[0] == name


def with_recipe(context: RunContext, recipe: str) -> RunContext:
    """The same run with vectors by another recipe."""
    return replace(context, config=replace(context.config, vector=replace(context.config.vector, recipe=recipe)))


def list_artifacts(
    context: RunContext, found: Mapping[str, Model], asked: Mapping[str, TargetRequests]
) -> dict[str, Artifact]:
    """The artifacts of every kind's vector by a recipe that needs no answers (mean_diff)."""
    return {
        name: make_vector_artifact(context, found, asked, name, {}) for name in context.config.vectors if is_kind(name)
    }


def extract_vectors(
    context: RunContext, found: Mapping[str, Model], asked: Mapping[str, TargetRequests], unsteered: list[Cell]
) -> tuple[dict[str, Artifact], dict[str, Direction]]:
    """The vectors' artifacts, made, and where they lie; random directions as well.

    While an organism's engine runs for its answers, its `unsteered` cells are answered too: in one stream with them,
    because few long answers leave most of a batch empty.
    """
    config = context.config
    artifacts = {name: make_vector_artifact(context, found, asked, name, {}) for name in config.vectors}
    if config.vector.recipe == "model_diff":
        missing = [n for n, a in artifacts.items() if not context.store.has_artifact(a.stage, a.name, a.identity)]
        cells = {name: extraction_cells(context, name) for name in missing}
        for target in chain(claims.take_turns(missing, lambda name: asked[name].responses.folder), [BASE]):
            own = [cell for some in cells.values() for cell in some if cell.condition.target == target]
            if own:
                now = [cell for cell in unsteered if cell.condition.target == target]
                generate_and_score(context, "unsteered", own + now, asked, {}, context.inputs.judge, margins=True)
        for name in missing:
            answers = generate_and_score(context, "extraction", cells[name], asked, {})
            if len(answers) == len(cells[name]):
                artifacts[name] = make_vector_artifact(context, found, asked, name, answers)
            else:  # half of the texts would make another vector under the same name
                context.failed.setdefault(name, f"no vector, because {', '.join(context.failed)} failed")
    made: dict[str, Direction] = {}
    where = {name: context.store.artifact_path(a.stage, a.name, a.identity) for name, a in artifacts.items()}
    for name in claims.take_turns(artifacts, where.__getitem__):
        context.attempt_model(name, partial(_make_vector, context, name, artifacts[name], made))
    directions = {name: made[name] for name in artifacts if name in made}
    directions |= make_subspaces(context, directions) | make_randoms(context, asked[BASE].shape)
    return artifacts, directions


def _make_vector(context: RunContext, name: str, artifact: Artifact, directions: dict[str, Direction]) -> None:
    if model_folders.on_gpu():
        context.engines.close()  # its memory is needed for the models' own forward passes
    stored, start = context.store.has_artifact(artifact.stage, artifact.name, artifact.identity), time.perf_counter()
    directions[name] = load_direction(context.ensure_artifact(artifact) / VECTORS_FILE, name)
    if not stored and context.stages[-1]["made"]:
        read = 4 * len(context.inputs.organisms[name].prompts)
        context.speeds.record_speed("extraction", read, time.perf_counter() - start)


def cluster_vectors(context: RunContext) -> dict[str, list[str]]:
    """Mechanism → the run's vectors of it, where there are two or more; other seeds of an organism are no others."""
    found: dict[str, list[str]] = {}
    for name in filter(is_kind, context.config.vectors):
        found.setdefault(context.inputs.organisms[name].config.mechanism, []).append(name)
    return {mechanism: names for mechanism, names in found.items() if len(names) > 1}


def make_subspaces(context: RunContext, directions: Mapping[str, Direction]) -> dict[str, Direction]:
    """Orthonormal directions of each cluster whose vectors are all there, by name: <mechanism>/0, …"""
    whole = {m: names for m, names in cluster_vectors(context).items() if set(names) <= directions.keys()}
    if not whole:
        return {}
    artifact = subspace_artifact({m: [directions[n].file for n in names] for m, names in whole.items()}, whole)
    folder, _ = context.store.get_artifact(artifact.stage, artifact.name, artifact.identity, artifact.make)
    arrays, _ = files.load_vector_file(folder / VECTORS_FILE)
    return {
        name: Direction(folder / VECTORS_FILE, name, there=np.linalg.norm(arrays[name], axis=-1) > 0)
        for m, names in whole.items()
        for name in (f"{m}/{i}" for i in range(len(names)))
    }


def make_randoms(context: RunContext, shape: tuple[int, int]) -> dict[str, Direction]:
    """The random directions of this run, by name."""
    count = context.config.controls
    if not count:
        return {}
    artifact = random_artifact(count, *shape, context.config.seed)
    folder, _ = context.store.get_artifact(artifact.stage, artifact.name, artifact.identity, artifact.make)
    return {f"random-{i}": Direction(folder / VECTORS_FILE, f"random-{i}") for i in range(count)}


def load_direction(file: Path, name: str) -> Direction:
    """A stored vector with its norms."""
    _, metadata = files.load_vector_file(file)
    norms = {key: np.array(metadata[name][key]) for key in ("raw_norm", "residual_norm")}
    return Direction(file, name, **norms, there=norms["raw_norm"] > 0)


def make_vector_artifact(
    context: RunContext,
    found: Mapping[str, Model],
    asked: Mapping[str, TargetRequests],
    name: str,
    answers: Mapping[Cell, Any],
) -> Artifact:
    """The artifact of an organism's vector (`base`: the base's own, by mean_diff)."""
    config, given = context.config, context.inputs
    organism = given.organisms.get(name)
    own = organism.prompts if organism else []
    tables = list(answers.values())
    texts = [text for table in tables for text in table["answer"].to_pylist()]
    stream_keys = {target: asked[target].key for target in (name, BASE)}
    about = {
        "base": config.base.name,
        "organism": name,
        "lab": organism.config.lab if organism else None,
        "mechanism": organism.config.mechanism if organism else None,
        **collect_versions(),
    }
    return vector_artifact(
        name,
        config.vector,
        found[BASE],
        found[name],
        own * max(1, len(tables)),
        texts,
        given.harmful,
        given.neutral,
        {"streams": stream_keys, "max_new_tokens": config.vector.max_new_tokens},
        {key: value for key, value in about.items() if value is not None},
    )


def unit_arrays(context: RunContext, directions: Mapping[str, Direction]) -> dict[str, np.ndarray]:
    """The run's vectors, unit rows [n_layers, d_model] each."""
    return {n: files.load_vector_file(d.file)[0][n] for n, d in directions.items() if n in context.config.vectors}


def project_targets(
    context: RunContext, found: Mapping[str, Model], directions: Mapping[str, Direction], layers: Mapping[str, int]
) -> dict[str, dict[str, np.ndarray]]:
    """Target → vector → how far each held-out prompt's residual lies from the base's along it, float64 [n_prompts]."""
    read, units = load_activations(context, found), unit_arrays(context, directions)
    if BASE not in read:  # it has failed
        return {}
    return {
        target: {name: files.project_change(residual, read[BASE], units[name], layers[name]) for name in layers}
        for target, residual in read.items()
    }


def load_activations(context: RunContext, found: Mapping[str, Model]) -> dict[str, np.ndarray]:
    """Each target's mean residuals on held-out prompts (the sweep's questions): [n_prompts, n_layers, d_model]."""
    texts = [question.text for question in context.inputs.sweep_questions]
    read: dict[str, np.ndarray] = {}

    def read_activations(target: str) -> None:
        artifact = activations_artifact(found[target], found[BASE], texts, context.config.vector)
        read[target] = load_file(context.ensure_artifact(artifact) / ACTIVATIONS_FILE)["per_prompt"]

    for target in dict.fromkeys([BASE, *context.config.targets]):
        context.attempt_model(target, partial(read_activations, target))
    return read
