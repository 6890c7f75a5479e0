"""Which token of an engine step gets which edit: bookkeeping in numpy, arithmetic in torch.

A step is one forward pass over the flat tokens of many requests. For every layer the plan holds
passes; a pass has at most one edit per token, and the r-th edit that a request asks for at a layer
is in pass r, so edits of one request act in its order while a pass is one vectorised update.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from emharness.steering.spec import steered_span

_CAPACITY = 8  # rows of an idle vector table


class VectorTable:
    """Directions of the living requests, `[capacity, d_model]` float32, shared by content, freed by count."""

    def __init__(self, d_model: int, device: torch.device):
        self.rows = torch.zeros(_CAPACITY, d_model, device=device)
        self._row_of: dict[bytes, int] = {}
        self._count: dict[bytes, int] = {}
        self._free = list(range(_CAPACITY))

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
            if not self._row_of:  # idle: the memory of a large batch goes back
                self.rows = self.rows[:_CAPACITY].clone()
                self._free = list(range(_CAPACITY))


@dataclass(frozen=True)
class RequestEdits:
    """The edits of one living request as columns [n_edits], and what they hold in the vector table."""

    columns: np.ndarray  # see COLUMNS
    directions: list[bytes]


COLUMNS = np.dtype(
    [
        ("layer", np.int64),
        ("rank", np.int64),  # how many edits of the same request precede it at this layer
        ("row", np.int64),  # of the vector table
        ("a", np.float32),
        ("b", np.float32),
        ("start", np.int64),  # steered absolute positions [start, end)
        ("end", np.int64),
    ]
)
_FOREVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Pass:
    """Flat token indices and what happens to each: h ← h + (a + b · (h·v̂)) v̂."""

    tokens: torch.Tensor  # [n] int64
    rows: torch.Tensor  # [n] int64
    a: torch.Tensor  # [n, 1] float32
    b: torch.Tensor | None  # [n, 1] float32; None when no token is ablated


@dataclass
class Recording:
    """Sum of one request's residuals at the recorded layers, over positions [start, end)."""

    layers: list[int]
    start: int
    end: int
    total: torch.Tensor  # [n_layers, d_model] float32
    n_tokens: int = 0

    def claim(self, position: int, n: int) -> tuple[int, int]:
        """The not yet recorded part [first, last) of a span; recomputed positions are not counted again."""
        first = max(position, self.start + self.n_tokens)
        last = max(first, min(position + n, self.end))
        self.n_tokens += last - first
        return first, last


@dataclass
class StepPlan:
    """The edits of all living requests, and the passes of the current step."""

    d_model: int
    device: torch.device
    table: VectorTable = field(init=False)
    requests: dict[str, RequestEdits] = field(default_factory=dict)
    passes: dict[int, list[Pass]] = field(default_factory=dict)
    recordings: dict[str, Recording] = field(default_factory=dict)
    taps: dict[int, list[tuple[slice, torch.Tensor]]] = field(default_factory=dict)  # layer → tokens, their sum

    def __post_init__(self) -> None:
        self.table = VectorTable(self.d_model, self.device)

    def add_request(self, request_id: str, edits: list[dict[str, Any]], prompt_length: int) -> None:
        """Register a request with the resolved edits of `spec.resolve`."""
        rank: dict[int, int] = {}
        columns = np.empty(len(edits), COLUMNS)
        for i, edit in enumerate(edits):
            layer = edit["layer"]
            rank[layer] = rank.get(layer, -1) + 1
            start, end = steered_span(edit["positions"], prompt_length)
            row = self.table.acquire(edit["direction"])
            columns[i] = (layer, rank[layer], row, edit["a"], edit["b"], start, _FOREVER if end is None else end)
        self.requests[request_id] = RequestEdits(columns, [edit["direction"] for edit in edits])

    def add_recording(self, request_id: str, record: dict[str, Any], prompt_length: int) -> None:
        start, end = steered_span(record["positions"], prompt_length)
        total = torch.zeros(len(record["layers"]), self.d_model, device=self.device)
        self.recordings[request_id] = Recording(record["layers"], start, _FOREVER if end is None else end, total)

    def remove_request(self, request_id: str) -> None:
        self.recordings.pop(request_id, None)
        removed = self.requests.pop(request_id, None)
        for direction in removed.directions if removed else ():
            self.table.release(direction)

    def begin_step(self, spans: list[tuple[str, int, int, int]]) -> None:
        """Make the passes of a step from (request id, first flat index, first position, n tokens)."""
        self.passes, self.taps = {}, {}
        for request_id, flat, position, n in spans:
            if recording := self.recordings.get(request_id):
                first, last = recording.claim(position, n)
                tokens = slice(flat + first - position, flat + last - position)
                for layer, total in zip(recording.layers, recording.total, strict=True):
                    self.taps.setdefault(layer, []).append((tokens, total))
        spans = [span for span in spans if span[0] in self.requests]
        if not spans:
            return
        parts = [self.requests[span[0]].columns for span in spans]
        edits = np.concatenate(parts)
        n_edits = [len(part) for part in parts]
        flat, position, n = (np.repeat(np.array(values), n_edits) for values in list(zip(*spans, strict=True))[1:])
        first = np.maximum(position, edits["start"])
        counts = np.minimum(position + n, edits["end"]) - first
        key = edits["layer"] * (edits["rank"].max() + 1) + edits["rank"]
        kept = np.flatnonzero(counts > 0)
        kept = kept[np.argsort(key[kept], kind="stable")]
        if not len(kept):
            return
        edits, counts, key = edits[kept], counts[kept], key[kept]
        ends = np.cumsum(counts)
        # Flat token indices of every (edit, token) pair, edits one after another.
        tokens = np.arange(ends[-1]) + np.repeat((flat + first - position)[kept] - (ends - counts), counts)
        cells = edits[np.repeat(np.arange(len(edits)), counts)]
        columns = {name: torch.from_numpy(cells[name].copy()).to(self.device) for name in ("row", "a", "b")}
        flat_tokens = torch.from_numpy(tokens).to(self.device)
        bounds = np.flatnonzero(np.diff(key, prepend=-1, append=-1))
        for begin, stop in itertools.pairwise(bounds.tolist()):
            part = slice(int(ends[begin] - counts[begin]), int(ends[stop - 1]))
            ablates = bool(edits["b"][begin:stop].any())
            self.passes.setdefault(int(edits["layer"][begin]), []).append(
                Pass(
                    tokens=flat_tokens[part],
                    rows=columns["row"][part],
                    a=columns["a"][part, None],
                    b=columns["b"][part, None] if ablates else None,
                )
            )

    def end_step(self) -> None:
        self.passes, self.taps = {}, {}

    def apply(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Edit `hidden` [n_tokens, d_model] in place so that hidden + residual is the edited stream; record it."""
        for step in self.passes.get(layer, ()):
            directions = self.table.rows[step.rows]
            h = hidden[step.tokens].float()
            amount = step.a
            if step.b is not None:
                stream = h if residual is None else h + residual[step.tokens].float()
                amount = amount + step.b * (stream * directions).sum(-1, keepdim=True)
            hidden[step.tokens] = (h + amount * directions).to(hidden.dtype)
        for tokens, total in self.taps.get(layer, ()):
            stream = hidden[tokens].float() if residual is None else hidden[tokens].float() + residual[tokens].float()
            total += stream.sum(0)
