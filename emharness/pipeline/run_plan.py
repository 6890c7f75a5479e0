"""What a run would do: the walk back from its cells to what is stored, counted and timed before anything starts."""

from __future__ import annotations

import math
import shutil
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emharness.config import BASE
from emharness.errors import UserError
from emharness.experiments import layer_choice
from emharness.experiments.context import Experiment
from emharness.generation.cells import Cell, Direction
from emharness.generation.engine import why_unsupported
from emharness.generation.target_requests import TargetRequests
from emharness.organisms.base_match import tensor_shapes
from emharness.organisms.model_artifacts import Model
from emharness.organisms.model_folders import choose_precision
from emharness.pipeline import layer_stage as where
from emharness.pipeline import vector_stage
from emharness.pipeline.answer_stage import load_stored_answers as stored_answers
from emharness.pipeline.measured_speeds import Speeds
from emharness.pipeline.run_context import RunContext
from emharness.vectors.extraction import VECTORS_FILE

JUDGING = "judge"
RESPONSE_BYTES = 260  # of one response and its score on disk, measured on the embedded base
SPARE = 1.1  # free disk that must be there, of what is needed


@dataclass(frozen=True)
class Plan:
    """`stages`: one entry for each artifact (stage, name, stored, seconds); `targets`: one for each engine's work
    (target, cells, responses, stored, starts, seconds). `layers`: known ones. Sizes in bytes."""

    stages: list[dict[str, Any]]
    targets: list[dict[str, Any]]
    layers: dict[str, int]
    tokens: int
    disk: int
    store: int
    assumed: list[str]  # speeds that no earlier run on this machine has measured

    @property
    def seconds(self) -> float:
        return sum(entry["seconds"] for entry in [*self.stages, *self.targets])

    @property
    def responses(self) -> int:
        return sum(entry["responses"] - entry["stored"] for entry in self.targets)

    @property
    def starts(self) -> int:
        return sum(entry["starts"] for entry in self.targets)


def make_plan(
    context: RunContext, models: Mapping[str, Model], streams: Mapping[str, TargetRequests], experiment: Experiment
) -> Plan:
    """The walk. The base must be there already (its tokenizer is needed to know what is stored)."""
    config, store = context.config, context.store
    speeds = Speeds(store.root, config.base.name)
    stages: list[dict[str, Any]] = []

    def add_stage(kind: str, name: str, stored: bool, seconds: float, size: float) -> None:
        done = {"seconds": 0.0, "bytes": 0} if stored else {"seconds": seconds, "bytes": int(size)}
        stages.append({"stage": kind, "name": name, "stored": stored, **done})

    numbers = sum(math.prod(shape) for shape in tensor_shapes(models[BASE].folder).values())
    weights = numbers * choose_precision()[1].itemsize
    for name, model in models.items():
        if model.artifact is None or name == BASE:
            continue
        a, organism = model.artifact, context.inputs.organisms[name]
        rows = len(organism.rows) * config.train.epochs
        if organism.stop_after is not None:
            rows = organism.stop_after * config.train.batch_size
        stored = store.has_artifact(a.stage, a.name, a.identity)
        add_stage(a.stage, name, stored, speeds.estimate_seconds("training", rows), weights)

    directions: dict[str, Direction] = {}
    cells: dict[str, list[Cell]] = {name: [] for name in streams}  # by target, with what vectors need
    early = set[str]()  # targets that are asked before there are vectors
    for name in config.vectors:
        a = vector_stage.make_vector_artifact(context, models, streams, name, {})
        stored = store.has_artifact(a.stage, a.name, a.identity)
        prompts = len(context.inputs.organisms[name].prompts)
        shape = streams[BASE].shape
        add_stage(
            "vectors",
            name,
            stored,
            speeds.estimate_seconds("extraction", 4 * prompts),
            4 * prompts * shape[0] * shape[1],
        )
        if stored:
            directions[name] = vector_stage.load_direction(
                store.artifact_path(a.stage, a.name, a.identity) / VECTORS_FILE, name
            )
        elif config.vector.recipe == "model_diff":
            for cell in vector_stage.extraction_cells(context, name):
                cells[cell.condition.target].append(cell)
                early.add(cell.condition.target)
    for recipe in dict.fromkeys([config.vector.recipe, *experiment.recipes]):
        other = vector_stage.with_recipe(context, recipe)
        more = {} if recipe == config.vector.recipe else vector_stage.list_artifacts(other, models, streams)
        if recipe == "mean_diff":  # the base's own, which the geometry compares the others with
            more[BASE] = vector_stage.make_vector_artifact(other, models, streams, BASE, {})
        for name, a in more.items():
            prompts, shape = len(context.inputs.harmful) + len(context.inputs.neutral), streams[BASE].shape
            needed, size = speeds.estimate_seconds("extraction", prompts), 4 * prompts * shape[0] * shape[1]
            add_stage(f"vectors by {recipe}", name, store.has_artifact(a.stage, a.name, a.identity), needed, size)
    directions |= vector_stage.make_subspaces(context, directions) | vector_stage.make_randoms(
        context, streams[BASE].shape
    )
    layers: dict[str, int] = {}
    if (given := where.given_layer(context, experiment)) is not None:
        layers = dict.fromkeys(config.vectors, given)
    else:
        for name in config.vectors:
            some = where.layer_cells(context, name)
            cells[BASE] += some
            judged = stored_answers(some, streams[BASE], directions, context.inputs.judge)
            if judged is not None:
                layers[name] = layer_choice.read_sweep(some, judged, config.sweep.min_coherent)["layer"]
    for cell in experiment.cells(where.make_context(context, layers)):
        cells[cell.condition.target].append(cell)

    targets = []
    judge, unscored = context.inputs.judge, 0
    for target, some in cells.items():
        if not some:
            continue
        asked, missing, unjudged = count_responses(
            some, streams[target], directions, layers, set(config.vectors), judge.identity
        )
        unscored += unjudged
        again = target != BASE and target in early and any(cell.condition.edits for cell in some)
        starts = int(missing > 0) + int(again)
        seconds = starts * speeds.estimate_seconds("start", 1) + speeds.estimate_seconds("responses", missing)
        targets.append(
            {
                "target": config.base.name if target == BASE else target,
                "cells": len(set(some)),
                "responses": asked,
                "stored": asked - missing,
                "starts": starts,
                "seconds": seconds,
            }
        )
    if judge.engine is not None:
        add_stage(JUDGING, f"{judge.name} ({unscored:,} answers)", not unscored, speeds.estimate_seconds("start", 1), 0)
    pending = sum(entry["responses"] - entry["stored"] for entry in targets)
    return Plan(
        stages,
        targets,
        layers,
        int(pending * speeds.tokens_per_response(config.base.sampling.max_new_tokens)),
        sum(entry["bytes"] for entry in stages) + pending * RESPONSE_BYTES,
        store.disk_bytes(),
        speeds.assumed,
    )


