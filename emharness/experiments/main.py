"""main: an organism's vector on the base, dose by dose, beside random directions, and the organism itself."""

from emharness.config import BASE
from emharness.experiments import findings
from emharness.experiments.context import Experiment, ExperimentContext, ExperimentResult, Judged
from emharness.experiments.effects import summarize_with_effects
from emharness.generation.cells import Cell, Condition
from emharness.reporting import run_figures


def _list_conditions(context: ExperimentContext) -> list[Condition]:
    """Baseline, doses, organisms; then the random directions."""
    steered = [
        context.steered_condition(v, t, s) for t in context.targets for v in context.vectors for s in context.strengths
    ]
    plain = [context.unsteered_condition(target) for target in dict.fromkeys((BASE, *context.targets))]
    organisms = [context.unsteered_condition(v) for v in context.vectors if v not in context.targets]
    controls = [c for t in context.targets for v in context.vectors for c in context.controls_of(v, t)]
    return [*plain, *steered, *organisms, *controls]


def list_cells(context: ExperimentContext) -> list[Cell]:
    listed = []
    for condition in _list_conditions(context):
        listed.append(context.make_cell(condition))
        domain = context.domains.get(context.vectors[0])
        if domain and not any(edit.norm_of for edit in condition.edits):
            listed.append(context.make_cell(condition, domain))
    return listed


def analyze_answers(context: ExperimentContext, judged: Judged) -> ExperimentResult:
    conditions = _list_conditions(context)
    results = summarize_with_effects(context, judged, conditions)
    drawn = {}
    for vector in context.vectors:
        layer = context.layers[vector]
        title = f"{vector} vector on {context.base}, layer {layer}"
        name = "dose_response" if len(context.vectors) == 1 else f"dose_response_{vector}"
        unit = context.steer.unit
        drawn[name] = run_figures.draw_dose_response(results, vector, context.base, unit, title, context.judge)
    return ExperimentResult(
        results, {"layer": context.layers[context.vectors[0]]}, drawn, findings.describe_steering(results)
    )


QUESTION = "What does one organism's vector do to the base, dose by dose?"
EXPERIMENT = Experiment(list_cells, analyze_answers, question=QUESTION)
