"""The stages of a run, in their order. A plan is the same list run dry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emharness.pipeline import experiment_stage, layer_stage, model_stage, run_plan, vector_stage
from emharness.pipeline.run_context import RunContext, StageOutputs
from emharness.pipeline.run_plan import Plan, PlanDraft


@dataclass(frozen=True)
class Stage:
    """`plan` adds to a draft what the stage would do; `run` does it, and returns what was made with its own part."""

    plan: Callable[[PlanDraft], None]
    run: Callable[[RunContext, StageOutputs], StageOutputs]


STAGES = (
    Stage(model_stage.plan_organisms, model_stage.train_organisms),
    Stage(vector_stage.plan_vectors, vector_stage.extract_vectors),
    Stage(layer_stage.plan_layers, layer_stage.choose_layers),
    Stage(experiment_stage.plan_answers, experiment_stage.answer_experiment),
)


def make_plan(context: RunContext) -> Plan:
    """What a run would do. The base must be there already: its tokenizer is needed to know what is stored."""
    draft = PlanDraft(context)
    for stage in STAGES:
        stage.plan(draft)
    run_plan.plan_targets(draft)
    return draft.finish()


def run_stages(context: RunContext) -> StageOutputs:
    """Everything that the experiment's cells need, and their judged answers. Raises IncompleteRun if a model failed."""
    made = StageOutputs()
    for stage in STAGES:
        made = stage.run(context, made)
    context.log.raise_if_failed()
    return made
