"""Vectors in and out: what a file holds, the same in another format, and a card that says how it was made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from emharness.errors import UserError
from emharness.results.json_records import Json, Row
from emharness.results.run_results import RunResults
from emharness.stats.bootstrap import Interval
from emharness.steering.request import vector_files
from emharness.steering.request.vector_files import StoredTensor
from emharness.vectors.recipes import normalize_rows

TARGETS = (".safetensors", ".pt", ".npz", ".gguf")
HOOK = "residual stream after decoder block L, counted from 0"


def read_vectors(path: Path, key: str, rows: str | None = None) -> dict[str, StoredTensor]:
    """A file's vectors. `rows`: "blocks", or "hidden_states" where row 0 is the embeddings, which is left out; None: as
    the file says."""
    try:
        found = vector_files.read_vector_file(path)
    except ValueError as error:
        raise UserError(f"{key}={path}: {error}") from None
    if rows == "hidden_states":
        for name, stored in found.items():
            if stored.values.ndim != 2 or len(stored.values) < 2:
                raise UserError(f"rows=hidden_states: {name} in {path} has no row for each layer")
        return {
            name: StoredTensor(stored.values[1:], _without_first(stored.metadata)) for name, stored in found.items()
        }
    if rows == "blocks":
        return {name: StoredTensor(stored.values, _read_metadata(stored.metadata)) for name, stored in found.items()}
    return found


def _without_first(about: Row) -> Json:
    """What a file says, when the row of the embeddings is gone."""
    lists = {k: v[1:] for k, v in about.items() if k in vector_files.NORMS and isinstance(v, list)}
    return _read_metadata({k: v for k, v in about.items() if k != "rows"} | lists)


def _read_metadata(about: Row) -> Json:
    """What a file says, and that its rows are blocks where that has to be said."""
    return {**about, "rows": "blocks"} if about.get("some_layers") else dict(about)


@dataclass(frozen=True, kw_only=True)
class VectorSummary:
    """A vector for people. `layers`: how many rows, None for a single direction; `without_direction`: how many of them
    are zero; `only_layer`: where a single direction is from; lengths are (least, greatest) over the layers;
    `top3_share`: of ‖v‖² in three dimensions, median over the layers."""

    name: str
    layers: int | None
    width: int
    without_direction: int | None
    only_layer: int | None
    length: Interval
    raw_norm: Interval | None
    residual_norm: Interval | None
    top3_share: float
    recipe: str | None
    base: str | None
    organism: str | None
    model_hint: str | None


def describe_vector(name: str, stored: StoredTensor) -> VectorSummary:
    """Shape, layers that have a direction, lengths, how concentrated, where from."""
    rows = np.atleast_2d(stored.values).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    there = np.flatnonzero(lengths)
    about = stored.metadata
    return VectorSummary(
        name=name,
        layers=len(rows) if stored.values.ndim == 2 else None,
        width=rows.shape[1],
        without_direction=(len(rows) - len(there)) or None,
        only_layer=about.get("only_layer"),
        length=(float(lengths[there].min()), float(lengths[there].max())),
        raw_norm=_value_range(about.get("raw_norm")),
        residual_norm=_value_range(about.get("residual_norm")),
        top3_share=float(np.median([top_share(rows[layer]) for layer in there])),
        recipe=about.get("recipe"),
        base=about.get("base"),
        organism=about.get("organism"),
        model_hint=about.get("model_hint"),
    )


def top_share(row: np.ndarray, k: int = 3) -> float:
    """Share of ‖v‖² in the k largest dimensions, row [d_model]: near 1 for a few outlier dimensions."""
    squares = np.sort(row.astype(np.float64) ** 2)[::-1]
    return float(squares[:k].sum() / squares.sum())


def _value_range(value: float | list[float] | None) -> Interval | None:
    if value is None or value == []:
        return None
    return float(np.min(value)), float(np.max(value))


def convert_vectors(vectors: Mapping[str, StoredTensor], out: Path) -> str | None:
    """Write the vectors in the format that `out` ends in; what could not be kept, in a sentence, or None.

    safetensors: unit rows, lengths in the metadata. The others have no place for metadata: rows have their lengths, so
    that a dose of 1 is the vector as it was measured.
    """
    if out.suffix not in TARGETS:
        raise UserError(f"out={out}: must end in one of {', '.join(TARGETS)}")
    for name, stored in vectors.items():
        if stored.metadata.get("some_layers") and "rows" not in stored.metadata:
            raise UserError(
                f"convert: {name} has a tensor for some layers only; say with rows=blocks that its numbers count "
                "blocks from 0, or with rows=hidden_states that 0 would be the embeddings"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        unit = {name: _unit_rows(stored) for name, stored in vectors.items()}
        save_file(
            {name: rows for name, (rows, _) in unit.items()},
            out,
            metadata={name: json.dumps(about) for name, (_, about) in unit.items()},
        )
        return None
    raw = {name: _raw_rows(stored) for name, stored in vectors.items()}
    if out.suffix == ".npz":
        np.savez(out, **raw)  # type: ignore[arg-type]
        return "metadata is not kept"
    if out.suffix == ".pt":
        import torch

        torch.save({name: torch.from_numpy(rows) for name, rows in raw.items()}, out)
        return "metadata is not kept"
    return _write_gguf(vectors, raw, out)


def _write_gguf(vectors: Mapping[str, StoredTensor], raw: Mapping[str, np.ndarray], out: Path) -> str | None:
    from gguf import GGUFWriter

    if len(raw) != 1:
        raise UserError(f"out={out}: a GGUF control vector holds one vector; name one with name=<vector>")
    ((name, rows),) = raw.items()
    if rows.ndim != 2:
        raise UserError(f"out={out}: {name} is one direction for all layers; GGUF needs a row for each layer")
    writer = GGUFWriter(str(out), "controlvector")
    writer.add_string("controlvector.model_hint", str(vectors[name].metadata.get("base") or "llama"))
    writer.add_uint32("controlvector.layer_count", len(rows))
    for layer in range(1, len(rows)):
        if rows[layer].any():
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(rows[layer]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return "the row of block 0 is left out, for GGUF has no place for it" if rows[0].any() else None


def _raw_rows(stored: StoredTensor) -> np.ndarray:
    """Rows at the length that they were measured with, where the file says it."""
    norms = stored.metadata.get("raw_norm")
    if norms is None:
        return stored.values
    unit, _ = normalize_rows(stored.values)
    return (unit * np.asarray(norms, dtype=np.float32)[..., None]).astype(np.float32)


def _unit_rows(stored: StoredTensor) -> tuple[np.ndarray, Json]:
    """Unit rows (zeros stay), and the metadata with their former lengths."""
    unit, lengths = normalize_rows(stored.values)
    return unit, {"raw_norm": lengths.tolist(), **stored.metadata}


def format_card(name: str, stored: StoredTensor, file: Path, results: RunResults | None) -> str:
    """A model card in Markdown. `results`: a run's results.json, for the dose curve."""
    about, seen = stored.metadata, describe_vector(name, stored)
    facts = {
        "recipe": about.get("recipe"),
        "organism": about.get("organism"),
        "base": about.get("base"),
        "base weights (hash)": about.get("base_key"),
        "organism weights (hash)": about.get("organism_key"),
        "texts (hash)": about.get("prompts_hash"),
        "hook point": HOOK,
        "layers × width": f"{seen.layers} × {seen.width}" if seen.layers else f"one direction, {seen.width}",
        "unit": "rows of length 1; metadata: raw_norm is the organism's own shift, residual_norm the stream's length",
        "share of ‖v‖² in three dimensions": f"{seen.top3_share:.1%} (median over layers)",
        "made with": ", ".join(f"{k} {v}" for k, v in (about.get("versions") or {}).items()),
    }
    lines = [f"# Steering vector `{name}`", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items() if value), ""]
    if results is not None:
        lines += _dose_section(name, results)
    lines += ["## Use", "", "```python", *_usage_section(name, file, results), "```", ""]
    return "\n".join(lines)


