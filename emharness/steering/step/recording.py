"""What requests record of the residual stream: sums and projections, taken layer by layer as a step passes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from emharness.steering.request.spec import steered_span
from emharness.steering.step.edit_pass import residual_stream

Span = tuple[str, int, int, int]  # request id, first flat index, first position, n tokens
_FOREVER = np.iinfo(np.int64).max


@dataclass
class Recording:
    """Sum of one request's residuals at the recorded layers, over positions [start, end), and their projections."""

    layers: list[int]
    start: int
    end: int
    total: torch.Tensor  # [n_layers, d_model] float32
    last: torch.Tensor  # [n_layers, d_model] float32: what the last token added to `total`, where it came alone
    project: list[str]  # names of n_vectors directions …
    axes: torch.Tensor  # … [n_layers, n_vectors, d_model] float32
    along: torch.Tensor  # [room, n_layers, n_vectors] float32: projections of the first n_tokens recorded positions
    n_tokens: int = 0

    def claim_span(self, position: int, n: int) -> tuple[int, int]:
        """The not yet recorded part [first, last) of a span, with room for it; recomputed positions are not counted
        again."""
        first = max(position, self.start + self.n_tokens)
        last = max(first, min(position + n, self.end))
        self.n_tokens += last - first
        room = len(self.along)
        if self.project and self.n_tokens > room:
            more = self.along.new_zeros(max(self.n_tokens - room, room), *self.along.shape[1:])
            self.along = torch.cat([self.along, more])
        return first, last

    def sum_until(self, fed: int) -> tuple[torch.Tensor, int]:
        """Sum and number of the recorded positions below `fed`. An engine that schedules ahead may have computed one
        token more than the request had when it ended. ValueError if there are others than there should be."""
        expected = max(0, min(self.end, fed) - self.start)
        if self.n_tokens - expected not in (0, 1):
            raise ValueError(f"{self.n_tokens} positions were recorded, not {expected}")
        return (self.total if self.n_tokens == expected else self.total - self.last), expected


class Recordings:
    """Those of the living requests; on a CPU also what the current step is to take for them."""

    def __init__(self, d_model: int, device: torch.device):
        self.d_model, self.device = d_model, device
        self.living: dict[str, Recording] = {}
        # Layer → whose recording, its tokens, which of its positions, which of its layers.
        self._taps: dict[int, list[tuple[str, slice, slice, int]]] = {}
        self._taken: dict[int, int] = {}  # layer → how often the step has passed it

    def add_recording(self, request_id: str, record: dict[str, Any], prompt_length: int) -> None:
        start, end = steered_span(record["positions"], prompt_length)
        layers, names = record["layers"], record["project"]
        nothing = torch.zeros(len(layers), self.d_model, device=self.device)
        axes = np.frombuffer(record["axes"], dtype=np.float32).reshape(len(layers), len(names), self.d_model)
        self.living[request_id] = Recording(
            layers=layers,
            start=start,
            end=_FOREVER if end is None else end,
            total=nothing,
            last=nothing.clone(),
            project=names,
            axes=torch.from_numpy(axes.copy()).to(self.device),
            along=torch.zeros(0, len(layers), len(names), device=self.device),
        )

    def remove_recording(self, request_id: str) -> None:
        self.living.pop(request_id, None)

    def claim_spans(self, spans: list[Span]) -> list[Span]:
        """The parts of a step's spans that are to be recorded."""
        found = []
        for request_id, flat, position, n in spans:
            if recording := self.living.get(request_id):
                first, last = recording.claim_span(position, n)
                if first < last:
                    found.append((request_id, flat + first - position, first, last - first))
        return found

    def begin_step(self, spans: list[Span]) -> None:
        self._taps, self._taken = {}, {}
        for request_id, flat, first, n in self.claim_spans(spans):
            recording = self.living[request_id]
            tokens, places = slice(flat, flat + n), slice(first - recording.start, first - recording.start + n)
            for index, layer in enumerate(recording.layers):
                self._taps.setdefault(layer, []).append((request_id, tokens, places, index))

    def take_layer(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """After a block and its edits: hidden + residual is the stream, [n_tokens, d_model]."""
        for request_id, tokens, places, index in self._taps.get(layer, ()):
            recording = self.living[request_id]
            seen = residual_stream(hidden, residual, tokens)
            recording.last[index] = seen.sum(0)
            recording.total[index] += recording.last[index]
            if recording.project:
                recording.along[places, index] = seen @ recording.axes[index].T
        self._taken[layer] = self._taken.get(layer, 0) + 1

    def end_step(self) -> set[str]:
        """Requests of which the step has not passed every recorded layer once."""
        missed = {name for layer, taps in self._taps.items() if self._taken.get(layer) != 1 for name, *_ in taps}
        self._taps, self._taken = {}, {}
        return missed
