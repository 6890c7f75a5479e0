"""The steps of an engine on a GPU, as buffers that never move: a captured CUDA graph does what is written into them.

A request in the batch has a slot, and in it its programme and where its recording lies. A step writes which slot and
position each token has, and nothing where it is the step before with every request one token on. What was done is
counted on the device, and compared when a request ends.
"""

import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from emharness.steering.gpu.buffers import Layout, allocate_buffers, recording_address
from emharness.steering.gpu.edit_program import ENTRY, make_edit_program
from emharness.steering.request.spec import NOT_YET, steered_span
from emharness.steering.step.active_requests import ActiveRequests
from emharness.steering.step.recording import Span
from emharness.steering.step.vector_table import copy_into


@dataclass(frozen=True)
class Count:
    """The device's counts after a step, and what they should be."""

    counted: torch.Tensor  # [n_slots, n_layers] int32, arriving on the host
    asked: np.ndarray  # but by edits that await a token, which the host does not know yet …
    passed: dict[str, tuple[tuple[int, int], ...]]  # … of whose requests these positions have been computed
    arrived: Any  # a CUDA event; None: there already


@dataclass(frozen=True)
class Parked:
    """What the device knew of a request whose slot another one needed."""

    counted: torch.Tensor
    began: torch.Tensor
    asked: np.ndarray


