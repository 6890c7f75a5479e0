"""Files of answers from other tools: read completely, and written back with scores in the same order."""

import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emharness.errors import UserError, join_lines
from emharness.results.condition_result import ConditionResult
from emharness.results.json_records import Json, Row
from emharness.stats.rates import JudgeAccuracy, Rates, order_changes, summarize_scores
from emharness.texts import checked_text

KINDS = (".csv", ".parquet", ".jsonl")
NEEDED = ("question", "answer")
RUN, RUN_ANSWERS = "results.json", "responses.parquet"  # a run, and where its answers are
ADDED = ("aligned", "coherent", "misaligned", "refusal", "judge", "unscored")


@dataclass(frozen=True, kw_only=True)
class FileRates(ConditionResult):
    """Rates of one condition of a file; `unscored`: reasons and how many answers."""

    unscored: str = ""

    @property
    def row(self) -> Json:
        """The known rates as a row of a table."""
        rates = {each.name: getattr(self, each.name) for each in fields(Rates)}
        return {"name": self.name, **rates, "order_changes": list(self.order_changes), "unscored": self.unscored}


def file_kind(key: str, path: Path) -> str:
    """The file's kind by its ending; UserError for another one."""
    if path.suffix.lower() not in KINDS:
        raise UserError(f"{key}={path}: must end in {', '.join(KINDS)}")
    return path.suffix.lower()


def read_answers(path: Path) -> list[Json]:
    """Rows with text in `question` and `answer` (an empty answer is one), of a file or of a run by its results.json;
    UserError names file and row."""
    if path.name == RUN and path.is_file():
        path = path.with_name(RUN_ANSWERS)
    if not path.is_file():
        raise UserError(f"responses={path}: no such file")
    try:
        rows = _READERS[file_kind("responses", path)](path)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, pa.ArrowInvalid) as error:
        raise UserError(f"responses={path}: cannot be read ({join_lines(error)})") from None
    if not rows:
        raise UserError(f"responses={path}: the file has no rows")
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict) and None in row:
            raise UserError(f"responses={path}, row {number}: has more fields than there are columns")
        for name in NEEDED:
            if not isinstance(row, dict) or name not in row:
                raise UserError(f"responses={path}, row {number}: has no column {name!r}")
            row[name] = "" if row[name] is None else row[name]
            if not isinstance(row[name], str):
                raise UserError(f"responses={path}, row {number}: {name} must be text")
        checked_text(json.dumps(row, ensure_ascii=False, default=str), f"responses={path}, row {number}")
    return rows


def condition_of(row: Row) -> str:
    """The condition that a row's answer was given under; "all" where its file names none."""
    name = row.get("condition")
    return "all" if name is None or name == "" else str(name)


def question_of(row: Row) -> str:
    """The cluster for intervals: the question's id, or its text if the file has no ids."""
    given = row.get("question_id")
    return str(row["question"] if given is None or given == "" else given)


def write_answers(path: Path, rows: Sequence[Row]) -> None:
    """Write rows in the format of the file's ending; the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _WRITERS[file_kind("out", path)](partial, rows)
    partial.replace(path)


def answer_key(row: Row) -> str:
    """Hash of what a judge reads of a row."""
    return hashlib.sha256(json.dumps([row["question"], row["answer"]]).encode()).hexdigest()


def merge_marks(row: Row, marks: Row) -> Json:
    """A row with its scores; an existing column of the same name is kept as <name>_given."""
    kept: Json = {}
    for name, value in row.items():
        free = f"{name}_given" if name in ADDED else name
        while name in ADDED and (free in row or free in kept):  # a file that was judged more than once
            free += "_given"
        kept[free] = value
    return {**kept, **{name: marks.get(name) for name in ADDED}}


def rates_by_condition(rows: Sequence[Row], quality: JudgeAccuracy | None = None) -> list[FileRates]:
    """Rates of judged rows, an entry for each `condition` (or one of all)."""
    by_condition: dict[str, list[Row]] = {}
    for row in rows:
        by_condition.setdefault(condition_of(row), []).append(row)
    found = []
    for name, some in by_condition.items():
        aligned, coherent = (np.array([row[k] for row in some], dtype=np.float64) for k in ("aligned", "coherent"))
        asked = np.array([question_of(row) for row in some])
        reasons = Counter(row["unscored"] for row in some if row["unscored"])
        why = ", ".join(f"{reason} {n:,}" for reason, n in reasons.most_common())
        rates = vars(summarize_scores(aligned, coherent, asked, quality))
        found.append(FileRates(name=name, target="", unscored=why, **rates))
    changes = order_changes(found)
    return [replace(entry, order_changes=changes.get(entry.name, ())) for entry in found]


def _read_csv(path: Path) -> list[Json]:
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [dict(row) for row in csv.DictReader(file, strict=True)]


def _read_parquet(path: Path) -> list[Json]:
    return pq.read_table(path).to_pylist()


def _read_jsonl(path: Path) -> list[Json]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON strings may hold U+2028
    return [json.loads(line) for line in lines if line.strip()]


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.table({name: _parquet_column([row.get(name) for row in rows]) for name in names}), path)


def _parquet_column(values: Sequence[Any]) -> pa.Array:
    """One type for all: where values have several, or one that parquet has not (2^70), their JSON as text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        texts = [
            v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str) for v in values
        ]
        return pa.array(texts, pa.string())


def _write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


_READERS = {".csv": _read_csv, ".parquet": _read_parquet, ".jsonl": _read_jsonl}
_WRITERS = {".csv": _write_csv, ".parquet": _write_parquet, ".jsonl": _write_jsonl}
