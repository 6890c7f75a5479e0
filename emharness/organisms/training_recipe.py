"""What a training is: rows, settings, seed; the recipe that an organism's weights are stored under."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emharness.config import TrainConfig
from emharness.organisms.datasets import hash_rows
from emharness.organisms.row_choice import RowChoice
from emharness.organisms.row_shapes import Messages
from emharness.organisms.training_edits import NO_EDITS, TrainingEdits
from emharness.ranges import as_identity

FACTS_FILE = "training.json"  # beside a trained model: seconds, steps, and the rows that were chosen


@dataclass(frozen=True)
class Training:
    """`stop_after`: only so many steps of the same training, its schedule unchanged: a checkpoint of the whole one."""

    rows: list[Messages]
    config: TrainConfig
    seed: int
    stop_after: int | None = None
    losses: tuple[Mapping[str, Any], ...] = ()  # terms beside the cross-entropy, from `loss_terms.check_terms`
    edits: TrainingEdits = NO_EDITS  # of the stream while it is trained
    later_rows: tuple[Messages, ...] = ()  # of a second training of the same adapter, with a schedule of its own
    choice: RowChoice | None = None  # of further rows, by a first training without them that is not kept

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
        later = {"later": hash_rows(list(self.later_rows))} if self.later_rows else {}
        told = {"data": hash_rows(self.rows), "train": train, "seed": self.seed, **stop, **losses}
        return {**told, **self.edits.identity(), **later, **(self.choice.identity() if self.choice else {})}
