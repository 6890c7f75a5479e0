"""The steering part of a request: its schema, and its resolution into what the engine needs."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from emharness.steering.vectors import load_vector

KEY = "steering"  # in SamplingParams.extra_args, and in vllm_xargs over HTTP
MAX_EDITS = 256
MAX_STRENGTH = 1e15  # squares of it still fit a float32

Mode = Literal["add", "ablate"]
Unit = Literal["absolute", "raw", "residual"]
Positions = Literal["all", "prompt", "generated", "response"]


class Edit(BaseModel):
    """One edit of the residual stream after decoder block `layer` (v̂ is the unit vector).

    add: h ← h + strength · v̂.  ablate: h ← h − strength · (h·v̂) v̂, so 1 removes the direction.
    `unit` scales the strength of `add`: absolute, raw (1 = the length of the vector before it was
    normalised, i.e. the organism's own shift) or residual (fraction of the mean residual norm).
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    vector: str
    layer: int = Field(ge=0)
    strength: float = Field(allow_inf_nan=False)
    unit: Unit = "absolute"
    mode: Mode = "add"
    positions: Positions = "all"


class Record(BaseModel):
    """Return the mean residual after each of these decoder blocks (edits included) over the positions.

    The last generated token is never fed back to the model, so it has no residual and is in no mean.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    layers: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=MAX_EDITS)
    positions: Positions = "response"


class Steering(BaseModel):
    """All edits of a request, which act in the order given at a layer, and what it records."""

    model_config = ConfigDict(extra="forbid", strict=True)

    edits: list[Edit] = Field(default_factory=list, max_length=MAX_EDITS)
    record: Record | None = None

    @model_validator(mode="after")
    def _asks_for_something(self) -> "Steering":
        if not self.edits and self.record is None:
            raise ValueError("edits must have at least 1 edit, unless record is given")
        return self


def parse(spec: Any) -> Steering:
    """A spec given as a dict (Python) or as a JSON string (HTTP). Raises ValueError in one sentence."""
    try:
        return Steering.model_validate_json(spec) if isinstance(spec, str) else Steering.model_validate(spec)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the spec"
        raise ValueError(f"steering: {where}: {first['msg']}") from None


def resolve(spec: Any, n_layers: int, d_model: int, folder: Path | None = None) -> dict[str, Any]:
    """Check a spec against the model and the vector files (below `folder`) and make it self-contained.

    The result travels to the engine inside the request, so nothing is left there that could fail:
    {"digest": str, "edits": [{"layer", "positions", "direction": d_model float32 as bytes, "a", "b"}],
    "record": {"layers", "positions"} or None}
    with the one rule h ← h + (a + b · (h·v̂)) v̂ for both modes. Raises ValueError.
    """
    edits = []
    steering = parse(spec)
    layers = [edit.layer for edit in steering.edits] + (steering.record.layers if steering.record else [])
    if layers and max(layers) >= n_layers:
        raise ValueError(f"steering: layer must be 0 to {n_layers - 1} for this model, not {max(layers)}")
    for edit in steering.edits:
        vector = load_vector(edit.vector, edit.layer, n_layers, folder)
        if vector.direction.size != d_model:
            raise ValueError(
                f"steering: {edit.vector!r} has width {vector.direction.size}, but the model has {d_model}"
            )
        if edit.mode == "ablate":
            if edit.unit != "absolute":
                raise ValueError("steering: mode 'ablate' takes a plain factor, so unit must be 'absolute'")
            a, b = 0.0, -edit.strength
        else:
            a, b = edit.strength * _unit_length(edit, vector.raw_norm, vector.residual_norm), 0.0
        if max(abs(a), abs(b)) > MAX_STRENGTH:
            raise ValueError(f"steering: strength {edit.strength:g} is beyond what a residual stream can hold")
        if a or b:  # strength 0 is the unsteered model, cache and all
            direction = vector.direction.tobytes()
            edits.append({"layer": edit.layer, "positions": edit.positions, "direction": direction, "a": a, "b": b})
    digest = hashlib.sha256()
    for edit in edits:
        digest.update(json.dumps([edit[k] for k in ("layer", "positions", "a", "b")]).encode())
        digest.update(edit["direction"])
    record = steering.record.model_dump() if steering.record else None
    return {"digest": digest.hexdigest(), "edits": edits, "record": record}


def _unit_length(edit: Edit, raw_norm: float | None, residual_norm: float | None) -> float:
    length = {"absolute": 1.0, "raw": raw_norm, "residual": residual_norm}[edit.unit]
    if length is None:
        raise ValueError(f"steering: {edit.vector!r} has no {edit.unit}_norm stored, so unit={edit.unit!r} fails")
    return length


def steered_span(positions: Positions, prompt_length: int) -> tuple[int, int | None]:
    """Steered absolute positions [start, end) of a request; end None = for as long as it runs."""
    return {
        "all": (0, None),
        "prompt": (0, prompt_length),
        "generated": (prompt_length, None),
        "response": (prompt_length - 1, None),
    }[positions]
