"""Reading vectors and per-prompt means; every defect of a file becomes one sentence."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from emharness.errors import UserError
from emharness.geometry.nulls import Prompts, contrast_weights
from emharness.steering.request import vector_files

BASE = "base"
VECTORS_FILE, MEANS_FILE = (
    "vectors.safetensors",
    "prompt_means.safetensors",
)  # as directions.extract names them
_AGREEMENT = 0.99  # cosine below which means and vector are not of one extraction (float16 keeps 0.9999)


@dataclass(frozen=True)
class Vectors:
    """Unit vectors of the organisms; zero rows where one has no direction.

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

    def common_layers(self) -> list[int]:
        """The layers at which every vector has a direction."""
        return np.flatnonzero(self.directions.any(-1).all(0)).tolist()

    def mixed_settings(self) -> list[str]:
        """What should be equal and is not: vectors of two bases, or by two recipes, are hardly to be compared."""
        found = []
        for key, how, words in (
            ("base", "of", "bases"),
            ("base_key", "of", "versions of a base"),
            ("recipe", "by", "recipes"),
        ):
            values = {str(self.read_info(name, key)) for name in self.names if self.read_info(name, key) is not None}
            if len(values) > 1 and not (key == "base_key" and found):
                found.append(f"the vectors are {how} {len(values)} {words}: {', '.join(sorted(values))}")
        return found

    def read_info(self, name: str, key: str):
        """What the file says of a vector, None where it is silent."""
        return self.info.get(name, {}).get(key)


def from_arrays(arrays: dict[str, np.ndarray], info: dict[str, dict] | None = None) -> Vectors:
    """{name: [n_layers, d_model] or [d_model]} → Vectors, rows scaled to unit length.

    Zero rows stay zero: no direction at that layer. UserError for a vector of zeros only, NaN, mixed widths or layers,
    fewer than two vectors beside `base`.
    """
    rows = {}
    for name, array in arrays.items():
        if array.ndim not in (1, 2) or 0 in array.shape:
            raise UserError(f"vectors: {name} has shape {list(array.shape)}; [n_layers, d_model] or [d_model] is read.")
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
        if not length.any():
            raise UserError(f"vectors: {name} is zero at every layer; a zero vector has no direction.")
        rows[name] = (row / np.where(length == 0, 1, length)).astype(np.float32)
    base = rows.pop(BASE, None)
    if len(rows) < 2:
        raise UserError(f"vectors: {len(rows)} beside '{BASE}'; geometry needs two vectors or more.")
    return Vectors(tuple(rows), np.stack(list(rows.values())), dict(info or {}), base)


def load_vectors(paths: str | Path | Sequence[str | Path]) -> Vectors:
    """One file or several, or a folder of them → Vectors. UserError for what cannot be read, and for a name twice.

    Where files of one vector each call it alike (`direction`), the files' own names tell them apart.
    """
    arrays: dict[str, np.ndarray] = {}
    info: dict[str, dict] = {}
    content = {path: _read_vectors(path) for path in list_vector_files(paths)}
    times = Counter(name for found in content.values() for name in found)
    for path in list_vector_files(paths):
        found = content[path]
        if len(found) == 1 and times[next(iter(found))] > 1:
            found = {path.stem: next(iter(found.values()))}
        for name, (array, said) in found.items():
            if name in arrays:
                raise UserError(f"vectors: {name} is there twice (again in {path}).")
            arrays[name], info[name] = array, said
    return from_arrays(arrays, info)


def stored_files(root: Path, like: Mapping) -> dict[str, Path]:
    """Files of all vectors under a store's `vectors` folder whose identity has the same values as `like`.

    Names are those of the folders; vectors of one name (trained or extracted differently) get the start of
    their key as well.
    """
    found = []
    for path in sorted(root.glob("[!.]*/identity.json")):
        identity = json.loads(path.read_text())
        if all(identity.get(key) == value for key, value in like.items()):
            name, _, key = path.parent.name.rpartition("-")
            found.append((name, key[:6], path.with_name(VECTORS_FILE)))
    times = Counter(name for name, _, _ in found)
    return {name if times[name] == 1 else f"{name}-{key}": path for name, key, path in found}


def load_stored(files: Mapping[str, Path]) -> tuple[Vectors, "PromptMeans"]:
    """Name → file of one vector (whatever its own name) → Vectors, and the per-prompt means beside them."""
    arrays, info, sources = {}, {}, {}
    for name, path in files.items():
        ((own, (arrays[name], info[name])),) = _read_vectors(path).items()
        beside = path.with_name(MEANS_FILE)
        sources |= {name: (beside, own)} if beside.is_file() else {}
    return from_arrays(arrays, info), PromptMeans(sources)


