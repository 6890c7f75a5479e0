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

from emharness.steering.programme import programme
from emharness.steering.recording import Recording, Span
from emharness.steering.requests import Requests
from emharness.steering.spec import MAX_EDITS, NOT_YET, steered_span
from emharness.steering.table import send


@dataclass(frozen=True)
class Buffers:
    """What the kernel reads and counts; allocated once. Slot 0 has nothing to do."""

    tokens: torch.Tensor  # [3, n_tokens] int32: slot, position, which recorded position from 1 on (0: not recorded)
    first: torch.Tensor  # [n_slots, n_layers + 1] int32
    words: torch.Tensor  # [n_slots, n_entries, 5] int32
    numbers: torch.Tensor  # [n_slots, n_entries, 4] float32
    address: torch.Tensor  # [1] int64: where the directions are; they alone move when they outgrow their place
    opened: torch.Tensor  # [n_tokens, MAX_EDITS] int8
    awaited: torch.Tensor  # [n_slots, MAX_EDITS] int32: the token id that an edit waits for; -1: for none
    began: torch.Tensor  # [n_slots, MAX_EDITS] int32: the position after it
    taps: torch.Tensor  # [n_slots, n_layers] int32: which recorded layer from 1 on
    memory: torch.Tensor  # [n_slots, 6] int64: what `memory` says of its recording
    counted: torch.Tensor  # [n_slots, n_layers] int32


def buffers(n_tokens: int, n_requests: int, n_layers: int, device: torch.device) -> Buffers:
    """For at most so many tokens and requests in a step."""

    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    n_slots = n_requests + 1
    return Buffers(
        tokens=zeros(3, n_tokens),
        first=zeros(n_slots, n_layers + 1),
        words=zeros(n_slots, 2 * MAX_EDITS, 5),
        numbers=zeros(n_slots, 2 * MAX_EDITS, 4, dtype=torch.float32),
        address=zeros(1, dtype=torch.int64),
        opened=zeros(n_tokens, MAX_EDITS, dtype=torch.int8),
        awaited=zeros(n_slots, MAX_EDITS),
        began=zeros(n_slots, MAX_EDITS),
        taps=zeros(n_slots, n_layers),
        memory=zeros(n_slots, 6, dtype=torch.int64),
        counted=zeros(n_slots, n_layers),
    )


def memory(recording: Recording) -> tuple[int, ...]:
    """Where a recording lies, and its numbers of layers and vectors."""
    places = (recording.total, recording.last, recording.axes, recording.along)
    return (*(tensor.data_ptr() for tensor in places), len(recording.layers), len(recording.project))


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


