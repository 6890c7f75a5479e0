"""The method section: models, their vectors, where those steer, all answers, and what they say."""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from emharness import geometry
from emharness.config import BASE
from emharness.directions.extract import VECTORS_FILE
from emharness.errors import UserError, in_a_line
from emharness.experiments import stored
from emharness.experiments.scope import BROAD, Experiment, Scope
from emharness.generation.cells import Cell, Direction
from emharness.generation.stream import Stream
from emharness.judge import labels
from emharness.judge.metrics import order_changes
from emharness.organisms.models import Model
from emharness.reporting import figures, page, results
from emharness.reporting.terminal import say
from emharness.reporting.track import Tracker
from emharness.store import Artifact
from emharness.study import layers, models, vectors
from emharness.study.answers import answer
from emharness.study.layers import Layers
from emharness.study.models import DOMAIN
from emharness.study.session import Session


@dataclass(frozen=True)
class Answered:
    artifacts: dict[str, Artifact]  # of the vectors
    directions: dict[str, Direction]
    layers: Layers
    scope: Scope
    judged: dict[Cell, pa.Table]


def generate(
    session: Session, found: Mapping[str, Model], streams: Mapping[str, Stream], experiment: Experiment
) -> Answered:
    """Everything that the experiment's cells need, and their judged answers. Raises Incomplete if a model failed."""
    models.make(session, found)
    unsteered = layers.unsteered_cells(experiment, layers.scope(session, {}))
    artifacts, directions = vectors.make(session, found, streams, unsteered)
    where = layers.choose(session, experiment, streams, directions)
    scope = layers.scope(session, where.chosen, directions)
    if experiment.looks:
        scope = replace(scope, projections=vectors.projections(session, found, directions, where.chosen))
    placed = {n: d for n, d in directions.items() if n in where.chosen or n not in session.config.vectors}
    judged = answer(session, "responses", experiment.cells(scope), streams, placed, session.given.judge, margins=True)
    scope = replace(scope, margins=session.margins)
    session.complete()
    return Answered(artifacts, directions, where, scope, judged)


def report(
    session: Session,
    found: Mapping[str, Model],
    streams: Mapping[str, Stream],
    experiment: Experiment,
    answered: Answered,
    folder: Path,
    run_key: str,
) -> None:
    """Read the answers, analyse the vectors' geometry, and leave results in `folder` and in W&B."""
    scope, where = answered.scope, answered.layers
    reading = experiment.read(scope, answered.judged)
    analysed = geometries(session, found, streams, experiment, answered.artifacts, scope.layers[scope.vectors[0]])
    changes = order_changes(reading.conditions)
    given = labels.load(session.store.root / labels.KEPT)
    answers = {cell.condition.name: table for cell, table in answered.judged.items() if cell.questions == BROAD}
    for entry in reading.conditions:
        entry["order_changes"] = changes.get(entry["name"], [])
        entry["labels"] = labels.of_condition(answers[entry["name"]].to_pylist(), given) if given else None
    drawn = dict(reading.figures)
    for vector, sweep in where.sweeps.items():
        label = "layer_sweep" if len(where.sweeps) == 1 else f"layer_sweep_{vector}"
        drawn[label] = figures.layer_sweep(sweep, f"{vector} vector on {scope.base}: where to steer")
    says = {"question": experiment.question, "finding": reading.finding, "command": session.command}
    told = results_of(session, reading.conditions, says | reading.numbers, where, answered.artifacts, analysed, run_key)
    tables: dict[str, list[pa.Table]] = {"responses": [], "domain_responses": []}
    for cell, table in answered.judged.items():
        tables["domain_responses" if cell.questions.startswith(DOMAIN) else "responses"].append(table)
    results.write(folder, told, tables, drawn, stored.to_json(scope))
    if experiment.report is not None:
        measured: dict[str, dict[str, Any] | None] = {}
        for recipe, where_to in analysed.items():
            path = where_to.get("results")
            measured[recipe] = json.loads(Path(path).read_text()) if path else None
            for file in (Path(path), *Path(path).parent.glob("figure*.png")) if path else ():
                shutil.copy(file, folder / f"{file.stem}_{recipe}{file.suffix}")
        (folder / "report.md").write_text(experiment.report(told, measured), encoding="utf-8")
    page.write(folder)
    track(folder, session.tracker)


