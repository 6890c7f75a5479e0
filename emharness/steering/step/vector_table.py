"""The directions that living requests are steered by, side by side on the device."""

from collections.abc import Sequence

import numpy as np
import torch

_CAPACITY = 8  # rows to begin with


def _pinned_copy(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy to send from: pinned memory is not given out again before it is sent, so that nobody has to wait."""
    source = torch.from_numpy(values.copy())
    return source.pin_memory() if device.type == "cuda" else source


def copy_to_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on the device, not waited for."""
    return _pinned_copy(values, device).to(device, non_blocking=True)


def copy_into(to: torch.Tensor, values: np.ndarray) -> None:
    """Copy to the device without waiting for it."""
    to.copy_(_pinned_copy(values, to.device), non_blocking=True)


class VectorTable:
    """Directions of the living requests, `[capacity, d_model]` float32, shared by content, freed by count.

    It grows to what the largest batch needs, and stays so: the next one finds its place.
    """

    def __init__(self, d_model: int, device: torch.device):
        self.rows = torch.zeros(_CAPACITY, d_model, device=device)
        self._row_of: dict[bytes, int] = {}
        self._count: dict[bytes, int] = {}
        self._free = list(range(_CAPACITY))

    def __len__(self) -> int:
        return len(self._row_of)

    def acquire(self, directions: Sequence[bytes]) -> list[int]:
        """Their rows; what is new among them is sent in one piece."""
        new = [direction for direction in dict.fromkeys(directions) if direction not in self._row_of]
        if new:
            while len(self._free) < len(new):
                capacity = self.rows.shape[0]
                self.rows = torch.cat([self.rows, torch.zeros_like(self.rows)])
                self._free += range(capacity, 2 * capacity)
            rows = [self._free.pop() for _ in new]
            values = np.frombuffer(b"".join(new), dtype=np.float32).reshape(len(new), -1)
            self.rows.index_copy_(
                0, copy_to_device(np.array(rows), self.rows.device), copy_to_device(values, self.rows.device)
            )
            self._row_of.update(zip(new, rows, strict=True))
        for direction in directions:
            self._count[direction] = self._count.get(direction, 0) + 1
        return [self._row_of[direction] for direction in directions]

    def release(self, direction: bytes) -> None:
        self._count[direction] -= 1
        if self._count[direction] == 0:
            del self._count[direction]
            self._free.append(self._row_of.pop(direction))
