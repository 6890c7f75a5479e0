"""The report of a run: its answers analysed, the geometry of its vectors, written to a folder and to W&B."""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa

from emharness import geometry
from emharness.config import BASE
from emharness.errors import UserError, join_lines
from emharness.experiments import stored_context
from emharness.experiments.context import BROAD, ExperimentResult
from emharness.judges import reader_labels
from emharness.pipeline import vector_stage
from emharness.pipeline.run_context import RunContext, StageOutputs
from emharness.pipeline.subject import DOMAIN, FORM, is_kind
from emharness.reporting import html_report, run_figures, run_files
from emharness.reporting.terminal import print_line
from emharness.reporting.wandb_tracker import Tracker
from emharness.results.condition_result import ConditionResult
from emharness.results.json_records import to_json
from emharness.results.run_results import GeometryOutcome, RunResults
from emharness.stats.rates import order_changes
from emharness.store import Artifact
from emharness.vectors.extraction import VECTORS_FILE
from emharness.versions import git_commit, package_versions


def write_report(context: RunContext, outputs: StageOutputs, folder: Path, run_key: str) -> None:
    """Analyse the answers and the vectors' geometry, and write results to `folder` and to W&B."""
    assert outputs.subject is not None
    subject, experiment = outputs.subject, context.experiment
    result = experiment.analyze(subject, outputs.judged)
    geometries: dict[str, GeometryOutcome] = {}
    if subject.vectors:
        geometries = analyze_recipes(context, outputs.artifacts, subject.layers[subject.vectors[0]])
    result = replace(result, conditions=_add_labels(context, outputs, result.conditions))
    drawn = dict(result.figures)
    for vector, sweep in outputs.sweeps.items():
        label = "layer_sweep" if len(outputs.sweeps) == 1 else f"layer_sweep_{vector}"
        drawn[label] = run_figures.draw_layer_sweep(sweep, f"{vector} vector on {subject.base}: where to steer")
    results = make_results(context, outputs, result, geometries, run_key)
    names = ("responses", "domain_responses", "form_responses", "task_responses")
    tables: dict[str, list[pa.Table]] = {name: [] for name in names}
    for cell, table in outputs.judged.items():
        kind = cell.questions.partition(":")[0]
        if kind in (FORM, DOMAIN):
            asked = pa.array([cell.questions] * table.num_rows)
            table = table.append_column(stored_context.FORM_COLUMN, asked)
        tables[{BROAD: "responses"}.get(kind, f"{kind}_responses")].append(table)
    run_files.write_results(folder, results, tables, drawn, stored_context.to_json(subject))
    if experiment.report is not None:
        measured: dict[str, geometry.GeometryReport | None] = {}
        for recipe, outcome in geometries.items():
            path = outcome.results
            measured[recipe] = geometry.read_report(Path(path)) if path else None
            for file in (Path(path), *Path(path).parent.glob("figure*.png")) if path else ():
                shutil.copy(file, folder / f"{file.stem}_{recipe}{file.suffix}")
        (folder / "report.md").write_text(experiment.report(results, measured), encoding="utf-8")
    html_report.write_page(folder)
    track_run(folder, context.log.tracker)


def track_run(folder: Path, tracker: Tracker) -> None:
    """A finished run's folder in W&B."""
    results = run_files.read_results(folder)
    for recipe, outcome in results.geometry.items():
        if outcome.results:
            tracker.log_geometry(*geometry.read_written(Path(outcome.results).parent), folder=f"geometry_{recipe}")
    run_files.mirror_to_tracker(folder, {name: Path(path) for name, path in results.vectors.items()}, tracker)


def analyze_recipes(context: RunContext, artifacts: Mapping[str, Artifact], layer: int) -> dict[str, GeometryOutcome]:
    """Recipe → geometry of the vectors that it makes: first the ones that steer, then the experiment's further ones."""
    found = {context.config.vector.recipe: analyze_vectors(context, artifacts, layer)}
    for recipe in context.experiment.recipes:
        if recipe not in found:
            other = vector_stage.with_recipe(context, recipe)
            listed = vector_stage.list_artifacts(other)
            for artifact in listed.values():
                context.ensure_artifact(artifact)
            found[recipe] = analyze_vectors(other, listed, layer)
    return found


