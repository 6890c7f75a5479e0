"""Which token of an engine step gets which edit: bookkeeping in numpy, arithmetic in torch.

A step is one forward pass over the flat tokens of many requests. For every layer the plan holds
passes; a pass has at most one edit per token, and the r-th edit that a request asks for at a layer
is in pass r, so edits of one request act in its order while a pass is one vectorised update.
"""

import itertools
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from emharness.steering.step.active_requests import ActiveRequests
from emharness.steering.step.edit_pass import EditPass, GateState
from emharness.steering.step.edit_table import join_columns
from emharness.steering.step.recording import Span


class StepPlan(ActiveRequests):
    """The passes of the current step."""

    def __init__(self, d_model: int, device: torch.device):
        super().__init__(d_model, device)
        self.passes: dict[int, list[EditPass]] = {}
        self._again: dict[int, list[EditPass]] = {}  # passes of the last step, if it may come again
        self._gates: dict[int, list[GateState]] = {}  # layer → gates of passes at later layers
        self.done: dict[int, int] = {}  # layer → tokens edited in this step
        self._asking: tuple[str, ...] = ()  # requests of this step

    def remove_request(self, request_id: str) -> None:
        super().remove_request(request_id)
        self._again = {}

    def begin_step(self, spans: list[Span], ids: torch.Tensor | None = None) -> None:
        self.passes, self.done, self._gates = {}, {}, {}
        self.recordings.begin_step(spans)
        spans = self._edited_spans(spans)
        if ids is not None:
            for name, flat, position, n in spans:
                if self.requests[name].awaited_tokens:
                    self.requests[name].resolve_token_triggers(ids[flat : flat + n].numpy(), position)
        self._asking = tuple(span[0] for span in spans)
        if not spans:
            self._last = None
            return
        places = self._decoding_places(spans)
        if places is not None and places == self._last:
            self._repeat_step()
            return
        self._last = None
        parts = [self.requests[span[0]].columns for span in spans]
        edits = join_columns(parts)
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
        flat_tokens = torch.from_numpy(tokens).to(self.device)

        bounds = np.flatnonzero(np.diff(key, prepend=-1, append=-1))
        for begin, stop in itertools.pairwise(bounds.tolist()):
            part = slice(int(ends[begin] - counts[begin]), int(ends[stop - 1]))
            lowest, highest = int(tokens[part.start]), int(tokens[part.stop - 1])
            together = highest - lowest == part.stop - part.start - 1  # they come in rising order
            where = slice(lowest, highest + 1) if together else flat_tokens[part]
            some, each = edits[begin:stop], counts[begin:stop]

            def column(name: str, some: np.ndarray = some, each: np.ndarray | int = each) -> torch.Tensor:
                return torch.from_numpy(np.repeat(some[name], each)).to(self.device)

            bounded = bool((some["low"] > -np.inf).any() or (some["high"] < np.inf).any())
            looking = np.unique(some["gate_layer"][some["gate_layer"] >= 0]).tolist()
            projects = bool(some["b"].any()) or bounded or bool(looking) or bool(some["rescale"].any())
            # Tokens that are all edited alike share one row of what is added: less memory to read at every layer.
            alike = bool((some["row"] == some["row"][0]).all() and (some["a"] == some["a"][0]).all())
            own = some[:1] if alike else some
            which = None if alike else torch.from_numpy(np.repeat(np.arange(len(some)), each)).to(self.device)
            gates = tuple(
                GateState(
                    layer,
                    where,
                    column("gate_row"),
                    column("gate_above")[:, None],
                    column("gate_layer")[:, None] == layer,
                )
                for layer in looking
            )
            self.passes.setdefault(int(some["layer"][0]), []).append(
                EditPass(
                    tokens=where,
                    which=which,
                    rows=column("row", own, 1),
                    a=column("a", own, 1)[:, None],
                    b=column("b")[:, None] if projects else None,
                    n=part.stop - part.start,
                    bounds=(column("low")[:, None], column("high")[:, None]) if bounded else None,
                    rescale=column("rescale")[:, None] if some["rescale"].any() else None,
                    gates=gates,
                )
            )
        self._last, self._again = places, self.passes
        self._gates = _earlier_gates(self.passes)

    def _repeat_step(self) -> None:
        self.passes, self.done = self._again, {}
        self._gates = _earlier_gates(self.passes)

    def begin_dummy(self) -> None:
        """A pass with nobody's tokens."""
        self.begin_step([])

    def end_step(self) -> None:
        """Compare what was edited and recorded with what was asked for: no layer may have been passed over."""
        asked = {layer: sum(p.n for p in passes) for layer, passes in self.passes.items()}
        missed = self.recordings.end_step()
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

    def incomplete_requests(
        self, request_ids: Sequence[str], tokens: Mapping[str, Sequence[int]] | None = None
    ) -> list[str]:
        """Those of these requests of which something was not edited or recorded. `tokens`: all of a request that has
        edits after one of them."""
        known = {name: ids for name, ids in (tokens or {}).items() if name in self.requests}
        late = {name for name, ids in known.items() if not self.requests[name].copy_triggers(ids)}
        return [name for name in request_ids if name in self.missed or name in late]

    def apply(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Edit `hidden` [n_tokens, d_model] in place so that hidden + residual is the edited stream; record it."""
        for step in self.passes.get(layer, ()):
            for gate in step.gates:
                if gate.layer == layer:
                    gate.evaluate_gate(self.table.rows, hidden, residual)
            edited = step.apply(self.table.rows, hidden, residual)
            self.done[layer] = self.done.get(layer, 0) + step.n * edited
        self.recordings.take_layer(layer, hidden, residual)
        for gate in self._gates.get(layer, ()):
            gate.evaluate_gate(self.table.rows, hidden, residual)

    def apply_compiled(self, number: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """`apply` to the layer of this number, int32 []."""
        self.apply(int(number), hidden, residual)


def _earlier_gates(passes: dict[int, list[EditPass]]) -> dict[int, list[GateState]]:
    """Gates that look at a layer before their edit's, by that layer, shut until they have looked in this step."""
    found: dict[int, list[GateState]] = {}
    for layer, some in passes.items():
        for gate in (gate for step in some for gate in step.gates):
            gate.open = None
            if gate.layer != layer:
                found.setdefault(gate.layer, []).append(gate)
    return found
