"""Which token of an engine step gets which edit: bookkeeping in numpy, arithmetic in torch.

A step is one forward pass over the flat tokens of many requests. For every layer the plan holds
passes; a pass has at most one edit per token, and the r-th edit that a request asks for at a layer
is in pass r, so edits of one request act in its order while a pass is one vectorised update.
"""

import itertools
import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from emharness.steering.passes import Gate, Pass
from emharness.steering.recording import Recordings, Span
from emharness.steering.spec import NOT_YET, steered_span
from emharness.steering.table import VectorTable


@dataclass(frozen=True)
class RequestEdits:
    """The edits of one living request as columns [n_edits], and what they hold in the vector table."""

    columns: np.ndarray  # see COLUMNS
    directions: list[bytes]
    awaited: dict[int, int]  # edit → the token id after which it begins

    @cached_property
    def steady_from(self) -> int:
        """The position from which each edit acts for good, or no more."""
        ends = np.where(self.columns["end"] == _FOREVER, self.columns["start"], self.columns["end"])
        return int(ends.max(initial=0))

    def look(self, tokens: np.ndarray) -> bool:
        """Begin the edits whose token is among the request's so far; whether there was one."""
        begun = False
        for edit, token in list(self.awaited.items()):
            start, _ = steered_span({"after_token": token}, 0, tokens)  # type: ignore[arg-type]
            if start < NOT_YET:
                self.columns["start"][edit] = start
                del self.awaited[edit]
                begun = True
                vars(self).pop("steady_from", None)
        return begun


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
_FOREVER = np.iinfo(np.int64).max


def request_edits(edits: list[dict[str, Any]], prompt_length: int, table: VectorTable) -> RequestEdits:
    """The columns of the resolved edits of `spec.resolve`, whose directions get rows of the table."""
    rank: dict[int, int] = {}
    columns = np.empty(len(edits), COLUMNS)
    for i, edit in enumerate(edits):
        layer = edit["layer"]
        rank[layer] = rank.get(layer, -1) + 1
        start, end = steered_span(edit["positions"], prompt_length)
        row, gate = table.acquire(edit["direction"]), edit["gate"]
        looks = (gate["layer"], table.acquire(gate["direction"]), gate["above"]) if gate else (-1, row, 0.0)
        columns[i] = (
            *(layer, rank[layer], row, edit["a"], edit["b"], edit["low"], edit["high"], edit["rescale"]),
            *looks,
            *(start, _FOREVER if end is None else end),
        )
    held = [edit["direction"] for edit in edits] + [e["gate"]["direction"] for e in edits if e["gate"]]
    kinds = [edit["positions"] for edit in edits]
    awaited = {i: kind["after_token"] for i, kind in enumerate(kinds) if isinstance(kind, dict)}
    return RequestEdits(columns, held, awaited)


