"""Content-addressed artifacts: made once, appear by one atomic rename, found again by what determines them.

No locks (research clusters have network file systems): whoever is second finds the first one's result.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from emharness.errors import UserError

HOME_VARIABLE = "EMHARNESS_HOME"
_PARTIAL = ".partial"  # beginning of the names of unfinished files and folders
_OLD = 7 * 24 * 3600  # seconds after which another machine's unfinished work counts as dead


def artifacts_home() -> Path:
    """Folder of all artifacts: `EMHARNESS_HOME`, by default `emharness` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(HOME_VARIABLE) or Path(cache) / "emharness").expanduser().resolve()


def key_of(identity: Mapping[str, Any]) -> str:
    """Hash of a JSON-able description, independent of key order."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def make_slug(name: str) -> str:
    """A name as part of a file name."""
    return "".join(c if c.isalnum() or c in "+-." else "_" for c in name)


@cache
def machine_id() -> str:
    """Where process numbers mean the same: the host, and on Linux the container, as two may have one host name."""
    try:
        space = "-" + re.sub(r"\D", "", str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        space = ""
    return socket.gethostname() + space


def partial_name(host: str | None = None, pid: str | None = None) -> str:
    """Beginning of an unfinished file's name; it says whose it is, so that the dead can be told from the living."""
    return f"{_PARTIAL}~{host or machine_id()}~{pid or os.getpid()}~"


def partial_path(folder: Path) -> Path:
    """Where something unfinished may lie in a folder. It is made as the user's umask says, for a group may share it."""
    return folder / f"{partial_name()}{secrets.token_hex(6)}"


def write_json(path: Path, value: Any) -> None:
    """Write atomically: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path.parent)
    try:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(key: str, folder: Path) -> None:
    """UserError if nothing can be kept in this folder; it is not made yet."""
    folder = folder.expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there, prefix=partial_name()):
            pass
    except OSError as error:
        raise UserError(
            f"{key}={folder}: nothing can be written there ({error.strerror or error}); name a folder of yours"
        ) from None


@dataclass(frozen=True)
class Artifact:
    """What a stage leaves behind: a folder that `make` fills, named by the hash of what determines it."""

    stage: str
    name: str
    identity: Mapping[str, Any]
    make: Callable[[Path], None]


class Store:
    """Artifacts are folders `<root>/<stage>/<name>-<key>`, each with the identity it was made from."""

    def __init__(self, root: Path):
        self.root = root

    def check_writable(self) -> None:
        """UserError if nothing can be kept in this folder; it is not made yet."""
        check_writable(HOME_VARIABLE, self.root)

    def artifact_path(self, stage: str, name: str, identity: Mapping[str, Any]) -> Path:
        return self.root / stage / f"{make_slug(name)}-{key_of(identity)}"

    def has_artifact(self, stage: str, name: str, identity: Mapping[str, Any]) -> bool:
        return (self.artifact_path(stage, name, identity) / "identity.json").is_file()

    def get_artifact(
        self, stage: str, name: str, identity: Mapping[str, Any], make: Callable[[Path], None]
    ) -> tuple[Path, bool]:
        """The artifact's folder, and whether it had to be made: `make` fills a temporary folder that is
        renamed into place only when it is whole, so an interrupted run leaves nothing behind that counts."""
        path = self.artifact_path(stage, name, identity)
        if self.has_artifact(stage, name, identity):
            return path, False
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path.parent)
        partial.mkdir()
        try:
            make(partial)
            write_json(partial / "identity.json", identity)
            partial.rename(path)
        except OSError:
            if not self.has_artifact(stage, name, identity):  # otherwise another process was faster: use its result
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return path, True

    def delete_artifact(self, path: Path) -> None:
        """Delete an artifact, so that it is made again; it goes by one rename."""
        gone = path.parent / f"{partial_name()}{path.name}"
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def remove_dead(self) -> int:
        """Delete what killed processes left unfinished; how many. What might still be alive stays.

        Dead is what a process of this machine left that no longer runs, or another machine's after a week.
        """
        removed = 0
        for path in self.root.glob(f"**/{_PARTIAL}~*"):
            _, host, pid, _ = path.name.split("~", 3)
            if is_alive(int(pid)) if host == machine_id() else not is_older(path, _OLD):
                continue
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            removed += 1
        return removed

    def disk_bytes(self) -> int:
        """Bytes on disk."""
        return (
            sum(path.stat().st_size for path in self.root.glob("**/*") if path.is_file()) if self.root.exists() else 0
        )


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def is_older(path: Path, seconds: float) -> bool:
    """Whether a file was last touched so long ago; False where it is gone."""
    try:
        return time.time() - path.stat().st_mtime > seconds
    except FileNotFoundError:
        return False