class DevicePlan(Requests):
    """What the buffers hold of the living requests; used as `plan.StepPlan` is."""

    def __init__(self, d_model: int, device: torch.device, n_layers: int, n_tokens: int, n_requests: int):
        super().__init__(d_model, device)
        self.n_layers = n_layers
        self.buffers = buffers(n_tokens, n_requests, n_layers, device)
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

    def remove_request(self, request_id: str) -> None:
        super().remove_request(request_id)
        self._parked.pop(request_id, None)
        self._passed.pop(request_id, None)
        if (slot := self._slot_of.pop(request_id, None)) is not None:
            self._free.append(slot)

    def begin_step(self, spans: list[Span], ids: torch.Tensor | None = None) -> None:
        """Write a step of (request id, first flat index, first position, n tokens) into the buffers. `ids`: its flat
        tokens, int32 [n_tokens] on the device, for edits that begin after one of them."""
        claims = self.recordings.claims(spans)
        asking = {span[0] for span in [*self._edited(spans), *claims]}
        spans = [span for span in spans if span[0] in asking]
        if not spans:
            if self._filled:
                self.buffers.tokens[0, : self._filled].zero_()
                self._filled, self._last = 0, None
            return
        places = self._places(spans)
        if any(self.recordings.living[claim[0]].project for claim in claims):
            places = None  # each token's projections have a place of their own
        elif places is not None:
            places += tuple((claim[0], -1) for claim in claims)  # -1: no place, it is recorded
        if places is None or places != self._last:
            self._write(spans, claims)
            self._last = places
        self._asked += self._again
        waiting = [span for span in spans if self.requests[span[0]].awaited]
        for name, _, position, n in waiting:
            first, last, before = position, position + n, self._passed.get(name, ())
            if before and before[-1][1] == position:
                *before, (first, _) = before
            self._passed[name] = (*before, (first, last))
        if waiting and ids is not None:
            from emharness.steering import kernel

            kernel.look(ids[: self._filled], self.buffers)

    def _write(self, spans: list[Span], claims: list[Span]) -> None:
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
        send(self.buffers.tokens[:, : tokens.shape[1]], tokens)
        send(self.buffers.address, np.array([self.table.rows.data_ptr()]))
        self._again = self._asks(slots, position, position + n, [self.requests[span[0]].columns for span in spans])
        for name, _, _, count in claims:
            self._again[self._slot_of[name], self.recordings.living[name].layers] += count

    def _asks(self, slots: np.ndarray, first: np.ndarray, last: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
        """Entries over tokens, [n_slots, n_layers] int64, of requests whose positions [first, last) are computed."""
        edits, n = np.concatenate(parts), [len(part) for part in parts]
        count = np.minimum(np.repeat(last, n), edits["end"]) - np.maximum(np.repeat(first, n), edits["start"])
        count, row = np.maximum(count, 0), np.repeat(slots, n) * self.n_layers
        gated = edits["gate_layer"] >= 0
        where = np.concatenate([row + edits["layer"], row[gated] + edits["gate_layer"][gated]])
        total = np.bincount(where, np.concatenate([count, count[gated]]), self._asked.size)
        return total.astype(np.int64).reshape(self._asked.shape)

    def _take_slot(self, name: str, asking: set[str]) -> None:
        if not self._free:  # one that waits: never more than `n_requests` are in a step
            idle = next(other for other in self._slot_of if other not in asking)
            left = self._slot_of.pop(idle)
            kept = (self.buffers.counted[left].clone(), self.buffers.began[left].clone(), self._asked[left].copy())
            self._parked[idle] = Parked(*kept)
            self._free.append(left)
        slot = self._slot_of[name] = self._free.pop()
        self._write_programme(name)
        if parked := self._parked.pop(name, None):
            self.buffers.counted[slot] = parked.counted
            self.buffers.began[slot] = parked.began
            self._asked[slot] = parked.asked
        else:
            self.buffers.counted[slot].zero_()
            self.buffers.began[slot].fill_(NOT_YET)
            self._asked[slot] = 0

    def _write_programme(self, name: str) -> None:
        slot, own = self._slot_of[name], programme(self.requests[name].columns, self.n_layers)
        send(self.buffers.first[slot], own.first)
        send(self.buffers.words[slot, : len(own.words)], own.words)
        send(self.buffers.numbers[slot, : len(own.numbers)], own.numbers)
        taps = np.zeros(self.n_layers, dtype=np.int32)
        if recording := self.recordings.living.get(name):
            taps[recording.layers] = np.arange(len(recording.layers)) + 1
        send(self.buffers.taps[slot], taps)
        if waiting := self.requests[name].awaited:
            awaited = np.full(MAX_EDITS, -1, dtype=np.int32)
            awaited[list(waiting)] = list(waiting.values())
            send(self.buffers.awaited[slot], awaited)

    def _tell_memory(self, name: str) -> None:
        slot, own = self._slot_of[name], memory(self.recordings.living[name])
        if self._memory.get(slot) != own:
            self._memory[slot] = own
            send(self.buffers.memory[slot], np.array(own))

    def apply(self, number: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Edit `hidden` [n_tokens, d_model] in place so that hidden + residual is the edited stream; record it.
        `number`: the layer's, int32 of one element."""
        from emharness.steering import kernel

        kernel.steer(hidden, residual, number, self.buffers, self.n_layers, self.d_model)

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

    def short(self, request_ids: Sequence[str], tokens: Mapping[str, Sequence[int]] | None = None) -> list[str]:
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
            expected = newest.asked[slot] + self._after(name, newest.passed.get(name, ()), (tokens or {}).get(name, ()))
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

    def _after(self, name: str, passed: tuple[tuple[int, int], ...], tokens: Sequence[int]) -> np.ndarray:
        """Entries over positions of edits that the device has begun, [n_layers], by all tokens of the request."""
        asked, own = np.zeros(self.n_layers, dtype=np.int64), self.requests[name]
        for edit, token in own.awaited.items():
            start, _ = steered_span({"after_token": token}, 0, tokens)
            n = sum(max(0, last - max(first, start)) for first, last in passed)
            for layer in (own.columns[edit]["layer"], own.columns[edit]["gate_layer"]):
                if layer >= 0:
                    asked[layer] += n
        return asked