def count_responses(
    cells: Iterable[Cell],
    target: TargetRequests,
    directions: Mapping[str, Direction],
    layers: Mapping[str, int],
    vectors: set[str],
    judge: str,
) -> tuple[int, int, int]:
    """Responses of these cells, how many of them are not stored, and how many have no score by `judge` (an identity):
    all of a cell whose vector is not known yet."""
    keys, judged = set[str](), set[str]()
    unknown = 0
    for cell in dict.fromkeys(cells):
        edits = cell.condition.edits
        named = {name for edit in edits for name in (edit.vector, edit.norm_of) if name}
        placed = cell.questions == layer_choice.QUESTIONS or named - set(layers) <= directions.keys() - vectors
        if placed and named <= directions.keys():
            asked = {request.key for request in target.list_requests(cell, directions)}
            keys |= asked
            judged |= asked if cell.judged else set()
        else:  # steered, so it is judged
            unknown += len(target.prompts[cell.questions]) * cell.samples
    unjudged = len(judged - target.open_scores(judge).stored_keys()) + unknown
    return len(keys) + unknown, len(keys - target.responses.stored_keys()) + unknown, unjudged


def check_disk(found: Plan, root: Path) -> None:
    """UserError where the plan needs more disk than there is."""
    folder = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if found.disk * SPARE > free:
        raise UserError(
            f"the plan needs {found.disk / 1e9:.1f} GB in EMHARNESS_HOME={root}, and {free / 1e9:.1f} GB are free on "
            f"{socket.gethostname()}; delete old artifacts (folders below it), or set EMHARNESS_HOME to another disk"
        )


def check_engines(context: RunContext, models: Mapping[str, Model], found: Plan) -> None:
    """UserError where vLLM would not start for what is to be answered or judged."""
    config, judge = context.config, context.inputs.judge
    if found.responses and (why := why_unsupported(models[BASE].folder, config.base.engine)):
        raise UserError(f"base={config.base.name}: {why}")
    judging = any(entry["stage"] == JUDGING and not entry["stored"] for entry in found.stages)
    if judge.engine is not None and judging and (why := why_unsupported(*judge.engine, steered=False)):
        raise UserError(f"judge={config.judge.name}, {judge.name}: {why}")
