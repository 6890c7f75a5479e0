"""paper: the study's experiments in one grid, its figures, and a report of published beside measured numbers."""

from dataclasses import fields, replace

from emharness.experiments import ablation, dose_response, monitor, seeds, transfer
from emharness.experiments.context import Experiment, ExperimentContext, ExperimentResult, Judged
from emharness.generation.cells import Cell
from emharness.reporting.paper_report import STUDY, format_report
from emharness.results.condition_result import ConditionResult

PARTS: dict[str, Experiment] = {
    "dose_response": dose_response.EXPERIMENT,
    "transfer": transfer.EXPERIMENT,
    "ablation": ablation.EXPERIMENT,
    "seeds": seeds.EXPERIMENT,
    "monitor": monitor.EXPERIMENT,
}


def _part_contexts(context: ExperimentContext) -> dict[str, ExperimentContext]:
    """Each part's own lists, narrowed to what the run asks for; a part that has nothing left is left out."""
    found = {}
    for name, lists in context.parts.items():
        vectors = tuple(v for v in lists.get("vectors", context.vectors) if v in context.vectors)
        targets = tuple(t for t in lists.get("targets", context.targets) if t in context.targets)
        strengths = tuple(float(s) for s in lists.get("strengths", context.strengths) if float(s) in context.strengths)
        if vectors and targets and (strengths or not PARTS[name].needs_layer_choice):
            found[name] = replace(context, vectors=vectors, targets=targets, strengths=strengths or context.strengths)
    return found


def list_cells(context: ExperimentContext) -> list[Cell]:
    every = [cell for name, own in _part_contexts(context).items() for cell in PARTS[name].cells(own)]
    return list(dict.fromkeys(every))


def analyze_answers(context: ExperimentContext, judged: Judged) -> ExperimentResult:
    conditions: dict[str, ConditionResult] = {}
    numbers, drawn, found = {}, {}, []
    for name, own in _part_contexts(context).items():
        reading = PARTS[name].analyze(own, judged)
        for result in reading.conditions:
            conditions[result.name] = _merge_results(conditions.get(result.name), result)
        numbers |= reading.numbers
        drawn |= reading.figures
        found.append(reading.finding)
    return ExperimentResult(list(conditions.values()), numbers, drawn, " ".join(found))


def _merge_results(one: ConditionResult | None, other: ConditionResult) -> ConditionResult:
    """What two parts say of the same condition; what only one of them measured stays."""
    if one is None:
        return other
    known = {each.name: value for each in fields(other) if (value := getattr(other, each.name)) is not None}
    return replace(one, **known)


QUESTION = "Do different kinds of emergent misalignment share one direction, or are they independent?"
EXPERIMENT = Experiment(
    list_cells, analyze_answers, question=QUESTION, needs_activations=True, recipes=(STUDY,), report=format_report
)
