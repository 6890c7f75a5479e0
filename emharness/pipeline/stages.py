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
from emharness.errors import UserError, join_lines
from emharness.experiments import stored_context
from emharness.experiments.context import BROAD, Experiment, ExperimentContext
from emharness.generation.cells import Cell, Direction
from emharness.generation.target_requests import TargetRequests
from emharness.judges import reader_labels
from emharness.organisms.model_artifacts import Model
from emharness.pipeline import layer_stage, model_stage, vector_stage
from emharness.pipeline.answer_stage import generate_and_score
from emharness.pipeline.layer_stage import Layers
from emharness.pipeline.model_stage import DOMAIN
from emharness.pipeline.run_context import RunContext
from emharness.reporting import html_report, run_figures, run_files
from emharness.reporting.terminal import print_line
from emharness.reporting.wandb_tracker import Tracker
from emharness.stats.rates import order_changes
from emharness.store import Artifact
from emharness.vectors.extraction import VECTORS_FILE


@dataclass(frozen=True)
class Answered:
    artifacts: dict[str, Artifact]  # of the vectors
    directions: dict[str, Direction]
    layers: Layers
    context: ExperimentContext
    judged: dict[Cell, pa.Table]


def generate_answers(
    context: RunContext, found: Mapping[str, Model], streams: Mapping[str, TargetRequests], experiment: Experiment
) -> Answered:
    """Everything that the experiment's cells need, and their judged answers. Raises Incomplete if a model failed."""
    model_stage.train_organisms(context, found)
    unsteered = layer_stage.unsteered_cells(experiment, layer_stage.make_context(context, {}))
    artifacts, directions = vector_stage.extract_vectors(context, found, streams, unsteered)
    where = layer_stage.choose_layers(context, experiment, streams, directions)
    scope = layer_stage.make_context(context, where.chosen, directions)
    if experiment.needs_activations:
        scope = replace(scope, projections=vector_stage.project_targets(context, found, directions, where.chosen))
    placed = {n: d for n, d in directions.items() if n in where.chosen or n not in context.config.vectors}
    judged = generate_and_score(
        context, "responses", experiment.cells(scope), streams, placed, context.inputs.judge, margins=True
    )
    scope = replace(scope, margins=context.margins)
    context.raise_if_failed()
    return Answered(artifacts, directions, where, scope, judged)


def write_report(
    context: RunContext,
    found: Mapping[str, Model],
    streams: Mapping[str, TargetRequests],
    experiment: Experiment,
    answered: Answered,
    folder: Path,
    run_key: str,
) -> None:
    """Read the answers, analyse the vectors' geometry, and leave results in `folder` and in W&B."""
    scope, where = answered.context, answered.layers
    reading = experiment.analyze(scope, answered.judged)
    analysed = analyze_recipes(context, found, streams, experiment, answered.artifacts, scope.layers[scope.vectors[0]])
    changes = order_changes(reading.conditions)
    given = reader_labels.load_labels(context.store.root / reader_labels.KEPT)
    answers = {cell.condition.name: table for cell, table in answered.judged.items() if cell.questions == BROAD}
    for entry in reading.conditions:
        entry["order_changes"] = changes.get(entry["name"], [])
        entry["labels"] = reader_labels.of_condition(answers[entry["name"]].to_pylist(), given) if given else None
    drawn = dict(reading.figures)
    for vector, sweep in where.sweeps.items():
        label = "layer_sweep" if len(where.sweeps) == 1 else f"layer_sweep_{vector}"
        drawn[label] = run_figures.draw_layer_sweep(sweep, f"{vector} vector on {scope.base}: where to steer")
    says = {"question": experiment.question, "finding": reading.finding, "command": context.command}
    told = results_of(context, reading.conditions, says | reading.numbers, where, answered.artifacts, analysed, run_key)
    tables: dict[str, list[pa.Table]] = {"responses": [], "domain_responses": []}
    for cell, table in answered.judged.items():
        tables["domain_responses" if cell.questions.startswith(DOMAIN) else "responses"].append(table)
    run_files.write_results(folder, told, tables, drawn, stored_context.to_json(scope))
    if experiment.report is not None:
        measured: dict[str, dict[str, Any] | None] = {}
        for recipe, where_to in analysed.items():
            path = where_to.get("results")
            measured[recipe] = json.loads(Path(path).read_text()) if path else None
            for file in (Path(path), *Path(path).parent.glob("figure*.png")) if path else ():
                shutil.copy(file, folder / f"{file.stem}_{recipe}{file.suffix}")
        (folder / "report.md").write_text(experiment.report(told, measured), encoding="utf-8")
    html_report.write_page(folder)
    track_run(folder, context.tracker)


