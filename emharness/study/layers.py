"""Where each vector steers, and what the experiment is then about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from emharness.directions import vectors as files
from emharness.errors import UserError
from emharness.experiments import layer as layer_choice
from emharness.experiments.scope import Experiment, Scope
from emharness.generation import likelihood
from emharness.generation.cells import Cell, Direction
from emharness.generation.stream import Stream
from emharness.judge.topic import trained_on
from emharness.study import vectors
from emharness.study.answers import answer
from emharness.study.models import DOMAIN
from emharness.study.session import Session


@dataclass(frozen=True)
class Layers:
    """Where each vector steers; `sweeps`: how that was found, by vector, empty where it was given."""

    chosen: dict[str, int]
    sweeps: dict[str, dict[str, Any]]


def choose(
    session: Session, experiment: Experiment, asked: Mapping[str, Stream], directions: Mapping[str, Direction]
) -> Layers:
    """The layer of each vector: given, or by a sweep on the base, all vectors' settings in one stream."""
    config = session.config
    usable = [name for name in config.vectors if name in directions]
    if (given := given_layer(session, experiment)) is not None:
        for name in usable:
            if not directions[name].at(given):
                raise UserError(f"layer={given}: the vector {name} has no direction there; {_where(directions[name])}")
        return Layers(dict.fromkeys(usable, given), {})
    cells = {name: layer_cells(session, name, directions[name]) for name in usable}
    judged = answer(
        session, "layer sweep", [c for some in cells.values() for c in some], asked, directions, session.given.judge
    )
    sweeps = {
        name: layer_choice.read(some, judged, config.sweep.min_coherent)
        for name, some in cells.items()
        if all(cell in judged for cell in some)  # else the base has failed
    }
    return Layers({name: found["layer"] for name, found in sweeps.items()}, sweeps)


def given_layer(session: Session, experiment: Experiment) -> int | None:
    """The layer of all vectors where no sweep chooses it."""
    if session.config.layer != "sweep":
        return int(session.config.layer)
    return None if experiment.steers else session.given.n_layers // 2


def _where(direction: Direction) -> str:
    there = [] if direction.there is None else np.flatnonzero(direction.there).tolist()
    return f"it has one at layers {', '.join(map(str, there))}"


def layer_cells(session: Session, name: str, direction: Direction | None = None) -> list[Cell]:
    """The sweep's cells; where the vector is there already, only at layers at which it has a direction."""
    config, steer = session.config, session.config.steer
    n_layers = session.given.n_layers
    there = [layer for layer in range(n_layers) if direction is None or direction.at(layer)]
    return layer_choice.cells(
        name,
        there,
        n_layers,
        config.sweep,
        steer.unit,
        steer.mode,
        steer.positions,
        config.base.sampling.max_new_tokens,
    )


def scope(session: Session, chosen: Mapping[str, int], directions: Mapping[str, Direction] | None = None) -> Scope:
    """What the experiment is about; vectors without a layer yet count as at layer 0, for planning."""
    config, given = session.config, session.given
    return Scope(
        base=config.base.name,
        vectors=tuple(config.vectors),
        targets=tuple(config.targets),
        strengths=tuple(config.steer.strength),
        layers={name: chosen.get(name, 0) for name in config.vectors},
        unit=config.steer.unit,
        mode=config.steer.mode,
        positions=config.steer.positions,
        controls=tuple(f"random-{i}" for i in range(config.controls)),
        samples=config.eval.samples,
        domain_samples=config.eval.domain_samples,
        control_samples=min(config.eval.control_samples, config.eval.samples),
        max_new_tokens=config.base.sampling.max_new_tokens,
        domains={name: f"{DOMAIN}:{name}" for name, organism in given.organisms.items() if organism.domain},
        topics={
            name: topic for name, o in given.organisms.items() if (topic := trained_on(o.config.name, o.config.prompts))
        },
        pairs=likelihood.load(config.eval.pairs),
        categories={q.id: q.category for q in given.broad if q.category},
        near={name: tuple(organism.config.near) for name, organism in given.organisms.items()},
        labs={name: organism.config.lab for name, organism in given.organisms.items()},
        mechanisms={name: organism.config.mechanism for name, organism in given.organisms.items()},
        judge=given.judge.name,
        quality=given.judge.quality,
        n_layers=given.n_layers,
        parts=config.experiment.parts,
        subspaces={m: tuple(f"{m}/{i}" for i in range(len(names))) for m, names in vectors.clusters(session).items()},
        norms={
            name: (d.raw_norm, d.residual_norm)
            for name, d in (directions or {}).items()
            if d.raw_norm is not None and d.residual_norm is not None
        },
        cosines=files.cosines(vectors.arrays(session, directions or {})),
    )


def unsteered_cells(experiment: Experiment, early: Scope) -> list[Cell]:
    """The cells of an experiment that need no vector."""
    return [cell for cell in experiment.cells(early) if not cell.condition.edits]
