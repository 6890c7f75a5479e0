"""Where each vector steers, and what the experiment is then about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from emharness.errors import UserError
from emharness.experiments import layer_choice
from emharness.experiments.context import Experiment, ExperimentContext
from emharness.generation import likelihoods
from emharness.generation.cells import Cell, Direction, make_edit
from emharness.generation.target_requests import TargetRequests
from emharness.judges.topics import training_topic
from emharness.pipeline import vector_stage
from emharness.pipeline.answer_stage import generate_and_score
from emharness.pipeline.model_stage import DOMAIN
from emharness.pipeline.run_context import RunContext
from emharness.vectors import recipes as files


@dataclass(frozen=True)
class Layers:
    """Where each vector steers; `sweeps`: how that was found, by vector, empty where it was given."""

    chosen: dict[str, int]
    sweeps: dict[str, dict[str, Any]]


def choose_layers(
    context: RunContext,
    experiment: Experiment,
    asked: Mapping[str, TargetRequests],
    directions: Mapping[str, Direction],
) -> Layers:
    """The layer of each vector: given, or by a sweep on the base, all vectors' settings in one stream."""
    config = context.config
    usable = [name for name in config.vectors if name in directions]
    if (given := given_layer(context, experiment)) is not None:
        for layer in make_edit(config.steer, "", given, 1.0).edited_blocks:
            for name in usable:
                if not directions[name].has_layer(layer):
                    raise UserError(
                        f"layer={layer}: the vector {name} has no direction there; {_describe_layer(directions[name])}"
                    )
        return Layers(dict.fromkeys(usable, given), {})
    cells = {name: layer_cells(context, name, directions[name]) for name in usable}
    judged = generate_and_score(
        context, "layer sweep", [c for some in cells.values() for c in some], asked, directions, context.inputs.judge
    )
    sweeps = {
        name: layer_choice.read_sweep(some, judged, config.sweep.min_coherent)
        for name, some in cells.items()
        if all(cell in judged for cell in some)  # else the base has failed
    }
    return Layers({name: found["layer"] for name, found in sweeps.items()}, sweeps)


def given_layer(context: RunContext, experiment: Experiment) -> int | None:
    """The layer of all vectors where no sweep chooses it; of several that are edited together the middle one."""
    if context.config.steer.layers is not None:
        layers = make_edit(context.config.steer, "", 0, 1.0).edited_blocks
        return layers[len(layers) // 2]
    if context.config.layer != "sweep":
        return int(context.config.layer)
    return None if experiment.needs_layer_choice else context.inputs.n_layers // 2


def _describe_layer(direction: Direction) -> str:
    there = [] if direction.there is None else np.flatnonzero(direction.there).tolist()
    return f"it has one at layers {', '.join(map(str, there))}"


def layer_cells(context: RunContext, name: str, direction: Direction | None = None) -> list[Cell]:
    """The sweep's cells; where the vector is there already, only at layers at which it has a direction."""
    config, steer = context.config, context.config.steer
    n_layers = context.inputs.n_layers
    there = [layer for layer in range(n_layers) if direction is None or direction.has_layer(layer)]
    return layer_choice.sweep_cells(
        name,
        there,
        n_layers,
        config.sweep,
        steer,
        config.base.sampling.max_new_tokens,
    )


def make_context(
    context: RunContext, chosen: Mapping[str, int], directions: Mapping[str, Direction] | None = None
) -> ExperimentContext:
    """What the experiment is about; vectors without a layer yet count as at layer 0, for planning."""
    config, given = context.config, context.inputs
    return ExperimentContext(
        base=config.base.name,
        vectors=tuple(config.vectors),
        targets=tuple(config.targets),
        strengths=tuple(config.steer.strength),
        layers={name: chosen.get(name, 0) for name in config.vectors},
        steer=config.steer,
        controls=tuple(f"random-{i}" for i in range(config.controls)),
        samples=config.eval.samples,
        domain_samples=config.eval.domain_samples,
        control_samples=min(config.eval.control_samples, config.eval.samples),
        max_new_tokens=config.base.sampling.max_new_tokens,
        domains={name: f"{DOMAIN}:{name}" for name, organism in given.organisms.items() if organism.domain},
        topics={
            name: topic
            for name, o in given.organisms.items()
            if (topic := training_topic(o.config.name, o.config.prompts))
        },
        pairs=likelihoods.load_pairs(config.eval.pairs),
        categories={q.id: q.category for q in given.broad if q.category},
        near={name: tuple(organism.config.near) for name, organism in given.organisms.items()},
        labs={name: organism.config.lab for name, organism in given.organisms.items()},
        mechanisms={name: organism.config.mechanism for name, organism in given.organisms.items()},
        judge=given.judge.name,
        quality=given.judge.accuracy,
        n_layers=given.n_layers,
        parts=config.experiment.parts,
        subspaces={
            m: tuple(f"{m}/{i}" for i in range(len(names)))
            for m, names in vector_stage.cluster_vectors(context).items()
        },
        norms={
            name: (d.raw_norm, d.residual_norm)
            for name, d in (directions or {}).items()
            if d.raw_norm is not None and d.residual_norm is not None
        },
        cosines=files.cosines_by_layer(vector_stage.unit_arrays(context, directions or {})),
    )


def unsteered_cells(experiment: Experiment, context: ExperimentContext) -> list[Cell]:
    """The cells of an experiment that need no vector."""
    return [cell for cell in experiment.cells(context) if not cell.condition.edits]