@dataclass
class StepPlan:
    """The edits of all living requests, and the passes of the current step."""

    d_model: int
    device: torch.device
    table: VectorTable = field(init=False)
    requests: dict[str, RequestEdits] = field(default_factory=dict)
    passes: dict[int, list[Pass]] = field(default_factory=dict)
    _last: tuple[tuple[str, int], ...] | None = None  # (request, flat index) of the last step, if it may come again …
    _again: dict[int, list[Pass]] = field(default_factory=dict)  # … and its passes
    _gates: dict[int, list[Gate]] = field(default_factory=dict)  # layer → gates of passes at later layers
    recordings: Recordings = field(init=False)
    done: dict[int, int] = field(default_factory=dict)  # layer → tokens edited in this step
    missed: set[str] = field(default_factory=set)  # living requests of which something was not edited or recorded
    _asking: tuple[str, ...] = ()  # requests of this step

    def __post_init__(self) -> None:
        self.table = VectorTable(self.d_model, self.device)
        self.recordings = Recordings(self.d_model, self.device)

    def add_request(self, request_id: str, edits: list[dict[str, Any]], prompt_length: int) -> None:
        """Register a request with the resolved edits of `spec.resolve`."""
        self.requests[request_id] = request_edits(edits, prompt_length, self.table)
        self._last = None

    def look(self, request_id: str, tokens: np.ndarray) -> None:
        """Begin what waits for one of the request's tokens [n] so far."""
        if self.requests[request_id].look(tokens):
            self._last = None

    def remove_request(self, request_id: str) -> None:
        self.recordings.remove(request_id)
        self.missed.discard(request_id)
        removed = self.requests.pop(request_id, None)
        self._last, self._again = None, {}
        for direction in removed.directions if removed else ():
            self.table.release(direction)

    def begin_step(self, spans: list[Span]) -> None:
        """Make the passes of a step from (request id, first flat index, first position, n tokens)."""
        self.passes, self.done, self._gates = {}, {}, {}
        self.recordings.begin(spans)
        spans = [span for span in spans if span[0] in self.requests and len(self.requests[span[0]].columns)]
        self._asking = tuple(span[0] for span in spans)
        if not spans:
            return
        # Decoding: one token for each of the same requests in the same places, step after step.
        steady = all(n == 1 and position >= self.requests[name].steady_from for name, _, position, n in spans)
        places = tuple((name, flat) for name, flat, _, _ in spans) if steady else None
        if places is not None and places == self._last:
            self.passes = self._again
            self._gates = _earlier_gates(self.passes)
            return
        self._last = None
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
        flat_tokens = torch.from_numpy(tokens).to(self.device)

        def column(name: str, part: slice) -> torch.Tensor:
            return torch.from_numpy(cells[name][part].copy()).to(self.device)

        bounds = np.flatnonzero(np.diff(key, prepend=-1, append=-1))
        for begin, stop in itertools.pairwise(bounds.tolist()):
            part = slice(int(ends[begin] - counts[begin]), int(ends[stop - 1]))
            lowest, highest = int(tokens[part.start]), int(tokens[part.stop - 1])
            together = highest - lowest == part.stop - part.start - 1  # they come in rising order
            where = slice(lowest, highest + 1) if together else flat_tokens[part]
            some = edits[begin:stop]
            bounded = bool((some["low"] > -np.inf).any() or (some["high"] < np.inf).any())
            looking = np.unique(some["gate_layer"][some["gate_layer"] >= 0]).tolist()
            projects = bool(some["b"].any()) or bounded or bool(looking) or bool(some["rescale"].any())
            # Tokens that are all edited alike share one row of what is added: less memory to read at every layer.
            alike = bool((some["row"] == some["row"][0]).all() and (some["a"] == some["a"][0]).all())
            own = slice(part.start, part.start + 1) if alike else part
            gates = tuple(
                Gate(
                    layer,
                    where,
                    column("gate_row", part),
                    column("gate_above", part)[:, None],
                    column("gate_layer", part)[:, None] == layer,
                )
                for layer in looking
            )
            self.passes.setdefault(int(some["layer"][0]), []).append(
                Pass(
                    tokens=where,
                    rows=column("row", own),
                    a=column("a", own)[:, None],
                    b=column("b", part)[:, None] if projects else None,
                    n=part.stop - part.start,
                    bounds=(column("low", part)[:, None], column("high", part)[:, None]) if bounded else None,
                    rescale=column("rescale", part)[:, None] if some["rescale"].any() else None,
                    gates=gates,
                )
            )
        self._last, self._again = places, self.passes
        self._gates = _earlier_gates(self.passes)

    def end_step(self) -> None:
        """Compare what was edited and recorded with what was asked for: no layer may have been passed over."""
        asked = {layer: sum(p.n for p in passes) for layer, passes in self.passes.items()}
        missed = self.recordings.end()
        if asked != self.done:
            missed.update(self._asking)
        if missed and not self.missed:
            print(
                f"emharness: asked to edit so many tokens by layer: {asked}, done {self.done}, or a recorded layer was "
                "passed over; the requests of this step end with an error",
                file=sys.stderr,
                flush=True,
            )
        self.missed |= missed
        self.passes, self.done, self._gates = {}, {}, {}

    def short(self, request_ids: list[str]) -> list[str]:
        """Those of these requests of which something was not edited or recorded."""
        return [name for name in request_ids if name in self.missed]

    def apply(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Edit `hidden` [n_tokens, d_model] in place so that hidden + residual is the edited stream; record it."""
        for step in self.passes.get(layer, ()):
            for gate in step.gates:
                if gate.layer == layer:
                    gate.look(self.table.rows, hidden, residual)
            edited = step.apply(self.table.rows, hidden, residual, keep=self._last is not None)
            self.done[layer] = self.done.get(layer, 0) + step.n * edited
        self.recordings.take(layer, hidden, residual)
        for gate in self._gates.get(layer, ()):
            gate.look(self.table.rows, hidden, residual)


def _earlier_gates(passes: dict[int, list[Pass]]) -> dict[int, list[Gate]]:
    """Gates that look at a layer before their edit's, by that layer, shut until they have looked in this step."""
    found: dict[int, list[Gate]] = {}
    for layer, some in passes.items():
        for gate in (gate for step in some for gate in step.gates):
            gate.open = None
            if gate.layer != layer:
                found.setdefault(gate.layer, []).append(gate)
    return found
