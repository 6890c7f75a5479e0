"""Margins of a run's conditions: how likely each finds the given answers, measured by the engine that is running."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from emharness.steering.request.spec import SpecJson
from emharness.store import make_slug, write_json


@dataclass(frozen=True)
class _PairSet:
    """What a question set's margins are measured on; `form`: how the questions are put."""

    pairs: Sequence[Pair]
    form: QuestionForm | None = None


def measure_margins(
    context: RunContext, cells: Iterable[Cell], target: TargetRequests, directions: Mapping[str, Direction]
) -> dict[Measured, np.ndarray]:
    """Margins, float [n_pairs], of every condition of one target that answers broad questions, also in other forms, or
    those of a domain that has pairs; stored ones are read."""
    sets = _list_sets(context)
    listed = dict.fromkeys((cell.condition, cell.questions) for cell in cells if cell.questions in sets)
    specs = {condition: make_steering_spec(condition.edits, directions, target.root) for condition, _ in listed}
    files = {measured: _margins_file(context, target, sets, measured, specs[measured[0]]) for measured in listed}
    todo = [measured for measured in listed if not files[measured].is_file()]
    if todo:
        chat = load_chat(target.model)
        names = {name for _, name in todo}
        texts = {name: likelihoods.tokenize_pairs(chat, sets[name].pairs, sets[name].form) for name in names}
        engine = context.engines.get_engine(target.model, context.config.base.engine, context.config.seed)
        start, done = time.perf_counter(), sum(len(sets[name].pairs) for _, name in todo)
        for condition, name in todo:
            found = likelihoods.measure_likelihoods(engine, texts[name], specs[condition])
            write_json(files[condition, name], found)
        context.speeds.record_speed("margins", done, time.perf_counter() - start)
        print_line(f"margins of {target.target}: {done} pairs of answers")
    return {measured: pair_margins(json.loads(file.read_text())) for measured, file in files.items()}


def count_missing_pairs(
    context: RunContext, cells: Iterable[Cell], target: TargetRequests, directions: Mapping[str, Direction]
) -> int:
    """Pairs of answers that these cells' margins still need: all of a condition whose vector is not made yet."""
    sets, missing = _list_sets(context), 0
    for measured in dict.fromkeys((cell.condition, cell.questions) for cell in cells if cell.questions in sets):
        condition, name = measured
        known = set[str]().union(*(edit.named_vectors for edit in condition.edits)) <= directions.keys()
        spec = make_steering_spec(condition.edits, directions, target.root) if known else None
        if not known or not _margins_file(context, target, sets, measured, spec).is_file():
            missing += len(sets[name].pairs)
    return missing


def _list_sets(context: RunContext) -> dict[str, _PairSet]:
    """The question sets that margins are measured on; empty where none are asked for (eval.pairs=0)."""
    broad = likelihoods.load_pairs(context.config.eval.pairs)
    if not broad:
        return {}
    forms = {name: _PairSet(broad, form) for name, form in name_form_sets(context.inputs.organisms)[1].items()}
    narrow = list_narrow_pairs(context.config, context.inputs.organisms)
    return {BROAD: _PairSet(broad), **forms, **{name: _PairSet(pairs) for name, pairs in narrow.items()}}


def _margins_file(
    context: RunContext, target: TargetRequests, sets: Mapping[str, _PairSet], measured: Measured, spec: SpecJson | None
) -> Path:
    digest = edits_digest(spec, *target.shape, target.root)
    asked = sets[measured[1]]
    name = f"{digest or 'unsteered'}-{likelihoods.pairs_identity(asked.pairs, asked.form)}.json"
    return context.store.root / "likelihoods" / f"{make_slug(target.target)}-{target.key}" / name