def track(folder: Path, tracker: Tracker) -> None:
    """A finished run's folder in W&B."""
    told = results.read(folder)
    for recipe, found in told["geometry_by_recipe"].items():
        if "results" in found:
            tracker.geometry(*geometry.written(Path(found["results"]).parent), folder=f"geometry_{recipe}")
    named = told["vectors"] if isinstance(told["vectors"], dict) else {told["config"]["vectors"][0]: told["vectors"]}
    results.mirror(folder, {name: Path(path) for name, path in named.items()}, tracker)


def geometries(
    session: Session,
    found: Mapping[str, Model],
    asked: Mapping[str, Stream],
    experiment: Experiment,
    artifacts: Mapping[str, Artifact],
    layer: int,
) -> dict[str, dict[str, str]]:
    """Recipe → geometry of the vectors that it makes: first the ones that steer, then the experiment's further ones."""
    analysed = {session.config.vector.recipe: analyse(session, found, asked, artifacts, layer)}
    for recipe in experiment.recipes:
        if recipe not in analysed:
            other = vectors.with_recipe(session, recipe)
            made = vectors.artifacts(other, found, asked)
            for artifact in made.values():
                session.ensure(artifact)
            analysed[recipe] = analyse(other, found, asked, made, layer)
    return analysed


def analyse(
    session: Session,
    found: Mapping[str, Model],
    asked: Mapping[str, Stream],
    artifacts: Mapping[str, Artifact],
    layer: int,
) -> dict[str, str]:
    """Geometry of this run's vectors, or, where it has only one, of all stored ones that were made like it.

    Replicas and checkpoints of an organism are no kinds of their own and stay out. {"skipped": why} if there is none.
    """
    own = next(iter(artifacts.values())).identity
    keys = ["base", "recipe", "skip_tokens", "code"]
    if session.config.vector.recipe == "mean_diff":  # the base has a vector of its own only by this recipe
        session.ensure(vectors.vector(session, found, asked, BASE, {}))
        keys.append("prompts")
    stored = geometry.stored(session.store.root / "vectors", {key: own[key] for key in keys})
    kinds = {name: a for name, a in artifacts.items() if vectors.is_kind(name)}
    if len(kinds) > 1:
        base = {name: path for name, path in stored.items() if name == geometry.BASE}
        stored = base | {n: session.store.path(a.stage, a.name, a.identity) / VECTORS_FILE for n, a in kinds.items()}
    identity = {
        "vectors": {name: path.parent.name for name, path in stored.items()},
        "layer": layer,
        "seed": session.config.seed,
        "code": geometry.CODE,
    }

    def make(folder: Path) -> None:
        read, means = geometry.load_stored(stored)
        geometry.write(geometry.analyse(read, layer=layer, prompt_means=means, seed=session.config.seed), folder)

    try:
        folder = session.ensure(Artifact("geometry", session.config.base.name, identity, make))
    except UserError as error:  # too few vectors, or ones that do not fit: the run itself is whole
        say(f"geometry: skipped: {error}")
        return {"skipped": str(error)}
    except Exception as error:  # the answers are not lost; the next start tries the geometry again
        reason = in_a_line(f"{type(error).__name__}: {error}", 500)
        traceback.print_exc(file=sys.stderr)
        say(f"failed: geometry: {reason}; the answers are kept")
        return {"failed": reason}
    return {"results": str(folder / "geometry.json")}


def results_of(
    session: Session,
    conditions: list[dict[str, Any]],
    numbers: Mapping[str, Any],
    where: Layers,
    artifacts: Mapping[str, Artifact],
    analysed: Mapping[str, Mapping[str, str]],
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
        "to_score_again": session.unscored,
        "notes": [*session.given.notes, *session.notes],
        "geometry": dict(analysed[session.config.vector.recipe]),
        "geometry_by_recipe": {recipe: dict(found) for recipe, found in analysed.items()},
        "stages": session.stages,
        "engine_starts": session.engines.started,
    }
