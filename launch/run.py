"""Any experiment: python launch/run.py model=medical [experiment=transfer] [-m steer.strength=0,2,4] [plan=only]"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from emharness import config as schema
from emharness.cli import config_folders, launcher

if TYPE_CHECKING:
    from emharness.generation.stream import Stream
    from emharness.organisms.models import Model
    from emharness.session import Session


def run(cfg: DictConfig) -> None:
    """Check, plan, and conduct what is not stored yet."""
    config = schema.typed(cfg)
    from emharness import inputs, plan, session, steps
    from emharness.experiments import EXPERIMENTS
    from emharness.reporting import terminal
    from emharness.store import key_of

    schema.one_of("experiment.name", config.experiment.name, tuple(EXPERIMENTS))
    store = session.store()
    given = inputs.check(config, inputs.model_configs(config_folders(), config.model), store)
    identity = given.identity(config)
    subject = config.model.name if config.experiment.name == "main" else config.experiment.name
    name = f"{config.base.name}-{subject}"
    if store.has("runs", name, identity) and config.plan == "run":
        terminal.say("nothing to do: this very run is in the store")
    else:
        store.remove_dead()
        study = session.Session(config, given)
        models = steps.models(study)
        streams = steps.streams(study, models)
        planned = plan.plan(study, models, streams, EXPERIMENTS[config.experiment.name])
        terminal.show_plan(planned, whole=config.plan == "only")
        plan.check_disk(planned, store.root)
        if config.plan == "only":
            return
        with session.tracker(config, given.judge.card()) as study.tracker:
            store.get("runs", name, identity, lambda folder: conduct(study, models, streams, folder, key_of(identity)))
    terminal.show(store.path("runs", name, identity))


def conduct(study: Session, models: dict[str, Model], streams: dict[str, Stream], folder: Path, run_key: str) -> None:
    """The method section: models, their vectors, where those steer, all answers, and what they say."""
    from emharness import steps
    from emharness.experiments import EXPERIMENTS
    from emharness.reporting import figures, results

    experiment = EXPERIMENTS[study.config.experiment.name]
    steps.make_organisms(study, models)
    unsteered = steps.unsteered_cells(experiment, steps.scope(study, {}))
    artifacts, directions = steps.vectors(study, models, streams, unsteered)
    layers = steps.layers(study, streams, directions)
    scope = steps.scope(study, layers.chosen)
    judged = study.answer("responses", experiment.cells(scope), streams, directions, study.given.judge)
    study.complete()
    reading = experiment.read(scope, judged)
    analysed = steps.analyse(study, models, streams, artifacts, scope.layers[scope.vectors[0]])

    drawn = dict(reading.figures)
    for vector, sweep in layers.sweeps.items():
        label = "layer_sweep" if len(layers.sweeps) == 1 else f"layer_sweep_{vector}"
        drawn[label] = figures.layer_sweep(sweep, f"{vector} vector on {scope.base}: where to steer")
    found = steps.results(study, reading.conditions, reading.numbers, layers, artifacts, analysed, run_key)
    tables = {"responses": [], "domain_responses": []}
    for cell, table in judged.items():
        tables["domain_responses" if cell.questions.startswith(steps.DOMAIN) else "responses"].append(table)
    results.write(folder, found, tables, drawn)
    results.mirror(folder, found, {v: directions[v].file for v in scope.vectors}, study.tracker)


if __name__ == "__main__":
    conf = str(Path(__file__).resolve().parent.parent / "conf")
    main = hydra.main(version_base="1.3", config_path=conf, config_name="config")(launcher(run))
    sys.exit(main())
