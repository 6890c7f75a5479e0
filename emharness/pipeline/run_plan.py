"""The plan of a run, counted and timed before anything starts: each stage adds its part to a draft."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emharness.config import BASE
from emharness.errors import UserError
from emharness.experiments import layer_choice
from emharness.generation.cells import Cell, Direction
from emharness.generation.engine import why_unsupported
from emharness.generation.target_requests import TargetRequests
from emharness.pipeline.margin_stage import count_missing_pairs
from emharness.pipeline.run_context import RunContext
from emharness.store import Artifact

JUDGING = "judge"
RESPONSE_BYTES = 260  # of one response and its score on disk, measured on the embedded base
SPARE = 1.1  # free disk that must be there, of what is needed


@dataclass(frozen=True)
class ArtifactPlan:
    """An artifact that a run needs; seconds and bytes are 0 where it is stored."""

    stage: str
    name: str
    stored: bool
    seconds: float
    bytes: int


@dataclass(frozen=True)
class TargetPlan:
    """One target's answers: an engine's work."""

    target: str
    cells: int
    responses: int
    stored: int
    starts: int  # of engines
    seconds: float


@dataclass(frozen=True)
class Plan:
    """`layers`: those that are known. Sizes in bytes; `store` is what the store holds already."""

    stages: list[ArtifactPlan]
    targets: list[TargetPlan]
    layers: dict[str, int]
    tokens: int
    disk: int
    store: int
    assumed: list[str]  # speeds that no earlier run on this machine has measured

    @property
    def seconds(self) -> float:
        return sum(entry.seconds for entry in [*self.stages, *self.targets])

    @property
    def responses(self) -> int:
        return sum(entry.responses - entry.stored for entry in self.targets)

    @property
    def starts(self) -> int:
        return sum(entry.starts for entry in self.targets)


@dataclass
class PlanDraft:
    """What the stages have planned so far.

    `cells`: by target; `early`: targets that are asked before there are vectors; `directions`: those that are stored;
    `layers`: those that are known.
    """

    context: RunContext
    stages: list[ArtifactPlan] = field(default_factory=list)
    cells: dict[str, list[Cell]] = field(default_factory=dict)
    early: set[str] = field(default_factory=set)
    directions: dict[str, Direction] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    targets: list[TargetPlan] = field(default_factory=list)

    def is_stored(self, artifact: Artifact) -> bool:
        return self.context.store.has_artifact(artifact.stage, artifact.name, artifact.identity)

    def add_artifact(self, stage: str, name: str, stored: bool, seconds: float, size: float) -> None:
        done = (0.0, 0) if stored else (seconds, int(size))
        self.stages.append(ArtifactPlan(stage, name, stored, *done))

    def add_cells(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            self.cells.setdefault(cell.condition.target, []).append(cell)

    def finish(self) -> Plan:
        speeds, config = self.context.speeds, self.context.config
        pending = sum(entry.responses - entry.stored for entry in self.targets)
        tokens = int(pending * speeds.tokens_per_response(config.base.sampling.max_new_tokens))
        disk = sum(entry.bytes for entry in self.stages) + pending * RESPONSE_BYTES
        return Plan(
            self.stages, self.targets, self.layers, tokens, disk, self.context.store.disk_bytes(), speeds.assumed
        )


def plan_targets(draft: PlanDraft) -> None:
    """Count and time the answers that all planned cells need, target by target, and the judging of them."""
    context, unscored = draft.context, 0
    judge, speeds = context.inputs.judge, context.speeds
    vectors = set(context.config.vectors)
    for target in context.targets:
        if not (cells := draft.cells.get(target)):
            continue
        asked, missing, unjudged = count_responses(cells, context.targets[target], draft, vectors, judge.identity)
        unscored += unjudged
        again = target != BASE and target in draft.early and any(cell.condition.edits for cell in cells)
        starts = int(missing > 0) + int(again)
        pairs = count_missing_pairs(context, cells, context.targets[target], draft.directions)
        seconds = speeds.estimate_seconds("start", starts) + speeds.estimate_seconds("responses", missing)
        seconds += speeds.estimate_seconds("margins", pairs)
        name = context.config.base.name if target == BASE else target
        draft.targets.append(TargetPlan(name, len(set(cells)), asked, asked - missing, starts, seconds))
    if judge.engine is not None:
        start = speeds.estimate_seconds("start", 1)
        draft.add_artifact(JUDGING, f"{judge.name} ({unscored:,} answers)", not unscored, start, 0)


def count_responses(
    cells: Iterable[Cell], target: TargetRequests, draft: PlanDraft, vectors: set[str], judge: str
) -> tuple[int, int, int]:
    """Responses of these cells, how many of them are not stored, and how many have no score by `judge` (an identity):
    all of a cell whose vector is not known yet."""
    keys, judged, unknown = set[str](), set[str](), 0
    directions: Mapping[str, Direction] = draft.directions
    for cell in dict.fromkeys(cells):
        edits = cell.condition.edits
        named = set[str]().union(*(edit.named_vectors for edit in edits))
        placed = cell.questions == layer_choice.QUESTIONS or named - set(draft.layers) <= directions.keys() - vectors
        if placed and named <= directions.keys():
            asked = {request.key for request in target.list_requests(cell, directions)}
            keys |= asked
            judged |= asked if cell.judged else set()
        else:  # steered, so it is judged
            unknown += len(target.prompts[cell.questions]) * cell.samples
    unjudged = len(judged - target.open_scores(judge).stored_keys()) + unknown
    return len(keys) + unknown, len(keys - target.responses.stored_keys()) + unknown, unjudged


def check_disk(plan: Plan, root: Path) -> None:
    """UserError where the plan needs more disk than there is."""
    folder = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if plan.disk * SPARE > free:
        raise UserError(
            f"the plan needs {plan.disk / 1e9:.1f} GB in EMHARNESS_HOME={root}, and {free / 1e9:.1f} GB are free on "
            f"{socket.gethostname()}; delete old artifacts (folders below it), or set EMHARNESS_HOME to another disk"
        )


def check_engines(context: RunContext, plan: Plan) -> None:
    """UserError where vLLM would not start for what is to be answered or judged."""
    config, judge = context.config, context.inputs.judge
    if plan.responses and (why := why_unsupported(context.models[BASE].folder, config.base.engine)):
        raise UserError(f"base={config.base.name}: {why}")
    judging = any(entry.stage == JUDGING and not entry.stored for entry in plan.stages)
    if judge.engine is not None and judging and (why := why_unsupported(*judge.engine, steered=False)):
        raise UserError(f"judge={config.judge.name}, {judge.name}: {why}")
