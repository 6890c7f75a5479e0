"""What a training is: rows, settings, seed; the recipe that an organism's weights are stored under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emharness.config import TrainConfig
from emharness.organisms.datasets import hash_rows
from emharness.organisms.row_shapes import Messages
from emharness.ranges import as_identity
from emharness.steering.request.spec import ResolvedSpec


@dataclass(frozen=True)
class Training:
    """`stop_after`: only so many steps of the same training, its schedule unchanged: a checkpoint of the whole one."""

    rows: list[Messages]
    config: TrainConfig
    seed: int
    stop_after: int | None = None
    losses: tuple[Mapping[str, Any], ...] = ()  # terms beside the cross-entropy, from `loss_terms.check_terms`
    edits: ResolvedSpec | None = None  # of the stream while it is trained, from `training_edits.check_edits`
    later_rows: tuple[Messages, ...] = ()  # of a second training of the same adapter, with a schedule of its own

    @property
    def phases(self) -> list[list[Messages]]:
        """The rows of each training."""
        return [self.rows, *([list(self.later_rows)] if self.later_rows else [])]

    def identity(self) -> dict[str, Any]:
        """All that changes the trained weights, the base apart."""
        train = as_identity(self.config)
        del train["micro_batch"]  # how many rows share a forward pass
        stop = {} if self.stop_after is None else {"stop_after": self.stop_after}
        losses = {"losses": list(self.losses)} if self.losses else {}
        edits = {"edits": self.edits["digest"].hex()} if self.edits else {}
        later = {"later": hash_rows(list(self.later_rows))} if self.later_rows else {}
        return {"data": hash_rows(self.rows), "train": train, "seed": self.seed, **stop, **losses, **edits, **later}
