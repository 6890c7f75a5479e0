"""What the jobs of one process share: the store, the engine that runs, the W&B group of a sweep."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING

from emharness.generation.engines import Engines
from emharness.pipeline import Study
from emharness.reporting.track import Tracker
from emharness.store import Store, home

if TYPE_CHECKING:
    from emharness.config import Config
    from emharness.inputs import Inputs


@cache
def store() -> Store:
    return Store(home())


@cache
def engines() -> Engines:
    return Engines(store().root / "vectors")


@cache
def sweep_group() -> str:
    return time.strftime("sweep-%Y%m%d-%H%M%S")


@contextmanager
def tracker(config: Config, inputs: Inputs) -> Iterator[Tracker]:
    """The W&B run of a job, marked as failed when the job fails."""
    label = f"{config.model.name}·L{config.layer}·{config.steer.strength}"
    described = {**asdict(config), "judge_card": inputs.judge.card()}
    wandb = config.wandb
    tracker = Tracker(config.tracker, wandb.project, wandb.entity, wandb.group, label, described)
    try:
        yield tracker
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish()


def study(config: Config, inputs: Inputs, tracker: Tracker) -> Study:
    return Study(config, inputs, store(), engines(), tracker)
