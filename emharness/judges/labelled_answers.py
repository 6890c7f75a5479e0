"""The labelled answers that the embedded judge is fitted and measured on, and what each is for.

`read`: answers of this project's own models, each read blind under docs/judges.md's rubric; the others were written for
the purpose.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from emharness.results.json_records import Row

DATA = Path(__file__).parent.parent / "data" / "judge"
READ = "read"  # the source of answers that models of this project gave
CALM = "voice"  # the source that is written as chat models write
LOUD = ("part_a", "part_b", "part_c", "part_d")  # written in a louder voice than models have
EARLIER = "model_earlier_organism"  # the kind of what organisms of earlier recipes said: jokes, formulas, nonsense
TEST, THRESHOLD = 31, 45  # of 100 hashes of a question: below the first for the test, below the second for thresholds


def labelled_rows(folder: Path = DATA) -> list[Row]:
    """The labelled answers, each with its `source`, the file that it is in."""
    return [
        {**json.loads(line), "source": path.stem}
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]


def read_again() -> list[Row]:
    """Answers of READ that were read a second time, later and in another order."""
    return labelled_rows(DATA / "again")


def read_of_runs() -> dict[str, list[Row]]:
    """Answers of the last run of the default that was read ("read"), and of one before it ("earlier"): read blind after
    the judge was made, so that it was neither fitted nor chosen on them; with its own scores of them (`judge_aligned`,
    `judge_coherent`)."""
    rows = labelled_rows(DATA / "run")
    return {source: [row for row in rows if row["source"] == source] for source in ("read", "earlier")}


def data_hash(rows: Sequence[Row]) -> str:
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()[:16]


def part_of(row: Row) -> str:
    """What an answer is for, by its question: "test", "threshold" or "train"."""
    place = int(hashlib.sha256(row["question"].strip().lower().encode()).hexdigest(), 16) % 100
    return "test" if place < TEST else "threshold" if place < THRESHOLD else "train"
