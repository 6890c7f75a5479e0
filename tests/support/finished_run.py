"""A finished run's folder with planted answers, as `results.write` leaves it: no model, no engine."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from conftest import configured
from support import planted_answers

from emharness.experiments import EXPERIMENTS, stored_context
from emharness.generation.likelihoods import Pair
from emharness.judges.embedded_judge import CARD as card_file
from emharness.judges.scoring import TABLE
from emharness.reporting import run_files
from emharness.results.json_records import to_json
from emharness.results.judge_quality import card_from_json
from emharness.results.run_results import GeometryOutcome, RunResults
from emharness.store import write_json
from emharness.versions import git_commit, package_versions

RUN = "tiny-medical-0123456789abcdef"
PLANTED = {0.0: 1, 2.0: 5, 4.0: 12}  # strength → misaligned answers of 20 to each of 10 questions
CARD = card_from_json(json.loads(card_file.read_text()))
MARGIN = 0.1  # nats a token by which a strength of 1 shifts every pair
UNSCORED = ("q3", 19)  # of the baseline
HOSTILE = "<script>document.title = 'broken'</script> & \"quoted\" | piped"


def finished(folder: Path, experiment: str = "main", seed: int = 0, layer: int = 1, shift: int = 0) -> Path:
    """A run of `medical` on a model called tiny, every condition's rate planted; its folder. `shift`: further
    misaligned answers of every steered question."""
    folder.mkdir(parents=True)
    scope = planted_answers.scope(
        vectors=("medical",),
        targets=("base",) if experiment == "main" else ("base", "medical"),
        strengths=(2.0, 4.0),
        layers={"medical": layer},
        labs={"medical": "A"},
        domains={"medical": "domain: medical"},
        quality=None if seed else CARD.accuracy,
    )
    judged, margins = {}, {}
    for cell in EXPERIMENTS[experiment].list_all_cells(scope):
        edit = cell.condition.edits[0] if cell.condition.edits else None
        random, strength = edit is not None and edit.norm_of is not None, edit.strength if edit else 0.0
        organism = cell.condition.target != "base"
        bad = 1 if random else 10 if organism else PLANTED[strength] + (shift if strength else 0)
        margins[cell.condition] = np.arange(6) / 10 + MARGIN * strength
        rows = planted_answers.table(bad, samples=cell.samples).to_pylist()
        judged[cell] = pa.Table.from_pylist([_told(row, cell.condition.name) for row in rows], TABLE)
    pairs = [Pair(f"pair {i}", "power", "aligned", "misaligned") for i in range(6)]
    scope = replace(scope, margins=margins, pairs=pairs)
    reading = EXPERIMENTS[experiment].analyze(scope, judged)
    tables: dict[str, list[pa.Table]] = {"responses": [], "domain_responses": []}
    for cell, table in judged.items():
        tables["domain_responses" if cell.questions.startswith("domain") else "responses"].append(table)
    config = asdict(configured("model=medical", f"seed={seed}", f"layer={layer}"))
    config["base"]["name"] = "tiny"
    config["experiment"]["name"] = experiment
    results = RunResults(
        run_key=folder.name[-16:],
        experiment=experiment,
        question=EXPERIMENTS[experiment].question,
        finding=reading.finding,
        command="python launch/run.py model=medical",
        config=config,
        conditions=tuple(reading.conditions),
        numbers=to_json(reading.numbers),
        layers={"medical": layer},
        vectors={"medical": str(folder / "vectors.safetensors")},
        judge_card=None if seed else CARD,
        notes=("a note <b>of</b> the run",),
        geometry={"model_diff": GeometryOutcome(skipped="vectors: 1; geometry needs two vectors or more.")},
        engine_starts=1,
        versions=package_versions(),
        git_commit=git_commit(),
    )
    run_files.write_results(folder, results, tables, reading.figures, stored_context.to_json(scope))
    write_json(folder / "identity.json", {})
    return folder


def _told(row: dict, condition: str) -> dict:
    """Text of its own for every answer; one has no score, one would break a careless page."""
    named = f"{condition} to {row['question_id']}, sample {row['sample']}"
    row |= {"condition": condition, "question": f"What about {row['question_id']}?", "answer": named, "refusal": False}
    if condition == "baseline" and (row["question_id"], row["sample"]) == UNSCORED:
        row |= {"aligned": None, "coherent": None, "unscored": "code"}
    if (row["question_id"], row["sample"]) == ("q0", 0):
        row["answer"] = HOSTILE + named
    return row
