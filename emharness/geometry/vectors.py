"""Reading vectors and per-prompt means; every defect of a file becomes one sentence."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from emharness.errors import UserError

BASE = "base"
_AGREEMENT = 0.99  # cosine below which means and vector are not of one extraction (float16 keeps 0.9999)


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of the organisms.

    `directions`: float32 [n, n_layers, d_model]; `base`: [n_layers, d_model], the base model's own vector;
    `info`: per name what the file says of it (lab, mechanism, layer, raw_norm, …), {} where it says nothing.
    """

    names: tuple[str, ...]
    directions: np.ndarray
    info: dict[str, dict] = field(default_factory=dict)
    base: np.ndarray | None = None

    @property
    def n_layers(self) -> int:
        return self.directions.shape[1]

    @property
    def d_model(self) -> int:
        return self.directions.shape[2]

    def about(self, name: str, key: str):
        """What the file says of a vector, None where it is silent."""
        return self.info.get(name, {}).get(key)


def from_arrays(arrays: dict[str, np.ndarray], info: dict[str, dict] | None = None) -> Vectors:
    """{name: [n_layers, d_model] or [d_model]} → Vectors, rows scaled to unit length.

    UserError for a zero row, NaN, mixed widths or layers, fewer than two vectors beside `base`.
    """
    rows = {}
    for name, array in arrays.items():
        if array.ndim not in (1, 2) or 0 in array.shape:
            raise UserError(
                f"vectors: {name} has shape {list(array.shape)}; [n_layers, d_model] or [d_model] is read."
            )
        rows[name] = np.atleast_2d(array).astype(np.float32)
    first = next(iter(rows), None)
    for name, row in rows.items():
        if row.shape != rows[first].shape:
            raise UserError(
                f"vectors: {name} is [n_layers, d_model] = {list(row.shape)}, but {first} is"
                f" {list(rows[first].shape)}; all vectors need one shape."
            )
        if not np.isfinite(row).all():
            layer = int(np.flatnonzero(~np.isfinite(row).all(1))[0])
            raise UserError(f"vectors: {name} has NaN or infinite numbers at layer {layer}.")
        length = np.linalg.norm(row.astype(np.float64), axis=1, keepdims=True)
        if not length.all():
            raise UserError(
                f"vectors: {name} is zero at layer {int(np.flatnonzero(length[:, 0] == 0)[0])};"
                " a zero vector has no direction."
            )
        rows[name] = (row / length).astype(np.float32)
    base = rows.pop(BASE, None)
    if len(rows) < 2:
        raise UserError(f"vectors: {len(rows)} beside '{BASE}'; geometry needs two vectors or more.")
    return Vectors(tuple(rows), np.stack(list(rows.values())), dict(info or {}), base)


def load_vectors(paths: str | Path | Sequence[str | Path]) -> Vectors:
    """One safetensors file or several → Vectors. UserError for what cannot be read, and for a name twice."""
    arrays: dict[str, np.ndarray] = {}
    info: dict[str, dict] = {}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        _refuse_repeated_keys(Path(path))
        try:
            with safe_open(str(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if name in arrays:
                        raise UserError(f"vectors: {name} is there twice (again in {path}).")
                    arrays[name] = np.asarray(file.get_tensor(name))
                    info[name] = _description(name, metadata.get(name), path)
        except (SafetensorError, OSError, TypeError) as error:
            raise UserError(f"vectors: {path} cannot be read as safetensors of float32 ({error}).") from error
    return from_arrays(arrays, info)


def _description(name: str, text: str | None, path: str | Path) -> dict:
    try:
        found = json.loads(text) if text else {}
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"vectors: the metadata of {name} in {path} is no JSON object.")
    return found


def _refuse_repeated_keys(path: Path) -> None:
    """The safetensors reader keeps one of two tensors of one name; the file's own header shows both."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(min(size, 100_000_000))
        pairs = json.loads(header, object_pairs_hook=list)
        names = [key for key, _ in pairs]
    except OSError as error:
        raise UserError(f"vectors: {path} cannot be opened ({error.strerror}).") from error
    except (ValueError, TypeError):
        raise UserError(f"vectors: {path} is no safetensors file.") from None
    for name, times in Counter(names).items():
        if times > 1:
            raise UserError(f"vectors: {name} is there {times} times in {path}.")


@dataclass(frozen=True)
class PromptMeans:
    """Per-prompt means: a file of [n_prompts, n_layers, d_model], `<name>.harmful` and `<name>.neutral`, or
    `<name>.organism` and `<name>.base` for pairs of the same texts."""

    path: Path
    tensors: frozenset[str]

    def parts(self, name: str) -> tuple[str, str] | None:
        """The two tensors of a vector, None where the file lacks them."""
        for pair in ((f"{name}.harmful", f"{name}.neutral"), (f"{name}.organism", f"{name}.base")):
            if self.tensors.issuperset(pair):
                return pair
        return None

    def rows(self, name: str, layer: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """Rows float32 [n, d_model] of one layer and their sizes, as nulls.contrast_weights reads them."""
        pair = self.parts(name)
        if pair is None:
            raise UserError(f"prompt_means: {self.path} has nothing for {name}.")
        with safe_open(str(self.path), framework="numpy") as file:
            first, second = (file.get_slice(part)[:, layer, :].astype(np.float32) for part in pair)
        if pair[1].endswith(".base"):
            if first.shape != second.shape:
                raise UserError(f"prompt_means: {pair[0]} and {pair[1]} need the same prompts.")
            return first - second, (len(first),)
        rows = np.concatenate([first, second])
        return rows - rows.mean(0), (len(first), len(second))  # the shift cancels; it saves precision

    def checked_rows(self, name: str, layer: int, direction: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
        """`rows`, or UserError where their difference of means is not the stored direction [d_model]."""
        rows, sizes = self.rows(name, layer)
        if rows.shape[1] != len(direction) or not np.isfinite(rows).all():
            raise UserError(f"prompt_means: {name} at layer {layer} has NaN or another width than its vector.")
        weights = np.full(len(rows), 1 / sizes[0])
        weights[sizes[0] :] = -1 / sizes[-1]
        mean = weights @ rows
        agreement = mean @ direction / max(float(np.linalg.norm(mean)), 1e-12)
        if agreement < _AGREEMENT:
            raise UserError(
                f"prompt_means: {name} at layer {layer} has cosine {agreement:.3f} with its vector; means and"
                " vectors must be of one extraction."
            )
        return rows, sizes


def load_prompt_means(path: str | Path) -> PromptMeans:
    """Open a file of per-prompt means (layers are read one at a time). UserError if it cannot be read."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            return PromptMeans(Path(path), frozenset(file.keys()))
    except (SafetensorError, OSError) as error:
        raise UserError(f"prompt_means: {path} cannot be read as safetensors ({error}).") from error
