"""The steered requests that are alive, on whichever device: their edits, directions and recordings."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from emharness.steering.request.spec import NOT_YET, steered_span
from emharness.steering.step.edit_table import FOREVER, cached_pattern
from emharness.steering.step.recording import Recordings, Span
from emharness.steering.step.vector_table import VectorTable


@dataclass
class RequestEdits:
    """The edits of one living request as columns [n_edits], and what they hold in the vector table."""

    columns: np.ndarray  # see `edit_table.COLUMNS`
    directions: list[bytes]
    after: dict[int, int]  # edit → the token id after which it begins
    lasting: np.ndarray | None = None  # `asks` of a token from `steady_from` on

    @property
    def awaited_tokens(self) -> dict[int, int]:
        """Of `after`, those whose token has not been seen."""
        return {edit: token for edit, token in self.after.items() if self.columns["start"][edit] == NOT_YET}

    @cached_property
    def steady_from(self) -> int:
        """The position from which each edit acts for good, or no more."""
        ends = np.where(self.columns["end"] == FOREVER, self.columns["start"], self.columns["end"])
        return int(ends.max(initial=0))

    def count_edited_tokens(self, first: int, last: int, n_layers: int) -> np.ndarray:
        """Edits and looks of gates over the positions [first, last), [n_layers] int64; none of `awaited`."""
        if first >= self.steady_from:
            if self.lasting is None:
                self.lasting = self._count_uncached(FOREVER - 1, FOREVER, n_layers)
            return (last - first) * self.lasting
        return self._count_uncached(first, last, n_layers)

    def _count_uncached(self, first: int, last: int, n_layers: int) -> np.ndarray:
        count = np.minimum(last, self.columns["end"]) - np.maximum(first, self.columns["start"])
        count, looking = np.maximum(count, 0), self.columns["gate_layer"] >= 0
        layer = np.concatenate([self.columns["layer"], self.columns["gate_layer"][looking]])
        return np.bincount(layer, np.concatenate([count, count[looking]]), n_layers).astype(np.int64)

    def resolve_token_triggers(self, tokens: Sequence[int] | np.ndarray, first: int = 0) -> None:
        """Begin the edits whose token is among these, which the request has from position `first` on."""
        for edit, token in self.awaited_tokens.items():
            start, _ = steered_span({"after_token": token}, 0, tokens)
            if start < NOT_YET:
                self.columns["start"][edit] = first + start
                vars(self).pop("steady_from", None)
                self.lasting = None

    def copy_triggers(self, tokens: Sequence[int]) -> bool:
        """Whether every edit has begun after its token, by all tokens of the request."""
        starts = {edit: steered_span({"after_token": token}, 0, tokens)[0] for edit, token in self.after.items()}
        return all(min(self.columns["start"][edit], len(tokens)) == min(s, len(tokens)) for edit, s in starts.items())


Batch = tuple[list[str], np.ndarray, np.ndarray]  # names, flat and positions as `begin_batch` has them


def _advance_one_token(before: Batch, now: Batch) -> bool:
    return before[0] == now[0] and np.array_equal(before[1], now[1]) and np.array_equal(before[2] + 1, now[2])


class ActiveRequests(ABC):
    """What `StepPlan` and `DevicePlan` know of requests between steps."""

    def __init__(self, d_model: int, device: torch.device):
        self.d_model, self.device = d_model, device
        self.table = VectorTable(d_model, device)
        self.requests: dict[str, RequestEdits] = {}
        self.recordings = Recordings(d_model, device)
        self.missed: set[str] = set()  # living requests of which something was not edited or recorded
        self._last: tuple[tuple[str, int], ...] | None = None  # `_places` of the last step, if it may come again
        self._batch: Batch | None = None  # of the last step

    def add_request(
        self, request_id: str, resolved: dict[str, Any], prompt_length: int, cached: Sequence[int] | np.ndarray = ()
    ) -> None:
        """Register a request with the edits of what `resolve_spec` made. `cached`: its first tokens, whose residuals
        the prefix cache holds: no step will show them."""
        asked = cached_pattern(resolved)
        columns = asked.fill_columns(prompt_length, self.table)
        own = self.requests[request_id] = RequestEdits(columns, asked.directions, asked.trigger_tokens)
        own.resolve_token_triggers(cached)
        self._last = None

    def remove_request(self, request_id: str) -> None:
        self.recordings.remove_recording(request_id)
        self.missed.discard(request_id)
        self._last = None
        if removed := self.requests.pop(request_id, None):
            for direction in removed.directions:
                self.table.release(direction)

    def begin_batch(
        self, names: Sequence[str], flat: np.ndarray, position: np.ndarray, ids: torch.Tensor | None = None
    ) -> None:
        """A step of these requests, steered or not: the tokens of the i-th lie at flat[i] to flat[i + 1] and have
        positions from position[i] on; [n + 1], [n]. `ids`: see `begin_step`."""
        before, self._batch = self._batch, (list(names), flat.copy(), position.copy())
        if before and self._last is not None and not self.recordings.living and _advance_one_token(before, self._batch):
            self._repeat_step()
            return
        each = zip(names, flat[:-1].tolist(), position.tolist(), np.diff(flat).tolist(), strict=True)
        self.begin_step([span for span in each if span[0] in self.requests], ids)

    @abstractmethod
    def begin_step(self, spans: list[Span], ids: torch.Tensor | None = None) -> None:
        """A step of (request id, first flat index, first position, n tokens). `ids`: its flat tokens, int32 [n_tokens]
        on the device, for edits that begin after one of them."""

    @abstractmethod
    def _repeat_step(self) -> None:
        """The last step again, every request one token on."""

    def _edited_spans(self, spans: list[Span]) -> list[Span]:
        return [span for span in spans if span[0] in self.requests and len(self.requests[span[0]].columns)]

    def _decoding_places(self, spans: list[Span]) -> tuple[tuple[str, int], ...] | None:
        """(request, flat index) of a decoding step: one token for each request, whose edits act for good. None: another
        step. What has the same places again asks for the same."""
        steady = all(n == 1 and position >= self.requests[name].steady_from for name, _, position, n in spans)
        return tuple((name, flat) for name, flat, _, _ in spans) if steady else None
