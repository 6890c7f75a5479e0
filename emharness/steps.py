"""The steps of a study in the order of the data: models → vectors → layers → scope → answers. Launchers call them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emharness import geometry
from emharness.config import BASE
from emharness.directions import vectors as files
from emharness.directions.extract import VECTORS_FILE
from emharness.directions.make import random_artifact, vector_artifact
from emharness.errors import UserError
from emharness.experiments import layer as layer_choice
from emharness.experiments.scope import BROAD, Experiment, Scope
from emharness.generation.cells import Cell, Condition, Direction
from emharness.generation.stream import Stream, stream
from emharness.inputs import engine_identity
from emharness.organisms import weights
from emharness.organisms.models import Model, base_model, published_model, trained_model
from emharness.questions import Question
from emharness.reporting.terminal import TrainProgress, say
from emharness.session import Session
from emharness.store import Artifact
from emharness.versions import engine_version, versions

CODE = 1  # raise when responses change for the same config
DOMAIN, EXTRACTION = "domain", "extraction"  # question sets of an organism: domain:<name>, extraction:<name>


@dataclass(frozen=True)
class Layers:
    """Where each vector steers; `sweeps`: how that was found, by vector, empty where it was given."""

    chosen: dict[str, int]
    sweeps: dict[str, dict[str, Any]]


def models(session: Session) -> dict[str, Model]:
    """The base, saved if it is embedded and was not yet, and every organism that the run names, not made yet."""
    config, given, store = session.config, session.given, session.store
    base = base_model(given.base, given.base_identity, store)
    if base.artifact is not None:  # its tokenizer says what will be asked
        session.ensure(base.artifact)
    found = {BASE: base}
    for name, organism in given.organisms.items():
        if organism.published is not None and organism.published_identity is not None:
            found[name] = published_model(name, organism.published, organism.published_identity, base, store)
        else:
            found[name] = trained_model(name, organism.rows, config.train, config.seed, base, store, session.on_step)
    return found


def make_organisms(session: Session, found: Mapping[str, Model]) -> None:
    """Train or merge the organisms that are not stored."""
    for name, model in found.items():
        if model.artifact is not None and name != BASE:
            session.attempt(name, partial(_make_organism, session, name, model.artifact))


def _make_organism(session: Session, name: str, artifact: Artifact) -> None:
    stored = session.store.has(artifact.stage, artifact.name, artifact.identity)
    if stored or session.given.organisms[name].published is not None:
        session.ensure(artifact)
        return
    session.engines.close()  # training needs the memory
    with TrainProgress(f"train {name}") as bar:
        session.watchers = [bar.step, session.tracker.step]
        start = time.perf_counter()
        session.ensure(artifact)
    rows = len(session.given.organisms[name].rows) * session.config.train.epochs
    session.speeds.measured("training", rows, time.perf_counter() - start)


def streams(session: Session, found: Mapping[str, Model]) -> dict[str, Stream]:
    """Each model's side of the grid, with every question set as it reads it. The base must be there."""
    config, given = session.config, session.given
    sampling = asdict(config.base.sampling)
    del sampling["progress"], sampling["max_new_tokens"]
    questions: dict[str, list[Question]] = {BROAD: given.broad, layer_choice.QUESTIONS: given.sweep_questions}
    for name, organism in given.organisms.items():
        questions[f"{EXTRACTION}:{name}"] = [Question(str(i), text) for i, text in enumerate(organism.prompts)]
        if organism.domain:
            questions[f"{DOMAIN}:{name}"] = organism.domain
    return {
        name: stream(
            name,
            model.folder,
            model.folder if model.artifact is None else found[BASE].folder,
            {
                "model": model.identity,
                "sampling": sampling,
                "engine": {"version": engine_version(), **engine_identity(config)},
                "seed": config.seed,
                "code": CODE,
            },
            questions,
            config.seed,
            session.store.root,
        )
        for name, model in found.items()
    }


def extraction_cells(session: Session, name: str) -> list[Cell]:
    """What a vector by model_diff reads: one answer of the organism and of the base to each extraction prompt."""
    length = session.config.vector.max_new_tokens
    return [Cell(Condition(target), f"{EXTRACTION}:{name}", 1, length) for target in (name, BASE)]


def vectors(
    session: Session, found: Mapping[str, Model], asked: Mapping[str, Stream], unsteered: list[Cell]
) -> tuple[dict[str, Artifact], dict[str, Direction]]:
    """The vectors' artifacts, made, and where they lie; random directions as well.

    While an organism's engine runs for its answers, its `unsteered` cells are answered too.
    """
    config = session.config
    artifacts = {name: vector(session, found, asked, name, {}) for name in config.vectors}
    if config.vector.recipe == "model_diff":
        missing = [n for n, a in artifacts.items() if not session.store.has(a.stage, a.name, a.identity)]
        cells = {name: extraction_cells(session, name) for name in missing}
        for target in [*missing, BASE]:
            own = [cell for some in cells.values() for cell in some if cell.condition.target == target]
            if own:
                session.answer("extraction", own, asked, {})
                now = [cell for cell in unsteered if cell.condition.target == target]
                session.answer("unsteered", now, asked, {}, session.given.judge)
        for name in missing:
            if name not in session.failed:
                answers = session.answer("extraction", cells[name], asked, {})
                artifacts[name] = vector(session, found, asked, name, answers)
    directions = {}
    for name, artifact in artifacts.items():
        session.attempt(name, partial(_make_vector, session, name, artifact, directions))
    return artifacts, directions | randoms(session, asked[BASE].shape)


