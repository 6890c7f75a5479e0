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
from emharness.directions import vectors as files
from emharness.directions.extract import VECTORS_FILE
from emharness.directions.make import (
    ACTIVATIONS_FILE,
    activations_artifact,
    random_artifact,
    subspace_artifact,
    vector_artifact,
)
from emharness.generation.cells import Cell, Condition, Direction
from emharness.generation.stream import Stream
from emharness.inputs import parts
from emharness.organisms import weights
from emharness.organisms.models import Model
from emharness.store import Artifact
from emharness.study.answers import answer
from emharness.study.models import EXTRACTION
from emharness.study.session import Session
from emharness.versions import versions


def extraction_cells(session: Session, name: str) -> list[Cell]:
    """What a vector by model_diff reads: one answer of the organism and of the base to each extraction prompt."""
    length = session.config.vector.max_new_tokens
    return [Cell(Condition(target), f"{EXTRACTION}:{name}", 1, length, judged=False) for target in (name, BASE)]


def is_kind(name: str) -> bool:
    """Whether a vector stands for a kind of its own; replicas and checkpoints of an organism do not."""
    return parts(name)[0] == name


def with_recipe(session: Session, recipe: str) -> Session:
    """The same run with vectors by another recipe."""
    return replace(session, config=replace(session.config, vector=replace(session.config.vector, recipe=recipe)))


def artifacts(session: Session, found: Mapping[str, Model], asked: Mapping[str, Stream]) -> dict[str, Artifact]:
    """The artifacts of every kind's vector by a recipe that needs no answers (mean_diff)."""
    return {name: vector(session, found, asked, name, {}) for name in session.config.vectors if is_kind(name)}


def make(
    session: Session, found: Mapping[str, Model], asked: Mapping[str, Stream], unsteered: list[Cell]
) -> tuple[dict[str, Artifact], dict[str, Direction]]:
    """The vectors' artifacts, made, and where they lie; random directions as well.

    While an organism's engine runs for its answers, its `unsteered` cells are answered too: in one stream with them,
    because few long answers leave most of a batch empty.
    """
    config = session.config
    artifacts = {name: vector(session, found, asked, name, {}) for name in config.vectors}
    if config.vector.recipe == "model_diff":
        missing = [n for n, a in artifacts.items() if not session.store.has(a.stage, a.name, a.identity)]
        cells = {name: extraction_cells(session, name) for name in missing}
        for target in chain(claims.in_turn(missing, lambda name: asked[name].responses.folder), [BASE]):
            own = [cell for some in cells.values() for cell in some if cell.condition.target == target]
            if own:
                now = [cell for cell in unsteered if cell.condition.target == target]
                answer(session, "unsteered", own + now, asked, {}, session.given.judge, margins=True)
        for name in missing:
            answers = answer(session, "extraction", cells[name], asked, {})
            if len(answers) == len(cells[name]):
                artifacts[name] = vector(session, found, asked, name, answers)
            else:  # half of the texts would make another vector under the same name
                session.failed.setdefault(name, f"no vector, because {', '.join(session.failed)} failed")
    made: dict[str, Direction] = {}
    where = {name: session.store.path(a.stage, a.name, a.identity) for name, a in artifacts.items()}
    for name in claims.in_turn(artifacts, where.__getitem__):
        session.attempt(name, partial(_make_vector, session, name, artifacts[name], made))
    directions = {name: made[name] for name in artifacts if name in made}
    directions |= subspaces(session, directions) | randoms(session, asked[BASE].shape)
    return artifacts, directions


def _make_vector(session: Session, name: str, artifact: Artifact, directions: dict[str, Direction]) -> None:
    if weights.on_gpu():
        session.engines.close()  # its memory is needed for the models' own forward passes
    stored, start = session.store.has(artifact.stage, artifact.name, artifact.identity), time.perf_counter()
    directions[name] = direction(session.ensure(artifact) / VECTORS_FILE, name)
    if not stored and session.stages[-1]["made"]:
        read = 4 * len(session.given.organisms[name].prompts)
        session.speeds.measured("extraction", read, time.perf_counter() - start)


