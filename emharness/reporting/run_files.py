"""What a run leaves behind: results.json, responses.parquet, figures; W&B mirrors them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from emharness.figures import drawing
from emharness.figures.picture import Picture
from emharness.reporting.finished_runs import BROAD, RESULTS_FILE, SCOPE_FILE, Run
from emharness.reporting.wandb_tracker import Tracker
from emharness.results.json_records import Json
from emharness.results.run_results import RunResults, results_from_json, results_to_json
from emharness.store import write_json
from emharness.vectors.recipes import load_vector_file

UNTRACKED_FILE = "untracked.json"  # there while W&B lacks something of the run
PLOTLY_FILE = "figures.json"  # name → {"data", "layout"}


def write_results(
    folder: Path,
    results: RunResults,
    tables: Mapping[str, list[pa.Table]],
    figures: Mapping[str, Picture],
    scope: Json,
) -> None:
    """Everything that a run leaves behind, in `folder`. `tables`: file name → judged responses; `scope`: what is needed
    to read them again (experiments/stored_context.py)."""
    for name, some in tables.items():
        if some:
            pq.write_table(pa.concat_tables(some), folder / f"{name}.parquet")
    for name, picture in figures.items():
        drawing.draw_image(picture).savefig(folder / f"{name}.png", dpi=160)
        (folder / f"{name}.svg").write_text(drawing.draw_svg(picture), encoding="utf-8")
    write_json(folder / PLOTLY_FILE, {name: drawing.to_plotly(picture) for name, picture in figures.items()})
    write_json(folder / SCOPE_FILE, scope)
    write_json(folder / RESULTS_FILE, results_to_json(results))


def is_unfinished(folder: Path) -> bool:
    """Whether the judge did not reach some responses, or the geometry failed, so that the run should be read again."""
    return bool(read_results(folder).to_score_again or list_failures(folder))


def list_failures(folder: Path) -> list[str]:
    """What failed after the answers were there."""
    found = read_results(folder).geometry
    return [f"geometry of {recipe} ({outcome.failed})" for recipe, outcome in found.items() if outcome.failed]


def is_untracked(folder: Path) -> bool:
    """Whether W&B failed on something of this run."""
    return (folder / UNTRACKED_FILE).is_file()


def read_results(folder: Path) -> RunResults:
    return results_from_json(json.loads((folder / RESULTS_FILE).read_text()))


def answer_rows(run: Run) -> list[Json]:
    """Every broad answer with its scores and what its condition is, as plain columns to filter by."""
    named = ("target", "vector", "layer", "strength", "control_of", "judge")
    about = {c.name: {key: getattr(c, key) for key in named} for c in run.results.conditions}
    return [{**row, **about[row["condition"]]} for row in run.response_tables[BROAD].to_pylist()]


def mirror_to_tracker(folder: Path, vectors: Mapping[str, Path], tracker: Tracker) -> None:
    """The same in W&B, from what lies in `folder`, and the vectors (name → file) as artifacts. What failed there is
    noted in the folder, so that the next start tries it again."""
    run = Run(folder, read_results(folder))
    tracker.log_conditions(run.results.conditions)
    for name, rows in run.own_tables().items():
        tracker.log_table(name, rows)
    tracker.log_table("responses", answer_rows(run))
    plotly = json.loads((folder / PLOTLY_FILE).read_text())
    tracker.log_figures({path.stem: path for path in sorted(folder.glob("*.png"))}, plotly)
    for name, file in vectors.items():
        tracker.log_vector(f"vector-{name}", file, load_vector_file(file)[1][name])
    if tracker.failed:
        write_json(folder / UNTRACKED_FILE, tracker.failed)
    else:
        (folder / UNTRACKED_FILE).unlink(missing_ok=True)
