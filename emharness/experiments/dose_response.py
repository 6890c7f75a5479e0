"""dose_response: every vector on every target, dose by dose, beside random directions (figure 4 of the study)."""

from emharness.experiments import findings
from emharness.experiments.context import Experiment, ExperimentContext, ExperimentResult, Judged
from emharness.experiments.effects import summarize_with_effects
from emharness.generation.cells import Cell, Condition
from emharness.reporting import run_figures


def _list_conditions(context: ExperimentContext) -> list[Condition]:
    return context.steered_table(context.targets, [(v, t) for t in context.targets for v in context.vectors])


def list_cells(context: ExperimentContext) -> list[Cell]:
    return [context.make_cell(condition) for condition in _list_conditions(context)]


def analyze_answers(context: ExperimentContext, judged: Judged) -> ExperimentResult:
    conditions = _list_conditions(context)
    results = summarize_with_effects(context, judged, conditions)
    targets = [context.display_name(target) for target in context.targets]
    panels = run_figures.draw_dose_panels(results, context.vectors, targets, context.steer.unit, context.judge)
    return ExperimentResult(results, {}, {"figure4": panels}, findings.describe_steering(results))


QUESTION = "What does every vector do to every target, dose by dose?"
EXPERIMENT = Experiment(list_cells, analyze_answers, question=QUESTION)
