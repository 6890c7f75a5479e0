"""What a run leaves behind: results.json, responses.parquet, figures; W&B mirrors them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emharness.directions.vectors import load
from emharness.reporting import drawing
from emharness.reporting.picture import Picture
from emharness.reporting.track import Tracker
from emharness.store import write_json
from emharness.versions import versions

SCHEMA_VERSION = 2
RESULTS_FILE = "results.json"
PLOTLY_FILE = "figures.json"  # name → {"data", "layout"}


def write(
    folder: Path,
    results: Mapping[str, Any],
    tables: Mapping[str, list[pa.Table]],
    figures: Mapping[str, Picture],
) -> None:
    """Everything that a run leaves behind, in `folder`. `tables`: file name → judged responses."""
    for name, some in tables.items():
        if some:
            pq.write_table(pa.concat_tables(some), folder / f"{name}.parquet")
    for name, picture in figures.items():
        drawing.image(picture).savefig(folder / f"{name}.png", dpi=160)
    write_json(folder / PLOTLY_FILE, {name: drawing.plotly(picture) for name, picture in figures.items()})
    write_json(folder / RESULTS_FILE, {"schema_version": SCHEMA_VERSION, **versions(), **results})


def unfinished(folder: Path) -> bool:
    """Whether the judge did not reach some responses, so that the run should be read again."""
    return bool(json.loads((folder / RESULTS_FILE).read_text()).get("to_score_again"))


def mirror(folder: Path, results: Mapping[str, Any], vectors: Mapping[str, Path], tracker: Tracker) -> None:
    """The same in W&B, from what lies in `folder`, and the vectors (name → file) as artifacts."""
    tracker.conditions(results["conditions"])
    for name, rows in results.items():  # an experiment's own tables
        if (
            name not in ("conditions", "stages")
            and isinstance(rows, list)
            and rows
            and all(isinstance(row, dict) for row in rows)
        ):
            tracker.table(name, rows)
    tracker.responses(pq.read_table(folder / "responses.parquet"))
    plotly = json.loads((folder / PLOTLY_FILE).read_text())
    tracker.figures({path.stem: path for path in sorted(folder.glob("*.png"))}, plotly)
    for name, file in vectors.items():
        tracker.vector(f"vector-{name}", file, load(file)[1][name])
