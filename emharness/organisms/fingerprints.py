"""Identity of a model folder: every byte that changes what the model reads or says, none of where it lies."""

import hashlib
import json
from pathlib import Path

from emharness.store import write_json

FINGERPRINTS = "fingerprints.json"  # name of the cache in a store

# Weights, configuration, tokenizer and chat templates; not losses, logs, model cards.
_READ = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
_LARGE = 1 << 20  # bytes from which a file's hash is kept


def hash_model_folder(folder: Path, cache: Path | None = None) -> str:
    """Hash of the content of all files that count. `cache`: a JSON file that keeps the hashes of large files, found
    again by path, size, times and inode (a file can be put in another's place with its size and time), so that 16 GB of
    weights are read once."""
    known: dict[str, str] = {}
    if cache is not None and cache.is_file():
        known = json.loads(cache.read_text())
    before = len(known)
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _READ for path in folder.glob(pattern) if path.is_file()}):
        stat = path.stat()
        place = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
        content = known.get(place) or _hash_file(path)
        if stat.st_size >= _LARGE:
            known[place] = content
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    if cache is not None and len(known) > before:
        write_json(cache, known)
    return digest.hexdigest()[:16]


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
