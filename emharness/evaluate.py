"""Stage: responses of one target under one condition, and their scores; both stored."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emharness.generation.engine import Batch, Engine
from emharness.judge import Judge
from emharness.judge.metrics import misaligned, summarise
from emharness.questions import Question

RESPONSES_FILE = "responses.parquet"
BATCH_FILE = "batch.json"


@dataclass(frozen=True)
class Condition:
    """Target model + vector + layer + strength + mode + positions; without a vector it is unsteered."""

    name: str
    target: str
    vector: str | None = None
    layer: int | None = None
    strength: float = 0.0
    unit: str = "raw"
    mode: str | None = None
    positions: str | None = None

    def spec(self, reference: str) -> dict[str, Any] | None:
        """The steering request for the vector stored as `reference`."""
        if self.vector is None or self.strength == 0:
            return None
        edit = {"vector": reference, "layer": self.layer, "strength": self.strength}
        return {"edits": [{**edit, "unit": self.unit, "mode": self.mode, "positions": self.positions}]}


def generate(
    folder: Path,
    engine: Engine,
    tokenized: dict[str, list[tuple[Question, list[int]]]],
    samples: dict[str, int],
    sampling: Any,
    seed: int,
    spec: dict[str, Any] | None,
) -> None:
    """Write the responses to each question set (broad, domain) and what they cost into `folder`."""
    columns: dict[str, list[Any]] = {
        k: [] for k in ("set", "question_id", "sample", "question", "answer", "n_tokens", "finish_reason")
    }
    costs = {}
    for name, items in tokenized.items():
        batch: Batch = engine.generate([ids for _, ids in items], samples[name], sampling, seed, spec)
        costs[name] = {"generated_tokens": batch.generated_tokens, "seconds": batch.seconds}
        for (question, _), completions in zip(items, batch.completions, strict=True):
            for sample, completion in enumerate(completions):
                row = (name, question.id, sample, question.text, completion.text)
                for column, value in zip(columns, (*row, completion.n_tokens, completion.finish_reason), strict=True):
                    columns[column].append(value)
    pq.write_table(pa.table(columns), folder / RESPONSES_FILE)
    (folder / BATCH_FILE).write_text(json.dumps({"engine": engine.name, "sets": costs}))


def score(folder: Path, responses: Path, judge: Judge) -> None:
    """Write the judge's scores of stored responses, row for row, into `folder`."""
    table = pq.read_table(responses / RESPONSES_FILE)
    start = time.perf_counter()
    scores = judge.score(table["question"].to_pylist(), table["answer"].to_pylist())
    seconds = time.perf_counter() - start
    columns = {
        "aligned": pa.array([s.aligned for s in scores], pa.float64()),
        "coherent": pa.array([s.coherent for s in scores], pa.float64()),
        "refusal": pa.array([s.refusal for s in scores], pa.bool_()),
    }
    pq.write_table(pa.table(columns), folder / "scores.parquet")
    (folder / "judge.json").write_text(json.dumps({"judge": judge.name, "seconds": seconds}))


def judged(responses: Path, scores: Path, condition: str) -> pa.Table:
    """Responses and scores side by side, with `condition` and `misaligned`."""
    table = pq.read_table(responses / RESPONSES_FILE)
    marks = pq.read_table(scores / "scores.parquet")
    aligned, coherence = (to_numpy(marks[name]) for name in ("aligned", "coherent"))
    table = table.add_column(0, "condition", pa.array([condition] * len(table)))
    for name in ("aligned", "coherent"):
        table = table.append_column(name, marks[name])
    table = table.append_column("misaligned", pa.array(misaligned(aligned, coherence)))
    return table.append_column("refusal", marks["refusal"])


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """float64 [n], NaN where a score is missing."""
    return np.array([np.nan if value is None else value for value in column.to_pylist()], dtype=np.float64)


def subset(table: pa.Table, name: str) -> pa.Table:
    return table.filter(pa.array([value == name for value in table["set"].to_pylist()])).drop_columns(["set"])


def metrics(table: pa.Table) -> dict[str, Any]:
    """The rates of judged responses (one question set)."""
    return summarise(
        to_numpy(table["aligned"]), to_numpy(table["coherent"]), np.array(table["question_id"].to_pylist())
    )
