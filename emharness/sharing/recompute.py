"""All that a run says, made again from its stored answers, and where results.json differs from it."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from emharness.errors import UserError
from emharness.experiments import EXPERIMENTS, stored_context
from emharness.experiments.context import ExperimentResult
from emharness.figures.picture import Picture
from emharness.geometry import read_report
from emharness.geometry.study_pictures import cosines_of, draw_pictures
from emharness.reporting.finished_runs import BROAD, DOMAIN, FORMED, SCOPE_FILE, TASKED, Run
from emharness.results.json_records import Json, to_json
from emharness.stats.rates import order_changes


def recompute_run(run: Run) -> ExperimentResult:
    """Conditions, the experiment's own numbers, its figures and its finding, from the stored answers. Readers' labels
    are taken as they are stored: they do not come from the answers."""
    return _analyze_again(run)


def recompute_json(run: Run) -> Json:
    """The same as results.json has it."""
    again = _analyze_again(run)
    return {"conditions": to_json(again.conditions), "finding": again.finding, **to_json(again.numbers)}


def rewrite_report(run: Run) -> str:
    """The text of report.md; empty where its experiment writes none. Geometry is taken as it is stored."""
    write = EXPERIMENTS[run.results.experiment].report
    if write is None:
        return ""
    files = _geometry_files(run)
    geometries = {recipe: read_report(file) if file.is_file() else None for recipe, file in files.items()}
    again = _analyze_again(run)
    results = replace(run.results, conditions=tuple(again.conditions), numbers=to_json(again.numbers))
    return write(results, geometries)


def redraw_figures(run: Run) -> dict[str, Picture]:
    """The experiment's figures, by name, and those of the geometries that lie beside its results."""
    figures = dict(_analyze_again(run).figures)
    for recipe, file in _geometry_files(run).items():
        report = read_report(file) if file.is_file() else None
        if report is not None and (cosines := cosines_of(report)) is not None:
            figures |= {f"{name}_{recipe}": picture for name, picture in draw_pictures(report, cosines).items()}
    return figures


def _geometry_files(run: Run) -> dict[str, Path]:
    return {recipe: run.folder / f"geometry_{recipe}.json" for recipe in run.results.geometry}


def find_differences(stored: object, recomputed: object, location: str = "") -> Iterator[str]:
    """Each place where what is told is not what was made again, in words. Numbers may differ in the tenth digit."""
    if isinstance(stored, dict) and isinstance(recomputed, dict):
        for name in dict.fromkeys([*stored, *recomputed]):
            yield from find_differences(
                stored.get(name), recomputed.get(name), f"{location}, {name}" if location else name
            )
    elif isinstance(stored, list) and isinstance(recomputed, list) and len(stored) == len(recomputed):
        for place, (one, other) in enumerate(zip(stored, recomputed, strict=True)):
            yield from find_differences(one, other, f"{location}, {_entry_name(one, place)}")
    elif isinstance(stored, float | int) and isinstance(recomputed, float | int):
        if not math.isclose(stored, recomputed, rel_tol=1e-9, abs_tol=1e-12):
            yield f"{location}: {stored}, recomputed {recomputed}"
    elif stored != recomputed:
        yield f"{location}: {stored}, recomputed {recomputed}"


@lru_cache(maxsize=2)
def _analyze_again(run: Run) -> ExperimentResult:
    experiment = EXPERIMENTS[run.results.experiment]
    try:
        scope = json.loads((run.folder / SCOPE_FILE).read_text(encoding="utf-8"))
        reading = stored_context.read_again(
            scope,
            experiment,
            run.response_tables[BROAD],
            run.response_tables.get(DOMAIN),
            run.response_tables.get(FORMED),
            run.response_tables.get(TASKED),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"run={run.folder}: its {SCOPE_FILE} cannot be read ({error}); run the experiment again (stored answers "
            "are taken)"
        ) from None
    if reading is None:
        raise UserError(f"run={run.folder}: answers are missing that its experiment asks for")
    changes = order_changes(reading.conditions)
    labels = {condition.name: condition.labels for condition in run.results.conditions}
    conditions = [
        replace(one, order_changes=changes.get(one.name, ()), labels=labels.get(one.name)) for one in reading.conditions
    ]
    return replace(reading, conditions=conditions)


def _entry_name(entry: object, place: int) -> str:
    return str(entry["name"]) if isinstance(entry, dict) and "name" in entry else str(place + 1)
