"""Vector files as steering requests name them: `<file>#<key>` under `EMHARNESS_VECTORS`."""

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

FOLDER_VARIABLE = "EMHARNESS_VECTORS"


@dataclass(frozen=True)
class StoredVector:
    """One layer's row of a stored vector: unit direction and the two norms that units refer to."""

    direction: np.ndarray  # [d_model] float32, unit length
    raw_norm: float | None  # length before it was normalised
    residual_norm: float | None  # mean length of the residual stream at that layer


def load_vector(reference: str, layer: int, folder: Path | None = None) -> StoredVector:
    """The row `layer` of the tensor that `reference` names below `folder` (EMHARNESS_VECTORS), at unit length.

    Raises ValueError, in one sentence, for everything that is wrong with the reference or the file.
    """
    path, key = _locate(reference, folder or os.environ.get(FOLDER_VARIABLE))
    stat = path.stat()
    return _load(path, stat.st_mtime_ns, stat.st_size, key, layer)


def _locate(reference: str, folder: Path | str | None) -> tuple[Path, str]:
    if not folder:
        raise ValueError(f"steering: {FOLDER_VARIABLE} must name the folder of the vector files")
    name, _, key = reference.partition("#")
    if not name or not key:
        raise ValueError(f"steering: vector must be '<file>#<key>', not {reference!r}")
    root = Path(folder).resolve()
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"steering: vector file {name!r} must be relative to {FOLDER_VARIABLE}, without '..'")
    path = (root / name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"steering: vector file {name!r} leads out of {FOLDER_VARIABLE}")
    if not path.is_file():
        raise ValueError(f"steering: there is no vector file {name!r} under {FOLDER_VARIABLE}")
    return path, key


@lru_cache(maxsize=4096)
def _load(path: Path, _mtime_ns: int, _size: int, key: str, layer: int) -> StoredVector:
    try:
        with safe_open(path, framework="np") as file:
            if key not in file.keys():  # noqa: SIM118 (safe_open has no __contains__)
                raise ValueError(f"steering: {path.name} has no vector {key!r}; it has {sorted(file.keys())}")
            tensor = file.get_tensor(key)
            metadata = json.loads((file.metadata() or {}).get(key, "{}"))
    except (SafetensorError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"steering: {path.name} is not a readable safetensors file ({error})") from None
    if tensor.ndim == 2:
        if layer >= tensor.shape[0]:
            raise ValueError(f"steering: {key!r} has layers 0 to {tensor.shape[0] - 1}, not {layer}")
        tensor = tensor[layer]
    elif tensor.ndim != 1:
        raise ValueError(f"steering: {key!r} must be [d_model] or [n_layers, d_model], not {tensor.shape}")
    row = tensor.astype(np.float64)
    length = np.linalg.norm(row)
    if not np.isfinite(length) or length == 0:
        raise ValueError(f"steering: {key!r} is zero or not finite at layer {layer}")

    def norm(name: str) -> float | None:
        values = metadata.get(name)
        if isinstance(values, list):
            values = values[layer] if layer < len(values) else None
        return None if values is None else float(values)

    return StoredVector((row / length).astype(np.float32), norm("raw_norm"), norm("residual_norm"))
