"""Margins of a run's conditions: how likely each finds the given answers, measured by the engine that is running."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from emharness.experiments.context import BROAD
from emharness.generation import likelihoods
from emharness.generation.cells import Cell, Direction, edits_digest, make_steering_spec
from emharness.generation.likelihoods import Pair
from emharness.generation.target_requests import TargetRequests
from emharness.organisms.chat import load_chat
from emharness.pipeline.run_context import Measured, RunContext
from emharness.pipeline.subject import list_narrow_pairs, name_form_sets
from emharness.question_forms import QuestionForm
from emharness.reporting.terminal import print_line
from emharness.stats.margins import pair_margins
from emharness.store import make_slug, write_json


def measure_margins(
    context: RunContext, cells: Iterable[Cell], target: TargetRequests, directions: Mapping[str, Direction]
) -> dict[Measured, np.ndarray]:
    """Margins, float [n_pairs], of every condition of one target that answers broad questions, also in other forms, or
    those of a domain that has pairs; stored ones are read."""
    broad = likelihoods.load_pairs(context.config.eval.pairs)
    if not broad:
        return {}
    forms = {BROAD: QuestionForm(BROAD), **name_form_sets(context.inputs.organisms)[1]}
    pairs: dict[str, Sequence[Pair]] = dict.fromkeys(forms, broad)
    pairs |= list_narrow_pairs(context.config, context.inputs.organisms)
    listed = dict.fromkeys((cell.condition, cell.questions) for cell in cells if cell.questions in pairs)
    specs = {condition: make_steering_spec(condition.edits, directions, target.root) for condition, _ in listed}
    files = {
        (condition, name): _margins_file(
            context,
            target,
            edits_digest(specs[condition], *target.shape, target.root),
            likelihoods.pairs_identity(pairs[name], None if name == BROAD else forms.get(name)),
        )
        for condition, name in listed
    }
    todo = [measured for measured in listed if not files[measured].is_file()]
    if todo:
        chat = load_chat(target.model)
        names = {name for _, name in todo}
        texts = {name: likelihoods.tokenize_pairs(chat, pairs[name], forms.get(name)) for name in names}
        engine = context.engines.get_engine(target.model, context.config.base.engine, context.config.seed)
        for condition, name in todo:
            found = likelihoods.measure_likelihoods(engine, texts[name], specs[condition])
            write_json(files[condition, name], found)
        print_line(f"margins of {target.target}: {sum(len(pairs[name]) for _, name in todo)} pairs of answers")
    return {measured: pair_margins(json.loads(file.read_text())) for measured, file in files.items()}


def _margins_file(context: RunContext, target: TargetRequests, digest: str, pairs: str) -> Path:
    name = f"{digest or 'unsteered'}-{pairs}.json"
    return context.store.root / "likelihoods" / f"{make_slug(target.target)}-{target.key}" / name
