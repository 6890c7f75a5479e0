"""The directions that living requests are steered by, side by side on the device."""

import numpy as np
import torch

_CAPACITY = 8  # rows of an idle vector table


def send(to: torch.Tensor, values: np.ndarray) -> None:
    """Copy to the device without waiting for it: pinned memory is not given out again before the copy is over."""
    source = torch.from_numpy(values.copy())
    on_gpu = to.device.type == "cuda"
    to.copy_(source.pin_memory() if on_gpu else source, non_blocking=on_gpu)


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
            send(self.rows[row], np.frombuffer(direction, dtype=np.float32))
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