def _usage_section(name: str, file: Path, results: RunResults | None) -> list[str]:
    layer = results.layers.get(name, "L") if results else "L"
    return [
        "# with vLLM and emharness installed, EMHARNESS_VECTORS=<the folder of this file>",
        f'edit = {{"vector": "{file.name}#{name}", "layer": {layer}, "strength": 4, "unit": "raw"}}',
        'SamplingParams(extra_args={"steering": {"edits": [edit]}})',
    ]


def _dose_section(name: str, results: RunResults) -> list[str]:
    """Dose curve of one vector on the base."""
    base = results.base_name
    rows = [c for c in results.conditions if c.target == base and c.vector in (None, name)]
    if not any(c.vector == name for c in rows):
        raise UserError(f"results: there is no condition with the vector {name} on {base} in it")
    lines = [
        f"## Dose curve on {base}",
        "",
        f"Layer {results.layers.get(name)}, judge {', '.join(sorted({c.judge for c in rows}))}.",
        "",
        "| dose | n | misaligned of coherent | 95 % | coherent |",
        "|---|---|---|---|---|",
    ]
    for c in sorted(rows, key=lambda c: c.strength):
        low, high = c.em_ci95
        rate = "–" if c.em_rate is None else f"{c.em_rate:.1%}"
        coherent = "–" if c.coherent_rate is None else f"{c.coherent_rate:.1%}"
        lines.append(f"| {c.strength:g} | {c.n_responses} | {rate} | {low:.1%} – {high:.1%} | {coherent} |")
    return [*lines, ""]