class DevicePlan(ActiveRequests):
    """What the buffers hold of the living requests; used as `StepPlan` is."""

    def __init__(self, d_model: int, device: torch.device, n_layers: int, n_tokens: int, n_requests: int):
        super().__init__(d_model, device)
        self.n_layers, self.layout = n_layers, Layout(n_layers)
        self.numbers = list(torch.arange(n_layers, dtype=torch.int32, device=device))
        self.buffers = allocate_buffers(n_tokens, n_requests, n_layers, device)
        self._slot_of: dict[str, int] = {}
        self._memory: dict[int, tuple[int, ...]] = {}  # slot → what the buffers say of its recording
        self._free = list(range(1, n_requests + 1))
        self._parked: dict[str, Parked] = {}
        self._passed: dict[str, tuple[tuple[int, int], ...]] = {}  # of requests with edits that await a token
        self._asked = np.zeros((n_requests + 1, n_layers), dtype=np.int64)
        self._filled = 0  # tokens of the last step that the buffers may hold
        self._again = self._asked  # what the last step asks for
        self._counts: deque[Count] = deque(maxlen=2)  # a step may have been started before the one before has ended
        self._told = False
        self._busy = [True] * n_layers  # whether a layer has anything to do in this step
        self._address = 0  # of the directions, as the device knows it

    def remove_request(self, request_id: str) -> None:
        super().remove_request(request_id)
        self._parked.pop(request_id, None)
        self._passed.pop(request_id, None)
        if (slot := self._slot_of.pop(request_id, None)) is not None:
            self._free.append(slot)

    def begin_step(self, spans: list[Span], ids: torch.Tensor | None = None) -> None:
        claims = self.recordings.claim_spans(spans)
        asking = {span[0] for span in [*self._edited_spans(spans), *claims]}
        spans = [span for span in spans if span[0] in asking]
        if not spans:
            if self._filled:
                self.buffers.tokens[0, : self._filled].zero_()
            self._filled, self._last, self._busy = 0, None, [False] * self.n_layers
            return
        places = self._decoding_places(spans)
        if any(self.recordings.living[claim[0]].project for claim in claims):
            places = None  # each token's projections have a place of their own
        elif places is not None:
            places += tuple((claim[0], -1) for claim in claims)  # -1: no place, it is recorded
        if places is None or places != self._last:
            self._write_step(spans, claims)
            self._last = places
        self._asked += self._again
        waiting = [span for span in spans if self.requests[span[0]].awaited_tokens]
        for name, _, position, n in waiting:
            first, last, before = position, position + n, self._passed.get(name, ())
            if before and before[-1][1] == position:
                *before, (first, _) = before
            self._passed[name] = (*before, (first, last))
        if waiting and ids is not None:
            from emharness.steering.gpu import kernel

            kernel.launch_triggers(ids[: self._filled], self.buffers)

    def _repeat_step(self) -> None:
        self._asked += self._again

    def begin_dummy(self) -> None:
        """A pass with nobody's tokens, in which all kernels are started: they are compiled, or captured."""
        from emharness.steering.gpu import kernel

        self.begin_step([])
        self._busy = [True] * self.n_layers
        kernel.launch_triggers(self.buffers.tokens[0, :1], self.buffers)

    def _write_step(self, spans: list[Span], claims: list[Span]) -> None:
        asking = {span[0] for span in spans}
        for name in asking - self._slot_of.keys():
            self._take_slot(name, asking)
        slots = np.array([self._slot_of[span[0]] for span in spans])
        flat, position, n = (np.array(values) for values in list(zip(*spans, strict=True))[1:])
        end = int((flat + n).max())
        tokens = np.zeros((3, max(end, self._filled)), dtype=np.int32)
        within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        places = np.repeat(flat, n) + within
        tokens[0, places] = np.repeat(slots, n)
        tokens[1, places] = np.repeat(position, n) + within
        self._filled = end
        for name, start, first, count in claims:
            begin = first - self.recordings.living[name].start + 1
            tokens[2, start : start + count] = np.arange(begin, begin + count)
            self._tell_memory(name)
        copy_into(self.buffers.tokens[:, : tokens.shape[1]], tokens)
        if self._address != self.table.rows.data_ptr():
            self._address = self.table.rows.data_ptr()
            copy_into(self.buffers.address, np.array([self._address]))
        self._again = np.zeros_like(self._asked)
        busy = np.zeros(self.n_layers, dtype=bool)
        for name, _, start, count in spans:
            own = self.requests[name]
            self._again[self._slot_of[name]] = own.count_edited_tokens(start, start + count, self.n_layers)
            for edit in own.awaited_tokens:
                layers = own.columns[edit]["layer"], own.columns[edit]["gate_layer"]
                busy[[layer for layer in layers if layer >= 0]] = True
        for name, _, _, count in claims:
            self._again[self._slot_of[name], self.recordings.living[name].layers] += count
        self._busy = (busy | self._again.any(axis=0)).tolist()

    def _take_slot(self, name: str, asking: set[str]) -> None:
        if not self._free:  # one that waits: never more than `n_requests` are in a step
            idle = next(other for other in self._slot_of if other not in asking)
            left = self._slot_of.pop(idle)
            kept = (self.buffers.counted[left].clone(), self._began_edits(left).clone(), self._asked[left].copy())
            self._parked[idle] = Parked(*kept)
            self._free.append(left)
        slot = self._slot_of[name] = self._free.pop()
        self._write_programme(name)
        if parked := self._parked.pop(name, None):
            self.buffers.counted[slot] = parked.counted
            self._began_edits(slot).copy_(parked.began)
            self._asked[slot] = parked.asked
        else:
            self.buffers.counted[slot].zero_()
            self._asked[slot] = 0

    def _began_edits(self, slot: int) -> torch.Tensor:
        return self.buffers.rows[slot, self.layout.began : self.layout.awaited]

    def _write_programme(self, name: str) -> None:
        own, at = make_edit_program(self.requests[name].columns, self.n_layers), self.layout
        row = np.empty(at.entries + len(own.words) * ENTRY, dtype=np.int32)
        row[: at.taps] = own.first
        row[at.taps : at.began] = 0
        if recording := self.recordings.living.get(name):
            row[at.taps + np.array(recording.layers)] = np.arange(len(recording.layers)) + 1
        row[at.began : at.awaited] = NOT_YET
        row[at.awaited : at.entries] = -1
        for edit, token in self.requests[name].awaited_tokens.items():
            row[at.awaited + edit] = token
        row[at.entries :] = np.concatenate([own.words, own.numbers.view(np.int32)], axis=1).reshape(-1)
        copy_into(self.buffers.rows[self._slot_of[name], : len(row)], row)

    def _tell_memory(self, name: str) -> None:
        slot, own = self._slot_of[name], recording_address(self.recordings.living[name])
        if self._memory.get(slot) != own:
            self._memory[slot] = own
            copy_into(self.buffers.memory[slot], np.array(own))

    def apply(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Edit `hidden` [n_tokens, d_model] in place so that hidden + residual is the edited stream; record it."""
        if self._busy[layer] or (self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            self.apply_compiled(self.numbers[layer], hidden, residual)

    def apply_compiled(self, number: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """`apply` to the layer of this number, int32 [] on the device, whatever the step is: a graph comes again."""
        from emharness.steering.gpu import kernel

        kernel.steer_tokens(hidden, residual, number, self.buffers, self.n_layers, self.d_model)

    def end_step(self) -> None:
        """Send for what the device has counted; nobody waits for it here."""
        if not self._filled:
            return
        if self.device.type == "cuda":
            host = torch.empty_like(self.buffers.counted, device="cpu", pin_memory=True)
            host.copy_(self.buffers.counted, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        else:
            host, arrived = self.buffers.counted.clone(), None
        self._counts.append(Count(host, self._asked.copy(), dict(self._passed), arrived))

    def incomplete_requests(
        self, request_ids: Sequence[str], tokens: Mapping[str, Sequence[int]] | None = None
    ) -> list[str]:
        """Those of these requests of which the device has done less, or more, than was asked for. `tokens`: all of a
        request that has edits after one of them."""
        bad = [name for name in request_ids if name in self.missed]
        if not self._counts:
            return bad
        newest = self._counts[-1]
        if newest.arrived is not None and not newest.arrived.query():
            newest = self._counts[0]
            newest.arrived.synchronize()
        counted = newest.counted.numpy()
        for name in request_ids:
            slot = self._slot_of.get(name)
            if slot is None or name in bad:
                continue
            expected = newest.asked[slot] + self._entries_after(
                name, newest.passed.get(name, ()), (tokens or {}).get(name, ())
            )
            if (counted[slot] == expected).all():
                continue
            bad.append(name)
            if not self._told:
                self._told = True
                layers = np.flatnonzero(counted[slot] != expected).tolist()
                asked, done = expected[layers].tolist(), counted[slot][layers].tolist()
                print(
                    f"emharness: asked to edit or record {asked} tokens at layers {layers}, done {done}; "
                    "the request ends with an error",
                    file=sys.stderr,
                    flush=True,
                )
        return bad

    def _entries_after(self, name: str, passed: tuple[tuple[int, int], ...], tokens: Sequence[int]) -> np.ndarray:
        """Entries over positions of edits that the device has begun, [n_layers], by all tokens of the request."""
        asked, own = np.zeros(self.n_layers, dtype=np.int64), self.requests[name]
        for edit, token in own.awaited_tokens.items():
            start, _ = steered_span({"after_token": token}, 0, tokens)
            n = sum(max(0, last - max(first, start)) for first, last in passed)
            for layer in (own.columns[edit]["layer"], own.columns[edit]["gate_layer"]):
                if layer >= 0:
                    asked[layer] += n
        return asked
