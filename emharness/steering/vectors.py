"""Vectors as steering requests name them: `<file>#<key>` under `EMHARNESS_VECTORS`."""

import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from emharness.steering import files

FOLDER_VARIABLE = "EMHARNESS_VECTORS"


@dataclass(frozen=True)
class StoredVector:
    """One layer's row of a stored vector: unit direction and the two norms that units refer to."""

    direction: np.ndarray  # [d_model] float32, unit length
    raw_norm: float | None  # length before it was normalised
    residual_norm: float | None  # mean length of the residual stream at that layer


def load_vector(reference: str, layer: int, n_layers: int, folder: Path | None = None) -> StoredVector:
    """The row of block `layer`, for a model of `n_layers`, of the tensor that `reference` names below `folder`
    (EMHARNESS_VECTORS), at unit length.

    Raises ValueError, in one sentence, for everything that is wrong with the reference or the file.
    """
    path, key = _locate(reference, folder or os.environ.get(FOLDER_VARIABLE))
    try:
        stat = path.stat()
        return _load(path, stat.st_mtime_ns, stat.st_size, key, layer, n_layers)
    except OSError as error:
        raise ValueError(f"steering: vector file {path.name!r} cannot be read ({error.strerror})") from None


def _locate(reference: str, folder: Path | str | None) -> tuple[Path, str]:
    """Names are checked as they are written: links that the folder's owner put there (a hub's cache) are followed."""
    if not folder:
        raise ValueError(f"steering: {FOLDER_VARIABLE} must name the folder of the vector files")
    name, _, key = reference.partition("#")
    if not name or not key or "\0" in reference:
        raise ValueError(f"steering: vector must be '<file>#<key>', not {reference!r}")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"steering: vector file {name!r} must be relative to {FOLDER_VARIABLE}, without '..'")
    path = Path(folder) / name
    try:
        found = path.is_file()
    except OSError:  # a name longer than the file system takes
        found = False
    if not found:
        raise ValueError(f"steering: there is no vector file {name[:100]!r} under {FOLDER_VARIABLE}")
    return path, key


@lru_cache(maxsize=4096)
def _load(path: Path, _mtime_ns: int, _size: int, key: str, layer: int, n_layers: int) -> StoredVector:
    try:
        stored = files.read(path, key)[key]
    except ValueError as error:
        raise ValueError(f"steering: {error}") from None
    try:
        row = stored.rows(n_layers)[layer].astype(np.float64)
    except ValueError as error:
        raise ValueError(f"steering: {key!r} {error}") from None
    length = np.linalg.norm(row)
    if length == 0:
        there = np.flatnonzero(stored.rows(n_layers).any(1))
        raise ValueError(
            f"steering: {key!r} has no direction at layer {layer}; it has some at layers {_spans(there.tolist())}"
        )
    if n_layers < len(stored.values) and stored.values.ndim == 2:
        print(
            f"emharness: {path.name}#{key}: row 0 is taken for the embeddings and left out", file=sys.stderr, flush=True
        )
    norms = {}
    for name in ("raw_norm", "residual_norm"):
        value = stored.about.get(name)
        if isinstance(value, list):
            value = value[layer + len(value) - n_layers]
        norms[name] = None if value is None else float(value)
    return StoredVector((row / length).astype(np.float32), **norms)


def _spans(layers: list[int]) -> str:
    """Numbers as runs: 3–5, 9."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
