"""A run's scope as plain JSON beside its results, and its answers read again from what is stored."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pyarrow as pa

from emharness.experiments.scope import Experiment, Reading, Scope
from emharness.generation.cells import Cell
from emharness.generation.likelihood import Pair
from emharness.judge.metrics import Quality

_ARRAYS = ("cosines", "projections", "norms", "margins")  # nested mappings that end in arrays


def to_json(scope: Scope) -> dict[str, Any]:
    """All that `Experiment.read` needs but the answers. Margins are kept by their condition's name."""
    told = {each.name: getattr(scope, each.name) for each in fields(scope)}
    told["pairs"] = [asdict(pair) for pair in scope.pairs]
    told["quality"] = asdict(scope.quality) if scope.quality else None
    told["margins"] = {condition.name: values for condition, values in scope.margins.items()}
    return {name: _plain(value) for name, value in told.items()}


def from_json(told: Mapping[str, Any], experiment: Experiment) -> Scope:
    """The scope that `to_json` wrote. TypeError or KeyError where it is of another version."""
    given = {name: _frozen(value) for name, value in told.items() if name not in _ARRAYS}
    given |= {name: _arrays(told[name]) for name in _ARRAYS if name != "margins"}
    given["pairs"] = [Pair(**pair) for pair in told["pairs"]]
    given["quality"] = _quality(told["quality"])
    scope = Scope(**given)
    named = {cell.condition.name: cell.condition for cell in experiment.cells(scope)}
    margins = {named[name]: np.array(values) for name, values in told["margins"].items() if name in named}
    return Scope(**{**given, "margins": margins})


def read_again(
    told: Mapping[str, Any], experiment: Experiment, broad: pa.Table, domain: pa.Table | None
) -> Reading | None:
    """What the stored answers say. None where an answer that the experiment asks for is not among them."""
    scope = from_json(told, experiment)
    named = {id(table): np.array(table["condition"].to_pylist()) for table in (broad, domain) if table is not None}
    judged: dict[Cell, pa.Table] = {}
    for cell in experiment.cells(scope):
        table = domain if cell.questions in scope.domains.values() else broad
        if table is None or not len(rows := table.filter(named[id(table)] == cell.condition.name)):
            return None
        judged[cell] = rows
    return experiment.read(scope, judged)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(some) for name, some in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(some) for some in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _frozen(value: Any) -> Any:
    """Lists as tuples, as the scope has them."""
    if isinstance(value, Mapping):
        return {name: _frozen(some) for name, some in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _arrays(some) for name, some in value.items()}
    nested = isinstance(value, list) and value and isinstance(value[0], list)
    return tuple(map(np.array, value)) if nested else np.array(value)


def _quality(told: Mapping[str, Any] | None) -> Quality | None:
    if told is None:
        return None
    families = {name: Quality(**{**some, "families": {}}) for name, some in told["families"].items()}
    return Quality(**{**told, "families": families})
