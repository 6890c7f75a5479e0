"""An experiment's context as JSON beside the run's results, and the analysis of stored answers from it."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pyarrow as pa

from emharness.config import GateConfig, SteerConfig
from emharness.experiments.context import TASK, Experiment, ExperimentContext, ExperimentResult
from emharness.generation.cells import Cell, Condition
from emharness.generation.likelihoods import Pair
from emharness.results.json_records import Json
from emharness.stats.rates import JudgeAccuracy

_MARGINS = ("margins", "form_margins")
_ARRAYS = ("cosines", "projections", "norms", *_MARGINS)  # nested mappings that end in arrays
FORM_COLUMN = "form"  # of an answer's row: the question set, where it is not the plain broad questions


def to_json(context: ExperimentContext) -> Json:
    """All that `Experiment.analyze` needs except the answers. Margins are kept by their condition's name."""
    told = {each.name: getattr(context, each.name) for each in fields(context)}
    told["pairs"] = [asdict(pair) for pair in context.pairs]
    told["narrow_pairs"] = {name: [asdict(pair) for pair in pairs] for name, pairs in context.narrow_pairs.items()}
    told["quality"] = asdict(context.quality) if context.quality else None
    told["steer"] = asdict(context.steer)
    told["margins"] = _by_name(context.margins)
    told["form_margins"] = {name: _by_name(values) for name, values in context.form_margins.items()}
    return {name: _to_plain(value) for name, value in told.items()}


def from_json(data: Json, experiment: Experiment) -> ExperimentContext:
    """The context that `to_json` wrote. TypeError or KeyError if it is of another version."""
    given = {name: _freeze_lists(value) for name, value in data.items() if name not in _ARRAYS}
    given |= {name: _restore_arrays(data[name]) for name in _ARRAYS if name not in _MARGINS}
    given["pairs"] = [Pair(**pair) for pair in data["pairs"]]
    narrow = data.get("narrow_pairs", {})
    given["narrow_pairs"] = {name: [Pair(**pair) for pair in pairs] for name, pairs in narrow.items()}
    given["quality"] = _restore_accuracy(data["quality"])
    given["steer"] = _restore_steer(given)
    scope = ExperimentContext(**given)
    named = {cell.condition.name: cell.condition for cell in experiment.list_all_cells(scope)}
    margins = _by_condition(data["margins"], named)
    form_margins = {name: _by_condition(values, named) for name, values in data.get("form_margins", {}).items()}
    return ExperimentContext(**{**given, "margins": margins, "form_margins": form_margins})


def read_again(
    data: Json,
    experiment: Experiment,
    broad: pa.Table,
    domain: pa.Table | None,
    forms: pa.Table | None = None,
    task: pa.Table | None = None,
) -> ExperimentResult | None:
    """The analysis of the stored answers: to broad questions, to those of an organism's domain, to broad questions in
    other `forms` (with a column "form"), and to those of a harmless task. None if one that the experiment needs is
    missing."""
    scope = from_json(data, experiment)
    tables = (broad, domain, forms, task)
    named = {id(table): np.array(table["condition"].to_pylist()) for table in tables if table is not None}
    sets = {  # runs before 0.3 have no such column for domains: each condition has one there
        id(table): np.array(table[FORM_COLUMN].to_pylist())
        for table in tables
        if table is not None and FORM_COLUMN in table.column_names
    }
    judged: dict[Cell, pa.Table] = {}
    for cell in experiment.list_all_cells(scope):
        in_form = cell.questions in {name for sets in scope.forms.values() for name in sets.values()}
        table = domain if cell.questions in scope.domains.values() else forms if in_form else broad
        table = task if cell.questions == TASK else table
        if table is None:
            return None
        wanted = named[id(table)] == cell.condition.name
        rows = table.filter(wanted & (sets[id(table)] == cell.questions) if id(table) in sets else wanted)
        if not len(rows):
            return None
        judged[cell] = rows
    return experiment.analyze(scope, judged)


def _by_name(margins: Mapping[Condition, np.ndarray]) -> Json:
    return {condition.name: values for condition, values in margins.items()}


def _by_condition(margins: Json, named: Mapping[str, Condition]) -> dict[Condition, np.ndarray]:
    return {named[name]: np.array(values) for name, values in margins.items() if name in named}


def _to_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _to_plain(some) for name, some in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(some) for some in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _freeze_lists(value: Any) -> Any:
    """Lists as tuples, as the scope has them."""
    if isinstance(value, Mapping):
        return {name: _freeze_lists(some) for name, some in value.items()}
    return tuple(map(_freeze_lists, value)) if isinstance(value, list) else value


def _restore_arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _restore_arrays(some) for name, some in value.items()}
    nested = isinstance(value, list) and value and isinstance(value[0], list)
    return tuple(map(np.array, value)) if nested else np.array(value)


def _restore_steer(settings: Json) -> SteerConfig:
    """How vectors were applied; runs before 0.2 have unit, mode and positions by themselves."""
    old = {name: settings.pop(name) for name in ("unit", "mode", "positions") if name in settings}
    steer = settings.get("steer", old)
    return SteerConfig(**{**steer, "gate": GateConfig(**steer.get("gate", {}))})


# Before 0.2 an accuracy had other names.
_OLD_ACCURACY = {"hits": "true_pos", "misaligned": "n_pos", "spared": "true_neg", "others": "n_neg", "on": "source"}


def _restore_accuracy(data: Json | None) -> JudgeAccuracy | None:
    if data is None:
        return None
    families = {name: _restore_accuracy(some) for name, some in data.get("families", {}).items()}
    named = {_OLD_ACCURACY.get(name, name): value for name, value in data.items()}
    return JudgeAccuracy(**{**named, "families": families})
