"""What a compiled graph adds to the stream by itself, on a CPU: the addition becomes a part of the next operation.

That is what requests ask for whose edits only add, in a step of which all tokens or none of a request get them; all
other edits, and those of requests that record, are made by `passes`. A token has a row, and the row what is added at
each layer. Graphs read both from where they lie.
"""

from collections.abc import Container
from dataclasses import dataclass

import numpy as np
import torch

from emharness.steering.step.recording import Span


@dataclass(frozen=True)
class Adding:
    """A request's row, and the positions that are steered: all of [all_from, all_to), none outside [first, last)."""

    digest: bytes
    row: int
    all_from: int
    all_to: int
    first: int
    last: int


class Sums:
    """Rows by content, freed by count.

    which: [n_tokens] int64, of the flat tokens of a step: the row of each; row 0 adds nothing
    rows:  for each layer [n_rows, d_model], in the type of the stream
    """

    def __init__(self, n_layers: int, d_model: int, n_tokens: int, n_requests: int, dtype: torch.dtype):
        self.which = torch.zeros(n_tokens, dtype=torch.int64)
        self._rows = torch.zeros(n_layers, 1 + n_requests, d_model, dtype=dtype)
        self.rows = list(self._rows)
        self.asked: dict[int, int] = {}  # layer → tokens to which the step adds
        self._adds = np.zeros((1 + n_requests, n_layers), dtype=np.int64)  # 1: the row adds at the layer
        self._requests: dict[str, Adding] = {}
        self._row_of: dict[bytes, int] = {}
        self._count: dict[bytes, int] = {}
        self._free = list(range(n_requests, 0, -1))
        self._end = 0  # of the tokens that may have a row

    def acquire(self, request_id: str, digest: bytes, columns: np.ndarray, vectors: torch.Tensor) -> None:
        """A request whose edits only add rows of `vectors`, float32 [n, d_model]. A full table is left as it is, and
        the request to `passes`. columns: see columns.COLUMNS; digest: requests of the same one add the same."""
        if digest not in self._row_of:
            if not self._free:
                return
            row = self._row_of[digest] = self._free.pop()
            self._count[digest] = 0
            a, vector, layer = (torch.from_numpy(columns[name].copy()) for name in ("a", "row", "layer"))
            self._rows[:, row] = 0
            self._rows[layer, row] = (a[:, None] * vectors[vector]).to(self._rows.dtype)
            self._adds[row] = 0
            self._adds[row, columns["layer"]] = 1
        self._count[digest] += 1
        start, end = columns["start"], columns["end"]
        bounds = (int(start.max()), int(end.min()), int(start.min()), int(end.max()))
        self._requests[request_id] = Adding(digest, self._row_of[digest], *bounds)

    def release(self, request_id: str) -> None:
        if (own := self._requests.pop(request_id, None)) is None:
            return
        self._count[own.digest] -= 1
        if self._count[own.digest] == 0:
            del self._count[own.digest]
            self._free.append(self._row_of.pop(own.digest))

    def plant(self, n_tokens: int, length: float) -> torch.Tensor:
        """A random row of this length at every layer, [n_layers, d_model], added to the first tokens until `clear`.
        Before any request."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(len(self.rows), self._rows.shape[-1], generator=generator)
        self._rows[:, 1] = (length * rows / rows.norm(dim=-1, keepdim=True)).to(self._rows.dtype)
        self.which[:n_tokens] = 1
        return self._rows[:, 1].clone()

    def clear(self) -> None:
        self._rows.zero_()
        self.which.zero_()

    def close(self) -> None:
        """Give out no more rows."""
        self._free = []

    def begin(self, spans: list[Span], others: Container[str]) -> list[Span]:
        """A step of (request id, first flat index, first position, n tokens). What is left to `passes`: the spans of
        `others`, of requests that have no row, and those of which some tokens only are steered."""
        self.which[: self._end] = 0
        self._end, self.asked = 0, {}
        left, which = [], self.which.numpy()
        tokens = np.zeros(len(self._adds), dtype=np.int64)
        for span in spans:
            name, flat, position, n = span
            own = None if name in others else self._requests.get(name)
            if own is None:
                left.append(span)
            elif own.all_from <= position and position + n <= own.all_to:
                which[flat : flat + n] = own.row
                tokens[own.row] += n
                self._end = max(self._end, flat + n)
            elif own.first < position + n and position < own.last:
                left.append(span)
        by_layer = tokens @ self._adds
        self.asked = {int(layer): int(by_layer[layer]) for layer in np.flatnonzero(by_layer)}
        return left