def _make_vector(session: Session, name: str, artifact: Artifact, directions: dict[str, Direction]) -> None:
    if weights.on_gpu():
        session.engines.close()  # its memory is needed for the models' own forward passes
    stored, start = session.store.has(artifact.stage, artifact.name, artifact.identity), time.perf_counter()
    directions[name] = direction(session.ensure(artifact) / VECTORS_FILE, name)
    if not stored:
        read = 4 * len(session.given.organisms[name].prompts)
        session.speeds.measured("extraction", read, time.perf_counter() - start)


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
    return Direction(file, name, **norms)


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


def layers(session: Session, asked: Mapping[str, Stream], directions: Mapping[str, Direction]) -> Layers:
    """The layer of each vector: given, or by a sweep on the base, all vectors' settings in one stream."""
    config = session.config
    usable = [name for name in config.vectors if name in directions]
    if config.layer != "sweep":
        return Layers({name: int(config.layer) for name in usable}, {})
    cells = {name: layer_cells(session, name) for name in usable}
    judged = session.answer(
        "layer sweep", [c for some in cells.values() for c in some], asked, directions, session.given.judge
    )
    session.complete()
    sweeps = {name: layer_choice.read(some, judged, config.sweep.min_coherent) for name, some in cells.items()}
    return Layers({name: found["layer"] for name, found in sweeps.items()}, sweeps)


def layer_cells(session: Session, name: str) -> list[Cell]:
    config, steer = session.config, session.config.steer
    return layer_choice.cells(
        name,
        session.given.n_layers,
        config.sweep,
        steer.unit,
        steer.mode,
        steer.positions,
        config.base.sampling.max_new_tokens,
    )


def scope(session: Session, chosen: Mapping[str, int]) -> Scope:
    """What the experiment is about; vectors without a layer yet count as at layer 0, for planning."""
    config, given = session.config, session.given
    return Scope(
        base=config.base.name,
        vectors=tuple(config.vectors),
        targets=tuple(config.targets),
        strengths=tuple(config.steer.strength),
        layers={name: chosen.get(name, 0) for name in config.vectors},
        unit=config.steer.unit,
        mode=config.steer.mode,
        positions=config.steer.positions,
        controls=tuple(f"random-{i}" for i in range(config.controls)),
        samples=config.eval.samples,
        domain_samples=config.eval.domain_samples,
        control_samples=min(config.eval.control_samples, config.eval.samples),
        max_new_tokens=config.base.sampling.max_new_tokens,
        domains={name: f"{DOMAIN}:{name}" for name, organism in given.organisms.items() if organism.domain},
        labs={name: organism.config.lab for name, organism in given.organisms.items()},
        mechanisms={name: organism.config.mechanism for name, organism in given.organisms.items()},
        judge=given.judge.name,
    )


def unsteered_cells(experiment: Experiment, early: Scope) -> list[Cell]:
    """The cells of an experiment that need no vector."""
    return [cell for cell in experiment.cells(early) if not cell.condition.edits]


def analyse(
    session: Session,
    found: Mapping[str, Model],
    asked: Mapping[str, Stream],
    artifacts: Mapping[str, Artifact],
    layer: int,
) -> dict[str, str]:
    """Geometry of all stored vectors that were made like this run's; {"skipped": why} where it has none."""
    own = next(iter(artifacts.values())).identity
    keys = ["base", "recipe", "skip_tokens", "code"]
    if session.config.vector.recipe == "mean_diff":  # the base has a vector of its own only by this recipe
        session.ensure(vector(session, found, asked, BASE, {}))
        keys.append("prompts")
    stored = geometry.stored(session.store.root / "vectors", {key: own[key] for key in keys})
    identity = {
        "vectors": {name: path.parent.name for name, path in stored.items()},
        "layer": layer,
        "seed": session.config.seed,
        "code": CODE,
    }

    def make(folder: Path) -> None:
        read, means = geometry.load_stored(stored)
        geometry.write(geometry.analyse(read, layer=layer, prompt_means=means, seed=session.config.seed), folder)

    try:
        folder = session.ensure(Artifact("geometry", session.config.base.name, identity, make))
    except UserError as error:  # too few vectors, or old ones that do not fit: the run itself is whole
        say(f"geometry: skipped: {error}")
        return {"skipped": str(error)}
    session.tracker.geometry(*geometry.written(folder))
    return {"results": str(folder / "geometry.json")}


def results(
    session: Session,
    conditions: list[dict[str, Any]],
    numbers: Mapping[str, Any],
    where: Layers,
    artifacts: Mapping[str, Artifact],
    analysed: Mapping[str, str],
    run_key: str,
) -> dict[str, Any]:
    """results.json."""
    paths = {n: str(session.store.path(a.stage, a.name, a.identity) / VECTORS_FILE) for n, a in artifacts.items()}
    first = session.config.vectors[0]
    return {
        "run_key": run_key,
        "experiment": session.config.experiment.name,
        "config": asdict(session.config),
        "conditions": conditions,
        **numbers,
        "layers": where.chosen,
        "sweep": where.sweeps.get(first),
        "sweeps": where.sweeps,
        "vectors": paths[first] if len(paths) == 1 else paths,
        "judge_card": session.given.judge.card(),
        "geometry": dict(analysed),
        "stages": session.stages,
        "engine_starts": session.engines.started,
    }
