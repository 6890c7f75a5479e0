"""The inputs and outputs of a run's stages: a frozen context, a log, and what was made so far."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from emharness import claims
from emharness.config import Config, WandbConfig
from emharness.errors import IncompleteRun, UserError, describe_full_disk, join_lines
from emharness.experiments.context import Experiment, ExperimentContext
from emharness.generation.cells import Cell, Condition, Direction
from emharness.generation.engine_pool import Engines
from emharness.generation.target_requests import TargetRequests
from emharness.input_checks import Inputs
from emharness.organisms.model_artifacts import Model, OnStep
from emharness.pipeline.measured_speeds import Speeds
from emharness.reporting.terminal import print_line
from emharness.reporting.wandb_tracker import Tracker
from emharness.results.judge_quality import JudgeCard, card_to_json
from emharness.results.layer_sweep import LayerSweep
from emharness.results.run_results import StageTime
from emharness.store import Artifact, Store, artifacts_home

Measured = tuple[Condition, str]  # a condition, and the set of questions


@cache
def open_store() -> Store:
    return Store(artifacts_home())


@cache
def shared_engines() -> Engines:
    """One for all jobs of a process, so that a sweep starts an engine once."""
    return Engines(open_store().root)


@dataclass
class RunLog:
    """What a run has done so far; the only part of a context that changes.

    `stages`: artifacts and answers, with seconds; `failed`: model → why; `notes`: what the user should know of what was
    read or left out; `margins`: [n_pairs] of every condition that was answered, by question set; `unscored`: responses
    that the judge did not reach, to be scored by the next start; `watchers`: of the training step that is being done.
    """

    stages: list[StageTime] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    margins: dict[Measured, np.ndarray] = field(default_factory=dict)
    unscored: int = 0
    watchers: list[OnStep] = field(default_factory=list)
    tracker: Tracker = field(default_factory=lambda: Tracker("none", WandbConfig(), "", {}))

    def on_step(self, step: int, n_steps: int, loss: float, learning_rate: float) -> None:
        for watch in self.watchers:
            watch(step, n_steps, loss, learning_rate)

    def raise_if_failed(self) -> None:
        """Raise IncompleteRun if a model failed."""
        if self.failed:
            listed = "; ".join(f"{name} ({why})" for name, why in self.failed.items())
            raise IncompleteRun(
                f"failed: {listed}. What was finished is stored; the same command tries only what is missing"
            )


@dataclass(frozen=True)
class RunContext:
    """The inputs of a run: every stage reads them, none changes them.

    `models`: the base and the organisms, by name, made or not; `targets`: each model's requests and stored answers;
    `command`: what starts this run again.
    """

    config: Config
    inputs: Inputs
    experiment: Experiment
    command: str | None = None
    store: Store = field(default_factory=open_store)
    engines: Engines = field(default_factory=shared_engines)
    models: Mapping[str, Model] = field(default_factory=dict)
    targets: Mapping[str, TargetRequests] = field(default_factory=dict)
    log: RunLog = field(default_factory=RunLog)
    speeds: Speeds = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "speeds", Speeds(self.store.root, self.config.base.name))

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
            print_line(f"{called}: in progress in another process; waiting")
            claims.wait_for_claims(path, lambda: self.store.has_artifact(*about))
        seconds = time.perf_counter() - start
        self.log.stages.append(
            StageTime(stage=artifact.stage, name=artifact.name, made=made, seconds=round(seconds, 2))
        )
        print_line(f"{called} " + (f"made in {seconds:.0f} s" if made else "found in the store"))
        return path

    def attempt_model(self, model: str, work: Callable[[], None]) -> None:
        """Do the work of a model. If it fails, the other models continue and `log.failed` says why; mistakes in the
        input and interrupts end the run."""
        if model in self.log.failed:
            return
        try:
            work()
        except UserError:
            raise
        except Exception as error:
            if describe_full_disk(error):  # the others have none either
                raise
            self.log.failed[model] = join_lines(f"{type(error).__name__}: {error}", 500)
            traceback.print_exc(file=sys.stderr)
            print_line(f"failed: {model}: {self.log.failed[model]}; the others continue")
            self.engines.close()


@dataclass(frozen=True)
class StageOutputs:
    """The outputs of the stages so far; each stage returns them with its own part filled in.

    `artifacts`, `directions`: of the vectors, by name; `layers`: where each vector steers, and `sweeps` how that was
    found, by vector, empty where it was given; `subject`: what the experiment is about; `judged`: its answers.
    """

    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    directions: Mapping[str, Direction] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)
    sweeps: Mapping[str, LayerSweep] = field(default_factory=dict)
    subject: ExperimentContext | None = None
    judged: Mapping[Cell, pa.Table] = field(default_factory=dict)


def run_subject(config: Config) -> str:
    """What a run is about, in a word: the organism of the main job, else the experiment."""
    return config.model.name if config.experiment.name == "main" else config.experiment.name


def start_tracker(config: Config, judge_card: JudgeCard | None, key: str | None = None) -> Tracker:
    """The W&B run of a job."""
    wandb = config.wandb
    chosen = "sweep" if config.layer == "sweep" else f"L{config.layer}"
    doses = ",".join(f"{s:+g}" for s in config.steer.strength)
    described = {**asdict(config), "judge_card": card_to_json(judge_card)}
    group = wandb.group or config.experiment.name
    name = f"{run_subject(config)}·{chosen}·{doses}"
    return Tracker(config.tracker or "none", replace(wandb, group=group), name, described, key=key)
