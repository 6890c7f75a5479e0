"""main: an organism's vector on the base, dose by dose, beside random directions, and the organism itself."""

from emharness.config import BASE
from emharness.experiments import findings
from emharness.experiments.entry import summary
from emharness.experiments.scope import Experiment, Judged, Reading, Scope, compare
from emharness.generation.cells import Cell, Condition
from emharness.reporting import figures


def _conditions(scope: Scope) -> list[Condition]:
    """Baseline, doses, organisms; then the random directions."""
    steered = [scope.steered(v, t, s) for t in scope.targets for v in scope.vectors for s in scope.strengths]
    plain = [scope.unsteered(target) for target in dict.fromkeys((BASE, *scope.targets))]
    organisms = [scope.unsteered(v) for v in scope.vectors if v not in scope.targets]
    controls = [c for t in scope.targets for v in scope.vectors for c in scope.controls_of(v, t)]
    return [*plain, *steered, *organisms, *controls]


def cells(scope: Scope) -> list[Cell]:
    listed = []
    for condition in _conditions(scope):
        listed.append(scope.cell(condition))
        domain = scope.domains.get(scope.vectors[0])
        if domain and not any(edit.norm_of for edit in condition.edits):
            listed.append(scope.cell(condition, domain))
    return listed


def read(scope: Scope, judged: Judged) -> Reading:
    conditions = _conditions(scope)
    entries = [summary(scope, judged, condition) for condition in conditions]
    compare(scope, judged, entries, conditions)
    drawn = {}
    for vector in scope.vectors:
        layer = scope.layers[vector]
        title = f"{vector} vector on {scope.base}, layer {layer}"
        name = "dose_response" if len(scope.vectors) == 1 else f"dose_response_{vector}"
        drawn[name] = figures.dose_response(entries, vector, scope.base, scope.unit, title, scope.judge)
    return Reading(entries, {"layer": scope.layers[scope.vectors[0]]}, drawn, findings.steered(entries))


QUESTION = "What does one organism's vector do to the base, dose by dose?"
EXPERIMENT = Experiment(cells, read, question=QUESTION)
