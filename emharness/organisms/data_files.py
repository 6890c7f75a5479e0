"""Data files as they exist: JSONL, JSON arrays and parquet, gzipped or not, in any encoding that says what it is.

File types are detected from content, not from names. Every defect is one UserError with file and line.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emharness.errors import UserError
from emharness.texts import decode_text

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".jsonl.gz", ".json.gz", ".ndjson.gz")
_GZIP, _PARQUET, _ARROW = b"\x1f\x8b", b"PAR1", (b"ARROW1", b"\xff\xff\xff\xff")
_OTHERS = {b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "compressed by zstandard"}

Rows = Iterator[tuple[str, Any]]  # where a row is ("line 3", "row 3"), and the row


def is_data_file(path: Path) -> bool:
    """Whether a file's name says that rows are in it."""
    return path.name.lower().endswith(SUFFIXES)


def read_rows(path: Path, key: str) -> Rows:
    """Rows of one file. `key` begins the messages. UserError for what cannot be read."""
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read ({error.strerror or error})") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{key}={path}: a damaged gzip file ({error})") from None
    if data.startswith((_PARQUET, *_ARROW)):
        yield from _read_table(path, data, key)
        return
    for start, kind in _OTHERS.items():
        if data.startswith(start):
            raise UserError(f"{key}={path}: this is {kind}; read are JSONL, JSON and parquet, also gzipped")
    text = decode_text(data, f"{key}={path}")
    yield from _read_array(text, path, key) if text.lstrip().startswith("[") else _read_lines(text, path, key)


def _read_lines(text: str, path: Path, key: str) -> Rows:
    # Records end at \n and nowhere else: U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _parse_json(line, f"{key}={path}, line {number}")


def _read_array(text: str, path: Path, key: str) -> Rows:
    parsed = _parse_json(text, f"{key}={path}")
    for number, row in enumerate(parsed, start=1):
        yield f"row {number}", row


def _parse_json(text: str, location: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        raise UserError(f"{location}{line}: not JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(f"{location}: not JSON that can be read (nested too deeply)") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"{location}: not JSON that can be read ({error})") from None


def _read_table(path: Path, data: bytes, key: str) -> Rows:
    """Rows of a parquet file, or of an Arrow file or stream (what `datasets` saves to disk)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = "parquet" if data.startswith(_PARQUET) else "Arrow"
    source = pa.BufferReader(data)
    try:
        if kind == "parquet":
            rows = pq.read_table(source).to_pylist()
        else:
            opened = pa.ipc.open_file if data.startswith(_ARROW[0]) else pa.ipc.open_stream
            rows = opened(source).read_all().to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{key}={path}: a damaged {kind} file ({str(error).splitlines()[0]})") from None
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row
