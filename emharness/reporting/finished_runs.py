"""A finished run as it lies in its folder: results.json and the judged responses."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from emharness.errors import UserError, join_lines
from emharness.results.json_records import Json, to_json
from emharness.results.run_results import SCHEMA_VERSION, RunResults, results_from_json

RESULTS_FILE = "results.json"
SCOPE_FILE = "scope.json"  # what is needed to read the answers again
# Keys of a condition that came while the version stayed the same.
NEEDED = ("judge", "n_unscored", "em_rate_corrected", "incoherent_rate", "order_changes")
BROAD, DOMAIN, FORMED = "responses.parquet", "domain_responses.parquet", "form_responses.parquet"
TASKED = "task_responses.parquet"


@dataclass(frozen=True, eq=False)
class Run:
    folder: Path
    results: RunResults

    @property
    def name(self) -> str:
        return self.folder.name

    def read_json(self) -> Json:
        """results.json as it lies there."""
        return json.loads((self.folder / RESULTS_FILE).read_text(encoding="utf-8"))

    @property
    def subject(self) -> str:
        """What it is about, in a word: the organism of the main job, else the experiment."""
        config, name = self.results.config, self.results.experiment
        return config["model"]["name"] if name == "main" and config.get("model") else name

    @property
    def finished_at(self) -> datetime:
        return datetime.fromtimestamp((self.folder / RESULTS_FILE).stat().st_mtime, UTC)

    @cached_property
    def response_tables(self) -> dict[str, pa.Table]:
        """Judged responses: to the broad questions, and, where there are any, to those of the organism's own domain and
        to the broad ones in other forms; and the responses to a harmless task, which no judge reads."""
        files = (BROAD, DOMAIN, FORMED, TASKED)
        return {file: pq.read_table(self.folder / file) for file in files if (self.folder / file).is_file()}

    @property
    def conditions(self) -> pa.Table:
        """A row for each condition, its plain numbers as columns, and the ends of the rate's interval."""
        rows = [to_json(condition) for condition in self.results.conditions]
        plain = [key for key in rows[0] if not any(isinstance(row.get(key), dict | list) for row in rows)]
        ends = [{"em_low": row["em_ci95"][0], "em_high": row["em_ci95"][1]} for row in rows]
        return pa.Table.from_pylist(
            [{key: row.get(key) for key in plain} | end for row, end in zip(rows, ends, strict=True)]
        )

    @property
    def responses(self) -> pa.Table:
        """Every judged answer to the broad questions."""
        return self.response_tables[BROAD]

    def answers_to(self, condition: str, file: str = BROAD) -> list[Json]:
        """Rows of one condition."""
        return self._by_condition.get((file, condition), [])

    def own_tables(self) -> dict[str, list[Json]]:
        """An experiment's own numbers that are lists of rows, by name."""
        return {
            name: rows
            for name, rows in self.results.numbers.items()
            if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
        }

    @cached_property
    def _by_condition(self) -> dict[tuple[str, str], list[Json]]:
        found: dict[tuple[str, str], list[Json]] = {}
        for file, table in self.response_tables.items():
            for row in table.to_pylist():
                found.setdefault((file, row["condition"]), []).append(row)
        return found


def read_run(path: Path, key: str = "run") -> Run:
    """A run by its results.json or its folder. UserError (naming `key`) where that is none of this version."""
    file = path / RESULTS_FILE if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error})"
        raise UserError(f"{key}={path}: must be a run's {RESULTS_FILE} or its folder; {why}") from None
    if not isinstance(found, dict) or not isinstance(found.get("conditions"), list):
        raise UserError(f"{key}={path}: this is no run's {RESULTS_FILE}: it has no list of conditions")
    version = found.get("schema_version")
    missing = [name for name in NEEDED if any(name not in condition for condition in found["conditions"])]
    if version != SCHEMA_VERSION or missing:
        what = f"schema_version {version}" if version != SCHEMA_VERSION else f"a file without {', '.join(missing)}"
        raise UserError(
            f"{key}={path}: {what} is of another version of emharness; this one reads {SCHEMA_VERSION}: run the "
            "experiment again (stored answers are taken)"
        )
    if not (file.parent / BROAD).is_file():
        raise UserError(f"{key}={path}: {BROAD} is not beside it")
    try:
        return Run(file.parent, results_from_json(found))
    except ValueError as error:
        raise UserError(f"{key}={path}: cannot be read as a run's {RESULTS_FILE} ({join_lines(error)})") from None


def newest_run(root: Path) -> Run:
    """The run of a store that finished last. UserError where there is none."""
    return read_run(_result_files(root)[-1])


def list_runs(root: Path) -> tuple[list[Run], int]:
    """All runs of a store that this version reads, the oldest first, and how many of other versions there are.
    UserError where there is none."""
    files, found = _result_files(root), []
    for file in files:
        try:
            found.append(read_run(file))
        except UserError:  # of another version
            continue
    return found or [newest_run(root)], len(files) - len(found)


def _result_files(root: Path) -> list[Path]:
    files = sorted((root / "runs").glob(f"[!.]*/{RESULTS_FILE}"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise UserError(
            f"run: there is no finished run in {root} yet; make one with python launch/run.py model=medical"
        )
    return files
