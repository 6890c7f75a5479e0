"""Data files as they exist: JSONL, JSON arrays and parquet, gzipped or not, in any encoding that says what it is.

What a file is, is told by its first bytes, not by its name. Every defect is one UserError with file and line.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emharness.errors import UserError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".jsonl.gz", ".json.gz", ".ndjson.gz")
_MARKS = {  # the longer marks first: UTF-32's begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_OTHERS = {b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "compressed by zstandard", b"ARROW1": "an Arrow file"}

Rows = Iterator[tuple[str, Any]]  # where a row is ("line 3", "row 3"), and the row


def is_data(path: Path) -> bool:
    """Whether a file's name says that rows are in it."""
    return path.name.lower().endswith(SUFFIXES)


def read(path: Path, key: str) -> Rows:
    """Rows of one file. `key` begins the messages. UserError for what cannot be read."""
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read ({error.strerror or error})") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{key}={path}: a damaged gzip file ({error})") from None
    if data.startswith(_PARQUET):
        yield from _parquet(path, data, key)
        return
    for start, kind in _OTHERS.items():
        if data.startswith(start):
            raise UserError(f"{key}={path}: this is {kind}; read are JSONL, JSON and parquet, also gzipped")
    text = decode(data, f"{key}={path}")
    yield from _array(text, path, key) if text.lstrip().startswith("[") else _lines(text, path, key)


def decode(data: bytes, where: str) -> str:
    """Text in UTF-8, or in UTF-16 or UTF-32 that begins with a byte order mark. UserError with the line otherwise."""
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:200]:
        raise UserError(
            f"{where}: there are zero bytes in it, so it is no text in UTF-8 (UTF-16 is read where the file begins "
            "with a byte order mark)"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{where}, line {line}: not {encoding.upper().removesuffix('-SIG')}; save it as UTF-8"
        ) from None


def checked_text(text: str, where: str) -> str:
    """The text, unless it has half a surrogate pair (an emoji's escape cut in two), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: \\u{ord(text[error.start]):04x} is half of a character (an escape cut in two); write both halves"
        ) from None
    return text


def _lines(text: str, path: Path, key: str) -> Rows:
    # Records end at \n and nowhere else: U+2028 and its like may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _parsed(line, f"{key}={path}, line {number}")


def _array(text: str, path: Path, key: str) -> Rows:
    parsed = _parsed(text, f"{key}={path}")
    for number, row in enumerate(parsed, start=1):
        yield f"row {number}", row


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f", line {error.lineno}" if error.lineno > 1 else ""
        raise UserError(f"{where}{line}: not JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(f"{where}: not JSON that can be read (nested too deeply)") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"{where}: not JSON that can be read ({error})") from None


def _parquet(path: Path, data: bytes, key: str) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{key}={path}: a damaged parquet file ({str(error).splitlines()[0]})") from None
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row
