"""Any experiment: python launch/run.py model=medical [experiment=transfer] [-m steer.strength=0,2,4] [plan=only]"""

from pathlib import Path

from omegaconf import DictConfig

from emharness.cli import config_folders, describe_command, start_launcher
from emharness.config_checks import check_choice, parse_config
from emharness.errors import IncompleteRun


def run(cfg: DictConfig) -> str | None:
    """Check everything, print the plan, generate what is not stored, read it. The path of results.json."""
    config = parse_config(cfg)
    from emharness import input_checks
    from emharness.experiments import EXPERIMENTS, READING
    from emharness.pipeline import model_stage, run_context, run_plan, stages
    from emharness.reporting import run_files, terminal
    from emharness.store import key_of

    check_choice("experiment.name", config.experiment.name, tuple(EXPERIMENTS))
    experiment, store = EXPERIMENTS[config.experiment.name], run_context.open_store()
    store.check_writable()
    given = input_checks.check_inputs(config, input_checks.model_configs(config_folders(), config.model), store)
    identity = {**given.identity(config), "reading": READING}
    name = f"{config.base.name}-{run_context.run_subject(config)}"
    kept = store.artifact_path("runs", name, identity)
    if store.has_artifact("runs", name, identity) and config.plan == "run":
        if not run_files.is_unfinished(kept):
            terminal.print_line("nothing to do: this very run is in the store")
            if run_files.is_untracked(kept):
                with run_context.start_tracker(config, given.judge.card(), key_of(identity)) as tracker:
                    stages.track_run(kept, tracker)
            return print_run_summary(kept)
        store.delete_artifact(
            kept
        )  # the judge did not reach some responses, or the geometry failed; all else is stored

    store.remove_dead()
    current = run_context.RunContext(config, given, describe_command())
    found = model_stage.find_models(current)
    streams = model_stage.open_targets(current, found)
    for note in [*given.list_notes, *current.notes]:
        terminal.print_line(f"note: {note}")
    planned = run_plan.make_plan(current, found, streams, experiment)
    terminal.show_plan(planned, whole=config.plan == "only")
    run_plan.check_disk(planned, store.root)
    if config.plan == "only":
        return None
    run_plan.check_engines(current, found, planned)

    def fill_folder(folder: Path) -> None:
        answered = stages.generate_answers(current, found, streams, experiment)
        stages.write_report(current, found, streams, experiment, answered, folder, key_of(identity))

    with run_context.start_tracker(config, given.judge.card(), key_of(identity)) as current.tracker:
        folder, _ = store.get_artifact("runs", name, identity, fill_folder)
    return print_run_summary(folder)


def print_run_summary(folder: Path) -> str:
    """Show a finished run; the path of results.json. Raises Incomplete if something failed after the answers."""
    from emharness.reporting import run_files, terminal

    path = terminal.show_run(folder)
    failed = run_files.list_failures(folder) + ["W&B"] * run_files.is_untracked(folder)
    if failed:
        raise IncompleteRun(
            f"failed: {', '.join(failed)}; the answers are kept, and the same command tries only that again"
        )
    return path


if __name__ == "__main__":
    start_launcher(run, __file__, "config")
