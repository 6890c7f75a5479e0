"""Any experiment: python launch/run.py model=medical [experiment=transfer] [-m steer.strength=0,2,4] [plan=only]"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from emharness import config as schema
from emharness.cli import config_folders, launcher


def run(cfg: DictConfig) -> None:
    config = schema.typed(cfg)
    from emharness import inputs, session
    from emharness.experiments import EXPERIMENTS
    from emharness.reporting import terminal
    from emharness.store import key_of

    schema.one_of("experiment.name", config.experiment.name, tuple(EXPERIMENTS))
    store = session.store()
    given = inputs.check(config, inputs.model_configs(config_folders(), config.model), store)
    identity = given.identity(config)
    subject = config.model.name if config.experiment.name == "main" else config.experiment.name
    name = f"{config.base.name}-{subject}"
    if store.has("runs", name, identity):
        terminal.say("nothing to do: this very run is in the store")
    else:
        with session.tracker(config, given.judge.card()) as tracker:
            study = session.Session(config, given, tracker)
            store.remove_dead()
            store.get("runs", name, identity, lambda folder: conduct(study, folder, key_of(identity)))
    terminal.show(store.path("runs", name, identity))


def conduct(study, folder: Path, run_key: str) -> None:
    """The method section: models, their vectors, where those steer, all answers, and what they say."""
    from emharness import steps
    from emharness.experiments import EXPERIMENTS
    from emharness.reporting import figures, results

    experiment = EXPERIMENTS[study.config.experiment.name]
    models = steps.models(study)
    steps.make_models(study, models)
    streams = steps.streams(study, models)
    unsteered = steps.unsteered_cells(experiment, steps.scope(study, {}))
    artifacts, directions = steps.vectors(study, models, streams, unsteered)
    layers = steps.layers(study, streams, directions)
    study.complete()
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