def track_run(folder: Path, tracker: Tracker) -> None:
    """A finished run's folder in W&B."""
    told = run_files.read_results(folder)
    for recipe, found in told["geometry_by_recipe"].items():
        if "results" in found:
            tracker.log_geometry(*geometry.read_written(Path(found["results"]).parent), folder=f"geometry_{recipe}")
    named = told["vectors"] if isinstance(told["vectors"], dict) else {told["config"]["vectors"][0]: told["vectors"]}
    run_files.mirror_to_tracker(folder, {name: Path(path) for name, path in named.items()}, tracker)


def analyze_recipes(
    context: RunContext,
    found: Mapping[str, Model],
    asked: Mapping[str, TargetRequests],
    experiment: Experiment,
    artifacts: Mapping[str, Artifact],
    layer: int,
) -> dict[str, dict[str, str]]:
    """Recipe → geometry of the vectors that it makes: first the ones that steer, then the experiment's further ones."""
    analysed = {context.config.vector.recipe: analyze_vectors(context, found, asked, artifacts, layer)}
    for recipe in experiment.recipes:
        if recipe not in analysed:
            other = vector_stage.with_recipe(context, recipe)
            made = vector_stage.list_artifacts(other, found, asked)
            for artifact in made.values():
                context.ensure_artifact(artifact)
            analysed[recipe] = analyze_vectors(other, found, asked, made, layer)
    return analysed


def analyze_vectors(
    context: RunContext,
    found: Mapping[str, Model],
    asked: Mapping[str, TargetRequests],
    artifacts: Mapping[str, Artifact],
    layer: int,
) -> dict[str, str]:
    """Geometry of this run's vectors, or, where it has only one, of all stored ones that were made like it.

    Replicas and checkpoints of an organism are no kinds of their own and stay out. {"skipped": why} if there is none.
    """
    own = next(iter(artifacts.values())).identity
    keys = ["base", "recipe", "skip_tokens", "code"]
    if context.config.vector.recipe == "mean_diff":  # the base has a vector of its own only by this recipe
        context.ensure_artifact(vector_stage.make_vector_artifact(context, found, asked, BASE, {}))
        keys.append("prompts")
    stored = geometry.stored_files(context.store.root / "vectors", {key: own[key] for key in keys})
    kinds = {name: a for name, a in artifacts.items() if vector_stage.is_kind(name)}
    if len(kinds) > 1:
        base = {name: path for name, path in stored.items() if name == geometry.BASE}
        stored = base | {
            n: context.store.artifact_path(a.stage, a.name, a.identity) / VECTORS_FILE for n, a in kinds.items()
        }
    identity = {
        "vectors": {name: path.parent.name for name, path in stored.items()},
        "layer": layer,
        "seed": context.config.seed,
        "code": geometry.CODE,
    }

    def fill_folder(folder: Path) -> None:
        read, means = geometry.load_stored(stored)
        geometry.write_analysis(
            geometry.analyze_geometry(read, layer=layer, prompt_means=means, seed=context.config.seed), folder
        )

    try:
        folder = context.ensure_artifact(Artifact("geometry", context.config.base.name, identity, fill_folder))
    except UserError as error:  # too few vectors, or ones that do not fit: the run itself is whole
        print_line(f"geometry: skipped: {error}")
        return {"skipped": str(error)}
    except Exception as error:  # the answers are not lost; the next start tries the geometry again
        reason = join_lines(f"{type(error).__name__}: {error}", 500)
        traceback.print_exc(file=sys.stderr)
        print_line(f"failed: geometry: {reason}; the answers are kept")
        return {"failed": reason}
    return {"results": str(folder / "geometry.json")}


def results_of(
    context: RunContext,
    conditions: list[dict[str, Any]],
    numbers: Mapping[str, Any],
    where: Layers,
    artifacts: Mapping[str, Artifact],
    analysed: Mapping[str, Mapping[str, str]],
    run_key: str,
) -> dict[str, Any]:
    """results.json."""
    paths = {
        n: str(context.store.artifact_path(a.stage, a.name, a.identity) / VECTORS_FILE) for n, a in artifacts.items()
    }
    first = context.config.vectors[0]
    return {
        "run_key": run_key,
        "experiment": context.config.experiment.name,
        "config": asdict(context.config),
        "conditions": conditions,
        **numbers,
        "layers": where.chosen,
        "sweep": where.sweeps.get(first),
        "sweeps": where.sweeps,
        "vectors": paths[first] if len(paths) == 1 else paths,
        "judge_card": context.inputs.judge.card(),
        "to_score_again": context.unscored,
        "notes": [*context.inputs.list_notes, *context.notes],
        "geometry": dict(analysed[context.config.vector.recipe]),
        "geometry_by_recipe": {recipe: dict(found) for recipe, found in analysed.items()},
        "stages": context.stages,
        "engine_starts": context.engines.started,
    }
