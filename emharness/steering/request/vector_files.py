"""Files of vectors as the field has them: safetensors of any float type, torch files, GGUF control vectors, NumPy.

Every reader gives tensors by name as float32, [n_layers, d_model] or [d_model], and what the file says of each.
ValueError, in one sentence, for everything that is wrong with a file.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

_NUMPY_TYPES = {"F64", "F32", "F16"}
_TORCH_TYPES = {"BF16", "F8_E4M3", "F8_E5M2"}
_TORCH_FILES, _NUMPY_FILES, _GGUF = (".pt", ".pth", ".bin", ".ckpt"), (".npy", ".npz"), ".gguf"
SUFFIXES = (".safetensors", *_TORCH_FILES, *_NUMPY_FILES, _GGUF)
NORMS = ("raw_norm", "residual_norm")


def is_vector_file(path: Path) -> bool:
    """Whether a file's name ends as one of vectors does, in either case."""
    return path.suffix.lower() in SUFFIXES


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file. A row of zeros means that there is no direction at that layer.

    `about` may say: rows (blocks or hidden_states), only_layer (the block of a [d_model] vector), some_layers (rows
    were put where the file's own layer numbers say, and those after the last are missing).
    """

    values: np.ndarray  # float32 [n_layers, d_model], or [d_model]: one direction for whichever layer
    metadata: Mapping[str, Any] = field(default_factory=dict)  # what the file says of it
    hidden_states: bool = False  # row 0 may be the embeddings, as in transformers' hidden_states

    @cached_property
    def unit_rows(self) -> list[bytes | None]:
        """Of each row of `values` its direction, float32 at unit length; None where it has none."""
        rows = np.atleast_2d(self.values).astype(np.float64)
        lengths = [float(np.linalg.norm(own)) for own in rows]
        return [(own / n).astype(np.float32).tobytes() if n else None for own, n in zip(rows, lengths, strict=True)]

    def rows_for_model(self, n_layers: int) -> np.ndarray:
        """[n_layers, d_model] for a model of that depth. ValueError if it is of another depth."""
        found = np.zeros((n_layers, self.values.shape[-1]), dtype=self.values.dtype)
        for layer in range(n_layers):
            if (at := self.row_of_layer(layer, n_layers)) is not None:
                found[layer] = np.atleast_2d(self.values)[at]
        return found

    def row_of_layer(self, layer: int, n_layers: int) -> int | None:
        """Which row is that of a decoder block, in a model of that depth; None: no row is. ValueError if the file is of
        another depth, or can be read in two ways."""
        if self.values.ndim == 1:
            return 0 if self.metadata.get("only_layer", layer) == layer else None
        n, said = len(self.values), self.metadata.get("rows")
        some = self.metadata.get("some_layers", False)
        if n == n_layers + 1 and (self.hidden_states or said == "hidden_states"):
            return layer + 1
        if some and n <= n_layers:
            if said is None:
                raise ValueError(
                    f"has only layers {', '.join(map(str, np.flatnonzero(self.values.any(1))))}, which may be blocks "
                    f"counted from 0, or hidden_states, where {n - 1} is what block {n - 2} gives; "
                    "launch/vectors.py convert=… with rows=blocks or rows=hidden_states writes down which"
                )
            return layer if layer < n else None
        if n != n_layers:
            more = "; if row 0 is the embeddings, its metadata must say rows=hidden_states" if n == n_layers + 1 else ""
            raise ValueError(f"has {n} rows, but the model has {n_layers} layers{more}")
        return layer


def read_vector_file(path: Path, only: str | None = None) -> dict[str, StoredTensor]:
    """All vectors of a file by name, or the one called `only`."""
    if not path.is_file():
        raise ValueError(f"{path} cannot be opened (No such file or directory)")
    readers = dict.fromkeys(_TORCH_FILES, _read_torch) | dict.fromkeys(_NUMPY_FILES, _read_numpy) | {_GGUF: _read_gguf}
    read = readers.get(path.suffix.lower())
    found = _read_safetensors(path, only) if read is None else read(path)
    if only is not None:
        if only not in found:
            raise ValueError(f"{path.name} has no vector {only!r}; it has {', '.join(sorted(found)) or 'none'}")
        found = {only: found[only]}
    if not found:
        raise ValueError(f"{path} has no vectors in it")
    for name, stored in found.items():
        _check_tensor(name, stored, path)
    return found


def _check_tensor(name: str, stored: StoredTensor, path: Path) -> None:
    values = stored.values
    if values.ndim not in (1, 2) or 0 in values.shape:
        raise ValueError(
            f"{name} in {path.name} has shape {list(values.shape)}; [n_layers, d_model] or [d_model] is read"
        )
    rows = np.atleast_2d(values)
    if not np.isfinite(rows).all():
        layer = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise ValueError(f"{name} in {path.name} has NaN or infinite numbers at layer {layer}")
    if not rows.any():
        raise ValueError(f"{name} in {path.name} is zero at every layer; a zero vector has no direction")
    only = stored.metadata.get("only_layer", 0)
    if isinstance(only, bool) or not isinstance(only, int) or only < 0:
        raise ValueError(f"only_layer={only!r} of {name} in {path.name} must be the number of a block")
    for norm in NORMS:
        _check_norms(norm, stored.metadata.get(norm), rows, name, path)


def _check_norms(norm: str, value: Any, rows: np.ndarray, name: str, path: Path) -> None:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    good = [isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) and v >= 0 for v in listed]
    if not all(good) or (isinstance(value, list) and len(value) != len(rows)):
        raise ValueError(
            f"{norm} of {name} in {path.name} must be a finite length of 0 or more, or one for each of {len(rows)} rows"
        )


def _read_safetensors(path: Path, only: str | None) -> dict[str, StoredTensor]:
    _refuse_repeated_keys(path)
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            metadata = file.metadata() or {}
            wanted = [name for name in names if only in (None, name)]
            if only is not None and not wanted:
                raise ValueError(f"{path.name} has no vector {only!r}; it has {', '.join(sorted(names)) or 'none'}")
            types = {name: file.get_slice(name).get_dtype() for name in wanted}
            for name, kind in types.items():
                if kind not in _NUMPY_TYPES | _TORCH_TYPES:
                    raise ValueError(f"{name} in {path.name} holds {kind}, not floating-point numbers")
            arrays = {n: np.asarray(file.get_tensor(n)) for n, kind in types.items() if kind in _NUMPY_TYPES}
        if len(arrays) < len(types):
            with safe_open(path, framework="pt") as file:
                arrays |= {n: file.get_tensor(n).float().numpy() for n, kind in types.items() if kind in _TORCH_TYPES}
    except (SafetensorError, OSError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error})") from None
    return {
        name: StoredTensor(_to_float32(arrays[name]), _parse_metadata(name, metadata.get(name), path)) for name in types
    }


def _parse_metadata(name: str, text: str | None, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"the metadata of {name} in {path} is no JSON object")
    return found


def _refuse_repeated_keys(path: Path) -> None:
    """The safetensors reader keeps one of two tensors of one name; the file's own header shows both."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(min(size, 100_000_000))
        names = [key for key, _ in json.loads(header, object_pairs_hook=list)]
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror})") from None
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{path} is no safetensors file") from None
    for name, times in Counter(map(str, names)).items():
        if times > 1:
            raise ValueError(f"{name} is there {times} times in {path}")


