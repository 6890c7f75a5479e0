"""Any experiment: python launch/run.py model=medical [experiment=transfer] [-m steer.strength=0,2,4] [plan=only]"""

from pathlib import Path

from omegaconf import DictConfig

from emharness import config as schema
from emharness.cli import command, config_folders, start
from emharness.errors import Incomplete


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
            if results.untracked(kept):
                with session.tracker(config, given.judge.card(), key_of(identity)) as tracker:
                    conduct.track(kept, tracker)
            return told(kept)
        store.forget(kept)  # the judge did not reach some responses, or the geometry failed; all else is stored

    store.remove_dead()
    current = session.Session(config, given, command())
    found = models.find(current)
    streams = models.streams(current, found)
    for note in [*given.notes, *current.notes]:
        terminal.say(f"note: {note}")
    planned = plan.plan(current, found, streams, experiment)
    terminal.show_plan(planned, whole=config.plan == "only")
    plan.check_disk(planned, store.root)
    if config.plan == "only":
        return None
    plan.check_engines(current, found, planned)

    def make(folder: Path) -> None:
        answered = conduct.generate(current, found, streams, experiment)
        conduct.report(current, found, streams, experiment, answered, folder, key_of(identity))

    with session.tracker(config, given.judge.card(), key_of(identity)) as current.tracker:
        folder, _ = store.get("runs", name, identity, make)
    return told(folder)


def told(folder: Path) -> str:
    """Show a finished run; the path of results.json. Raises Incomplete if something failed after the answers."""
    from emharness.reporting import results, terminal

    path = terminal.show(folder)
    failed = results.failures(folder) + ["W&B"] * results.untracked(folder)
    if failed:
        raise Incomplete(
            f"failed: {', '.join(failed)}; the answers are kept, and the same command tries only that again"
        )
    return path


if __name__ == "__main__":
    start(run, __file__, "config")
