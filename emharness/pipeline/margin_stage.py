"""Margins of a run's conditions: how likely each finds the given answers, measured by the engine that is running."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from emharness.experiments.context import BROAD
from emharness.generation import likelihoods
from emharness.generation.cells import Cell, Condition, Direction, edits_digest, make_steering_spec
from emharness.generation.target_requests import TargetRequests
from emharness.organisms.chat import load_chat
from emharness.pipeline.run_context import RunContext
from emharness.reporting.terminal import print_line
from emharness.stats.margins import pair_margins
from emharness.store import make_slug, write_json


def measure_margins(
    context: RunContext, cells: Iterable[Cell], target: TargetRequests, directions: Mapping[str, Direction]
) -> dict[Condition, np.ndarray]:
    """Margins, float [n_pairs], of every condition of one target that answers broad questions; stored ones are read."""
    pairs = likelihoods.load_pairs(context.config.eval.pairs)
    if not pairs:
        return {}
    listed = dict.fromkeys(cell.condition for cell in cells if cell.questions == BROAD)
    specs = {condition: make_steering_spec(condition.edits, directions, target.root) for condition in listed}
    files = {
        condition: _margins_file(
            context, target, edits_digest(spec, *target.shape, target.root), likelihoods.pairs_identity(pairs)
        )
        for condition, spec in specs.items()
    }
    todo = [condition for condition in listed if not files[condition].is_file()]
    if todo:
        texts = likelihoods.tokenize_pairs(load_chat(target.model), pairs)
        engine = context.engines.get_engine(target.model, context.config.base.engine, context.config.seed)
        for condition in todo:
            write_json(files[condition], likelihoods.measure_likelihoods(engine, texts, specs[condition]))
        print_line(f"margins of {target.target}: {len(todo)} conditions × {len(pairs)} pairs of answers")
    return {condition: pair_margins(json.loads(file.read_text())) for condition, file in files.items()}


def _margins_file(context: RunContext, target: TargetRequests, digest: str, pairs: str) -> Path:
    name = f"{digest or 'unsteered'}-{pairs}.json"
    return context.store.root / "likelihoods" / f"{make_slug(target.target)}-{target.key}" / name
