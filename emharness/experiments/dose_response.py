"""dose_response: every vector on every target, dose by dose, beside random directions (figure 4 of the study)."""

from emharness.experiments.scope import Experiment, Judged, Reading, Scope, compare, summary
from emharness.generation.cells import Cell, Condition
from emharness.reporting import figures


def _conditions(scope: Scope) -> list[Condition]:
    """Targets as they are; every vector at every strength on every target; the random directions of each."""
    plain = [scope.unsteered(target) for target in scope.targets]
    steered = [scope.steered(v, t, s) for t in scope.targets for v in scope.vectors for s in scope.strengths]
    controls = [c for t in scope.targets for v in scope.vectors for c in scope.controls_of(v, t)]
    return [*plain, *steered, *controls]


def cells(scope: Scope) -> list[Cell]:
    return [scope.cell(condition) for condition in _conditions(scope)]


def read(scope: Scope, judged: Judged) -> Reading:
    conditions = _conditions(scope)
    entries = [summary(scope, judged, condition) for condition in conditions]
    compare(scope, judged, entries, conditions)
    targets = [scope.called(target) for target in scope.targets]
    panels = figures.dose_panels(entries, scope.vectors, targets, scope.unit, scope.judge)
    return Reading(entries, {}, {"figure4": panels})


EXPERIMENT = Experiment(cells, read)
