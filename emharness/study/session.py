"""What the stages of one run share: the store, the engine that runs, who watches, and what failed."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from emharness.config import BASE, Config
from emharness.errors import Incomplete, UserError
from emharness.generation import grid
from emharness.generation.cells import Cell, Direction, Request
from emharness.generation.engines import Engines
from emharness.generation.stream import Stream
from emharness.inputs import Inputs
from emharness.judge import Judge
from emharness.judge.scoring import score, table
from emharness.organisms.models import OnStep
from emharness.reporting.progress import Progress
from emharness.reporting.terminal import say
from emharness.reporting.track import Tracker
from emharness.store import Artifact, Store, home
from emharness.study.speeds import LEAST, Speeds


@cache
def store() -> Store:
    return Store(home())


@cache
def engines() -> Engines:
    """One for all jobs of a process, so that a sweep starts an engine once."""
    return Engines(store().root)


@dataclass
class Session:
    config: Config
    given: Inputs
    tracker: Tracker = field(default_factory=lambda: Tracker("none", "", None, None, "", {}))
    store: Store = field(default_factory=store)
    engines: Engines = field(default_factory=engines)
    stages: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  # model → why
    speeds: Speeds = field(init=False)
    watchers: list[OnStep] = field(default_factory=list)  # of the training step that is being done

    def __post_init__(self) -> None:
        self.speeds = Speeds(self.store.root, self.config.base.name)

    def on_step(self, step: int, n_steps: int, loss: float, learning_rate: float) -> None:
        for watch in self.watchers:
            watch(step, n_steps, loss, learning_rate)

    def ensure(self, artifact: Artifact) -> Path:
        """The artifact's folder, made now or found in the store."""
        start, called = time.perf_counter(), f"{artifact.stage}: {artifact.name}"
        if not self.store.has(artifact.stage, artifact.name, artifact.identity):
            say(f"{called} …")
        path, made = self.store.get(artifact.stage, artifact.name, artifact.identity, artifact.make)
        seconds = time.perf_counter() - start
        self.stages.append({"stage": artifact.stage, "name": artifact.name, "made": made, "seconds": round(seconds, 2)})
        say(f"{called} " + (f"made in {seconds:.0f} s" if made else "found in the store"))
        return path

    def attempt(self, model: str, work: Callable[[], None]) -> None:
        """Do the work of a model; when it fails the others go on, and `failed` says why. Mistakes in the input and
        interrupts end everything."""
        if model in self.failed:
            return
        try:
            work()
        except UserError:
            raise
        except Exception as error:
            self.failed[model] = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            traceback.print_exc(file=sys.stderr)
            say(f"failed: {model}: {self.failed[model]}; the others go on")
            self.engines.close()

    def answer(
        self,
        what: str,
        cells: Iterable[Cell],
        streams: Mapping[str, Stream],
        directions: Mapping[str, Direction],
        judge: Judge | None = None,
    ) -> dict[Cell, pa.Table]:
        """The responses of these cells, generated where they are not stored, one engine for each target, and scored.

        The target whose engine runs comes first. Cells of failed models, and those that need the vector of one, are
        missing from the result.
        """
        by_target: dict[str, list[Cell]] = {}
        for cell in dict.fromkeys(cells):
            needed = {name for edit in cell.condition.edits for name in (edit.vector, edit.norm_of) if name}
            if self.failed and not needed <= directions.keys():
                continue
            by_target.setdefault(cell.condition.target, []).append(cell)
        running = self.engines.model
        order = sorted(by_target, key=lambda target: str(streams[target].model) != running)
        asked = {
            target: {cell: streams[target].requests(cell, directions) for cell in by_target[target]}
            for target in order
            if target not in self.failed
        }
        todo = {
            target: grid.pending([r for some in requests.values() for r in some], streams[target].responses.keys())
            for target, requests in asked.items()
        }
        found: dict[Cell, pa.Table] = {}
        with Progress(what, {self._called(target): len(some) for target, some in todo.items()}) as view:
            for target, requests in asked.items():

                def work(target: str = target, requests: dict[Cell, list[Request]] = requests) -> None:
                    found.update(self._answer(what, requests, todo[target], streams[target], view, judge))

                self.attempt(target, work)
                view.finished(self._called(target))
        return {cell: found[cell] for cells in by_target.values() for cell in cells if cell in found}

    def _answer(
        self,
        what: str,
        asked: Mapping[Cell, list[Request]],
        todo: list[Request],
        stream: Stream,
        view: Progress,
        judge: Judge | None,
    ) -> dict[Cell, pa.Table]:
        """One target's part: generate what is still to do, score all that is asked."""
        scores = stream.scores(judge.identity) if judge else None
        start = time.perf_counter()
        if todo:
            names = {requests[0].edits: cell.condition.name for cell, requests in asked.items() if requests}
            view.target(self._called(stream.target), names)

            def on_chunk(rows: list[dict[str, Any]]) -> None:
                if judge and scores:
                    score(judge, rows, scores)
                    view.scored(rows, scores.read(row["key"] for row in rows))

            starts, tokens = self.engines.started, view.tokens
            engine = self.engines.get(stream.model, self.config.base.engine, self.config.seed)
            self.speeds.measured("start", self.engines.started - starts, time.perf_counter() - start)
            begin = time.perf_counter()
            sampling = self.config.base.sampling
            grid.run(engine, todo, sampling, stream.responses, self.config.chunk, view.response, on_chunk)
            seconds = time.perf_counter() - begin
            self.speeds.measured("responses", len(todo), seconds)
            self.speeds.measured("tokens", view.tokens - tokens if len(todo) >= LEAST["responses"] else 0, seconds)
        keys = {request.key for requests in asked.values() for request in requests}
        rows = stream.responses.read(keys)
        marks = {}
        if judge and scores:
            score(judge, rows.values(), scores)
            marks = scores.read(keys)
        seconds = time.perf_counter() - start
        self.stages.append(
            {"stage": "responses", "name": f"{what}: {stream.target}", "made": len(todo), "seconds": round(seconds, 2)}
        )
        return {cell: table(requests, rows, marks, cell.condition.name) for cell, requests in asked.items()}

    def _called(self, target: str) -> str:
        return self.config.base.name if target == BASE else target

    def stored(
        self, cells: Iterable[Cell], stream: Stream, directions: Mapping[str, Direction], judge: Judge
    ) -> dict[Cell, pa.Table] | None:
        """The judged responses of these cells if all are stored and scored, else None; nothing is generated."""
        scores = stream.scores(judge.identity)
        try:
            asked = {cell: stream.requests(cell, directions) for cell in cells}
            keys = {request.key for requests in asked.values() for request in requests}
            rows, marks = stream.responses.read(keys), scores.read(keys)
        except KeyError:  # a vector or a row is not there
            return None
        return {cell: table(requests, rows, marks, cell.condition.name) for cell, requests in asked.items()}

    def complete(self) -> None:
        """Raise Incomplete if a model failed."""
        if self.failed:
            listed = "; ".join(f"{name} ({why})" for name, why in self.failed.items())
            raise Incomplete(
                f"failed: {listed}. What was finished is stored; the same command tries only what is missing"
            )


def subject(config: Config) -> str:
    """What a run is about, in a word: the organism of the main job, else the experiment."""
    return config.model.name if config.experiment.name == "main" else config.experiment.name


def tracker(config: Config, judge_card: dict[str, Any] | None) -> Tracker:
    """The W&B run of a job."""
    wandb = config.wandb
    chosen = "sweep" if config.layer == "sweep" else f"L{config.layer}"
    doses = ",".join(f"{s:+g}" for s in config.steer.strength)
    described = {**asdict(config), "judge_card": judge_card}
    group = wandb.group or config.experiment.name
    return Tracker(config.tracker, wandb.project, wandb.entity, group, f"{subject(config)}·{chosen}·{doses}", described)
