"""paper: the study's experiments in one grid, its figures, and a report of published beside measured numbers."""

from dataclasses import replace
from typing import Any

from emharness.experiments import ablation, dose_response, monitor, seeds, transfer
from emharness.experiments.scope import Experiment, Judged, Reading, Scope
from emharness.generation.cells import Cell
from emharness.reporting.paper import STUDY, report

PARTS: dict[str, Experiment] = {
    "dose_response": dose_response.EXPERIMENT,
    "transfer": transfer.EXPERIMENT,
    "ablation": ablation.EXPERIMENT,
    "seeds": seeds.EXPERIMENT,
    "monitor": monitor.EXPERIMENT,
}


def _scopes(scope: Scope) -> dict[str, Scope]:
    """Each part's own lists, narrowed to what the run asks for; a part that has nothing left is left out."""
    found = {}
    for name, lists in scope.parts.items():
        vectors = tuple(v for v in lists.get("vectors", scope.vectors) if v in scope.vectors)
        targets = tuple(t for t in lists.get("targets", scope.targets) if t in scope.targets)
        strengths = tuple(float(s) for s in lists.get("strengths", scope.strengths) if float(s) in scope.strengths)
        if vectors and targets and (strengths or not PARTS[name].steers):
            found[name] = replace(scope, vectors=vectors, targets=targets, strengths=strengths or scope.strengths)
    return found


def cells(scope: Scope) -> list[Cell]:
    every = [cell for name, own in _scopes(scope).items() for cell in PARTS[name].cells(own)]
    return list(dict.fromkeys(every))


def read(scope: Scope, judged: Judged) -> Reading:
    conditions: dict[str, dict[str, Any]] = {}
    numbers, drawn, found = {}, {}, []
    for name, own in _scopes(scope).items():
        reading = PARTS[name].read(own, judged)
        for entry in reading.conditions:
            conditions[entry["name"]] = conditions.get(entry["name"], {}) | entry
        numbers |= reading.numbers
        drawn |= reading.figures
        found.append(reading.finding)
    return Reading(list(conditions.values()), numbers, drawn, " ".join(found))


QUESTION = "Do different kinds of emergent misalignment share one direction, or are they independent?"
EXPERIMENT = Experiment(cells, read, question=QUESTION, looks=True, recipes=(STUDY,), report=report)