def analyze_vectors(context: RunContext, artifacts: Mapping[str, Artifact], layer: int) -> GeometryOutcome:
    """Geometry of this run's vectors, or, where it has only one, of all stored ones that were made like it.

    Replicas and checkpoints of an organism are no kinds of their own and stay out.
    """
    own = next(iter(artifacts.values())).identity
    keys = ["base", "recipe", "skip_tokens", "code"]
    if context.config.vector.recipe == "mean_diff":  # the base has a vector of its own only by this recipe
        context.ensure_artifact(vector_stage.make_vector_artifact(context, BASE, {}))
        keys.append("prompts")
    stored = geometry.stored_files(context.store.root / "vectors", {key: own[key] for key in keys})
    kinds = {name: a for name, a in artifacts.items() if is_kind(name)}
    if len(kinds) > 1:
        base = {name: path for name, path in stored.items() if name == geometry.BASE}
        stored = base | _vector_files(context, kinds)
    identity = {
        "vectors": {name: path.parent.name for name, path in stored.items()},
        "layer": layer,
        "seed": context.config.seed,
        "code": geometry.CODE,
    }

    def fill_folder(folder: Path) -> None:
        read, means = geometry.load_stored(stored)
        analysis = geometry.analyze_geometry(
            read, layer=layer, prompt_means=means, settings=geometry.AnalysisSettings(seed=context.config.seed)
        )
        geometry.write_analysis(analysis, folder)

    try:
        folder = context.ensure_artifact(Artifact("geometry", context.config.base.name, identity, fill_folder))
    except UserError as error:  # too few vectors, or ones that do not fit: the run itself is whole
        print_line(f"geometry: skipped: {error}")
        return GeometryOutcome(skipped=str(error))
    except Exception as error:  # the answers are not lost; the next start tries the geometry again
        reason = join_lines(f"{type(error).__name__}: {error}", 500)
        traceback.print_exc(file=sys.stderr)
        print_line(f"failed: geometry: {reason}; the answers are kept")
        return GeometryOutcome(failed=reason)
    return GeometryOutcome(results=str(folder / "geometry.json"))


def make_results(
    context: RunContext,
    outputs: StageOutputs,
    result: ExperimentResult,
    geometries: Mapping[str, GeometryOutcome],
    run_key: str,
) -> RunResults:
    """What results.json says."""
    config, log = context.config, context.log
    return RunResults(
        run_key=run_key,
        experiment=config.experiment.name,
        config=asdict(config),
        conditions=tuple(result.conditions),
        question=context.experiment.question,
        finding=result.finding,
        command=context.command,
        numbers=to_json(result.numbers),
        layers=dict(outputs.layers),
        sweeps=dict(outputs.sweeps),
        vectors={name: str(path) for name, path in _vector_files(context, outputs.artifacts).items()},
        judge_card=context.inputs.judge.card(),
        to_score_again=log.unscored,
        notes=(*context.inputs.list_notes, *log.notes),
        geometry=geometries,
        stages=tuple(log.stages),
        engine_starts=context.engines.started,
        versions=package_versions(),
        git_commit=git_commit(),
    )


def _add_labels(
    context: RunContext, outputs: StageOutputs, conditions: Sequence[ConditionResult]
) -> list[ConditionResult]:
    """The conditions with a reader's labels and changes of order beside their rates."""
    changes = order_changes(conditions)
    given = reader_labels.load_labels(context.store.root / reader_labels.KEPT)
    answers = {cell.condition.name: table for cell, table in outputs.judged.items() if cell.questions == BROAD}
    return [
        replace(
            one,
            order_changes=changes.get(one.name, ()),
            labels=reader_labels.summarize_labels(answers[one.name].to_pylist(), given) if given else None,
        )
        for one in conditions
    ]


def _vector_files(context: RunContext, artifacts: Mapping[str, Artifact]) -> dict[str, Path]:
    return {
        name: context.store.artifact_path(a.stage, a.name, a.identity) / VECTORS_FILE for name, a in artifacts.items()
    }
