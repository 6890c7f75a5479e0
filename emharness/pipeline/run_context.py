"""What the stages of one run share: the store, the engine that runs, who watches, and what failed."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from emharness import claims
from emharness.config import Config
from emharness.errors import IncompleteRun, UserError, describe_full_disk, join_lines
from emharness.generation.cells import Condition
from emharness.generation.engine_pool import Engines
from emharness.input_checks import Inputs
from emharness.organisms.model_artifacts import OnStep
from emharness.pipeline.measured_speeds import Speeds
from emharness.reporting.terminal import print_line
from emharness.reporting.wandb_tracker import Tracker
from emharness.store import Artifact, Store, artifacts_home


@cache
def open_store() -> Store:
    return Store(artifacts_home())


@cache
def shared_engines() -> Engines:
    """One for all jobs of a process, so that a sweep starts an engine once."""
    return Engines(open_store().root)


@dataclass
class RunContext:
    config: Config
    inputs: Inputs
    command: str | None = None  # that makes this run again
    tracker: Tracker = field(default_factory=lambda: Tracker("none", "", None, None, "", {}))
    store: Store = field(default_factory=open_store)
    engines: Engines = field(default_factory=shared_engines)
    stages: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # model → why
    notes: list[str] = field(default_factory=list)  # what the user should know of what was read or left out
    margins: dict[Condition, np.ndarray] = field(default_factory=dict)  # [n_pairs], of conditions that were answered
    unscored: int = 0  # responses that the judge did not reach, to be scored by the next start
    speeds: Speeds = field(init=False)
    watchers: list[OnStep] = field(default_factory=list)  # of the training step that is being done

    def __post_init__(self) -> None:
        self.speeds = Speeds(self.store.root, self.config.base.name)

    def on_step(self, step: int, n_steps: int, loss: float, learning_rate: float) -> None:
        for watch in self.watchers:
            watch(step, n_steps, loss, learning_rate)

    def ensure_artifact(self, artifact: Artifact) -> Path:
        """The artifact's folder, made now or found in the store."""
        about = artifact.stage, artifact.name, artifact.identity
        start, called = time.perf_counter(), f"{artifact.stage}: {artifact.name}"
        path, made = self.store.artifact_path(*about), False
        while not self.store.has_artifact(*about):
            with claims.claim_path(path) as first:
                if first:
                    print_line(f"{called} …")
                    path, made = self.store.get_artifact(*about, artifact.make)
                    break
            print_line(f"{called}: another process is at it; waiting")
            claims.wait_for_claims(path, lambda: self.store.has_artifact(*about))
        seconds = time.perf_counter() - start
        self.stages.append({"stage": artifact.stage, "name": artifact.name, "made": made, "seconds": round(seconds, 2)})
        print_line(f"{called} " + (f"made in {seconds:.0f} s" if made else "found in the store"))
        return path

    def attempt_model(self, model: str, work: Callable[[], None]) -> None:
        """Do the work of a model; when it fails the others go on, and `failed` says why. Mistakes in the input and
        interrupts end everything."""
        if model in self.failed:
            return
        try:
            work()
        except UserError:
            raise
        except Exception as error:
            if describe_full_disk(error):  # the others have none either
                raise
            self.failed[model] = join_lines(f"{type(error).__name__}: {error}", 500)
            traceback.print_exc(file=sys.stderr)
            print_line(f"failed: {model}: {self.failed[model]}; the others go on")
            self.engines.close()

    def raise_if_failed(self) -> None:
        """Raise Incomplete if a model failed."""
        if self.failed:
            listed = "; ".join(f"{name} ({why})" for name, why in self.failed.items())
            raise IncompleteRun(
                f"failed: {listed}. What was finished is stored; the same command tries only what is missing"
            )


def run_subject(config: Config) -> str:
    """What a run is about, in a word: the organism of the main job, else the experiment."""
    return config.model.name if config.experiment.name == "main" else config.experiment.name


def start_tracker(config: Config, judge_card: dict[str, Any] | None, key: str | None = None) -> Tracker:
    """The W&B run of a job."""
    wandb = config.wandb
    chosen = "sweep" if config.layer == "sweep" else f"L{config.layer}"
    doses = ",".join(f"{s:+g}" for s in config.steer.strength)
    described = {**asdict(config), "judge_card": judge_card}
    group = wandb.group or config.experiment.name
    return Tracker(
        config.tracker or "none",
        wandb.project,
        wandb.entity,
        group,
        f"{run_subject(config)}·{chosen}·{doses}",
        described,
        key=key,
    )
