"""Content-addressed artifacts: made once, written atomically, found again by what determines them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HOME_VARIABLE = "EMHARNESS_HOME"


def home() -> Path:
    """Folder of all artifacts: `EMHARNESS_HOME`, by default `emharness` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(HOME_VARIABLE) or Path(cache) / "emharness").expanduser().resolve()


def key_of(identity: Mapping[str, Any]) -> str:
    """Hash of a JSON-able description, independent of key order."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Write atomically: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        json.dump(value, file, indent=2, allow_nan=False)
    Path(file.name).replace(path)


class Store:
    """Artifacts are folders `<root>/<stage>/<name>-<key>`, each with the identity it was made from."""

    def __init__(self, root: Path):
        self.root = root

    def path(self, stage: str, name: str, identity: Mapping[str, Any]) -> Path:
        return self.root / stage / f"{name}-{key_of(identity)}"

    def has(self, stage: str, name: str, identity: Mapping[str, Any]) -> bool:
        return (self.path(stage, name, identity) / "identity.json").is_file()

    def get(
        self, stage: str, name: str, identity: Mapping[str, Any], make: Callable[[Path], None]
    ) -> tuple[Path, bool]:
        """The artifact's folder, and whether it had to be made: `make` fills a temporary folder that is
        renamed into place only when it is whole, so an interrupted run leaves nothing behind that counts."""
        path = self.path(stage, name, identity)
        if self.has(stage, name, identity):
            return path, False
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            make(partial)
            write_json(partial / "identity.json", identity)
            partial.rename(path)
        except OSError:
            if not self.has(stage, name, identity):  # otherwise another process was faster: use its result
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return path, True