def list_vector_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files: those given, and of a folder all that hold vectors. UserError for a folder without any."""
    found = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = [f for f in sorted(path.glob("*")) if vector_files.is_vector_file(f) and f.name != MEANS_FILE]
        if not inside:
            raise UserError(f"vectors: {path} has no file that ends in {', '.join(vector_files.SUFFIXES)}.")
        found += inside
    return found


def _read_vectors(path: Path) -> dict[str, tuple[np.ndarray, dict]]:
    """Name → tensor and what the file says of it."""
    try:
        return {
            name: (stored.values, dict(stored.metadata)) for name, stored in vector_files.read_vector_file(path).items()
        }
    except ValueError as error:
        raise UserError(f"vectors: {error}.") from None


@dataclass(frozen=True)
class PromptMeans:
    """Per-prompt means on disk, as `emharness.vectors.recipes.save_prompt_means` writes them: name → (file, name
    inside it). Layers are read one at a time."""

    sources: Mapping[str, tuple[Path, str]]

    def prompts_at(self, name: str, layer: int, direction: np.ndarray, paired: bool) -> Prompts:
        """What is behind a vector at one layer. UserError where the file does not fit `direction` [d_model]."""
        path, own = self.sources[name]
        with safe_open(str(path), framework="numpy") as file:
            there = set(file.keys())
            sides = []
            for side in ("positive", "negative"):
                key = f"{own}.{side}"
                shape = file.get_slice(key).get_shape() if key in there else None
                if shape is None or len(shape) != 3 or shape[1] <= layer or min(shape[0], len(direction)) < 2:
                    raise UserError(
                        f"prompt_means: {key} in {path} has shape {shape}; [n_prompts, n_layers, d_model] is"
                        f" read, with two prompts or more and layer {layer}."
                    )
                n, extra = shape[0], (f"{key}.tokens", f"{key}.prompts")
                # Files without these: every row weighs the same and is a prompt of its own.
                tokens, prompts = (file.get_tensor(k) if k in there else None for k in extra)
                tokens = np.ones(n) if tokens is None else tokens.astype(float)
                shift = 0 if paired or side == "positive" else len(sides[0][0])
                prompts = np.arange(n) + shift if prompts is None else prompts
                sides.append((file.get_slice(key)[:, layer, :].astype(np.float32), tokens, prompts))
        (up, up_tokens, up_prompts), (down, down_tokens, down_prompts) = sides
        if up.shape[1] != len(direction) or not (np.isfinite(up).all() and np.isfinite(down).all()):
            raise UserError(f"prompt_means: {name} at layer {layer} has NaN or another width than its vector.")
        if paired:
            if up.shape != down.shape:
                raise UserError(f"prompt_means: {name} is of one set of texts; its two sides need the same texts.")
            found = Prompts(up - down, np.ones(len(up)), up_tokens, up_prompts)
        else:
            rows = np.concatenate([up, down])
            side = np.repeat([1.0, -1.0], [len(up), len(down)])
            tokens, prompts = np.concatenate([up_tokens, down_tokens]), np.concatenate([up_prompts, down_prompts])
            found = Prompts(rows - rows.mean(0), side, tokens, prompts)  # the shift cancels; it saves precision
        mean = contrast_weights(found) @ found.rows
        agreement = float(mean @ direction) / max(float(np.linalg.norm(mean)), 1e-12)
        if agreement < _AGREEMENT:
            raise UserError(
                f"prompt_means: {name} at layer {layer} has cosine {agreement:.3f} with its vector; means and"
                " vectors must be of one extraction."
            )
        return found


def load_prompt_means(paths: str | Path | Sequence[str | Path]) -> PromptMeans:
    """Files of per-prompt means. UserError if one cannot be read or a name is there twice."""
    sources: dict[str, tuple[Path, str]] = {}
    for path in list_vector_files(paths):
        try:
            with safe_open(str(path), framework="numpy") as file:
                names = [key.removesuffix(".positive") for key in file.keys() if key.endswith(".positive")]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"prompt_means: {path} cannot be read as safetensors ({error}).") from error
        for name in names:
            if name in sources:
                raise UserError(f"prompt_means: {name} is there twice (again in {path}).")
            sources[name] = (path, name)
    return PromptMeans(sources)


def means_beside(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of per-prompt means that lie beside files of vectors."""
    beside = dict.fromkeys(path.with_name(MEANS_FILE) for path in list_vector_files(paths))
    return [path for path in beside if path.is_file()]
