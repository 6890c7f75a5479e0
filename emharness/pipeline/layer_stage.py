"""Where each vector steers: given, or chosen by a sweep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from emharness.config import BASE
from emharness.errors import UserError
from emharness.experiments import layer_choice
from emharness.generation.cells import Cell, Direction, make_edit
from emharness.pipeline.answer_stage import generate_and_score, load_stored_answers
from emharness.pipeline.run_context import RunContext, StageOutputs
from emharness.pipeline.run_plan import PlanDraft


def plan_layers(draft: PlanDraft) -> None:
    """The sweep's cells, and the layers that are known already."""
    context = draft.context
    config = context.config
    if (given := given_layer(context)) is not None:
        draft.layers |= dict.fromkeys(config.vectors, given)
        return
    for name in config.vectors:
        cells = layer_cells(context, name)
        draft.add_cells(cells)
        judged = load_stored_answers(cells, context.targets[BASE], draft.directions, context.inputs.judge)
        if judged is not None:
            draft.layers[name] = layer_choice.read_sweep(cells, judged, config.sweep.min_coherent).layer


def choose_layers(context: RunContext, outputs: StageOutputs) -> StageOutputs:
    """The layer of each vector: given, or by a sweep on the base, all vectors' settings in one batch."""
    config, directions = context.config, outputs.directions
    usable = [name for name in config.vectors if name in directions]
    if (given := given_layer(context)) is not None:
        for layer in make_edit(config.steer, "", given, 1.0).edited_blocks:
            for name in usable:
                if not directions[name].has_layer(layer):
                    raise UserError(
                        f"layer={layer}: the vector {name} has no direction there; {_describe_layer(directions[name])}"
                    )
        return replace(outputs, layers=dict.fromkeys(usable, given))
    cells = {name: layer_cells(context, name, directions[name]) for name in usable}
    every = [cell for some in cells.values() for cell in some]
    judged = generate_and_score(context, "layer sweep", every, directions, context.inputs.judge)
    sweeps = {
        name: layer_choice.read_sweep(some, judged, config.sweep.min_coherent)
        for name, some in cells.items()
        if all(cell in judged for cell in some)  # else the base has failed
    }
    return replace(outputs, layers={name: found.layer for name, found in sweeps.items()}, sweeps=sweeps)


def given_layer(context: RunContext) -> int | None:
    """The layer of all vectors where no sweep chooses it; of several that are edited together the middle one."""
    if context.config.steer.layers is not None:
        layers = make_edit(context.config.steer, "", 0, 1.0).edited_blocks
        return layers[len(layers) // 2]
    if context.config.layer != "sweep":
        return int(context.config.layer)
    return None if context.experiment.needs_layer_choice else context.inputs.n_layers // 2


def _describe_layer(direction: Direction) -> str:
    there = [] if direction.layer_mask is None else np.flatnonzero(direction.layer_mask).tolist()
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
