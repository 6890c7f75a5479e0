"""Any experiment: python launch/run.py model=medical [experiment=transfer] [-m steer.strength=0,2,4] [plan=only]"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from emharness import config as schema
from emharness.cli import config_folders, launcher


def run(cfg: DictConfig) -> str | None:
    """Check everything, print the plan, generate what is not stored, read it. The path of results.json."""
    config = schema.typed(cfg)
    from emharness import inputs
    from emharness.experiments import EXPERIMENTS, READING
    from emharness.reporting import results, terminal
    from emharness.store import key_of
    from emharness.study import conduct, models, plan, session

    schema.one_of("experiment.name", config.experiment.name, tuple(EXPERIMENTS))
    experiment, store = EXPERIMENTS[config.experiment.name], session.store()
    store.check_writable()
    given = inputs.check(config, inputs.model_configs(config_folders(), config.model), store)
    identity = {**given.identity(config), "reading": READING}
    name = f"{config.base.name}-{session.subject(config)}"
    kept = store.path("runs", name, identity)
    if store.has("runs", name, identity) and config.plan == "run":
        if not results.unfinished(kept):
            terminal.say("nothing to do: this very run is in the store")
            return terminal.show(kept)
        store.forget(kept)  # the judge did not reach some responses; all else is stored

    store.remove_dead()
    current = session.Session(config, given)
    found = models.find(current)
    streams = models.streams(current, found)
    for note in [*given.notes, *current.notes]:
        terminal.say(f"note: {note}")
    planned = plan.plan(current, found, streams, experiment)
    terminal.show_plan(planned, whole=config.plan == "only")
    plan.check_disk(planned, store.root)
    if config.plan == "only":
        return None

    def make(folder: Path) -> None:
        answered = conduct.generate(current, found, streams, experiment)
        conduct.report(current, found, streams, experiment, answered, folder, key_of(identity))

    with session.tracker(config, given.judge.card()) as current.tracker:
        folder, _ = store.get("runs", name, identity, make)
    return terminal.show(folder)


if __name__ == "__main__":
    conf = str(Path(__file__).resolve().parent.parent / "conf")
    main = hydra.main(version_base="1.3", config_path=conf, config_name="config")(launcher(run))
    sys.exit(main())
