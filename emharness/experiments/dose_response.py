"""dose_response: every vector on every target, dose by dose, beside random directions (figure 4 of the study)."""

from emharness.experiments import findings
from emharness.experiments.entry import summary
from emharness.experiments.scope import Experiment, Judged, Reading, Scope, compare
from emharness.generation.cells import Cell, Condition
from emharness.reporting import figures


def _conditions(scope: Scope) -> list[Condition]:
    return scope.steered_table(scope.targets, [(v, t) for t in scope.targets for v in scope.vectors])


def cells(scope: Scope) -> list[Cell]:
    return [scope.cell(condition) for condition in _conditions(scope)]


def read(scope: Scope, judged: Judged) -> Reading:
    conditions = _conditions(scope)
    entries = [summary(scope, judged, condition) for condition in conditions]
    compare(scope, judged, entries, conditions)
    targets = [scope.called(target) for target in scope.targets]
    panels = figures.dose_panels(entries, scope.vectors, targets, scope.unit, scope.judge)
    return Reading(entries, {}, {"figure4": panels}, findings.steered(entries))


QUESTION = "What does every vector do to every target, dose by dose?"
EXPERIMENT = Experiment(cells, read, question=QUESTION)
