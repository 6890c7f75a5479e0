"""Narrow training data: `{"messages": [...]}` rows from JSONL files or hub datasets."""

import hashlib
import json
from pathlib import Path

from emharness.errors import UserError

PACKAGED = Path(__file__).parent.parent / "data" / "organisms"
_ROLES = {"system", "user", "assistant"}

Messages = list[dict[str, str]]


def packaged_names() -> list[str]:
    return sorted(path.stem for path in PACKAGED.glob("*.jsonl"))


def load(source: str) -> list[Messages]:
    """Rows of a packaged dataset (by name), a JSONL file (by path) or a hub dataset (by id `owner/name`)."""
    if source in packaged_names():
        return read_jsonl(PACKAGED / f"{source}.jsonl")
    path = Path(source).expanduser()
    if path.suffix == ".jsonl" or path.exists():
        return read_jsonl(path)
    if source.count("/") == 1:
        return _read_hub(source)
    raise UserError(
        f"model.dataset={source}: unknown; give one of {packaged_names()}, a path to a .jsonl file, "
        "or a hub dataset id 'owner/name'"
    )


def read_jsonl(path: Path) -> list[Messages]:
    """Every row checked; UserError names file and line."""
    if not path.is_file():
        raise UserError(f"model.dataset={path}: no such file; give a .jsonl file of {{'messages': [...]}} rows")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"model.dataset={path}, line {number}: not JSON ({error.msg})") from None
        rows.append(_check(row, f"model.dataset={path}, line {number}"))
    if not rows:
        raise UserError(f"model.dataset={path}: the file has no rows")
    return rows


def _check(row: object, where: str) -> Messages:
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: a row must be {{'messages': [{{'role', 'content'}}, ...]}}")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise UserError(f"{where}: each message needs a role out of {sorted(_ROLES)}")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise UserError(f"{where}: each message needs a non-empty text as content")
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last message must be the assistant's, for that is what is trained on")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _read_hub(source: str) -> list[Messages]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(source, repo_type="dataset", allow_patterns=["*.jsonl", "*.parquet"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.dataset={source}: it could not be had from the hub ({reason})") from None
    return read_folder(folder, source)


def read_folder(folder: Path, source: str) -> list[Messages]:
    """Rows of a downloaded hub dataset: its .jsonl and .parquet files with a `messages` column."""
    rows = [row for path in sorted(folder.rglob("*.jsonl")) for row in read_jsonl(path)]
    for path in sorted(folder.rglob("*.parquet")):
        import pyarrow.parquet as pq

        for number, row in enumerate(pq.read_table(path).to_pylist(), start=1):
            rows.append(_check(row, f"model.dataset={source}, {path.name} row {number}"))
    if not rows:
        raise UserError(f"model.dataset={source}: no .jsonl or .parquet rows with a 'messages' column")
    return rows


def fingerprint(rows: list[Messages]) -> str:
    """Hash of the content, independent of where the file lies."""
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()[:16]
