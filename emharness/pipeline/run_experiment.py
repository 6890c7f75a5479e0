"""A run from its configuration to its folder: the method section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from emharness.config import Config, ModelConfig
from emharness.config_checks import check_choice
from emharness.experiments import EXPERIMENTS, READING
from emharness.experiments.context import Experiment
from emharness.input_checks import Inputs, check_inputs
from emharness.organism_names import read_described
from emharness.pipeline.model_stage import find_models, open_targets
from emharness.pipeline.report_stage import track_run, write_report
from emharness.pipeline.run_context import RunContext, open_store, run_subject, start_tracker
from emharness.pipeline.run_plan import Plan, check_disk, check_engines
from emharness.pipeline.stages import make_plan, run_stages
from emharness.reporting.run_files import is_unfinished, is_untracked
from emharness.reporting.terminal import print_line, show_plan
from emharness.store import key_of


def run_experiment(config: Config, conf_folders: Sequence[Path], command: str | None = None) -> Path | None:
    """Check everything, print the plan, generate what is not stored, and read it. The run's folder; None where only the
    plan was asked for. UserError for a mistake in the input, IncompleteRun where a model failed.

    `conf_folders`: where the configs of organisms are; `command`: what starts this run again.
    """
    inputs = read_inputs(config, conf_folders)
    identity = {**inputs.identity(config), "reading": READING}
    store, name = open_store(), f"{config.base.name}-{run_subject(config)}"
    store.check_writable()
    folder = store.artifact_path("runs", name, identity)
    if store.has_artifact("runs", name, identity) and config.plan == "run":
        if not is_unfinished(folder):
            print_line("nothing to do: this very run is in the store")
            if is_untracked(folder):
                with start_tracker(config, inputs.judge.card(), key_of(identity)) as tracker:
                    track_run(folder, tracker)
            return folder
        store.delete_artifact(folder)  # the judge missed responses, or the geometry failed; all else is stored

    store.remove_dead()
    context = prepare_run(RunContext(config, inputs, EXPERIMENTS[config.experiment.name], command))
    for note in [*inputs.list_notes, *context.log.notes]:
        print_line(f"note: {note}")
    check_plan(context, whole=config.plan == "only")
    if config.plan == "only":
        return None

    def fill_folder(folder: Path) -> None:
        write_report(context, run_stages(context), folder, key_of(identity))

    with start_tracker(config, inputs.judge.card(), key_of(identity)) as context.log.tracker:
        folder, _ = store.get_artifact("runs", name, identity, fill_folder)
    return folder


def answer_together(
    config: Config, conf_folders: Sequence[Path], experiment: Experiment, models: Mapping[str, ModelConfig], title: str
) -> None:
    """The answers of an experiment alone, nothing read: those that several jobs of a multirun will read. `models`:
    further organisms by name."""
    context = prepare_run(RunContext(config, read_inputs(config, conf_folders, models), experiment))
    print_line(title)
    if check_plan(context, whole=False).responses:
        run_stages(context)


def read_inputs(
    config: Config, conf_folders: Sequence[Path], models: Mapping[str, ModelConfig] | None = None
) -> Inputs:
    """All that a run reads, checked. UserError for the first thing that is wrong."""
    check_choice("experiment.name", config.experiment.name, tuple(EXPERIMENTS))
    described = read_described(conf_folders, config.model)
    described = replace(described, models={**described.models, **(models or {})})
    return check_inputs(config, described, open_store())


def prepare_run(context: RunContext) -> RunContext:
    """The context with its models, made or not, and what each is asked."""
    context = replace(context, models=find_models(context))
    return replace(context, targets=open_targets(context))


def check_plan(context: RunContext, whole: bool) -> Plan:
    """Print what the run would do (`whole`: every entry), and refuse what cannot work before anything is made."""
    plan = make_plan(context)
    show_plan(plan, whole=whole)
    check_disk(plan, context.store.root)
    if not whole:
        check_engines(context, plan)
    return plan
