"""Responses on disk: parquet files, one folder per target; each file appears complete, by one rename."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from emharness.results.json_records import Json, Row
from emharness.store import partial_name

RESPONSES = pa.schema(
    {
        "key": pa.string(),
        "edits": pa.string(),
        "question": pa.string(),
        "system": pa.string(),
        "sample": pa.int64(),
        "answer": pa.string(),
        "n_tokens": pa.int64(),
        "finish_reason": pa.string(),  # "length" where max_new_tokens cut it
        "seconds": pa.float64(),  # its share of its chunk's wall time, by tokens
        "engine": pa.string(),
    }
)
SCORES = pa.schema(
    {
        "key": pa.string(),
        "aligned": pa.float64(),
        "coherent": pa.float64(),
        "refusal": pa.bool_(),
        "unscored": pa.string(),  # why there is no score
    }
)


class RowStore:
    """Rows with a unique `key`, in chunk files; files are only added, never changed.

    A chunk's name is the hash of its keys: two processes that make the same chunk write the same file, and where
    their chunks overlap the first in the order of names counts, for everyone alike.
    """

    def __init__(self, folder: Path, schema: pa.Schema):
        self.folder, self.schema = folder, schema
        self._files: dict[Path, list[str]] = {}

    def stored_keys(self) -> set[str]:
        """Keys of all stored rows, including chunks that other processes have added meanwhile."""
        for path in self.chunk_files():
            if path not in self._files:
                self._files[path] = pq.read_table(path, columns=["key"])["key"].to_pylist()
        return {key for keys in self._files.values() for key in keys}

    def chunk_files(self) -> list[Path]:
        return sorted(self.folder.glob("[!.]*.parquet"))

    def add_rows(self, rows: Sequence[Row]) -> Path:
        """Store a chunk."""
        keys = sorted(str(row["key"]) for row in rows)
        path = self.folder / f"{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:20]}.parquet"
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{partial_name()}{path.name}"
        try:
            with partial.open("wb") as file:
                pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], self.schema), file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        self._files[path] = keys
        return path

    def read_rows(self, keys: Iterable[str], partly: bool = False) -> dict[str, Json]:
        """The rows of these keys, by key. KeyError where one is not stored, unless some may be missing (`partly`)."""
        wanted = set(keys)
        self.stored_keys()
        found: dict[str, Json] = {}
        for path in sorted(self._files):
            if wanted.isdisjoint(self._files[path]):
                continue
            for row in pq.read_table(path).to_pylist():
                if row["key"] in wanted:
                    found.setdefault(row["key"], row)
        if (missing := wanted - found.keys()) and not partly:
            raise KeyError(f"{len(missing)} rows are not stored in {self.folder}")
        return found