def clusters(session: Session) -> dict[str, list[str]]:
    """Mechanism → the run's vectors of it, where there are two or more; other seeds of an organism are no others."""
    found: dict[str, list[str]] = {}
    for name in filter(is_kind, session.config.vectors):
        found.setdefault(session.given.organisms[name].config.mechanism, []).append(name)
    return {mechanism: names for mechanism, names in found.items() if len(names) > 1}


def subspaces(session: Session, directions: Mapping[str, Direction]) -> dict[str, Direction]:
    """Orthonormal directions of each cluster whose vectors are all there, by name: <mechanism>/0, …"""
    whole = {m: names for m, names in clusters(session).items() if set(names) <= directions.keys()}
    if not whole:
        return {}
    artifact = subspace_artifact({m: [directions[n].file for n in names] for m, names in whole.items()}, whole)
    folder, _ = session.store.get(artifact.stage, artifact.name, artifact.identity, artifact.make)
    arrays, _ = files.load(folder / VECTORS_FILE)
    return {
        name: Direction(folder / VECTORS_FILE, name, there=np.linalg.norm(arrays[name], axis=-1) > 0)
        for m, names in whole.items()
        for name in (f"{m}/{i}" for i in range(len(names)))
    }


def randoms(session: Session, shape: tuple[int, int]) -> dict[str, Direction]:
    """The random directions of this run, by name."""
    count = session.config.controls
    if not count:
        return {}
    artifact = random_artifact(count, *shape, session.config.seed)
    folder, _ = session.store.get(artifact.stage, artifact.name, artifact.identity, artifact.make)
    return {f"random-{i}": Direction(folder / VECTORS_FILE, f"random-{i}") for i in range(count)}


def direction(file: Path, name: str) -> Direction:
    """A stored vector with its norms."""
    _, metadata = files.load(file)
    norms = {key: np.array(metadata[name][key]) for key in ("raw_norm", "residual_norm")}
    return Direction(file, name, **norms, there=norms["raw_norm"] > 0)


def vector(
    session: Session,
    found: Mapping[str, Model],
    asked: Mapping[str, Stream],
    name: str,
    answers: Mapping[Cell, Any],
) -> Artifact:
    """The artifact of an organism's vector (`base`: the base's own, by mean_diff)."""
    config, given = session.config, session.given
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
        **versions(),
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


def arrays(session: Session, directions: Mapping[str, Direction]) -> dict[str, np.ndarray]:
    """The run's vectors, unit rows [n_layers, d_model] each."""
    return {n: files.load(d.file)[0][n] for n, d in directions.items() if n in session.config.vectors}


def projections(
    session: Session, found: Mapping[str, Model], directions: Mapping[str, Direction], layers: Mapping[str, int]
) -> dict[str, dict[str, np.ndarray]]:
    """Target → vector → how far each held-out prompt's residual lies from the base's along it, float64 [n_prompts]."""
    read, units = activations(session, found), arrays(session, directions)
    if BASE not in read:  # it has failed
        return {}
    return {
        target: {name: files.project(residual, read[BASE], units[name], layers[name]) for name in layers}
        for target, residual in read.items()
    }


def activations(session: Session, found: Mapping[str, Model]) -> dict[str, np.ndarray]:
    """Each target's mean residuals on held-out prompts (the sweep's questions): [n_prompts, n_layers, d_model]."""
    texts = [question.text for question in session.given.sweep_questions]
    read: dict[str, np.ndarray] = {}

    def look(target: str) -> None:
        artifact = activations_artifact(found[target], found[BASE], texts, session.config.vector)
        read[target] = load_file(session.ensure(artifact) / ACTIVATIONS_FILE)["per_prompt"]

    for target in dict.fromkeys([BASE, *session.config.targets]):
        session.attempt(target, partial(look, target))
    return read
