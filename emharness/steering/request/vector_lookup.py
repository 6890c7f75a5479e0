"""Vectors as steering requests name them: `<file>#<key>` under `EMHARNESS_VECTORS`."""

import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from emharness.steering.request import vector_files
from emharness.steering.request.vector_files import StoredTensor

FOLDER_VARIABLE = "EMHARNESS_VECTORS"


@dataclass(frozen=True)
class StoredVector:
    """One layer's row of a stored vector: unit direction and the two norms that units refer to."""

    unit: bytes  # its direction, d_model float32
    raw_norm: float | None  # length before it was normalised
    residual_norm: float | None  # mean length of the residual stream at that layer

    @property
    def direction(self) -> np.ndarray:
        """[d_model] float32, unit length."""
        return np.frombuffer(self.unit, dtype=np.float32)


def load_vector(reference: str, layer: int, n_layers: int, folder: Path | None = None) -> StoredVector:
    """The row of block `layer`, for a model of `n_layers`, of the tensor that `reference` names below `folder`
    (EMHARNESS_VECTORS), at unit length.

    Raises ValueError, in one sentence, for everything that is wrong with the reference or the file.
    """
    return layer_row(reference, open_vector(reference, folder), layer, n_layers)


def open_vector(reference: str, folder: Path | None = None) -> StoredTensor:
    """The tensor that `reference` names, all its rows; read once until its file changes."""
    path, key = _locate_file(reference, folder or os.environ.get(FOLDER_VARIABLE))
    try:
        stat = path.stat()
        return _read_cached(path, stat.st_mtime_ns, stat.st_size, key)
    except OSError as error:
        raise ValueError(f"steering: vector file {path.name!r} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"steering: {error}") from None


@lru_cache(maxsize=1024)
def _read_cached(path: Path, _mtime_ns: int, _size: int, key: str) -> StoredTensor:
    return vector_files.read_vector_file(path, key)[key]


def layer_row(reference: str, stored: StoredTensor, layer: int, n_layers: int) -> StoredVector:
    """One layer's unit direction of an opened vector, with its norms."""
    try:
        rows = stored.rows_for_model(n_layers)
    except ValueError as error:
        raise ValueError(f"steering: {reference!r} {error}") from None
    if stored.values.ndim == 2 and len(stored.values) > n_layers and reference not in _told:
        _told.add(reference)
        print(f"emharness: {reference}: row 0 is taken for the embeddings and left out", file=sys.stderr, flush=True)
    at = stored.row_of_layer(layer, n_layers)
    if at is None or (unit := stored.unit_rows[at]) is None:
        there = _format_spans(np.flatnonzero(rows.any(1)).tolist()) or str(stored.metadata.get("only_layer"))
        raise ValueError(f"steering: {reference!r} has no direction at layer {layer}; it has some at layers {there}")
    norms = {}
    for name in ("raw_norm", "residual_norm"):
        value = stored.metadata.get(name)
        if isinstance(value, list):
            value = value[at]
        norms[name] = None if value is None else float(value)
    return StoredVector(unit, **norms)


_told: set[str] = set()  # references of which it was said that row 0 is left out


def _locate_file(reference: str, folder: Path | str | None) -> tuple[Path, str]:
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


def _format_spans(layers: list[int]) -> str:
    """Numbers as runs: 3–5, 9."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
