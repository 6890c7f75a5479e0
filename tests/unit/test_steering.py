"""The steering request: what is taken, what is refused, and what it is resolved to."""

import copy
import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from support.edit_requests import LAYERS, D, edit, resolved, save_vectors

from emharness.steering.request import spec
from emharness.steering.request.vector_lookup import FOLDER_VARIABLE


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    root = tmp_path / "vectors"
    root.mkdir()
    save_vectors(root)
    shutil.copy(root / "f.safetensors", tmp_path / "outside.safetensors")
    monkeypatch.setenv(FOLDER_VARIABLE, str(root))
    return root


@pytest.mark.parametrize(("unit", "a"), [("absolute", 2.0), ("raw", 6.0), ("residual", 40.0)])
def test_units_scale_a_unit_vector(unit, a):
    (got,) = resolved(edit(unit=unit))["edits"]
    assert got["a"] == pytest.approx(a)
    assert got["b"] == 0
    assert np.linalg.norm(np.frombuffer(got["direction"], dtype="f")) == pytest.approx(1)


def test_json_and_dict_are_the_same_request_and_strength_zero_is_no_edit():
    request = {"edits": [edit(), edit(layer=2, mode="ablate", positions="prompt")]}
    assert spec.resolve_spec(json.dumps(request), LAYERS, D) == spec.resolve_spec(request, LAYERS, D)
    assert resolved(edit(strength=0.0))["edits"] == []


def test_integer_strengths_are_numbers():
    assert resolved(edit(strength=2)) == resolved(edit(strength=2.0))


