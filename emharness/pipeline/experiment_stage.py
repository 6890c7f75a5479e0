"""The answers that the experiment needs, and the activations of its targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from safetensors.numpy import load_file

from emharness.config import BASE
from emharness.experiments.context import BROAD
from emharness.generation.cells import Condition, Direction
from emharness.pipeline.answer_stage import generate_and_score
from emharness.pipeline.run_context import RunContext, StageOutputs
from emharness.pipeline.run_plan import PlanDraft
from emharness.pipeline.subject import make_subject, unit_arrays
from emharness.vectors.recipes import project_change
from emharness.vectors.vector_artifacts import ACTIVATIONS_FILE, activations_artifact


def plan_answers(draft: PlanDraft) -> None:
    """The experiment's own cells."""
    draft.add_cells(draft.context.experiment.list_all_cells(make_subject(draft.context, draft.layers)))


def answer_experiment(context: RunContext, outputs: StageOutputs) -> StageOutputs:
    """The judged answers of the experiment's cells, and the experiment's context."""
    subject = make_subject(context, outputs.layers, outputs.directions)
    if context.experiment.needs_activations:
        projections = project_targets(context, outputs.directions, outputs.layers)
        subject = replace(subject, projections=projections)
    vectors = context.config.vectors
    placed = {n: d for n, d in outputs.directions.items() if n in outputs.layers or n not in vectors}
    cells = context.experiment.list_all_cells(subject)
    judged = generate_and_score(context, "responses", cells, placed, context.inputs.judge, margins=True)
    margins: dict[str, dict[Condition, np.ndarray]] = {BROAD: {}}
    for (condition, questions), values in context.log.margins.items():
        margins.setdefault(questions, {})[condition] = values
    subject = replace(subject, margins=margins.pop(BROAD), form_margins=margins)
    return replace(outputs, subject=subject, judged=judged)


def project_targets(
    context: RunContext, directions: Mapping[str, Direction], layers: Mapping[str, int]
) -> dict[str, dict[str, np.ndarray]]:
    """Target → vector → how far each held-out prompt's residual lies from the base's along it, float64 [n_prompts]."""
    read, units = load_activations(context), unit_arrays(context, directions)
    if BASE not in read:  # it has failed
        return {}
    return {
        target: {name: project_change(residual, read[BASE], units[name], layers[name]) for name in layers}
        for target, residual in read.items()
    }


def load_activations(context: RunContext) -> dict[str, np.ndarray]:
    """Each target's mean residuals on held-out prompts (the sweep's questions): [n_prompts, n_layers, d_model]."""
    texts = [question.text for question in context.inputs.sweep_questions]
    read: dict[str, np.ndarray] = {}

    def read_activations(target: str) -> None:
        artifact = activations_artifact(context.models[target], context.models[BASE], texts, context.config.vector)
        read[target] = load_file(context.ensure_artifact(artifact) / ACTIVATIONS_FILE)["per_prompt"]

    for target in dict.fromkeys([BASE, *context.config.targets]):
        context.attempt_model(target, partial(read_activations, target))
    return read