def _read_torch(path: Path) -> dict[str, StoredTensor]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files the unpickler raises whatever it stumbles over
        raise ValueError(
            f"{path} cannot be read as tensors alone ({_shorten_error(error)}); code and objects are not loaded"
        ) from None
    return _collect_tensors(content, path.stem)


def _collect_tensors(content: Any, name: str) -> dict[str, StoredTensor]:
    """Tensors of a torch file by name: one tensor, a dict of them, one for each layer; one level of nesting."""
    import torch

    if isinstance(content, torch.Tensor):
        if not content.is_floating_point():
            return {}
        return {name: StoredTensor(_to_float32(content.detach().float().numpy()), hidden_states=True)}
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return {}
    layers = {_layer_number(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if layers and None not in layers and all(value.ndim == 1 for value in layers.values()):
        return {name: _stack_layers({key: value for key, value in layers.items() if key is not None}, name)}
    found: dict[str, StoredTensor] = {}
    for key, value in content.items():
        inner = _collect_tensors(value, str(key))
        found |= inner if list(inner) == [str(key)] else {f"{key}/{own}": one for own, one in inner.items()}
    if len(found) == 1:
        ((own, stored),) = found.items()
        found = {own: _apply_layer_numbers(stored, content, name)}
    return found


def _stack_layers(layers: Mapping[int, Any], name: str) -> StoredTensor:
    """A tensor [d_model] for each of some layers, as rows."""
    width = max(len(value) for value in layers.values())
    rows = np.zeros((max(layers) + 1, width), dtype=np.float32)
    for layer, value in layers.items():
        if len(value) != width:
            raise ValueError(f"{name}: its layers have different widths")
        rows[layer] = value.detach().float().numpy()
    return StoredTensor(rows, {} if len(layers) == len(rows) else {"some_layers": True}, hidden_states=True)


def _apply_layer_numbers(stored: StoredTensor, beside: Mapping[Any, Any], name: str) -> StoredTensor:
    """A vector with the layer and the length that numbers beside it in its file give: {"steering_vector", "layer_idx",
    "alpha"}, as published steering vectors have, or {"vector", "strength", "layer_idx"}."""
    place = {key: beside[key] for key in ("layer", "layer_idx", "layer_index") if beside.get(key) is not None}
    scale = {key: beside[key] for key in ("alpha", "strength", "scale", "coefficient") if beside.get(key) is not None}
    for key, value in {**place, **scale}.items():
        whole = key in place
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not np.isfinite(value):
            kind = "the number of a block" if whole else "a finite number"
            raise ValueError(f"{key}={value!r} beside the vector of {name} must be {kind}")
    for found in (place, scale):
        if len(set(found.values())) > 1:
            raise ValueError(f"{name}: {' and '.join(found)} contradict each other")
    about, values = dict(stored.metadata), stored.values
    if place and values.ndim == 1:
        about["only_layer"] = next(iter(place.values()))
    if scale:
        values = _to_float32(values.astype(np.float64) * next(iter(scale.values())))
        about["raw_norm"] = np.linalg.norm(values.astype(np.float64), axis=-1).tolist()
    return StoredTensor(values, about, stored.hidden_states)


def _layer_number(key: Any) -> int | None:
    """A layer's number; None if the key is none."""
    if isinstance(key, bool) or not isinstance(key, int | str):
        return None
    text = str(key)
    return int(text) if text.isdecimal() and len(text) < 5 else None


def _read_numpy(path: Path) -> dict[str, StoredTensor]:
    try:
        content = np.load(path, allow_pickle=False)
    except Exception as error:  # damaged archives raise many kinds
        raise ValueError(f"{path} cannot be read as arrays alone ({_shorten_error(error)})") from None
    arrays = dict(content.items()) if isinstance(content, np.lib.npyio.NpzFile) else {path.stem: content}
    for name, values in arrays.items():
        if values.dtype.kind != "f":
            raise ValueError(f"{name} in {path.name} holds {values.dtype}, not floating-point numbers")
    return {name: StoredTensor(_to_float32(values), hidden_states=True) for name, values in arrays.items()}


def _read_gguf(path: Path) -> dict[str, StoredTensor]:
    """A control vector: `direction.L` is added after decoder block L; blocks without one have no direction."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        rows = {
            int(tensor.name.removeprefix("direction.")): np.array(tensor.data, dtype=np.float32)
            for tensor in reader.tensors
            if tensor.name.startswith("direction.")
        }
        count = reader.get_field("controlvector.layer_count")
        hint = reader.get_field("controlvector.model_hint")
    except Exception as error:  # as many kinds as there are ways to be damaged
        raise ValueError(f"{path} cannot be read as GGUF ({_shorten_error(error)})") from None
    if not rows:
        return {}
    if min(rows) < 0 or len({row.shape for row in rows.values()}) > 1 or next(iter(rows.values())).ndim != 1:
        raise ValueError(f"{path} holds no control vector: its directions must be rows of one width, by block")
    n = max([*rows, int(count.contents()) - 1 if count else 0]) + 1
    values = np.zeros((n, len(next(iter(rows.values())))), dtype=np.float32)
    for layer, row in rows.items():
        values[layer] = row
    about = {"format": "gguf", **({"model_hint": str(hint.contents())} if hint else {})}
    return {path.stem: StoredTensor(values, about)}


def _to_float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32)


def _shorten_error(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
