"""The vectors of a run: the answers that they are extracted from, their artifacts, subspaces and random directions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from emharness import claims
from emharness.config import BASE
from emharness.config_checks import PAIRED
from emharness.generation.cells import Cell, Condition, Direction
from emharness.organisms import model_folders
from emharness.pipeline.answer_stage import generate_and_score
from emharness.pipeline.run_context import RunContext, StageOutputs
from emharness.pipeline.run_plan import PlanDraft
from emharness.pipeline.subject import EXTRACTION, cluster_vectors, is_kind, make_subject
from emharness.store import Artifact
from emharness.vectors import recipes as files
from emharness.vectors.extraction import VECTORS_FILE
from emharness.vectors.vector_artifacts import (
    VectorTexts,
    random_artifact,
    subspace_artifact,
    vector_artifact,
)
from emharness.versions import collect_versions


def extraction_cells(context: RunContext, name: str) -> list[Cell]:
    """What a vector by model_diff or lora_b reads: one answer of organism and base to each extraction prompt."""
    length = context.config.vector.max_new_tokens
    return [Cell(Condition(target), f"{EXTRACTION}:{name}", 1, length, judged=False) for target in (name, BASE)]


def with_recipe(context: RunContext, recipe: str) -> RunContext:
    """The same run with vectors by another recipe."""
    return replace(context, config=replace(context.config, vector=replace(context.config.vector, recipe=recipe)))


def list_artifacts(context: RunContext) -> dict[str, Artifact]:
    """The artifacts of every kind's vector by a recipe that needs no answers (mean_diff)."""
    return {name: make_vector_artifact(context, name, {}) for name in context.config.vectors if is_kind(name)}


def plan_vectors(draft: PlanDraft) -> None:
    """Vectors that have to be extracted, the answers that they read, and the directions that are stored."""
    context = draft.context
    config, speeds, experiment = context.config, context.speeds, context.experiment
    n_layers, d_model = context.targets[BASE].shape
    for name in config.vectors:
        artifact = make_vector_artifact(context, name, {})
        stored, n_prompts = draft.is_stored(artifact), len(context.inputs.organisms[name].prompts)
        seconds = speeds.estimate_seconds("extraction", 4 * n_prompts)
        draft.add_artifact("vectors", name, stored, seconds, 4 * n_prompts * n_layers * d_model)
        if stored:
            path = context.store.artifact_path(artifact.stage, artifact.name, artifact.identity)
            draft.directions[name] = load_direction(path / VECTORS_FILE, name)
        elif config.vector.recipe in PAIRED:
            cells = extraction_cells(context, name)
            draft.add_cells(cells)
            draft.early |= {cell.condition.target for cell in cells}
    n_prompts = len(context.inputs.harmful) + len(context.inputs.neutral)
    for recipe in dict.fromkeys([config.vector.recipe, *experiment.recipes]):
        other = with_recipe(context, recipe)
        more = {} if recipe == config.vector.recipe else list_artifacts(other)
        if recipe == "mean_diff":  # the base's own, which the geometry compares the others with
            more[BASE] = make_vector_artifact(other, BASE, {})
        for name, artifact in more.items():
            seconds, size = speeds.estimate_seconds("extraction", n_prompts), 4 * n_prompts * n_layers * d_model
            draft.add_artifact(f"vectors by {recipe}", name, draft.is_stored(artifact), seconds, size)
    draft.directions |= make_subspaces(context, draft.directions) | make_randoms(context)


