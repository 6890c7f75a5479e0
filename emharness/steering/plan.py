"""Which token of an engine step gets which edit: bookkeeping in numpy, arithmetic in torch.

A step is one forward pass over the flat tokens of many requests. For every layer the plan holds
passes; a pass has at most one edit per token, and the r-th edit that a request asks for at a layer
is in pass r, so edits of one request act in its order while a pass is one vectorised update.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from emharness.steering.spec import steered_span


class VectorTable:
    """Directions of the living requests, `[capacity, d_model]` float32, shared by content, freed by count."""

    def __init__(self, d_model: int, device: torch.device):
        self.rows = torch.zeros(8, d_model, device=device)
        self._row_of: dict[bytes, int] = {}
        self._count: dict[bytes, int] = {}
        self._free = list(range(8))

    def __len__(self) -> int:
        return len(self._row_of)

    def acquire(self, direction: bytes) -> int:
        if direction not in self._row_of:
            if not self._free:
                capacity = self.rows.shape[0]
                self.rows = torch.cat([self.rows, torch.zeros_like(self.rows)])
                self._free = list(range(capacity, 2 * capacity))
            row = self._free.pop()
            values = torch.from_numpy(np.frombuffer(direction, dtype=np.float32).copy())
            self.rows[row] = values.to(self.rows.device)
            self._row_of[direction] = row
        self._count[direction] = self._count.get(direction, 0) + 1
        return self._row_of[direction]

    def release(self, direction: bytes) -> None:
        self._count[direction] -= 1
        if self._count[direction] == 0:
            del self._count[direction]
            self._free.append(self._row_of.pop(direction))


@dataclass(frozen=True)
class RequestEdit:
    """One edit of one living request, with its place in the vector table."""

    layer: int
    rank: int  # how many edits of the same request precede it at this layer
    row: int
    a: float
    b: float
    start: int
    end: int | None
    direction: bytes


@dataclass(frozen=True)
class Pass:
    """Flat token indices and what happens to each: h ← h + (a + b · (h·v̂)) v̂."""

    tokens: torch.Tensor  # [n] int64
    rows: torch.Tensor  # [n] int64
    a: torch.Tensor  # [n, 1] float32
    b: torch.Tensor | None  # [n, 1] float32; None when no token is ablated


@dataclass
class StepPlan:
    """The edits of all living requests, and the passes of the current step."""

    d_model: int
    device: torch.device
    table: VectorTable = field(init=False)
    requests: dict[str, list[RequestEdit]] = field(default_factory=dict)
    passes: dict[int, list[Pass]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.table = VectorTable(self.d_model, self.device)

    def add_request(self, request_id: str, edits: list[dict[str, Any]], prompt_length: int) -> None:
        """Register a request with the resolved edits of `spec.resolve`."""
        rank: dict[int, int] = {}
        kept = []
        for edit in edits:
            layer = edit["layer"]
            rank[layer] = rank.get(layer, -1) + 1
            start, end = steered_span(edit["positions"], prompt_length)
            row = self.table.acquire(edit["direction"])
            kept.append(RequestEdit(layer, rank[layer], row, edit["a"], edit["b"], start, end, edit["direction"]))
        self.requests[request_id] = kept

    def remove_request(self, request_id: str) -> None:
        for edit in self.requests.pop(request_id, ()):
            self.table.release(edit.direction)

    def begin_step(self, spans: list[tuple[str, int, int, int]]) -> None:
        """Make the passes of a step from (request id, first flat index, first position, n tokens)."""
        cells: dict[tuple[int, int], list[tuple[int, int, RequestEdit]]] = {}
        for request_id, flat, position, n in spans:
            for edit in self.requests.get(request_id, ()):
                first = max(position, edit.start)
                last = position + n if edit.end is None else min(position + n, edit.end)
                if first < last:
                    key = (edit.layer, edit.rank)
                    cells.setdefault(key, []).append((flat + first - position, last - first, edit))
        self.passes = {}
        for (layer, _rank), members in sorted(cells.items()):
            self.passes.setdefault(layer, []).append(self._make_pass(members))

    def _make_pass(self, members: list[tuple[int, int, RequestEdit]]) -> Pass:
        counts = np.array([n for _, n, _ in members])
        tokens = np.concatenate([np.arange(flat, flat + n) for flat, n, _ in members])
        edits = [edit for _, _, edit in members]

        def spread(values: list[float], dtype: type) -> torch.Tensor:
            return torch.from_numpy(np.repeat(np.array(values, dtype=dtype), counts)).to(self.device)

        ablates = any(edit.b for edit in edits)
        return Pass(
            tokens=torch.from_numpy(tokens).to(self.device),
            rows=spread([edit.row for edit in edits], np.int64),
            a=spread([edit.a for edit in edits], np.float32)[:, None],
            b=spread([edit.b for edit in edits], np.float32)[:, None] if ablates else None,
        )

    def end_step(self) -> None:
        self.passes = {}

    def apply(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Edit `hidden` [n_tokens, d_model] in place so that hidden + residual is the edited stream."""
        for step in self.passes.get(layer, ()):
            directions = self.table.rows[step.rows]
            h = hidden[step.tokens].float()
            amount = step.a
            if step.b is not None:
                stream = h if residual is None else h + residual[step.tokens].float()
                amount = amount + step.b * (stream * directions).sum(-1, keepdim=True)
            hidden[step.tokens] = (h + amount * directions).to(hidden.dtype)