def test_requests_that_ask_alike_share_one_resolution_until_their_file_changes(folder):
    request = {"edits": [edit(), edit(gate={"vector": "f.safetensors#flat", "above": 0.5})]}
    first = spec.resolve_spec(request, LAYERS, D)
    assert spec.resolve_spec(copy.deepcopy(request), LAYERS, D) is first
    assert copy.deepcopy(first) is first
    assert spec.resolve_spec({"edits": [edit(strength=2.5)]}, LAYERS, D) != first
    with pytest.raises(ValueError, match="layer must be 0 to 0"):
        spec.resolve_spec(request, 1, D)
    turned = {"v": -np.eye(LAYERS, D, dtype="f"), "flat": np.ones(D, dtype="f")}
    save_file(turned, folder / "f.safetensors")
    second = spec.resolve_spec(request, LAYERS, D)
    assert np.frombuffer(second["edits"][0]["direction"], dtype="f").tolist() == (-np.eye(LAYERS, D)[1]).tolist()
    assert second["digest"] != first["digest"]
    (folder / "f.safetensors").unlink()
    with pytest.raises(ValueError, match="there is no vector file"):
        spec.resolve_spec(request, LAYERS, D)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"edits": []}, "at least 1"),
        ({"edits": [edit()] * 257}, "at most 256"),
        ({}, "at least 1 edit"),
        ({"record": {"layers": []}}, "at least 1"),
        ({"record": {"layers": [LAYERS]}}, "layer must be 0 to 2"),
        ({"record": {"layers": [0], "positions": "last"}}, "positions"),
        ("{not json", "Invalid JSON"),
        ({"edits": [edit()], "more": 1}, "more"),
        ({"edits": [edit(colour="red")]}, "colour"),
        ({"edits": [edit(strength=float("nan"))]}, "finite"),
        ({"edits": [edit(strength="2")]}, "strength"),
        ({"edits": [edit(layer=-1)]}, "layer"),
        ({"edits": [edit(layer=LAYERS)]}, "layer must be 0 to 2"),
        ({"edits": [edit(mode="times")]}, "'add', 'ablate', 'pin', 'cap' or 'floor'"),
        ({"edits": [edit(layers=[1])]}, "either layer or layers"),
        ({"edits": [{**edit(), "layer": None}]}, "either layer or layers"),
        ({"edits": [{**edit(), "layer": None, "layers": "2-1"}]}, "without repeats, or first-last"),
        ({"edits": [{**edit(), "layer": None, "layers": [1, 1]}]}, "without repeats"),
        ({"record": {"layers": [1, 0, 1]}}, "record: Value error, layers must be a list without repeats"),
        ({"edits": [{**edit(), "layer": None, "layers": "1-3"}]}, "layer must be 0 to 2"),
        ({"edits": [{**edit(), "layer": None, "layers": "0-999"}]}, "at most 256"),
        ({"edits": [edit(positions={"from": 3, "to": 3})]}, "to must be greater than from"),
        ({"edits": [edit(positions={"from": -1})]}, "positions"),
        ({"edits": [edit(positions={"after_token": "</think>"})]}, "positions"),
        ({"record": {"layers": [0], "positions": {"after_token": 3}}}, "positions"),
        ({"edits": [edit(gate={"vector": "f.safetensors#v", "layer": 2, "above": 0.0})]}, "looks at layer 2, after"),
        ({"edits": [edit(gate={"vector": "f.safetensors#v", "above": float("nan")})]}, "finite"),
        ({"edits": [edit(gate={"vector": "f.safetensors#none", "above": 0.0})]}, "has no vector 'none'"),
        ({"edits": [edit(positions="last")]}, "positions"),
        ({"edits": [edit(mode="ablate", unit="raw")]}, "unit must be 'absolute'"),
        ({"edits": [edit(vector="f.safetensors")]}, "<file>#<key>"),
        ({"edits": [edit(vector="f.safetensors#none")]}, "has no vector 'none'"),
        ({"edits": [edit(vector="none.safetensors#v")]}, "no vector file"),
        ({"edits": [edit(vector="../outside.safetensors#v")]}, "without '..'"),
        ({"edits": [edit(vector="/f.safetensors#v")]}, "must be relative"),
        ({"edits": [edit(vector="junk.safetensors#v")]}, "is no safetensors file"),
        ({"edits": [edit(vector="f.safetensors#wide")]}, "width 7, but the model has 6"),
        ({"edits": [edit(vector="f.safetensors#nan")]}, "NaN or infinite"),
        ({"edits": [edit(vector="f.safetensors#zero")]}, "zero"),
        ({"edits": [edit(vector="f.safetensors#flat", unit="raw")]}, "no raw_norm stored"),
    ],
)
def test_bad_requests_are_refused_in_one_sentence(bad, words):
    with pytest.raises(ValueError, match="steering: ") as error:
        spec.resolve_spec(bad, LAYERS, D)
    assert words in str(error.value)


LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
LEAF |= st.sampled_from(["f.safetensors#v", "f.safetensors#zero", "add", "ablate", "all", "prompt", "raw"])
FIELDS = st.sampled_from(["vector", "layer", "strength", "unit", "mode", "positions", "layers", "x"])
VALUE = st.recursive(LEAF, lambda v: st.lists(v, max_size=3) | st.dictionaries(FIELDS, v, max_size=6), max_leaves=12)
SPEC = st.dictionaries(st.sampled_from(["edits", "record", "x"]), VALUE, max_size=2)
NEARLY = st.fixed_dictionaries(
    {"vector": st.just("f.safetensors#v"), "layer": st.integers(-1, LAYERS), "strength": st.floats()},
    optional={"mode": LEAF, "unit": LEAF, "positions": LEAF},
)


@given(
    SPEC | NEARLY.map(lambda one: {"edits": [one]}) | st.text(max_size=20) | SPEC.map(lambda s: json.dumps(s)) | LEAF
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_request_is_resolved_or_refused_in_one_sentence(folder, request_):
    said = ""
    try:
        resolved_ = spec.resolve_spec(request_, LAYERS, D)
    except ValueError as error:
        said, resolved_ = str(error), None
    assert (resolved_ is None) == said.startswith("steering: ")
    assert "\n" not in said
    edits = resolved_["edits"] if resolved_ else []
    assert all(np.isfinite([one["a"], one["b"]]).all() for one in edits)