def extract_vectors(context: RunContext, outputs: StageOutputs) -> StageOutputs:
    """Make the vectors, and the random directions and subspaces that go with them.

    While an organism's engine runs for the answers that its vector reads, the experiment's unsteered cells of it are
    answered too: in one batch with them, because few long answers leave most of a batch empty.
    """
    config, log = context.config, context.log
    artifacts = {name: make_vector_artifact(context, name, {}) for name in config.vectors}
    if config.vector.recipe in PAIRED:
        missing = [n for n, a in artifacts.items() if not context.store.has_artifact(a.stage, a.name, a.identity)]
        cells = {name: extraction_cells(context, name) for name in missing}
        unsteered = [c for c in context.experiment.list_all_cells(make_subject(context, {})) if not c.condition.edits]
        for target in chain(claims.take_turns(missing, lambda name: context.targets[name].responses.folder), [BASE]):
            own = [cell for some in cells.values() for cell in some if cell.condition.target == target]
            if own:
                now = [cell for cell in unsteered if cell.condition.target == target]
                generate_and_score(context, "unsteered", own + now, {}, context.inputs.judge, margins=True)
        for name in missing:
            answers = generate_and_score(context, "extraction", cells[name], {})
            if len(answers) == len(cells[name]):
                artifacts[name] = make_vector_artifact(context, name, answers)
            else:  # half of the texts would make another vector under the same name
                log.failed.setdefault(name, f"no vector, because {', '.join(log.failed)} failed")
    found: dict[str, Direction] = {}
    where = {name: context.store.artifact_path(a.stage, a.name, a.identity) for name, a in artifacts.items()}
    for name in claims.take_turns(artifacts, where.__getitem__):
        context.attempt_model(name, partial(_make_vector, context, name, artifacts[name], found))
    directions = {name: found[name] for name in artifacts if name in found}
    directions |= make_subspaces(context, directions) | make_randoms(context)
    return replace(outputs, artifacts=artifacts, directions=directions)


def _make_vector(context: RunContext, name: str, artifact: Artifact, directions: dict[str, Direction]) -> None:
    if model_folders.on_gpu():
        context.engines.close()  # its memory is needed for the models' own forward passes
    stored, start = context.store.has_artifact(artifact.stage, artifact.name, artifact.identity), time.perf_counter()
    directions[name] = load_direction(context.ensure_artifact(artifact) / VECTORS_FILE, name)
    if not stored and context.log.stages[-1].made:
        read = 4 * len(context.inputs.organisms[name].prompts)
        context.speeds.record_speed("extraction", read, time.perf_counter() - start)


def make_subspaces(context: RunContext, directions: Mapping[str, Direction]) -> dict[str, Direction]:
    """Orthonormal directions of each cluster whose vectors are all there, by name: <mechanism>/0, …"""
    whole = {m: names for m, names in cluster_vectors(context).items() if set(names) <= directions.keys()}
    if not whole:
        return {}
    artifact = subspace_artifact({m: [directions[n].file for n in names] for m, names in whole.items()}, whole)
    folder, _ = context.store.get_artifact(artifact.stage, artifact.name, artifact.identity, artifact.make)
    arrays, _ = files.load_vector_file(folder / VECTORS_FILE)
    return {
        name: Direction(folder / VECTORS_FILE, name, layer_mask=np.linalg.norm(arrays[name], axis=-1) > 0)
        for m, names in whole.items()
        for name in (f"{m}/{i}" for i in range(len(names)))
    }


def make_randoms(context: RunContext) -> dict[str, Direction]:
    """The random directions of this run, by name."""
    count = context.config.controls
    if not count:
        return {}
    artifact = random_artifact(count, *context.targets[BASE].shape, context.config.seed)
    folder, _ = context.store.get_artifact(artifact.stage, artifact.name, artifact.identity, artifact.make)
    return {f"random-{i}": Direction(folder / VECTORS_FILE, f"random-{i}") for i in range(count)}


def load_direction(file: Path, name: str) -> Direction:
    """A stored vector with its norms."""
    _, metadata = files.load_vector_file(file)
    norms = {key: np.array(metadata[name][key]) for key in ("raw_norm", "residual_norm")}
    return Direction(file, name, **norms, layer_mask=norms["raw_norm"] > 0)


def make_vector_artifact(context: RunContext, name: str, answers: Mapping[Cell, Any]) -> Artifact:
    """The artifact of an organism's vector (`base`: the base's own, by mean_diff)."""
    config, inputs = context.config, context.inputs
    organism = inputs.organisms.get(name)
    own = organism.prompts if organism else []
    tables = list(answers.values())
    texts = [text for table in tables for text in table["answer"].to_pylist()]
    asked = {"streams": {target: context.targets[target].key for target in (name, BASE)}}
    about = {
        "base": config.base.name,
        "organism": name,
        "lab": organism.config.lab if organism else None,
        "mechanism": organism.config.mechanism if organism else None,
        **collect_versions(),
    }
    read = VectorTexts(
        prompts=own * max(1, len(tables)),
        answers=texts,
        harmful=inputs.harmful,
        neutral=inputs.neutral,
        asked={**asked, "max_new_tokens": config.vector.max_new_tokens},
    )
    known = {key: value for key, value in about.items() if value is not None}
    return vector_artifact(config.vector, context.models[BASE], context.models[name], read, known)
