"""The margins of a run's conditions: how likely each finds the given answers, by the engine that runs anyway."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from emharness.experiments.scope import BROAD
from emharness.generation import likelihood
from emharness.generation.cells import Cell, Condition, Direction, edits_digest, spec_of
from emharness.generation.stream import Stream
from emharness.judge.margins import differences
from emharness.organisms.chat import load_chat
from emharness.reporting.terminal import say
from emharness.store import slug, write_json
from emharness.study.session import Session


def measure(
    session: Session, cells: Iterable[Cell], stream: Stream, directions: Mapping[str, Direction]
) -> dict[Condition, np.ndarray]:
    """Margins, float [n_pairs], of every condition of one target that answers broad questions; stored ones are read."""
    pairs = likelihood.load(session.config.eval.pairs)
    if not pairs:
        return {}
    listed = dict.fromkeys(cell.condition for cell in cells if cell.questions == BROAD)
    specs = {condition: spec_of(condition.edits, directions, stream.root) for condition in listed}
    files = {
        condition: _file(session, stream, edits_digest(spec, *stream.shape, stream.root), likelihood.identity(pairs))
        for condition, spec in specs.items()
    }
    todo = [condition for condition in listed if not files[condition].is_file()]
    if todo:
        texts = likelihood.tokens(load_chat(stream.model), pairs)
        engine = session.engines.get(stream.model, session.config.base.engine, session.config.seed)
        for condition in todo:
            write_json(files[condition], likelihood.measure(engine, texts, specs[condition]))
        say(f"margins of {stream.target}: {len(todo)} conditions × {len(pairs)} pairs of answers")
    return {condition: differences(json.loads(file.read_text())) for condition, file in files.items()}


def _file(session: Session, stream: Stream, digest: str, pairs: str) -> Path:
    name = f"{digest or 'unsteered'}-{pairs}.json"
    return session.store.root / "likelihoods" / f"{slug(stream.target)}-{stream.key}" / name
