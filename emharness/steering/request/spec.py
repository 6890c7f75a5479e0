"""The steering part of a request: its schema, and its resolution into what the engine needs."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from emharness.steering.request.modes import MODES, Rule
from emharness.steering.request.vector_files import StoredTensor
from emharness.steering.request.vector_lookup import StoredVector, layer_row, open_vector

KEY = "steering"  # in SamplingParams.extra_args, and in vllm_xargs over HTTP
SpecJson = dict[str, Any]  # a spec as a request carries it: {"edits": […], "record": {…}}
EditJson = dict[str, Any]  # one of its edits
CODE = 2  # raise when the same edits give other answers: it is in their digest, and so in a response's key
MAX_EDITS = 256
NOT_YET = 2**31 - 1  # a position that no request reaches
MAX_STRENGTH = 1e15  # squares of it still fit a float32

if TYPE_CHECKING:
    Mode = str
else:
    Mode = Literal[*MODES]
Unit = Literal["absolute", "raw", "residual"]
Kind = Literal["all", "prompt", "generated", "response"]
Positions = str | list[int | None] | dict[str, int]  # resolved: a kind, [from, to] or {"after_token": id}
Layer = Annotated[int, Field(ge=0)]
LayerList = Annotated[
    tuple[Layer, ...], Field(min_length=1), BeforeValidator(lambda x: tuple(x) if isinstance(x, list) else x)
]
FirstLast = Annotated[str, Field(pattern=r"^\d{1,4}-\d{1,4}$")]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Span(_Closed):
    """Absolute positions [from, to) of prompt and answer together, counted from 0; `to` left out: to the end."""

    first: int = Field(ge=0, alias="from")
    to: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _has_length(self) -> "Span":
        if self.to is not None and self.to <= self.first:
            raise ValueError("to must be greater than from")
        return self


class AfterToken(_Closed):
    """All positions after the first one, in prompt or answer, whose token has this id: `</think>`, say."""

    after_token: int = Field(ge=0)


class Gate(_Closed):
    """Edit only tokens whose projection on a vector, after block `layer` and in the same step, is greater than `above`.

    `layer`: the edit's own (before it is edited) where left out; never a later one.
    """

    vector: str
    layer: Layer | None = None
    above: float = Field(allow_inf_nan=False)


class Edit(_Closed):
    """One edit of the residual stream after a decoder block, or after each of `layers` (v̂ is the unit vector).

    add: h ← h + strength · v̂.  ablate: h ← h − strength · (h·v̂) v̂, so 1 removes the direction.
    pin: the projection h·v̂ becomes strength.  cap, floor: it becomes strength where it is greater, less.
    `unit` scales the strength (not of ablate): absolute, raw (1 = the length of the vector before it was
    normalised, i.e. the organism's own shift) or residual (fraction of the mean residual norm).
    `norm_of`: the vector whose stored norms the unit means, where it is another one: a random direction at the dose
    of the vector that it controls. `rescale`: the edited stream keeps its length.
    """

    vector: str
    layer: Layer | None = None
    layers: LayerList | FirstLast | None = None
    strength: float = Field(allow_inf_nan=False)
    unit: Unit = "absolute"
    mode: Mode = "add"
    positions: Kind | Span | AfterToken = "all"
    rescale: bool = False
    gate: Gate | None = None
    norm_of: str | None = None

    @model_validator(mode="after")
    def _has_layers(self) -> "Edit":
        if (self.layer is None) == (self.layers is None):
            raise ValueError("give either layer or layers")
        if len(set(self.edited_blocks)) < len(self.edited_blocks) or not self.edited_blocks:
            raise ValueError("layers must be a list without repeats, or first-last")
        return self

    @property
    def edited_blocks(self) -> list[int]:
        """The blocks that it edits."""
        if isinstance(self.layers, str):
            first, last = map(int, self.layers.split("-"))
            return list(range(first, last + 1))
        return list(self.layers) if self.layers is not None else [self.layer or 0]

    @property
    def named_vectors(self) -> set[str]:
        """Every vector that it names: its own, the one whose norms scale it, its gate's."""
        return {name for name in (self.vector, self.norm_of, self.gate and self.gate.vector) if name}

    @property
    def is_idle(self) -> bool:
        """Whether it leaves the model as it is."""
        return self.strength == 0 and MODES[self.mode].idle_at_zero


class Record(_Closed):
    """Return the mean residual after each of these decoder blocks (edits included) over the positions, and each
    position's projections on the vectors `project`, each at the block's own row.

    The last generated token is never fed back to the model, so it has no residual and is in no mean.
    """

    layers: list[Layer] = Field(min_length=1, max_length=MAX_EDITS)
    positions: Kind | Span = "response"
    project: list[str] = Field(default_factory=list, max_length=MAX_EDITS)

    @model_validator(mode="after")
    def _has_each_layer_once(self) -> "Record":
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("layers must be a list without repeats")
        return self


class Steering(_Closed):
    """All edits of a request, which act in the order given at a layer, and what it records."""

    edits: list[Edit] = Field(default_factory=list, max_length=MAX_EDITS)
    record: Record | None = None

    @model_validator(mode="after")
    def _asks_for_something(self) -> "Steering":
        if not self.edits and self.record is None:
            raise ValueError("edits must have at least 1 edit, unless record is given")
        return self


def parse_spec(spec: Any) -> Steering:
    """A spec given as a dict (Python) or as a JSON string (HTTP). Raises ValueError in one sentence."""
    try:
        return Steering.model_validate_json(spec) if isinstance(spec, str) else Steering.model_validate(spec)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # Of the alternatives of a field the one that the value looks like: names are texts.
        names = [e for e in found if e["type"] == "literal_error" and not isinstance(e["input"], str)]
        first = next((e for e in found if e not in names), found[0])
        where = ".".join(str(part) for part in first["loc"] if "[" not in str(part)) or "the spec"
        raise ValueError(f"steering: {where}: {first['msg']}") from None


class ResolvedSpec(dict[str, Any]):
    """What `resolve_spec` made. Shared between identical requests: immutable; deepcopy returns self."""

    def __deepcopy__(self, _memo: Any) -> "ResolvedSpec":
        return self


_KEPT = 1024  # specs that stay resolved: they share the directions of their vectors
_kept: dict[tuple[Any, ...], tuple[dict[str, StoredTensor], ResolvedSpec]] = {}


def resolve_spec(spec: Any, n_layers: int, d_model: int, folder: Path | None = None) -> ResolvedSpec:
    """`_resolve_uncached`, once for identical requests, as long as the files that they name do not change."""
    key = (isinstance(spec, str), spec if isinstance(spec, str) else repr(spec), n_layers, d_model, folder)
    files, found = _kept.get(key, ({}, None))
    if found is None or any(open_vector(name, folder) is not stored for name, stored in files.items()):
        found, files = _resolve_uncached(spec, n_layers, d_model, folder)
        if len(_kept) >= _KEPT:
            _kept.clear()
        _kept[key] = files, found
    return found


def _resolve_uncached(
    spec: Any, n_layers: int, d_model: int, folder: Path | None
) -> tuple[ResolvedSpec, dict[str, StoredTensor]]:
    """Check a spec against the model and the vector files (below `folder`) and make it self-contained; and the tensors
    that it names.

    The result travels to the engine inside the request, so nothing is left there that could fail:
    {"digest": bytes, "edits": [{"layer", "positions", "direction": d_model float32 as bytes, "a", "b", "low", "high",
    "rescale", "gate": {"layer", "direction", "above"} or None}], "record": {"layers", "positions", "project",
    "axes": float32 [n_layers, n_vectors, d_model] as bytes} or None}
    with one rule for all modes: h ← h + (a + b · (h·v̂)) v̂ where low < h·v̂ < high. Raises ValueError.
    """
    edits: list[EditJson] = []
    steering = parse_spec(spec)
    asked = [(edit, layer) for edit in steering.edits for layer in edit.edited_blocks]
    if len(asked) > MAX_EDITS:
        raise ValueError(f"steering: edits: {len(asked)} edits of one layer each, at most {MAX_EDITS} are taken")
    layers = [layer for _, layer in asked] + (steering.record.layers if steering.record else [])
    if layers and max(layers) >= n_layers:
        raise ValueError(f"steering: layer must be 0 to {n_layers - 1} for this model, not {max(layers)}")

    opened: dict[str, StoredTensor] = {}  # a spec of many layers names few vectors

    def load_fitting(reference: str, layer: int) -> StoredVector:
        if reference not in opened:
            opened[reference] = open_vector(reference, folder)
        vector = layer_row(reference, opened[reference], layer, n_layers)
        if (width := vector.direction.size) != d_model:
            raise ValueError(f"steering: {reference!r} has width {width}, but the model has {d_model}")
        return vector

    for edit, layer in asked:
        vector = load_fitting(edit.vector, layer)
        rule = edit_rule(edit, vector if edit.norm_of is None else load_fitting(edit.norm_of, layer))
        if max(abs(rule.a), abs(rule.b)) > MAX_STRENGTH:
            raise ValueError(f"steering: strength {edit.strength:g} is beyond what a residual stream can hold")
        if rule.a or rule.b:  # strength 0 is the unsteered model, cache and all
            gate = _resolve_gate(edit.gate, layer, load_fitting) if edit.gate else None
            more = {"positions": _plain_positions(edit.positions), "rescale": edit.rescale, "gate": gate}
            edits.append({"layer": layer, "direction": vector.unit, **asdict(rule), **more})
    record = None
    if steering.record:
        names = steering.record.project
        where = steering.record.positions
        axes = [load_fitting(name, layer).unit for layer in steering.record.layers for name in names]
        record = {
            "layers": steering.record.layers,
            "positions": _plain_positions(where),
            "project": names,
            "axes": b"".join(axes),
        }
    return ResolvedSpec(digest=_digest_edits(edits), edits=edits, record=record), opened


def is_resolved(spec: Any) -> bool:
    """Whether a spec is what `resolve_spec` made; nothing from JSON is, because JSON has no bytes."""
    return isinstance(spec, dict) and isinstance(spec.get("digest"), bytes)


def _digest_edits(edits: list[EditJson]) -> bytes:
    gates = [edit["gate"] for edit in edits if edit["gate"]]
    names = ("layer", "positions", "a", "b", "low", "high", "rescale")
    words = [[*(edit[name] for name in names), edit["gate"] is not None] for edit in edits]
    digest = hashlib.sha256(json.dumps([CODE, words, [[gate["layer"], gate["above"]] for gate in gates]]).encode())
    for one in (*edits, *gates):
        digest.update(one["direction"])
    return digest.digest()


def _plain_positions(positions: Kind | Span | AfterToken) -> Positions:
    if isinstance(positions, AfterToken):
        return {"after_token": positions.after_token}
    return positions if isinstance(positions, str) else [positions.first, positions.to]


def edit_rule(edit: Edit, scale: StoredVector) -> Rule:
    """What an edit does at one layer. `scale`: the vector whose norms the unit means. ValueError if it lacks one."""
    mode = MODES[edit.mode]
    if not mode.is_length and edit.unit != "absolute":
        raise ValueError(f"steering: mode {edit.mode!r} takes a plain factor, so unit must be 'absolute'")
    length = {"absolute": 1.0, "raw": scale.raw_norm, "residual": scale.residual_norm}[edit.unit]
    if length is None:
        named = edit.norm_of or edit.vector
        raise ValueError(f"steering: {named!r} has no {edit.unit}_norm stored, so unit={edit.unit!r} fails")
    return mode.rule(edit.strength * length)


def _resolve_gate(gate: Gate, layer: int, fitting: Callable[[str, int], StoredVector]) -> dict[str, Any]:
    where = layer if gate.layer is None else gate.layer
    if where > layer:
        raise ValueError(f"steering: a gate looks at layer {where}, after the layer {layer} that it lets edit")
    return {"layer": where, "direction": fitting(gate.vector, where).unit, "above": gate.above}


def steered_span(
    positions: Positions, prompt_length: int, tokens: Sequence[int] | np.ndarray = ()
) -> tuple[int, int | None]:
    """Absolute positions [start, end) that resolved `positions` mean; end None = for as long as the request runs.

    `tokens`: the request's so far, for those that begin after one of them; NOT_YET while it has not come.
    """
    if isinstance(positions, dict):
        found = np.flatnonzero(np.asarray(tokens) == positions["after_token"])
        return (int(found[0]) + 1 if len(found) else NOT_YET), None
    if not isinstance(positions, str):
        return positions[0] or 0, positions[1]
    return {
        "all": (0, None),
        "prompt": (0, prompt_length),
        "generated": (prompt_length, None),
        "response": (prompt_length - 1, None),
    }[positions]
