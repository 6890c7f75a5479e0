"""The edits of a request as columns, a row for each edit: what the plans of both devices compute with."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from emharness.steering.request.spec import Positions, steered_span
from emharness.steering.step.vector_table import VectorTable

COLUMNS = np.dtype(
    [
        ("layer", np.int64),
        ("rank", np.int64),  # how many edits of the same request precede it at this layer
        ("row", np.int64),  # of the vector table
        ("a", np.float32),
        ("b", np.float32),
        ("low", np.float32),  # the edit acts where the projection lies between these
        ("high", np.float32),
        ("rescale", np.bool_),
        ("gate_layer", np.int64),  # -1: no gate
        ("gate_row", np.int64),
        ("gate_above", np.float32),
        ("start", np.int64),  # steered absolute positions [start, end)
        ("end", np.int64),
    ]
)
FOREVER = np.iinfo(np.int64).max
_RAW = np.dtype((np.void, COLUMNS.itemsize))  # joined without a look at every column
_KEPT = 1024  # patterns


@dataclass(frozen=True)
class EditPattern:
    """What all requests of one resolved spec have alike: their columns but for rows and positions."""

    columns: np.ndarray  # [n_edits]
    directions: list[bytes]  # of the edits, then of the gates
    gated: np.ndarray  # [n_gates]: the edits that have one
    positions: list[tuple[Positions, np.ndarray]]  # each kind, and the edits that have it

    @property
    def trigger_tokens(self) -> dict[int, int]:
        """Edit → the token id after which it begins."""
        kinds = ((kind, some) for kind, some in self.positions if isinstance(kind, dict))
        return {int(edit): kind["after_token"] for kind, some in kinds for edit in some}

    def fill_columns(self, prompt_length: int, table: VectorTable) -> np.ndarray:
        """The columns of a request with a prompt of this length; its directions get rows of the table."""
        columns, n = self.columns.copy(), len(self.columns)
        rows = table.acquire(self.directions)
        columns["row"] = columns["gate_row"] = rows[:n]
        columns["gate_row"][self.gated] = rows[n:]
        for kind, some in self.positions:
            start, end = steered_span(kind, prompt_length)
            columns["start"][some], columns["end"][some] = start, FOREVER if end is None else end
        return columns


_kept: dict[bytes, EditPattern] = {}


def cached_pattern(resolved: dict[str, Any]) -> EditPattern:
    """The pattern of what `resolve_spec` made; identical requests share it."""
    digest = resolved["digest"]
    if digest not in _kept:
        if len(_kept) >= _KEPT:
            _kept.clear()
        _kept[digest] = _make_pattern(resolved["edits"])
    return _kept[digest]


def _make_pattern(edits: list[dict[str, Any]]) -> EditPattern:
    rank: dict[int, int] = {}
    columns = np.zeros(len(edits), COLUMNS)
    kinds: dict[Hashable, tuple[Positions, list[int]]] = {}
    for i, edit in enumerate(edits):
        layer, gate = edit["layer"], edit["gate"]
        rank[layer] = rank.get(layer, -1) + 1
        looks = (gate["layer"], 0, gate["above"]) if gate else (-1, 0, 0.0)
        rule = (edit[name] for name in ("a", "b", "low", "high", "rescale"))
        columns[i] = (layer, rank[layer], 0, *rule, *looks, 0, 0)
        kinds.setdefault(str(edit["positions"]), (edit["positions"], []))[1].append(i)
    gates = [edit["gate"] for edit in edits if edit["gate"]]
    return EditPattern(
        columns,
        [one["direction"] for one in (*edits, *gates)],
        np.flatnonzero(columns["gate_layer"] >= 0),
        [(kind, np.array(some)) for kind, some in kinds.values()],
    )


def join_columns(parts: list[np.ndarray]) -> np.ndarray:
    """The columns of several requests, one after another."""
    return np.concatenate([part.view(_RAW) for part in parts]).view(COLUMNS)
