"""The memory on a GPU that the kernel reads and counts in: allocated once, so that captured graphs find it."""

from dataclasses import dataclass

import torch

from emharness.steering.gpu.edit_program import ENTRY
from emharness.steering.request.spec import MAX_EDITS
from emharness.steering.step.recording import Recording


@dataclass(frozen=True)
class Layout:
    """Where a slot's row of int32 has what; one piece, so that a request is written in one copy."""

    n_layers: int

    # first: [n_layers + 1], a layer's entries are first[layer] to first[layer + 1]
    @property
    def taps(self) -> int:  # [n_layers]: which of the recorded layers it is, from 1 on
        return self.n_layers + 1

    @property
    def began(self) -> int:  # [MAX_EDITS]: the position after the token that an edit waits for
        return 2 * self.n_layers + 1

    @property
    def awaited(self) -> int:  # [MAX_EDITS]: the id of that token; -1: the edit waits for none
        return self.began + MAX_EDITS

    @property
    def entries(self) -> int:  # [2 · MAX_EDITS, ENTRY]: five words, and four numbers as float32
        return self.awaited + MAX_EDITS

    @property
    def width(self) -> int:
        return self.entries + 2 * MAX_EDITS * ENTRY


@dataclass(frozen=True)
class Buffers:
    """What the kernel reads and counts; allocated once. Slot 0 has nothing to do."""

    tokens: torch.Tensor  # [3, n_tokens] int32: slot, position, which recorded position from 1 on (0: not recorded)
    rows: torch.Tensor  # [n_slots, width] int32: the slots, see `Layout`
    floats: torch.Tensor  # the same memory as float32
    address: torch.Tensor  # [1] int64: where the directions are; they alone move when they outgrow their place
    opened: torch.Tensor  # [n_tokens, MAX_EDITS] int8
    memory: torch.Tensor  # [n_slots, 6] int64: what `memory` says of its recording
    counted: torch.Tensor  # [n_slots, n_layers] int32


def allocate_buffers(n_tokens: int, n_requests: int, n_layers: int, device: torch.device) -> Buffers:
    """For at most so many tokens and requests in a step."""

    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    n_slots = n_requests + 1
    rows = zeros(n_slots, Layout(n_layers).width)
    return Buffers(
        tokens=zeros(3, n_tokens),
        rows=rows,
        floats=rows.view(torch.float32),
        address=zeros(1, dtype=torch.int64),
        opened=zeros(n_tokens, MAX_EDITS, dtype=torch.int8),
        memory=zeros(n_slots, 6, dtype=torch.int64),
        counted=zeros(n_slots, n_layers),
    )


def recording_address(recording: Recording) -> tuple[int, ...]:
    """Where a recording lies, and its numbers of layers and vectors."""
    places = (recording.total, recording.last, recording.axes, recording.along)
    return (*(tensor.data_ptr() for tensor in places), len(recording.layers), len(recording.project))
