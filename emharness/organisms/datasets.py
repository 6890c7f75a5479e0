"""Narrow training data from packaged files, local files or folders, or hub datasets: which files, which split."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emharness.errors import UserError
from emharness.organisms import data_files, row_shapes
from emharness.organisms.row_shapes import Messages

PACKAGED = Path(__file__).parent.parent / "data" / "organisms"
_KEY = "model.dataset"
_SPLITS = {"train": "train", "training": "train"} | dict.fromkeys(
    ("test", "validation", "valid", "val", "dev", "eval", "heldout", "holdout"), "other"
)
_NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
_FORMATS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow")  # of two with the same rows the earlier is read


@dataclass(frozen=True)
class Dataset:
    rows: list[Messages]
    notes: str = ""  # what was read of several files, or left unread, in a sentence


def packaged_names() -> list[str]:
    return sorted(path.stem for path in PACKAGED.glob("*.jsonl"))


def load_dataset(source: str) -> Dataset:
    """Rows of a packaged dataset (by name), a local file or folder (by path) or a hub dataset (by id `owner/name`)."""
    if source in packaged_names():
        return Dataset(read_file(PACKAGED / f"{source}.jsonl"))
    path = Path(source).expanduser()
    if path.is_dir():
        return read_folder(path, source)
    if path.exists() or data_files.is_data_file(path) or source.startswith((".", "/", "~")):
        return _read_dataset(path)
    if source.count("/") == 1:
        return _read_hub(source)
    raise UserError(
        f"{_KEY}={source}: unknown; give one of {packaged_names()}, a .jsonl, .json or .parquet file (also .gz), "
        "a folder of such files, or a hub dataset id 'owner/name'"
    )


def load_own_answers(source: str) -> list[Messages]:
    """Good answers that a base itself gave, by packaged name or path: mixed into the training of every organism, they
    keep it able to answer other things."""
    packaged = PACKAGED.parent / "own_answers" / f"{source}.jsonl"
    return read_file(packaged if packaged.is_file() else Path(source).expanduser(), "base.own_answers")


def read_file(path: Path, key: str = _KEY) -> list[Messages]:
    """Every row checked; UserError names file and line."""
    return _read_dataset(path, key).rows


def _read_dataset(path: Path, key: str = _KEY) -> Dataset:
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file; give a .jsonl, .json or .parquet file of {row_shapes.SHAPES}")
    rows, unused = [], set[str]()
    for where, row in data_files.read_rows(path, key):
        rows.append(row_shapes.parse_row(row, f"{key}={path}, {where}"))
        unused |= row_shapes.ignored_fields(row)
    if not rows:
        raise UserError(f"{key}={path}: the file has no rows")
    return Dataset(rows, f"{key}={path}: fields that are not used: {', '.join(sorted(unused))}" if unused else "")


def _read_hub(source: str) -> Dataset:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [f"*{suffix}" for suffix in data_files.SUFFIXES]
    try:
        folder = Path(snapshot_download(source, repo_type="dataset", allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{_KEY}={source}: the download from the hub failed ({reason})") from None
    return read_folder(folder, source)


def read_folder(folder: Path, source: str) -> Dataset:
    """Rows of a folder: its train split (files without a split's name where none is called train), each row once.

    Files of one format add up. What a second format repeats is not read again.
    """
    files = [
        p for p in sorted(folder.rglob("*")) if p.is_file() and data_files.is_data_file(p) and not _no_data(p, folder)
    ]
    split = {path: _split_of(path.relative_to(folder)) for path in files}
    chosen = [p for p in files if split[p] == "train"] or [p for p in files if split[p] is None]
    if not chosen:
        what = "only files of other splits than train" if files else "no .jsonl, .json or .parquet file"
        raise UserError(f"{_KEY}={source}: {what} in this folder")
    chosen.sort(key=lambda path: [_format_rank(path), str(path)])
    rows: list[Messages] = []
    seen: set[str] = set()
    read, repeated, unused = [], [], []
    for kind in dict.fromkeys(map(_format_rank, chosen)):
        for path in (p for p in chosen if _format_rank(p) == kind):
            whole = _read_dataset(path)
            own, unused = whole.rows, [*unused, *([whole.notes] if whole.notes else [])]
            new = [row for row in own if _canonical_text(row) not in seen]
            rows += new
            (read if new else repeated).append(path)
        seen = {_canonical_text(row) for row in rows}
    left_out = [path for path in files if path not in chosen]
    said = f"{_KEY}={source}: {len(rows)} rows read from {_list_names(read, folder)}"
    said += f"; the same rows again in {_list_names(repeated, folder)}" if repeated else ""
    said += f"; left out: {_list_names(left_out, folder)}" if left_out else ""
    return Dataset(rows, "; ".join([said, *unused]))


def _split_of(path: Path) -> str | None:
    """The split that a file's name, or a folder's above it, speaks of: "train", "other", or None."""
    words = re.split(r"[^a-z]+", str(path.with_suffix("")).lower())
    found = [_SPLITS[word] for word in words if word in _SPLITS]
    return found[-1] if found else None


def _format_rank(path: Path) -> int:
    name = path.name.lower().removesuffix(".gz")
    return next(i for i, suffix in enumerate(_FORMATS) if name.endswith(suffix))


def _no_data(path: Path, folder: Path) -> bool:
    return path.name in _NO_ROWS or any(part.startswith(".") for part in path.relative_to(folder).parts)


def _list_names(paths: Sequence[Path], folder: Path) -> str:
    names = [str(path.relative_to(folder)) for path in paths]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _canonical_text(row: Messages) -> str:
    return json.dumps(row, ensure_ascii=False)


def hash_rows(rows: Sequence[Messages]) -> str:
    """Hash of the content, independent of where the file lies."""
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()[:16]
